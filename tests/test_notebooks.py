"""The notebooks as files, and as programs that a reader runs again and again."""

import ast
import base64
import re

import nbformat
import pytest

from going_modular import notebooks
from going_modular.utils import REPOSITORY

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
    source = "\n".join(cell.source for cell in cells_of(path, "code"))
    imported = {
        alias.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and node.module == "going_modular"
        for alias in node.names
    }
    for module in ("data_setup", "engine", "model_builder"):
        assert module in imported and f"{module}." in source, module


@each_notebook
def test_it_has_the_frame(path):
    text = [cell.source for cell in cells_of(path, "markdown")]
    assert text[0].startswith(f"# {path.stem[:2]} · ")
    assert re.search(r"^\*\*.+\?\*\*$", text[0], re.M), "a question"
    assert all(f"| **{row}** |" in text[0] for row in ("In", "Out", "Proved here"))
    assert "## What we proved" in text[-1]
    whole = "\n".join(text).lower()
    assert re.search("predict.{0,40}run|before you run.{0,40}predict", whole)
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
        assert not ("photo" in tags(cell) and cell.outputs), "photos are not stored"
        assert not any("\r" in output.get("text", "") for output in cell.outputs)
    assert any("nbval-check-output" in tags(cell) for cell in code)
    shown = "\n".join(str(output) for cell in code for output in cell.outputs)
    assert not re.search(r"/(root|home|tmp|Users|work)/|0x[0-9a-f]{8}", shown)


@each_notebook
def test_every_cell_that_draws_photos_is_tagged(path):
    """Its output is not stored. Noise and stripes (notebook 10) may be."""
    for cell in cells_of(path, "code"):
        draws = re.search(
            r"show_images\((?!strange)|pred_and_plot_image\(", cell.source
        )
        assert not draws or "photo" in tags(cell), cell.source


def test_the_picture_of_the_readme_is_notebook_01s():
    notebook = nbformat.read(PATHS[1], as_version=4)
    (output,) = notebooks.outputs_of(notebook, "readme-picture")
    stored = base64.b64decode(output.data["image/png"])
    assert notebooks.README_PICTURE.read_bytes() == stored


def test_the_readme_links_to_files_that_exist():
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?://|#)([^)]+)\)", text)
    assert len(links) > 11 and all((REPOSITORY / link).exists() for link in links)


@each_notebook
def test_each_cell_run_twice_from_another_folder_shows_the_same(
    path, tmp_path, monkeypatch
):
    monkeypatch.setenv("FOODVISION_SIZE", "smoke")
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
        shown = [
            [(o.get("text"), o.get("data")) for o in cell.outputs]
            for cell in (first, again)
        ]
        assert shown[0] == shown[1], first.source
