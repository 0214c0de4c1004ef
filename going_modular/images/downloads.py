"""Download files and zip archives: complete and checked, or a clear error."""

import multiprocessing
import shutil
import sys
import tempfile
import zipfile
import zlib
from multiprocessing.pool import ThreadPool
from pathlib import Path

import requests
from tqdm import tqdm

from going_modular.images.checksums import differences, is_complete, move_aside, sha256_of
from going_modular.utils import atomic_write, data_dir, project_path

ANSWER_TIMEOUT = 6  # seconds until a server begins to answer, name lookup included
SOCKET_TIMEOUT = (3, 10)  # seconds to connect, and between two parts of the answer


class DownloadError(OSError):
    """A file cannot be downloaded, or is not the expected one."""


def download_data(
    source: str | Path, destination: str | Path, checksums: str | Path | None = None
) -> Path:
    """Download a zip file and unpack it into a folder under `data/`; return the folder.

    A folder that is already there is used as it is, if it is complete: with `checksums`,
    it holds exactly the listed files; without, it is not empty. Otherwise it is kept as
    `<destination>.replaced-...` and a new one takes its place. The new folder gets its
    name only when it is complete, so an interrupted download is never taken for the data.

    Args:
        source: URL or path of the zip file.
        destination: the folder's name under `data/`.
        checksums: a file with a line "<SHA-256>  <path in the folder>" for each file.

    Raises:
        DownloadError: if the file cannot be downloaded, is no zip file, contains a path
            outside its folder, or does not contain exactly the listed files.
    """
    folder = data_dir() / destination
    if is_complete(folder, checksums):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=folder.parent) as temporary:
        archive, unpacked = Path(temporary, "archive.zip"), Path(temporary, "unpacked")
        copy_source(source, archive)
        unpack(archive, unpacked, source)
        if wrong := differences(unpacked, checksums):
            raise DownloadError(
                f"{source} is not the expected data: {len(wrong)} files are missing, "
                f"changed or not listed in {checksums}. The first is {wrong[0]}."
            )
        if is_complete(folder, checksums):  # another process has been faster
            return folder
        move_aside(folder)
        unpacked.rename(folder)
    return folder


def download_file(source: str | Path, destination: str | Path, sha256: str | None = None) -> Path:
    """Download one file, unless it is there; return its path.

    Args:
        destination: a path under `data/`, or an absolute one.
        sha256: the file's SHA-256, or its first digits. A file that is there but has
            another SHA-256 is replaced.

    Raises:
        DownloadError: if the file cannot be downloaded or has another SHA-256.
    """
    path = data_dir() / destination
    if path.is_file() and sha256_of(path).startswith(sha256 or ""):
        return path
    with atomic_write(path) as unfinished:
        copy_source(source, unfinished)
        if not sha256_of(unfinished).startswith(sha256 or ""):
            raise DownloadError(f"{source} is not the expected file: its SHA-256 differs.")
    return path


def is_url(source: str | Path) -> bool:
    """Return whether a source is an http or https address, and not a path."""
    return str(source).startswith(("http://", "https://"))


def copy_source(source: str | Path, path: Path) -> None:
    """Download a URL, or copy a local file, to `path`.

    Raises:
        DownloadError: if that fails. It says why in one line.
    """
    if not is_url(source):
        if not project_path(source).is_file():
            raise DownloadError(f"There is no file {source}.")
        shutil.copyfile(project_path(source), path)
        return
    url = str(source)
    try:
        with open_url(url) as answer, path.open("wb") as file:
            answer.raise_for_status()
            size = int(answer.headers.get("Content-Length", 0))
            name = url.rsplit("/", 1)[-1]
            bar = tqdm(None, name, size, leave=False, file=sys.stdout, unit="B", unit_scale=True)
            with bar:
                for part in answer.iter_content(chunk_size=2**16):
                    bar.update(file.write(part))
    except requests.HTTPError as error:
        raise DownloadError(f"The server reports: {error}.") from error
    except (requests.Timeout, multiprocessing.TimeoutError) as error:
        raise DownloadError(f"No answer in time from {url}.") from error
    except requests.RequestException as error:
        raise DownloadError(f"The connection failed for {url}.") from error
    if path.stat().st_size < size:
        raise DownloadError(f"Only {path.stat().st_size} of {size} bytes arrived from {url}.")


def open_url(url: str) -> requests.Response:
    """Return a server's answer as soon as it begins.

    No timeout of requests covers the name lookup, which may hang where a network drops
    packets. So a thread asks, and we wait for it no longer than `ANSWER_TIMEOUT`. It is
    the thread of a `ThreadPool`, because Python does not wait for those when it exits.

    Raises:
        multiprocessing.TimeoutError, requests.RequestException: if there is no answer.
    """
    options = {
        "stream": True,
        "timeout": SOCKET_TIMEOUT,
        "headers": {"Accept-Encoding": "identity"},  # so that Content-Length is the file's
    }
    with ThreadPool(1) as pool:
        return pool.apply_async(requests.get, (url,), options).get(ANSWER_TIMEOUT)


def unpack(archive: Path, folder: Path, source: str | Path) -> None:
    """Unpack a zip file, or raise `DownloadError` if it is damaged, empty or unsafe."""
    try:
        with zipfile.ZipFile(archive) as zip_file:
            names = zip_file.namelist()
            outside = [name for name in names if not is_inside(folder / name, folder)]
            if not outside:
                zip_file.extractall(folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, OSError) as error:
        raise DownloadError(f"{source} is not a complete zip file: {error}.") from error
    if outside:
        raise DownloadError(f"{source} contains the path {outside[0]}, outside its folder.")
    if not names:
        raise DownloadError(f"{source} is an empty zip file.")


def is_inside(path: Path, folder: Path) -> bool:
    """Return whether a path stays in a folder, whatever ".." it contains."""
    return path.resolve().is_relative_to(folder.resolve())
