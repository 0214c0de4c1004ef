"""Check whether a folder is complete, by a list of SHA-256 hashes.

A list has one line "<SHA-256>  <path in the folder>" for each file, as the command
`sha256sum` writes and checks it. Lines that begin with "#" are comments.
"""

import hashlib
import tempfile
from pathlib import Path

from going_modular.utils import project_path


def is_complete(folder: Path, checksums: str | Path | None) -> bool:
    """Return whether a folder is not empty and does not differ from its list, if any."""
    return folder.is_dir() and any(folder.iterdir()) and not differences(folder, checksums)


def differences(folder: Path, checksums: str | Path | None) -> list[str]:
    """Name the files that are missing, changed or not listed.

    Hidden files do not count, because file managers leave theirs behind. Without a list
    there are no differences.
    """
    if checksums is None:
        return []
    listed = read_checksums(project_path(checksums))
    present = visible_files(folder)
    unlisted = [name for name in present if name not in listed]
    return unlisted + [
        name
        for name, sha256 in listed.items()
        if name not in present or sha256_of(present[name]) != sha256
    ]


def read_checksums(checksums: Path) -> dict[str, str]:
    """Return the SHA-256 of each path in a list."""
    lines = checksums.read_text(encoding="utf-8", errors="replace").splitlines()
    parts = (line.partition("  ") for line in lines if not line.startswith("#"))
    return {name: sha256 for sha256, _, name in parts}


def list_checksums(folder: Path) -> str:
    """Return the lines of a list for all files in a folder."""
    return "".join(f"{sha256_of(path)}  {name}\n" for name, path in visible_files(folder).items())


def visible_files(folder: Path) -> dict[str, Path]:
    """Return all files in a folder and below that are not hidden, by relative path."""
    return {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, or of the list of a folder's files, as hexadecimal digits."""
    if path.is_dir():
        return hashlib.sha256(list_checksums(path).encode()).hexdigest()
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def move_aside(folder: Path) -> None:
    """Keep a folder under another name, if it is there, and print where it is now."""
    if folder.exists():
        prefix = f"{folder.name}.replaced-"
        aside = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent), folder.name)
        folder.rename(aside)
        print(f"{folder} is not what it should be. It is replaced, and kept as {aside}.")
