"""Notebooks that are opened alone, as on Colab: their first cell, and what it installs.

The first cell imports this module before anything is installed. So the module needs
the standard library and `packaging` only, which comes with every Jupyter kernel.
"""

import importlib
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from string import Template

from packaging.requirements import Requirement

PROJECT = "vit-paper-replicating"  # pip's name for the package
ROOT = Path(__file__).resolve().parents[2]
# The same as utils.CHECKOUT, which cannot be imported before PyTorch is there.
CHECKOUT = ROOT if (ROOT / "pyproject.toml").is_file() else None
# PyTorch has to fit the host's driver, and everyone who runs a notebook has a Jupyter.
LEFT_TO_THE_HOST = ("torch", "torchvision", "jupyterlab")

BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
SETUP_CELL = Template(
    """
# @title Run this first: it finds the package { display-mode: "form" }
import subprocess
import sys
from pathlib import Path

ARCHIVE = "$archive"
above = [p for p in Path.cwd().parents if (p / "going_modular/publishing").is_dir()]
sys.path += map(str, above)
sys.path.sort(key=lambda folder: folder == "")  # files beside the notebook come last
try:
    from going_modular.publishing import hosted
except ImportError:  # it is not installed, and in no folder above
    assert ARCHIVE, "going_modular was not found: get the whole repository"
    print("Installing the package. This needs a network: on Kaggle, switch it on.")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, ARCHIVE], check=True)
    sys.modules.pop("going_modular", None)  # another package of this name
    from going_modular.publishing import hosted
hosted.install_missing()
""".strip()
)


def project_setting(name: str) -> str:
    """The value of a line `name = "..."` in pyproject.toml.

    Python 3.10 has no reader for the format.

    Raises:
        ValueError: if there is no such line.
    """
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    if found := re.search(rf'^{name} = "(.*)"$', text, re.M):
        return found[1]
    raise ValueError(f'pyproject.toml has no line {name} = "..."')


def archive_of(repository: str, version: str) -> str:
    """The address of a version's source archive; "" if it is published nowhere.

    Args:
        repository: "owner/name" on GitHub, where the tag v<version> names the archive;
            the URL of a zip file; or "".

    Raises:
        ValueError: if it is none of these.
    """
    if not repository or re.fullmatch(r"(https|file)://\S+\.zip", repository):
        return repository
    if re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        return f"https://github.com/{repository}/archive/refs/tags/v{version}.zip"
    raise ValueError(
        f"the repository is {repository!r}: expected owner/name, as on GitHub, the URL "
        'of a zip file, or "" for none'
    )


def setup_cell(repository: str, version: str) -> str:
    """The first code cell of every notebook."""
    return SETUP_CELL.substitute(archive=archive_of(repository, version))


def badge(repository: str, version: str, path: str) -> str:
    """A link, in Markdown, that opens a notebook on Colab; "" if it is not on GitHub."""
    if not archive_of(repository, version).startswith("https://github.com/"):
        return ""
    address = f"https://colab.research.google.com/github/{repository}/blob/v{version}/{path}"
    return f"[![Open in Colab]({BADGE})]({address})"


def requirements() -> list[Requirement]:
    """The packages that the notebooks need, without those for development.

    From requirements.txt in a checkout, from pip's records elsewhere.

    Raises:
        ImportError: if pip has no records of the package.
    """
    if CHECKOUT:
        lines = (CHECKOUT / "requirements.txt").read_text(encoding="utf-8").splitlines()
        lines = [line for line in lines if line and not line.startswith("#")]
    else:
        try:
            lines = metadata.requires(PROJECT) or []
        except metadata.PackageNotFoundError as error:
            raise ImportError(
                f"{ROOT / 'going_modular'} is a copy of the package alone, and pip did not "
                "install it: install it with pip, or get the whole repository"
            ) from error
    found = map(Requirement, lines)
    return [each for each in found if not each.marker or each.marker.evaluate({"extra": ""})]


def install_missing() -> None:
    """Install the packages of `requirements` that are missing, but never PyTorch.

    An installed package stays, even if it is too old. Then a line says so.

    Raises:
        ImportError: if PyTorch or torchvision is missing, or pip fails; see also
            `requirements`.
    """
    missing = []
    for wanted in requirements():
        try:
            version = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            missing.append(wanted)
            continue
        if not wanted.specifier.contains(version, prereleases=True):
            print(f"{wanted.name} {version} is installed; the notebooks are tested with {wanted}")
    if any(each.name in ("torch", "torchvision") for each in missing):
        raise ImportError(
            "PyTorch is missing: install torch and torchvision together, as "
            "https://pytorch.org/get-started/locally/ says for your machine, and "
            "restart the kernel"
        )
    names = [str(each) for each in missing if each.name not in LEFT_TO_THE_HOST]
    if not names:
        return
    print("Installing what is missing:", ", ".join(names))
    command = [sys.executable, "-m", "pip", "install", "--quiet", *names]
    pip = subprocess.run(command, capture_output=True, text=True)
    if pip.returncode:
        raise ImportError(f"pip could not install {', '.join(names)}: {pip.stderr}")
    importlib.invalidate_caches()
