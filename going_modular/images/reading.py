"""One picture as people have them, read as RGB."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from going_modular.utils import project_path

# What Pillow raises for a file that is no picture, a damaged or a far too large one.
UNREADABLE = (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError)


def load_image(image: str | Path | Image.Image) -> Image.Image:
    """Any picture as people have them, upright and in RGB.

    Phone photos are turned as their EXIF data says, transparency is laid on white,
    16-bit greyscale is rescaled to 8 bit (a plain conversion would clip it), and
    greyscale, palette and CMYK pictures become RGB.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a picture that Pillow can read.
    """
    if not isinstance(image, Image.Image):
        path = project_path(image)
        try:
            with Image.open(path) as file:
                return load_image(file)
        except FileNotFoundError:
            raise FileNotFoundError(f"there is no picture at {path}") from None
        except UNREADABLE as error:
            raise ValueError(
                f"{path.name} cannot be read as a picture ({error}): save it as JPEG "
                "or PNG and try again"
            ) from error
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit values, in "I;16" or in 32-bit "I"
        values = np.asarray(image).clip(0, 65535) // 257
        image = Image.fromarray(values.astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
