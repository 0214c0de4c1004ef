"""Checks for the exercises of notebook 02."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from going_modular.checks import (
    is_close,
    noise,
    require,
    require_number,
    require_tensor,
    result_of,
    right,
)
from going_modular.model_builder import VIT_CONFIGS


def shapes_of_vit_h(num_patches, patch_numbers) -> None:
    """Exercise 2.1: N and P²C of ViT-H/14 at 224 pixels."""
    c = VIT_CONFIGS["ViT-H/14"]
    require_number(
        "num_patches",
        num_patches,
        c.num_patches,
        "how many patches of 14 pixels fit along a side of 224? And in the whole image?",
    )
    require_number(
        "patch_numbers",
        patch_numbers,
        c.patch_size**2 * c.in_channels,
        "a patch has P rows of P pixels. How many numbers has a pixel?",
    )
    right("Smaller patches show finer detail, and the price is more tokens.")


def patchify_pixel_by_pixel(patchify: Callable) -> None:
    """Exercise 2.2: patches as the paper's code flattens them, pixel by pixel."""
    for shape, P in (((2, 3, 12, 8), 4), ((1, 5, 6, 9), 3)):
        images = noise(*shape)
        patches = result_of(patchify, images, P)
        by_channel = F.unfold(images, P, stride=P).transpose(1, 2)  # (B, N, CP²)
        expected = by_channel.unflatten(2, (-1, P * P)).transpose(2, 3).flatten(2)
        require(
            not is_close(patches, by_channel),
            "this order is channel by channel, as in notebook 02. Which axis must come last "
            "so that the numbers of a pixel stand next to each other?",
        )
        require_tensor(
            f"patchify for images {shape} and P = {P}",
            patches,
            expected,
            "which axes count patches, and which lie inside a patch? Split, permute, then merge",
        )
    right("The numbers are the same, only their order differs. A linear layer can learn both.")


def unpatchify_any_grid(unpatchify: Callable) -> None:
    """Exercise 2.3: from patches back to images that are not square."""
    for (rows, columns), P, C in (((2, 3), 4, 3), ((3, 1), 2, 1)):
        images = noise(2, C, rows * P, columns * P)
        patches = F.unfold(images, P, stride=P).transpose(1, 2)  # (B, N, P²C)
        require_tensor(
            f"unpatchify on a grid of {rows} × {columns} patches",
            result_of(unpatchify, patches, P, (rows, columns), C),
            images,
            "which two axes make up H, and which make up W? Each pair must be adjacent "
            "before you merge it",
        )
    right("No information is lost, whatever the shape of the image.")


def unseen_pixels(count: Callable) -> None:
    """Exercise 2.4: the pixels of a channel that a strided convolution skips."""
    for H, W, P in ((224, 224, 16), (250, 250, 16), (30, 47, 8), (5, 9, 5)):
        weights = torch.ones(1, 1, P, P)
        seen = F.conv2d(torch.ones(1, 1, H, W), weights, stride=P).sum().item()
        require_number(
            f"unseen_pixels({H}, {W}, {P})",
            result_of(count, H, W, P),
            int(H * W - seen),
            "how many full patches fit, and how many pixels do they cover?",
        )
    right("Our PatchEmbedding refuses such images, because nobody would notice the loss.")
