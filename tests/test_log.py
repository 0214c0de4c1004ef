"""The log of a training that was stopped, killed, or lost a part of its log."""

import json
import sys
import types

import pytest

from going_modular.training.log import Log


def results(epochs):
    return {"train_loss": [1 / n for n in range(1, epochs + 1)], "lr": [0.1] * epochs}


def write(folder, epochs):
    log = Log(folder)
    for epoch in epochs:
        log.on_epoch(results(epoch))
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def line(epoch, **more):
    return json.dumps({"epoch": epoch, "train_loss": 9, "seconds": epoch + 0.5, **more})


@pytest.mark.parametrize(
    ("before", "seconds"),
    [
        ([line(1), line(2)], [1.5, 2.5]),
        ([line(1), line(2), line(3), line(4)], [1.5, 2.5]),  # killed before it saved
        ([line(1), line(2)[:-9]], [1.5, None]),
        ([line(1), line(1), "[]", "5", line(2)], [1.5, 2.5]),
        ([line(2)], [None, 2.5]),
        (["\xff\xfe"], [None, None]),
        ([], [None, None]),
    ],
)
def test_each_epoch_has_one_line_whatever_was_in_the_file(tmp_path, before, seconds):
    (tmp_path / "log.jsonl").write_bytes("\n".join(before).encode("latin-1"))
    lines = write(tmp_path, [3])
    assert [entry["epoch"] for entry in lines] == [1, 2, 3]
    assert [entry["train_loss"] for entry in lines] == results(3)["train_loss"]
    assert [entry["seconds"] for entry in lines[:2]] == seconds
    assert lines[2]["seconds"] < 3


def test_a_new_training_begins_a_new_log(tmp_path):
    (tmp_path / "log.jsonl").write_text(line(1) + "\n" + line(2) + "\n")
    (entry,) = write(tmp_path, [1])
    assert entry["train_loss"] == 1 and entry["seconds"] < 1.5


def test_tensorboard_hides_what_a_killed_run_wrote_of_the_same_epoch(tmp_path, monkeypatch):
    begun = []

    class Writer:
        def __init__(self, folder, purge_step):
            begun.append((folder, purge_step))

        def add_scalar(self, name, value, epoch):
            pass

        def flush(self):
            pass

    stand_in = types.ModuleType("torch.utils.tensorboard")
    stand_in.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stand_in)
    write(tmp_path, [2, 3])
    assert begun == [(tmp_path, 2)]
