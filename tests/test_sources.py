"""Where the images of the series come from."""

import hashlib
import tempfile

import pytest
from file_server import FILES, NOBODY, checksums_of, zip_of

from going_modular import data_setup
from going_modular.drawings import synthetic_food
from going_modular.images import sources
from going_modular.images.downloads import DownloadError
from going_modular.images.reading import load_image


@pytest.fixture
def data_dir(data_dir, tmp_path, monkeypatch):
    """An empty data folder, and a list of the hashes of `FILES` in place of the photos'."""
    (tmp_path / "photos.sha256").write_text(checksums_of(FILES))
    monkeypatch.setattr(sources, "PHOTO_CHECKSUMS", tmp_path / "photos.sha256")
    return data_dir


@pytest.fixture
def mirror(server, monkeypatch):
    photo = b"a photo"
    monkeypatch.setattr(sources, "CUSTOM_PHOTO_SHA256", hashlib.sha256(photo).hexdigest())
    return {"pizza_steak_sushi.zip": zip_of(FILES), "04-pizza-dad.jpeg": photo}


def test_images_from_a_mirror_by_url(server, mirror, data_dir, monkeypatch):
    server.answers |= {f"/mirror/{name}": content for name, content in mirror.items()}
    monkeypatch.setenv("FOODVISION_SOURCE", f"{server.url}/mirror/")
    food = data_setup.get_food_images()
    assert food.train_dir == data_dir / "pizza_steak_sushi" / "train"
    assert food.test_dir.is_dir() and food.custom_photo.read_bytes() == b"a photo"
    assert data_setup.get_food_images() == food
    assert len(server.asked) == 2  # the second call finds everything


def test_images_from_a_folder(mirror, data_dir, tmp_path, monkeypatch):
    for name, content in mirror.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.setenv("FOODVISION_SOURCE", str(tmp_path))
    assert data_setup.get_food_images().custom_photo.read_bytes() == b"a photo"


def test_auto_takes_what_is_there_or_asks_the_course(server, mirror, data_dir, monkeypatch):
    monkeypatch.delenv("FOODVISION_SOURCE", raising=False)
    monkeypatch.setattr(sources, "COURSE", server.url)
    server.answers["/data/pizza_steak_sushi.zip"] = mirror["pizza_steak_sushi.zip"]
    server.answers["/images/04-pizza-dad.jpeg"] = mirror["04-pizza-dad.jpeg"]
    food = data_setup.get_food_images()
    assert len(server.asked) == 2
    monkeypatch.setattr(sources, "COURSE", NOBODY)
    assert data_setup.get_food_images() == food


@pytest.mark.parametrize("source", [NOBODY, "no/such/folder"])
def test_images_that_cannot_be_had_say_what_to_do(data_dir, monkeypatch, source):
    monkeypatch.setenv("FOODVISION_SOURCE", source)
    with pytest.raises(DownloadError, match="FOODVISION_SOURCE") as error:
        data_setup.get_food_images()
    assert "What to do" in str(error.value) and source in str(error.value)
    assert not [path for path in data_dir.iterdir() if path.suffix != ".lock"]


@pytest.fixture
def few_drawings(monkeypatch):
    """The drawn twin, small and quickly drawn."""
    counts = {"train": {"steak": 1}, "test": {"steak": 1}}
    monkeypatch.setattr(synthetic_food, "COUNTS", counts)
    monkeypatch.setattr(synthetic_food, "LONGER_SIDE", 48)


def test_another_image_folder_can_be_chosen(data_dir, few_drawings, tmp_path, monkeypatch):
    monkeypatch.setenv("FOODVISION_SOURCE", "synthetic")
    monkeypatch.setenv("FOODVISION_DATA", str(tmp_path / "elsewhere"))
    assert data_setup.get_food_images().train_dir == tmp_path / "elsewhere/synthetic_food/train"


def test_synthetic_asks_nobody(server, data_dir, few_drawings, monkeypatch):
    monkeypatch.setenv("FOODVISION_SOURCE", "synthetic")
    monkeypatch.setattr(sources, "COURSE", server.url)
    food = data_setup.get_food_images()
    assert food.source == "drawn food (300 pictures)" and not server.asked
    assert food.train_dir == data_dir / "synthetic_food" / "train"
    assert load_image(food.custom_photo).size == (768, 1024)
    assert len(data_setup.PhotoFolder(food.test_dir)) == 1


@pytest.mark.parametrize("there", ["nothing", "half of the photos"])
def test_auto_draws_where_the_photos_cannot_be_had(data_dir, few_drawings, monkeypatch, there):
    monkeypatch.delenv("FOODVISION_SOURCE", raising=False)
    monkeypatch.setattr(sources, "COURSE", NOBODY)
    half = data_dir / "pizza_steak_sushi" / "train" / "pizza" / "1.txt"
    if there != "nothing":
        half.parent.mkdir(parents=True)
        half.write_bytes(b"one")
    food = data_setup.get_food_images()
    assert food.train_dir == data_dir / "synthetic_food" / "train"
    assert "drawn food" in food.source and "connection failed" in food.source
    assert half.is_file() == (there != "nothing")


def test_drawings_go_elsewhere_if_the_data_folder_is_read_only_and_say_so(
    few_drawings, tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("FOODVISION_DATA", str(tmp_path / "file" / "data"))
    monkeypatch.setattr(sources, "COURSE", NOBODY)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / "temporary"))
    monkeypatch.delenv("FOODVISION_SOURCE", raising=False)
    food = data_setup.get_food_images()
    assert food.train_dir == tmp_path / "temporary/foodvision/drawn/train"
    assert food.custom_photo.is_file()
    assert f"kept in {tmp_path / 'temporary/foodvision/drawn'}" in food.source
    assert f"{tmp_path / 'file/data'} cannot be written" in food.source


def test_a_mirror_and_a_data_folder_that_cannot_be_written(mirror, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("FOODVISION_DATA", str(tmp_path / "file" / "data"))
    monkeypatch.setenv("FOODVISION_SOURCE", str(tmp_path))
    with pytest.raises(DownloadError, match="cannot be stored in") as error:
        data_setup.get_food_images()
    assert str(tmp_path / "file" / "data") in str(error.value)
    assert "FOODVISION_DATA" in str(error.value)
