"""Run the notebooks, store their outputs in them, and set where they are published.

python -m going_modular.publishing.notebooks run                        # writes to build/
python -m going_modular.publishing.notebooks store                      # writes outputs into them
python -m going_modular.publishing.notebooks solve                      # updates the solutions
python -m going_modular.publishing.notebooks set-repository owner/name
"""

import argparse
import asyncio
import base64
import hashlib
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from io import BytesIO
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from nbconvert.preprocessors.coalescestreams import CoalesceStreamsPreprocessor
from PIL import Image

from going_modular.publishing import hosted
from going_modular.utils import (
    best_precision,
    describe_environment,
    errors_in_one_line,
    get_device,
    get_size,
    get_source,
    project_path,
    require_checkout,
)

NOTEBOOKS = sorted(project_path("notebooks").glob("[0-9][0-9]_*.ipynb"))
EXERCISES = sorted(project_path("notebooks/exercises").glob("*.ipynb"))
SOLUTIONS = sorted(project_path("notebooks/solutions").glob("*.ipynb"))
BUILD = project_path("build")
AT_ONCE = 4  # notebooks; each takes 1 to 2 GB of memory
READS_THE_ONE_BEFORE = "10"  # the model that 09 has saved
# The README's pictures are outputs of the cells tagged "readme-picture". By notebook:
README_PICTURES = {"00": ["drawn_food.jpg"], "12": ["attention.jpg", "positions.png"]}


def execute(path: Path) -> nbformat.NotebookNode:
    """Run every cell of a notebook once, in its own folder, and return the result.

    Raises:
        nbclient.exceptions.CellExecutionError: at the first cell that fails.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=None,
        record_timing=False,
        extra_arguments=["--log-level=ERROR"],  # no news of the kernel
        resources={"metadata": {"path": str(path.parent)}},
    )
    asyncio.run(client.async_execute())  # `execute` leaves a thread's event loop open
    # One text for each stream. Of a progress bar, only its last state stays.
    CoalesceStreamsPreprocessor().preprocess(notebook, {})
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("text") is None or o.text.strip()]
            add_alt_text(cell)
    notebook.metadata.pop("widgets", None)
    notebook.metadata.language_info = {"name": "python"}  # not this machine's version
    return notebook


def add_alt_text(cell: nbformat.NotebookNode) -> None:
    """Copy the alternative text of a cell's metadata to the pictures in its outputs.

    MyST-NB reads it from the cell. Jupyter and its web pages read it from the output.
    """
    alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt")
    for output in cell.outputs if alt else []:
        for kind in output.get("data", {}):
            if kind.startswith("image/"):
                output.metadata[kind] = output.metadata.get(kind, {}) | {"alt": alt}


def tags_of(cell: nbformat.NotebookNode) -> list[str]:
    """The tags of a cell: they tell the commands of this module what it is for."""
    return cell.metadata.get("tags", [])


def outputs_of(notebook: nbformat.NotebookNode, tag: str) -> list:
    """The outputs of the cells that carry a tag."""
    cells = [c for c in notebook.cells if tag in tags_of(c)]
    return [output for cell in cells for output in cell.outputs]


def run(paths: list[Path]) -> None:
    """Execute notebooks, write them to `build/` with HTML pages, and print the results.

    On a CPU, as many run at a time as it has cores, at most `AT_ONCE`. The longest are the
    last ones of the series, and start first. A cell tagged "result" prints results.

    Raises:
        nbclient.exceptions.CellExecutionError: for the first notebook that fails. Those that
            have not begun are left out then.
    """
    (BUILD / "notebooks").mkdir(parents=True, exist_ok=True)
    (BUILD / "html").mkdir(parents=True, exist_ok=True)
    cores = core_count()
    at_once = min(AT_ONCE, cores) if get_device().type == "cpu" else 1
    os.environ.setdefault("OMP_NUM_THREADS", str(cores // at_once))  # for the kernels
    print(
        f'Running the series at size "{get_size()}", {at_once} at a time\n'
        f"{describe_environment(best_precision(get_device()))}\n"
    )
    results: dict[Path, str] = {}
    start = time.perf_counter()
    with ThreadPoolExecutor(at_once) as pool:
        chains = [pool.submit(run_in_order, chain) for chain in reversed(chains_of(paths))]
        try:
            for done in as_completed(chains):
                results |= done.result()
        except BaseException:  # Ctrl-C too
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    everything = "".join(results[path] for path in paths)
    print(f"{'all':36}{time.perf_counter() - start:6.1f} s\n\n{everything}")
    print("Executed notebooks: build/notebooks · pages to read: build/html")


def core_count() -> int:
    """How many cores this process may use. A container may have fewer than its machine."""
    if hasattr(os, "sched_getaffinity"):  # on Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def chains_of(paths: list[Path]) -> list[list[Path]]:
    """The notebooks in lists; one that reads what the one before it wrote is in its list."""
    chains: list[list[Path]] = []
    for path in paths:
        if chains and READS_THE_ONE_BEFORE == path.name[:2]:
            chains[-1].append(path)
        else:
            chains.append([path])
    return chains


def run_in_order(paths: list[Path]) -> dict[Path, str]:
    """Execute notebooks, write them, and return what their cells tagged "result" print."""
    results = {}
    for path in paths:
        start = time.perf_counter()
        notebook = execute(path)
        print(f"{path.stem:36}{time.perf_counter() - start:6.1f} s", flush=True)
        nbformat.write(notebook, BUILD / "notebooks" / path.name)
        page, _ = HTMLExporter().from_notebook_node(notebook)
        (BUILD / "html" / f"{path.stem}.html").write_text(page, encoding="utf-8")
        results[path] = "".join(output.text for output in outputs_of(notebook, "result"))
    return results


def digest_of(notebook: nbformat.NotebookNode) -> str:
    """The SHA-256 of the code, which says whether the stored outputs belong to it.

    It leaves out the first cell, which shows nothing and changes with the address.
    """
    code = [
        cell.source
        for cell in notebook.cells
        if cell.cell_type == "code" and "setup" not in tags_of(cell)
    ]
    return hashlib.sha256("\n%%\n".join(code).encode()).hexdigest()


def shrink(output: nbformat.NotebookNode) -> None:
    """Store a PNG as a JPEG, or with 256 colours, if that is smaller.

    JPEG suits photos and drawings, few colours suit plots.
    """
    data = output.get("data", {})
    if "image/png" not in data:
        return
    original = BytesIO(base64.b64decode(data.pop("image/png")))
    picture, jpeg, png = Image.open(original).convert("RGB"), BytesIO(), BytesIO()
    picture.save(jpeg, "JPEG", quality=75)
    picture.quantize(256).save(png, "PNG", optimize=True)
    smallest = min(original, png, jpeg, key=lambda file: len(file.getvalue()))
    kind = "image/jpeg" if smallest is jpeg else "image/png"
    output.metadata = {kind: output.metadata.get("image/png", {})}
    data[kind] = base64.b64encode(smallest.getvalue()).decode()


def picture_of(output: nbformat.NotebookNode) -> bytes:
    """The content of the PNG or JPEG file that an output shows."""
    data = output.data
    return base64.b64decode(data.get("image/png") or data["image/jpeg"])


def readme_pictures(path: Path, notebook: nbformat.NotebookNode) -> list[tuple]:
    """(file, output) of each picture that a notebook has for the README.

    Raises:
        ValueError: if `README_PICTURES` names more or fewer.
    """
    names = README_PICTURES.get(path.name[:2], []) if path in NOTEBOOKS else []
    files = [path.with_name(name) for name in names]
    outputs = outputs_of(notebook, "readme-picture")
    if len(files) != len(outputs):
        raise ValueError(
            f"{path.name} has {len(outputs)} pictures in cells tagged readme-picture, "
            f"README_PICTURES names {len(files)} files: name one for each picture"
        )
    return list(zip(files, outputs, strict=True))


def require_settings_to_store() -> None:
    """Raise `RuntimeError` unless notebooks use the drawn images, in float32.

    We may not publish the photos. And not every processor has another precision.
    """
    if best_precision(get_device()) != "float32":
        raise RuntimeError(
            "stored outputs are in float32: set FOODVISION_PRECISION to float32, as "
            "`make notebooks` does"
        )
    if get_source() != "synthetic":
        raise RuntimeError(
            f"FOODVISION_SOURCE is {get_source()!r}: only outputs made from the drawn "
            'images are stored. Set it to "synthetic", as `make notebooks` does'
        )


def store(paths: list[Path]) -> None:
    """Execute notebooks on the drawn images and store the outputs in them.

    The metadata name the images (`food_source`), the size of the run (`food_size`) and
    the code (`code_digest`) behind the outputs. Pictures of the cells tagged
    "readme-picture" become the README's files.

    Raises:
        RuntimeError: see `require_settings_to_store`; or if a notebook writes to the error
            stream.
        ValueError: see `readme_pictures`.
        CellExecutionError: see `execute`.
    """
    require_settings_to_store()
    for path in paths:
        print(path.stem, flush=True)
        notebook = execute(path)
        for cell in notebook.cells:
            for output in cell.get("outputs", []):
                if output.get("name") == "stderr":
                    raise RuntimeError(
                        f"{path.name} prints a warning, which would be stored: {output.text}"
                    )
                shrink(output)
        notebook.metadata.food_source = get_source()
        notebook.metadata.food_size = get_size()
        notebook.metadata.code_digest = digest_of(notebook)
        for picture, output in readme_pictures(path, notebook):
            picture.write_bytes(picture_of(output))
        nbformat.write(notebook, path)


def with_answers(
    exercises: nbformat.NotebookNode, solutions: nbformat.NotebookNode
) -> nbformat.NotebookNode:
    """A notebook of exercises, in which the answers of a solutions notebook stand.

    All cells come from the exercises. The solutions give the source of the cells tagged
    "answer", which have the same ids in both.

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
                    "from the exercises and write the answer into it"
                )
            cell.source = answers[cell.id]
    return notebook


def solve(paths: list[Path]) -> None:
    """Update the solutions to these exercises, execute them and store their outputs.

    Raises:
        RuntimeError, ValueError, CellExecutionError: see `with_answers` and `store`.
    """
    require_settings_to_store()  # before anything is written
    for path in paths:
        target = project_path("notebooks/solutions") / path.name
        exercises, solutions = (nbformat.read(p, as_version=4) for p in (path, target))
        nbformat.write(with_answers(exercises, solutions), target)
        store([target])


def with_repository(
    notebook: nbformat.NotebookNode, path: str, repository: str, version: str
) -> nbformat.NotebookNode:
    """A copy of a notebook, with the badge and the first code cell for a repository.

    Args:
        path: of the notebook, relative to the repository's root.
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
    """Write an address into pyproject.toml and into all notebooks.

    Raises:
        ValueError: see `hosted.archive_of`.
    """
    version = hosted.project_setting("version")
    hosted.archive_of(repository, version)  # a wrong address changes no file
    settings = project_path("pyproject.toml")
    line = f'repository = "{repository}"'
    text = settings.read_text(encoding="utf-8")
    settings.write_text(re.sub(r"^repository = .*$", line, text, flags=re.M), "utf-8")
    for path in NOTEBOOKS + EXERCISES + SOLUTIONS:
        notebook = nbformat.read(path, as_version=4)
        name = path.relative_to(project_path("")).as_posix()
        nbformat.write(with_repository(notebook, name, repository, version), path)


def main() -> None:
    """Carry out a command of the module's docstring."""
    parser = argparse.ArgumentParser(
        "python -m going_modular.publishing.notebooks", description=__doc__.splitlines()[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, meaning in (
        ("run", "execute notebooks, write them to build/ with HTML pages"),
        ("store", "execute notebooks and store their outputs in them"),
        ("solve", "update the solutions of the exercises, and store their outputs"),
    ):
        command = commands.add_parser(name, help=meaning)
        command.add_argument(
            "numbers",
            nargs="*",
            metavar="NN",
            help="numbers of notebooks, for example 08 09 (default: all)",
        )
    command = commands.add_parser(
        "set-repository", help="set where notebooks that are opened alone get the package"
    )
    command.add_argument(
        "repository", help='owner/name on GitHub, the URL of a zip file, or "" for none'
    )
    options = parser.parse_args()
    with errors_in_one_line(parser.prog, RuntimeError):  # nbclient's, too, if a kernel dies
        require_checkout()
        paths = EXERCISES if options.command == "solve" else NOTEBOOKS
        by_number = {path.name[:2]: path for path in paths}
        if unknown := set(getattr(options, "numbers", [])) - set(by_number):
            parser.error(f"no notebook {', '.join(sorted(unknown))}: {', '.join(by_number)}")
        if options.command == "set-repository":
            set_repository(options.repository)
        else:
            chosen = [by_number[number] for number in options.numbers or by_number]
            {"run": run, "store": store, "solve": solve}[options.command](chosen)


if __name__ == "__main__":
    main()
