"""Checkpoints and files of weights that are damaged, of another run, or hostile."""

import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

from faults.command import SMALL, contents, cut, failing_in_second_save, run, small_disk
from going_modular.training import checkpoints

SHORT = [*SMALL, "--schedule", "constant", "--epochs", "1"]


class Hostile:
    """In a pickle, it makes a file when it is read. That would be code, if a harmless one."""

    def __init__(self, made: Path):
        self.made = made

    def __reduce__(self):
        return Path.touch, (self.made,)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def make_hostile(path: Path) -> None:
    torch.save({"model": Hostile(path.parents[1] / "executed")}, path)


def call_newer(path: Path) -> None:
    state = torch.load(path, weights_only=True)
    torch.save({**state, "format": checkpoints.FORMAT + 1}, path)


def tag_as_of_a_gpu(path: Path) -> None:
    """Save it anew, as a machine with a GPU would: each storage says that it was there."""
    state, tag = torch.load(path, weights_only=True), torch.serialization.location_tag
    torch.serialization.location_tag = lambda storage: "cuda:0"
    try:
        torch.save(state, path)
    finally:
        torch.serialization.location_tag = tag


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a truncated file": (cut, "it is cut off, damaged or of another kind"),
    "zero bytes": (empty, "it is empty"),
    "one that would run code": (make_hostile, "none of it was run"),
    "a newer format": (call_newer, r"a newer version of this package wrote it \(format 2"),
}
WEIGHTS_TOO = ["a truncated file", "zero bytes", "one that would run code"]


@pytest.fixture
def command(photos, tmp_path):
    """A training of one epoch that has ended; with two epochs it goes on."""
    command = partial(run, "train", "--data", photos, "--output", tmp_path / "run", *SHORT)
    command().success("test accuracy")
    return command


@pytest.mark.parametrize("fault", DAMAGES)
def test_a_checkpoint(command, tmp_path, fault, record):
    damage, words = DAMAGES[fault]
    path = tmp_path / "run/checkpoint.pt"
    shutil.copy(path, tmp_path / "intact.pt")
    damage(path)
    before = contents(tmp_path)
    said = command("--epochs", 2)
    record(
        said.error(rf"checkpoint\.pt cannot be read as a checkpoint: .*({words}).*Move or delete")
    )
    assert contents(tmp_path) == before
    assert not (tmp_path / "executed").exists()
    shutil.move(tmp_path / "intact.pt", path)
    command("--epochs", 2).success("going on from .*: 1 of 2 epochs are done")


@pytest.mark.parametrize("fault", [f"weights: {name}" for name in WEIGHTS_TOO])
def test_a_file_of_weights(command, photos, tmp_path, fault, record):
    damage, _ = DAMAGES[fault.removeprefix("weights: ")]
    path = tmp_path / "run/vit.safetensors"
    shutil.copy(path, tmp_path / "intact.safetensors")
    damage(path)
    photo, before = photos / "test/red/0.png", contents(tmp_path)
    predictions = partial(
        run, "predictions", photo, "--output", tmp_path / "prediction.png", "--weights"
    )
    record(predictions(path).error("vit.safetensors .* cannot be read as weights: "))
    command("--weights", path).error("vit.safetensors .* cannot be read as weights: ")
    assert contents(tmp_path) == before
    assert not (tmp_path / "executed").exists()
    predictions(tmp_path / "intact.safetensors").success("picture: ")


def test_saved_on_a_gpu(command, tmp_path, record):
    tag_as_of_a_gpu(tmp_path / "run/checkpoint.pt")
    record(command("--epochs", 2).success("going on from .*: 1 of 2 epochs are done"))


def add_class(photos: Path) -> None:
    for part in ("train", "test"):
        (photos / part / "sky").mkdir()
        Image.new("RGB", (30, 30), "white").save(photos / part / "sky/0.png")


# What is given besides, what changes in the images, and a line of the error
OTHERS: dict[str, tuple[list, Callable[[Path], None] | None, str]] = {
    "of another architecture": (["--patch-size", 6], None, "patch-size: 12 there, 6 here"),
    "of another number of classes": (
        [],
        add_class,
        "class names: only there: none; only here: sky",
    ),
    "of another resolution": (["--image-size", 36], None, "image-size: 24 there, 36 here"),
}


@pytest.mark.parametrize("fault", OTHERS)
def test_a_checkpoint_of_another_run(command, photos, tmp_path, fault, record):
    arguments, change, words = OTHERS[fault]
    if change is not None:
        change(photos)
    before = contents(tmp_path)
    said = command("--epochs", 2, *arguments)
    assert said.status == 2 and "Traceback" not in said.err
    assert words in said.err and "Move or delete it to start again" in said.err
    record(" ".join(said.err.split(": error: ", 1)[1].split()))
    assert contents(tmp_path) == before
    elsewhere = ["--epochs", 2, *arguments, "--output", tmp_path / "elsewhere"]
    command(*elsewhere).success("test accuracy")


def kill_in_second_save() -> None:
    """In the command's process: the second checkpoint is half on the disk when it is killed."""
    torch.save = failing_in_second_save(partial(os.kill, os.getpid(), signal.SIGKILL))


def epochs_of(path: Path) -> int:
    """How many epochs are done, in a checkpoint that must be whole."""
    return checkpoints.Checkpoint(path).read()["progress"]["epoch"] - 1


def same_weights(first: Path, second: Path) -> bool:
    return (first / "vit.safetensors").read_bytes() == (second / "vit.safetensors").read_bytes()


def test_killed_while_saving(photos, tmp_path, record):
    command = partial(run, "train", "--data", photos, *SMALL, "--epochs", 3, "--output")
    assert command(tmp_path / "run", first=kill_in_second_save).status == -signal.SIGKILL
    assert epochs_of(tmp_path / "run/checkpoint.pt") == 1
    record(command(tmp_path / "run").success("going on from .*: 1 of 3 epochs are done"))
    command(tmp_path / "whole").success("test accuracy")
    assert same_weights(tmp_path / "run", tmp_path / "whole")
    assert not list((tmp_path / "run").glob(".*-*"))


def test_disk_full_while_saving(photos, tmp_path, record):
    command = partial(run, "train", "--data", photos, *SMALL, "--epochs", 3, "--output")
    command(tmp_path / "whole").success("test accuracy")
    size = (tmp_path / "whole/checkpoint.pt").stat().st_size
    disk = tmp_path / "disk"
    with small_disk(disk, 3 * size // 2) as resize:
        said = command(disk / "run")
        record(said.error(r"checkpoint\.pt cannot be written completely; \d+ MB are free on"))
        assert epochs_of(disk / "run/checkpoint.pt") == 1
        resize(4 * size)
        command(disk / "run").success("going on from .*: 1 of 3 epochs are done")
        assert same_weights(disk / "run", tmp_path / "whole")
