"""Notebooks that are opened alone, as on Colab: the cell that fetches what they need.

Only the standard library (and `packaging`, which every Jupyter kernel has): this module
is imported before anything else is there.
"""

import importlib
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from string import Template

from packaging.requirements import Requirement

REPOSITORY = Path(__file__).resolve().parents[2]
# PyTorch belongs to the host and its driver, and whoever reads this has a Jupyter.
LEFT_TO_THE_HOST = ("torch", "torchvision", "jupyterlab")

BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
SETUP_CELL = Template(
    """
# @title Run this first: it finds the package { display-mode: "form" }
import http.client
import io
import sys
import tempfile
import urllib.request
import zipfile
from pathlib import Path

ARCHIVE = "$archive"
try:
    from going_modular import hosted
except ImportError:  # not installed: in a folder above, or fetched before?
    fetched = Path("$folder").resolve()
    places = [fetched, *fetched.parents]
    found = [p for p in places if (p / "going_modular" / "hosted.py").is_file()]
    if not found and not ARCHIVE:
        raise ImportError(
            "the package going_modular was not found: get the whole repository, from "
            "where you have this notebook, and open the notebook in its folder there"
        ) from None
    if not found:
        try:
            with urllib.request.urlopen(ARCHIVE, timeout=60) as answer:
                archive = zipfile.ZipFile(io.BytesIO(answer.read()))
        except (OSError, http.client.HTTPException, zipfile.BadZipFile) as error:
            raise ConnectionError(
                f"could not fetch {ARCHIVE} ({error}): is there a network? On "
                "Kaggle, switch Internet on in the settings; then run this cell again"
            ) from error
        with tempfile.TemporaryDirectory(dir=fetched.parent) as folder:
            archive.extractall(folder)
            try:
                next(Path(folder).iterdir()).rename(fetched)
            except OSError:
                if not fetched.is_dir():  # no other notebook was faster
                    raise
        found = [fetched]
    sys.path.insert(0, str(found[0]))
    sys.modules.pop("going_modular", None)  # perhaps another package of this name
    from going_modular import hosted
hosted.install_missing()
""".strip()
)


def project_setting(name: str) -> str:
    """A line `name = "..."` of pyproject.toml (Python 3.10 cannot read the format)."""
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    return re.search(rf'^{name} = "(.*)"$', text, re.M)[1]


def archive_of(repository: str, version: str) -> str:
    """Where the source archive of a version lies, "" if it is published nowhere.

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
        'of a zip file, or "" to name none'
    )


def setup_cell(repository: str, version: str) -> str:
    """The first code cell of every notebook."""
    archive = archive_of(repository, version)
    return SETUP_CELL.substitute(archive=archive, folder=f"vit-paper-replicating-{version}")


def badge(repository: str, version: str, path: str) -> str:
    """A link, in Markdown, that opens a notebook on Colab; "" if it is on no GitHub."""
    if not archive_of(repository, version).startswith("https://github.com/"):
        return ""
    place = f"https://colab.research.google.com/github/{repository}/blob/v{version}/{path}"
    return f"[![Open in Colab]({BADGE})]({place})"


def install_missing() -> None:
    """Install what requirements.txt lists and nobody has; never PyTorch.

    What is there stays, also if it is older than requirements.txt asks for: then a line
    says so.

    Raises:
        ImportError: if PyTorch or torchvision is missing, pip fails, or the package was
            installed without its repository.
    """
    requirements, missing = REPOSITORY / "requirements.txt", []
    if not requirements.is_file():
        raise ImportError(
            "going_modular is installed without weights and lists of files: uninstall "
            "it, or install it from a clone with pip install --editable ."
        )
    for line in requirements.read_text("utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        wanted = Requirement(line)
        try:
            version = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            missing.append(wanted)
        else:
            if not wanted.specifier.contains(version, prereleases=True):
                print(f"{wanted.name} {version} is here, tested from {line}: go on")
    if any(wanted.name in ("torch", "torchvision") for wanted in missing):
        raise ImportError(
            "PyTorch is missing: install torch and torchvision together, as "
            "https://pytorch.org/get-started/locally/ says for your machine, and "
            "restart the kernel"
        )
    install = [str(w) for w in missing if w.name not in LEFT_TO_THE_HOST]
    if not install:
        return
    print("Installing what is missing:", ", ".join(install))
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", *install],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise ImportError(f"pip could not install {', '.join(install)}: {done.stderr}")
    importlib.invalidate_caches()
