"""Where the images of the series come from: photos, or drawings in their place."""

import os
import tempfile
from pathlib import Path
from typing import NamedTuple

from going_modular.drawings.synthetic_food import CUSTOM, make_food_dataset
from going_modular.images.downloads import DownloadError, download_data, download_file, is_url
from going_modular.utils import data_dir, project_path

PHOTOS = "pizza_steak_sushi"
PHOTO_CHECKSUMS = Path(__file__).with_name(f"{PHOTOS}.sha256")
CUSTOM_PHOTO = "04-pizza-dad.jpeg"
CUSTOM_PHOTO_SHA256 = "0f00389758009e8430ca17c9a21ebb4564c6945e0c91c58cf058e6a93d267dc8"
COURSE = "https://github.com/mrdbourke/pytorch-deep-learning/raw/main"


class FoodImages(NamedTuple):
    """Where the images of the series lie, and in words what they are."""

    train_dir: Path
    test_dir: Path
    custom_photo: Path
    source: str


def get_food_images() -> FoodImages:
    """Find, fetch or draw the images that the variable FOODVISION_SOURCE asks for.

    "auto" (or unset): the photos under `data/` if they are complete, else a download
    from the course's repository, else drawn pictures. "synthetic": the drawn ones, and
    nothing is downloaded. Anything else is a mirror: a folder or URL prefix that holds
    `pizza_steak_sushi.zip` and `04-pizza-dad.jpeg`. A relative folder is seen from the
    repository's root.

    Raises:
        DownloadError: if a mirror does not have them, with what failed and what to do.
    """
    source = get_source()
    if source == "synthetic":
        return get_drawn_images()
    if source == "auto":
        try:
            return get_photos(f"{COURSE}/data", f"{COURSE}/images")
        except OSError as error:
            drawn = get_drawn_images()
            return drawn._replace(source=f"{drawn.source}. No photos: {error}")
    mirror = source.rstrip("/") if is_url(source) else project_path(source)
    try:
        return get_photos(mirror, mirror)
    except OSError as error:
        raise DownloadError(
            f"The photos could not be had. {error}\n"
            f"What to do: put {PHOTOS}.zip and {CUSTOM_PHOTO} into the folder, or at "
            "the address, that FOODVISION_SOURCE names; or set that variable to "
            '"synthetic", for drawn pictures.'
        ) from error


def get_source() -> str:
    """Where images and weights may come from: "auto", "synthetic", or a mirror."""
    return os.environ.get("FOODVISION_SOURCE") or "auto"


def get_photos(zip_folder: str | Path, photo_folder: str | Path) -> FoodImages:
    """FoodVision Mini and the chapter's custom photo, fetched unless they are there.

    Raises:
        DownloadError: if they cannot be fetched or are not what they should be.
    """
    photos = download_data(f"{zip_folder}/{PHOTOS}.zip", PHOTOS, PHOTO_CHECKSUMS)
    photo = download_file(f"{photo_folder}/{CUSTOM_PHOTO}", CUSTOM_PHOTO, CUSTOM_PHOTO_SHA256)
    return FoodImages(photos / "train", photos / "test", photo, "FoodVision Mini (300 photos)")


def get_drawn_images() -> FoodImages:
    """FoodVision Mini's drawn twin, under `data/` or, if that is closed, elsewhere."""
    try:
        folder = make_food_dataset(data_dir() / "synthetic_food")
    except OSError:  # a read-only checkout
        folder = make_food_dataset(Path(tempfile.gettempdir(), "foodvision/drawn"))
    return FoodImages(
        folder / "train", folder / "test", folder / CUSTOM, "drawn food (300 pictures)"
    )
