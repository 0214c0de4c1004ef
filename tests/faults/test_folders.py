"""Folders of images that are not as expected."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from faults.command import run, training


def add_empty_class(photos: Path) -> None:
    (photos / "train/sky").mkdir()


def leave_one_class(photos: Path) -> None:
    for part in ("train", "test"):
        (photos / part / "sea").rename(photos.parent / f"sea of {part}")


def take_class_from_test(photos: Path) -> None:
    (photos / "test/sea").rename(photos.parent / "sea")


def nest_classes(photos: Path) -> None:
    for part in ("train", "test"):
        (photos / part).rename(photos / "images")
        (photos / part).mkdir()
        (photos / "images").rename(photos / part / "images")


def add_stray_files(photos: Path) -> None:
    (photos / "train/red/notes.txt").write_text("no picture")
    (photos / "train/red/.DS_Store").write_bytes(b"\0")
    (photos / "train/red/._0.png").write_bytes(b"\0")
    (photos / "train/__MACOSX").mkdir()
    (photos / "train/lost.png").write_bytes((photos / "train/red/0.png").read_bytes())


def add_hundreds_of_classes(photos: Path) -> None:
    for number in range(298):
        for part in ("train", "test"):
            folder = photos / part / f"kind {number}"
            folder.mkdir()
            Image.new("RGB", (30, 30), (number % 256, 255 - number % 256, 90)).save(
                folder / "0.png"
            )


REFUSED: dict[str, tuple[Callable, str]] = {
    "an empty class": (
        add_empty_class,
        "train: no image that can be read in sky; add images, or remove the folder",
    ),
    "one class": (leave_one_class, "has one class only, red, .*add a folder for each other class"),
    "a class that test/ lacks": (
        take_class_from_test,
        "the classes differ: .*test lacks sea; both need a folder for each class",
    ),
    "classes one folder too deep": (
        nest_classes,
        r"has one class only, images, .*\(red, sea\) are the classes, look one folder below",
    ),
}
READ: dict[str, tuple[Callable, str]] = {
    "stray files": (
        add_stray_files,
        "8 images in 2 classes; passed over: 2 hidden files, .*1 image beside the class folders",
    ),
    "hundreds of classes": (add_hundreds_of_classes, "306 images in 300 classes"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_a_folder_that_is_refused(photos, tmp_path, fault, record):
    change, words = REFUSED[fault]
    shutil.copytree(photos, tmp_path / "intact")
    change(photos)
    before = set(tmp_path.rglob("*"))
    record(training(photos).error(words))
    assert set(tmp_path.rglob("*")) == before
    training(tmp_path / "intact").success("test accuracy")


@pytest.mark.parametrize("fault", READ)
def test_a_folder_that_is_read(photos, tmp_path, fault, record):
    change, words = READ[fault]
    change(photos)
    said = training(photos)
    record(said.success(words).split(": ", 1)[1])
    said.success("test accuracy")
    weights = tmp_path / "run/vit.safetensors"
    output = tmp_path / "prediction.png"
    named = run("predictions", photos / "test/red/0.png", "--weights", weights, "--output", output)
    assert named.success("picture: ") and len(named.out.splitlines()) < 15
