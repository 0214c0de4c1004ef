"""The paper's claims in miniature, for notebook 13.

    data        accuracy against the number of training images (Figures 3 and 4)
    positions   none, learned in one or two dimensions (D.4); sines and cosines (ours)
    shape       more layers, wider ones or smaller patches, at equal compute (Figure 8)
    compute     a hybrid beside the others (Figure 5)
    pooling     class token or mean, at three learning rates (D.3, Figure 9)

python -m going_modular.experiments.claims data positions  # without a name: all groups

Each model learns pizza, steak and sushi from drawings of 48 pixels, for 1000 steps by
one recipe, and is evaluated on 600 others. Each run becomes one line of
`results/claims.jsonl`, and a run that is stored there is not done again. So a sweep that
was stopped goes on where it was.
"""

from collections.abc import Callable, Sequence
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
from going_modular.experiments.command_line import endings_in_one_line, sweep_parser
from going_modular.experiments.sweeps import fingerprint, read_results, sweep
from going_modular.images.transforms import to_normalized
from going_modular.model_builder import ViT, ViTConfig
from going_modular.training.fit import augment, fit
from going_modular.training.recipes import Recipe
from going_modular.utils import (
    count_multiply_adds,
    data_dir,
    get_device,
    require_checkout,
    set_seeds,
)
from going_modular.vit.config import check_choice

DISHES = ("pizza", "steak", "sushi")
SIZE = 48  # pixels
AMOUNTS = (150, 600, 2400, 9600)  # training images
BLOCK = 600  # drawings in a file
HELD_OUT = AMOUNTS[-1] // BLOCK  # the block after the last training images

LR = 1e-3  # that of `mini`; it was not chosen again on these drawings
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
USUAL = 2400  # training images, for every question but that of their number
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
    config = MODELS[name]
    if isinstance(config, ViTConfig):
        return ViT(config)
    if name == "CNN":  # half of ResNet-18 (He et al., arXiv 1512.03385)
        return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=len(DISHES))
    stem = nn.Sequential(*halving_convolution(3, 32), *halving_convolution(32, 64))
    # The hybrid of Section 3.1 has as many tokens as the ViT has patches
    return ViT(replace(SMALL, image_size=SIZE // 4, patch_size=2, in_channels=64), stem=stem)


def halving_convolution(in_channels: int, out_channels: int) -> list[nn.Module]:
    """Layers that halve height and width: (B, C, H, W) -> (B, C', H/2, W/2)."""
    return [
        nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    ]


def multiply_adds_of(name: str) -> int:
    """Multiply-adds of one of `MODELS` for one image."""
    return count_multiply_adds(build_model(name), torch.zeros(1, 3, SIZE, SIZE))


def draw_numbered(number: int) -> np.ndarray:
    """The drawing (SIZE, SIZE, 3) with this number: pizza, steak and sushi in turn."""
    picture = draw(DISHES[number % len(DISHES)], np.random.default_rng([13, number]), 2 * SIZE)
    return np.asarray(picture.reduce(2))


@cache
def drawings(block: int) -> torch.Tensor:
    """A block of drawings (BLOCK, 3, SIZE, SIZE) uint8, drawn once and kept in a file."""
    numbers = range(block * BLOCK, (block + 1) * BLOCK)
    drawn = drawn_once(data_dir() / f"drawings_48/{block:02}.npy", draw_numbered, numbers)
    return torch.from_numpy(drawn).permute(0, 3, 1, 2).contiguous()


def training_images(amount: int, seed: int) -> TensorDataset:
    """`amount` drawings with their labels; seeds have different ones while there are enough."""
    first = seed * amount % AMOUNTS[-1]  # each amount divides the last, so none is cut off
    blocks = range(first // BLOCK, -(-(first + amount) // BLOCK))
    begin = first % BLOCK
    images = torch.cat([drawings(block) for block in blocks])[begin : begin + amount]
    return TensorDataset(images, torch.arange(first, first + amount) % len(DISHES))


@cache
def held_out_images() -> TensorDataset:
    """The 600 drawings that no model learns from, in the transform for evaluation."""
    labels = torch.arange(BLOCK) % len(DISHES)
    return TensorDataset(to_normalized()(drawings(HELD_OUT)), labels)


def run_point(model: str, images: int, lr: float, seed: int, steps: int = STEPS) -> dict:
    """Train one of `MODELS` and evaluate it on the 600 held-out drawings.

    Args:
        images: how many it learns from, one of `AMOUNTS`.
        lr: the largest learning rate.
        seed: decides initial weights, order, crops, and which images it learns from.
        steps: fewer than `STEPS`, for a quick look.

    Returns:
        How many answers are `right`, and losses of the last epoch.

    Raises:
        ValueError: if there is no such model or amount.
    """
    check_choice("model", model, list(MODELS))
    if images not in AMOUNTS:
        raise ValueError(f"images must be one of {AMOUNTS}, got {images!r}")
    began = perf_counter()
    recipe = replace(RECIPE, lr=lr, warmup_steps=min(RECIPE.warmup_steps, steps // 10))
    # One long epoch passes over the images as often as the steps need
    order = torch.arange(steps * recipe.batch_size) % images
    train_images = Subset(training_images(images, seed), order.tolist())
    set_seeds(seed)
    network = build_model(model)
    _, results = fit(
        network,
        recipe,
        augment(train_images, recipe, SIZE, seed),
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
    """The stored accuracies: (model, training images, learning rate) -> one for each seed.

    Lines of other settings than today's do not count.
    """
    by_point: dict[tuple[str, int, float], list[float]] = {}
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

    Least squares to targets of 1 for the right class and -1 for the others, with a
    penalty on large weights: min ||X W - Y||² + ridge ||W||² has the solution
    W = Xᵀ (X Xᵀ + ridge I)⁻¹ Y. Each feature is first standardized to mean 0 and standard
    deviation 1 over the M examples. A feature that is the same for all of them becomes 0.
    The mean of Y is subtracted before, and added to the scores after: it is the
    intercept, which has no penalty.

    Shapes: labels (M,) from 0 to K - 1; the classifier maps (B, D) to (B, K).
    """
    mean, std = features.mean(dim=0), features.std(dim=0, correction=0)
    varies = std > 1e-6 * mean.abs()  # by more than rounding

    def standardized(x: torch.Tensor) -> torch.Tensor:
        return torch.where(varies, (x - mean) / std, 0)

    X = standardized(features)
    Y = 2 * F.one_hot(labels).to(X) - 1
    inner = X @ X.T + ridge * torch.eye(len(X), device=X.device)
    W = X.T @ torch.linalg.solve(inner, Y - Y.mean(dim=0))
    return lambda x: standardized(x) @ W + Y.mean(dim=0)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = sweep_parser("claims", "The paper's claims in miniature")
    parser.add_argument(
        "groups", nargs="*", metavar="group", help=f"{', '.join(POINTS)} (default: all)"
    )
    options = parser.parse_args(arguments)
    groups = options.groups or list(POINTS)
    if unknown := set(groups) - set(POINTS):
        parser.error(f"no group {', '.join(unknown)}: choose from {', '.join(POINTS)}")
    with endings_in_one_line(parser.prog):
        require_checkout()
        for block in range(HELD_OUT + 1):  # before the processes, which would draw it twice
            drawings(block)
        sweep("claims", points_of(groups, options.seeds), run_point, options.jobs)


if __name__ == "__main__":
    main()
