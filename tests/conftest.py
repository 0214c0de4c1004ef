"""Small pictures and folders that the tests share."""

import os
import shutil

import matplotlib
import numpy as np
import pytest
import torch
from file_server import file_server
from PIL import Image
from torchvision.transforms import v2

matplotlib.use("Agg")


@pytest.fixture(autouse=True, scope="session")
def same_precision_on_every_machine():
    """Without it, what a processor has would decide."""
    os.environ["FOODVISION_PRECISION"] = "float32"


@pytest.fixture
def picture():
    """A 40 × 30 picture whose four quarters have four colours."""
    pixels = np.zeros((30, 40, 3), dtype=np.uint8)
    pixels[:15, :20] = (200, 30, 30)
    pixels[:15, 20:] = (30, 200, 30)
    pixels[15:, :20] = (30, 30, 200)
    pixels[15:, 20:] = (200, 200, 30)
    return Image.fromarray(pixels)


@pytest.fixture
def food_folder(tmp_path):
    """train/ and test/ with 10, 8, 6 and 3, 2, 2 random 16 × 16 pictures."""
    rng = np.random.default_rng(0)
    for part, counts in (("train", (10, 8, 6)), ("test", (3, 2, 2))):
        for name, count in zip(("pizza", "steak", "sushi"), counts, strict=True):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path


@pytest.fixture
def server(monkeypatch):
    """A web server on this machine; see `file_server`."""
    monkeypatch.setenv("NO_PROXY", "*")
    with file_server() as server:
        yield server


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    """An empty data folder."""
    monkeypatch.setenv("FOODVISION_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("NO_PROXY", "*")
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def to_tensor():
    return v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])


@pytest.fixture(scope="module")  # its event loop must not outlive it
def chromium():
    """A browser: Debian's Chromium, driven by Playwright."""
    sync_api = pytest.importorskip("playwright.sync_api")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if not program:
        give_up = pytest.fail if os.environ.get("CI") else pytest.skip
        give_up("no Chromium on this machine")
    quiet = "background-networking component-update sync quic gpu".split()
    options = ["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in quiet)]
    with sync_api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=program, args=options)
