"""Read one image file, whatever its format, as an upright RGB picture."""

import os
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from going_modular.utils import project_path

HOW_TO_READ: dict[str, str] = {}  # what to install, by ending
try:
    from pillow_heif import register_heif_opener
except ImportError:
    HOW_TO_READ |= dict.fromkeys((".heic", ".heif"), "pip install pillow-heif")
else:
    register_heif_opener()  # for the photos of iPhones

# Formats that Pillow recognizes but does not decode: weather data, HDF5, films, drawings
HEADERS_ONLY = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF"}
# Formats whose files are programs: Pillow would start Ghostscript, which runs them
PROGRAMS = {"EPS"}
# How to turn a picture upright, by its EXIF orientation. 1 is upright already.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# The largest values of grayscale with 8, 10, 12, 14 and 16 bits
USUAL_WHITES = (255, 1023, 4095, 16383, 65535)


def load_image(image: str | Path | Image.Image, least: int = 0) -> Image.Image:
    """Return any picture upright and in RGB, the same way for training and prediction.

    Photos from phones are turned as their EXIF data says. As in a browser, an EXIF entry
    that is broken changes nothing else. Transparent parts become white. `to_8_bits`
    makes deep grayscale visible. Other grayscale, palette and CMYK pictures become RGB.

    Args:
        least: a JPEG file may be decoded at a half, a quarter or an eighth of its size, which
            is quicker, as long as both sides keep so many pixels. 0 decodes all of it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if Pillow cannot read the file, or if its values are no brightness;
            see `to_8_bits`. The message names the file.
    """
    if isinstance(image, Image.Image):
        return to_upright_rgb(image)
    path = project_path(image)
    try:
        with Image.open(path) as opened:
            if least:
                opened.draft(None, (least, least))  # does nothing to other formats
            return to_upright_rgb(opened)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no picture at {path}") from None
    # Pillow lets out whatever a damaged file makes its decoders raise: OSError and
    # SyntaxError, but also struct.error, zlib.error, KeyError, EOFError and more.
    except Exception as error:
        advice = HOW_TO_READ.get(path.suffix.lower(), "save it as JPEG or PNG")
        raise ValueError(
            f"{image} cannot be read as a picture ({words_of(error)}): {advice} and try again"
        ) from error


def words_of(error: Exception) -> str:
    """An error's message, or its name if it has none."""
    return str(error) or type(error).__name__


def damage_of(path: str | Path) -> str:
    """Say why `load_image` cannot read a file; empty if it can.

    A JPEG is decoded at an eighth of its size, which reads all its data in less time.
    """
    try:
        with Image.open(path) as image:
            image.draft(None, (1, 1))  # does nothing to other formats
            to_upright_rgb(image)
    except UnidentifiedImageError:
        return "not an image"
    except OSError as error:  # its other words repeat the path
        return error.strerror or words_of(error)
    except Exception as error:  # see `load_image`
        return words_of(error)
    return ""


def readable_formats() -> list[str]:
    """The formats that Pillow, with its plugins, can open and decode without running them."""
    Image.init()
    return [name for name in Image.OPEN if name not in HEADERS_ONLY | PROGRAMS]


def readable_endings() -> set[str]:
    """The endings of `readable_formats`, in lower case: ".jpg", for example."""
    formats = set(readable_formats())
    return {end for end, name in Image.registered_extensions().items() if name in formats}


def is_image(path: str | Path) -> bool:
    """Whether Pillow recognizes a file as an image by its first bytes, whatever its name."""
    if not os.path.isfile(path):  # a pipe would keep us waiting
        return False
    try:
        with Image.open(path, formats=readable_formats()):
            return True
    except Image.DecompressionBombError:  # a huge image, which `load_image` refuses
        return True
    except Exception:  # see `load_image`
        return False


def to_upright_rgb(image: Image.Image) -> Image.Image:
    """Return a picture that Pillow has opened, upright and in RGB; see `load_image`."""
    if image.format in PROGRAMS:
        raise ValueError(f"an {image.format} file is a program, which is not run")
    turn = TURNS.get(read_orientation(image))
    if turn is not None:
        image = image.transpose(turn)
    if image.mode == "F" or image.mode.startswith("I"):
        image = to_8_bits(image)
    if image.mode in ("La", "RGBa"):  # colors that are multiplied by their opacity
        image = image.convert(image.mode.upper())
    if image.mode.endswith("A") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    image = image.convert("RGB")
    image.info = {}  # an orientation in here would turn the picture a second time
    return image


def read_orientation(image: Image.Image) -> int:
    """Return a picture's EXIF orientation, or 1 where there is none that can be read."""
    decode(image)  # may turn a TIFF by itself, and then removes its orientation
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # EXIF data that are no EXIF data
        return 1


def decode(image: Image.Image) -> None:
    """Decode a picture that Pillow has opened, without telling Pillow the name of its file.

    If Pillow knows the name, it maps a file without compression into memory. Pillow 11 and
    12 then take the height of a TIFF for its width if its orientation exchanges the two.
    """
    if isinstance(image, ImageFile.ImageFile):
        filename, image.filename = image.filename, ""
        try:
            image.load()
        finally:
            image.filename = filename
    else:
        image.load()


def to_8_bits(image: Image.Image) -> Image.Image:
    """Scale grayscale of 16 or 32 bits, or of floats, to values from 0 to 255.

    Such a file does not say which value is white. A camera with 12 bits may fill 16-bit
    files up to 4095 only, and a scanner 32-bit files up to 255. So we take the smallest
    usual white that is not below the largest value in the picture: that of 8, 10, 12, 14
    or 16 bits. Beyond 16 bits no white is usual, and the largest value itself is white.
    For floats that are at most 1, white is 1.

    A dark picture may look like one with fewer bits, and become brighter than others of
    its set. If you know the white of your files, save them with 8 bits.

    Raises:
        ValueError: if a value is negative, infinite or NaN.
    """
    values = np.asarray(image).astype(np.float64)  # exact for all integers of 32 bits
    least, most = values.min(), values.max()
    if not 0 <= least <= most < np.inf:
        raise ValueError(
            f"its values go from {least:g} to {most:g}, but a brightness is finite and not "
            "negative; choose which values are black and white, and save it with 8 bits"
        )
    whites = (1, *USUAL_WHITES) if image.mode == "F" else USUAL_WHITES
    white = next((white for white in whites if most <= white), most)
    scaled = values * 255 / white
    rounded = np.rint(scaled) if image.mode == "F" else np.floor(scaled)
    return Image.fromarray(rounded.astype(np.uint8))
