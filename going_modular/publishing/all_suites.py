"""Run all suites of tests, one after the other: `make test-all`.

Their results go to docs/results: test_all.md, coverage.md and faults.md. With `--only` some
suites run, and the pages stay as they are; with `--keep` as well, the rows of these suites
are new and all others stay, so that a long run can be had in parts.

A suite runs in this environment, in one with the oldest PyTorch, or in one of another
Python. build/ holds the environments of other Pythons; the variable TEST_ENVIRONMENTS
may list folders of ready ones, separated as in PATH.
"""

import argparse
import functools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from going_modular.utils import (
    describe_environment,
    errors_in_one_line,
    project_path,
    require_checkout,
)

BUILD, RESULTS = project_path("build"), project_path("docs/results")
COVERAGE = BUILD / "coverage.json"
SLOW_TOO = ["-m", "slow or not slow"]
# In as many processes as there are cores; a notebook's cells stay in one
SIDE_BY_SIDE = ["-n", "logical", "--maxprocesses", "4", "--dist"]
UNIT_TESTS = [*SIDE_BY_SIDE, "worksteal"]
NBVAL = [*SIDE_BY_SIDE, "loadfile", "--nbval-lax", "-p", "no:warnings"]
# Without pytest's own filters, this one of pyproject.toml has to be told to Python
EXPECTED_WARNING = "ignore:Unable to enable fault handler:UserWarning"
WITH_COVERAGE = ["--cov", "--cov-report=", f"--cov-report=json:{COVERAGE}"]
LEAST_COVERED = 10  # files on the page
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
OTHER_PYTHONS = [each for each in PYTHONS if each != f"3.{sys.version_info.minor}"]
FIRST_NOTEBOOKS = [f"notebooks/0{number}_*.ipynb" for number in range(5)]

# pytest's arguments by suite; a * stands for the files that fit
SUITES = {
    "unit tests, oldest PyTorch": [*UNIT_TESTS, "tests"],
    "the series under nbval, oldest PyTorch": [*NBVAL, "notebooks"],
    "unit tests": [*UNIT_TESTS, *WITH_COVERAGE, "tests"],
    "the series under nbval": [*NBVAL, "notebooks"],
    "solutions under nbval": [*NBVAL, "notebooks/solutions"],
    "large ViTs of three libraries": ["-m", "slow", "tests/test_peers.py"],
    "exercises, slow": [*UNIT_TESTS, "-m", "slow", "tests/test_exercises.py"],
    "long notebooks": [*UNIT_TESTS, "-m", "slow", "tests/test_notebooks.py"],
    "links to other hosts": ["-m", "slow", "tests/test_texts.py"],
    "book and demo in a browser": [*SLOW_TOO, "tests/test_book.py", "tests/test_demo.py"],
    "the package as a wheel": ["-m", "slow", "tests/test_wheel.py"],
    "all notebooks alone": ["-m", "slow", "tests/test_hosted.py"],
    "faults": ["-m", "slow", "tests/faults"],
}
SUITES |= {f"Python {version}": [*NBVAL, "tests", *FIRST_NOTEBOOKS] for version in OTHER_PYTHONS}
TYPES = "types, by file"  # runs mypy instead of pytest

# A part of the above, for .ci/run
PARTS = {
    "two notebooks alone": [
        *UNIT_TESTS,
        "-m",
        "slow",
        "tests/test_hosted.py",
        "-k",
        "alone and (03 or 12)",
    ]
}


@functools.cache
def this_run() -> str:
    """The day and the commit of a run, when it began."""
    git = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(git, cwd=project_path(""), capture_output=True, text=True)
    return f"{time.strftime('%Y-%m-%d')}, {commit.stdout.strip()}"


@dataclass
class Row:
    """The result of a suite: a row of the page."""

    suite: str
    passed: int
    failed: int
    skipped: int
    minutes: float
    run: str = field(default_factory=this_run)

    def __str__(self) -> str:
        counts = f"{self.passed} | {self.failed} | {self.skipped}"
        return f"| {self.suite} | {counts} | {self.minutes:.1f} | {self.run} |"


def python_of(environment: Path) -> Path:
    """The interpreter of a virtual environment."""
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def version_of(python: str | Path) -> str:
    """The version of an interpreter, "3.12" for example; "" if it does not start."""
    program = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        answer = subprocess.run([python, "-c", program], capture_output=True, text=True)
    except OSError:
        return ""
    return answer.stdout.strip()


def oldest_pytorch() -> list[str]:
    """The oldest PyTorch of requirements.txt, as pip wants it: torch==2.9.*, ..."""
    text = project_path("requirements.txt").read_text(encoding="utf-8")
    bounds = re.findall(r"^(torch|torchvision)>=(\S+)$", text, re.M)
    return [f"{name}=={version}.*" for name, version in bounds]


def find_python(version: str) -> Path | str | None:
    """An interpreter of a version: python3.12 on the PATH, or one of pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or "~/.pyenv").expanduser()
    candidates: list[Path | str] = [f"python{version}"]
    candidates += pyenv.glob(f"versions/{version}.*/bin/python")
    return next((each for each in candidates if version_of(each) == version), None)


def build_environment(folder: Path, python: Path | str, pins: list[str]) -> Path:
    """An environment with all that the tests need. It is built anew if this changes."""
    files = ["requirements.txt", "requirements/dev.txt"]
    needs = str([pins, *(project_path(name).read_text(encoding="utf-8") for name in files)])
    ready = folder / "ready"
    if not ready.is_file() or ready.read_text(encoding="utf-8") != needs:
        subprocess.run([python, "-m", "venv", "--clear", folder], check=True)
        install = ["-m", "pip", "install", "--quiet", *pins]
        for name in files:
            install += ["--requirement", str(project_path(name))]
        subprocess.run([python_of(folder), *install], check=True)
        ready.write_text(needs, encoding="utf-8")
    return python_of(folder)


def interpreter_for(suite: str) -> Path | str | None:
    """The interpreter that runs a suite; None if this machine has none."""
    if suite.endswith("oldest PyTorch"):
        return build_environment(BUILD / "oldest", sys.executable, oldest_pytorch())
    if not suite.startswith("Python "):
        return sys.executable
    version = suite.removeprefix("Python ")
    for folder in os.environ.get("TEST_ENVIRONMENTS", "").split(os.pathsep):
        if folder and version_of(python_of(Path(folder))) == version:
            return python_of(Path(folder))
    if python := find_python(version):
        return build_environment(BUILD / f"python-{version}", python, [])
    return None


def count_files(output: str) -> tuple[int, int]:
    """(files without errors, files with errors) in mypy's output.

    Raises:
        ValueError: if it names no number of files, as when mypy did not run.
    """
    checked = re.search(r"(\d+) source files?", output)
    if not checked:
        raise ValueError(f"mypy has checked no files: {output}")
    failed = len(set(re.findall(r"^(\S+?):\d+: error:", output, re.M)))
    return int(checked[1]) - failed, failed


def run_types() -> Row:
    """Check types with mypy. The row counts files."""
    print(f"== {TYPES}", flush=True)
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "mypy"], cwd=project_path(""), capture_output=True, text=True
    )
    print(done.stdout + done.stderr, flush=True)
    minutes = (time.perf_counter() - start) / 60
    passed, failed = count_files(done.stdout + done.stderr)
    return Row(TYPES, passed, failed, 0, minutes)


def report_of(suite: str) -> Path:
    """The file for pytest's report on a suite."""
    return BUILD / f"{suite.replace(' ', '_').replace(',', '')}.xml"


def run_suite(suite: str) -> Row | None:
    """Run a suite; None, and a line, if this machine has no interpreter for it.

    Raises:
        RuntimeError: if pytest crashed, or found no test.
        ValueError: see `count_files`.
        OSError, CalledProcessError: if the interpreter, pip or pytest cannot be run.
    """
    if suite == TYPES:
        return run_types()
    python = interpreter_for(suite)
    if python is None:
        print(f"== {suite}: skipped, this machine has no such interpreter", flush=True)
        return None
    report = report_of(suite)
    environment = {
        "FOODVISION_SOURCE": "synthetic",
        "FOODVISION_SIZE": "smoke",
        "FOODVISION_PRECISION": "float32",
        "VIT_WEIGHTS": "",
        "PYTHONPATH": str(project_path("")),
        "PYTHONWARNINGS": EXPECTED_WARNING,
    }
    if "-n" in (SUITES | PARTS)[suite]:
        environment["OMP_NUM_THREADS"] = "1"  # for each process
    arguments = []
    for argument in (SUITES | PARTS)[suite]:
        paths = project_path("").glob(argument) if "*" in argument else [argument]
        arguments += sorted(map(str, paths))
    print(f"== {suite}", flush=True)
    report.unlink(missing_ok=True)
    start = time.perf_counter()
    done = subprocess.run(
        [python, "-m", "pytest", "-q", f"--junitxml={report}", *arguments],
        cwd=project_path(""),
        env=os.environ | environment,
    )
    minutes = (time.perf_counter() - start) / 60
    if done.returncode not in (0, 1):
        raise RuntimeError(f"pytest ended with {done.returncode}")
    (found,) = ElementTree.parse(report).getroot().iter("testsuite")
    count = {name: int(value) for name, value in found.items() if value.isdigit()}
    failed = count["failures"] + count["errors"]
    passed = count["tests"] - failed - count["skipped"]
    return Row(suite, passed, failed, count["skipped"], minutes)


def row_of(suite: str) -> Row | None:
    """What `run_suite` gives. If the suite cannot be run, one failure, and a line why."""
    start = time.perf_counter()
    try:
        return run_suite(suite)
    except (RuntimeError, ValueError, OSError, subprocess.CalledProcessError) as error:
        print(f"== {suite}: not finished, {error}", flush=True)
        return Row(suite, passed=0, failed=1, skipped=0, minutes=(time.perf_counter() - start) / 60)


def table_of(rows: Iterable[Row | str]) -> str:
    """The results as a table in Markdown."""
    columns = ("suite", "passed", "failed", "skipped", "minutes", "day and commit")
    head = f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}"
    return "\n".join([head, *map(str, rows)])


def rows_on_the_page() -> dict[str, str]:
    """The rows that an earlier run has written, by suite."""
    page = RESULTS / "test_all.md"
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    row = r"^(\| (.+?) (?:\| \d+ ){3}\| [\d.]+ \| [^|]+ \|)$"
    return {found[2]: found[1] for found in re.finditer(row, text, re.M)}


def coverage_page(report: dict) -> str:
    """What pytest-cov's JSON report says of the package, in Markdown."""
    files = {name.replace("\\", "/"): each["summary"] for name, each in report["files"].items()}
    least = sorted(files.items(), key=lambda item: item[1]["percent_covered"])[:LEAST_COVERED]
    rows = [
        f"| {name} | {summary['missing_lines']} of {summary['num_statements']} "
        f"| {summary['percent_covered']:.0f}% |"
        for name, summary in least
    ]
    totals = report["totals"]
    return (
        "# Lines that the unit tests run\n\n"
        f"{totals['percent_covered']:.1f}% of {totals['num_statements']} statements in "
        f"{len(files)} files. Slow tests and notebooks run others besides. "
        f"The {len(least)} files with the smallest share:\n\n"
        "| file | statements not run | share run |\n| --- | --- | --- |\n" + "\n".join(rows) + "\n"
    )


def faults_page(report: Path, run: str) -> str:
    """What pytest's report on tests/faults says of each fault, in Markdown."""
    lines, kind = [], ""
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        found = {each.get("name"): each.get("value", "") for each in case.iter("property")}
        fault, said = found.get("fault", case.get("name")), found.get("said", "")
        if case.find("failure") is not None or case.find("error") is not None:
            said = "**failed**"
        elif (skipped := case.find("skipped")) is not None:
            said = f"not run: {skipped.get('message')}"
        if kind != (kind := case.get("classname", "").rpartition(".test_")[2]):
            lines += [f"\n## {kind.capitalize()}\n", "| fault | result | seconds |"]
            lines += ["| --- | --- | --- |"]
        said = said.replace("|", "\\|").replace("<", "&lt;")
        lines.append(f"| {fault} | {said} | {float(case.get('time', 0)):.1f} |")
    return (
        "# Faults\n\n"
        "Each row is something that goes wrong, which a test in `tests/faults` makes happen. The "
        "result is what the command, the page or the test says then. The test also checks that "
        "nothing is lost or half-written, and that the next run works. `…` stands for a folder.\n\n"
        f"Measured on {run}, {os.cpu_count()} cores, by `python -m "
        "going_modular.publishing.all_suites --keep --only faults`.\n" + "\n".join(lines) + "\n"
    )


def write_pages(rows: list[Row], not_run: list[str]) -> None:
    """Write results into docs/results; suites that did not run keep their rows.

    The page of coverage stays as it is if the unit tests have measured none.
    """
    skipped = f"Not run, for want of an interpreter: {', '.join(not_run)}. " if not_run else ""
    known = rows_on_the_page() | {row.suite: str(row) for row in rows}
    in_order = [known[suite] for suite in (*SUITES, TYPES) if suite in known]
    (RESULTS / "test_all.md").write_text(
        "# The last results of `make test-all`\n\n"
        f"{os.cpu_count()} cores, {describe_environment()}. "
        f"The oldest PyTorch: {', '.join(oldest_pytorch())}. {skipped}"
        "The other Pythons run the unit tests and notebooks 00 to 04. "
        "Skipped tests say why: `pytest -rs`.\n\n"
        f"{table_of(in_order)}\n",
        encoding="utf-8",
    )
    if COVERAGE.is_file():
        report = json.loads(COVERAGE.read_text(encoding="utf-8"))
        (RESULTS / "coverage.md").write_text(coverage_page(report), encoding="utf-8")
    for row in rows:
        if row.suite == "faults" and report_of(row.suite).is_file():
            page = faults_page(report_of(row.suite), row.run)
            (RESULTS / "faults.md").write_text(page, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the suites; exit with 1 if anything failed."""
    parser = argparse.ArgumentParser(
        "python -m going_modular.publishing.all_suites", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--only", nargs="*", choices=[*SUITES, TYPES, *PARTS], metavar="SUITE")
    parser.add_argument("--keep", action="store_true", help="write their rows to the page")
    options = parser.parse_args(arguments)
    only, keep = options.only, options.keep or not options.only
    with errors_in_one_line(parser.prog):
        require_checkout()
        BUILD.mkdir(exist_ok=True)
        if keep:
            COVERAGE.unlink(missing_ok=True)  # an older run's must not reach the page
        this_run()  # for all rows: the pages that we write would make the commit "-dirty" later
        rows, not_run = [], []
        for suite in only or [*SUITES, TYPES]:
            if row := row_of(suite):
                rows.append(row)
            else:
                not_run.append(suite)
            if keep:  # now, so that a run that is stopped keeps what it has
                write_pages(rows, not_run)
        print(table_of(rows))
    sys.exit(any(row.failed for row in rows))


if __name__ == "__main__":
    main()
