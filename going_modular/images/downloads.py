"""Files from the internet: whole, checked and unpacked, or a clear error."""

import shutil
import sys
import tempfile
import threading
import zipfile
import zlib
from pathlib import Path

import requests
from tqdm import tqdm

from going_modular.images.checksums import differences, is_complete, sha256_of
from going_modular.utils import data_dir, project_path

TIMEOUT = (3, 10)  # seconds to connect, and between two pieces of the answer


PATIENCE = 6  # seconds until an answer has begun, whatever holds it up


class DownloadError(OSError):
    """A file could not be fetched, or is not what it should be."""


def download_data(
    source: str | Path, destination: str | Path, checksums: str | Path | None = None
) -> Path:
    """Fetch a zip file and unpack it into a folder under `data/`; return the folder.

    Nothing happens if the folder is there and, with `checksums`, holds exactly the
    files of that list. It takes its name only when it is whole: a run that was
    interrupted leaves nothing that a later one could mistake for the data. A folder
    that differs from the list is kept, in `<destination>.incomplete-...` beside it.

    Args:
        source: URL or path of the zip file.
        destination: the folder's name, seen from `data/`.
        checksums: a file of "<SHA-256>  <path inside the folder>" lines.

    Raises:
        DownloadError: if the file cannot be fetched, is no zip file, holds a path
            that leaves the folder, or does not unpack to the listed files.
    """
    folder = data_dir() / destination
    if is_complete(folder, checksums):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=folder.parent) as temp:
        archive, unpacked = Path(temp, "archive.zip"), Path(temp, "unpacked")
        fetch(source, archive)
        unpack(archive, unpacked, source)
        if wrong := differences(unpacked, checksums):
            raise DownloadError(
                f"{source} is not the expected data: {len(wrong)} files are missing, "
                f"changed or not listed in {Path(checksums).name}, the first is "
                f"{wrong[0]}."
            )
        if is_complete(folder, checksums):  # another process was faster
            return folder
        if folder.exists():
            prefix = f"{folder.name}.incomplete-"
            aside = tempfile.mkdtemp(prefix=prefix, dir=folder.parent)
            folder.rename(Path(aside, folder.name))
        unpacked.rename(folder)
    return folder


def download_file(source: str | Path, destination: str | Path, sha256: str | None = None) -> Path:
    """Fetch one file to a path under `data/`, unless it is there; return the path.

    Args:
        sha256: the file's SHA-256, or its first digits. A file with another one is
            replaced.

    Raises:
        DownloadError: if it cannot be fetched or has another SHA-256 than expected.
    """
    path = data_dir() / destination
    if path.is_file() and sha256_of(path).startswith(sha256 or ""):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=path.parent) as temp:
        unfinished = Path(temp, path.name)
        fetch(source, unfinished)
        if not sha256_of(unfinished).startswith(sha256 or ""):
            raise DownloadError(f"{source} is not the expected file: its hash differs.")
        return unfinished.replace(path)


def is_url(source: str | Path) -> bool:
    """True for an http or https address, False for a path."""
    return str(source).startswith(("http://", "https://"))


def fetch(source: str | Path, path: Path) -> None:
    """Copy a URL or a local file to `path`; `DownloadError` says what went wrong.

    A relative local path is seen from the repository's root.
    """
    if not is_url(source):
        if not project_path(source).is_file():
            raise DownloadError(f"There is no file {source}.")
        shutil.copyfile(project_path(source), path)
        return
    try:
        with ask(source) as answer:
            answer.raise_for_status()
            size = int(answer.headers.get("Content-Length", 0))
            bar = tqdm(
                total=size or None,
                desc=str(source).rsplit("/", 1)[-1],
                unit="B",
                unit_scale=True,
                leave=False,
                file=sys.stdout,
            )
            with path.open("wb") as file, bar:
                for piece in answer.iter_content(chunk_size=2**16):
                    bar.update(file.write(piece))
    except requests.HTTPError as error:
        status = f"{error.response.status_code} {error.response.reason}"
        raise DownloadError(f"The server answers {status} to {source}.") from error
    except requests.Timeout as error:
        raise DownloadError(f"No answer in time from {source}.") from error
    except requests.RequestException as error:
        raise DownloadError(f"The connection failed for {source}.") from error
    if path.stat().st_size < size:
        raise DownloadError(f"Only {path.stat().st_size} of {size} bytes arrived from {source}.")


def ask(url: str) -> requests.Response:
    """The beginning of a server's answer, within `PATIENCE` seconds.

    Raises:
        requests.RequestException: if there is none. A name server that does not answer
            counts too; no timeout of requests covers it, hence the thread.
    """
    outcome: list[requests.Response | requests.RequestException] = []

    def get() -> None:
        # Uncompressed, so that Content-Length counts the file
        plain = {"Accept-Encoding": "identity"}
        try:
            outcome.append(requests.get(url, stream=True, timeout=TIMEOUT, headers=plain))
        except requests.RequestException as error:
            outcome.append(error)

    thread = threading.Thread(target=get, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    if not outcome:
        raise requests.Timeout
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]


def unpack(archive: Path, folder: Path, source: str | Path) -> None:
    """Unpack a zip file, or raise `DownloadError` if it is broken or unsafe."""
    try:
        with zipfile.ZipFile(archive) as zip_file:
            names = zip_file.namelist()
            for name in names:
                if not (folder / name).resolve().is_relative_to(folder.resolve()):
                    raise DownloadError(f"{source} holds the path {name}, which leaves its folder.")
            zip_file.extractall(folder)
    except DownloadError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, OSError) as error:
        raise DownloadError(f"{source} is not a whole zip file ({error}).") from error
    if not names:
        raise DownloadError(f"{source} is an empty zip file.")
