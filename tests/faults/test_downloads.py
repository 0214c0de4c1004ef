"""Downloads that fail: the training command, whose images are on a server."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest
from file_server import checksums_of, file_server, zip_of

from faults.command import SMALL, finish, kill, run, start, visible
from faults.mirror import PHOTO, ZIP, fail_first, photos_are, redirect, send_slowly

PATH = f"/{ZIP}"


@pytest.fixture
def place(files, tmp_path):
    """A mirror that has a zip file of the photos, and a command that trains on them."""
    (tmp_path / "photos.sha256").write_text(checksums_of(files))
    with file_server() as server:
        server.files = files
        server.answers = {PATH: zip_of(files), f"/{PHOTO}": b"x"}
        server.data = tmp_path / "data"
        server.data.mkdir()
        server.command = partial(
            run,
            "train",
            *SMALL,
            *("--output", tmp_path / "run"),
            first=partial(photos_are, tmp_path / "photos.sha256"),
            FOODVISION_DATA=str(server.data),
            NO_PROXY="*",
        )
        yield server


@contextmanager
def deaf_port() -> Iterator[str]:
    """An address that no connection gets through to: its queue is full."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        waiting = []
        for _ in range(4):
            waiting.append(socket.socket())
            waiting[-1].setblocking(False)
            waiting[-1].connect_ex(listening.getsockname())
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        for each in waiting:
            each.close()


def unused_port() -> str:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}"


WHAT_TO_DO = r"What to do: put pizza_steak_sushi\.zip and 04-pizza-dad\.jpeg there"

# How the mirror answers, and what the command says
ANSWERS: dict[str, tuple[Callable, str]] = {
    "timeout in mid-body": (lambda files: (zip_of(files), "stall"), "No answer in time"),
    "301 in a circle": (lambda files: redirect, "redirects without an end"),
    "403": (lambda files: 403, "reports: 403"),
    "404, a mirror without the file": (lambda files: 404, "reports: 404"),
    "500, each time": (lambda files: 500, "reports: 500"),
    "a length that is too large": (
        lambda files: (zip_of(files), 10**6),
        "Only .* of 1000000 bytes arrived|connection broke off",
    ),
    "a length that is too small": (lambda files: (zip_of(files), 1000), "not a complete zip file"),
    "a truncated file": (lambda files: zip_of(files)[:-200], "not a complete zip file"),
    "HTML instead of a zip file": (
        lambda files: b"<!DOCTYPE html><title>Log in</title>",
        "it is a web page, perhaps that of a network that wants you to log in",
    ),
    "a wrong hash": (
        lambda files: zip_of({**files, "test/red/0.png": b"other"}),
        r"not the expected data: 1 file .* The first is test/red/0\.png",
    ),
}


@pytest.mark.parametrize("fault", ANSWERS)
def test_a_mirror(place, fault, record):
    answer, words = ANSWERS[fault]
    good = place.answers[PATH]
    place.answers[PATH] = answer(place.files)
    said = place.command(FOODVISION_SOURCE=place.url)
    record(said.error(f"{words}.*{WHAT_TO_DO}"))
    assert not visible(place.data)
    place.answers[PATH] = good
    place.command(FOODVISION_SOURCE=place.url).success("test accuracy")


NO_ANSWER: dict[str, tuple[Callable, str]] = {
    "connection refused": (unused_port, "connection failed for .*: Connection refused"),
    "DNS failure": (lambda: "http://no-such-host.invalid", "connection failed for .*: "),
    "a folder without the file": (lambda: "/nowhere", r"There is no file /nowhere/pizza.*\.zip"),
}


@pytest.mark.parametrize("fault", NO_ANSWER)
def test_no_answer(place, fault, record):
    address, words = NO_ANSWER[fault]
    said = place.command(FOODVISION_SOURCE=address())
    record(said.error(f"{words}.*{WHAT_TO_DO}"))
    assert not visible(place.data)
    place.command(FOODVISION_SOURCE=place.url).success("test accuracy")


def test_timeout_at_connect(place, record):
    with deaf_port() as address:
        began = time.monotonic()
        said = place.command(FOODVISION_SOURCE=address)
        assert time.monotonic() - began < 15
    record(said.error(f"No answer in time.*{WHAT_TO_DO}"))
    assert not visible(place.data)
    place.command(FOODVISION_SOURCE=place.url).success("test accuracy")


def test_500_and_then_success(place, record):
    place.answers[PATH] = partial(fail_first, status=500, content=zip_of(place.files))
    said = place.command(FOODVISION_SOURCE=place.url)
    said.success("test accuracy")
    record(said.success(r"The server reports: 500 .* Trying again in 1 s\."))
    assert place.asked.count(PATH) == 3


def test_going_on_after_a_kill(place, tmp_path, record):
    good = place.answers[PATH]
    place.answers[PATH] = (zip_of(place.files), "stall")
    log = tmp_path / "log"
    killed = start(
        "train",
        place.command.args[1:],
        log=log,
        FOODVISION_SOURCE=place.url,
        **place.command.keywords,
    )
    while not list(place.data.glob(".unfinished-*/*")):
        assert killed.is_alive()
        time.sleep(0.05)
    kill(killed)
    assert [name for name in visible(place.data) if not name.startswith(".unfinished-")] == []
    place.answers[PATH] = good
    record(place.command(FOODVISION_SOURCE=place.url).success("test accuracy"))
    assert not list(place.data.glob(".unfinished-*"))


def test_two_processes_at_once(place, tmp_path, record):
    place.answers[PATH] = partial(send_slowly, content=zip_of(place.files))
    logs = [tmp_path / "first", tmp_path / "second"]
    processes = [
        start(
            "train",
            [*place.command.args[1:], "--output", tmp_path / f"run of {log.name}"],
            log=log,
            FOODVISION_SOURCE=place.url,
            **place.command.keywords,
        )
        for log in logs
    ]
    both = [finish(process, log) for process, log in zip(processes, logs, strict=True)]
    lines = {said.success("test accuracy").split(" ·")[0] for said in both}
    assert len(lines) == 1 and place.asked.count(PATH) == 1
    waited = "Another process is downloading pizza_steak_sushi: waiting for it."
    assert sum(waited in said.out for said in both) == 1
    record(waited)
