"""Saving a training so that it can go on as if it had never stopped."""

import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from going_modular.training.distributed import (
    full_state_dicts,
    gather_objects,
    load_full_state_dicts,
    process_count,
    process_rank,
    sum_over_processes,
)
from going_modular.utils import atomic_write, get_device, project_path


@dataclass
class Progress:
    """How far a training has come."""

    epoch: int = 1  # the epoch under way
    batch: int = 0  # batches of it that are done, the position in the data order
    sums: list[float] = field(default_factory=lambda: [0.0] * 5)  # see `add_step`
    lr: float = 0.0  # of the last step
    results: dict[str, list] = field(default_factory=dict)  # of the epochs before


class Checkpoint:
    """A file from which `engine.train` resumes, if it is there.

    It holds the model, the optimizer, what else a `Method` carries, the states of all
    random generators and the position in the data order, as numbers and plain types
    only: `torch.load(..., weights_only=True)` reads it, which runs no code.

    Args:
        path: a relative one is seen from the repository's root.
        run: settings that a run must share with the file to resume from it.
    """

    def __init__(self, path: str | Path, run: dict | None = None):
        self.path = project_path(path)
        self.run = run or {}

    def save(self, model, optimizer, method, progress: Progress) -> None:
        """Write everything; the file is the old one or the new one, never half of it.

        All processes have to call this, number 0 writes.
        """
        weights, optimizer_state = full_state_dicts(model, optimizer)
        random_states = gather_objects(random_state())
        if process_rank() != 0:
            return
        state = {
            "run": self.run,
            "model": weights,
            "optimizer": optimizer_state,
            "method": {name: part.state_dict() for name, part in method.parts_with_state().items()},
            "random": random_states,
            "progress": asdict(progress),
        }
        with atomic_write(self.path) as unfinished:
            torch.save(state, unfinished)

    def load(self, model, optimizer, method) -> tuple[Progress, dict | None]:
        """Restore what was saved; return how far it was, and the random state then.

        Without a file nothing happens, and the beginning is returned. The random state
        is for `set_random_state`, once the data loader stands where it stood.

        Raises:
            ValueError: if the file is of a run with other settings, or processes, or if
                not all processes see it.
        """
        seen = sum_over_processes([self.path.is_file()])[0]
        if seen not in (0, process_count()):
            raise ValueError(
                f"{seen:.0f} of {process_count()} processes see {self.path}: it has to "
                "lie where all machines can read it"
            )
        if not seen:
            return Progress(), None
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        settings = {**self.run, "processes": process_count()}
        theirs = {**state["run"], "processes": len(state["random"])}
        if theirs != settings:
            differences = [
                f"{name}: {theirs.get(name)!r} there, {settings.get(name)!r} here"
                for name in {**theirs, **settings}
                if theirs.get(name) != settings.get(name)
            ]
            raise ValueError(
                f"{self.path} is another run's checkpoint ({'; '.join(differences)}): "
                "give the same settings, or another folder, or remove the file"
            )
        load_full_state_dicts(model, optimizer, (state["model"], state["optimizer"]))
        for name, part in method.parts_with_state().items():
            part.load_state_dict(state["method"][name])
        return Progress(**state["progress"]), state["random"][process_rank()]


def random_state() -> dict:
    """The states of Python's, NumPy's and PyTorch's generators, in plain types."""
    version, numbers, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    state = {
        "python": [version, list(numbers), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
    }
    if get_device().type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state()
    if get_device().type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_random_state(state: dict) -> None:
    """Put all generators into the state that `random_state` saw."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])


@contextmanager
def delayed_interrupts(wanted: bool = True) -> Iterator[Callable[[], bool]]:
    """Let a run come to a good end before Ctrl-C, a stop button or SIGTERM ends it.

    Gives a function that says whether somebody asked to stop. A second request is
    obeyed at once. Nothing is postponed if it is not wanted, or outside the main
    thread, where Python allows no handlers.
    """
    asked = []
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def remember(number, frame):
        asked.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)

    for each in before:
        signal.signal(each, remember)
    try:
        yield lambda: bool(asked)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
