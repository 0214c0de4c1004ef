"""The paper's claims in miniature, for notebook 13: `python -m going_modular.experiments.claims`.

    data        accuracy against the number of training images (Figures 3 and 4)
    positions   none, learned in one or two dimensions (D.4); sines and cosines (ours)
    shape       more layers, wider ones or smaller patches, at equal compute (Figure 8)
    compute     a hybrid beside the others (Figure 5)
    pooling     class token or mean, at three learning rates (D.3, Figure 9)

Each model learns pizza, steak and sushi from drawings of 48 pixels, always 1000 steps
by one recipe, and names 600 others. A run becomes a line of `docs/results/claims.jsonl`
and is not done again: a sweep that was stopped goes on where it was.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from time import perf_counter

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Subset, TensorDataset
from torchvision.models.resnet import BasicBlock, ResNet

from going_modular.drawings.synthetic_food import draw, drawn_once
from going_modular.experiments.pretrain import NORMALIZE
from going_modular.experiments.sweeps import fingerprint, read_results, sweep
from going_modular.model_builder import ViT, ViTConfig
from going_modular.training.fit import augment, fit
from going_modular.training.recipes import Recipe
from going_modular.utils import count_multiply_adds, get_device, project_path, set_seeds
from going_modular.vit.config import check_choice

FOLDER = project_path("data/drawings_48")
DISHES = ("pizza", "steak", "sushi")
SIZE = 48  # pixels
AMOUNTS = (150, 600, 2400, 9600)  # training images
BLOCK = 600  # drawings in a file; the block after the last amount is held out
HELD_OUT = AMOUNTS[-1] // BLOCK

LR = 1e-3  # of `mini`, and not chosen again on these drawings
RECIPE = Recipe(
    epochs=1,
    batch_size=32,
    weight_decay=0.05,
    schedule="cosine",
    warmup_steps=50,
    clip_norm=1.0,
    label_smoothing=0.1,
    crop_scale=0.25,
    flip=True,
)
STEPS = 1000

SMALL = ViTConfig(
    image_size=SIZE,
    patch_size=8,
    embedding_dim=64,
    num_layers=4,
    num_heads=4,
    mlp_dim=256,
    num_classes=3,
    dropout=0.0,
)
MODELS = {
    "ViT": SMALL,
    "larger ViT": replace(SMALL, embedding_dim=128, num_layers=6, mlp_dim=512),
    "CNN": "a residual network of 10 layers",
    "hybrid": "ViT on the features of two convolutions",
    "no positions": replace(SMALL, pos_embedding="none"),
    "2-D positions": replace(SMALL, pos_embedding="learned_2d"),
    "sines and cosines": replace(SMALL, pos_embedding="sincos_2d"),
    "mean of patches": replace(SMALL, pool="mean"),
    "deeper": replace(SMALL, num_layers=20),
    "wider": replace(SMALL, embedding_dim=144, mlp_dim=576),
    "smaller patches": replace(SMALL, patch_size=4),
}
SCALED = ("ViT", "deeper", "wider", "smaller patches")
USUAL = 2400  # training images, where their number is not the question
POINTS = {  # (model, training images, learning rate)
    "data": [(name, n, LR) for name in ("ViT", "larger ViT", "CNN") for n in AMOUNTS],
    "positions": [
        (name, USUAL, LR) for name in ("no positions", "ViT", "2-D positions", "sines and cosines")
    ],
    "shape": [(name, USUAL, LR) for name in SCALED],
    "compute": [(name, USUAL, LR) for name in (*SCALED, "larger ViT", "hybrid", "CNN")],
    "pooling": [
        (name, USUAL, lr) for name in ("ViT", "mean of patches") for lr in (3e-4, LR, 3e-3)
    ],
}


def build_model(name: str) -> nn.Module:
    """One of `MODELS`: (B, 3, 48, 48) -> (B, 3)."""
    if name == "CNN":  # half of ResNet-18 (He et al., arXiv 1512.03385)
        return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=len(DISHES))
    if name == "hybrid":  # Section 3.1: as many tokens as the ViT has patches
        layers, width = [], 3
        for channels in (32, 64):
            layers += [
                nn.Conv2d(width, channels, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(),
            ]
            width = channels
        config = replace(SMALL, image_size=SIZE // 4, patch_size=2, in_channels=width)
        return ViT(config, stem=nn.Sequential(*layers))
    return ViT(MODELS[name])


def multiply_adds_of(name: str) -> int:
    """Multiply-adds of one of `MODELS` for one image."""
    return count_multiply_adds(build_model(name), torch.zeros(1, 3, SIZE, SIZE))


def draw_numbered(number: int) -> np.ndarray:
    """Drawing (SIZE, SIZE, 3) of this number, of pizza, steak and sushi in turn."""
    picture = draw(DISHES[number % len(DISHES)], np.random.default_rng([13, number]), 2 * SIZE)
    return np.asarray(picture.reduce(2))


@cache
def drawings(block: int) -> torch.Tensor:
    """(BLOCK, 3, SIZE, SIZE) uint8: drawings of `BLOCK` numbers, drawn once."""
    numbers = range(block * BLOCK, (block + 1) * BLOCK)
    drawn = drawn_once(FOLDER / f"{block:02}.npy", draw_numbered, numbers)
    return torch.from_numpy(drawn).permute(0, 3, 1, 2).contiguous()


def training_images(amount: int, seed: int) -> TensorDataset:
    """So many drawings and labels; another seed's are others while there are enough."""
    first = seed * amount % AMOUNTS[-1]  # each amount divides the next: none is cut off
    blocks = range(first // BLOCK, -(-(first + amount) // BLOCK))
    begin = first % BLOCK
    images = torch.cat([drawings(block) for block in blocks])[begin : begin + amount]
    return TensorDataset(images, torch.arange(first, first + amount) % len(DISHES))


@cache
def held_out_images() -> TensorDataset:
    """The 600 drawings that no model learns from, as a model is evaluated on them."""
    labels = torch.arange(BLOCK) % len(DISHES)
    return TensorDataset(NORMALIZE(drawings(HELD_OUT)), labels)


def run_point(model: str, images: int, lr: float, seed: int, steps: int = STEPS) -> dict:
    """Train one of `MODELS`; how many of the 600 held-out drawings it names.

    Args:
        images: how many it learns from, one of `AMOUNTS`.
        lr: the largest learning rate.
        seed: of start values, order, crops, and which images it learns from.
        steps: fewer, for a quick look.

    Raises:
        ValueError: if there is no such model or amount.
    """
    check_choice("model", model, MODELS)
    if images not in AMOUNTS:
        raise ValueError(f"images must be one of {AMOUNTS}, got {images!r}")
    began = perf_counter()
    recipe = replace(RECIPE, lr=lr, warmup_steps=min(RECIPE.warmup_steps, steps // 10))
    # One long epoch, which passes over the images as often as it takes
    seen = torch.arange(steps * recipe.batch_size) % images
    many = Subset(training_images(images, seed), seen.tolist())
    set_seeds(seed)
    network = build_model(model)
    _, results = fit(
        network,
        recipe,
        augment(many, recipe, SIZE, seed),
        held_out_images(),
        num_classes=len(DISHES),
        device=get_device(),
        seed=seed,
        progress=False,
    )
    return {
        "right": round(results["test_acc"][-1] * BLOCK),
        "loss": round(results["test_loss"][-1], 4),
        "train_loss": round(results["train_loss"][-1], 4),
        "collapsed": results["collapsed"][-1],
        "seconds": round(perf_counter() - began),
    }


def settings_of(model: str) -> str:
    """A fingerprint of the settings that a run depends on besides its arguments."""
    return fingerprint(MODELS[model], RECIPE, STEPS, SIZE, BLOCK)


def points_of(groups: list[str], seeds: int) -> list[dict]:
    """The arguments of all runs of some groups, each once."""
    chosen = dict.fromkeys(point for group in groups for point in POINTS[group])
    return [
        {"model": model, "images": images, "lr": lr, "seed": seed, "settings": settings_of(model)}
        for seed in range(seeds)
        for model, images, lr in chosen
    ]


def accuracies() -> dict[tuple[str, int, float], list[float]]:
    """By (model, training images, learning rate), the accuracy of each seed."""
    by_point = {}
    for line in sorted(read_results("claims"), key=lambda line: line["seed"]):
        model = line["model"]
        if model in MODELS and line["settings"] == settings_of(model):
            point = model, line["images"], line["lr"]
            by_point.setdefault(point, []).append(line["right"] / BLOCK)
    return by_point


def ridge_probe(
    features: torch.Tensor, labels: torch.Tensor, ridge: float = 1.0
) -> Callable[[torch.Tensor], torch.Tensor]:
    """A linear classifier in closed form (Section 4.1): features (M, D) -> scores.

    Least squares to targets of 1 for the right class and -1 for the others, with the
    weights held small: min ||X W - Y||² + ridge ||W||² has the solution
    W = Xᵀ (X Xᵀ + ridge I)⁻¹ Y. Each feature is first brought to mean 0 and deviation 1
    over the M examples (one that is the same for all of them becomes 0), and the mean
    of Y is taken off and added to the scores: the intercept, which has no penalty.

    Shapes: labels (M,) from 0 to K - 1; the classifier maps (B, D) to (B, K).
    """
    mean, std = features.mean(dim=0), features.std(dim=0, correction=0)
    varies = std > 1e-6 * mean.abs()  # more than rounding

    def standardised(x: torch.Tensor) -> torch.Tensor:
        return torch.where(varies, (x - mean) / std, 0)

    X = standardised(features)
    Y = 2 * F.one_hot(labels).to(X) - 1
    inner = X @ X.T + ridge * torch.eye(len(X), device=X.device)
    W = X.T @ torch.linalg.solve(inner, Y - Y.mean(dim=0))
    return lambda x: standardised(x) @ W + Y.mean(dim=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("groups", nargs="*", metavar="group", help=", ".join(POINTS))
    parser.add_argument("--seeds", type=int, default=3, help="0, 1, ... (default: 3)")
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side")
    options = parser.parse_args()
    groups = options.groups or list(POINTS)
    if unknown := set(groups) - set(POINTS):
        parser.error(f"no group {', '.join(unknown)}: choose from {', '.join(POINTS)}")
    for block in range(HELD_OUT + 1):  # before the processes, which would draw it twice
        drawings(block)
    sweep("claims", points_of(groups, options.seeds), run_point, options.jobs)


if __name__ == "__main__":
    main()
