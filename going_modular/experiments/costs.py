"""What training a ViT costs: the tables of `docs/scaling_out.md`.

python -m going_modular.experiments.costs          # the tables of that page
python -m going_modular.experiments.costs measure  # images a second on this machine
"""

import argparse
import time
from dataclasses import replace

import torch
from torch import nn

from going_modular.model_builder import VIT_CONFIGS, ViT, ViTConfig
from going_modular.training.memory import process_bytes, state_bytes
from going_modular.training.recipes import TABLE_3
from going_modular.utils import count_multiply_adds, count_parameters

# The assumptions. An H100 SXM multiplies bfloat16 matrices at 989 TFLOP/s (NVIDIA's
# data sheet, without sparsity), and a ViT in plain PyTorch reaches a fifth of that if
# images arrive fast enough. The fifth is an assumption, not measured here.
PEAK, UTILISATION = 989e12, 0.20
IMAGES = {"ImageNet": 1_281_167, "ImageNet-21k": 14_197_122}


def training_flops(config: ViTConfig) -> int:
    """Floating-point operations of a training step for one image.

    Two for each multiply-add of the forward pass, and twice that for the backward pass.
    """
    with torch.device("meta"):
        vit, images = ViT(config), torch.empty(1, 3, *config.image_hw)
    return 3 * 2 * count_multiply_adds(vit, images)


def hours(config: ViTConfig, images: int, gpus: int) -> float:
    """Hours of training on so many images in all, by the assumptions above."""
    return images * training_flops(config) / (gpus * PEAK * UTILISATION) / 3600


def memory_table() -> list[tuple[str, ...]]:
    """Model, parameters, and gigabytes on each GPU, whole and in 8 and 64 shards."""
    rows = []
    for name, config in VIT_CONFIGS.items():
        config = replace(config, dropout=0.0)
        gigabytes = [state_bytes(config)] + [
            process_bytes(config, 64, processes, sharding)
            for processes, sharding in ((1, "ddp"), (8, "fsdp"), (64, "fsdp"))
        ]
        with torch.device("meta"):
            millions = count_parameters(ViT(config)) / 1e6
        values = [f"{number / 2**30:.1f}" for number in gigabytes]
        rows.append((name, f"{millions:.0f} M", *values))
    return rows


def hours_table() -> list[tuple[str, ...]]:
    """Model, images, epochs, and hours on 1, 8 and 64 GPUs."""
    rows = []
    for (name, data), recipe in TABLE_3.items():
        if data in IMAGES:
            seen = recipe.epochs * IMAGES[data]
            cost = [hours(VIT_CONFIGS[name], seen, gpus) for gpus in (1, 8, 64)]
            values = [f"{number:,.0f}" for number in cost]
            rows.append((name, data, str(recipe.epochs), *values))
    return rows


def as_markdown(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table as Markdown has it."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


MEMORY_HEADER = ("Model", "Parameters", "States (GiB)", "1 GPU", "8 GPUs, fsdp", "64 GPUs, fsdp")
HOURS_HEADER = ("Model", "Data", "Epochs", "1 GPU", "8 GPUs", "64 GPUs")


def measure() -> None:
    """Print images a second, and what share of the machine's own peak that is."""
    size = 2048
    a, b = torch.rand(size, size), torch.rand(size, size)
    config = replace(VIT_CONFIGS["ViT-S/16"], num_classes=1000, dropout=0.0)
    vit, images = ViT(config), torch.rand(16, 3, 224, 224)
    labels = torch.zeros(16, dtype=torch.long)

    def product():
        return a @ b

    def step():
        nn.functional.cross_entropy(vit(images), labels).backward()

    def seconds(work) -> float:
        work()
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    peaks, rates = [], []
    for _ in range(5):  # in turns, because machines are noisy
        peaks.append(2 * size**3 / seconds(product))
        rates.append(len(images) / seconds(step))
    peak, rate = sorted(peaks)[2], sorted(rates)[2]
    share = rate * training_flops(config) / peak
    print(
        f"ViT-S/16, float32: {rate:.1f} images a second; a matrix product runs at "
        f"{peak / 1e9:.0f} GFLOP/s, of which the training reaches {share:.2f}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=["measure"])
    if parser.parse_args().what:
        measure()
    else:
        print(as_markdown(MEMORY_HEADER, memory_table()), end="\n\n")
        print(as_markdown(HOURS_HEADER, hours_table()))
