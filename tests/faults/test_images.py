"""Pictures that are damaged or unusual, among the training images and as the photo to name."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import ExifTags, Image

from faults.command import run, run_without_privileges, training
from going_modular.images.reading import TURNS
from going_modular.model_builder import ViT, ViTConfig
from going_modular.utils import give_random_values
from going_modular.vit.files import write_vit

UNREADABLE = "unreadable, for this user"
# What turns an upright picture into the one that a camera stores with an orientation
UNDONE = {6: TURNS[8], 8: TURNS[6]}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A classifier with random numbers: any other picture has other probabilities."""
    config = ViTConfig(24, 12, 3, 12, 1, 2, 24, num_classes=2)
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    return write_vit(give_random_values(ViT(config)), path, class_names=["red", "sea"])


def save_16_bits(picture: Image.Image, path: Path) -> None:
    grey = picture.convert("L")
    Image.frombytes("I;16", grey.size, b"".join(bytes([v, v]) for v in grey.tobytes())).save(path)


def save_animation(picture: Image.Image, path: Path) -> None:
    picture.save(path, save_all=True, append_images=[Image.new("RGB", picture.size, "green")])


def save_truncated(picture: Image.Image, path: Path) -> None:
    picture.resize((400, 300)).save(path)
    path.write_bytes(path.read_bytes()[:2000])


def save_huge(picture: Image.Image, path: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(path)


def grey(picture: Image.Image) -> Image.Image:
    return picture.convert("L")


# The file's name, how it is made, and the picture that it has to be read as: a function of
# the colored one, or None where nothing equal can be had
READ: dict[str, tuple[str, Callable, Callable | None]] = {
    "CMYK": ("x.jpg", lambda picture, path: picture.convert("CMYK").save(path), None),
    "greyscale": ("x.png", lambda picture, path: grey(picture).save(path), grey),
    "RGBA": ("x.png", lambda picture, path: picture.convert("RGBA").save(path), Image.Image.copy),
    "palette": ("x.png", lambda picture, path: picture.quantize(4).save(path), Image.Image.copy),
    "16 bits": ("x.png", save_16_bits, grey),
    "animated GIF": ("x.gif", save_animation, Image.Image.copy),
    "WebP": ("x.webp", lambda picture, path: picture.save(path, lossless=True), Image.Image.copy),
    "1 × 1 pixel": (
        "x.png",
        lambda picture, path: picture.crop((0, 0, 1, 1)).save(path),
        lambda picture: picture.crop((0, 0, 1, 1)),
    ),
    "no extension": (
        "photo",
        lambda picture, path: picture.save(path, format="PNG"),
        Image.Image.copy,
    ),
    "a path that is not ASCII": (
        "ж 寿司 é.png",
        lambda picture, path: picture.save(path),
        Image.Image.copy,
    ),
}
# The file's name, its content or how it is made, and what the commands say
REFUSED: dict[str, tuple[str, Callable, str]] = {
    "an empty file": ("x.jpg", lambda picture, path: path.touch(), "not an image"),
    "text called .jpg": (
        "x.jpg",
        lambda picture, path: path.write_text("no picture"),
        "not an image",
    ),
    "a truncated JPEG": ("x.jpg", save_truncated, "truncated"),
    "20,000 × 20,000 pixels": ("x.png", save_huge, "exceeds limit of .* pixels"),
    UNREADABLE: ("x.png", lambda picture, path: (picture.save(path), path.chmod(0)), "Permission"),
}


def prediction(photo: Path, weights: Path, run=run):
    output = photo.parents[2] / "prediction.png"
    return run("predictions", photo, "--weights", weights, "--output", output)


def probabilities(said) -> list[str]:
    return said.out.splitlines()[:3]


@pytest.mark.parametrize("fault", READ)
def test_a_picture_that_is_read(photos, picture, weights, fault, record):
    name, save, expected = READ[fault]
    photo = photos / "train/red" / name
    save(picture, photo)
    training(photos).success("9 images in 2 classes")
    said = prediction(photo, weights)
    said.success("picture: ")
    record("read" if expected is None else "read, with the same result as the same pixels in RGB")
    if expected is not None:
        expected(picture).convert("RGB").save(photos / "expected.png")
        plain = prediction(photos / "expected.png", weights)
        assert probabilities(said) == probabilities(plain)


def test_EXIF_1_to_8(photos, picture, weights, record):
    answers = set()
    for orientation in range(1, 9):
        photo = photos / f"train/red/turned-{orientation}.png"
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        turn = UNDONE.get(orientation, TURNS.get(orientation))
        stored = picture if turn is None else picture.transpose(turn)
        stored.save(photo, exif=exif)
        said = prediction(photo, weights)
        answers.add(tuple(probabilities(said)))
    assert len(answers) == 1
    record("read, with the same result for all eight")
    training(photos).success("16 images in 2 classes")


@pytest.mark.parametrize("fault", REFUSED)
def test_a_picture_that_is_refused(photos, picture, weights, fault, record):
    name, save, words = REFUSED[fault]
    photo = photos / "train/red" / name
    save(picture, photo)
    runner = run_without_privileges if fault == UNREADABLE else run
    before = set(photos.parent.rglob("*"))
    record(training(photos, runner).error(f"1 image cannot be read: {photo} .*{words}"))
    prediction(photo, weights, runner).error(f"{name}.*(cannot be read|Permission)")
    assert set(photos.parent.rglob("*")) == before
    photo.unlink()
    training(photos).success("test accuracy")
    prediction(photos / "train/red/0.png", weights).success("picture: ")
