"""Images: where they come from, how they are read, and in which batches.

The photos are FoodVision Mini: 300 photos of pizza, steak and sushi that the course
of learnpytorch.io took from Food-101 (Bossard et al., 2014). Where they cannot be had,
drawn pictures take their place (`synthetic_food.py`).
"""

import hashlib
import os
import shutil
import signal
import sys
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import requests
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    Subset,
    TensorDataset,
)
from torchvision.datasets import ImageFolder
from tqdm import tqdm

from going_modular.synthetic_food import CUSTOM, make_food_dataset
from going_modular.utils import get_device, repository_path

DATA_DIR = repository_path("data")
PHOTOS = "pizza_steak_sushi"
PHOTO_CHECKSUMS = DATA_DIR / f"{PHOTOS}.sha256"
CUSTOM_PHOTO = "04-pizza-dad.jpeg"
CUSTOM_PHOTO_SHA256 = "0f00389758009e8430ca17c9a21ebb4564c6945e0c91c58cf058e6a93d267dc8"
COURSE = "https://github.com/mrdbourke/pytorch-deep-learning/raw/main"
TIMEOUT = (3, 10)  # seconds to connect, and between two pieces of the answer
PATIENCE = 6  # seconds until an answer has begun, whatever holds it up

Transform = Callable[[Image.Image], torch.Tensor]


class DownloadError(OSError):
    """A file could not be fetched, or is not what it should be."""


class FoodImages(NamedTuple):
    """Where the images of the series lie, and in words what they are."""

    train_dir: Path
    test_dir: Path
    custom_photo: Path
    source: str


# Where the images come from


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
    mirror = source.rstrip("/") if is_url(source) else repository_path(source)
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
    photo = download_file(
        f"{photo_folder}/{CUSTOM_PHOTO}", CUSTOM_PHOTO, CUSTOM_PHOTO_SHA256
    )
    return FoodImages(
        photos / "train", photos / "test", photo, "FoodVision Mini (300 photos)"
    )


def get_drawn_images() -> FoodImages:
    """FoodVision Mini's drawn twin, under `data/` or, if that is closed, elsewhere."""
    try:
        folder = make_food_dataset(DATA_DIR / "synthetic_food")
    except OSError:  # a read-only checkout
        folder = make_food_dataset(Path(tempfile.gettempdir(), "foodvision/drawn"))
    return FoodImages(
        folder / "train", folder / "test", folder / CUSTOM, "drawn food (300 pictures)"
    )


def download_data(
    source: str | Path, destination: str | Path, checksums: str | Path | None = None
) -> Path:
    """Fetch a zip file and unpack it into a folder under `data/`; return the folder.

    Nothing happens if the folder is there and, with `checksums`, holds exactly the
    files of that list. It takes its name only when it is whole: a run that was
    interrupted leaves nothing that a later one could mistake for the data. A folder
    that differs from the list is kept, in `<destination>.incomplete-...` beside it.

    Args:
        source: URL or path of the zip file.
        destination: the folder's name, seen from `data/`.
        checksums: a file of "<SHA-256>  <path inside the folder>" lines.

    Raises:
        DownloadError: if the file cannot be fetched, is no zip file, holds a path
            that leaves the folder, or does not unpack to the listed files.
    """
    folder = DATA_DIR / destination
    if is_complete(folder, checksums):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=folder.parent) as temp:
        archive, unpacked = Path(temp, "archive.zip"), Path(temp, "unpacked")
        fetch(source, archive)
        unpack(archive, unpacked, source)
        if wrong := differences(unpacked, checksums):
            raise DownloadError(
                f"{source} is not the expected data: {len(wrong)} files are missing, "
                f"changed or not listed in {Path(checksums).name}, the first is "
                f"{wrong[0]}."
            )
        if is_complete(folder, checksums):  # another process was faster
            return folder
        if folder.exists():
            prefix = f"{folder.name}.incomplete-"
            aside = tempfile.mkdtemp(prefix=prefix, dir=folder.parent)
            folder.rename(Path(aside, folder.name))
        unpacked.rename(folder)
    return folder


def download_file(
    source: str | Path, destination: str | Path, sha256: str | None = None
) -> Path:
    """Fetch one file to a path under `data/`, unless it is there; return the path.

    Args:
        sha256: the file's SHA-256, or its first digits. A file with another one is
            replaced.

    Raises:
        DownloadError: if it cannot be fetched or has another SHA-256 than expected.
    """
    path = DATA_DIR / destination
    if path.is_file() and sha256_of(path).startswith(sha256 or ""):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=path.parent) as temp:
        unfinished = Path(temp, path.name)
        fetch(source, unfinished)
        if not sha256_of(unfinished).startswith(sha256 or ""):
            raise DownloadError(f"{source} is not the expected file: its hash differs.")
        return unfinished.replace(path)


def is_url(source: str | Path) -> bool:
    """True for an http or https address, False for a path."""
    return str(source).startswith(("http://", "https://"))


def fetch(source: str | Path, path: Path) -> None:
    """Copy a URL or a local file to `path`; `DownloadError` says what went wrong.

    A relative local path is seen from the repository's root.
    """
    if not is_url(source):
        if not repository_path(source).is_file():
            raise DownloadError(f"There is no file {source}.")
        shutil.copyfile(repository_path(source), path)
        return
    try:
        with ask(source) as answer:
            answer.raise_for_status()
            size = int(answer.headers.get("Content-Length", 0))
            bar = tqdm(
                total=size or None,
                desc=str(source).rsplit("/", 1)[-1],
                unit="B",
                unit_scale=True,
                leave=False,
                file=sys.stdout,
            )
            with path.open("wb") as file, bar:
                for piece in answer.iter_content(chunk_size=2**16):
                    bar.update(file.write(piece))
    except requests.HTTPError as error:
        status = f"{error.response.status_code} {error.response.reason}"
        raise DownloadError(f"The server answers {status} to {source}.") from error
    except requests.Timeout as error:
        raise DownloadError(f"No answer in time from {source}.") from error
    except requests.RequestException as error:
        raise DownloadError(f"The connection failed for {source}.") from error
    if path.stat().st_size < size:
        raise DownloadError(
            f"Only {path.stat().st_size} of {size} bytes arrived from {source}."
        )


def ask(url: str) -> requests.Response:
    """The beginning of a server's answer, within `PATIENCE` seconds.

    Raises:
        requests.RequestException: if there is none. A name server that does not answer
            counts too; no timeout of requests covers it, hence the thread.
    """
    outcome: list[requests.Response | requests.RequestException] = []

    def get() -> None:
        # Uncompressed, so that Content-Length counts the file
        plain = {"Accept-Encoding": "identity"}
        try:
            outcome.append(
                requests.get(url, stream=True, timeout=TIMEOUT, headers=plain)
            )
        except requests.RequestException as error:
            outcome.append(error)

    thread = threading.Thread(target=get, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    if not outcome:
        raise requests.Timeout
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]


def unpack(archive: Path, folder: Path, source: str | Path) -> None:
    """Unpack a zip file, or raise `DownloadError` if it is broken or unsafe."""
    try:
        with zipfile.ZipFile(archive) as zip_file:
            names = zip_file.namelist()
            for name in names:
                if not (folder / name).resolve().is_relative_to(folder.resolve()):
                    raise DownloadError(
                        f"{source} holds the path {name}, which leaves its folder."
                    )
            zip_file.extractall(folder)
    except DownloadError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, OSError) as error:
        raise DownloadError(f"{source} is not a whole zip file ({error}).") from error
    if not names:
        raise DownloadError(f"{source} is an empty zip file.")


def is_complete(folder: Path, checksums: str | Path | None) -> bool:
    """True for a folder that holds something and does not differ from its list."""
    return (
        folder.is_dir() and any(folder.iterdir()) and not differences(folder, checksums)
    )


def differences(folder: Path, checksums: str | Path | None) -> list[str]:
    """The files that are missing, changed, or not in the list; hidden ones are free."""
    if checksums is None:
        return []
    lines = repository_path(checksums).read_text().splitlines()
    listed = {
        name: sha256 for sha256, name in (line.split(maxsplit=1) for line in lines)
    }
    present = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }
    return [
        name
        for name in [*listed, *(name for name in present if name not in listed)]
        if name not in present or sha256_of(present[name]) != listed.get(name)
    ]


def sha256_of(path: Path) -> str:
    """A file's SHA-256 as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


# How one image is read

# What Pillow raises for a file that is no picture, a damaged or a far too large one.
UNREADABLE = (
    UnidentifiedImageError,
    OSError,
    SyntaxError,
    Image.DecompressionBombError,
)


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
        path = repository_path(image)
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


# In which batches they come


class PhotoFolder(ImageFolder):
    """`ImageFolder` that reads with `load_image` and passes over hidden folders."""

    def __init__(self, folder: str | Path, transform: Transform | None = None):
        super().__init__(repository_path(folder), transform, loader=load_image)

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        names, _ = super().find_classes(directory)
        names = [name for name in names if not name.startswith(".")]
        return names, {name: label for label, name in enumerate(names)}


def create_dataloaders(
    train_dir: str | Path,
    test_dir: str | Path,
    transform: Transform,
    batch_size: int,
    num_workers: int = 0,
    train_transform: Transform | None = None,
    seed: int = 42,
) -> tuple[DataLoader, DataLoader, list[str]]:
    """Data loaders over two folders that hold one folder of images a class.

    Args:
        transform: from an RGB image to a tensor (C, H, W).
        num_workers: processes that read images. 0 reads in this one, which is best
            for a small data set in a notebook; more pays where reading is slow.
        train_transform: another transform (augmentation) for the training images.
        seed: with the epoch, decides the order of the training images.

    Returns:
        (train_dataloader, test_dataloader, class_names); only the first shuffles.

    Raises:
        FileNotFoundError: if a folder is missing or has a class without images.
        ValueError: if the two folders do not hold the same classes.
    """
    train_data = PhotoFolder(train_dir, train_transform or transform)
    test_data = PhotoFolder(test_dir, transform)
    check_same_classes(train_data, test_data)
    return (
        create_dataloader(train_data, batch_size, True, num_workers, seed),
        create_dataloader(test_data, batch_size, False, num_workers),
        train_data.classes,
    )


def check_same_classes(first: PhotoFolder, second: PhotoFolder) -> None:
    """Raise `ValueError` unless two folders hold the same classes."""
    if first.classes != second.classes:
        raise ValueError(
            f"the classes differ: {first.root} has {first.classes}, {second.root} has "
            f"{second.classes}"
        )


def create_dataloader(
    dataset: Dataset,
    batch_size: int,
    shuffle: bool = False,
    num_workers: int = 0,
    seed: int = 42,
) -> DataLoader:
    """Batches of a dataset, shuffled as (seed, epoch) say or in the dataset's order.

    `engine.train` tells the sampler each epoch's number; a plain loop over the loader
    sees the same order each time, so a notebook cell run again shows the same batch.
    """
    sampler = None
    if shuffle:  # PyTorch's one sampler whose order is a function of (seed, epoch)
        sampler = DistributedSampler(dataset, num_replicas=1, rank=0, seed=seed)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        worker_init_fn=ignore_interrupts,
        pin_memory=get_device().type == "cuda",
    )


def ignore_interrupts(worker: int) -> None:
    """Leave Ctrl-C, which a terminal sends to every process, to the main process.

    A worker that obeyed it would fail the step that a checkpoint waits for.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def set_epoch(dataloader: object, epoch: int) -> None:
    """Tell a data loader's sampler, and its `Augmented` images, which epoch it is.

    Anything else that gives batches is left alone.
    """
    batches = getattr(dataloader, "batch_sampler", None)
    for part in (batches, "sampler"), (dataloader, "dataset"):
        tell = getattr(getattr(*part, None), "set_epoch", None)
        if tell is not None:
            tell(epoch)


class Augmented(Dataset):
    """A data set's images through a random transform that can be repeated exactly.

    Seed, epoch and index decide PyTorch's random numbers for an image: they are the
    same however many processes read, in whatever order, and after a resumed run's stop.
    """

    def __init__(self, dataset: Dataset, transform: Transform, seed: int = 42):
        self.dataset, self.transform, self.seed = dataset, transform, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Take the random numbers of this epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image, label = self.dataset[index]
        numbers = np.random.SeedSequence((self.seed, self.epoch, index))
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed: that would reset the GPU's generator as well
            seed = int(numbers.generate_state(1, np.uint64)[0])
            torch.default_generator.manual_seed(seed)
            return self.transform(image), label


def split_train_validation(
    train_dir: str | Path,
    fraction: float = 0.2,
    seed: int = 42,
    transform: Transform | None = None,
    train_transform: Transform | None = None,
) -> tuple[Subset, Subset]:
    """Split a folder of training images in two, the same fraction of every class.

    Settings are chosen on the second part, so that the test images stay unseen. Each
    part gets at least one image of every class.

    Args:
        fraction: of the images, goes to validation; between 0 and 1.
        transform: for the validation part, and for the training part unless
            `train_transform` is given. Without any, the parts hold Pillow images.

    Returns:
        (training part, validation part); `.dataset.classes` names the classes.

    Raises:
        FileNotFoundError: if the folder is missing or has a class without images.
        ValueError: if `fraction` is not between 0 and 1, or a class has one image only.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must lie between 0 and 1, got {fraction}")
    train_data = PhotoFolder(train_dir, train_transform or transform)
    validation_data = PhotoFolder(train_dir, transform)
    labels = torch.tensor(train_data.targets)
    generator = torch.Generator().manual_seed(seed)
    train_part, validation_part = [], []
    for label in labels.unique():
        members = torch.nonzero(labels == label).flatten()
        members = members[torch.randperm(len(members), generator=generator)].tolist()
        if len(members) < 2:
            name = train_data.classes[label]
            raise ValueError(f"class {name!r} has one image, a split needs two or more")
        cut = min(max(round(fraction * len(members)), 1), len(members) - 1)
        validation_part += members[:cut]
        train_part += members[cut:]
    return (
        Subset(train_data, sorted(train_part)),
        Subset(validation_data, sorted(validation_part)),
    )


def load_into_memory(dataset: Dataset) -> TensorDataset:
    """All images (M, C, H, W) and labels (M,) of a dataset, read and transformed once.

    For small images and a transform without randomness: epochs then cost no reading.
    """
    images, labels = zip(*dataset, strict=True)
    return TensorDataset(torch.stack(images), torch.tensor(labels))
