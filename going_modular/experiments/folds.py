"""Accuracy by 5 folds, for notebook 11 and the README.

    choose   settings, by 5 folds within the 225 training images
    folds    from scratch and fine-tuned, by 5 folds over all 300 images

python -m going_modular.experiments.folds choose

FOODVISION_SOURCE says on which images. Each run becomes one line of
`results/<sweep>.jsonl`. A run that stands there is not done again, so that a sweep that
was stopped goes on where it was.
"""

import argparse
from dataclasses import replace
from functools import cache, partial
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2

from going_modular import data_setup, engine
from going_modular.experiments.sweeps import fingerprint, read_results, sweep
from going_modular.images.transforms import Transform, evaluation_transform
from going_modular.model_builder import ViT
from going_modular.training.fit import augment, fit, shrinking
from going_modular.training.recipes import HEAD, MINI, RECIPES, TABLE_4, Recipe, initialize
from going_modular.utils import get_device, set_seeds
from going_modular.vit.backbones import load_pretrained_backbone
from going_modular.vit.weights import load_weights

# Accuracy by 5 folds

# The self-supervised start: the network learns which of the training images it sees a
# changed crop of, each image being a class of its own (Dosovitskiy et al., arXiv
# 1406.6909; for ViTs and few images Cao, Yu and Wu, arXiv 2201.10728).
WHICH_IMAGE = replace(RECIPES["mini"], epochs=100, label_smoothing=0.0, cutmix=1.0)


class Food(NamedTuple):
    """All 300 images: to train on (uint8), to evaluate on (float), and their labels."""

    raw: torch.Tensor
    evaluated: torch.Tensor
    labels: torch.Tensor
    train_count: int  # the first so many are the training images
    source: str


def read_food(raw: Transform, evaluated: Transform) -> Food:
    """The images that FOODVISION_SOURCE gives, training images first."""
    food = data_setup.get_food_images()
    folders = (food.train_dir, food.test_dir)
    parts = [
        [
            data_setup.load_into_memory(data_setup.PhotoFolder(folder, transform))
            for folder in folders
        ]
        for transform in (raw, evaluated)
    ]
    images = [torch.cat([part.tensors[0] for part in both]) for both in parts]
    labels = torch.cat([part.tensors[1] for part in parts[0]])
    return Food(*images, labels, len(parts[0][0]), food.source)


@cache
def food_for_mini() -> Food:
    """At the size of `MINI`."""
    size = MINI.image_size
    return read_food(shrinking(size), evaluation_transform(size))


@cache
def food_for_backbone() -> Food:
    """At the size of our backbone: squares from the middle, as it is used to."""
    _, transform, _ = load_pretrained_backbone("drawn_dishes")
    length = transform.crop_size[0] * 3 // 2
    square = [v2.Resize(length), v2.CenterCrop(length), v2.PILToTensor()]
    return read_food(v2.Compose(square), transform)


def run_fold(method: str, seed: int, fold: int, images: str, within: str = "all 300") -> dict:
    """Train on four fifths of the images; how many of the others are right then.

    Args:
        method: one of `METHODS` or `CANDIDATES`.
        seed: shuffles the folds, and decides all else that is random.
        fold: 0 to 4.
        images: what FOODVISION_SOURCE has to give, as `get_food_images` calls it.
        within: "all 300" images, or the "225" training images, to choose settings.

    Raises:
        ValueError: if FOODVISION_SOURCE gives other images.
    """
    began = perf_counter()
    food = food_for_backbone() if "backbone" in method else food_for_mini()
    if food.source != images:
        raise ValueError(f"asked for {images}, but FOODVISION_SOURCE gives other images")
    labels = food.labels if within == "all 300" else food.labels[: food.train_count]
    from sklearn.model_selection import StratifiedKFold  # of requirements/dev.txt

    splitter = StratifiedKFold(5, shuffle=True, random_state=seed)
    train, held_out = list(splitter.split(np.zeros(len(labels)), labels))[fold]
    set_seeds(seed)
    results = (METHODS | CANDIDATES)[method](food, train, held_out, seed)
    return {
        "right": round(results["test_acc"][-1] * len(held_out)),
        "of": len(held_out),
        "loss": round(results["test_loss"][-1], 4),
        "train_loss": round(results["train_loss"][-1], 4),
        "collapsed": results["collapsed"][-1],
        "seconds": round(perf_counter() - began),
    }


def mini_from_scratch(
    food: Food,
    train: np.ndarray,
    held_out: np.ndarray,
    seed: int,
    recipe: Recipe,
    first: Recipe | None = None,
    precision: str = "float32",
) -> dict:
    """A small ViT from random start values, by a recipe.

    With `first`, it learns by that recipe before which image is which, without labels.
    """
    size = MINI.image_size
    config = replace(MINI, dropout=recipe.dropout, stochastic_depth=recipe.stochastic_depth)
    options = {"device": get_device(), "seed": seed, "precision": precision, "progress": False}
    vit = initialize(recipe.start, ViT(config))
    if first is not None:
        numbers = torch.arange(len(train))
        numbered = TensorDataset(food.raw[train], numbers)
        watched = TensorDataset(food.evaluated[train][:32], numbers[:32])
        images = augment(numbered, first, size, seed)
        learner = ViT(replace(config, num_classes=len(train)))
        tensors, _ = fit(learner, first, images, watched, len(train), **options)
        load_weights(vit, tensors, head=False)
    return fit(
        vit,
        recipe,
        augment(TensorDataset(food.raw[train], food.labels[train]), recipe, size, seed),
        TensorDataset(food.evaluated[held_out], food.labels[held_out]),
        num_classes=3,
        **options,
    )[1]


def head_on_backbone(food, train, held_out, seed, recipe: Recipe) -> dict:
    """A linear head; the backbone is frozen, as in notebook 09."""
    backbone, _, _ = load_pretrained_backbone("drawn_dishes")
    parts = [
        engine.extract_features(
            backbone,
            DataLoader(TensorDataset(food.evaluated[part], food.labels[part]), 32),
            get_device(),
        )
        for part in (train, held_out)
    ]
    head = nn.Linear(backbone.embedding_dim, 3)
    options = {"device": get_device(), "seed": seed, "progress": False}
    return fit(head, recipe, *parts, num_classes=3, **options)[1]


def whole_backbone(food, train, held_out, seed, recipe: Recipe) -> dict:
    """All weights of our backbone and of a head that starts at zero (Section 3.2)."""
    backbone, transform, _ = load_pretrained_backbone("drawn_dishes")
    head = nn.Linear(backbone.embedding_dim, 3)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    images = augment(
        TensorDataset(food.raw[train], food.labels[train]),
        recipe,
        transform.crop_size[0],
        seed,
        mean=transform.mean,
        std=transform.std,
    )
    return fit(
        nn.Sequential(backbone, head),
        recipe,
        images,
        TensorDataset(food.evaluated[held_out], food.labels[held_out]),
        num_classes=3,
        device=get_device(),
        seed=seed,
        progress=False,
    )[1]


# Table 4 for fewer images than its batches hold, and the rate that `CANDIDATES` chose.
TABLE_4_SMALL = replace(
    RECIPES["paper-finetune"], batch_size=32, steps=150, lr=0.03, crop_scale=0.4, flip=True
)

# What was tried within the 225 training images: `mini` with some settings changed (in
# 16 bit, for speed), and the paper's learning rates for fine-tuning.
_SMALLER = {"batch_size": 16, "warmup_steps": 80}
_LONGER = _SMALLER | {"epochs": 100}
TRIED = {
    name: replace(RECIPES["mini"], **changes)
    for name, changes in {
        "as it is": {},
        "batches of 16": _SMALLER,
        "batches of 16, 150 epochs, MixUp, CutMix": _SMALLER
        | {"epochs": 150, "mixup": 0.4, "cutmix": 1.0, "label_smoothing": 0.0},
        "batches of 16, 100 epochs": _LONGER,
        "batches of 16, 100 epochs, averaged": _LONGER | {"average_decay": 0.99},
        "batches of 16, 100 epochs, averaged longer": _LONGER | {"average_decay": 0.998},
    }.items()
}
METHODS = {
    "chapter's recipe": partial(mini_from_scratch, recipe=RECIPES["chapter"]),
    "mini": partial(mini_from_scratch, recipe=RECIPES["mini"]),
    "mini, second choice": partial(mini_from_scratch, recipe=TRIED["batches of 16, 100 epochs"]),
    "head on our backbone": partial(head_on_backbone, recipe=HEAD),
    "our backbone, Table 4": partial(whole_backbone, recipe=TABLE_4_SMALL),
}
CANDIDATES = {
    f"mini: {name}": partial(mini_from_scratch, recipe=recipe, precision="bfloat16")
    for name, recipe in TRIED.items()
}
CANDIDATES["mini: after which-image"] = partial(
    mini_from_scratch, recipe=RECIPES["mini"], first=WHICH_IMAGE, precision="bfloat16"
)
for _lr in TABLE_4["Oxford-IIIT Pets"][1]:
    CANDIDATES[f"our backbone, Table 4, rate {_lr}"] = partial(
        whole_backbone, recipe=replace(TABLE_4_SMALL, lr=_lr)
    )


# Sweeps


def accuracies_of(name: str) -> dict[tuple[str, str], list[float]]:
    """Of "choose" or "folds", for each (images, method): accuracy by seed.

    All five folds of a seed count together, so that each image counts once.
    """
    runs = {}
    for line in read_results(name):
        by_seed = runs.setdefault((line["images"], line["method"]), {})
        by_seed.setdefault(line["seed"], []).append((line["right"], line["of"]))
    return {
        key: [
            sum(right for right, _ in folds) / sum(of for _, of in folds)
            for _, folds in sorted(by_seed.items())
        ]
        for key, by_seed in runs.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweep", choices=["choose", "folds"])
    parser.add_argument("--methods", nargs="+", choices=METHODS | CANDIDATES)
    parser.add_argument("--seeds", type=int, default=3, help="0, 1, ... (default: 3)")
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side")
    options = parser.parse_args()
    choosing = options.sweep == "choose"
    source = data_setup.get_food_images().source
    points = [
        {
            "method": method,
            "seed": seed,
            "fold": fold,
            "images": source,
            "settings": fingerprint(MINI, (METHODS | CANDIDATES)[method].keywords),
        }
        for seed in range(options.seeds)
        for method in options.methods or (CANDIDATES if choosing else METHODS)
        for fold in range(5)
    ]
    run = partial(run_fold, within="225" if choosing else "all 300")
    sweep(options.sweep, points, run, options.jobs)


if __name__ == "__main__":
    main()
