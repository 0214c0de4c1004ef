"""Many trainings, one line of JSON for each; a sweep that was stopped goes on."""

import hashlib
import json
import signal
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path

import torch
from torch import multiprocessing
from tqdm import tqdm

from going_modular.utils import append_line

RESULTS = Path(__file__).with_name("results")


def sweep(name: str, points: list[dict], run: Callable[..., dict], jobs: int = 1) -> None:
    """Do the runs that `results/<name>.jsonl` does not hold yet, and add a line for each.

    Args:
        points: the beginning of each run's line: its arguments, and "settings", a
            fingerprint of everything else that the run depends on.
        run: a function at the top of a module, because other processes call it.
        jobs: processes, with one thread each.
    """
    stored = read_results(name)
    missing = [
        point for point in points if not any(point.items() <= line.items() for line in stored)
    ]
    with multiprocessing.get_context("spawn").Pool(jobs, prepare_process) as pool:
        lines = pool.imap_unordered(partial(line_of, run), missing)
        for line in tqdm(lines, name, len(points), initial=len(points) - len(missing)):
            append_line(RESULTS / f"{name}.jsonl", line)


def prepare_process() -> None:
    """One thread for each process, and Ctrl-C is left to the process that started it."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def line_of(run: Callable[..., dict], point: dict) -> dict:
    """The line of a run: its arguments, then its results."""
    arguments = {name: value for name, value in point.items() if name != "settings"}
    return {**point, **run(**arguments)}


def fingerprint(*settings) -> str:
    """Eight digits that change when one of the settings changes.

    Of a dataclass, only the fields that differ from their defaults count. So a new
    field whose default changes nothing leaves all fingerprints as they are. A changed
    default would go unnoticed: `test_sweeps.py` holds the defaults.

    Raises:
        TypeError: for settings that are neither plain values nor dataclasses.
    """
    text = json.dumps(settings, default=changed_fields, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def changed_fields(settings) -> dict:
    """The fields of a dataclass that differ from their defaults, by name.

    Raises:
        TypeError: if `settings` is not a dataclass.
    """
    return {
        field.name: value
        for field in fields(settings)
        if (value := getattr(settings, field.name)) != field.default
    }


def read_results(name: str) -> list[dict]:
    """The lines of a sweep that are stored so far."""
    path = RESULTS / f"{name}.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines]
