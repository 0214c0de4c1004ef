"""Images for the rows, and what a row leaves in the report of the tests."""

import random
import re

import pytest
from PIL import Image

COLORS = {"red": (200, 30, 30), "sea": (30, 30, 200)}


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent.name == "faults":
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def photos(tmp_path):
    """A folder of red and of blue images, 8 to train on and 4 to test on."""
    random.seed(0)
    for part, count in (("train", 8), ("test", 4)):
        for i in range(count):
            name = list(COLORS)[i % 2]
            color = tuple(min(255, value + random.randrange(50)) for value in COLORS[name])
            path = tmp_path / "photos" / part / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 30), color).save(path)
    return tmp_path / "photos"


@pytest.fixture
def files(photos):
    """What the images of `photos` hold, by path."""
    paths = sorted(photos.rglob("*.png"))
    return {path.relative_to(photos).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture
def record(request, record_property, tmp_path):
    """A function that puts what a command said into the report, for docs/results/faults.md."""

    def record(said):
        function = request.node.originalname.removeprefix("test_").replace("_", " ")
        parameters = getattr(request.node, "callspec", None)
        # pytest's own name of a row has no "×"
        name = next(iter(parameters.params.values())) if parameters else function
        record_property("fault", name if isinstance(name, str) else parameters.id)
        said = said.replace(str(tmp_path), "…")
        record_property("said", re.sub(r"127\.0\.0\.1:\d+", "a server", said))

    return record
