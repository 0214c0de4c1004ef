"""Saving a training so that it can go on as if it had never stopped."""

import pickle
import random
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.distributed.checkpoint.stateful import Stateful

from going_modular.training.distributed import (
    Optimizers,
    full_state_dicts,
    gather_objects,
    load_full_state_dicts,
    process_count,
    process_rank,
    sum_over_processes,
)
from going_modular.utils import (
    ErrorInLines,
    atomic_write,
    get_device,
    is_out_of_memory,
    project_path,
    remove_unfinished,
)

KEYS = {"format", "run", "model", "optimizer", "method", "random", "progress"}
FORMAT = 1  # of the file; a newer one has a larger number
REMEDY = "Move or delete it to start again, or choose another folder (--output of train)"


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
        run: settings that a run must share with the file to resume from it, by name.
        may_grow: names of settings that may be larger than in the file, where they are
            not 0: the length of a training whose steps do not depend on it.
        remarks: what an error says behind a setting that differs, by its name.
    """

    def __init__(
        self,
        path: str | Path,
        run: dict | None = None,
        may_grow: Collection[str] = (),
        remarks: Mapping[str, str] | None = None,
    ):
        self.path = project_path(path)
        self.run = run or {}
        self.may_grow, self.remarks = may_grow, remarks or {}

    def save(
        self, model: nn.Module, optimizer: Optimizers, method: HasState, progress: Stateful
    ) -> None:
        """Write everything. The file is the old one or the new one, never half of it.

        All processes have to call this; number 0 writes.
        """
        weights, optimizer_state = full_state_dicts(model, optimizer)
        random_states = gather_objects(random_state())
        state = {
            "format": FORMAT,
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
        self, model: nn.Module, optimizer: Optimizers, method: HasState, progress: Stateful
    ) -> dict | None:
        """Restore what was saved, and return the state of the random generators then.

        Without a file nothing happens, and None is returned. The state is for
        `set_random_state`, once the data loader stands where it stood.

        Raises:
            ValueError: if the file is of a run with other settings or another number of
                processes, cannot be read, or is not visible to all processes.
            PermissionError: if this user may not read it.
        """
        if process_rank() == 0:
            remove_unfinished(self.path)
        seen = sum_over_processes(torch.tensor(float(self.path.exists()))).item()
        if seen not in (0, process_count()):
            raise ValueError(
                f"{seen:.0f} of {process_count()} processes see {self.path}: it has to "
                "lie where all machines can read it"
            )
        if not seen:
            return None
        state = self.read()
        try:
            self.check_run(state)
            load_full_state_dicts(model, optimizer, (state["model"], state["optimizer"]))
            for name, part in method.stateful_parts().items():
                part.load_state_dict(state["method"][name])
            progress.load_state_dict(state["progress"])
            return state["random"][process_rank()]
        except ErrorInLines:
            raise
        except Exception as error:  # PyTorch raises many kinds for names and shapes
            if is_out_of_memory(error):
                raise
            raise ValueError(
                f"{self.path} is of another model, optimizer or method "
                f"({type(error).__name__}). {REMEDY}"
            ) from error

    def read(self) -> dict[str, Any]:
        """What is in the file. Nothing in it is run.

        Raises:
            ValueError: if it is no checkpoint, damaged, or of another format.
            PermissionError: if this user may not read it.
        """
        try:
            problem = "it is empty"
            if self.path.stat().st_size:
                # PyTorch does not compare the checksums that it writes
                with zipfile.ZipFile(self.path) as archive:
                    damaged = archive.testzip()
                problem = f"its part {damaged} is damaged"
                if not damaged:
                    state = torch.load(self.path, map_location="cpu", weights_only=True)
                    problem = problem_of(state)
                    if not problem:
                        return state
        except PermissionError:
            raise
        except pickle.UnpicklingError:
            problem = "it holds more than numbers and plain types, and none of it was run"
        except Exception as error:  # a damaged file fails in many ways
            if is_out_of_memory(error):
                raise
            problem = "it is cut off, damaged or of another kind"
        raise ValueError(f"{self.path} cannot be read as a checkpoint: {problem}. {REMEDY}")

    def check_run(self, state: dict) -> None:
        """Raise `ErrorInLines` if a file is of another run.

        A single difference stands in one line with what to do, several have a line each.
        """
        here = {**self.run, "processes": process_count()}
        there = {**state["run"], "processes": len(state["random"])}
        grown = [name for name in self.may_grow if 0 < there[name] < here[name]]
        lines = [
            f"{difference(name, there.get(name), here.get(name))}{self.remarks.get(name, '')}"
            for name in {**there, **here}
            if there.get(name) != here.get(name) and name not in grown
        ]
        if not lines:
            return
        start = f"{self.path} is another run's checkpoint:"
        if len(lines) == 1:
            raise ErrorInLines(f"{start} {lines[0]}. {REMEDY}")
        raise ErrorInLines("\n  ".join([start, *lines]) + f"\n{REMEDY}")


def problem_of(state: Any) -> str:
    """What is wrong with the content of a file, in words; "" for a checkpoint."""
    if not isinstance(state, dict):
        return f"it holds a {type(state).__name__}"
    if state.get("format", FORMAT) != FORMAT:
        return (
            f"a newer version of this package wrote it (format {state['format']}; this version "
            f"reads format {FORMAT}). Update the package to go on with it"
        )
    missing = ", ".join(sorted(KEYS - state.keys()))
    return f"it has no entry {missing}" if missing else ""


def difference(name: str, there: Any, here: Any) -> str:
    """A setting that differs between a checkpoint and a run, as the command line names it."""
    values = [there, here]
    if isinstance(there, list) and isinstance(here, list) and {*there} != {*here}:
        values = [
            [value for value in these if value not in those]
            for these, those in ((there, here), (here, there))
        ]
        there, here = (", ".join(map(str, only)) or "none" for only in values)
        return f"{name.replace('_', '-')}: only there: {there}; only here: {here}"
    there, here = ("none" if value is None else value for value in values)
    return f"{name.replace('_', '-')}: {there} there, {here} here"


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
        state["cuda"] = torch.cuda.get_rng_state(get_device())
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
        torch.cuda.set_rng_state(state["cuda"], get_device())
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])
