"""Every suite, one after the other: `make test-all`.

Writes what came out of each to docs/results/test_all.md; `--only` runs some of them
and writes nothing.
"""

import argparse
import os
import re
import subprocess
import sys
import time
import venv
from pathlib import Path
from xml.etree import ElementTree

from going_modular.utils import CHECKOUT, describe_environment

OLDEST = CHECKOUT / "build" / "oldest"
BOTH = ["-m", "slow or not slow"]
NBVAL = ["--nbval-lax", "-p", "no:warnings"]
# Name, whose Python, arguments of pytest
SUITES = {
    "unit tests, oldest PyTorch": ("oldest", ["tests"]),
    "the series under nbval, oldest PyTorch": ("oldest", [*NBVAL, "notebooks"]),
    "unit tests": ("ours", ["tests"]),
    "the series under nbval": ("ours", [*NBVAL, "notebooks"]),
    "solutions under nbval": ("ours", [*NBVAL, "notebooks/solutions"]),
    "exercises, slow": ("ours", ["-m", "slow", "tests/test_exercises.py"]),
    "cells run twice, long notebooks": ("ours", ["-m", "slow", "tests/test_notebooks.py"]),
    "links to other hosts": ("ours", ["-m", "slow", "tests/test_texts.py"]),
    "book and demo in a browser": ("ours", [*BOTH, "tests/test_book.py", "tests/test_demo.py"]),
    "all notebooks alone": ("ours", ["-m", "slow", "tests/test_hosted.py"]),
}

# A share of the above, for .ci/run
SHARE = {
    "two notebooks alone": (
        "ours",
        ["-m", "slow", "tests/test_hosted.py", "-k", "alone and (03 or 12)"],
    )
}


def oldest_pytorch() -> list[str]:
    """The oldest that requirements.txt admits, as pip wants it: torch==2.9.*, ..."""
    text = (CHECKOUT / "requirements.txt").read_text(encoding="utf-8")
    bounds = re.findall(r"^(torch|torchvision)>=(\S+)$", text, re.M)
    return [f"{name}=={version}.*" for name, version in bounds]


def oldest_python() -> Path:
    """A Python with the oldest PyTorch, built in build/ when that changes."""
    python = OLDEST / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    pins, ready = oldest_pytorch(), OLDEST / "ready"
    if not ready.is_file() or ready.read_text() != str(pins):
        venv.create(OLDEST, clear=True, with_pip=True)
        needs = ["-r", "requirements.txt", "-r", "requirements/dev.txt"]
        install = [python, "-m", "pip", "install", "--quiet", *pins, *needs]
        subprocess.run(install, cwd=CHECKOUT, check=True)
        ready.write_text(str(pins))
    return python


def run_suite(name: str) -> dict:
    """Run a suite: how many tests passed, failed and were skipped, and the minutes."""
    whose, arguments = (SUITES | SHARE)[name]
    python = sys.executable if whose == "ours" else oldest_python()
    report = CHECKOUT / "build" / f"{name.replace(' ', '_').replace(',', '')}.xml"
    environment = {
        "FOODVISION_SOURCE": "synthetic",
        "FOODVISION_SIZE": "smoke",
        "VIT_WEIGHTS": "",
        "PYTHONPATH": str(CHECKOUT),
    }
    print(f"== {name}", flush=True)
    report.unlink(missing_ok=True)
    start = time.perf_counter()
    done = subprocess.run(
        [python, "-m", "pytest", "-q", f"--junitxml={report}", *arguments],
        cwd=CHECKOUT,
        env=os.environ | environment,
    )
    minutes = (time.perf_counter() - start) / 60
    if done.returncode not in (0, 1):  # crashed, or no test was found
        sys.exit(f"{name}: pytest ended with {done.returncode}")
    (found,) = ElementTree.parse(report).getroot().iter("testsuite")
    failed = int(found.get("failures")) + int(found.get("errors"))
    skipped = int(found.get("skipped"))
    passed = int(found.get("tests")) - failed - skipped
    return {
        "suite": name,
        "passed": passed,
        "failed": failed,
        "skipped": skipped,
        "minutes": f"{minutes:.1f}",
    }


def main() -> None:
    """Run the suites; exit with 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=SUITES | SHARE, metavar="SUITE")
    only = parser.parse_args().only
    (CHECKOUT / "build").mkdir(exist_ok=True)
    rows = [run_suite(name) for name in only or SUITES]
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    lines += [[str(value) for value in row.values()] for row in rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    print(table)
    if not only:
        git = ["git", "describe", "--always", "--dirty"]
        commit = subprocess.run(git, cwd=CHECKOUT, capture_output=True, text=True)
        page = CHECKOUT / "docs" / "results" / "test_all.md"
        page.write_text(
            "# The last whole run of `make test-all`\n\n"
            f"{time.strftime('%Y-%m-%d')}, commit {commit.stdout.strip()}, "
            f"{os.cpu_count()} cores, {describe_environment()}. "
            f"The oldest PyTorch: {', '.join(oldest_pytorch())}. "
            "Skipped tests say why: `pytest -rs`.\n\n"
            f"{table}\n",
            encoding="utf-8",
        )
    sys.exit(any(row["failed"] for row in rows))


if __name__ == "__main__":
    main()
