"""What bfloat16 changes: the accuracy of a training, and features of a frozen backbone.

python -m going_modular.experiments.precision --write

The training is one of notebook 11, once in each precision for each seed. The features are
those of our backbone, and of the ViT that VIT_WEIGHTS names, if it is set.
"""

import argparse
import time
from collections.abc import Sequence
from statistics import mean, stdev

import torch

from going_modular import data_setup, engine
from going_modular.experiments.command_line import positive
from going_modular.experiments.recipe_parts import run_part
from going_modular.utils import (
    bfloat16_instructions,
    describe_environment,
    errors_in_one_line,
    get_device,
    markdown_table,
    project_path,
)
from going_modular.vit.backbones import load_pretrained_backbone

PAGE = "docs/results/precision.md"
PART = "+ augmentation"  # the whole recipe
PRECISIONS = ("float32", "bfloat16")


def accuracies(seeds: int, epochs: int | None) -> dict[str, list[float]]:
    """Accuracy on 300 held-out drawings after training, for each precision and seed."""
    found: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
    for seed in range(seeds):
        for precision, values in found.items():
            values.append(run_part(PART, seed, epochs, precision=precision)["test_acc"][-1])
            print(f"seed {seed}, {precision}: {values[-1]:.3f}", flush=True)
    return found


def cosines(name: str) -> tuple[str, torch.Tensor]:
    """A backbone in words, and for each image the cosine of its features in both precisions."""
    backbone, transform, description = load_pretrained_backbone(name)
    food = data_setup.get_food_images()
    both = []
    for precision in PRECISIONS:
        parts = [
            engine.extract_features(
                backbone,
                data_setup.create_dataloader(data_setup.PhotoFolder(folder, transform), 32),
                get_device(),
                precision=precision,
            ).tensors[0]
            for folder in (food.train_dir, food.test_dir)
        ]
        both.append(torch.cat(parts))
    full, half = both
    return f"{description}; {food.source}", torch.cosine_similarity(full, half)


def page_of(seeds: dict[str, list[float]], features: dict[str, torch.Tensor]) -> str:
    """The results as a page."""
    rows = [
        [name, *(f"{x:.3f}" for x in values), f"{mean(values):.3f} ± {stdev(values):.3f}"]
        for name, values in seeds.items()
    ]
    count = len(rows[0]) - 2
    pairs = zip(*seeds.values(), strict=True)
    apart = [half - full for full, half in pairs]
    header = ("precision", *(f"seed {seed}" for seed in range(count)), "mean ± standard deviation")
    device = get_device()
    instructions = bfloat16_instructions(device) or "none, so it converts to float32 and back"
    similar = [[name, f"{c.min():.6f}", f"{c.median():.6f}"] for name, c in features.items()]
    day, machine = time.strftime("%Y-%m-%d"), " · ".join(describe_environment().split("\n"))
    return f"""# What bfloat16 changes

Measured on {day}: {machine}.
Its instructions for products in bfloat16: {instructions}. This page was written by
`python -m going_modular.experiments.precision --write`.

## Training

Notebook 11's recipe "{PART}": accuracy on 300 held-out drawings after the last epoch.
Notebook 11 has other digits for the same seeds, because each of its trainings had one thread:
with another number of threads, sums are rounded in another order.

{markdown_table(header, rows)}

bfloat16 minus float32, seed by seed: {mean(apart):+.3f} ± {stdev(apart):.3f} (standard
deviation). One standard error of an accuracy on 300 drawings is at most {0.5 / 300**0.5:.3f}.

## Features

The cosine of an image's features in float32 and in bfloat16, over 300 images.

{markdown_table(("backbone and images", "smallest", "median"), similar)}
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the page, and write it with `--write`."""
    parser = argparse.ArgumentParser(
        prog="python -m going_modular.experiments.precision", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--seeds", type=positive, default=5, help="two or more; default: 5")
    parser.add_argument("--epochs", type=positive, help="default: as many as the recipe has")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE}")
    options = parser.parse_args(arguments)
    if options.seeds < 2:
        parser.error("argument --seeds: a standard deviation needs two or more")
    with errors_in_one_line(parser.prog):
        features = dict(cosines(name) for name in ("drawn_dishes", "auto"))
        page = page_of(accuracies(options.seeds, options.epochs), features)
        print(page)
        if options.write:
            project_path(PAGE).write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
