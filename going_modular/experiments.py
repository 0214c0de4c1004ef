"""Measurements for notebook 11: `python -m going_modular.experiments parts`.

    parts    the chapter's recipe, and one part of a better one after the other, on
             drawings
    choose   settings, by 5 folds within the 225 training images
    folds    from scratch and fine-tuned, by 5 folds over all 300 images

FOODVISION_SOURCE says on which images the last two run. Each run becomes one line of
`docs/results/<sweep>.jsonl`. A run that stands there is not done again, so that a sweep
that was stopped goes on where it was.
"""

import argparse
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch
from torch import multiprocessing, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2
from tqdm import tqdm

from going_modular import data_setup, engine
from going_modular.data_setup import Transform
from going_modular.model_builder import ViT, ViTConfig
from going_modular.recipes import MINI, RECIPES, TABLE_4, Recipe, start_as
from going_modular.synthetic_food import make_food_dataset
from going_modular.train import changed_images, fit, shrinking, shrunk
from going_modular.utils import append_line, get_device, repository_path, set_seeds
from going_modular.weights import (
    evaluation_transform,
    load_pretrained_backbone,
    load_weights,
)

RESULTS = repository_path("docs/results")

# What each part of a recipe gives, one after the other. The model is that of notebook
# 08 at size "cpu", the length always the same.
PARTS_MODEL = ViTConfig(
    image_size=64, patch_size=8, embedding_dim=128, num_layers=4, num_heads=4,
    mlp_dim=512, num_classes=3,
)  # fmt: skip
PARTS_EPOCHS = 30
PARTS = {"chapter's recipe": replace(RECIPES["chapter"], epochs=PARTS_EPOCHS)}
for _name, _changes in {
    "+ start values": {"start": "paper"},
    "+ AdamW": {"optimizer": "adamw", "decay_everything": False},
    "+ warm-up": {"warmup_steps": 40},
    "+ clipping": {"clip_norm": 1.0},
    "+ cosine decay": {"schedule": "cosine"},
    "+ learning rate 0.001": {"lr": 1e-3},
    "+ augmentation": {"crop_scale": 0.25, "flip": True, "color_jitter": 0.2},
}.items():
    PARTS[_name] = replace(list(PARTS.values())[-1], **_changes)


def run_part(part: str, seed: int, epochs: int | None = None, **options) -> dict:
    """Train by one row of `PARTS` on the drawings; what notebook 11 draws of it.

    It learns from the 225 training images and is measured on 300 others, drawn from
    another seed; the series' test images have no part in it.

    Args:
        epochs: fewer than the recipe's, for a quick look.
        options: of `engine.train`.
    """
    recipe = PARTS[part]
    if epochs is not None:
        recipe = replace(recipe, epochs=epochs, warmup_steps=0)
    set_seeds(seed)
    vit = start_as(recipe.start, ViT(replace(PARTS_MODEL, dropout=recipe.dropout)))
    size, norms = vit.config.image_size, []
    drawn = data_setup.get_drawn_images()
    _, results = fit(
        vit,
        recipe,
        changed_images(shrunk(drawn.train_dir, size), recipe, size, seed),
        held_out_drawings(size),
        num_classes=3,
        device=get_device(),
        seed=seed,
        progress=False,
        on_step=lambda epoch, step: norms.append(round(step.grad_norm, 4)),
        **options,
    )
    collapsed = results.pop("collapsed")
    digits = {name: [round(v, 4) for v in values] for name, values in results.items()}
    return {**digits, "collapsed": collapsed, "grad_norm": norms}


@cache
def held_out_drawings(size: int) -> TensorDataset:
    """300 drawings of another seed, as a model of this image size is evaluated."""
    folder = make_food_dataset(data_setup.DATA_DIR / "more_synthetic_food", seed=7)
    transform = evaluation_transform(size)
    parts = [
        data_setup.load_into_memory(data_setup.PhotoFolder(folder / part, transform))
        for part in ("train", "test")
    ]
    return TensorDataset(*map(torch.cat, zip(*(p.tensors for p in parts), strict=True)))


# Accuracy by 5 folds

# The self-supervised start: the network learns which of the training images it sees a
# changed crop of, each image being a class of its own (Dosovitskiy et al., arXiv
# 1406.6909; for ViTs and few images Cao, Yu and Wu, arXiv 2201.10728).
WHICH_IMAGE = replace(RECIPES["mini"], epochs=100, label_smoothing=0.0, cutmix=1.0)
HEAD = Recipe(epochs=10, batch_size=32, lr=1e-3, optimizer="adam")


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


def run_fold(
    method: str, seed: int, fold: int, images: str, within: str = "all 300"
) -> dict:
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
        raise ValueError(
            f"asked for {images}, but FOODVISION_SOURCE gives other images"
        )
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
    config = replace(
        MINI, dropout=recipe.dropout, stochastic_depth=recipe.stochastic_depth
    )
    options = {
        "device": get_device(),
        "seed": seed,
        "precision": precision,
        "progress": False,
    }
    vit = start_as(recipe.start, ViT(config))
    if first is not None:
        numbers = torch.arange(len(train))
        numbered = TensorDataset(food.raw[train], numbers)
        watched = TensorDataset(food.evaluated[train][:32], numbers[:32])
        images = changed_images(numbered, first, size, seed)
        learner = ViT(replace(config, num_classes=len(train)))
        tensors, _ = fit(learner, first, images, watched, len(train), **options)
        load_weights(vit, tensors, head=False)
    return fit(
        vit,
        recipe,
        changed_images(
            TensorDataset(food.raw[train], food.labels[train]), recipe, size, seed
        ),
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
    images = changed_images(
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
    RECIPES["paper-finetune"], batch_size=32, steps=150, lr=0.03, crop_scale=0.4,
    flip=True,
)  # fmt: skip

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
        "batches of 16, 100 epochs, averaged longer": _LONGER
        | {"average_decay": 0.998},
    }.items()
}
METHODS = {
    "chapter's recipe": partial(mini_from_scratch, recipe=RECIPES["chapter"]),
    "mini": partial(mini_from_scratch, recipe=RECIPES["mini"]),
    "mini, second choice": partial(
        mini_from_scratch, recipe=TRIED["batches of 16, 100 epochs"]
    ),
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


def sweep(
    name: str, points: list[dict], run: Callable[..., dict], jobs: int = 1
) -> None:
    """Run what is not yet in `docs/results/<name>.jsonl`, a line a run.

    Args:
        points: of each run, the beginning of its line: its arguments, and "settings",
            a fingerprint of all else that it depends on.
        jobs: processes, with one thread each.
    """
    path = RESULTS / f"{name}.jsonl"
    done = [{k: line.get(k) for k in points[0]} for line in read_results(name)]
    missing = [point for point in points if point not in done]
    with multiprocessing.get_context("spawn").Pool(
        jobs, torch.set_num_threads, (1,)
    ) as pool:
        work = pool.imap_unordered(partial(line_of, run), missing)
        for line in tqdm(work, name, len(points), initial=len(points) - len(missing)):
            append_line(path, line)


def line_of(run: Callable[..., dict], point: dict) -> dict:
    """A run's line: what was asked for, and what came out."""
    arguments = {name: value for name, value in point.items() if name != "settings"}
    return {**point, **run(**arguments)}


def fingerprint(*settings) -> str:
    """A few digits that change when one of the settings does."""
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:8]


def read_results(name: str) -> list[dict]:
    """The lines of a sweep, as far as it has come."""
    path = RESULTS / f"{name}.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines]


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
    parser.add_argument("sweep", choices=["parts", "choose", "folds"])
    parser.add_argument("--methods", nargs="+", choices=METHODS | CANDIDATES)
    parser.add_argument("--seeds", type=int, default=3, help="0, 1, ... (default: 3)")
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side")
    options = parser.parse_args()
    seeds = range(options.seeds)
    if options.sweep == "parts":
        points = [
            {"part": part, "seed": seed, "settings": fingerprint(PARTS_MODEL, recipe)}
            for seed in seeds
            for part, recipe in PARTS.items()
        ]
        sweep("parts", points, run_part, options.jobs)
        return
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
        for seed in seeds
        for method in options.methods or (CANDIDATES if choosing else METHODS)
        for fold in range(5)
    ]
    run = partial(run_fold, within="225" if choosing else "all 300")
    sweep(options.sweep, points, run, options.jobs)


if __name__ == "__main__":
    main()
