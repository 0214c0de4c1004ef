"""Saving a training so that it can go on as if it had never stopped."""

import random
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import nn
from torch.distributed.checkpoint.stateful import Stateful

from going_modular.training.distributed import (
    full_state_dicts,
    gather_objects,
    load_full_state_dicts,
    process_count,
    process_rank,
    sum_over_processes,
)
from going_modular.utils import atomic_write, get_device, project_path

KEYS = {"run", "model", "optimizer", "method", "random", "progress"}  # of a checkpoint


class HasState(Protocol):
    """`engine.Method`, or anything else that says which of its parts have a state."""

    def stateful_parts(self) -> dict: ...


class Checkpoint:
    """A file from which `engine.train` resumes, if it is there.

    It holds the model, the optimizer, the stateful parts of a `Method`, the states of
    all random generators and the position in the data order. All of these are numbers
    and plain types: `torch.load(..., weights_only=True)` reads the file, and runs no
    code.

    Args:
        path: of the file; `utils.project_path` says where a relative one starts.
        run: settings that a run must share with the file to resume from it.
    """

    def __init__(self, path: str | Path, run: dict | None = None):
        self.path = project_path(path)
        self.run = run or {}

    def save(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        method: HasState,
        progress: Stateful,
    ) -> None:
        """Write everything. The file is the old one or the new one, never half of it.

        All processes have to call this; number 0 writes.
        """
        weights, optimizer_state = full_state_dicts(model, optimizer)
        random_states = gather_objects(random_state())
        state = {
            "run": self.run,
            "model": weights,
            "optimizer": optimizer_state,
            "method": {name: part.state_dict() for name, part in method.stateful_parts().items()},
            "random": random_states,
            "progress": progress.state_dict(),
        }
        if process_rank() == 0:
            with atomic_write(self.path) as unfinished:
                torch.save(state, unfinished)

    def load(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        method: HasState,
        progress: Stateful,
    ) -> dict | None:
        """Restore what was saved, and return the state of the random generators then.

        Without a file nothing happens, and None is returned. The state is for
        `set_random_state`, once the data loader stands where it stood.

        Raises:
            ValueError: if the file is of a run with other settings or another number of
                processes, cannot be read, or is not visible to all processes.
        """
        seen = sum_over_processes(torch.tensor(float(self.path.is_file()))).item()
        if seen not in (0, process_count()):
            raise ValueError(
                f"{seen:.0f} of {process_count()} processes see {self.path}: it has to "
                "lie where all machines can read it"
            )
        if not seen:
            return None
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            if missing := KEYS - state.keys():
                raise ValueError(f"it has no entry {', '.join(sorted(missing))}")
        except Exception as error:  # a damaged file fails in many ways
            raise ValueError(
                f"{self.path} ({self.path.stat().st_size} bytes) cannot be read as a "
                "checkpoint: it is damaged or of another kind. Remove it to start again"
            ) from error
        self.check_run(state)
        load_full_state_dicts(model, optimizer, (state["model"], state["optimizer"]))
        for name, part in method.stateful_parts().items():
            part.load_state_dict(state["method"][name])
        progress.load_state_dict(state["progress"])
        return state["random"][process_rank()]

    def check_run(self, state: dict) -> None:
        """Raise `ValueError`, with each difference, if a file is of another run."""
        here = {**self.run, "processes": process_count()}
        there = {**state["run"], "processes": len(state["random"])}
        differences = [
            f"{name}: {there.get(name)!r} there, {here.get(name)!r} here"
            for name in {**there, **here}
            if there.get(name) != here.get(name)
        ]
        if differences:
            raise ValueError(
                f"{self.path} is another run's checkpoint ({'; '.join(differences)}): "
                "give the same settings, or another folder, or remove the file"
            )


def random_state() -> dict:
    """The states of Python's, NumPy's and PyTorch's generators, in plain types."""
    version, numbers, gauss = random.getstate()
    name, keys, *rest = np.random.get_state()
    state = {
        "python": [version, list(numbers), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys, np.int64)), *rest],
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
