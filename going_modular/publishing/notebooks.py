"""The series as files: execute it, store its outputs, set where it is published.

python -m going_modular.publishing.notebooks run                        # into build/
python -m going_modular.publishing.notebooks store                      # into the notebooks
python -m going_modular.publishing.notebooks solve                      # the exercises' solutions
python -m going_modular.publishing.notebooks set-repository owner/name
"""

import argparse
import base64
import hashlib
import re
import time
from io import BytesIO
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from nbconvert.preprocessors.coalescestreams import CoalesceStreamsPreprocessor
from PIL import Image

from going_modular.images.sources import get_source
from going_modular.publishing import hosted
from going_modular.utils import describe_environment, get_size, project_path

NOTEBOOKS = sorted(project_path("notebooks").glob("[0-9][0-9]_*.ipynb"))
EXERCISES = sorted(project_path("notebooks/exercises").glob("*.ipynb"))
SOLUTIONS = sorted(project_path("notebooks/solutions").glob("*.ipynb"))
BUILD = project_path("build")
# Outputs of the cells tagged "readme-picture", by the number of their notebook
README_PICTURES = {"00": ["drawn_food.jpg"], "12": ["attention.jpg", "positions.png"]}


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
            cell.outputs = [o for o in cell.outputs if o.get("text") is None or o.text.strip()]
            describe(cell)
    notebook.metadata.pop("widgets", None)
    notebook.metadata.language_info = {"name": "python"}  # no version of one machine
    return notebook


def describe(cell: nbformat.NotebookNode) -> None:
    """Give a cell's pictures the alternative text that its metadata hold.

    It stands where MyST-NB looks for it; Jupyter and its web pages look at the output.
    """
    alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt")
    for output in cell.outputs if alt else []:
        for kind in output.get("data", {}):
            if kind.startswith("image/"):
                output.metadata[kind] = output.metadata.get(kind, {}) | {"alt": alt}


def tags_of(cell: nbformat.NotebookNode) -> list[str]:
    """The tags of a cell, by which the commands of this module know it."""
    return cell.metadata.get("tags", [])


def outputs_of(notebook: nbformat.NotebookNode, tag: str) -> list:
    """The outputs of the cells that carry a tag."""
    cells = [c for c in notebook.cells if tag in tags_of(c)]
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
    """The SHA-256 of all code cells: outputs belong to this code and no other.

    But for the cell that finds the package: it shows nothing.
    """
    code = [
        cell.source
        for cell in notebook.cells
        if cell.cell_type == "code" and "setup" not in tags_of(cell)
    ]
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
    output.metadata = {kind: output.metadata.get("image/png", {})}
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
    names = README_PICTURES.get(path.name[:2], []) if path in NOTEBOOKS else []
    files = [path.with_name(name) for name in names]
    outputs = outputs_of(notebook, "readme-picture")
    if len(files) != len(outputs):
        raise ValueError(
            f"{path.name} has {len(outputs)} pictures in cells tagged readme-picture, "
            f"README_PICTURES names {len(files)}: give each a file there"
        )
    return list(zip(files, outputs, strict=True))


def require_drawings() -> None:
    """Raise `RuntimeError` unless notebooks use the drawn images.

    Photos are not ours to publish.
    """
    if get_source() != "synthetic":
        raise RuntimeError(
            f"FOODVISION_SOURCE is {get_source()!r}: only outputs made from the drawn "
            'images are stored, set it to "synthetic" (`make notebooks` does)'
        )


def store(paths: list[Path]) -> None:
    """Execute notebooks on the drawn images and keep the outputs in them.

    The metadata says which images the outputs show (`food_source`), at which size they
    were made (`food_size`), and from which code (`code_digest`). Pictures of the cells
    tagged "readme-picture" go to the README.

    Raises:
        RuntimeError: see `require_drawings`; or if a notebook writes to the error
            stream.
        ValueError: see `readme_pictures`.
        CellExecutionError: see `execute`.
    """
    require_drawings()
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


def solved(
    exercises: nbformat.NotebookNode, solutions: nbformat.NotebookNode
) -> nbformat.NotebookNode:
    """The exercises, with the answers of a solutions notebook in their places.

    An exercises notebook is the source of all its cells; of its solutions only the
    cells tagged "answer" are taken, by their ids.

    Raises:
        ValueError: if an answer is missing.
    """
    answers = {c.id: c.source for c in solutions.cells if "answer" in tags_of(c)}
    notebook = nbformat.from_dict(exercises)  # a copy
    title = notebook.cells[0]
    title.source = re.sub(
        r"Replace the dots in .*\]\(\.\./solutions/(.*)\)\.",
        r"Here are the answers; try [the exercises](../exercises/\1) first.",
        title.source.replace("# Exercises", "# Solutions", 1),
    )
    for cell in notebook.cells:
        if "answer" in tags_of(cell):
            if cell.id not in answers:
                raise ValueError(
                    f"the solutions have no cell {cell.id!r} tagged answer: copy it "
                    "there from the exercises, and answer it"
                )
            cell.source = answers[cell.id]
    return notebook


def solve(paths: list[Path]) -> None:
    """Bring the solutions to these exercises up to date, execute and store them.

    Raises:
        RuntimeError, ValueError, CellExecutionError: see `solved` and `store`.
    """
    require_drawings()  # before anything is written
    for path in paths:
        target = project_path("notebooks/solutions") / path.name
        both = (nbformat.read(p, as_version=4) for p in (path, target))
        nbformat.write(solved(*both), target)
        store([target])


def with_repository(
    notebook: nbformat.NotebookNode, path: str, repository: str, version: str
) -> nbformat.NotebookNode:
    """A notebook with the badge and the first code cell for a repository.

    Args:
        path: of the notebook, seen from the repository's root.
        repository, version: see `hosted.archive_of`.
    """
    notebook = nbformat.from_dict(notebook)  # a copy
    title = notebook.cells[0]
    title.source = re.sub(r"\[!\[Open in Colab\]\(.*\)\n\n", "", title.source)
    if badge := hosted.badge(repository, version, path):
        title.source = title.source.replace("\n\n", f"\n\n{badge}\n\n", 1)
    others = [c for c in notebook.cells[1:] if c.id != "setup"]
    executed = any(c.get("execution_count") for c in others)
    cell = nbformat.v4.new_code_cell(
        hosted.setup_cell(repository, version),
        id="setup",
        execution_count=1 if executed else None,
        metadata={
            "tags": ["setup", "remove-cell"],
            "cellView": "form",  # closed on Colab
            "jupyter": {"source_hidden": True},  # and in JupyterLab
        },
    )
    notebook.cells = [title, cell, *others]
    return notebook


def set_repository(repository: str) -> None:
    """Write an address into pyproject.toml, and with it into all notebooks.

    Raises:
        ValueError: see `hosted.archive_of`.
    """
    version = hosted.project_setting("version")
    hosted.archive_of(repository, version)  # an error before anything is written
    settings = project_path("pyproject.toml")
    line = f'repository = "{repository}"'
    text = settings.read_text(encoding="utf-8")
    settings.write_text(re.sub(r"^repository = .*$", line, text, flags=re.M), "utf-8")
    for path in NOTEBOOKS + EXERCISES + SOLUTIONS:
        notebook = nbformat.read(path, as_version=4)
        name = path.relative_to(project_path("")).as_posix()
        nbformat.write(with_repository(notebook, name, repository, version), path)


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, meaning in (
        ("run", "execute notebooks into build/, with pages"),
        ("store", "execute notebooks and keep their outputs in them"),
        ("solve", "bring the solutions of the exercises up to date, and store them"),
    ):
        command = commands.add_parser(name, help=meaning)
        command.add_argument(
            "numbers",
            nargs="*",
            metavar="NN",
            help="numbers of notebooks, for example 08 09; all of them if not given",
        )
    command = commands.add_parser(
        "set-repository", help="where notebooks that are opened alone get the package"
    )
    command.add_argument("repository", help='owner/name on GitHub, the URL of a zip file, or ""')
    options = parser.parse_args()
    if options.command == "set-repository":
        set_repository(options.repository)
        return
    paths = EXERCISES if options.command == "solve" else NOTEBOOKS
    by_number = {path.name[:2]: path for path in paths}
    if unknown := set(options.numbers) - set(by_number):
        parser.error(f"no notebook {', '.join(sorted(unknown))}: {', '.join(by_number)}")
    chosen = [by_number[number] for number in options.numbers or by_number]
    {"run": run, "store": store, "solve": solve}[options.command](chosen)


if __name__ == "__main__":
    main()
