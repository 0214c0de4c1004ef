"""Notebooks that are opened alone: the cell that finds the package or installs it."""

import ast
import os
import re
import runpy
import shutil
import site
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import metadata
from pathlib import Path

import nbformat
import pytest
from environments import build_wheel, link_packages, make_kernel, new_environment
from packaging.requirements import Requirement

from going_modular import utils
from going_modular.publishing import hosted, notebooks
from going_modular.utils import CHECKOUT

VERSION = hosted.project_setting("version")
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
        hidden = shutil.ignore_patterns("__pycache__", ".*")
        shutil.copytree(CHECKOUT / name, tmp_path / name, ignore=hidden)
    shutil.copy(CHECKOUT / "pyproject.toml", tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}

    def set_repository(name):
        command = ["-m", "going_modular.publishing.notebooks", "set-repository", name]
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        subprocess.run([sys.executable, *command], cwd=tmp_path, env=environment, check=True)

    set_repository("somebody/a-fork")
    for path in ALL:
        text = (tmp_path / relative(path)).read_text(encoding="utf-8")
        archive = f"somebody/a-fork/archive/refs/tags/v{VERSION}.zip"
        link = f"github/somebody/a-fork/blob/v{VERSION}/{relative(path)}"
        assert text.count(archive) == 1 and text.count(link) == 1
    set_repository(hosted.project_setting("repository"))
    assert all(path.read_bytes() == content for path, content in before.items())


def test_an_address_that_is_set_twice_stands_there_once():
    notebook = nbformat.read(ALL[0], as_version=4)
    arguments = relative(ALL[0]), "somebody/a-fork", VERSION
    once = notebooks.with_repository(notebook, *arguments)
    assert once != notebook and notebooks.with_repository(once, *arguments) == once


@pytest.mark.parametrize("wrong", ["name", "a/b/c", "http://a/b", "https://a/b.tar"])
def test_an_address_that_is_none_is_an_error(wrong):
    with pytest.raises(ValueError, match="expected owner/name"):
        hosted.archive_of(wrong, VERSION)


@pytest.mark.parametrize(
    ("words", "message"),
    [(["set-repository", "a/b/c"], "expected owner/name"), (["store", "02"], "FOODVISION_SOURCE")],
)
def test_what_goes_wrong_is_one_line(words, message):
    done = subprocess.run(
        [sys.executable, "-m", "going_modular.publishing.notebooks", *words],
        env=os.environ | {"FOODVISION_SOURCE": "auto"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and message in done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("python -m going_modular.publishing.notebooks: error: ")


def test_badges_become_words_and_drawings_follow_the_page():
    of_book = runpy.run_path(CHECKOUT / "docs" / "conf.py")
    badge = hosted.badge("somebody/a-fork", "1.0", "notebooks/02.ipynb")
    drawing = """<picture>
  <source media="..." srcset="a_dark.svg">
  <img src="a_light.svg" alt="A drawing.">
</picture>"""
    source = [f"{badge}\n\n{drawing}\n\n[`vit/`](going_modular/vit)"]
    of_book["adapt_to_the_book"](None, "", source)
    place = "https://colab.research.google.com/github/somebody/a-fork/blob/v1.0/"
    assert source[0].startswith(f"[Open this notebook in Colab]({place}notebooks/02.ipynb)")
    assert source[0].endswith("\n\n`vit/`")
    for scheme in ("light", "dark"):
        image = f"```{{image}} a_{scheme}.svg\n:class: only-{scheme}\n:alt: A drawing.\n```"
        assert source[0].count(image) == 1


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Stands in for the archive, since pip installs it without building it first."""
    return build_wheel(tmp_path_factory.mktemp("a wheel"))


def run_setup_cell(archive, folder, then="", environment=()):
    """Run the first cell in `folder`, in a Python that knows nothing of this repository.

    pip installs into the folder `site` beside it. `then` runs after the cell.
    """
    installed = folder.parent / "site"
    for each in (folder, installed):
        each.mkdir(parents=True, exist_ok=True)
    program = (
        f"import sys; sys.path += {[str(installed), *site.getsitepackages()]!r}\n"
        f"{hosted.SETUP_CELL.substitute(archive=archive)}\n"
        "import going_modular; print('found in', going_modular.__path__[0])\n" + then
    )
    ours = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(  # -S: no installed package is found unless we name it
        [sys.executable, "-S", "-c", program],
        cwd=folder,
        env=ours | {"no_proxy": "*", "PIP_TARGET": str(installed), **dict(environment)},
        capture_output=True,
        text=True,
    )


def copy_checkout(folder):
    """The files of a checkout that the first cell meets."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(CHECKOUT / "going_modular", folder / "going_modular")
    for name in ("pyproject.toml", "requirements.txt"):
        shutil.copy(CHECKOUT / name, folder)


def test_it_installs_once_and_then_finds(wheel, tmp_path):
    given = Path(shutil.copy(wheel, tmp_path))
    folder = tmp_path / "a path with spaces"
    for _ in range(2):
        done = run_setup_cell(given.as_uri(), folder)
        *news, found = done.stdout.splitlines()
        assert found == f"found in {tmp_path / 'site/going_modular'}", done.stderr
        assert len(news) == given.exists(), news
        assert list(folder.iterdir()) == []  # nothing beside the notebook
        given.unlink(missing_ok=True)  # the second time it needs none


def test_opened_in_a_checkout_it_installs_nothing(tmp_path):
    copy_checkout(tmp_path)
    folder = tmp_path / "notebooks" / "exercises"
    done = run_setup_cell("", folder)
    assert done.stdout.strip() == f"found in {tmp_path / 'going_modular'}", done.stderr
    assert list(folder.iterdir()) == []


def test_an_installed_package_goes_before_a_checkout(wheel, tmp_path):
    run_setup_cell(wheel.as_uri(), tmp_path / "notebooks")
    copy_checkout(tmp_path)
    done = run_setup_cell("", tmp_path / "notebooks")
    assert done.stdout.strip() == f"found in {tmp_path / 'site/going_modular'}", done.stderr


@pytest.mark.parametrize("names", [["engine.py"], ["__init__.py", "engine.py"]])
@pytest.mark.parametrize("place", ["installed", "checkout"])
def test_the_courses_files_beside_the_notebook_are_passed_over(names, place, wheel, tmp_path):
    """Its going_modular, which has no __init__.py, and its helper_functions.py."""
    folder = tmp_path / "checkout" / "notebooks"
    (folder / "going_modular").mkdir(parents=True)
    for name in names:
        (folder / "going_modular" / name).touch()
    (folder / "helper_functions.py").touch()
    expected = tmp_path / "checkout"
    if place == "checkout":
        copy_checkout(expected)
        shutil.copy(CHECKOUT / "helper_functions.py", expected)
    else:
        expected = folder.parent / "site"
    where = "import importlib.util as u; print(u.find_spec('helper_functions').origin)"
    for _ in range(2):  # also when it was installed before
        done = run_setup_cell("" if place == "checkout" else wheel.as_uri(), folder, where)
        found = [f"found in {expected / 'going_modular'}", str(expected / "helper_functions.py")]
        assert done.stdout.splitlines()[-2:] == found, done.stderr


@pytest.mark.parametrize(
    "archive, error",
    [
        ("", "AssertionError: going_modular was not found: get the whole repository"),
        ("file:///nowhere/at/all.zip", "CalledProcessError"),
        ("{tmp}/broken.zip", "CalledProcessError"),
    ],
)
def test_an_error_says_what_to_do(archive, error, tmp_path):
    (tmp_path / "broken.zip").write_text("half a download")
    done = run_setup_cell(archive.replace("{tmp}", tmp_path.as_uri()), tmp_path / "x")
    assert done.returncode and error in done.stderr
    assert list((tmp_path / "x").iterdir()) == []
    assert list((tmp_path / "site").iterdir()) == []


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
    done = run_setup_cell(address, tmp_path / "x", environment={"PIP_RETRIES": "0"}.items())
    server.shutdown()
    server.server_close()
    assert done.returncode and "CalledProcessError" in done.stderr
    assert "This needs a network" in done.stdout


def requirements_of_the_checkout():
    lines = (CHECKOUT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return {str(Requirement(line)) for line in lines if line and not line.startswith("#")}


def test_pip_knows_the_requirements_where_it_installed_the_package(wheel, tmp_path):
    then = "print(hosted.CHECKOUT, *map(str, hosted.requirements()), sep='\\n')"
    done = run_setup_cell(wheel.as_uri(), tmp_path / "x", then)
    _, _, checkout, *found = done.stdout.splitlines()
    assert checkout == "None"
    assert set(found) == requirements_of_the_checkout()
    assert {str(each) for each in hosted.requirements()} == set(found)


def test_a_copy_of_the_package_alone_is_an_error(monkeypatch):
    monkeypatch.setattr(hosted, "CHECKOUT", None)
    monkeypatch.setattr(hosted, "PROJECT", "a-project-that-nobody-installed")
    with pytest.raises(ImportError, match="a copy of the package alone"):
        hosted.requirements()


def test_it_knows_the_checkout_as_the_package_does():
    assert hosted.CHECKOUT == utils.CHECKOUT


def test_it_needs_the_standard_library_and_packaging_only():
    tree = ast.parse((CHECKOUT / "going_modular/publishing/hosted.py").read_text("utf-8"))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
    assert names - set(sys.stdlib_module_names) == {"packaging"}


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
    printed = capsys.readouterr().out
    assert "matplotlib 3.1 is installed; the notebooks are tested with matplotlib>=3.8" in printed
    with pytest.raises(ImportError, match="could not install .*no network"):
        hosted.install_missing()
    del installed["torchvision"]
    with pytest.raises(ImportError, match="install torch and torchvision together"):
        hosted.install_missing()


@pytest.fixture(scope="session")
def host(tmp_path_factory):
    """The packages of a host like Colab: PyTorch and Jupyter's kernel, not all of ours."""
    packages = ["torch", "torchvision", "matplotlib", "ipykernel", "requests"]
    return link_packages(packages, tmp_path_factory.mktemp("host"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A user's folder for caches, where the pictures are drawn once."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.slow
@pytest.mark.parametrize("path", notebooks.NOTEBOOKS, ids=lambda path: path.stem[:2])
def test_it_runs_alone_in_a_new_environment(path, archive, host, cache, tmp_path, monkeypatch):
    python = new_environment(tmp_path / "environment", host)
    for name in ("PYTHONPATH", "FOODVISION_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setenv("FOODVISION_SOURCE", "synthetic")
    monkeypatch.setenv("FOODVISION_SIZE", "smoke")
    notebook = nbformat.read(path, as_version=4)
    notebook = notebooks.with_repository(notebook, relative(path), archive.as_uri(), VERSION)
    notebook.metadata.kernelspec.name = make_kernel(python, tmp_path / "jupyter")
    folder = tmp_path / "a path with spaces"
    folder.mkdir()
    nbformat.write(notebook, folder / path.name)
    executed = notebooks.execute(folder / path.name)
    saved = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert saved - {name for name in saved if name.startswith("build/")} == {path.name}
    setup, first = [c for c in executed.cells if c.cell_type == "code"][:2]
    printed = "".join(output.text for output in setup.outputs)
    assert "Installing what is missing: torchinfo" in printed
    assert "Images: drawn food (300 pictures)" in first.outputs[0].text
