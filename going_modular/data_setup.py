"""Folders of images, batches, splits, and augmentation that can be repeated.

`images/` downloads and reads the images; this module passes on what notebooks need of it.
"""

from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset, TensorDataset

from going_modular.images.downloads import DownloadError, download_data, download_file
from going_modular.images.folders import (
    PhotoFolder,
    check_images,
    check_same_classes,
    check_several_classes,
)
from going_modular.images.reading import load_image
from going_modular.images.sources import FoodImages, get_drawn_images, get_food_images
from going_modular.images.transforms import Transform, evaluation_transform
from going_modular.training.interrupts import ignore_interrupts
from going_modular.utils import get_device, get_source

__all__ = [
    "Augmented",
    "DownloadError",
    "FoodImages",
    "PhotoFolder",
    "Transform",
    "check_same_classes",
    "check_several_classes",
    "create_dataloader",
    "create_dataloaders",
    "download_data",
    "download_file",
    "evaluation_transform",
    "get_drawn_images",
    "get_food_images",
    "get_source",
    "load_image",
    "load_into_memory",
    "split_train_validation",
]


def create_dataloaders(
    train_dir: str | Path,
    test_dir: str | Path,
    transform: Transform,
    batch_size: int,
    num_workers: int = 0,
    train_transform: Transform | None = None,
    seed: int = 42,
) -> tuple[DataLoader, DataLoader, list[str]]:
    """Create data loaders for two folders that contain one folder of images per class.

    Args:
        transform: from an RGB image to a tensor (C, H, W).
        num_workers: number of processes that read images. With 0, this process reads,
            which suits a small data set in a notebook. Use more where reading is slow.
        train_transform: a different transform for the training images, to augment them.
        seed: decides the order of the training images, together with the epoch.

    Returns:
        (train_dataloader, test_dataloader, class_names). Only the first one shuffles.

    Raises:
        FileNotFoundError: if a folder is missing or has a class without images.
        ValueError: if the two folders have different classes, or one class only.
    """
    train_data = PhotoFolder(train_dir, train_transform or transform)
    test_data = PhotoFolder(test_dir, transform)
    check_same_classes(train_data, test_data)
    check_several_classes(train_data)
    return (
        create_dataloader(train_data, batch_size, True, num_workers, seed),
        create_dataloader(test_data, batch_size, False, num_workers),
        train_data.classes,
    )


def create_dataloader(
    dataset: Dataset, batch_size: int, shuffle: bool = False, num_workers: int = 0, seed: int = 42
) -> DataLoader:
    """Create batches of a dataset, in its own order or shuffled by (seed, epoch).

    `engine.train` sets the epoch of the sampler. A plain loop over the loader does not,
    so it always sees the same order: a notebook cell that runs again shows the same batch.
    """
    sampler: DistributedSampler | None = None
    if shuffle:  # the only sampler of PyTorch whose order depends on (seed, epoch) alone
        sampler = DistributedSampler(dataset, num_replicas=1, rank=0, seed=seed)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        worker_init_fn=ignore_interrupts,
        pin_memory=get_device().type == "cuda",
    )


class Augmented(Dataset):
    """A dataset whose images go through a random transform that can be repeated exactly.

    Seed, epoch and index alone decide the random numbers for an image. So an image is
    augmented the same way whatever the number of workers and the order, and also in a
    run that was stopped and resumed.
    """

    def __init__(self, dataset: Dataset, transform: Transform, seed: int = 42):
        self.dataset, self.transform, self.seed = dataset, transform, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Use the random numbers of this epoch from now on."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # Dataset declares no length

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image, label = self.dataset[index]
        numbers = np.random.SeedSequence((self.seed, self.epoch, index))
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would reset the generator of the GPU, too.
            seed = int(numbers.generate_state(1, np.uint64)[0])
            torch.default_generator.manual_seed(seed)
            return self.transform(image), label


def split_train_validation(
    train_dir: str | Path | PhotoFolder,
    fraction: float = 0.2,
    seed: int = 42,
    transform: Transform | None = None,
    train_transform: Transform | None = None,
) -> tuple[Subset, Subset]:
    """Split a folder of training images into two parts, class by class.

    You choose settings on the validation part, so that the test images stay unseen. Each
    part gets at least one image of every class.

    Args:
        fraction: share of the images for the validation part, between 0 and 1.
        transform: for the validation part, and for the training part unless
            `train_transform` is given. Without a transform, the parts hold Pillow images.

    Returns:
        (training part, validation part). `.dataset.classes` names the classes.

    Raises:
        FileNotFoundError: if the folder is missing or has a class without images.
        ValueError: if `fraction` is not between 0 and 1, there is one class only, or a class
            has only one image.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must lie between 0 and 1, got {fraction}")
    photos = train_dir if isinstance(train_dir, PhotoFolder) else PhotoFolder(train_dir)
    check_several_classes(photos)
    train_data = photos.with_transform(train_transform or transform)
    validation_data = photos.with_transform(transform)
    labels = torch.tensor(train_data.targets)
    generator = torch.Generator().manual_seed(seed)
    train_part: list[int] = []
    validation_part: list[int] = []
    for label in labels.unique():
        members = torch.nonzero(labels == label).flatten()
        shuffled = members[torch.randperm(len(members), generator=generator)].tolist()
        if len(shuffled) < 2:
            name = train_data.classes[label]
            raise ValueError(
                f"class {name!r} of {train_data.root} has only one image: a split needs at least "
                "two, one for each part"
            )
        size = min(max(round(fraction * len(shuffled)), 1), len(shuffled) - 1)
        validation_part += shuffled[:size]
        train_part += shuffled[size:]
    return (
        Subset(train_data, sorted(train_part)),
        Subset(validation_data, sorted(validation_part)),
    )


def load_into_memory(dataset: Dataset) -> TensorDataset:
    """Read and transform all images of a dataset once: images (M, C, H, W), labels (M,).

    Use it for small images and a transform without random numbers. Later epochs then
    read nothing.

    Raises:
        ValueError: if images are damaged (the message names them all), or if the
            transform gives them different shapes.
    """
    try:
        return stack_images(dataset)
    except (OSError, ValueError):
        check_images(paths_of(dataset))
        raise


def stack_images(dataset: Dataset) -> TensorDataset:
    """As `load_into_memory`, but the first damaged image raises its own error."""
    size = len(dataset)  # type: ignore[arg-type]  # Dataset declares no length
    images, labels = torch.empty(0), []
    for index in range(size):
        image, label = dataset[index]
        if index == 0:  # all the memory at once: torch.stack would need it twice
            images = torch.empty((size, *image.shape), dtype=image.dtype)
        if image.shape != images.shape[1:]:
            raise ValueError(
                f"image {index} has the shape {tuple(image.shape)}, and those before it "
                f"{tuple(images.shape[1:])}: choose a transform that gives one size to all"
            )
        images[index] = image
        labels.append(label)
    return TensorDataset(images, torch.tensor(labels))


def paths_of(dataset: Dataset) -> list[str]:
    """The files of a `PhotoFolder`, or of a part of one; empty for other datasets."""
    if isinstance(dataset, Subset):
        paths = paths_of(dataset.dataset)
        return [paths[index] for index in dataset.indices] if paths else []
    return [path for path, _ in dataset.samples] if isinstance(dataset, PhotoFolder) else []
