"""Five-fold cross-validation over the 300 images, for `folds` and `transfer`.

The images are dealt into five parts. A model learns from four of them and is tested on
the fifth, five times in all, so that each image is tested once.
"""

from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
import torch

from going_modular import data_setup
from going_modular.data_setup import FoodImages
from going_modular.images.transforms import Normalization, Transform
from going_modular.vit.backbones import TokenStatistics, load_pretrained_backbone


class Images(NamedTuple):
    """All images of both folders, the training images first."""

    images: torch.Tensor  # (M, C, H, W)
    labels: torch.Tensor  # (M,)
    train_count: int  # how many of them are training images


class Split(NamedTuple):
    """The indices of the images to train on, and of those to test on."""

    train: list[int]
    held_out: list[int]


def read_images(food: FoodImages, transform: Transform) -> Images:
    """The training and test images through a transform, in memory."""
    parts = [
        data_setup.load_into_memory(data_setup.PhotoFolder(folder, transform)).tensors
        for folder in (food.train_dir, food.test_dir)
    ]
    images, labels = (torch.cat(both) for both in zip(*parts, strict=True))
    return Images(images, labels, train_count=len(parts[0][0]))


def five_folds(labels: torch.Tensor, seed: int) -> list[Split]:
    """Five splits that test each image once; each part holds all classes alike.

    Raises:
        ModuleNotFoundError: see `require_sklearn`.
    """
    require_sklearn()
    from sklearn.model_selection import StratifiedKFold

    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    return [
        Split(train.tolist(), held_out.tolist())
        for train, held_out in folds.split(np.zeros(len(labels)), labels)
    ]


def published_split(images: Images) -> list[Split]:
    """One split, into the training and the test images as they were published."""
    train, end = images.train_count, len(images.labels)
    return [Split(list(range(train)), list(range(train, end)))]


def accuracy_over(
    splits: Iterable[Split],
    labels: torch.Tensor,
    predict: Callable[[list[int], list[int]], np.ndarray],
) -> float:
    """Accuracy over the held-out images of all splits together.

    Args:
        predict: (train, held_out) -> labels of the held-out images, by a model that has
            learned from the others.
    """
    right = total = 0
    for train, held_out in splits:
        right += (predict(train, held_out) == labels[held_out].numpy()).sum()
        total += len(held_out)
    return right / total


def our_backbone() -> tuple[TokenStatistics, Transform, Normalization]:
    """Our pretrained ViT without its head, the transform of its images, and their colors."""
    backbone, transform, _ = load_pretrained_backbone("drawn_dishes")
    assert isinstance(backbone, TokenStatistics)
    return backbone, transform, Normalization(tuple(transform.mean), tuple(transform.std))


def require_sklearn() -> None:
    """Raise `ModuleNotFoundError`, with what to do, where scikit-learn is missing."""
    if find_spec("sklearn") is None:
        raise ModuleNotFoundError(
            "this measurement needs scikit-learn, which is not among the package's own "
            "requirements: pip install scikit-learn"
        )
