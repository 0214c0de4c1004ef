"""Run a command in a process of its own, in a place whose files can be compared."""

import contextlib
import hashlib
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
import torch

from going_modular import predictions, train
from going_modular.utils import CHECKOUT

COMMANDS = {"train": train.main, "predictions": predictions.main}
SMALL = "--image-size 24 --batch-size 4 --epochs 2 --warmup-steps 0 --mixup 0".split()
LONGEST = 60  # seconds that a command may take


@dataclass
class Said:
    """How a command ended: its exit status, or minus the signal's number, and its words."""

    status: int
    out: str
    err: str

    def error(self, words: str) -> str:
        """The only line on the error stream, which must fit the pattern `words`."""
        assert self.status == 2 and "Traceback" not in self.err, self
        (line,) = self.err.splitlines()
        program, message = line.split(": error: ", 1)
        assert program.startswith("python -m going_modular.")
        assert re.search(words, message), message
        return message

    def success(self, words: str = "") -> str:
        """The line of its output that fits the pattern `words`; it must have ended well."""
        assert self.status == 0 and not self.err, self
        return next(line for line in self.out.splitlines() if re.search(words, line))


def start(
    command: str,
    arguments: Sequence[object],
    *,
    log: Path,
    first: Callable[[], object] | None = None,
    **environment: str,
) -> ForkServerProcess:
    """Start a command in a new process, which has imported everything already.

    Args:
        log: its words go to the files `log`.out and `log`.err.
        first: what the process does before, to break something; a function of a module.
        environment: variables.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["going_modular.train", "going_modular.predictions"])
    words = list(map(str, arguments))
    process = context.Process(target=live, args=(command, words, log, first, environment))
    process.start()
    return process


def live(
    command: str,
    arguments: list[str],
    log: Path,
    first: Callable[[], object] | None,
    environment: dict[str, str],
) -> None:
    """The life of the process that `start` has started."""
    for number, ending in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(f"{log}{ending}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = (open(n, "w", buffering=1, closefd=False) for n in (1, 2))
    os.environ |= environment
    multiprocessing.set_start_method("fork", force=True)  # of workers, as in any program
    torch.set_num_threads(1)  # each of several processes would use all cores
    if first is not None:
        first()
    COMMANDS[command](arguments)


def finish(process: ForkServerProcess, log: Path) -> Said:
    """What a process said, once it has ended; one that hangs is a failure."""
    process.join(LONGEST)
    hangs = process.is_alive()
    process.kill()
    process.join()
    out, err = (Path(f"{log}{end}").read_text(errors="replace") for end in (".out", ".err"))
    assert not hangs, f"after {LONGEST} seconds it has said {out}{err}"
    return Said(process.exitcode, out, err)


def run(
    command: str, *arguments: object, first: Callable[[], object] | None = None, **environment: str
) -> Said:
    """Run a command to its end; see `start`."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        process = start(command, arguments, log=log, first=first, **environment)
        return finish(process, log)


def run_without_privileges(command: str, *arguments: object) -> Said:
    """Run a command as a user whom file permissions bind, even where we are root."""
    words = [sys.executable, "-m", f"going_modular.{command}", *map(str, arguments)]
    if os.geteuid() == 0:
        assert shutil.which("setpriv"), "this row needs setpriv, of util-linux, or a plain user"
        dropped = "-dac_override,-dac_read_search"
        words = ["setpriv", f"--bounding-set={dropped}", f"--inh-caps={dropped}", *words]
    done = subprocess.run(words, cwd=CHECKOUT, capture_output=True, text=True, timeout=LONGEST)
    return Said(done.returncode, done.stdout, done.stderr)


def training(photos: Path, run: Callable[..., Said] = run) -> Said:
    """Train on the photos, as a user whom `run` chooses; the output is in a folder beside them."""
    return run("train", "--data", photos, "--output", photos.parent / "run", *SMALL)


def contents(folder: Path) -> dict[str, str]:
    """A hash of each file in a folder and below, hidden ones too, by its path."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def visible(folder: Path) -> list[str]:
    """The paths of what is in a folder and below, without the empty files of locks."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix != ".lock")
    return [path.relative_to(folder).as_posix() for path in paths]


def cut(path: Path) -> None:
    """Leave the first half of a file."""
    os.truncate(path, path.stat().st_size // 2)


def failing_in_second_save(fail: Callable[[], object]) -> Callable:
    """A `torch.save` whose second file is half on the disk when it fails."""
    plain, saved = torch.save, []

    def save(state, path):
        saved.append(path)
        plain(state, path)
        if len(saved) == 2:
            cut(path)
            fail()

    return save


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Callable[[int], None]]:
    """Make a folder a disk of its own, of so many bytes; yields what gives it another size."""
    folder.mkdir()

    def mount(size: int, *options: str) -> None:
        options = ",".join([f"size={size}", *options])
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], check=True)

    try:
        mount(size)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("only root may mount a small disk; test_train limits the size of a file")
    try:
        yield lambda size: mount(size, "remount")
    finally:
        subprocess.run(["umount", folder], check=True)


def kill(process: ForkServerProcess) -> None:
    """As `kill -9` does it: the process cannot react."""
    os.kill(process.pid, signal.SIGKILL)
    process.join()
