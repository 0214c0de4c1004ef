"""Pretrained weights, and what to do where they cannot be had."""

import re
from pathlib import Path

import torch
from torch import nn
from torchvision.models import ViT_B_16_Weights, vit_b_16
from torchvision.transforms._presets import ImageClassification

from going_modular.data_setup import (
    DownloadError,
    Transform,
    download_file,
    sha256_of,
)
from going_modular.utils import set_seeds


def load_pretrained_backbone(
    image_size: int = 224,
) -> tuple[nn.Module, Transform, str]:
    """torchvision's ViT-B/16 without its head, and the transform its weights expect.

    The published weights (330 MB, downloaded once) are for 224 pixels. At another
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
        transform = ImageClassification(crop_size=image_size, resize_size=image_size)
        weights, description = None, f"UNTRAINED: at {image_size} pixels, for tests"
    else:
        try:
            cache_weights(weights.url)
        except OSError as error:
            weights, description = None, f"UNTRAINED. {error}"
    set_seeds(42)
    vit = vit_b_16(weights=weights, image_size=image_size)
    vit.heads = nn.Identity()
    return vit, transform, f"torchvision's ViT-B/16, {description}"


def cache_weights(url: str) -> Path:
    """Put a weights file into torch's cache, unless it is there, and check it.

    torch.hub would do so too, but waits for ever where a network swallows packets,
    and never checks again a file that is in its cache. The first digits of the SHA-256
    are in the file's name.

    Raises:
        DownloadError: if the file cannot be fetched, or is not whole.
    """
    path = Path(torch.hub.get_dir(), "checkpoints", url.rsplit("/", 1)[1])
    try:
        download_file(url, path)
    except OSError as error:
        raise DownloadError(
            f"{error} Connect to the internet and run this cell again, or put the file "
            f"{path.name} into the folder hub/checkpoints of torch's cache."
        ) from error
    if not sha256_of(path).startswith(re.search(r"-([0-9a-f]+)\.", path.name)[1]):
        raise DownloadError(
            f"{path.name} in the folder hub/checkpoints of torch's cache is not whole: "
            "delete it and run this cell again."
        )
    return path
