"""Execute the series: `python -m going_modular.notebooks run`, or `... store`."""

import argparse
import base64
import hashlib
import time
from io import BytesIO
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from nbconvert.preprocessors.coalescestreams import CoalesceStreamsPreprocessor
from PIL import Image

from going_modular.data_setup import get_source
from going_modular.utils import describe_environment, get_size, repository_path

NOTEBOOKS = sorted(repository_path("notebooks").glob("[0-9][0-9]_*.ipynb"))
BUILD = repository_path("build")
# Outputs of the cells tagged "readme-picture", by the number of their notebook
README_PICTURES = {
    "00": ["drawn_food.jpg"],
    "01": ["vit_map.png"],
    "12": ["attention.jpg", "positions.png"],
}


def execute(path: Path) -> nbformat.NotebookNode:
    """A notebook as it stands after running every cell once, in its own folder.

    Raises:
        nbclient.exceptions.CellExecutionError: at the first cell that fails.
    """
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook,
        timeout=None,
        record_timing=False,
        extra_arguments=["--log-level=ERROR"],  # the kernel's own chatter
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    # One text for each stream, and of a progress bar only what it leaves behind.
    CoalesceStreamsPreprocessor().preprocess(notebook, {})
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [
                o for o in cell.outputs if o.get("text") is None or o.text.strip()
            ]
    notebook.metadata.pop("widgets", None)
    notebook.metadata.language_info = {"name": "python"}  # no version of one machine
    return notebook


def outputs_of(notebook: nbformat.NotebookNode, tag: str) -> list:
    """The outputs of the cells that carry a tag."""
    cells = [c for c in notebook.cells if tag in c.metadata.get("tags", [])]
    return [output for cell in cells for output in cell.outputs]


def run(paths: list[Path]) -> None:
    """Execute notebooks into `build/`, with HTML pages, and print the results.

    Results are what the cells tagged "result" print.
    """
    (BUILD / "notebooks").mkdir(parents=True, exist_ok=True)
    (BUILD / "html").mkdir(parents=True, exist_ok=True)
    print(f'Running the series at size "{get_size()}"\n{describe_environment()}\n')
    results, start = [], time.perf_counter()
    for path in paths:
        print(f"{path.stem:36}", end="", flush=True)
        started = time.perf_counter()
        notebook = execute(path)
        print(f"{time.perf_counter() - started:6.1f} s", flush=True)
        nbformat.write(notebook, BUILD / "notebooks" / path.name)
        page, _ = HTMLExporter().from_notebook_node(notebook)
        (BUILD / "html" / f"{path.stem}.html").write_text(page, encoding="utf-8")
        results += [output.text for output in outputs_of(notebook, "result")]
    print(f"{'all':36}{time.perf_counter() - start:6.1f} s\n\n{''.join(results)}")
    print("Executed notebooks: build/notebooks · pages to read: build/html")


def digest_of(notebook: nbformat.NotebookNode) -> str:
    """The SHA-256 of all code cells: outputs belong to this code and no other."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\n%%\n".join(code).encode()).hexdigest()


def shrink(output: nbformat.NotebookNode) -> None:
    """Make a PNG a JPEG, or a PNG of 256 colours, if that is smaller.

    The first suits what looks like a photo, the second a plot.
    """
    data = output.get("data", {})
    if "image/png" not in data:
        return
    given = BytesIO(base64.b64decode(data.pop("image/png")))
    picture, jpeg, png = Image.open(given).convert("RGB"), BytesIO(), BytesIO()
    picture.save(jpeg, "JPEG", quality=75)
    picture.quantize(256).save(png, "PNG", optimize=True)
    smallest = min(given, png, jpeg, key=lambda file: len(file.getvalue()))
    kind = "image/jpeg" if smallest is jpeg else "image/png"
    data[kind] = base64.b64encode(smallest.getvalue()).decode()


def picture_of(output: nbformat.NotebookNode) -> bytes:
    """The file that an output shows, PNG or JPEG."""
    data = output.data
    return base64.b64decode(data.get("image/png") or data["image/jpeg"])


def readme_pictures(path: Path, notebook: nbformat.NotebookNode) -> list[tuple]:
    """(file, output that it shows) for each picture that a notebook gives the README.

    Raises:
        ValueError: if `README_PICTURES` names more or fewer.
    """
    files = [path.with_name(name) for name in README_PICTURES.get(path.name[:2], [])]
    outputs = outputs_of(notebook, "readme-picture")
    if len(files) != len(outputs):
        raise ValueError(
            f"{path.name} has {len(outputs)} pictures in cells tagged readme-picture, "
            f"README_PICTURES names {len(files)}: give each a file there"
        )
    return list(zip(files, outputs, strict=True))


def store(paths: list[Path]) -> None:
    """Execute notebooks on the drawn images and keep the outputs in them.

    The metadata says which images the outputs show (`food_source`), at which size they
    were made (`food_size`), and from which code (`code_digest`). Pictures of the cells
    tagged "readme-picture" go to the README.

    Raises:
        RuntimeError: if FOODVISION_SOURCE is not "synthetic", because photos are not
            ours to publish; or if a notebook writes to the error stream.
        ValueError: see `readme_pictures`.
    """
    if get_source() != "synthetic":
        raise RuntimeError(
            f"FOODVISION_SOURCE is {get_source()!r}: only outputs made from the drawn "
            'images are stored, set it to "synthetic" (`make notebooks` does)'
        )
    for path in paths:
        print(path.stem, flush=True)
        notebook = execute(path)
        for cell in notebook.cells:
            for output in cell.get("outputs", []):
                if output.get("name") == "stderr":
                    raise RuntimeError(f"{path.name} warns: {output.text}")
                shrink(output)
        notebook.metadata.food_source = get_source()
        notebook.metadata.food_size = get_size()
        notebook.metadata.code_digest = digest_of(notebook)
        for picture, output in readme_pictures(path, notebook):
            picture.write_bytes(picture_of(output))
        nbformat.write(notebook, path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Execute the notebooks of the series.")
    parser.add_argument(
        "command",
        choices=["run", "store"],
        help="run: into build/, with pages; store: into the notebooks themselves",
    )
    parser.add_argument(
        "numbers",
        nargs="*",
        metavar="NN",
        help="numbers of notebooks, for example 08 09; all of them if not given",
    )
    options = parser.parse_args()
    by_number = {path.name[:2]: path for path in NOTEBOOKS}
    if unknown := set(options.numbers) - set(by_number):
        parser.error(
            f"no notebook {', '.join(sorted(unknown))}: {', '.join(by_number)}"
        )
    chosen = [by_number[number] for number in options.numbers or by_number]
    {"run": run, "store": store}[options.command](chosen)
