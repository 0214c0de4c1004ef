"""Python environments of their own, for tests of what pip installs."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from going_modular.utils import CHECKOUT

SOURCES = ("going_modular", "helper_functions.py", "requirements", "requirements.txt")
SOURCES += ("pyproject.toml", "README.md", "LICENSE")


def build_wheel(folder: Path) -> Path:
    """Build the package in a folder; setuptools must be installed (requirements/dev.txt).

    From a copy: setuptools would leave a folder in the checkout, and use it next time.
    """
    for name in SOURCES:
        if (CHECKOUT / name).is_dir():
            shutil.copytree(
                CHECKOUT / name,
                folder / "source" / name,
                ignore=shutil.ignore_patterns("__pycache__", ".*"),
            )
        else:
            shutil.copy(CHECKOUT / name, folder / "source")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", folder, folder / "source"], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def new_environment(folder: Path, host: str = "") -> Path:
    """The Python of a new environment. It sees the packages of a host as its own.

    A .pth file lists the host's folder. Python does not read the .pth files in there, so
    an editable installation of this checkout stays out of sight.
    """
    venv.create(folder, clear=True, with_pip=True)
    if host:
        (Path(packages_of(folder)) / "host.pth").write_text(host)
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def with_what_they_need(names: Iterable[str]) -> set[str]:
    """The names of installed packages, and of all that they require on this machine."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name not in found:
            found.add(name)
            needs = map(Requirement, metadata.requires(name) or [])
            here = {"extra": ""}  # of optional parts, none
            waiting += [n.name for n in needs if not n.marker or n.marker.evaluate(here)]
    return found


def link_packages(names: Iterable[str], folder: Path) -> str:
    """Links to installed packages, with what they need: a host's folder of packages.

    PyTorch with CUDA is 5 GB: a second copy would be too much for a small disk.
    """
    for name in with_what_they_need(names):
        for file in metadata.files(name) or []:
            if ".." not in file.parts:  # commands lie outside the folder of packages
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                (folder / file).symlink_to(file.locate())
    return str(folder)


def packages_of(environment: Path) -> str:
    """The folder into which pip installs."""
    return sysconfig.get_path("purelib", "venv", {"base": str(environment)})


def make_kernel(python: Path, folder: Path) -> str:
    """Describe a Jupyter kernel in a folder, for JUPYTER_PATH; return its name."""
    kernel = folder / "kernels" / "alone"
    kernel.mkdir(parents=True)
    command = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": command, "display_name": "alone", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    return "alone"
