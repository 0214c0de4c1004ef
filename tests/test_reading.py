"""One picture, whatever its format and damage: upright RGB, or an error with its name."""

import random
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from going_modular import data_setup, predictions
from going_modular.images.reading import damage_of, is_image, load_image, readable_endings


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


def test_a_picture_is_turned_only_once(picture, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("a.jpg", "a.png", "a.tiff", "a.webp"):
        picture.save(tmp_path / name, exif=exif)
        once = load_image(tmp_path / name)
        assert once.size == (30, 40), name
        assert same_picture(load_image(once), once)
        with Image.open(tmp_path / name) as opened:
            assert same_picture(load_image(opened), once)
            assert opened.mode == "RGB"


def exif_data(*entries):
    """EXIF data of entries (tag, type, count, four bytes), followed by -1 and 0."""
    directory = struct.pack("<H", len(entries))
    for tag, kind, count, value in entries:
        directory += struct.pack("<HHL4s", tag, kind, count, value)
    return b"Exif\0\0II*\0\x08\0\0\0" + directory + bytes(4) + struct.pack("<ll", -1, 0)


ORIENTATION = (0x0112, 3, 1, struct.pack("<L", 6))
AFTER_TWO_ENTRIES = struct.pack("<L", 8 + 2 + 2 * 12 + 4)
RESOLUTION = (0x011A, 10, 1, AFTER_TWO_ENTRIES)  # a signed ratio: -1/0


@pytest.mark.parametrize(
    ("exif", "size"),
    [
        (exif_data(ORIENTATION, RESOLUTION), (30, 40)),
        (exif_data(ORIENTATION, (0x011A, 5, 1, b"\xff\xff\xff\x7f")), (30, 40)),
        (exif_data(ORIENTATION, (0x9286, 99, 7, b"????")), (30, 40)),
        (exif_data((0x0112, 3, 1, struct.pack("<L", 99))), (40, 30)),
        (exif_data((0x0112, 2, 4, b"six\0")), (40, 30)),
        (exif_data(ORIENTATION)[:12], (40, 30)),
        (b"Exif\0\0garbage", (40, 30)),
        (b"Exif\0\0", (40, 30)),
    ],
    ids=["ratio", "offset", "type", "99", "text", "cut", "garbage", "empty"],
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's own, of corrupt EXIF data
def test_broken_exif_leaves_a_picture_that_can_be_read(picture, tmp_path, exif, size):
    """Browsers do the same: the orientation counts if it can be read."""
    for name in ("a.jpg", "a.png", "a.webp"):
        picture.save(tmp_path / name, exif=exif)
        assert load_image(tmp_path / name).size == size, name


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


# Deep grayscale


def gray_of(picture):
    """The one value per pixel of an RGB picture that is gray."""
    assert picture.mode == "RGB"
    red, green, blue = np.moveaxis(np.asarray(picture, dtype=int), -1, 0)
    assert (red == green).all() and (red == blue).all()
    return red


def test_16_bit_grayscale_is_rescaled_as_before():
    """All its values, in every mode that Pillow has for it: value // 257."""
    values = np.arange(65536).reshape(256, 256)
    for kind, mode in (("<u2", "I;16"), (">u2", "I;16B"), ("<i4", "I")):
        image = Image.fromarray(values.astype(kind))
        assert image.mode == mode
        assert (gray_of(load_image(image)) == values // 257).all(), mode


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("kind", ["<u2", ">u2", "<i4", "<f4"])
def test_grayscale_is_scaled_by_the_range_that_it_uses(bits, kind):
    """A camera with 12 bits fills 16-bit files up to 4095 only; its white is white."""
    white = 2**bits - 1
    values = np.linspace(0, white, 64).round().reshape(8, 8)
    gray = gray_of(load_image(Image.fromarray(values.astype(kind))))
    assert np.abs(gray - values * 255 / white).max() <= 1
    assert gray[0, 0] == 0 and gray[-1, -1] == 255


@pytest.mark.parametrize("largest", [65536, 10**6, 2**31 - 1])
@pytest.mark.parametrize("kind", ["<i4", "<f4"])
def test_beyond_16_bits_the_largest_value_is_white(largest, kind):
    values = np.linspace(0, largest, 64).round().reshape(8, 8)
    gray = gray_of(load_image(Image.fromarray(values.astype(kind))))
    assert np.abs(gray - values * 255 / largest).max() <= 1 and gray.max() == 255


def test_floats_up_to_1_are_scaled_by_1():
    values = (np.arange(256).reshape(16, 16) / 255).astype(np.float32)
    assert (gray_of(load_image(Image.fromarray(values))) == np.arange(256).reshape(16, 16)).all()
    dark = gray_of(load_image(Image.fromarray(values * np.float32(0.2))))
    assert dark.max() == 51  # 0.2 stays 0.2
    assert not gray_of(load_image(Image.fromarray(values * 0))).any()


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        ("<i4", -1, "from -1 to 0"),
        ("<f4", -0.5, "from -0.5 to 0"),
        ("<f4", np.inf, "to inf"),
        ("<f4", np.nan, "nan"),
    ],
)
def test_values_that_are_no_brightness_say_so(kind, value, words, tmp_path):
    values = np.zeros((4, 4), kind)
    values[1, 2] = value
    Image.fromarray(values).save(tmp_path / "scan.tiff")
    with pytest.raises(ValueError, match=f"scan.tiff .*{words}.* save it with 8 bits"):
        load_image(tmp_path / "scan.tiff")


def test_deep_files_are_read_by_one_function_for_training_and_prediction(tmp_path):
    """32-bit integers from 0 to 255 were black, and 12 bits in 16 nearly so."""
    values = np.linspace(0, 255, 64).round().reshape(8, 8)
    folder = tmp_path / "train/scans"
    folder.mkdir(parents=True)
    Image.fromarray(values.astype("<i4")).save(folder / "1.tiff")
    Image.fromarray((values * 16).astype("<u2")).save(folder / "2.png")
    for name in ("1.tiff", "2.png"):
        assert np.abs(gray_of(load_image(folder / name)) - values).max() <= 1
    assert (gray_of(data_setup.PhotoFolder(tmp_path / "train")[0][0]) == values).all()
    assert predictions.load_image is data_setup.load_image is load_image


# Damaged files


def test_what_is_no_picture_says_so(tmp_path):
    (tmp_path / "note.jpg").write_text("not a picture")
    with pytest.raises(ValueError, match="cannot be read as a picture") as error:
        load_image(tmp_path / "note.jpg")
    assert str(error.value).startswith(str(tmp_path / "note.jpg"))
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


@pytest.mark.parametrize(
    "error",
    [
        struct.error("unpack requires a buffer of 4 bytes"),
        zlib.error("invalid block type"),
        OSError("broken data stream"),
        SyntaxError("not a TIFF file"),
        EOFError("no more images"),
        KeyError(273),
        IndexError("index out of range"),
        TypeError("bad argument"),
        OverflowError("too large"),
        AttributeError("no attribute 'read'"),
        NotImplementedError("unknown compression"),
        RuntimeError("decoder failed"),
        ValueError("conversion not supported"),
        AssertionError(),
        MemoryError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_pillow_raises_the_error_names_the_file(tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(Image, "open", fail)
    reason = str(error) or type(error).__name__
    with pytest.raises(ValueError, match="cannot be read as a picture") as raised:
        load_image(tmp_path / "train/a/1.jpg")
    assert f"{tmp_path / 'train/a/1.jpg'} " in str(raised.value) and reason in str(raised.value)


FORMATS = ("png", "jpg", "tiff", "gif", "webp", "bmp", "ico", "ppm", "tga", "pcx", "sgi", "dds")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("ending", FORMATS)
def test_a_damaged_file_is_read_or_named(picture, tmp_path, ending):
    """A few bytes changed, or the end cut off, forty times."""
    path = tmp_path / f"a.{ending}"
    exif = {"exif": exif_data(ORIENTATION)} if ending in ("png", "jpg", "tiff", "webp") else {}
    picture.save(path, **exif)
    content, numbers, named = path.read_bytes(), random.Random(0), 0
    for _ in range(40):
        damaged = bytearray(content)
        for _ in range(numbers.randint(1, 20)):
            damaged[numbers.randrange(len(damaged))] = numbers.randrange(256)
        path.write_bytes(damaged[: numbers.choice([None, numbers.randrange(len(damaged))])])
        try:
            assert load_image(path).mode == "RGB"
        except ValueError as error:
            named += 1
            assert str(error).startswith(f"{path} cannot be read as a picture")
    assert named > 0


def test_a_file_that_is_a_program_is_not_run(picture, tmp_path, monkeypatch):
    """Pillow would start Ghostscript for an EPS file, whatever its name."""
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda *words, **_: started.append(words))
    picture.save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match=r"a\.jpg cannot .*\(an EPS file is a program"):
        load_image(tmp_path / "a.jpg")
    assert "is a program" in damage_of(tmp_path / "a.jpg")
    assert not is_image(tmp_path / "a.jpg") and ".eps" not in readable_endings()
    assert not started


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_tiff_without_compression_is_turned_as_others_are(picture, tmp_path, mode, orientation):
    """Pillow 11 and 12 decode it wrong if they may map the file into memory."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    for compression in ("raw", "tiff_lzw"):
        path = tmp_path / f"{compression}.tiff"
        picture.convert(mode).save(path, exif=exif, compression=compression)
    raw, packed = load_image(tmp_path / "raw.tiff"), load_image(tmp_path / "tiff_lzw.tiff")
    assert raw.size == (30, 40) and same_picture(raw, packed)
    with Image.open(tmp_path / "raw.tiff") as opened:
        assert same_picture(load_image(opened), packed)
        assert Path(opened.filename) == tmp_path / "raw.tiff"


@pytest.mark.parametrize("mode", ["La", "RGBa"])
def test_colors_that_are_multiplied_by_their_opacity_are_laid_on_white(mode):
    half = Image.new(mode, (2, 2), (50, 128) if mode == "La" else (50, 50, 50, 128))
    assert same_picture(load_image(half), Image.new("RGB", (2, 2), (177,) * 3), tolerance=1)


def test_a_picture_in_lab_has_no_transparency():
    lab = Image.new("LAB", (2, 2), (0, 0, 0))
    assert same_picture(load_image(lab), lab.convert("RGB"))


def test_a_large_jpeg_can_be_decoded_at_a_part_of_its_size(tmp_path):
    rng = np.random.default_rng(0)
    cells = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    large = cells.resize((1600, 1200), Image.Resampling.BICUBIC)
    note = Image.Exif()
    note[0x0112] = 6
    large.save(tmp_path / "plain.jpg", quality=95)
    large.save(tmp_path / "turned.jpg", quality=95, exif=note)
    large.save(tmp_path / "plain.png")
    for least, size in ((0, (1600, 1200)), (601, (1600, 1200)), (600, (800, 600)), (1, (200, 150))):
        assert load_image(tmp_path / "plain.jpg", least).size == size
        assert load_image(tmp_path / "turned.jpg", least).size == size[::-1]
        assert load_image(tmp_path / "plain.png", least).size == (1600, 1200)
    whole, part = (
        np.asarray(load_image(tmp_path / "plain.jpg", least).resize((150, 100)), dtype=float)
        for least in (0, 300)
    )
    assert abs(whole - part).mean() < 1  # of 255 levels
