"""Times taken in turns, ratios round by round, and the memory of a process.

`python -m benchmarks.measuring LIBRARY SETTING [quick]` prints the bytes of two steps on the CPU.
"""

import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from benchmarks.models import Work, config_of, training_step
from going_modular.utils import project_path

LEAST_SECONDS = {"cpu": 0.2, "cuda": 0.1}  # of one measurement: shorter work is repeated
Values = dict[str, list[float]]
# From the seconds or bytes of a baseline and of a candidate, and from their costs
RATIOS: dict[str, Callable[[float, float, float], float]] = {
    "speed": lambda base, value, cost: base / value,  # 2 is twice as fast
    "size": lambda base, value, cost: value / base,
    "share": lambda base, value, cost: 1 - base / value,  # of a candidate's time
    "growth": lambda base, value, cost: value / base / cost,
}


def spread_of(values: Sequence[float]) -> tuple[float, float, float]:
    """The lower quartile, the median and the upper quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return lower, median, upper


@dataclass
class Group:
    """Candidates that were measured in the same rounds, and their ratios round by round.

    The baseline is that of `baselines` with the smallest median.
    """

    setting: str
    values: Values  # seconds or bytes of each round
    baselines: list[str]
    kind: str = "speed"
    costs: dict[str, float] = field(default_factory=dict)  # multiply-adds, for "growth"
    skipped: dict[str, str] = field(default_factory=dict)  # candidates, and why
    baseline: str = ""
    ratios: Values = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.baseline = min(self.baselines, key=lambda name: statistics.median(self.values[name]))
        for name, values in self.values.items():
            cost = self.costs.get(name, 1.0) / self.costs.get(self.baseline, 1.0)
            pairs = zip(self.values[self.baseline], values, strict=True)
            self.ratios[name] = [RATIOS[self.kind](*pair, cost) for pair in pairs]


def in_turns(names: Iterable[str], rounds: int, measure: Callable[[str], float]) -> Values:
    """Measure every candidate once in each round, in a new random order."""
    order, shuffle = list(names), random.Random(0).shuffle
    values: Values = {name: [] for name in order}
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            values[name].append(measure(name))
    return values


def seconds(work: Work, calls: int, device: torch.device) -> float:
    """The time of one call, as a mean over `calls`. A GPU finishes its work first."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    began = time.perf_counter()
    for _ in range(calls):
        work()
    wait()
    return (time.perf_counter() - began) / calls


def times_of(works: dict[str, Work], rounds: int, device: torch.device, least: float) -> Values:
    """Seconds of each work, round by round, after a warm-up that does not count."""
    calls = {}
    for name, work in works.items():
        first = seconds(work, 1, device)
        again = seconds(work, 1, device) if least else first  # the first may compile
        calls[name] = max(1, round(least / again))
    return in_turns(works, rounds, lambda name: seconds(works[name], calls[name], device))


def memory_of(library: str, setting: str, device: torch.device, quick: bool) -> float:
    """The bytes of two training steps: on a GPU, or in a process of their own."""
    if device.type == "cuda":
        return peak_bytes(library, setting, device, quick)
    command = [sys.executable, "-m", "benchmarks.measuring", library, setting] + ["quick"] * quick
    done = subprocess.run(command, cwd=project_path(""), check=True, stdout=subprocess.PIPE)
    return float(done.stdout.split()[-1])


def peak_bytes(library: str, setting: str, device: torch.device, quick: bool) -> float:
    """The largest memory of two training steps, beyond what was in use before."""
    tiny = config_of("ViT-B/32", True, image_size=32)
    training_step(library, setting, tiny, torch.device("cpu"), 1)()  # imports what it needs
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        used, peak = torch.cuda.memory_allocated, torch.cuda.max_memory_allocated
    else:
        used, peak = partial(resident_bytes, "VmRSS"), partial(resident_bytes, "VmHWM")
    before = used()
    step = training_step(library, setting, config_of("ViT-B/16", quick), device)
    for _ in range(2):  # in the second one AdamW has its averages from the start
        step()
    return peak() - before


def resident_bytes(line: str) -> int:
    """The memory of this process: "VmRSS" is the current, "VmHWM" the largest so far.

    Without /proc it is always the largest. On Linux `ru_maxrss` would be wrong: in a new
    process it starts with the memory of the parent.
    """
    status = Path("/proc/self/status")
    if status.is_file() and (found := re.search(rf"{line}:\s+(\d+) kB", status.read_text())):
        return 1024 * int(found[1])
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on a Mac


if __name__ == "__main__":
    print(peak_bytes(sys.argv[1], sys.argv[2], torch.device("cpu"), "quick" in sys.argv))
