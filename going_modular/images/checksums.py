"""Is a folder what it should be? Lists of SHA-256 hashes."""

import hashlib
from pathlib import Path

from going_modular.utils import project_path


def is_complete(folder: Path, checksums: str | Path | None) -> bool:
    """True for a folder that holds something and does not differ from its list."""
    return folder.is_dir() and any(folder.iterdir()) and not differences(folder, checksums)


def differences(folder: Path, checksums: str | Path | None) -> list[str]:
    """The files that are missing, changed, or not in the list; hidden ones are free."""
    if checksums is None:
        return []
    lines = project_path(checksums).read_text().splitlines()
    listed = {name: sha256 for sha256, name in (line.split(maxsplit=1) for line in lines)}
    present = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }
    return [
        name
        for name in [*listed, *(name for name in present if name not in listed)]
        if name not in present or sha256_of(present[name]) != listed.get(name)
    ]


def sha256_of(path: Path) -> str:
    """A file's SHA-256 as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()
