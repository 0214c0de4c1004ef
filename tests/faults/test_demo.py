"""The demo, asked as a browser asks it: thousands of times, and for what it refuses."""

import io
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import pytest
import requests
from PIL import Image
from tiny_vit import tiny_vit

from going_modular.drawings.synthetic_food import draw
from going_modular.images.transforms import evaluation_transform
from going_modular.predictions import predict_image
from going_modular.publishing import demo
from going_modular.utils import CHECKOUT
from going_modular.vit.files import write_vit

pytest.importorskip("gradio")

NAMES = ["a", "b", "c", "d", "e"]  # the classes
# glibc gives back each large block as soon as it is free, so that the memory of the process
# is what it holds. By default the gaps between its blocks grew by 65 MB in 750 predictions,
# and what it held by 3 MB. Other systems ignore this.
GIVE_BACK = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
MB = 10**6


@contextmanager
def heeding_ctrl_C() -> Iterator[None]:
    """Processes that start now do not ignore Ctrl-C.

    A shell lets what it starts in the background ignore it, and so do the children of that.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Server:
    """The demo in a process of its own, which keeps its photos in a folder below `home`."""

    def __init__(self, home: Path):
        self.home, self.errors = home, home / "errors"
        self.vit = tiny_vit()
        weights = write_vit(self.vit, home / "vit.safetensors", class_names=NAMES)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        self.url = f"http://127.0.0.1:{port}/"
        command = [sys.executable, "-m", "going_modular.publishing.demo", "--weights", str(weights)]
        with self.errors.open("wb") as errors, heeding_ctrl_C():
            self.process = subprocess.Popen(
                [*command, "--port", port],
                cwd=CHECKOUT,
                env={**os.environ, **GIVE_BACK, "TMPDIR": str(home), "NO_PROXY": "*"},
                stdout=subprocess.PIPE,
                stderr=errors,
            )

    def wait(self) -> None:
        """Wait until it says its address."""
        said = self.process.stdout.readline().decode()
        assert self.url in said, (said, self.errors.read_text())
        (self.folder,) = self.home.glob("demo-*")

    def prediction(self, photo: bytes) -> dict[str, float]:
        """The probabilities that the page should show for a photo."""
        with Image.open(io.BytesIO(photo)) as picture:
            transform = evaluation_transform(32)
            return predict_image(self.vit, picture, NAMES, transform, "cpu").probabilities

    def stop(self, by: signal.Signals) -> None:
        """It must end without a complaint, and delete the photos."""
        self.process.send_signal(by)
        self.process.communicate(timeout=60)
        assert self.process.returncode == 0 and self.errors.read_text() == ""
        assert not self.folder.exists()


@contextmanager
def running(home: Path, stop: signal.Signals = signal.SIGINT) -> Iterator[Server]:
    """A server that is stopped by a signal, that of Ctrl-C by default."""
    server = Server(home)
    try:
        server.wait()
        yield server
        server.stop(stop)
    finally:
        server.process.kill()
        server.process.communicate()


class Tab:
    """A page that is open in a browser: what the browser asks the server for it."""

    def __init__(self, server: Server):
        self.server, self.name = server, secrets.token_hex(6)
        self.http = requests.Session()
        self.http.trust_env = False  # no proxy
        assert self.get("").status_code == 200
        events = self.get("config").json()["dependencies"]
        self.events = {each["api_name"]: each["id"] for each in events}
        self.alive = self.get(f"gradio_api/heartbeat/{self.name}", stream=True)

    def get(self, path: str, **options) -> requests.Response:
        return self.http.get(self.server.url + path, timeout=60, **options)

    def post(self, path: str, **options) -> requests.Response:
        return self.http.post(f"{self.server.url}gradio_api/{path}", timeout=60, **options)

    def upload(self, photo: bytes, name: str = "photo.png") -> requests.Response:
        return self.post("upload", files={"files": (name, photo)})

    def ask(self, event: str, *data: object) -> dict:
        """What the server answers to an event of the page, which sends some data."""
        body = {"fn_index": self.events[event], "session_hash": self.name, "data": data}
        number = self.post("queue/join", json=body).json()["event_id"]
        messages = self.get(f"gradio_api/queue/data?session_hash={self.name}", stream=True)
        answer = None
        for line in messages.iter_lines():  # until the server closes the stream
            message = json.loads(line.removeprefix(b"data: ") or "{}")
            if message.get("msg") == "process_completed" and message["event_id"] == number:
                answer = message
        assert answer, "the stream has ended without an answer"
        return answer

    def answer(self, event: str, *data: object) -> list:
        """What the page shows after an event: a value for each of its parts."""
        answer = self.ask(event, *data)
        assert answer["success"], answer
        return answer["output"]["data"]

    def error(self, event: str, *data: object) -> str:
        """The error that the page shows after an event."""
        answer = self.ask(event, *data)
        assert not answer["success"], answer
        return answer["output"]["error"] or ""

    def show(self, photo: bytes, name: str = "photo.png", layer: int = 0, head: int = 0) -> list:
        (path,) = self.upload(photo, name).json()
        return self.answer("show", as_file(path), layer, head)

    def check_prediction(self, photo: bytes, *name: str, **chosen: int) -> None:
        """The page must show what the model says of a photo, and the server send the pictures."""
        copy, message, _, probabilities, _, _, attention, patches = self.show(
            photo, *name, **chosen
        )
        assert message == ""
        shown = {each["label"]: each["confidence"] for each in probabilities["confidences"]}
        assert shown == pytest.approx(self.server.prediction(photo), abs=1e-5)
        for picture in (copy, attention, patches):
            self.check_picture(picture)

    def check_picture(self, picture: dict) -> None:
        answer = self.http.get(picture["url"], timeout=60)
        assert answer.status_code == 200
        with Image.open(io.BytesIO(answer.content)) as opened:
            opened.verify()

    def close(self) -> None:
        self.alive.close()
        self.http.close()


@contextmanager
def open_tab(server: Server) -> Iterator[Tab]:
    tab = Tab(server)
    try:
        yield tab
    finally:
        tab.close()


def as_file(path: object) -> dict:
    """How the page names a file to the server."""
    return {"path": str(path), "meta": {"_type": "gradio.FileData"}}


def encoded(picture: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, compress_level=1)  # a PNG takes less time
    return file.getvalue()


# A soak

PREDICTIONS = int(os.environ.get("SOAK_PREDICTIONS", "2000"))
IN_A_TAB = 5  # predictions, before the page is closed and opened again
SIZES = [(64, 48), (384, 384), (480, 640), (200, 1600), (800, 600), (1200, 900)]
KINDS = ["JPEG", "PNG", "WEBP", "TIFF", "BMP"]
GROWTH = 20  # MB, at most; see `test_soak`


def photo_number(i: int) -> tuple[bytes, str]:
    """A photo and its name. No two have the same pixels; sizes and kinds take turns."""
    rng = np.random.default_rng(i)
    spots = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    size, kind = SIZES[i % len(SIZES)], KINDS[i % len(KINDS)]
    return encoded(spots.resize(size, Image.Resampling.BICUBIC), kind), f"photo.{kind.lower()}"


class Use(NamedTuple):
    """What the server uses after some predictions; memory and disk in MB."""

    predictions: int
    memory: float
    open_files: int
    threads: int
    files: int
    folders: int
    disk: float


def use_of(server: Server, predictions: int) -> Use:
    process = psutil.Process(server.process.pid)
    memory, handles = process.memory_info().rss / MB, process.num_fds()
    paths = list(server.folder.rglob("*"))
    sizes = [path.stat().st_size for path in paths if path.is_file()]
    folders, disk = len(paths) - len(sizes), sum(sizes) / MB
    return Use(predictions, memory, handles, process.num_threads(), len(sizes), folders, disk)


def test_soak(tmp_path, record):
    """After a first part the server must not grow, in memory or on the disk.

    In the last 1,500 of 2,000 predictions its memory went from 918 to 924 MB. Before it forgot
    old pages and files, each page left 5 MB in memory, and each prediction 0.9 MB on the disk.
    This was 120 MB of memory in the last 150 of 200 predictions.
    """
    began = time.monotonic()
    with running(tmp_path) as server:
        uses = [use_of(server, 0)]
        while uses[-1].predictions < PREDICTIONS:
            done = uses[-1].predictions
            with open_tab(server) as tab:
                for i in range(done, done + IN_A_TAB):
                    tab.check_prediction(*photo_number(i), layer=i % 3, head=i % 4)
                tab.check_picture(tab.answer("light", None, 1, 2)[0])
            uses.append(use_of(server, done + IN_A_TAB))
    seconds = time.monotonic() - began
    first = [use for use in uses if use.predictions <= min(500, PREDICTIONS // 4)]
    rest = uses[len(first) :]
    before, end = first[-1], rest[-1]
    record(
        f"{PREDICTIONS:,} predictions in {seconds:.0f} s; memory {before.memory:,.0f} MB after "
        f"{before.predictions}, {end.memory:,.0f} MB at the end; {end.open_files} open files, "
        f"{end.threads} threads, {end.files} files of {end.disk:.0f} MB on the disk"
    )
    numbers, memory = np.array([use[:2] for use in rest]).T
    rise = np.polyfit(numbers, memory, deg=1)[0] * (end.predictions - before.predictions)
    assert rise < GROWTH, uses
    most, most_before = (Use(*np.max(part, axis=0)) for part in (rest, first))
    assert most.open_files <= most_before.open_files + 5, uses
    assert most.threads <= most_before.threads + 5, uses
    # Between two requests that delete, an answer brings three pictures
    assert most.files <= uses[0].files + demo.FILES + 3 and most.folders <= most.files, uses


# What does not belong


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def tab(server):
    """An open page. After the test the server must answer it, and not have complained."""
    before = server.errors.read_text()
    with open_tab(server) as tab:
        yield tab
        tab.check_prediction(encoded(draw("pizza", np.random.default_rng(0), size=96)))
    assert server.errors.read_text() == before


def half_of_a_jpeg() -> bytes:
    photo = encoded(draw("steak", np.random.default_rng(0), size=200), "JPEG")
    return photo[: len(photo) // 2]


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"/>'
NO_PICTURE = "This file cannot be read as a picture"
PHOTOS = {
    "a text that is called .jpg": ("photo.jpg", lambda: b"This is a text.\n", NO_PICTURE),
    "an empty file": ("photo.png", bytes, NO_PICTURE),
    "an SVG": ("photo.svg", lambda: SVG, NO_PICTURE),
    "half of a JPEG": ("photo.jpg", half_of_a_jpeg, NO_PICTURE),
    "20,000 × 20,000 pixels": (
        "photo.png",
        lambda: encoded(Image.new("1", (20_000, 20_000))),
        "it has too many pixels",
    ),
    "20 × 30 pixels": (
        "photo.png",
        lambda: encoded(Image.new("RGB", (20, 30))),
        "This picture has 20 × 30 pixels",
    ),
    "500 × 40 pixels": (
        "photo.png",
        lambda: encoded(Image.new("RGB", (500, 40))),
        "This picture has 500 × 40 pixels",
    ),
}


@pytest.mark.parametrize("photo", PHOTOS)
def test_a_photo(tab, photo, record):
    name, make, words = PHOTOS[photo]
    copy, message, verdict, _, pictures, *_ = tab.show(make(), name)
    assert words in message and copy is None
    assert not verdict["visible"] and not pictures["visible"]
    record(message.strip("*"))


def test_a_photo_after_one_was_removed(tab, record):
    """The page sends this when a photo is removed; the fixture uploads another one then."""
    copy, message, verdict, *_ = tab.answer("show", None, 0, 0)
    assert copy is None and message == "" and not verdict["visible"]
    record("its prediction")


def test_a_file_over_10_MB(tab, record):
    files = set(tab.server.home.rglob("*"))
    answer = tab.upload(bytes(10 * 2**20 + 1))
    assert answer.status_code == 413 and set(tab.server.home.rglob("*")) == files
    record(f"413: {answer.text}")


NAMES_OF_FILES = {
    "a photo called ../../photo.png": "../../photo.png",
    r"a photo called ..\..\photo.png": r"..\..\photo.png",
    "a photo called /photo.png": "/photo.png",
    "a photo called ..": "..",
    "a photo without a name": "",
}


@pytest.mark.parametrize("row", NAMES_OF_FILES)
def test_a_name(tab, row, record):
    """Whatever a photo is called, it must not land outside the folder of the photos."""
    before = outside(tab.server)
    answer = tab.upload(encoded(Image.new("RGB", (64, 64))), NAMES_OF_FILES[row])
    assert outside(tab.server) == before
    if answer.status_code == 400:
        record(f"400: {answer.json()['detail']}")
    else:
        (path,) = map(Path, answer.json())
        assert path.is_file() and tab.server.folder in path.resolve().parents
        record("a file in the folder of the photos")


def outside(server: Server) -> set[Path]:
    return {path for path in server.home.rglob("*") if server.folder not in path.parents}


ROUTES = {
    "a file that is not served": ("gradio_api/file={home}/vit.safetensors", 403),
    "a way out of the folder": ("gradio_api/file={folder}/%2e%2e/vit.safetensors", 403),
    "the folder itself": ("gradio_api/file={folder}", 403),
    "another server's file": ("gradio_api/file={url}config", 403),
    "another server's page": ("gradio_api/proxy={url}config", 403),
    "an unknown route": ("no/such/page", 404),
    "an unknown route of the API": ("gradio_api/no/such/page", 404),
}


@pytest.mark.parametrize("route", ROUTES)
def test_a_request_for(tab, route, record):
    path, status = ROUTES[route]
    server = tab.server
    answer = tab.get(path.format(home=server.home, folder=server.folder, url=server.url))
    assert answer.status_code == status
    words = answer.json()["detail"].replace(str(server.folder), "…/folder")
    record(f"{status}: {words.replace(str(server.home), '…')}")


NUMBERS = {
    "a layer that does not exist": (3, 0),
    "a head that does not exist": (1, 4),
    "a layer below zero": (-1, 0),
    "a layer between two": (1.5, 0),
    "a layer in letters": ("1", 0),
    "a list of heads": (1, [2]),
    "no layer": (None, 0),
}


@pytest.mark.parametrize("row", NUMBERS)
def test_numbers(tab, row, record):
    photo = encoded(draw("sushi", np.random.default_rng(0), size=96))
    tab.show(photo)  # `light` needs one
    (path,) = tab.upload(photo).json()
    messages = {tab.error("show", as_file(path), *NUMBERS[row])}
    messages.add(tab.error("light", None, *NUMBERS[row]))
    (message,) = messages
    assert re.search("There is no such layer or head|is not in the list of choices", message)
    record(message)


NOT_OF_THE_PAGE = "This request does not fit the page"
EVENTS = {
    "a number as the photo": ("show", [5, 0, 0], NOT_OF_THE_PAGE),
    "too few values": ("show", [None], NOT_OF_THE_PAGE),
    "a file outside as the photo": ("show", ["{home}/vit.safetensors", 0, 0], NOT_OF_THE_PAGE),
    "an address as the photo": ("show", ["{url}config", 0, 0], NOT_OF_THE_PAGE),
    "a layer before there is a photo": ("light", [None, 1, 1], "has no picture of this page"),
}


@pytest.mark.parametrize("event", EVENTS)
def test_an_event(tab, event, record):
    name, data, words = EVENTS[event]
    server = tab.server
    if isinstance(data[0], str):
        data = [as_file(data[0].format(home=server.home, url=server.url)), *data[1:]]
    message = tab.error(name, *data)
    assert words in message
    record(message)


def test_a_photo_that_was_deleted(tab, record):
    copy, message, *_ = tab.answer("show", as_file(tab.server.folder / "old" / "photo.png"), 0, 0)
    assert copy is None and "This photo was deleted here" in message
    record(message.strip("*"))


def test_a_layer_after_many_newer_pages(tab, record):
    """Their attention takes the place of this page's in memory; this page can get it anew."""
    photo = encoded(draw("sushi", np.random.default_rng(0), size=96))
    tab.show(photo)
    for _ in range(demo.PAGES - 1):
        with open_tab(tab.server) as newer:
            newer.show(photo)
    tab.check_picture(tab.answer("light", None, 1, 2)[0])
    for _ in range(demo.PAGES):
        with open_tab(tab.server) as newer:
            newer.show(photo)
    record(tab.error("light", None, 1, 2))
    tab.show(photo)
    tab.check_picture(tab.answer("light", None, 1, 2)[0])


def test_drawn_dishes_that_do_not_exist(tab, record):
    for number in (6, -1, "pizza", None, [0]):
        copy, message, verdict, *_ = tab.answer("show_drawn", number, 0, 0)
        assert copy is None and message == "" and not verdict["visible"]
    record("no prediction")


def test_data_that_are_no_list(tab, record):
    answer = tab.post(
        "queue/join", json={"fn_index": 0, "session_hash": tab.name, "data": "photo.png"}
    )
    assert answer.status_code == 422
    record(f"422: {answer.json()['detail'][0]['msg']}")


ORIGINS = {
    "a page of http://other.example": "http://other.example",
    "a page of http://127.0.0.1.example": "http://127.0.0.1.example",
    "a page of no site": "null",
}


@pytest.mark.parametrize("row", ORIGINS)
def test_origins(tab, row, record):
    """Its browser must not let it read the answers, nor send what needs permission."""
    origin = {"Origin": ORIGINS[row]}
    asked = {**origin, "Access-Control-Request-Method": "POST"}
    for answer in (
        tab.get("config", headers=origin),
        tab.post("upload", files={"files": ("photo.png", b"")}, headers=origin),
        tab.http.options(f"{tab.server.url}gradio_api/queue/join", headers=asked, timeout=60),
    ):
        assert "Access-Control-Allow-Origin" not in answer.headers
    record("no header that would let it read the answer")


HOSTS = {
    "this machine called other.example": "other.example",
    "this machine called 127.0.0.1.example": "127.0.0.1.example",
}


@pytest.mark.parametrize("row", HOSTS)
def test_hosts(tab, row, record):
    """A site may give its own name this machine's address, to read the page as its own."""
    assert tab.get("", headers={"Host": "localhost:7860"}).status_code == 200
    headers = {"Host": HOSTS[row], "Origin": f"http://{HOSTS[row]}"}
    for path in ("", "config", "gradio_api/info"):
        answer = tab.get(path, headers=headers)
        assert answer.status_code == 400 and answer.text == "Invalid host header"
    record(f"400: {answer.text}")


def test_ended_by_SIGTERM(tmp_path, record):
    """A system that shuts down sends it, and so does `kill`."""
    with running(tmp_path, stop=signal.SIGTERM) as server, open_tab(server) as tab:
        (path,) = map(Path, tab.upload(encoded(Image.new("RGB", (64, 64)))).json())
        assert path.is_file() and server.folder in path.parents
    record("it ends as by Ctrl-C, and no photo is left")
