"""Pretrained weights: torchvision's ViT-B/16, or the small ViT in `models/`."""

import json
import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torchvision.models import ViT_B_16_Weights, vit_b_16

from going_modular.data_setup import (
    DownloadError,
    Transform,
    download_file,
    get_source,
)
from going_modular.model_builder import ViT, ViTConfig
from going_modular.utils import repository_path

DRAWN_DISHES = repository_path("models/vit_drawn_dishes.safetensors")
BACKBONES = ("auto", "vit_b_16", "drawn_dishes")


def load_pretrained_backbone(name: str = "auto") -> tuple[nn.Module, Transform, str]:
    """A pretrained ViT without its head, and the transform that its images need.

    Shapes: backbone(images (B, 3, H, W)) -> (B, D), the feature that it was trained
    for: of ViT-B/16 the class token after the final LayerNorm (equation 4), of ours
    see `TokenStatistics`. D is `backbone.embedding_dim`, H and W are the transform's.

    Args:
        name: "vit_b_16" is torchvision's, pretrained on ImageNet-1k (346 MB,
            downloaded once). "drawn_dishes" is a small ViT of our own, pretrained on
            drawn dishes, in this repository. "auto" takes the first if it is there or
            can be downloaded, else the second; and always the second if
            FOODVISION_SOURCE is "synthetic".

    Returns:
        (backbone, transform from a Pillow image to a tensor, description in words)

    Raises:
        ValueError: for another name.
        DownloadError: if "vit_b_16" was asked for by name and cannot be had.
        FileNotFoundError, ValueError: if the file in `models/` is missing or damaged.
    """
    if name not in BACKBONES:
        raise ValueError(
            f"no backbone is called {name!r}: expected one of {', '.join(BACKBONES)}"
        )
    if name == "vit_b_16":
        return load_vit_b_16()
    if name == "auto" and get_source() != "synthetic":
        try:
            return load_vit_b_16()
        except DownloadError as error:
            backbone, transform, description = load_drawn_dishes()
            return backbone, transform, f"{description}. No ViT-B/16: {error}"
    return load_drawn_dishes()


def load_vit_b_16() -> tuple[nn.Module, Transform, str]:
    """torchvision's ViT-B/16; see `load_pretrained_backbone`."""
    weights = ViT_B_16_Weights.DEFAULT
    cache_weights(weights.url)
    vit = vit_b_16(weights=weights)
    vit.heads = nn.Identity()
    vit.embedding_dim = vit.hidden_dim
    description = "torchvision's ViT-B/16, pretrained on ImageNet-1k"
    return vit.eval(), weights.transforms(), description


class TokenStatistics(nn.Module):
    """What a ViT's patches have in common, and how much they differ.

    The class token has to learn which patches to look at; a mean and a standard
    deviation over all of them have nothing to learn. The second is small where all
    patches look alike, as on a pile of rice, and large for a plate of many things.

    Shapes: images (B, C, H, W) -> mean and standard deviation of the N patches after
    the final LayerNorm, one after the other, (B, 2D).
    """

    def __init__(self, vit: ViT):
        super().__init__()
        self.vit = vit
        self.embedding_dim = 2 * vit.config.embedding_dim

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return statistics_of(self.vit.forward_features(images)[:, 1:])


def statistics_of(patches: torch.Tensor) -> torch.Tensor:
    """(B, N, D) -> (B, 2D), the mean and the standard deviation over the patches."""
    # Where all patches are equal the root's slope is infinite: keep away from 0
    spread = patches.var(dim=1, correction=0).add(1e-6).sqrt()
    return torch.cat([patches.mean(dim=1), spread], dim=1)


def load_drawn_dishes() -> tuple[nn.Module, Transform, str]:
    """The repository's small ViT, see `models/README.md`.

    The file holds numbers in half precision and nothing that could run. Its metadata
    is the configuration, so that the two cannot be parted.

    Raises:
        FileNotFoundError: if the file is not there.
        ValueError: if it is damaged.
    """
    if not DRAWN_DISHES.is_file():
        raise FileNotFoundError(
            f"there is no file {DRAWN_DISHES}: it is part of the repository. Restore "
            "it with `git checkout models`; if the package was installed away from the "
            "repository, install the repository itself, `pip install --editable .`"
        )
    try:
        with safe_open(DRAWN_DISHES, framework="pt") as file:
            config = ViTConfig(**json.loads(file.metadata()["config"]))
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except SafetensorError as error:
        raise ValueError(
            f"{DRAWN_DISHES} ({DRAWN_DISHES.stat().st_size} bytes) is damaged "
            f"({error}): restore it with `git checkout models`"
        ) from error
    vit = ViT(config)
    vit.load_state_dict(tensors)
    size = config.image_size
    # torchvision's own preset for evaluation, at this network's size
    transform = ViT_B_16_Weights.DEFAULT.transforms(
        crop_size=size, resize_size=size * 8 // 7
    )
    description = f"a small ViT ({size} pixels), pretrained on drawn dishes"
    return TokenStatistics(vit).eval(), transform, description


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
