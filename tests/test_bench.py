"""`make bench`: its statistics, its models, and a run at a tiny size."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks import __main__ as bench
from benchmarks import measuring, models, page, rows
from benchmarks.measuring import Group, spread_of
from going_modular.model_builder import VIT_CONFIGS
from going_modular.utils import count_parameters, give_random_values
from going_modular.vit.weights import load_weights

CPU = torch.device("cpu")


def skip_if_missing(library):
    if library != models.OURS:
        pytest.importorskip(library, reason=f"{library} is in requirements/peers.txt")


def test_quartiles_of_the_rounds():
    assert spread_of([4.0, 1.0, 2.0, 3.0, 5.0]) == (2.0, 3.0, 4.0)
    assert spread_of([1.0, 2.0]) == (1.25, 1.5, 1.75)
    assert spread_of([7.0]) == (7.0, 7.0, 7.0)


def test_ratios_are_taken_round_by_round_against_the_best_peer():
    """The second round is a slow moment of the machine, for all three."""
    values = {"ours": [1.0, 10.0, 2.0], "a": [4.0, 20.0, 5.0], "b": [3.0, 30.0, 4.0]}
    group = Group("s", values, ["a", "b"])
    assert group.baseline == "b"  # 4 is less than 5; "ours" would be less, and is no peer
    assert group.ratios == {"ours": [3, 3, 2], "a": [0.75, 1.5, 0.8], "b": [1, 1, 1]}
    assert Group("s", values, ["a", "b"], "size").ratios["ours"] == [1 / 3, 1 / 3, 1 / 2]


def test_a_share_is_part_of_the_step_that_is_longer():
    group = Group("s", {"without": [9.0, 6.0], "with": [10.0, 8.0]}, ["without"], "share")
    assert group.ratios["with"] == pytest.approx([0.1, 0.25])


def test_growth_is_1_where_time_grows_with_the_multiply_adds():
    values, costs = {"base": [2.0], "x": [8.0], "y": [8.0]}, {"base": 10.0, "x": 40.0, "y": 20.0}
    assert Group("s", values, ["base"], "growth", costs).ratios == {"base": [1], "x": [1], "y": [2]}


def test_every_candidate_runs_once_in_a_round_and_the_order_changes():
    calls = []

    def measure(name):
        calls.append(name)
        return float(len(calls))

    values = measuring.in_turns("abc", 4, measure)
    by_round = [calls[i : i + 3] for i in range(0, 12, 3)]
    assert all(sorted(each) == ["a", "b", "c"] for each in by_round)
    assert len(set(map(tuple, by_round))) > 1
    assert values["b"] == [calls.index("b", 3 * i) + 1 for i in range(4)]


def test_short_work_is_repeated_and_the_warm_up_does_not_count(monkeypatch):
    monkeypatch.setattr(measuring, "seconds", lambda work, calls, device: work(calls))
    asked = []

    def work(calls):
        asked.append(calls)
        return 1.0 if len(asked) == 1 else 0.05

    assert measuring.times_of({"a": work}, 3, CPU, least=0.2) == {"a": [0.05] * 3}
    assert asked == [1, 1, 4, 4, 4]


@pytest.mark.parametrize("library", (models.OURS, *models.PEERS))
def test_the_libraries_build_the_same_vit(library):
    skip_if_missing(library)
    config = replace(VIT_CONFIGS["ViT-S/16"], patch_size=14, num_layers=2, num_classes=7)
    ours = models.build(models.OURS, config).eval()
    theirs = give_random_values(models.build(library, config)).eval()
    assert count_parameters(theirs) == count_parameters(ours)
    load_weights(ours, theirs.state_dict())
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = [models.logits_of(library, vit, images, "float32") for vit in (ours, theirs)]
    assert logits[0].std() > 0.1
    torch.testing.assert_close(*logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("library", (models.OURS, *models.PEERS))
def test_dropout_as_shipped_and_as_given(library):
    skip_if_missing(library)
    config = replace(VIT_CONFIGS["ViT-S/16"], num_layers=1)

    images = torch.zeros(1, 3, 224, 224)

    def rates(dropout):
        """Those of all dropouts that a forward pass goes through."""
        vit, found = models.build(library, config, dropout).train(), []
        for module in vit.modules():
            if getattr(module, "p", 0):
                module.register_forward_hook(lambda module, *_: found.append(module.p))
        models.logits_of(library, vit, images, "float32")
        return found

    assert rates(0.1) == [0.1] * 4 and rates(0.0) == []
    assert rates(None) == ([0.1] * 4 if library == models.OURS else [])


@pytest.mark.parametrize("library", (models.OURS, *models.PEERS))
@pytest.mark.parametrize("setting", (models.SHIPPED, "bfloat16, dropout 0.1"))
def test_a_training_step_changes_the_weights(library, setting, monkeypatch):
    skip_if_missing(library)
    built, build = [], models.build
    monkeypatch.setattr(models, "build", lambda *given: built.append(build(*given)) or built[0])
    config = models.config_of("ViT-B/16", quick=True, image_size=32)
    step = models.training_step(library, setting, config, CPU, batch=2)
    before = [each.detach().clone() for each in built[0].parameters()]
    step(), step()
    after = built[0].parameters()
    assert not any(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_the_memory_of_a_process_is_that_of_its_model():
    """Weights, gradients and AdamW's two averages are four numbers each; activations are more."""
    needed = measuring.memory_of(models.OURS, models.SHIPPED, CPU, quick=True)
    config = models.config_of("ViT-B/16", quick=True)
    assert 4 * 4 * count_parameters(models.build(models.OURS, config)) < needed < 2**29


def test_no_compiler_and_no_onnxruntime_are_reasons_to_skip(monkeypatch):
    monkeypatch.setattr(rows.shutil, "which", lambda name: None)
    with pytest.raises(ImportError, match=r"no C\+\+ compiler"):
        rows.compiled(nn.Identity(), torch.zeros(1))
    monkeypatch.setitem(rows.importlib.sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match="onnxruntime"):
        rows.onnxruntime(nn.Identity(), torch.zeros(1))


def test_an_aim_names_its_number_and_whether_it_was_reached():
    here = {"device": "cpu", "products": "avx512_bf16"}
    group = Group("as shipped", {"ours": [1.0], "timm": [2.0]}, ["timm"])
    assert page.aim_text("step", group, "ours", here) == "≥ 2.20×, not reached"
    assert page.aim_text("step", group, "ours", here | {"products": ""}) == "≥ 1.00×, reached"
    assert page.aim_text("step", group, "ours", here | {"device": "H100"}) == ""
    assert page.aim_text("step", group, "timm", here) == ""
    group = Group("float32", {"dropout 0": [1.0], "dropout 0.1": [1.02]}, ["dropout 0"], "share")
    assert page.aim_text("dropout", group, "dropout 0.1", here) == "≤ 5.0 %, reached"


@pytest.mark.parametrize(("slow_rounds", "words"), [(1, "reached"), (2, "not reached")])
def test_an_aim_is_reached_if_the_far_quartile_reaches_it(slow_rounds, words):
    here = {"device": "cpu", "products": ""}
    times = [1.1] * slow_rounds + [1.0] * (5 - slow_rounds)
    group = Group("as shipped", {"ours": times, "timm": [1.0] * 5}, ["timm"])
    assert page.aim_text("step", group, "ours", here) == f"≥ 1.00×, {words}"
    group = Group("float32", {"dropout 0": [1.0] * 5, "dropout 0.1": times}, ["dropout 0"], "share")
    assert page.aim_text("dropout", group, "dropout 0.1", here) == f"≤ 5.0 %, {words}"


def test_a_quick_run_writes_values_page_and_figure(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("VIT_WEIGHTS", raising=False)
    others = [name for name in rows.ROWS if name != "memory"]
    quick = ["--quick", "--rounds", "2", "--write", str(tmp_path), "--only"]
    bench.main([*quick, *others])
    monkeypatch.setattr(rows, "memory_of", lambda *given: 2.0**30)
    bench.main([*quick, "memory"])  # the page keeps the other rows

    results = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    assert set(results["rows"]) == set(rows.ROWS) and results["quick"]
    assert results["machine"]["threads"] == torch.get_num_threads()
    for row in results["rows"].values():
        for entry in row["groups"]:
            group = Group(**entry)
            assert asdict(group) == entry
            assert {len(values) for values in group.values.values()} <= {1, 2}
            assert all(value > 0 for values in group.values.values() for value in values)

    text = (tmp_path / "bench.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    assert "quick run" in text and "quick run" not in page.page_of(results | {"quick": False}, "b")
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert len(headings) == len(rows.ROWS)
    for line in text.splitlines():
        assert not line.startswith("|") or line.count("|") == 5, line
    assert (
        "| ours | 1.00 GiB (1.00 GiB to 1.00 GiB) | 1.00× (1.00× to 1.00×) | ≤ 1.00×, reached |"
        in text
    )
    assert f"![{page.ALT}](bench.png)" in text
    with Image.open(tmp_path / "bench.png") as figure:
        assert figure.convert("RGB").getpixel((0, 0)) == (255, 255, 255)  # as on a white page


def test_a_machine_without_a_gpu_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        bench.main(["--device", "cuda"])
    assert "no GPU for --device cuda" in capsys.readouterr().err
