"""Measure speed and memory of our ViT beside other libraries.

python -m benchmarks                     # all rows, printed: an hour on two cores, 8 GB
python -m benchmarks --only step memory  # some rows
python -m benchmarks --write             # into docs/results: bench.md, bench.json, bench.png
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.measuring import Group
from benchmarks.page import draw, machine, page_of
from benchmarks.rows import ROWS, Run
from going_modular.experiments.command_line import positive
from going_modular.publishing.all_suites import RESULTS, this_run
from going_modular.utils import atomic_write, errors_in_one_line


def write(results: dict, folder: Path, stem: str) -> None:
    """Write the page, the values and the figure."""
    texts = {"json": json.dumps(results, indent=1) + "\n", "md": page_of(results, stem)}
    for ending, text in texts.items():
        with atomic_write(folder / f"{stem}.{ending}") as path:
            path.write_text(text, encoding="utf-8")
    if growth := results["rows"].get("growth"):
        draw(Group(**growth["groups"][0]), folder / f"{stem}.png")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure rows one after the other. With `--write`, each is written once it is done.

    With `--only`, the page keeps other rows of the same machine with the same versions.
    """
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW")
    parser.add_argument("--rounds", type=positive, default=7, help="default: 7")
    parser.add_argument("--quick", action="store_true", help="tiny models, to see that it runs")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--write", type=Path, nargs="?", const=RESULTS, metavar="FOLDER")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("this machine has no GPU for --device cuda")
    with errors_in_one_line(parser.prog):
        run = Run(torch.device(options.device), options.rounds, options.quick)
        stem = "bench" if options.device == "cpu" else f"bench_{options.device}"
        this_run()  # now, because the commit may be another one at the end
        results = {"machine": machine(run.device), "quick": run.quick, "rows": {}}
        values = (options.write or RESULTS) / f"{stem}.json"
        if options.write and values.is_file() and set(options.only) != set(ROWS):
            stored = json.loads(values.read_text(encoding="utf-8"))
            results = stored if stored | {"rows": {}} == results else results
        for name in options.only:
            print(f"== {name}", flush=True)
            groups = [asdict(each) for each in ROWS[name](run)]
            results["rows"][name] = {"run": this_run(), "groups": groups}
            if options.write:
                write(results, options.write, stem)
        print(page_of(results, stem))


if __name__ == "__main__":
    main()
