"""Notebooks that are opened alone: the cell that finds or fetches the package."""

import json
import os
import re
import runpy
import shutil
import site
import subprocess
import sys
import sysconfig
import threading
import venv
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import metadata
from pathlib import Path

import nbformat
import pytest

from going_modular.publishing import hosted, notebooks
from going_modular.utils import CHECKOUT

VERSION = hosted.project_setting("version")
FOLDER = f"vit-paper-replicating-{VERSION}"
ALL = notebooks.NOTEBOOKS + notebooks.EXERCISES + notebooks.SOLUTIONS


def relative(path):
    return path.relative_to(CHECKOUT).as_posix()


def tracked_files():
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [n for n in listed.stdout.split("\0") if (CHECKOUT / n).is_file()]


@pytest.fixture(scope="session")
def archive(tmp_path_factory):
    """The repository as a zip file, with one folder at its top as GitHub's has."""
    if not (CHECKOUT / ".git").exists():
        pytest.skip("not a clone")
    path = tmp_path_factory.mktemp("an archive") / "source.zip"
    with zipfile.ZipFile(path, "w") as file:
        for name in tracked_files():
            file.write(CHECKOUT / name, f"vit-{VERSION}/{name}")
    return path


@pytest.mark.parametrize("path", ALL, ids=relative)
def test_every_notebook_has_badge_and_first_cell_of_the_repository(path):
    """Otherwise: `python -m going_modular.publishing.notebooks set-repository ...`."""
    notebook = nbformat.read(path, as_version=4)
    repository = hosted.project_setting("repository")
    expected = notebooks.with_repository(notebook, relative(path), repository, VERSION)
    assert notebook == expected
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code[0].id == "setup"


def test_a_fork_sets_its_address_everywhere_and_takes_it_back(tmp_path):
    for name in ("going_modular", "notebooks"):
        shutil.copytree(CHECKOUT / name, tmp_path / name)
    shutil.copy(CHECKOUT / "pyproject.toml", tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}

    def set_repository(name):
        subprocess.run(
            [sys.executable, "-m", "going_modular.publishing.notebooks", "set-repository", name],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(tmp_path)},
            check=True,
        )

    for _ in range(2):  # the second changes nothing
        set_repository("somebody/a-fork")
        for path in ALL:
            copy = tmp_path / relative(path)
            text = copy.read_text(encoding="utf-8")
            archive = f"somebody/a-fork/archive/refs/tags/v{VERSION}.zip"
            link = f"github/somebody/a-fork/blob/v{VERSION}/{relative(path)}"
            assert text.count(archive) == 1 and text.count(link) == 1
    set_repository(hosted.project_setting("repository"))
    assert all(path.read_bytes() == content for path, content in before.items())


@pytest.mark.parametrize("wrong", ["name", "a/b/c", "http://a/b", "https://a/b.tar"])
def test_an_address_that_is_none_is_an_error(wrong):
    with pytest.raises(ValueError, match="expected owner/name"):
        hosted.archive_of(wrong, VERSION)


def test_badges_become_words_and_drawings_follow_the_page():
    of_book = runpy.run_path(CHECKOUT / "docs" / "conf.py")
    badge = hosted.badge("somebody/a-fork", "1.0", "notebooks/02.ipynb")
    drawing = """<picture>
  <source media="..." srcset="a_dark.svg">
  <img src="a_light.svg" alt="A drawing.">
</picture>"""
    source = [f"{badge}\n\n{drawing}\n"]
    of_book["as_the_book_has_it"](None, "", source)
    place = "https://colab.research.google.com/github/somebody/a-fork/blob/v1.0/"
    assert source[0].startswith(f"[Open this notebook in Colab]({place}notebooks/02.ipynb)")
    for scheme in ("light", "dark"):
        image = f"```{{image}} a_{scheme}.svg\n:class: only-{scheme}\n:alt: A drawing.\n```"
        assert source[0].count(image) == 1


def run_setup_cell(repository, folder, packages):
    """Run the first cell in a new Python that knows nothing of this repository."""
    return run_cell(hosted.setup_cell(repository, VERSION), folder, packages)


def run_cell(cell, folder, packages):
    folder.mkdir(parents=True, exist_ok=True)
    program = (
        f"import sys; sys.path += {packages!r}\n{cell}\n"
        "import going_modular; print('found in', going_modular.__path__[0])"
    )
    return subprocess.run(  # -S: no installed package is found unless we name it
        [sys.executable, "-S", "-c", program],
        cwd=folder,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"no_proxy": "*"},
        capture_output=True,
        text=True,
    )


def test_it_fetches_once_and_then_finds(archive, tmp_path):
    given = Path(shutil.copy(archive, tmp_path / "an archive.zip"))
    folder = tmp_path / "a path with spaces"
    for _ in range(2):
        done = run_setup_cell(given.as_uri(), folder, site.getsitepackages())
        package = folder / FOLDER / "going_modular"
        assert done.stdout.strip() == f"found in {package}", done.stderr
        assert [path.name for path in folder.iterdir()] == [FOLDER]  # nothing else
        given.unlink(missing_ok=True)  # the second time it needs none
    weights = "going_modular/pretrained/vit_drawn_dishes.safetensors"
    fetched, ours = (p / weights for p in (folder / FOLDER, CHECKOUT))
    assert fetched.read_bytes() == ours.read_bytes()


def test_opened_in_the_repository_it_fetches_nothing(tmp_path):
    for name in ("going_modular", "requirements.txt"):
        copy = shutil.copytree if (CHECKOUT / name).is_dir() else shutil.copy
        copy(CHECKOUT / name, tmp_path / name)
    folder = tmp_path / "notebooks" / "exercises"
    done = run_setup_cell("", folder, site.getsitepackages())
    assert done.stdout.strip() == f"found in {tmp_path / 'going_modular'}", done.stderr
    assert list(folder.iterdir()) == []


def test_another_package_of_that_name_is_passed_over(archive, tmp_path):
    (tmp_path / "going_modular").mkdir()
    (tmp_path / "going_modular" / "engine.py").touch()  # like the course's
    done = run_setup_cell(archive.as_uri(), tmp_path, site.getsitepackages())
    assert FOLDER in done.stdout, done.stderr


@pytest.mark.parametrize(
    "repository, error",
    [
        ("", "ImportError: the package going_modular was not found: get the whole"),
        ("file:///nowhere/at/all.zip", "is there a network?"),
        ("{tmp}/broken.zip", "not a zip file"),
    ],
)
def test_an_error_says_what_to_do(repository, error, tmp_path):
    (tmp_path / "broken.zip").write_text("half a download")
    repository = repository.replace("{tmp}", tmp_path.as_uri())
    done = run_setup_cell(repository, tmp_path / "x", site.getsitepackages())
    assert done.returncode and error in done.stderr
    assert list((tmp_path / "x").iterdir()) == []


def test_another_notebook_may_be_faster(archive, tmp_path):
    """It has put its folder in place while this one was still unpacking."""
    meanwhile = (
        "import pathlib, shutil, zipfile\n"
        "def extractall(self, folder, extractall=zipfile.ZipFile.extractall):\n"
        "    extractall(self, folder)\n"
        f"    shutil.copytree(next(pathlib.Path(folder).iterdir()), '{FOLDER}')\n"
        "zipfile.ZipFile.extractall = extractall\n"
    )
    cell = hosted.setup_cell(archive.as_uri(), VERSION)
    done = run_cell(meanwhile + cell, tmp_path, site.getsitepackages())
    assert FOLDER in done.stdout, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [FOLDER]


def test_a_download_that_breaks_off_is_an_error_that_says_so(tmp_path):
    class HalfAFile(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"PK")

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), HalfAFile)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/a.zip"
    cell = hosted.setup_cell("", VERSION).replace('""', repr(address), 1)
    done = run_cell(cell, tmp_path, site.getsitepackages())
    server.shutdown()
    server.server_close()
    assert "is there a network?" in done.stderr and "IncompleteRead" in done.stderr


def test_installed_without_its_repository_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(hosted, "REPOSITORY", tmp_path)
    with pytest.raises(ImportError, match="pip install --editable"):
        hosted.install_missing()


def test_what_is_missing_is_installed_but_pytorch_never(monkeypatch, capsys):
    installed = {"torch": "2.9.1", "torchvision": "0.24.1+cpu", "matplotlib": "3.1"}
    commands = []

    def version(name):
        if name in installed:
            return installed[name]
        raise metadata.PackageNotFoundError(name)

    def run(command, **_):
        commands.append(command)
        return subprocess.CompletedProcess(command, len(commands) - 1, "", "no network")

    monkeypatch.setattr(hosted.metadata, "version", version)
    monkeypatch.setattr(hosted.subprocess, "run", run)
    hosted.install_missing()
    pip, names = commands[0][:5], {re.match(r"[\w-]+", n)[0] for n in commands[0][5:]}
    assert pip == [sys.executable, "-m", "pip", "install", "--quiet"]
    assert {"torchinfo", "safetensors"} <= names
    assert not names & {"torch", "torchvision", "matplotlib", "jupyterlab"}
    said = capsys.readouterr().out
    assert "matplotlib 3.1 is here, tested from matplotlib>=3.8" in said
    with pytest.raises(ImportError, match="could not install .*no network"):
        hosted.install_missing()
    del installed["torchvision"]
    with pytest.raises(ImportError, match="install torch and torchvision together"):
        hosted.install_missing()


@pytest.fixture(scope="module")
def host():
    """The packages of a host like Colab: PyTorch and Jupyter's kernel, not all of ours.

    Built once, in build/ (5.5 GB with a CUDA build of PyTorch).
    """
    environment = CHECKOUT / "build" / "host"
    if not (environment / "ready").is_file():
        python = new_environment(environment)
        packages = ["torch", "torchvision", "matplotlib", "ipykernel", "requests"]
        subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
        (environment / "ready").touch()
    return packages_of(environment)


def new_environment(folder):
    venv.create(folder, clear=True, with_pip=True)
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def packages_of(environment):
    return sysconfig.get_path("purelib", "venv", {"base": str(environment)})


@pytest.mark.slow
@pytest.mark.parametrize("path", notebooks.NOTEBOOKS, ids=lambda path: path.stem[:2])
def test_it_runs_alone_in_a_new_environment(path, archive, host, tmp_path, monkeypatch):
    python = new_environment(tmp_path / "environment")
    # It sees the host's packages as if they were its own, and installs into itself.
    (Path(packages_of(tmp_path / "environment")) / "host.pth").write_text(host)
    kernel = tmp_path / "jupyter" / "kernels" / "alone"
    kernel.mkdir(parents=True)
    command = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": command, "display_name": "alone", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setenv("FOODVISION_SOURCE", "synthetic")
    monkeypatch.setenv("FOODVISION_SIZE", "smoke")
    notebook = nbformat.read(path, as_version=4)
    notebook = notebooks.with_repository(notebook, relative(path), archive.as_uri(), VERSION)
    notebook.metadata.kernelspec.name = "alone"
    folder = tmp_path / "a path with spaces"
    folder.mkdir()
    nbformat.write(notebook, folder / path.name)
    executed = notebooks.execute(folder / path.name)
    assert {p.name for p in folder.iterdir()} == {path.name, FOLDER}
    setup, first = [c for c in executed.cells if c.cell_type == "code"][:2]
    assert "Installing what is missing: torchinfo" in setup.outputs[0].text
    assert "Images: drawn food (300 pictures)" in first.outputs[0].text
