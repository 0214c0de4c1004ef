"""Python environments of their own, for tests of what pip installs."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

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
