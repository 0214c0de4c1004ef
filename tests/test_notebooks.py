"""The notebooks as files, and as programs that a reader runs several times."""

import ast
import base64
import os
import re
from io import BytesIO
from pathlib import Path
from time import sleep

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch
from nbclient.exceptions import CellExecutionError
from PIL import Image
from torch import nn
from torchvision.models import VisionTransformer, vit_b_16

from going_modular import utils
from going_modular.experiments.sweeps import read_results
from going_modular.publishing import notebooks
from going_modular.utils import CHECKOUT, give_random_values
from going_modular.vit import backbones, inspect
from going_modular.vit.export import to_torchvision

PATHS = notebooks.NOTEBOOKS
SERIES = [
    "00_getting_setup",
    "01_paper_overview",
    "02_patchify",
    "03_equation_1_patch_embedding",
    "04_equation_2_attention",
    "05_equation_3_mlp",
    "06_equation_4_encoder_and_head",
    "07_assembling_vit",
    "08_training_from_scratch",
    "09_transfer_learning",
    "10_custom_image_prediction",
    "11_paper_recipe",
    "12_inside_vit",
    "13_what_the_paper_found",
    "14_after_the_paper",
]
each_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem[:2])


def cells_of(path, kind):
    notebook = nbformat.read(path, as_version=4)
    return [cell for cell in notebook.cells if cell.cell_type == kind]


def tags(cell):
    return cell.metadata.get("tags", [])


def test_the_series_is_complete():
    assert [path.stem for path in PATHS] == SERIES


@each_notebook
def test_it_uses_data_setup_engine_and_model_builder(path):
    """It imports them, and reads a name of each."""
    nodes = list(ast.walk(ast.parse("\n".join(cell.source for cell in cells_of(path, "code")))))
    imported = {
        alias.name
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.module == "going_modular"
        for alias in node.names
    }
    used = {
        node.value.id
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    assert {"data_setup", "engine", "model_builder"} <= imported & used


@each_notebook
def test_it_has_the_frame(path):
    text = [cell.source for cell in cells_of(path, "markdown")]
    assert text[0].startswith(f"# {path.stem[:2]} · ")
    assert re.search(r"^\*\*.+\?\*\*$", text[0], re.M), "a question"
    assert all(f"| **{row}** |" in text[0] for row in ("In", "Out", "Proved here"))
    assert "## What we proved" in text[-1]
    assert "predict" in "\n".join(text).lower()  # a prediction to make before running
    links = re.findall(r"\]\((?!https?://)([^)]+)\)", "\n".join(text))
    assert links and all((path.parent / link).is_file() for link in links)


@each_notebook
def test_its_outputs_come_from_one_clean_run(path):
    code = cells_of(path, "code")
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert path.stat().st_size <= 400 * 1024
    assert "widgets" not in nbformat.read(path, as_version=4).metadata
    for cell in code:
        kinds = {output.output_type for output in cell.outputs}
        assert "error" not in kinds
        assert not any("\r" in output.get("text", "") for output in cell.outputs)
    assert any("nbval-check-output" in tags(cell) for cell in code)
    for cell in code:
        for output in cell.outputs:
            for kind in ("image/png", "image/jpeg"):  # their letters may spell anything
                output.get("data", {}).pop(kind, None)
    outputs = "\n".join(str(output) for cell in code for output in cell.outputs)
    assert not re.search(r"/(root|home|tmp|Users|work)/|0x[0-9a-f]{8}", outputs)


@each_notebook
def test_every_picture_has_an_alternative_text(path):
    """In the metadata of its cell: `mystnb`, `image`, `alt`."""
    for cell in cells_of(path, "code"):
        kinds = [
            (output, kind)
            for output in cell.outputs
            for kind in output.get("data", {})
            if kind.startswith("image/")
        ]
        alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt")
        assert bool(kinds) == bool(alt), cell.source
        for output, kind in kinds:
            assert output.metadata[kind]["alt"] == alt and 40 < len(alt) < 260
            assert not re.search(r"\d\.\d|%", alt), alt


@each_notebook
def test_its_outputs_belong_to_its_code_and_to_the_drawn_images(path):
    """If this fails: `make notebooks`. We may not publish the photos."""
    notebook = nbformat.read(path, as_version=4)
    assert notebook.metadata.code_digest == notebooks.digest_of(notebook)
    assert notebook.metadata.food_source == "synthetic"
    assert notebook.metadata.food_size == "cpu"
    first = cells_of(path, "code")[1]
    assert "Images: drawn food" in "".join(output.text for output in first.outputs)


def test_the_digest_is_one_of_code_alone():
    notebook = nbformat.read(PATHS[0], as_version=4)
    digest = notebooks.digest_of(notebook)
    setup, code = [cell for cell in notebook.cells if cell.cell_type == "code"][:2]
    text = next(cell for cell in notebook.cells if cell.cell_type == "markdown")
    text.source += " Another word."
    setup.source = "another address"
    code.outputs = []
    assert notebooks.digest_of(notebook) == digest
    code.source += "\n# another line"
    assert notebooks.digest_of(notebook) != digest


def test_only_outputs_of_the_drawn_images_are_stored(monkeypatch):
    monkeypatch.setenv("FOODVISION_SOURCE", "a/folder/of/photos")
    with pytest.raises(RuntimeError, match="only outputs made from the drawn"):
        notebooks.store([])


def test_only_outputs_in_float32_are_stored(monkeypatch):
    monkeypatch.setenv("FOODVISION_SOURCE", "synthetic")
    monkeypatch.setenv("FOODVISION_PRECISION", "bfloat16")
    with pytest.raises(RuntimeError, match="set FOODVISION_PRECISION to float32"):
        notebooks.store([])


def test_a_notebook_that_reads_what_another_wrote_runs_after_it():
    chains = notebooks.chains_of(PATHS)
    assert [path for chain in chains for path in chain] == PATHS
    assert [[path.stem[:2] for path in chain] for chain in chains if len(chain) > 1] == [
        ["09", "10"]
    ]
    assert notebooks.chains_of(PATHS[10:11]) == [PATHS[10:11]]


def test_notebooks_run_side_by_side_and_the_results_keep_their_order(tmp_path, monkeypatch, capsys):
    def notebook(number: int) -> Path:
        cells = [
            nbformat.v4.new_code_cell(f"print('result {number}')", metadata={"tags": ["result"]})
        ]
        path = tmp_path / f"0{number}_small.ipynb"
        nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
        return path

    monkeypatch.setenv("FOODVISION_DEVICE", "cpu")
    monkeypatch.setattr(notebooks, "BUILD", tmp_path / "build")
    monkeypatch.setattr(notebooks, "core_count", lambda: 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebooks.run([notebook(number) for number in range(3)])
    output = capsys.readouterr().out
    assert "2 at a time" in output and "result 0\nresult 1\nresult 2\n" in output
    assert len(list((tmp_path / "build/html").iterdir())) == 3


def test_the_series_ends_with_the_error_of_a_notebook(tmp_path, monkeypatch):
    bad = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
    nbformat.write(bad, tmp_path / "00_bad.ipynb")
    monkeypatch.setattr(notebooks, "BUILD", tmp_path / "build")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        notebooks.run([tmp_path / "00_bad.ipynb"])


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only on Linux")
def test_cores_that_a_process_may_not_use_do_not_count():
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert notebooks.core_count() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_ctrl_c_starts_no_more_notebooks(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(notebooks, "BUILD", tmp_path / "build")
    monkeypatch.setattr(notebooks, "core_count", lambda: 1)
    monkeypatch.setattr(notebooks, "run_in_order", lambda paths: started.append(paths) or sleep(1))

    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(notebooks, "as_completed", interrupted)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with pytest.raises(KeyboardInterrupt):
        notebooks.run([tmp_path / f"0{number}_a.ipynb" for number in range(5)])
    assert len(started) == 1


def test_the_pictures_of_the_readme_are_the_notebooks_own():
    readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    for path in PATHS:
        notebook = nbformat.read(path, as_version=4)
        for picture, output in notebooks.readme_pictures(path, notebook):
            assert picture.read_bytes() == notebooks.picture_of(output)
            assert f"](notebooks/{picture.name})" in readme


def printed_by(number):
    cells = cells_of(PATHS[number], "code")
    return "".join(output.get("text", "") for c in cells for output in c.outputs)


def check_text_has(number, *expected):
    """Some paragraph of a notebook has all these numbers, in whatever words and order.

    The test does not hold the wording, so that the texts can be written anew.
    """
    cells = cells_of(PATHS[number], "markdown")
    paragraphs = [text for cell in cells for text in cell.source.split("\n\n")]
    numbers = [re.findall(r"\d+(?:\.\d+)?", text) for text in paragraphs]
    if not any(set(expected) <= set(each) for each in numbers):
        pytest.fail(f"no paragraph of notebook {number:02} has the numbers {', '.join(expected)}")


@pytest.mark.parametrize(
    "text, fits",
    [
        ("Loss 2.07 in epoch 1.", True),
        ("**1** epoch of 75 images: (2.07).", True),
        ("Loss 2.07 in epoch 12.", False),
        ("Loss 2.071 in epoch 1.", False),
        ("Loss 2.07.\n\nIn epoch 1.", False),
    ],
)
def test_a_text_is_held_by_its_numbers(text, fits, tmp_path, monkeypatch):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)])
    nbformat.write(notebook, tmp_path / "00.ipynb")
    monkeypatch.setattr("test_notebooks.PATHS", [tmp_path / "00.ipynb"])
    if fits:
        check_text_has(0, "2.07", "1")
    else:
        with pytest.raises(pytest.fail.Exception, match=r"the numbers 2\.07, 1"):
            check_text_has(0, "2.07", "1")


def test_02_has_the_loss_of_its_first_epoch():
    loss = float(re.search(r"epoch +1/10 .* train loss (\S+),", printed_by(2))[1])
    check_text_has(2, f"{loss:.2f}")


def test_08_has_the_accuracies_of_its_recipes():
    number = re.compile(r"^(.+?)  +(?:\d+ +){3}\S+ +\S+ +(\S+)$", re.M)
    accuracy = {name: f"{float(x):.2f}" for name, x in number.findall(printed_by(8))}
    ours = "paper's start, AdamW"
    rates = [accuracy[name] for name in (ours, "the same, rate 0.001", "the same, rate 0.0001")]
    check_text_has(8, "0.003", "0.001", "0.0001", *rates)
    check_text_has(8, accuracy["AdamW"], accuracy[ours])


def test_09_has_the_results_of_08():
    of_08, of_09 = printed_by(8), printed_by(9)
    right = re.search(r"\((\d+)/75\)", of_08)[1]
    check_text_has(9, right, "75")
    best = round(45 * float(re.search(r"accuracy (\S+) after 60", of_08)[1]))
    random = round(45 * float(re.search(r"random +\S+ +(\S+)", of_09)[1]))
    assert random > best
    check_text_has(9, str(random - best), str(best), "45")


def test_12_shows_of_attention_what_its_text_says():
    shown, number = printed_by(12), r"([-+]?\d\.\d+)"
    lost = {
        name: float(re.search(rf"^{name} +{number} ±", shown, re.M)[1])
        for name in ("least light", "at random", "most light", "most lost alone")
    }
    assert lost["least light"] < lost["at random"] - 0.02
    assert 1.5 < lost["most light"] / lost["at random"] < 2.5  # "about twice"
    assert lost["most lost alone"] > 1.8 * lost["most light"]  # "far more"
    more = {
        name: (float(gain), float(error))
        for name, gain, error in re.findall(
            rf"^most light against (.+): {number} ± {number}", shown, re.M
        )
    }
    assert more["at random"][0] > 3 * more["at random"][1]
    for name in ("the middle", "most light, untrained"):  # "cannot tell from none"
        assert abs(more[name][0]) < 2 * more[name][1]
    assert abs(float(re.search(rf"within images: {number}", shown)[1])) < 0.15
    trained, untrained = (
        [float(share) for share in re.findall(number, line)]
        for line in re.findall(r"^(?:trained|untrained) +(0.+)$", shown, re.M)
    )
    assert 0 < sum(trained) / 6 - sum(untrained) / 6 < 0.03  # "changed little"
    assert trained[4] < untrained[4]  # "for the fifth image"


def test_14_shows_what_its_text_says():
    shown, number = printed_by(14), r"([-+]?\d\.\d+)"
    compared = dict(re.findall(r"^(.+): \S+ ± \S+, (an effect|no effect seen)$", shown, re.M))
    row = re.compile(r"^(.+?) +(0\.\d+.*)$", re.M)
    rows = {name: re.findall(number, values) for name, values in row.findall(shown)}
    # 14.2: no gain from the teacher, which agrees with the labels on 97 % of the crops
    assert compared["DeiT against ViT"] == "no effect seen"
    assert compared["DeiT against the control"] == "no effect seen"
    agreement = float(re.search(r"true label for (\S+)%", shown)[1])
    students = [
        [float(x) for x in rows[name][:3]] for name in ("ViT", "DeiT", "two tokens, no teacher")
    ]
    apart = max(abs(deit - control) for deit, control in zip(*students[1:], strict=True))
    of_13 = {"model": "ViT", "images": 600, "lr": 0.001}.items()
    longer = [r["right"] / 600 for r in read_results("claims") if of_13 <= r.items()]
    check_text_has(
        14, f"{apart:.3f}", f"{agreement:.0f}", f"{np.mean(students):.2f}", f"{np.mean(longer):.2f}"
    )
    # 14.3: better than the fillers; features no better, and far behind the teacher's
    others = [float(rows[name][0]) for name in ("mean color", "nearest patch")]
    assert float(rows["MAE"][0]) < min(*others, float(rows["weighted by distance"][0]))
    assert compared["MAE's features against untrained ones"] == "no effect seen"
    gain, error = re.search(rf"against untrained ones: {number} ± {number}", shown).groups()
    assert 0.8 < float(gain) / float(error) < 1.25  # "as large as its error"
    of_teacher = float(re.search(rf"teacher: accuracy {number}", shown)[1])
    assert of_teacher > float(rows["MAE's encoder"][0]) + 0.2
    # 14.4: signs and empty patches look at empty patches, and then signs at registers
    without, with_registers, at_registers = (float(x) for x in rows["signs"][::2])
    even = [float(x) for x in rows["even"]]
    assert without > even[0] and with_registers < even[1] and at_registers > even[2]
    assert float(rows["empty patches"][0]) > even[0]
    assert float(rows["empty patches"][5]) > 0.1  # not in every seed
    assert all(float(x) < 0.15 for x in rows["questions"][::2])
    assert compared["signs to empty patches, R = 4 against R = 0"] == "an effect"
    by_seed = {
        R: [float(x) for x in re.findall(number, errors)]
        for R, errors in re.findall(r"^R = (\d): error .*: (.+)$", shown, re.M)
    }
    assert sum(by_seed["4"]) > 0.9 * sum(by_seed["0"])  # the answers do not get better
    *others, worst = sorted(by_seed["4"])
    assert 1.75 < worst / max(others) < 2.25  # "nearly twice"
    check_text_has(14, re.search(rf"always answering 0: an error of {number}", shown)[1])
    # 14.5: only attention pooling answers the question of one patch
    most = float(re.search(rf"most frequent color in {number}", shown)[1])
    for name in ("class token", "mean", "mean and MLP"):
        assert float(rows[name][0]) > 0.9 and float(rows[name][2]) < most + 0.05
    assert max(float(rows[name][2]) for name in ("class token", "mean")) < most + 0.02
    check_text_has(14, f"{most:.2f}")
    assert min(float(x) for x in rows["attention pooling"][:3:2]) > 0.9
    # 14.6: counted patches fail on larger images, the others do not
    sizes = {name: [float(x) for x in rows[name][::2]] for name in rows if len(rows[name]) == 12}
    counted = sizes.pop("rotary, counted")
    assert len(sizes) == 2 and all(min(of_kind[3:]) > 0.95 for of_kind in sizes.values())
    assert counted[5] < 0.7 and counted[3] > 0.9
    check_text_has(14, f"{counted[5]:.2f}", "48")
    assert all(of_kind[0] < of_kind[3] for of_kind in (counted, *sizes.values()))
    assert compared["48 pixels, centered against rotary, counted"] == "no effect seen"
    assert compared["12 pixels, centered against rotary, counted"] == "an effect"
    seen = sum(verdict == "an effect" for verdict in compared.values())
    assert f"{seen} of {len(compared)} comparisons show an effect" in shown


def test_pictures_are_stored_small():
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    plot = np.full_like(noise, 255)
    plot[100:110] = 20, 120, 130
    for pixels, kind in ((noise, "jpeg"), (plot, "png")):
        png = BytesIO()
        Image.fromarray(pixels).save(png, "PNG")
        data = {"image/png": base64.b64encode(png.getvalue()).decode()}
        output = nbformat.v4.new_output("display_data", data)
        notebooks.shrink(output)
        assert list(output.data) == [f"image/{kind}"]
        stored = notebooks.picture_of(output)
        assert len(stored) < len(png.getvalue())
        assert Image.open(BytesIO(stored)).size == (300, 300)
    stored = Image.open(BytesIO(stored)).convert("RGB")
    assert np.array_equal(stored, plot)  # few colours: nothing is lost


LONG = ("02", "06", "07", "08", "09", "11", "12", "13", "14")


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(
            path, id=path.stem[:2], marks=[pytest.mark.slow] if path.stem[:2] in LONG else []
        )
        for path in PATHS
    ],
)
def test_each_cell_run_twice_from_another_folder_shows_the_same(path, tmp_path, monkeypatch):
    monkeypatch.setenv("FOODVISION_SIZE", "smoke")
    monkeypatch.setenv("FOODVISION_SOURCE", "synthetic")
    # Matplotlib wants arrays: NumPy is going to refuse what it now warns of for tensors
    monkeypatch.setenv("PYTHONWARNINGS", "error:__array_:DeprecationWarning")
    notebook = nbformat.read(path, as_version=4)
    doubled = []
    for cell in notebook.cells:
        doubled.append(cell)
        if cell.cell_type == "code":
            doubled.append(nbformat.from_dict(cell | {"id": cell.id + "-again"}))
    notebook.cells = doubled
    nbformat.write(notebook, tmp_path / path.name)
    executed = notebooks.execute(tmp_path / path.name)
    code = [cell for cell in executed.cells if cell.cell_type == "code"]
    for first, again in zip(code[::2], code[1::2], strict=True):
        shown = [[(o.get("text"), o.get("data")) for o in cell.outputs] for cell in (first, again)]
        assert shown[0] == shown[1], first.source


def torchvisions_twin():
    """Our pretrained ViT as torchvision writes one: a stand-in for its ViT-B/16."""
    ours, transform, _ = backbones.load_drawn_dishes()
    c = ours.vit.config
    twin = VisionTransformer(
        c.image_size, c.patch_size, c.num_layers, c.num_heads, c.embedding_dim, c.mlp_dim
    )
    twin.heads = nn.Identity()
    twin.load_state_dict(to_torchvision(ours.vit))
    twin.name = "twin"
    twin.embedding_dim = c.embedding_dim
    return twin.eval(), transform, "torchvision's twin of our ViT"


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
def test_09_and_10_work_with_torchvisions_kind_of_backbone(tmp_path, monkeypatch):
    monkeypatch.setenv("FOODVISION_SOURCE", "synthetic")
    monkeypatch.setenv("FOODVISION_DATA", str(utils.data_dir()))
    monkeypatch.setattr(utils, "CHECKOUT", tmp_path)  # where models are saved
    monkeypatch.setattr(backbones, "load_pretrained_backbone", torchvisions_twin)
    for path in PATHS[9:11]:
        names = {}
        for cell in cells_of(path, "code"):
            exec(cell.source, names)
        plt.close("all")
        assert names["D"] == 192 and type(names["backbone"]) is VisionTransformer
    assert (tmp_path / "build/models/09_synthetic_food_twin.pth").is_file()


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
def test_12_looks_inside_torchvisions_kind_of_backbone(monkeypatch):
    monkeypatch.setenv("FOODVISION_SIZE", "smoke")
    monkeypatch.setenv("FOODVISION_SOURCE", "synthetic")
    ours = backbones.load_drawn_dishes()[0].vit
    monkeypatch.setattr(backbones, "load_pretrained_backbone", torchvisions_twin)
    names = {}
    for cell in cells_of(PATHS[12], "code"):
        exec(cell.source, names)
    plt.close("all")
    assert type(names["backbone"]) is VisionTransformer
    expected = inspect.attention_maps(ours, names["images"])
    torch.testing.assert_close(names["maps"], expected)


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
def test_the_sliders_of_12_draw_what_they_say(monkeypatch):
    """Which only a running notebook has: nbclient and nbval cannot move them."""
    monkeypatch.setenv("FOODVISION_SIZE", "smoke")
    monkeypatch.setenv("FOODVISION_SOURCE", "synthetic")
    names, shown = {}, []
    *cells, sliders = cells_of(PATHS[12], "code")
    assert "LIVE = False" in sliders.source
    for cell in cells:
        exec(cell.source, names)
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf()))
    exec(sliders.source.replace("LIVE = False", "LIVE = True"), names)
    image, layer, head = names["show"].widget.children[:3]
    image.value, layer.value, head.value = 1, 2, 3
    last = shown[-1].axes[1].images[0].get_array()
    of_head = inspect.class_attention(names["maps"][0, 1, 2], names["grid"])
    names["plot_attention"](names["images"][:1], of_head[None], **names["colors"])
    np.testing.assert_allclose(last, plt.gcf().axes[1].images[0].get_array())
    plt.close("all")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
def test_07_proves_it_with_torchvisions_own_weights_where_they_are(monkeypatch):
    """Random ones stand in for them here."""
    stand_in = give_random_values(vit_b_16()).eval()
    monkeypatch.setattr(backbones, "published_vit_b_16", lambda: stand_in)
    monkeypatch.setenv("FOODVISION_SOURCE", "synthetic")
    monkeypatch.setenv("FOODVISION_SIZE", "smoke")
    names = {}
    for cell in cells_of(PATHS[7], "code"):
        if "published_vit_b_16()" in cell.source:
            monkeypatch.setenv("FOODVISION_SOURCE", "auto")
        exec(cell.source, names)
    plt.close("all")
    assert names["theirs"] is stand_in and names["learned"] is names["ours"]
    assert names["new_grid"] == (24, 24)
