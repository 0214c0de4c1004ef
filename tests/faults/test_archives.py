"""Archives that are not unpacked: harmless ones, made for the guards of `unpack`."""

import io
import stat
import zipfile
from functools import partial

import pytest
from file_server import checksums_of, zip_of

from faults.command import SMALL, contents, run
from faults.mirror import PHOTO, ZIP, photos_are


def with_link(files):
    """With an entry that says it is a symbolic link to a file outside."""
    link = zipfile.ZipInfo("train/red/link.png")
    link.create_system = 3  # Unix
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    return written([(name, data) for name, data in files.items()] + [(link, b"../../../x.png")])


def written(entries):
    """A zip file of (name or ZipInfo, content), which may have a name twice."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return buffer.getvalue()


def marked_as_encrypted(files):
    """A plain archive whose entries say that they are encrypted."""
    content = bytearray(zip_of(files))
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = content.find(signature)
        while place >= 0:
            content[place + flags] |= 1
            place = content.find(signature, place + 4)
    return bytes(content)


def with_a_foreign_name(files):
    """A name of bytes in an old Japanese encoding, and no word on which it is."""
    name = "train/red/寿司.png".encode("shift_jis")
    return zip_of(files | {"train/red/" + "x" * (len(name) - 10): b"x"}).replace(
        b"train/red/" + b"x" * (len(name) - 10), name
    )


# How the archive is made from the photos, what the command says, and limits of the guard
ARCHIVES = {
    "a path that leads out": (
        lambda files: zip_of({**files, "train/../../outside.png": b"x"}),
        r"contains the path train/\.\./\.\./outside\.png, outside its folder",
    ),
    "an absolute path": (
        lambda files: zip_of({**files, "/outside.png": b"x"}),
        "contains the path /outside.png, outside its folder",
    ),
    "a link": (with_link, r"contains the link train/red/link\.png; only files and folders"),
    "a bomb: 2 MB of zeros, packed": (
        lambda files: written([*files.items(), ("train/red/zeros.png", bytes(2 * 10**6))]),
        r"would grow from [\d,]+ to 2,\d+,\d+ bytes: no archive of images does",
        {"MAX_UNPACKED": 10**6},
    ),
    "a bomb: 3,000 empty files": (
        lambda files: written([(f"train/red/{i}.png", b"") for i in range(3000)]),
        "contains 3,000 files, more than 2,000",
        {"MAX_FILES": 2000},
    ),
    "a name twice": (
        lambda files: written([*files.items(), ("train/red/0.png", b"another")]),
        r"contains train/red/0\.png twice",
    ),
    "a file that is a folder too": (
        lambda files: written([*files.items(), ("train/red", b"x")]),
        "contains train/red as a file and as a folder",
    ),
    "a name in an old encoding": (
        with_a_foreign_name,
        "not the expected data: 1 file is .* not listed",
    ),
    "encrypted files": (marked_as_encrypted, "is encrypted; get it without a password"),
    "a class folder is missing": (
        lambda files: zip_of({n: data for n, data in files.items() if "/sea/" not in n}),
        r"not the expected data: 6 files are missing.* The first is test/sea/1\.png",
    ),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("fault", ARCHIVES)
def test_an_archive(files, tmp_path, fault, record):
    make, words, *limits = ARCHIVES[fault]
    (tmp_path / "photos.sha256").write_text(checksums_of(files))
    mirror, data = tmp_path / "mirror", tmp_path / "data"
    mirror.mkdir()
    (mirror / PHOTO).write_bytes(b"x")
    (mirror / ZIP).write_bytes(make(files))
    before = contents(tmp_path)
    command = partial(
        run,
        "train",
        *SMALL,
        *("--output", tmp_path / "run"),
        first=partial(photos_are, tmp_path / "photos.sha256", *limits),
        FOODVISION_SOURCE=str(mirror),
        FOODVISION_DATA=str(data),
    )
    record(command().error(f"{words}.*What to do: "))
    after = {name for name in contents(tmp_path) if not name.endswith(".lock")}
    assert after == set(before)
    (mirror / ZIP).write_bytes(zip_of(files))
    command().success("test accuracy")
