"""The log of a training: a line of JSON for each epoch."""

import json
import time
from pathlib import Path

from going_modular.utils import atomic_write


class Log:
    """Epochs as lines of `log.jsonl`, and in TensorBoard if that is installed."""

    def __init__(self, folder: Path):
        self.path, self.began = folder / "log.jsonl", time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.board = None
        else:
            self.board = SummaryWriter(folder)

    def on_epoch(self, results: dict[str, list]) -> None:
        """Write the epoch that has ended.

        Lines of this epoch and later ones, from a run that was killed before it saved
        them, are dropped.
        """
        epoch = len(results["train_loss"])
        entry = {"epoch": epoch, **{name: values[-1] for name, values in results.items()}}
        entry["seconds"] = round(time.monotonic() - self.began, 2)
        lines = self.path.read_text().splitlines() if self.path.is_file() else []
        lines = [line for line in lines if json.loads(line)["epoch"] < epoch]
        with atomic_write(self.path) as unfinished:
            unfinished.write_text("\n".join([*lines, json.dumps(entry)]) + "\n")
        if self.board is not None:
            for name, value in entry.items():
                self.board.add_scalar(name, value, epoch)
            self.board.flush()
        self.began = time.monotonic()
