"""The log of a training: a line of JSON for each epoch."""

import json
import time
from pathlib import Path
from typing import Any

from going_modular.utils import atomic_write


class Log:
    """Epochs as lines of `log.jsonl`, and in TensorBoard if that is installed."""

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / "log.jsonl"
        self.seconds, self.began = seconds_of(self.path), time.monotonic()
        self.board: Any = None  # a SummaryWriter, from the first epoch on
        folder.mkdir(parents=True, exist_ok=True)

    def on_epoch(self, results: dict[str, list]) -> None:
        """Write all epochs so far; the last of them has ended now.

        Each epoch has one line, whatever a killed run left in the file, because the lines
        are those of the results, which a checkpoint keeps. Only the seconds of earlier
        epochs are read from the file. Where they are lost, they are None.
        """
        epoch = len(results["train_loss"])
        self.seconds[epoch] = round(time.monotonic() - self.began, 2)
        entries = [
            {"epoch": n, **{name: values[n - 1] for name, values in results.items()}}
            | {"seconds": self.seconds.get(n)}
            for n in range(1, epoch + 1)
        ]
        with atomic_write(self.path) as unfinished:
            unfinished.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        self.show_on_board(entries[-1])
        self.began = time.monotonic()

    def show_on_board(self, entry: dict) -> None:
        """Give an epoch to TensorBoard, which then hides what it had of it and later ones."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        epoch = entry["epoch"]
        self.board = self.board or SummaryWriter(self.folder, purge_step=epoch)
        for name, value in entry.items():
            self.board.add_scalar(name, value, epoch)
        self.board.flush()


def seconds_of(path: Path) -> dict[int, float]:
    """The seconds of each epoch in a log, without lines that are damaged."""
    seconds = {}
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    for line in lines:
        try:
            entry = json.loads(line)
            seconds[entry["epoch"]] = entry["seconds"]
        except (ValueError, TypeError, KeyError):
            continue
    return seconds
