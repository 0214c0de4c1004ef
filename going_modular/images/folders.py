"""Folders of images: which files count, what is passed over, and which classes there are."""

import copy
import hashlib
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

from torchvision.datasets import ImageFolder
from tqdm import tqdm

from going_modular.images.reading import (
    HOW_TO_READ,
    damage_of,
    is_image,
    load_image,
    readable_endings,
)
from going_modular.images.transforms import Transform
from going_modular.utils import project_path

# Folders of operating systems and network drives. They hold thumbnails and copies.
SYSTEM_FOLDERS = {
    "__MACOSX",
    "@eaDir",
    "#recycle",
    "$RECYCLE.BIN",
    "System Volume Information",
    "lost+found",
}
HIDDEN_FILE, HIDDEN_FOLDER = "hidden file", "hidden folder"
NO_ENDING, NO_CLASS = "file without an ending", "image beside the class folders"
PLURALS = {
    HIDDEN_FILE: "hidden files",
    HIDDEN_FOLDER: "hidden folders",
    NO_ENDING: "files without an ending",
    NO_CLASS: "images beside the class folders",
}
TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing")
VALIDATION_NAMES = ("val", "validation", "valid")
MAX_NAMES = 10  # that a message lists


class Listing(NamedTuple):
    """What a folder of class folders holds."""

    classes: list[str]
    samples: list[tuple[str, int]]  # path and label of each image
    passed_over: Counter[str]  # how many files or folders of each kind do not count


class PhotoFolder(ImageFolder):
    """An `ImageFolder` of all images that Pillow can open, read by `load_image`.

    The endings of Pillow's formats count, and so does any other file that Pillow opens.
    Hidden files and folders and `SYSTEM_FOLDERS` are passed over; `summary` says what
    was. Class names are in Unicode's form NFC, so that they are equal on every machine.

    Raises:
        FileNotFoundError: if there is no such folder, no class, or a class without images.
        ValueError: if two class folders have the same name in NFC.
    """

    def __init__(self, folder: str | Path, transform: Transform | None = None):
        root = project_path(folder)
        self.listing = list_images(root)
        super().__init__(root, transform, loader=load_image)

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        names = self.listing.classes
        return names, {name: label for label, name in enumerate(names)}

    def make_dataset(self, *_, **__) -> list[tuple[str, int]]:
        return self.listing.samples

    def with_transform(self, transform: Transform | None, least: int = 0) -> "PhotoFolder":
        """The same images with a different transform. The folder is not listed again.

        Args:
            least: see `load_image`.
        """
        other = copy.copy(self)
        other.transform = transform
        other.loader = partial(load_image, least=least) if least else load_image
        return other

    def summary(self) -> str:
        """For example "238 images in 3 classes; passed over: 2 hidden files, 1 .txt"."""
        images, classes = len(self.samples), len(self.classes)
        counted = f"{images} image{'s' * (images != 1)} in {classes} class{'es' * (classes != 1)}"
        return "; ".join(filter(None, (counted, describe(self.listing.passed_over))))

    def fingerprint(self) -> str:
        """Count, size and a hash of the images, by their paths in the folder and their sizes.

        A copy of the folder, or the folder under another name, has the same fingerprint.
        So has a folder in which an image was replaced by another of as many bytes.
        """
        paths = [Path(name) for name, _ in self.samples]
        files = sorted(
            (
                unicodedata.normalize("NFC", path.relative_to(self.root).as_posix()),
                path.stat().st_size,
            )
            for path in paths
        )
        digits = hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16]
        return f"{len(files)} files, {sum(size for _, size in files):,} bytes ({digits})"


def list_images(root: Path) -> Listing:
    """Find classes and images, sorted as torchvision's `ImageFolder` does.

    Raises:
        FileNotFoundError, ValueError: see `PhotoFolder`.
        OSError: if a folder cannot be read.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}: expected one with a folder per class")
    endings, passed_over = readable_endings(), Counter[str]()
    _, names, files = next(os.walk(root, onerror=fail))
    passed_over[NO_CLASS] = len(images_among(files, root, endings, passed_over))
    folders: dict[str, str] = {}  # by name in NFC
    for name in visible(names, passed_over):
        other = folders.setdefault(unicodedata.normalize("NFC", name), name)
        if other != name:
            raise ValueError(
                f"{root}: the folders {other!a} and {name!a} have the same name in two Unicode "
                "forms: put their images into one folder"
            )
    samples = []
    empty = []
    for label, name in enumerate(sorted(folders)):
        found = []
        for place, names, files in os.walk(root / folders[name], onerror=fail, followlinks=True):
            names[:] = visible(names, passed_over)
            found.append((place, images_among(files, place, endings, passed_over)))
        paths = [path for _, images in sorted(found) for path in images]
        samples += [(path, label) for path in paths]
        if not paths:
            empty.append(name)
    passed = describe(passed_over)
    if not folders:
        raise FileNotFoundError(
            "; ".join(filter(None, (f"{root} has no folders: expected one for each class", passed)))
        )
    if empty:
        words = f"{root}: no image that can be read in {shorten(empty)}"
        advice = "add images, or remove the folder" + "s" * (len(empty) > 1)
        raise FileNotFoundError("; ".join(filter(None, (words, passed, advice))))
    return Listing(sorted(folders), samples, passed_over)


def fail(error: OSError) -> None:
    """For `os.walk`, which is silent about folders that it cannot read."""
    raise error


def visible(folders: Iterable[str], passed_over: Counter[str]) -> list[str]:
    """The folders that may hold images; the others are counted."""
    kept = []
    for name in folders:
        if name.startswith("."):
            passed_over[HIDDEN_FOLDER] += 1
        elif name in SYSTEM_FOLDERS:
            passed_over[name] += 1
        else:
            kept.append(name)
    return kept


def images_among(
    files: Iterable[str], folder: str | Path, endings: set[str], passed_over: Counter[str]
) -> list[str]:
    """The sorted paths of the images in one folder; its other files are counted."""
    images = []
    for name in sorted(files):
        path, ending = os.path.join(folder, name), os.path.splitext(name)[1].lower()
        if name.startswith("."):
            passed_over[HIDDEN_FILE] += 1
        elif ending in endings or is_image(path):
            images.append(path)
        else:
            passed_over[ending or NO_ENDING] += 1
    return images


def describe(passed_over: Counter[str]) -> str:
    """Say what is passed over, and how it can be read; empty if it is nothing."""
    words = [
        f"{count} {PLURALS.get(kind, kind) if count > 1 else kind}"
        + (f" ({HOW_TO_READ[kind]})" if kind in HOW_TO_READ else "")
        for kind, count in passed_over.most_common()
        if count
    ]
    return f"passed over: {shorten(words)}" if words else ""


def shorten(words: Sequence[str]) -> str:
    """Join words, and only count those after `MAX_NAMES`."""
    more = len(words) - MAX_NAMES
    return ", ".join(words[:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")


def check_several_classes(folder: PhotoFolder) -> None:
    """Raise `ValueError` if a folder has one class only.

    Usually the classes are then one folder below.
    """
    if len(folder.classes) > 1:
        return
    (name,) = folder.classes
    below = {Path(path).relative_to(folder.root).parts[1:-1][:1] for path, _ in folder.samples}
    advice = "add a folder for each other class"
    if folders := sorted(part for parts in below for part in parts):
        advice = (
            f"if the folders in {name} ({shorten(folders)}) are the classes, look one folder below "
            f"and move them up into {folder.root}"
        )
    raise ValueError(
        f"{folder.root} has one class only, {name}, so there is nothing to tell apart: {advice}"
    )


def check_same_classes(first: PhotoFolder, second: PhotoFolder) -> None:
    """Raise `ValueError` if two folders have different classes, and name these."""
    words = []
    for one, other in ((first, second), (second, first)):
        if missing := sorted(set(other.classes) - set(one.classes)):
            words.append(f"{one.root} lacks {shorten(missing)}")
    if words:
        raise ValueError(
            f"the classes differ: {', and '.join(words)}; both need a folder for each class"
        )


def check_images(paths: Sequence[str], progress: bool = True) -> None:
    """Raise `ValueError` if images are damaged, and name them."""
    if damaged := find_damaged(paths, progress):
        raise damaged_error(damaged)


def damaged_error(damaged: Sequence[str]) -> ValueError:
    """The error that names what `find_damaged` has found."""
    count = f"{len(damaged)} image{'s' * (len(damaged) > 1)}"
    return ValueError(f"{count} cannot be read: {shorten(damaged)}. Replace or delete them")


def find_damaged(paths: Sequence[str], progress: bool = True) -> list[str]:
    """Name the files that cannot be read, each with the reason. All CPUs look for them."""
    with ThreadPool() as pool:
        reasons = tqdm(
            pool.imap(damage_of, paths, chunksize=16),
            "checking images",
            len(paths),
            leave=False,
            disable=None if progress else True,  # None: shown in a terminal only
        )
        return [f"{p} ({why})" for p, why in zip(paths, reasons, strict=True) if why]


def find_parts(folder: Path, hold_out: float = 0.0) -> tuple[Path, Path | None, str]:
    """The folders of training and test images in a folder, and in words what is used.

    They may have any of their usual names, in capitals too. Validation images take the
    place of test images where there are none. With `hold_out`, neither is needed.

    Raises:
        FileNotFoundError: if one is missing. The message says what is there.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: expected one that holds train/")
    there = {name: folder / name for name in visible(sorted(os.listdir(folder)), Counter())}
    there = {name: path for name, path in there.items() if path.is_dir()}
    train, test, validation = (
        first_of(names, there) for names in (TRAIN_NAMES, TEST_NAMES, VALIDATION_NAMES)
    )
    if train is None:
        raise FileNotFoundError(no_training_images(folder, list(there)))
    if hold_out:
        return train, None, str(folder)
    if test:
        unused = f"; {validation.name}/ is not used" if validation else ""
        return train, test, f"{folder}{unused}"
    if validation:
        return train, validation, f"{folder}; no test/, so {validation.name}/ takes its place"
    raise FileNotFoundError(
        f"{folder} holds {shorten(list(there))}, but no test/, val/ or validation/: add one, or "
        "give --hold-out 0.2 to evaluate on a share of the training images"
    )


def first_of(names: Sequence[str], there: dict[str, Path]) -> Path | None:
    """The first folder that has one of the names, as it is or in capitals."""
    lower = {name.lower(): path for name, path in there.items()} | there
    return next((lower[name] for name in names if name in lower), None)


def no_training_images(folder: Path, there: list[str]) -> str:
    """What to do about a folder that holds no train/."""
    below = [name for name in there if any((folder / name / part).is_dir() for part in TRAIN_NAMES)]
    advice = ""
    if below:
        advice = f". Give the folder below: --data {folder / below[0]}"
    elif folder.name.lower() in TRAIN_NAMES:
        advice = f". Give the folder above: --data {folder.parent}"
    elif there:
        advice = ". If these are the classes, move them into train/, and give --hold-out 0.2"
    return (
        f"{folder} holds {shorten(there) or 'no folders'}, but no train/: expected train/ and "
        f"test/, each with a folder of images for each class{advice}"
    )
