"""The page of results, its figure, and the machine that they were measured on."""

import platform
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch

from benchmarks.measuring import Group, spread_of
from benchmarks.models import OURS, PEERS
from benchmarks.rows import AUTOMATIC, BASE, ROWS
from going_modular.utils import atomic_write, best_precision, bfloat16_instructions, markdown_table

# What we want on a CPU: row, setting (a pattern) and candidate; "at least" or "at most"; the
# number with 16-bit products, and without them. The lower quartile must be at least that, or
# the upper one at most
AIMS = {
    ("step", "as shipped", OURS): ("≥", 2.2, 1.0),
    ("step", "bfloat16, dropout 0.1", OURS): ("≥", 1.25, 1.25),
    ("dropout", "*", "dropout 0.1"): ("≤", 0.05, 0.05),
    ("forward", "*batch 1", AUTOMATIC): ("≥", 1.7, 1.0),
    ("memory", "*", OURS): ("≤", 1.0, 1.0),
    ("transfer", "*", "features once"): ("≥", 25.0, 9.5),
    ("transfer", "*", "from the cache"): ("≥", 200.0, 200.0),
}
COLUMNS = {
    "speed": ("time", "speed against {}", "aim"),
    "size": ("memory", "memory against {}", "aim"),
    "share": ("time", "dropout's share of the step", "aim"),
    "growth": ("time", "time of a multiply-add against the {}", "billion multiply-adds"),
}
SERIES = ("batch", "pixels", "patch", "model")  # what changes in the row "growth"
ALT = (
    "Time of a multiply-add over the multiply-adds of a forward pass: four curves, for batch, "
    "image size, patch size and model, each with a band from quartile to quartile. A dashed line "
    "at 1 is the base"
)
TEXT = """\
**How we compare.** In each round every candidate of a table runs once, in random order. We divide
the numbers of the same round, because a slow moment of the machine slows down both. The tables
show medians over the rounds, and the quartiles in parentheses. A warm-up comes before the rounds
and does not count. A candidate with a speed of 2× takes half the time. We compare with the
library that has the best median, without torch.compile. An aim counts as reached
if the quartile on its far side reaches it.

**What we compare.** All libraries build the same ViT. As shipped, ours has the paper's dropout
of 0.1, computes in the precision that `best_precision` chooses, and takes the steps of
`engine.train_step`. The other libraries have no dropout and compute in float32; their optimizer
is `torch.optim.AdamW` with its defaults. In all other settings every model has the same loop,
optimizer, precision and dropout. transformers has no setting for dropout inside the
MLP, so we add it there. In bfloat16, ours computes under `utils.autocast`, the others under
`torch.autocast`."""


def machine(device: torch.device) -> dict[str, Any]:
    """The processor, what it can, and the versions of all libraries."""
    versions = {"Python": platform.python_version()}
    for name in ("torch", *PEERS, "onnxruntime"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "processor": found.get("cpu_name") or platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "precision": best_precision(device),
        "products": bfloat16_instructions(device),
        "versions": versions,
    }


def quantity(value: float, kind: str) -> str:
    """Seconds or bytes with a unit."""
    if kind == "size":
        return f"{value / 2**30:.2f} GiB"
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.3g} ms"


def ratio_text(value: float, kind: str) -> str:
    if kind == "share":
        return f"{100 * value:.1f} %"
    return f"{value:.0f}×" if value >= 100 else f"{value:.2f}×"


def aim_text(row: str, group: Group, candidate: str, here: dict) -> str:
    """The aim of a candidate, and whether it was reached."""
    low, _, high = spread_of(group.ratios[candidate])
    for (its_row, setting, name), (relation, *numbers) in AIMS.items():
        fits = (its_row, name) == (row, candidate) and fnmatch(group.setting, setting)
        if fits and here["device"] == "cpu":
            aim = numbers[0 if here["products"] else 1]
            reached = low >= aim if relation == "≥" else high <= aim
            return f"{relation} {ratio_text(aim, group.kind)}, {'' if reached else 'not '}reached"
    return ""


def table_of(row: str, group: Group, here: dict) -> str:
    """A group under its setting, as a table in Markdown."""
    head = ["candidate", *(each.format(group.baseline) for each in COLUMNS[group.kind])]
    rows = []
    for name, values in group.values.items():
        low, median, high = (quantity(each, group.kind) for each in spread_of(values))
        cells = [name, f"{median} ({low} to {high})", ""]
        if name != group.baseline:
            low, median, high = (ratio_text(x, group.kind) for x in spread_of(group.ratios[name]))
            cells[2] = f"{median} ({low} to {high})"
        costs = group.costs
        cells += [f"{costs[name] / 1e9:.3g}" if costs else aim_text(row, group, name, here)]
        rows.append(cells)
    lines = [f"**{group.setting}**\n", markdown_table(head, rows)]
    lines += [f"\nNot measured: {name}, because {why}." for name, why in group.skipped.items()]
    return "\n".join(lines)


def page_of(results: dict[str, Any], stem: str) -> str:
    """The results as a page in Markdown."""
    here = results["machine"]
    versions = " · ".join(f"{name} {each}" for name, each in here["versions"].items())
    parts = [
        "# Speed and memory beside other libraries",
        *["**This was a quick run on tiny models: its numbers say nothing.**"] * results["quick"],
        f"Measured by `make bench`. [`{stem}.json`]({stem}.json) holds the values of each round.",
        f"**The machine.** Device {here['device']}, processor {here['processor']}. PyTorch chose "
        f"{here['threads']} threads, and we left it so. Instructions for 16-bit products: "
        f"{here['products'] or 'none, so nothing is compared in bfloat16'}. `best_precision` "
        f"chose {here['precision']}. {versions}.",
        *(" ".join(each.split()) for each in TEXT.split("\n\n")),
    ]
    for name, row in ROWS.items():
        if entry := results["rows"].get(name):
            title, sentence = " ".join(str(row.__doc__).split()).split(". ", 1)
            groups = [Group(**each) for each in entry["groups"]]
            rounds = len(groups[0].values[groups[0].baseline])
            parts += [f"## {title}", f"{sentence} Rounds: {rounds}. Measured on {entry['run']}."]
            parts += [table_of(name, group, here) for group in groups]
            parts += [f"![{ALT}]({stem}.png)"] * (name == "growth")
    return "\n\n".join(parts) + "\n"


def draw(group: Group, path: Path) -> None:
    """Time of a multiply-add against the base: a series for each size that changes."""
    figure, axis = plt.subplots(figsize=(7, 4.2), layout="constrained", facecolor="white")
    for marker, series in zip("os^D", SERIES, strict=True):
        names = [name for name in group.costs if name.startswith((series, BASE))]
        names.sort(key=lambda name: group.costs[name])
        low, median, high = zip(*(spread_of(group.ratios[name]) for name in names), strict=True)
        x = [group.costs[name] / 1e9 for name in names]
        sizes = ", ".join(name.removeprefix(f"{series}: ") for name in names)
        (line,) = axis.plot(x, median, marker=marker, label=f"{series}: {sizes}")
        axis.fill_between(x, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axis.axhline(1, linestyle="--", color="0.4")
    axis.set(xscale="log", xlabel="billion multiply-adds of a forward pass")
    axis.set_ylabel("time of a multiply-add,\nagainst the base")
    ticks = [2, 5, 10, 20, 50, 100]
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(title="what changes, from cheap to dear")
    with atomic_write(path) as unfinished:
        figure.savefig(unfinished, dpi=120)
    plt.close(figure)
