"""What training a ViT costs: the tables of `docs/scaling_out.md`.

python -m going_modular.experiments.costs          # the tables of that page
python -m going_modular.experiments.costs measure  # images a second on this machine
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from statistics import median

import torch
from torch import nn

from going_modular.experiments.command_line import command_parser, endings_in_one_line
from going_modular.model_builder import VIT_CONFIGS, ViT, ViTConfig
from going_modular.training.memory import process_bytes, state_bytes
from going_modular.training.recipes import TABLE_3
from going_modular.utils import count_multiply_adds, count_parameters

# An H100 SXM multiplies bfloat16 matrices at 989 TFLOP/s (NVIDIA's data sheet, without
# sparsity). We assume that a ViT in plain PyTorch reaches a fifth of that where images
# arrive fast enough. We have not measured it.
PEAK, UTILIZATION = 989e12, 0.20
IMAGES = {"ImageNet": 1_281_167, "ImageNet-21k": 14_197_122}

MEMORY_HEADER = ("Model", "Parameters", "States (GiB)", "1 GPU", "8 GPUs, fsdp", "64 GPUs, fsdp")
HOURS_HEADER = ("Model", "Data", "Epochs", "1 GPU", "8 GPUs", "64 GPUs")


@cache
def training_flops(config: ViTConfig) -> int:
    """Floating-point operations of a training step for one image.

    The forward pass takes two for each multiply-add, the backward pass twice as many.
    """
    with torch.device("meta"):
        vit, images = ViT(config), torch.empty(1, config.in_channels, *config.image_hw)
    return 3 * 2 * count_multiply_adds(vit, images)


def hours(config: ViTConfig, images: int, gpus: int) -> float:
    """Hours of training on so many images in all, by the assumptions above."""
    return images * training_flops(config) / (gpus * PEAK * UTILIZATION) / 3600


def memory_table() -> list[tuple[str, ...]]:
    """Model, parameters, and GiB on each GPU: states, on 1 GPU, in 8 and in 64 shards."""
    rows = []
    for name, config in VIT_CONFIGS.items():
        config = replace(config, dropout=0.0)
        needed = [state_bytes(config)] + [
            process_bytes(config, 64, processes=processes, sharding=sharding)
            for processes, sharding in ((1, "ddp"), (8, "fsdp"), (64, "fsdp"))
        ]
        with torch.device("meta"):
            parameters = count_parameters(ViT(config))
        gibibytes = [f"{number / 2**30:.1f}" for number in needed]
        rows.append((name, f"{parameters / 1e6:.0f} M", *gibibytes))
    return rows


def hours_table() -> list[tuple[str, ...]]:
    """Model, images, epochs, and hours on 1, 8 and 64 GPUs."""
    rows = []
    for (name, data), recipe in TABLE_3.items():
        if data in IMAGES:
            images = recipe.epochs * IMAGES[data]
            costs = [f"{hours(VIT_CONFIGS[name], images, gpus):,.0f}" for gpus in (1, 8, 64)]
            rows.append((name, data, str(recipe.epochs), *costs))
    return rows


def as_markdown(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table in Markdown."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def measure() -> str:
    """Images a second on this machine, and which share of its own peak that is."""
    size = 2048
    a, b = torch.rand(size, size), torch.rand(size, size)
    config = replace(VIT_CONFIGS["ViT-S/16"], dropout=0.0)
    vit, images = ViT(config), torch.rand(16, 3, 224, 224)
    labels = torch.zeros(16, dtype=torch.long)

    def product() -> None:
        torch.mm(a, b)

    def step() -> None:
        nn.functional.cross_entropy(vit(images), labels).backward()

    peaks, rates = [], []
    for _ in range(5):  # in turns, because machines are noisy
        peaks.append(2 * size**3 / seconds(product))
        rates.append(len(images) / seconds(step))
    peak, rate = median(peaks), median(rates)
    share = rate * training_flops(config) / peak
    return (
        f"ViT-S/16, float32: {rate:.1f} images a second; a matrix product runs at "
        f"{peak / 1e9:.0f} GFLOP/s, of which the training reaches {share:.2f}"
    )


def seconds(work: Callable[[], None]) -> float:
    """How long some work takes the second time."""
    work()
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_parser("costs", "What training a ViT costs")
    parser.add_argument(
        "what", nargs="?", choices=["measure"], help="images a second on this machine"
    )
    what = parser.parse_args(arguments).what
    with endings_in_one_line(parser.prog):
        if what == "measure":
            print(measure())
        else:
            print(as_markdown(MEMORY_HEADER, memory_table()), end="\n\n")
            print(as_markdown(HOURS_HEADER, hours_table()))


if __name__ == "__main__":
    main()
