import hashlib
import io
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from going_modular import data_setup
from going_modular.drawings import synthetic_food
from going_modular.images import checksums, downloads, sources
from going_modular.images.downloads import DownloadError, download_data
from going_modular.images.reading import load_image

FILES = {"train/pizza/1.txt": b"one", "test/pizza/2.txt": b"two"}


def zip_of(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def listed(files):
    lines = [f"{hashlib.sha256(c).hexdigest()}  {name}\n" for name, c in files.items()]
    return "".join(lines)


class Handler(BaseHTTPRequestHandler):
    """Serves what the server's `answers` hold: bytes, a status, or "stall"."""

    def do_GET(self):
        answer = self.server.answers.get(self.path, 404)
        self.server.asked.append(self.path)
        if isinstance(answer, int):
            self.send_error(answer)
            return
        stalls = isinstance(answer, tuple)
        content = answer[0] if stalls else answer
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if stalls else content)
        self.wfile.flush()
        if stalls and answer[1] == "stall":
            self.server.release.wait(20)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.answers, server.asked, server.release = {}, [], threading.Event()
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.release.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    """An empty data folder with a list of hashes, in place of the real one."""
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    checksums = data_dir / "pizza_steak_sushi.sha256"
    checksums.write_text(listed(FILES))
    monkeypatch.setenv("FOODVISION_DATA", str(data_dir))
    monkeypatch.setattr(sources, "PHOTO_CHECKSUMS", checksums)
    return data_dir


def nothing_left(data_dir):
    return sorted(p.name for p in data_dir.iterdir()) == ["pizza_steak_sushi.sha256"]


# Downloads


def test_download_unpacks_and_a_second_call_asks_nobody(server, data_dir):
    server.answers["/food.zip"] = zip_of(FILES)
    folder = download_data(f"{server.url}/food.zip", "food", sources.PHOTO_CHECKSUMS)
    assert folder == data_dir / "food"
    assert (folder / "train/pizza/1.txt").read_bytes() == b"one"
    assert download_data(f"{server.url}/food.zip", "food") == folder
    assert server.asked == ["/food.zip"]
    assert sorted(p.name for p in data_dir.iterdir()) == ["food", "pizza_steak_sushi.sha256"]


def test_download_from_a_local_file(data_dir, tmp_path):
    (tmp_path / "food.zip").write_bytes(zip_of(FILES))
    folder = download_data(tmp_path / "food.zip", "food")
    assert (folder / "test/pizza/2.txt").read_bytes() == b"two"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (404, "404"),
        (500, "500"),
        ((zip_of(FILES), "cut"), "bytes arrived|connection failed"),
        (zip_of(FILES)[:-30], "not a whole zip file"),
        (b"<html>a login page</html>", "not a whole zip file"),
        (zip_of({"../evil.txt": b"x"}), "leaves its folder"),
        (zip_of({"/evil.txt": b"x"}), "leaves its folder"),
        (zip_of(FILES | {"test/pizza/2.txt": b"TWO"}), "1 files .* test/pizza/2.txt"),
        (zip_of({"train/pizza/1.txt": b"one"}), "1 files .* test/pizza/2.txt"),
        (zip_of(FILES | {"train/soup/9.txt": b"x"}), "1 files .* train/soup/9.txt"),
        (zip_of({}), "an empty zip file"),
        (zip_of({"train": b"x", "train/a": b"y"}), "not a whole zip file"),
    ],
)
def test_a_bad_download_says_why_and_leaves_nothing(server, data_dir, answer, words):
    server.answers["/food.zip"] = answer
    with pytest.raises(DownloadError, match=words):
        download_data(f"{server.url}/food.zip", "food", sources.PHOTO_CHECKSUMS)
    assert nothing_left(data_dir)
    assert not (data_dir.parent / "evil.txt").exists()


def test_no_network_and_missing_files(data_dir, tmp_path):
    with pytest.raises(DownloadError, match="connection failed"):
        download_data("http://127.0.0.1:9/food.zip", "food")
    with pytest.raises(DownloadError, match="There is no file"):
        download_data(tmp_path / "absent.zip", "food")
    assert nothing_left(data_dir)


def test_a_server_that_stalls_is_given_up(server, data_dir, monkeypatch):
    monkeypatch.setattr(downloads, "TIMEOUT", (1, 0.2))
    server.answers["/food.zip"] = (zip_of(FILES) * 50, "stall")
    started = time.perf_counter()
    with pytest.raises(DownloadError, match="in time|connection failed"):
        download_data(f"{server.url}/food.zip", "food")
    assert time.perf_counter() - started < 5
    assert nothing_left(data_dir)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_killed_half_way_leaves_nothing_that_passes_for_the_data(server, data_dir):
    server.answers["/food.zip"] = (zip_of(FILES) * 50, "stall")
    code = (
        "import pathlib\nfrom going_modular import data_setup\n"
        f"data_setup.DATA_DIR = pathlib.Path({str(data_dir)!r})\n"
        f"data_setup.download_data('{server.url}/food.zip', 'food')"
    )
    child = subprocess.Popen([sys.executable, "-c", code])
    while not list(data_dir.glob(".unfinished-*/*")):
        assert child.poll() is None
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (data_dir / "food").exists()
    server.answers["/food.zip"] = zip_of(FILES)
    folder = download_data(f"{server.url}/food.zip", "food", sources.PHOTO_CHECKSUMS)
    assert (folder / "train/pizza/1.txt").read_bytes() == b"one"


def test_a_partial_folder_is_replaced_and_kept_aside(server, data_dir):
    (data_dir / "food" / "train").mkdir(parents=True)
    (data_dir / "food" / "train" / "mine.txt").write_text("my own")
    server.answers["/food.zip"] = zip_of(FILES)
    folder = download_data(f"{server.url}/food.zip", "food", sources.PHOTO_CHECKSUMS)
    assert not checksums.differences(folder, sources.PHOTO_CHECKSUMS)
    (aside,) = data_dir.glob("food.incomplete-*/food/train/mine.txt")
    assert aside.read_text() == "my own"


def test_another_process_that_was_faster_is_left_alone(server, data_dir, monkeypatch):
    """The folder appears, whole, while the zip file is still being unpacked."""
    server.answers["/food.zip"] = zip_of(FILES)
    unpack = downloads.unpack

    def unpack_slowly(archive, folder, source):
        unpack(archive, folder, source)
        unpack(archive, data_dir / "food", source)

    monkeypatch.setattr(downloads, "unpack", unpack_slowly)
    folder = download_data(f"{server.url}/food.zip", "food", sources.PHOTO_CHECKSUMS)
    assert folder.is_dir() and not list(data_dir.glob("*incomplete*"))


def test_a_relative_source_starts_at_the_repository(data_dir, tmp_path, monkeypatch):
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources" / "food.zip").write_bytes(zip_of(FILES))
    monkeypatch.setattr(data_setup, "project_path", lambda path: tmp_path / path)
    assert (download_data("sources/food.zip", "food") / "train/pizza/1.txt").is_file()


def test_an_empty_folder_does_not_pass_for_the_data(server, data_dir):
    (data_dir / "food").mkdir()
    server.answers["/food.zip"] = zip_of(FILES)
    folder = download_data(f"{server.url}/food.zip", "food")
    assert (folder / "train/pizza/1.txt").is_file()


# Where the images come from


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
    monkeypatch.setattr(sources, "COURSE", "http://127.0.0.1:9")
    assert data_setup.get_food_images() == food


@pytest.mark.parametrize("source", ["http://127.0.0.1:9", "no/such/folder"])
def test_images_that_cannot_be_had_say_what_to_do(data_dir, monkeypatch, source):
    monkeypatch.setenv("FOODVISION_SOURCE", source)
    with pytest.raises(DownloadError, match="FOODVISION_SOURCE") as error:
        data_setup.get_food_images()
    assert "What to do" in str(error.value) and nothing_left(data_dir)


@pytest.fixture
def few_drawings(monkeypatch):
    """The drawn twin, small and quickly drawn."""
    counts = {"train": {"steak": 1}, "test": {"steak": 1}}
    monkeypatch.setattr(synthetic_food, "COUNTS", counts)
    monkeypatch.setattr(synthetic_food, "LONGER_SIDE", 48)


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
    monkeypatch.setattr(sources, "COURSE", "http://127.0.0.1:9")
    half = data_dir / "pizza_steak_sushi" / "train" / "pizza" / "1.txt"
    if there != "nothing":
        half.parent.mkdir(parents=True)
        half.write_bytes(b"one")
    food = data_setup.get_food_images()
    assert food.train_dir == data_dir / "synthetic_food" / "train"
    assert "drawn food" in food.source and "connection failed" in food.source
    assert half.is_file() == (there != "nothing")


def test_a_network_that_swallows_everything_costs_seconds(data_dir, monkeypatch):
    """As a name server does that never answers: no timeout of requests covers it."""
    monkeypatch.setattr(downloads, "PATIENCE", 0.2)
    monkeypatch.setattr(data_setup.requests, "get", lambda *_, **__: time.sleep(30))
    started = time.perf_counter()
    with pytest.raises(DownloadError, match="No answer in time"):
        download_data("http://127.0.0.1:9/food.zip", "food")
    assert time.perf_counter() - started < 2 and nothing_left(data_dir)


def test_a_closed_data_folder_leaves_the_drawings_elsewhere(few_drawings, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("FOODVISION_DATA", str(tmp_path / "file" / "data"))
    monkeypatch.setattr(sources, "COURSE", "http://127.0.0.1:9")
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / "temporary"))
    monkeypatch.delenv("FOODVISION_SOURCE", raising=False)
    food = data_setup.get_food_images()
    assert food.train_dir == tmp_path / "temporary/foodvision/drawn/train"
    assert food.custom_photo.is_file()


def test_a_mirror_and_a_data_folder_that_cannot_be_written(mirror, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("FOODVISION_DATA", str(tmp_path / "file" / "data"))
    monkeypatch.setenv("FOODVISION_SOURCE", str(tmp_path))
    with pytest.raises(DownloadError, match="could not be had"):
        data_setup.get_food_images()


def test_the_list_of_hashes_names_the_published_counts():
    names = [line.split()[1] for line in sources.PHOTO_CHECKSUMS.open()]
    folders = [name.rsplit("/", 1)[0] for name in names]
    counts = {folder: folders.count(folder) for folder in sorted(set(folders))}
    assert counts == {
        "test/pizza": 25,
        "test/steak": 19,
        "test/sushi": 31,
        "train/pizza": 78,
        "train/steak": 75,
        "train/sushi": 72,
    }


# Reading one picture


def same_picture(a, b, tolerance=0):
    a, b = (np.asarray(x, dtype=int) for x in (a, b))
    return a.shape == b.shape and np.abs(a - b).max() <= tolerance


def test_exif_orientations_are_undone(picture, tmp_path):
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    for orientation, transposition in turns.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / f"{orientation}.png"
        picture.transpose(transposition).save(path, exif=exif)
        assert same_picture(load_image(path), picture), orientation


def test_palette_cmyk_and_greyscale_become_rgb(picture, tmp_path):
    picture.convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "p.png")
    assert same_picture(load_image(tmp_path / "p.png"), picture, tolerance=2)
    picture.convert("CMYK").save(tmp_path / "c.jpg", quality=100)
    assert load_image(tmp_path / "c.jpg").mode == "RGB"
    middle = load_image(tmp_path / "c.jpg").getpixel((10, 7))
    assert same_picture(middle, (200, 30, 30), tolerance=6)
    grey = picture.convert("L")
    assert same_picture(load_image(grey), Image.merge("RGB", [grey] * 3))


def test_transparency_is_laid_on_white(picture, tmp_path):
    see_through = picture.convert("RGBA")
    see_through.putalpha(0)
    assert np.asarray(load_image(see_through)).min() == 255
    see_through.putalpha(128)
    r, g, b = load_image(see_through).getpixel((0, 0))
    assert abs(r - 227) <= 2 and abs(g - 142) <= 2 and abs(b - 142) <= 2
    grey = Image.new("LA", (4, 4), (0, 0))
    assert load_image(grey).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30])
    palette.save(tmp_path / "t.png", transparency=0)
    assert load_image(tmp_path / "t.png").getpixel((0, 0)) == (255, 255, 255)


def test_16_bit_greyscale_is_rescaled_not_clipped(tmp_path):
    values = np.array([[0, 257 * 100], [257 * 200, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    expected = np.array([[0, 100], [200, 255]])
    for image in (
        tmp_path / "deep.png",
        Image.fromarray(values.astype(np.int32)),  # how some files arrive: mode "I"
    ):
        assert same_picture(np.asarray(load_image(image))[..., 0], expected)


def test_what_is_no_picture_says_so(tmp_path):
    (tmp_path / "note.jpg").write_text("not a picture")
    with pytest.raises(ValueError, match=r"note.jpg cannot be read as a picture"):
        load_image(tmp_path / "note.jpg")
    with pytest.raises(FileNotFoundError, match="no picture at"):
        load_image(tmp_path / "absent.jpg")


def test_a_damaged_png_says_so(picture, tmp_path):
    picture.save(tmp_path / "whole.png")
    content = bytearray((tmp_path / "whole.png").read_bytes())
    content[content.index(b"IDAT") - 4 :] = b"\x00\x00\x00\x05\x01\x02\x03\x04garbage"
    (tmp_path / "damaged.png").write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"damaged.png cannot be read"):
        load_image(tmp_path / "damaged.png")


def test_a_picture_of_absurd_size_says_so(picture, tmp_path, monkeypatch):
    picture.save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"huge.png cannot be read"):
        load_image(tmp_path / "huge.png")


def test_a_truncated_jpeg_says_so(picture, tmp_path):
    picture.resize((400, 300)).save(tmp_path / "whole.jpg")
    content = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"half.jpg cannot be read"):
        load_image(tmp_path / "half.jpg")


# Batches


def test_dataloaders(food_folder, to_tensor):
    train, test, names = data_setup.create_dataloaders(
        food_folder / "train", food_folder / "test", to_tensor, batch_size=5
    )
    assert names == ["pizza", "steak", "sushi"]
    assert [len(labels) for _, labels in train] == [5, 5, 5, 5, 4]
    images, labels = next(iter(test))
    assert images.shape == (5, 3, 16, 16) and labels.tolist() == [0, 0, 0, 1, 1]


def test_order_is_a_function_of_seed_and_epoch(food_folder, to_tensor):
    def labels(seed, epoch, workers=0):
        loader, _, _ = data_setup.create_dataloaders(
            food_folder / "train", food_folder / "test", to_tensor, 4, workers, seed=seed
        )
        loader.sampler.set_epoch(epoch)
        return torch.cat([images.sum(dim=(1, 2, 3)) for images, _ in loader]).tolist()

    torch.manual_seed(0)
    first = labels(1, 0)
    torch.rand(5)  # draws from the global generator change nothing
    assert labels(1, 0) == first == labels(1, 0, workers=2)
    assert labels(1, 1) != first != labels(2, 0)
    assert sorted(labels(1, 1)) == sorted(first)


def test_training_images_may_have_a_transform_of_their_own(food_folder, to_tensor):
    train, test, _ = data_setup.create_dataloaders(
        food_folder / "train",
        food_folder / "test",
        to_tensor,
        4,
        train_transform=lambda image: to_tensor(image) + 10,
    )
    assert next(iter(train))[0].min() >= 10 and next(iter(test))[0].max() <= 1


def test_folders_with_other_classes_are_refused(food_folder, to_tensor):
    (food_folder / "test" / "steak").rename(food_folder / "test" / "soup")
    with pytest.raises(ValueError, match="soup"):
        data_setup.create_dataloaders(food_folder / "train", food_folder / "test", to_tensor, 4)


def test_split_keeps_proportions_and_shares_no_image(food_folder, to_tensor):
    def split(seed):
        return data_setup.split_train_validation(
            food_folder / "train", 0.5, seed, to_tensor, lambda x: to_tensor(x) + 10
        )

    train, validation = split(seed=1)
    assert sorted(train.indices + validation.indices) == list(range(24))
    for part in (train, validation):
        targets = torch.tensor(part.dataset.targets)[part.indices]
        assert targets.bincount().tolist() == [5, 4, 3]
    assert train[0][0].min() >= 10 and validation[0][0].max() <= 1
    assert split(seed=1)[0].indices == train.indices != split(seed=2)[0].indices


def test_small_classes_get_an_image_on_both_sides(food_folder, to_tensor):
    for name in ("pizza", "steak", "sushi"):
        for path in sorted((food_folder / "train" / name).iterdir())[2:]:
            path.unlink()
    train, validation = data_setup.split_train_validation(food_folder / "train", 0.2, 1, to_tensor)
    assert len(train) == len(validation) == 3
    next((food_folder / "train" / "steak").iterdir()).unlink()
    with pytest.raises(ValueError, match="'steak' has one image"):
        data_setup.split_train_validation(food_folder / "train", 0.2)


def test_hidden_folders_are_no_classes(food_folder):
    (food_folder / "train" / ".ipynb_checkpoints").mkdir()
    train, _ = data_setup.split_train_validation(food_folder / "train", 0.2)
    assert train.dataset.classes == ["pizza", "steak", "sushi"]


@pytest.mark.parametrize("fraction", [0, 1, -0.5, 1.5])
def test_split_refuses_impossible_fractions(food_folder, fraction):
    with pytest.raises(ValueError, match="between 0 and 1"):
        data_setup.split_train_validation(food_folder / "train", fraction)


def test_load_into_memory(food_folder, to_tensor):
    _, validation = data_setup.split_train_validation(food_folder / "train", 0.5, 1, to_tensor)
    data = data_setup.load_into_memory(validation)
    assert data.tensors[0].shape == (12, 3, 16, 16)
    assert torch.equal(data[3][0], validation[3][0])
    assert data[3][1] == validation[3][1]


# Changes of images that can be repeated


def test_seed_epoch_and_index_decide_how_an_image_is_changed():
    data = TensorDataset(torch.zeros(3, 1), torch.arange(3))

    def images(seed=42, epoch=0, order=(0, 1, 2)):
        augmented = data_setup.Augmented(data, lambda image: image + torch.rand(1), seed)
        augmented.set_epoch(epoch)
        changed = {i: augmented[i][0].item() for i in order}
        return [changed[i] for i in range(3)]

    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = images()
    assert torch.equal(torch.get_rng_state(), before)  # nobody else's numbers are taken
    torch.rand(7)
    assert images(order=(2, 0, 1)) == first and len(set(first)) == 3
    others = [*images(seed=1), *images(epoch=1)]
    assert len({*first, *others}) == 9


def test_the_engine_tells_sampler_and_images_the_epoch():
    data = data_setup.Augmented(TensorDataset(torch.zeros(3, 1), torch.arange(3)), abs)
    dataloader = data_setup.create_dataloader(data, 2, shuffle=True)
    data_setup.set_epoch(dataloader, 5)
    assert (dataloader.sampler.epoch, data.epoch) == (5, 5)
    data_setup.set_epoch([("images", "labels")], 5)  # anything else has no epochs
