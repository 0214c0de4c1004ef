"""Trainings that go wrong, are stopped or killed, or lose a part of themselves."""

import json
import os
import random
import resource
import signal
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from faults.command import SMALL, finish, kill, run, run_without_privileges, start, visible
from going_modular.model_builder import ViT, ViTConfig
from going_modular.training.checkpoints import Checkpoint
from going_modular.vit.files import write_vit

LONG = [*SMALL, "--epochs", "60", "--dropout", "0.1", "--average-decay", "0.5"]
KILLS = 20
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, as Linux has it")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run of `LONG` that nothing disturbs, by the folder of its images."""
    runs = {}

    def run_on(photos: Path) -> Path:
        if not runs:
            folder = tmp_path_factory.mktemp("whole")
            run("train", "--data", photos, "--output", folder, *LONG).success("test accuracy")
            runs["folder"] = folder
        return runs["folder"]

    return run_on


def lines_of(folder: Path) -> list[dict]:
    """The lines of a log."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def log_of(folder: Path) -> list[dict]:
    """The lines of a log, without what depends on the clock."""
    lines = lines_of(folder)
    assert all(line.pop("seconds") >= 0 for line in lines)
    return lines


def assert_same(first: Path, second: Path) -> None:
    """Two runs have the same log, and the same bits in their weights."""
    assert log_of(first) == log_of(second)
    assert (first / "vit.safetensors").read_bytes() == (second / "vit.safetensors").read_bytes()


def wait_for_epoch(number: int, folder: Path, process) -> None:
    log = folder / "log.jsonl"
    while not log.is_file() or len(log.read_text().splitlines()) < number:
        assert process.is_alive()
        time.sleep(0.02)


def wait_for_words(words: str, file: Path, process) -> None:
    while not file.is_file() or words not in file.read_text(errors="replace"):
        assert process.is_alive()
        time.sleep(0.01)


def test_an_image_of_NaN(photos, tmp_path, record):
    pixels = np.full((30, 40), 0.5, dtype=np.float32)
    pixels[3, 4] = np.nan
    image = photos / "train/red/nan.tiff"
    Image.fromarray(pixels).save(image)
    command = partial(run, "train", "--data", photos, "--output", tmp_path / "run", *SMALL)
    record(command().error(r"1 image cannot be read: .*nan\.tiff \(its values go from nan to nan"))
    assert not (tmp_path / "run").exists()
    image.unlink()
    command().success("test accuracy")


def test_weights_of_NaN(photos, tmp_path, record):
    vit = ViT(ViTConfig(24, 12, 3, 12, 1, 2, 24, num_classes=2))
    for parameter in vit.parameters():
        nn.init.constant_(parameter, torch.nan)
    weights = write_vit(vit, tmp_path / "nan.safetensors", class_names=["red", "sea"])
    command = partial(run, "train", "--data", photos, "--output", tmp_path / "run", *SMALL)
    record(command("--weights", weights).error("the loss is nan in epoch 1, batch 1"))
    assert visible(tmp_path / "run") == []
    command().success("test accuracy")


def test_exploding_loss(photos, tmp_path, record):
    command = partial(run, "train", "--data", photos, "--output", tmp_path / "run", *SMALL)
    record(
        command("--lr", "1e30").error(
            "the loss is (nan|inf) in epoch 1, batch 2.*try a tenth of it"
        )
    )
    assert visible(tmp_path / "run") == []
    command().success("test accuracy")


def leave_little_memory() -> None:
    """In the command's process: it may have 1 GB more than it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + 10**9
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


@LINUX
def test_out_of_memory(photos, tmp_path, record):
    command = partial(run, "train", "--data", photos, "--output", tmp_path / "run", *SMALL)
    said = command("--image-size", 1200, "--batch-size", 8, first=leave_little_memory)
    record(said.error("can't allocate memory.*Give --accumulate 2, or 4, or a smaller"))
    assert "checkpoint.pt" not in visible(tmp_path / "run")
    command(first=leave_little_memory).success("test accuracy")


def test_ctrl_C(photos, tmp_path, whole, record):
    words = ["--data", photos, "--output", tmp_path / "run", *LONG]
    process = start("train", words, log=tmp_path / "log")
    wait_for_epoch(2, tmp_path / "run", process)
    os.kill(process.pid, signal.SIGINT)
    said = finish(process, tmp_path / "log")
    (line,) = said.err.splitlines()
    assert said.status == 1 and line.startswith("stopped, saved in ")
    record(line)
    run("train", *words).success("going on from .*")
    assert_same(tmp_path / "run", whole(photos))


def test_killed_20_times(photos, tmp_path, whole, record):
    """At random moments. Each life goes on from the last checkpoint of those before, and
    every third is left to finish an epoch, however slow the machine is.
    """
    words = ["--data", photos, "--output", tmp_path / "run", *LONG]
    moments, done = random.Random(0), [0]
    length = sum(line["seconds"] for line in lines_of(whole(photos)))
    for number in range(KILLS):
        process = start("train", words, log=tmp_path / "log")
        if number % 3 == 0:
            wait_for_epoch(done[-1] + 2, tmp_path / "run", process)
        elif number % 5:  # else while it is still getting ready
            wait_for_words("to train on", tmp_path / "log.out", process)
        process.join(moments.uniform(0, length / 25))
        assert process.is_alive(), "it has ended before it was killed: make it longer"
        kill(process)
        checkpoint = tmp_path / "run/checkpoint.pt"
        if checkpoint.is_file():
            done.append(Checkpoint(checkpoint).read()["progress"]["epoch"] - 1)
    assert done == sorted(done) and done[-1] > 5
    run("train", *words).success("test accuracy")
    assert_same(tmp_path / "run", whole(photos))
    record(f"killed {KILLS} times, for the last time after epoch {done[-1]}: the same bits")


def let_the_clock_jump() -> None:
    """In the command's process: each look at the clock finds another year."""
    plain, years = time.time, random.Random(0)
    time.time = lambda: plain() + years.uniform(-5, 5) * 365 * 86400


def test_the_clock_jumps(photos, tmp_path, whole, record):
    words = ["--data", photos, "--output", tmp_path / "run", *LONG]
    process = start("train", words, log=tmp_path / "log", first=let_the_clock_jump)
    wait_for_epoch(2, tmp_path / "run", process)
    kill(process)
    for path, year in ((tmp_path / "run/checkpoint.pt", 1980), (tmp_path / "run/log.jsonl", 2099)):
        seconds = (year - 1970) * 365 * 86400
        os.utime(path, (seconds, seconds))
    said = run("train", *words, first=let_the_clock_jump)
    record(said.success("going on from .*"))
    assert_same(tmp_path / "run", whole(photos))


def test_read_only_output(photos, tmp_path, record):
    output = tmp_path / "outputs"
    output.mkdir(mode=0o555)
    words = ["train", "--data", photos, "--output", output / "run", *SMALL]
    said = run_without_privileges(*words)
    record(said.error("run cannot be written to .Permission denied.: choose another folder with"))
    output.chmod(0o755)
    run(*words).success("test accuracy")


def workers_of(process) -> list[int]:
    """The processes that a process has started."""
    task = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(number) for number in task.read_text().split()]


@LINUX
def test_a_worker_dies(photos, tmp_path, whole, record):
    words = ["--data", photos, "--output", tmp_path / "run", *LONG]
    process = start("train", [*words, "--workers", 2], log=tmp_path / "log")
    wait_for_epoch(2, tmp_path / "run", process)
    while process.is_alive():
        for worker in workers_of(process):
            os.kill(worker, signal.SIGKILL)
        time.sleep(0.01)
    said = finish(process, tmp_path / "log")
    record(said.error("a process that reads images has ended: .*--workers 0"))
    run("train", *words).success("going on from .*")
    assert_same(tmp_path / "run", whole(photos))


def test_two_runs_in_one_folder(photos, tmp_path, whole, record):
    words = ["--data", photos, "--output", tmp_path / "run", *LONG]
    process = start("train", words, log=tmp_path / "log")
    wait_for_epoch(1, tmp_path / "run", process)
    record(run("train", *words).error("another run is writing to .*--output"))
    finish(process, tmp_path / "log").success("test accuracy")
    assert_same(tmp_path / "run", whole(photos))
