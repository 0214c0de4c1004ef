"""Download files and zip archives: complete and checked, or a clear error."""

import multiprocessing
import shutil
import stat
import sys
import time
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool
from pathlib import Path, PurePosixPath

import requests
from filelock import FileLock, Timeout
from tqdm import tqdm
from urllib3.exceptions import ReadTimeoutError

from going_modular.images.checksums import differences, is_complete, move_aside, sha256_of
from going_modular.utils import (
    atomic_write,
    data_dir,
    is_full_disk,
    project_path,
    remove_unfinished,
)

ANSWER_TIMEOUT = 6  # seconds until a server begins to answer, name lookup included
SOCKET_TIMEOUT = (3, 10)  # seconds to connect, and between two parts of the answer
PAUSES = (1, 3)  # seconds before the second and the third attempt; see `TemporaryError`
BUSY = 429  # the status of a server that asks us to come back later
# An archive beyond these is not unpacked: it would fill the disk
MAX_FILES = 100_000
MAX_UNPACKED = 2 * 2**30  # bytes; more is admitted if it is packed well below `MAX_GROWTH`
MAX_GROWTH = 50  # unpacked bytes for each byte of the archive; images are at about 1
ENCRYPTED = 1  # a bit in the flags of a file in a zip archive


class DownloadError(OSError):
    """A file cannot be downloaded, or is not the expected one."""


class TemporaryError(DownloadError):
    """A server fails, or a connection breaks off, in a way that may be over in seconds."""


def download_data(
    source: str | Path, destination: str | Path, checksums: str | Path | None = None
) -> Path:
    """Download a zip file and unpack it into a folder under `data/`; return the folder.

    A folder that is already there is used as it is, if it is complete: with `checksums`,
    it holds exactly the listed files; without, it is not empty. Otherwise it is kept as
    `<destination>.replaced-...` and a new one takes its place. The new folder gets its
    name only when it is complete, so an interrupted download is never taken for the data.
    What a killed process left behind is removed.

    Args:
        source: URL or path of the zip file.
        destination: the folder's name under `data/`.
        checksums: a file with a line "<SHA-256>  <path in the folder>" for each file.

    Raises:
        DownloadError: if the file cannot be downloaded, is no zip file that `unpack`
            admits, or does not contain exactly the listed files.
        OSError: if the files cannot be stored.
    """
    folder = data_dir() / destination
    if is_complete(folder, checksums):
        return folder
    unfinished = folder.with_name(f".unfinished-{folder.name}")
    with one_at_a_time(folder):
        if is_complete(folder, checksums):  # another process has been faster
            return folder
        shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
        unfinished.mkdir()
        try:
            archive, unpacked = unfinished / "archive.zip", unfinished / "unpacked"
            copy_source(source, archive)
            unpack(archive, unpacked, source)
            if wrong := differences(unpacked, checksums):
                files = "1 file is" if len(wrong) == 1 else f"{len(wrong)} files are"
                raise DownloadError(
                    f"{source} is not the expected data: {files} missing, changed or not "
                    f"listed in {checksums}. The first is {wrong[0]}."
                )
            move_aside(folder)
            unpacked.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def download_file(source: str | Path, destination: str | Path, sha256: str | None = None) -> Path:
    """Download one file, unless it is there; return its path.

    Args:
        destination: a path under `data/`, or an absolute one.
        sha256: the file's SHA-256, or its first digits. A file that is there but has
            another SHA-256 is replaced.

    Raises:
        DownloadError: if the file cannot be downloaded or has another SHA-256.
        OSError: if it cannot be stored.
    """
    path = data_dir() / destination

    def is_there() -> bool:
        return path.is_file() and sha256_of(path).startswith(sha256 or "")

    if is_there():
        return path
    with one_at_a_time(path):
        if is_there():  # another process has been faster
            return path
        remove_unfinished(path)
        with atomic_write(path) as unfinished:
            copy_source(source, unfinished)
            if not sha256_of(unfinished).startswith(sha256 or ""):
                raise DownloadError(f"{source} is not the expected file: its SHA-256 differs.")
    return path


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Wait, and say so, while another process downloads the same path.

    The lock is the hidden file `.<name>.lock`. The system unlocks it if a process is killed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=1)
    except Timeout:
        print(f"Another process is downloading {path.name}: waiting for it.", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def is_url(source: str | Path) -> bool:
    """Return whether a source is an http or https address, and not a path."""
    return str(source).startswith(("http://", "https://"))


def copy_source(source: str | Path, path: Path) -> None:
    """Download a URL, or copy a local file, to `path`.

    After a `TemporaryError` it tries again, as often as `PAUSES` has entries, and says so.

    Raises:
        DownloadError: if that fails. It says why in one line.
    """
    if not is_url(source):
        if not project_path(source).is_file():
            raise DownloadError(f"There is no file {source}.")
        shutil.copyfile(project_path(source), path)
        return
    for pause in PAUSES:
        try:
            return download(str(source), path)
        except TemporaryError as error:
            print(f"{error} Trying again in {pause} s.", flush=True)
            time.sleep(pause)
    download(str(source), path)


def download(url: str, path: Path) -> None:
    """Download a URL to `path` in one attempt.

    Raises:
        TemporaryError: if the server reports that it fails or is busy, or stops too early.
        DownloadError: if the server cannot be reached, is silent or does not have the file.
    """
    begun = False
    try:
        with open_url(url) as answer, path.open("wb") as file:
            begun = True
            answer.raise_for_status()
            size = int(answer.headers.get("Content-Length", 0))
            name = url.rsplit("/", 1)[-1]
            bar = tqdm(None, name, size, leave=False, file=sys.stdout, unit="B", unit_scale=True)
            with bar:
                for part in answer.iter_content(chunk_size=2**16):
                    bar.update(file.write(part))
    except requests.HTTPError as error:
        status = error.response.status_code
        kind = TemporaryError if status >= 500 or status == BUSY else DownloadError
        raise kind(f"The server reports: {error}.") from error
    except (requests.Timeout, multiprocessing.TimeoutError) as error:
        raise DownloadError(f"No answer in time from {url}.") from error
    except requests.TooManyRedirects as error:
        raise DownloadError(f"The server redirects without an end: {url}.") from error
    except requests.RequestException as error:
        if any(isinstance(each, ReadTimeoutError) for each in error.args):  # amid the file
            raise DownloadError(f"No answer in time from {url}.") from error
        if begun:
            raise TemporaryError(f"The connection broke off for {url}.") from error
        raise DownloadError(f"The connection failed for {url}{reason_of(error)}.") from error
    if path.stat().st_size < size:
        raise TemporaryError(f"Only {path.stat().st_size} of {size} bytes arrived from {url}.")


def reason_of(error: BaseException | None) -> str:
    """The system's words in an error of requests, ": Connection refused" for example."""
    while error is not None:
        if isinstance(error, OSError) and error.strerror:
            return f": {error.strerror}"
        error = error.__cause__ or error.__context__
    return ""


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
    """Unpack a zip file, all of it or nothing.

    Raises:
        DownloadError: if it is damaged, empty, unsafe or encrypted; see `problem_of`.
        OSError: if the files cannot be stored.
    """
    try:
        with zipfile.ZipFile(archive) as zip_file:
            problem = problem_of(zip_file, archive.stat().st_size, folder)
            if not problem:
                zip_file.extractall(folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as error:
        raise DownloadError(
            f"{source} is not a complete zip file: {error}{remark_on_web_page(archive)}."
        ) from error
    except OSError as error:
        if is_full_disk(error):
            raise OSError(f"the disk is full, and {source} is not unpacked yet") from error
        raise
    if problem:
        raise DownloadError(f"{source} {problem}.")


def remark_on_web_page(file: Path) -> str:
    """A remark if a file is HTML: where one has to log in to a network, any address gives that."""
    with file.open("rb") as opened:
        is_page = opened.read(100).lstrip().startswith(b"<")
    return "; it is a web page, perhaps that of a network that wants you to log in" * is_page


def problem_of(zip_file: zipfile.ZipFile, size: int, folder: Path) -> str:
    """Why an archive of `size` bytes is not unpacked into a folder, in words; "" if it is."""
    entries = zip_file.infolist()
    names: set[str] = set()  # in one Unicode form, as some file systems store them
    folders: set[str] = set()
    for entry in entries:
        name = entry.filename
        if not is_inside(folder / name, folder):
            return f"contains the path {name}, outside its folder"
        if stat.S_ISLNK(entry.external_attr >> 16):
            return f"contains the link {name}; only files and folders are unpacked"
        if entry.flag_bits & ENCRYPTED:
            return f"is encrypted; get it without a password ({name})"
        path = PurePosixPath(unicodedata.normalize("NFC", name))
        if not entry.is_dir():
            if str(path) in names:
                return f"contains {name} twice"
            names.add(str(path))
        folders |= {str(parent) for parent in path.parents}
    if both := sorted(names & folders):
        return f"contains {both[0]} as a file and as a folder"
    unpacked = sum(entry.file_size for entry in entries)
    if len(entries) > MAX_FILES:
        return f"contains {len(entries):,} files, more than {MAX_FILES:,}"
    if unpacked > MAX_UNPACKED and unpacked > MAX_GROWTH * size:
        return f"would grow from {size:,} to {unpacked:,} bytes: no archive of images does"
    return "" if entries else "is an empty zip file"


def is_inside(path: Path, folder: Path) -> bool:
    """Return whether a path stays in a folder, whatever ".." it contains."""
    return path.resolve().is_relative_to(folder.resolve())
