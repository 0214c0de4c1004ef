"""Images: where they come from, how they are read, and in which batches.

The photos are FoodVision Mini: 300 photos of pizza, steak and sushi that the course
of learnpytorch.io took from Food-101 (Bossard et al., 2014). Where they cannot be had,
drawn pictures take their place (`synthetic_food.py`).
"""

import signal
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset, TensorDataset
from torchvision.datasets import ImageFolder

from going_modular.images.downloads import DownloadError, download_data, download_file
from going_modular.images.reading import load_image
from going_modular.images.sources import FoodImages, get_drawn_images, get_food_images, get_source
from going_modular.images.transforms import Transform, evaluation_transform
from going_modular.utils import get_device, project_path

# What a notebook needs of images, from one place; the work is done in `images/`
__all__ = [
    "Augmented",
    "DownloadError",
    "FoodImages",
    "PhotoFolder",
    "Transform",
    "check_same_classes",
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
    "set_epoch",
    "split_train_validation",
]


class PhotoFolder(ImageFolder):
    """`ImageFolder` that reads with `load_image` and passes over hidden folders."""

    def __init__(self, folder: str | Path, transform: Transform | None = None):
        super().__init__(project_path(folder), transform, loader=load_image)

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
    dataset: Dataset, batch_size: int, shuffle: bool = False, num_workers: int = 0, seed: int = 42
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
