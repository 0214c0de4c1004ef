"""From scratch or fine-tuned? Compared by 5 folds, for notebook 11 and the README.

    choose   settings, by 5 folds within the 225 training images
    folds    the methods that were chosen, by 5 folds over all 300 images

python -m going_modular.experiments.folds choose

FOODVISION_SOURCE says which images. Each run becomes one line of
`results/<sweep>.jsonl`, and a run that is stored there is not done again. So a sweep
that was stopped goes on where it was.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from time import perf_counter
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2

from going_modular import data_setup, engine
from going_modular.experiments.command_line import endings_in_one_line, sweep_parser
from going_modular.experiments.cross_validation import five_folds, our_backbone, read_images
from going_modular.experiments.sweeps import fingerprint, read_results, sweep
from going_modular.images.transforms import Transform, evaluation_transform
from going_modular.model_builder import ViT
from going_modular.training.fit import augment, fit, resize_for_crops
from going_modular.training.recipes import HEAD, MINI, RECIPES, TABLE_4, Recipe, initialize
from going_modular.utils import get_device, require_checkout, set_seeds
from going_modular.vit.weights import load_weights

# Self-supervised pretraining: each training image is a class of its own, and the network
# learns which of them it sees a random crop of (Dosovitskiy et al., arXiv 1406.6909; for
# ViTs and few images Cao, Yu and Wu, arXiv 2201.10728).
INSTANCE_CLASSIFICATION = replace(RECIPES["mini"], epochs=100, label_smoothing=0.0, cutmix=1.0)


class Food(NamedTuple):
    """All 300 images, training images first, to train on and to evaluate on."""

    raw: torch.Tensor  # (300, 3, H, W) uint8, to take crops from
    evaluated: torch.Tensor  # (300, 3, H, W) float, in the model's own transform
    labels: torch.Tensor  # (300,)
    train_count: int  # how many of them are training images
    source: str  # what they are, in the words of `get_food_images`


def read_food(raw: Transform, evaluated: Transform) -> Food:
    """The images that FOODVISION_SOURCE gives, through two transforms."""
    food = data_setup.get_food_images()
    pictures, labels, train_count = read_images(food, raw)
    return Food(pictures, read_images(food, evaluated).images, labels, train_count, food.source)


@cache
def food_for_mini() -> Food:
    """All images at the size of `MINI`."""
    size = MINI.image_size
    return read_food(resize_for_crops(size), evaluation_transform(size))


@cache
def food_for_backbone() -> Food:
    """All images at the size of our backbone, as squares from the middle."""
    backbone, transform, _ = our_backbone()
    length = backbone.vit.config.image_hw[0] * 3 // 2
    square = [v2.Resize(length), v2.CenterCrop(length), v2.PILToTensor()]
    return read_food(v2.Compose(square), transform)


def run_fold(method: str, seed: int, fold: int, images: str, within: str = "all 300") -> dict:
    """Train on four of five parts of the images, and test on the fifth.

    Args:
        method: one of `METHODS` or `CANDIDATES`.
        seed: deals the folds, and decides every other random number.
        fold: 0 to 4, the part to test on.
        images: the description of the images that FOODVISION_SOURCE has to give.
        within: "all 300" images, or the "225" training images, to choose settings.

    Returns:
        How many answers are `right`, `of` how many, and losses of the last epoch.

    Raises:
        ValueError: if FOODVISION_SOURCE gives other images.
        ModuleNotFoundError: if scikit-learn is missing.
    """
    began = perf_counter()
    train_and_test = (METHODS | CANDIDATES)[method]
    is_mini = train_and_test.func is mini_from_scratch
    food = food_for_mini() if is_mini else food_for_backbone()
    if food.source != images:
        raise ValueError(f"asked for {images!r}, but FOODVISION_SOURCE gives {food.source!r}")
    labels = food.labels if within == "all 300" else food.labels[: food.train_count]
    train, held_out = five_folds(labels, seed)[fold]
    set_seeds(seed)
    results = train_and_test(food, train, held_out, seed)
    return {
        "right": round(results["test_acc"][-1] * len(held_out)),
        "of": len(held_out),
        "loss": round(results["test_loss"][-1], 4),
        "train_loss": round(results["train_loss"][-1], 4),
        "collapsed": results["collapsed"][-1],
        "seconds": round(perf_counter() - began),
    }


# The methods. Each trains on `train`, tests on `held_out`, and returns what
# `engine.train` returns.


def mini_from_scratch(
    food: Food,
    train: list[int],
    held_out: list[int],
    seed: int,
    recipe: Recipe,
    first: Recipe | None = None,
    precision: str = "float32",
) -> dict[str, list]:
    """A small ViT, from random weights.

    Args:
        first: with this recipe, the ViT learns before, without labels, which image is
            which (`INSTANCE_CLASSIFICATION`).
    """
    size = MINI.image_size
    config = replace(MINI, dropout=recipe.dropout, stochastic_depth=recipe.stochastic_depth)
    fit_vit = partial(fit, device=get_device(), seed=seed, precision=precision, progress=False)
    vit = initialize(recipe.init, ViT(config))
    if first is not None:
        numbers = torch.arange(len(train))
        numbered = TensorDataset(food.raw[train], numbers)
        few_images = TensorDataset(food.evaluated[train][:32], numbers[:32])
        images = augment(numbered, first, size, seed)
        learner = ViT(replace(config, num_classes=len(train)))
        tensors, _ = fit_vit(learner, first, images, few_images, len(train))
        load_weights(vit, tensors, head=False)
    return fit_vit(
        vit,
        recipe,
        augment(TensorDataset(food.raw[train], food.labels[train]), recipe, size, seed),
        TensorDataset(food.evaluated[held_out], food.labels[held_out]),
        num_classes=3,
    )[1]


def head_on_backbone(
    food: Food, train: list[int], held_out: list[int], seed: int, recipe: Recipe
) -> dict[str, list]:
    """A linear head on our frozen backbone, as in notebook 09."""
    backbone, _, _ = our_backbone()
    train_features, test_features = (
        engine.extract_features(
            backbone,
            DataLoader(TensorDataset(food.evaluated[part], food.labels[part]), 32),
            get_device(),
        )
        for part in (train, held_out)
    )
    return fit(
        nn.Linear(backbone.embedding_dim, 3),
        recipe,
        train_features,
        test_features,
        num_classes=3,
        device=get_device(),
        seed=seed,
        progress=False,
    )[1]


def whole_backbone(
    food: Food, train: list[int], held_out: list[int], seed: int, recipe: Recipe
) -> dict[str, list]:
    """All weights of our backbone, and of a head that starts at zero (Section 3.2)."""
    backbone, _, normalization = our_backbone()
    head = nn.Linear(backbone.embedding_dim, 3)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    images = augment(
        TensorDataset(food.raw[train], food.labels[train]),
        recipe,
        backbone.vit.config.image_size,
        seed,
        normalization,
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


# Table 4 for fewer images than one of its batches holds, at the learning rate that was
# chosen among `CANDIDATES`
TABLE_4_SMALL = replace(
    RECIPES["paper-finetune"], batch_size=32, steps=150, lr=0.03, crop_scale=0.4, flip=True
)

# What was tried within the 225 training images: `mini` with some settings changed, in
# 16 bit for speed, and the paper's learning rates for fine-tuning
_SMALLER = {"batch_size": 16, "warmup_steps": 80}
_LONGER = _SMALLER | {"epochs": 100}
_CHANGES: dict[str, dict] = {
    "as it is": {},
    "batches of 16": _SMALLER,
    "batches of 16, 150 epochs, MixUp, CutMix": _SMALLER
    | {"epochs": 150, "mixup": 0.4, "cutmix": 1.0, "label_smoothing": 0.0},
    "batches of 16, 100 epochs": _LONGER,
    "batches of 16, 100 epochs, averaged": _LONGER | {"average_decay": 0.99},
    "batches of 16, 100 epochs, averaged longer": _LONGER | {"average_decay": 0.998},
}
TRIED = {name: replace(RECIPES["mini"], **changes) for name, changes in _CHANGES.items()}
METHODS: dict[str, partial] = {
    "chapter's recipe": partial(mini_from_scratch, recipe=RECIPES["chapter"]),
    "mini": partial(mini_from_scratch, recipe=RECIPES["mini"]),
    "mini, second choice": partial(mini_from_scratch, recipe=TRIED["batches of 16, 100 epochs"]),
    "head on our backbone": partial(head_on_backbone, recipe=HEAD),
    "our backbone, Table 4": partial(whole_backbone, recipe=TABLE_4_SMALL),
}
CANDIDATES: dict[str, partial] = {
    f"mini: {name}": partial(mini_from_scratch, recipe=recipe, precision="bfloat16")
    for name, recipe in TRIED.items()
}
CANDIDATES["mini: after which-image"] = partial(
    mini_from_scratch, recipe=RECIPES["mini"], first=INSTANCE_CLASSIFICATION, precision="bfloat16"
)
for _lr in TABLE_4["Oxford-IIIT Pets"][1]:
    CANDIDATES[f"our backbone, Table 4, rate {_lr}"] = partial(
        whole_backbone, recipe=replace(TABLE_4_SMALL, lr=_lr)
    )


def settings_of(method: str) -> str:
    """A fingerprint of the settings of one of `METHODS` or `CANDIDATES`."""
    return fingerprint(MINI, (METHODS | CANDIDATES)[method].keywords)


# The sweeps


def accuracies_of(name: str) -> dict[tuple[str, str], list[float]]:
    """The stored accuracies of "choose" or "folds": (images, method) -> one for each seed.

    All five folds of a seed count together, so that each image counts once. Lines of
    other settings than today's do not count.
    """
    methods = METHODS | CANDIDATES
    runs: dict[tuple[str, str], dict[int, list]] = {}
    for line in read_results(name):
        method = line["method"]
        if method not in methods or line["settings"] != settings_of(method):
            continue
        by_seed = runs.setdefault((line["images"], method), {})
        by_seed.setdefault(line["seed"], []).append((line["right"], line["of"]))
    return {
        key: [
            sum(right for right, _ in folds) / sum(of for _, of in folds)
            for _, folds in sorted(by_seed.items())
        ]
        for key, by_seed in runs.items()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = sweep_parser("folds", "From scratch or fine-tuned? Compared by 5 folds")
    parser.add_argument(
        "sweep",
        choices=["choose", "folds"],
        help="settings, within the 225 training images; or the chosen ones, over all 300",
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS | CANDIDATES, metavar="METHOD")
    options = parser.parse_args(arguments)
    choosing = options.sweep == "choose"
    with endings_in_one_line(parser.prog):
        require_checkout()
        source = data_setup.get_food_images().source
        points = [
            {
                "method": method,
                "seed": seed,
                "fold": fold,
                "images": source,
                "settings": settings_of(method),
            }
            for seed in range(options.seeds)
            for method in options.methods or (CANDIDATES if choosing else METHODS)
            for fold in range(5)
        ]
        run = partial(run_fold, within="225" if choosing else "all 300")
        sweep(options.sweep, points, run, options.jobs)


if __name__ == "__main__":
    main()
