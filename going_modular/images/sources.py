"""The images of the series: photos, or drawn pictures where photos cannot be downloaded.

The photos are FoodVision Mini: 300 photos of pizza, steak and sushi that the course of
learnpytorch.io took from Food-101 (Bossard et al., 2014).
"""

import tempfile
from pathlib import Path
from typing import NamedTuple

from going_modular.drawings.synthetic_food import CUSTOM, make_food_dataset
from going_modular.images.downloads import DownloadError, download_data, download_file, is_url
from going_modular.utils import data_dir, get_source, project_path

PHOTOS = "pizza_steak_sushi"
PHOTO_CHECKSUMS = Path(__file__).with_name(f"{PHOTOS}.sha256")
CUSTOM_PHOTO = "04-pizza-dad.jpeg"
CUSTOM_PHOTO_SHA256 = "0f00389758009e8430ca17c9a21ebb4564c6945e0c91c58cf058e6a93d267dc8"
COURSE = "https://github.com/mrdbourke/pytorch-deep-learning/raw/main"


class FoodImages(NamedTuple):
    """The folders of the images, one custom photo, and a description of the source."""

    train_dir: Path
    test_dir: Path
    custom_photo: Path
    source: str


def get_food_images() -> FoodImages:
    """Find, download or draw the images that FOODVISION_SOURCE asks for.

    "auto", or no value: the photos in `data/` if they are complete, else a download from
    the course's repository, else drawn pictures. `source` in the result says which.
    "synthetic": drawn pictures, without any download. Anything else is a mirror: a folder
    or a URL that has `pizza_steak_sushi.zip` and `04-pizza-dad.jpeg`. `project_path` says
    where a relative folder starts.

    Raises:
        DownloadError: if a mirror does not have the photos, or if they cannot be stored.
            It says what failed and what you can do.
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
    except DownloadError as error:
        raise DownloadError(
            f"FOODVISION_SOURCE={source} does not have the photos. {error}\n"
            f"What to do: put {PHOTOS}.zip and {CUSTOM_PHOTO} there, or set the variable to "
            '"synthetic" to use drawn pictures.'
        ) from error
    except OSError as error:
        raise DownloadError(
            f"The photos cannot be stored in {data_dir()}: {error}\n"
            "What to do: set FOODVISION_DATA to a folder that you can write to."
        ) from error


def get_photos(zip_folder: str | Path, photo_folder: str | Path) -> FoodImages:
    """Download FoodVision Mini and the chapter's custom photo, unless they are there.

    Raises:
        DownloadError: if they cannot be downloaded or are not the expected files.
    """
    photos = download_data(f"{zip_folder}/{PHOTOS}.zip", PHOTOS, PHOTO_CHECKSUMS)
    photo = download_file(f"{photo_folder}/{CUSTOM_PHOTO}", CUSTOM_PHOTO, CUSTOM_PHOTO_SHA256)
    return FoodImages(photos / "train", photos / "test", photo, "FoodVision Mini (300 photos)")


def get_drawn_images() -> FoodImages:
    """Draw the twin of FoodVision Mini, unless it is there.

    Where `data/` is read-only, the drawings go to the folder for temporary files, and
    `source` in the result says so.
    """
    source = "drawn food (300 pictures)"
    try:
        folder = make_food_dataset(data_dir() / "synthetic_food")
    except OSError as error:
        folder = make_food_dataset(Path(tempfile.gettempdir(), "foodvision/drawn"))
        source += f", kept in {folder}, because {data_dir()} cannot be written ({error})"
    return FoodImages(folder / "train", folder / "test", folder / CUSTOM, source)
