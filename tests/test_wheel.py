"""The package as pip installs it: which files it holds, and that it works from them."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from environments import build_wheel, make_kernel, new_environment, packages_of
from safetensors import safe_open

from going_modular.publishing import notebooks
from going_modular.utils import CHECKOUT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build_wheel(tmp_path_factory.mktemp("a wheel"))


def test_it_holds_the_package_with_its_data_and_nothing_else(wheel):
    ours = {
        path.relative_to(CHECKOUT).as_posix()
        for path in (CHECKOUT / "going_modular").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == ours | {"helper_functions.py"}
    kinds = {Path(name).suffix for name in names}
    assert kinds == {".py", ".safetensors", ".sha256", ".jsonl", ".md"}


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """An environment into which pip has installed the wheel, and nothing else.

    It sees the packages of the running environment, but no checkout.
    """
    root = tmp_path_factory.mktemp("installed")
    python = new_environment(root / "environment", host=sysconfig.get_path("purelib"))
    # The host may have the package in its editable form, which pip would count as installed
    options = ["--quiet", "--no-deps", "--no-index", "--ignore-installed"]
    subprocess.run([python, "-m", "pip", "install", *options, wheel], check=True)
    hidden = ("PYTHONPATH", "FOODVISION_DATA", "VIT_WEIGHTS")
    environment = {name: value for name, value in os.environ.items() if name not in hidden} | {
        "XDG_CACHE_HOME": str(root / "cache"),
        "JUPYTER_PATH": str(root / "jupyter"),
        "FOODVISION_SOURCE": "synthetic",
        "FOODVISION_SIZE": "smoke",
    }
    folder = root / "a working folder"
    folder.mkdir()

    def run(*arguments):
        return subprocess.run(
            [python, *arguments], cwd=folder, env=environment, capture_output=True, text=True
        )

    return SimpleNamespace(
        root=root,
        run=run,
        environment=environment,
        folder=folder,
        packages=Path(packages_of(root / "environment")),
        kernel=make_kernel(python, root / "jupyter"),
    )


def contents(folder):
    """The files in a folder with their sizes and dates; without compiled modules."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts
    }


@pytest.fixture
def unchanged(installed):
    """Nothing may be written into the installed package."""
    before = contents(installed.packages)
    yield
    assert contents(installed.packages) == before


@pytest.mark.slow
def test_it_is_the_wheel_that_is_imported(installed):
    program = (
        "import going_modular as g, helper_functions as h; print(g.__file__, h.__file__, sep='\\n')"
    )
    done = installed.run("-c", program)
    files = [Path(line) for line in done.stdout.splitlines()]
    names = ["going_modular/__init__.py", "helper_functions.py"]
    assert files == [installed.packages / name for name in names], done.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("unchanged")
def test_a_notebook_runs(installed, monkeypatch):
    for name in ("PYTHONPATH", "FOODVISION_DATA", "VIT_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in installed.environment.items():
        monkeypatch.setenv(name, value)
    path = notebooks.NOTEBOOKS[4]
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.kernelspec.name = installed.kernel
    code = "import going_modular; print(going_modular.__file__)"
    notebook.cells.append(nbformat.v4.new_code_cell(code))
    nbformat.write(notebook, installed.folder / path.name)
    executed = notebooks.execute(installed.folder / path.name)
    place = executed.cells[-1].outputs[0].text.strip()
    assert place == str(installed.packages / "going_modular" / "__init__.py")
    assert any(cell.get("outputs") for cell in executed.cells[:-1])
    done = installed.run("-c", "from going_modular.utils import data_dir; print(data_dir())")
    images = Path(done.stdout.strip()) / "synthetic_food"
    assert len(list(images.rglob("train/*/*.jpg"))) == 225
    if sys.platform == "linux":
        assert images.is_relative_to(installed.environment["XDG_CACHE_HOME"])


@pytest.mark.slow
@pytest.mark.usefixtures("unchanged")
def test_training_runs_and_writes_to_the_working_folder(installed):
    options = "--image-size 24 --patch-size 12 --epochs 1 --warmup-steps 0".split()
    done = installed.run("-m", "going_modular.train", *options)
    assert done.returncode == 0, done.stderr
    assert "Images: drawn food (300 pictures)" in done.stdout
    (weights,) = (installed.folder / "build" / "training").glob("*/vit.safetensors")
    with safe_open(weights, framework="pt") as file:
        assert "head.weight" in file.keys()


@pytest.mark.slow
@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    "command", [["notebooks", "run"], ["diagrams"], ["all_suites"]], ids=lambda words: words[0]
)
def test_a_command_that_needs_a_checkout_says_so_in_one_line(installed, command):
    name, *arguments = command
    done = installed.run("-m", f"going_modular.publishing.{name}", *arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"python -m going_modular.publishing.{name}: error: ")
    assert done.stderr.count("\n") == 1 and "run it in a checkout" in done.stderr
