"""Many trainings, a line of JSON each; a sweep that was stopped goes on."""

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import multiprocessing
from tqdm import tqdm

from going_modular.utils import append_line

RESULTS = Path(__file__).with_name("results")


def sweep(name: str, points: list[dict], run: Callable[..., dict], jobs: int = 1) -> None:
    """Run what is not yet in `docs/results/<name>.jsonl`, a line a run.

    Args:
        points: of each run, the beginning of its line: its arguments, and "settings",
            a fingerprint of all else that it depends on.
        jobs: processes, with one thread each.
    """
    path = RESULTS / f"{name}.jsonl"
    done = [{k: line.get(k) for k in points[0]} for line in read_results(name)]
    missing = [point for point in points if point not in done]
    with multiprocessing.get_context("spawn").Pool(jobs, torch.set_num_threads, (1,)) as pool:
        work = pool.imap_unordered(partial(line_of, run), missing)
        for line in tqdm(work, name, len(points), initial=len(points) - len(missing)):
            append_line(path, line)


def line_of(run: Callable[..., dict], point: dict) -> dict:
    """A run's line: what was asked for, and what came out."""
    arguments = {name: value for name, value in point.items() if name != "settings"}
    return {**point, **run(**arguments)}


def fingerprint(*settings) -> str:
    """A few digits that change when one of the settings does."""
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:8]


def read_results(name: str) -> list[dict]:
    """The lines of a sweep, as far as it has come."""
    path = RESULTS / f"{name}.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines]
