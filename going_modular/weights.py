"""Pretrained weights, and what to do where they cannot be had."""

import re
from pathlib import Path

import torch
from torch import nn
from torchvision.models import ViT_B_16_Weights, vit_b_16

from going_modular.data_setup import DownloadError, Transform, download_file


def load_pretrained_backbone(
    image_size: int = 224,
) -> tuple[nn.Module, Transform, str]:
    """torchvision's ViT-B/16 without its head, and the transform its weights expect.

    The published weights (346 MB, downloaded once) are for 224 pixels. At another
    size, or where they cannot be had, the backbone keeps random values, the same in
    every run, and the description says that it is untrained.

    Shapes: backbone(images (B, 3, image_size, image_size)) -> class token after the
    last LayerNorm, (B, 768).

    Returns:
        (backbone, transform from a Pillow image to a tensor, description in words)
    """
    weights, description = ViT_B_16_Weights.DEFAULT, "pretrained on ImageNet-1k"
    transform = weights.transforms()
    if image_size != 224:
        transform = weights.transforms(crop_size=image_size, resize_size=image_size)
        weights, description = None, f"UNTRAINED: at {image_size} pixels, for tests"
    else:
        try:
            cache_weights(weights.url)
        except OSError as error:
            weights, description = None, f"UNTRAINED. {error}"
    with torch.random.fork_rng(devices=[]):  # leaves the caller's random numbers alone
        torch.manual_seed(42)
        vit = vit_b_16(weights=weights, image_size=image_size)
    vit.heads = nn.Identity()
    return vit, transform, f"torchvision's ViT-B/16, {description}"


def cache_weights(url: str) -> Path:
    """Put a weights file into torch's cache, unless a whole one is there.

    torch.hub would do so too, but waits for ever where a network swallows packets,
    and never checks again a file that is in its cache. The first digits of the SHA-256
    are in the file's name; a file with other ones is fetched again.

    Raises:
        DownloadError: if the file cannot be had.
    """
    path = Path(torch.hub.get_dir(), "checkpoints", url.rsplit("/", 1)[1])
    try:
        return download_file(url, path, re.search(r"-([0-9a-f]+)\.", path.name)[1])
    except OSError as error:
        state = "is there but not whole" if path.is_file() else "is not there"
        raise DownloadError(
            f"{error} The file {path.name} {state} (folder hub/checkpoints of torch's "
            "cache). Connect to the internet and run this cell again, or put it there."
        ) from error
