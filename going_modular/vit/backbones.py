"""Pretrained ViTs without their heads, for transfer learning."""

import os
import re
from pathlib import Path

import torch
from torch import nn
from torchvision.models import VisionTransformer, ViT_B_16_Weights, vit_b_16

from going_modular.images.downloads import DownloadError, download_file
from going_modular.images.sources import get_source
from going_modular.images.transforms import Transform, evaluation_transform
from going_modular.model_builder import ViT
from going_modular.utils import PACKAGE
from going_modular.vit.files import read_vit
from going_modular.vit.names import naming_of
from going_modular.vit.weights import load_vit, read_weights

DRAWN_DISHES = PACKAGE / "pretrained" / "vit_drawn_dishes.safetensors"


BACKBONES = ("auto", "vit_b_16", "drawn_dishes")


def load_pretrained_backbone(name: str = "auto") -> tuple[nn.Module, Transform, str]:
    """A pretrained ViT without its head, and the transform that its images need.

    Shapes: backbone(images (B, 3, H, W)) -> (B, D), the feature that it was trained
    for: of ViT-B/16 the class token after the final LayerNorm (equation 4), of ours
    see `TokenStatistics`. D is `backbone.embedding_dim`, H and W are the transform's,
    and `backbone.name` is a short name for files.

    Args:
        name: "vit_b_16" is torchvision's, pretrained on ImageNet-1k (346 MB,
            downloaded once). "drawn_dishes" is a small ViT of our own, pretrained on
            drawn dishes, in this repository. "auto" takes the file that the environment
            variable VIT_WEIGHTS names, if it is set (see `load_vit_file`). Else it
            takes the first if it is there or can be downloaded, else the second; and
            always the second if FOODVISION_SOURCE is "synthetic".

    Returns:
        (backbone, transform from a Pillow image to a tensor, description in words)

    Raises:
        ValueError: for another name.
        DownloadError: if "vit_b_16" was asked for by name and cannot be had.
        FileNotFoundError, ValueError: if the file in `models/`, or that of VIT_WEIGHTS,
            is missing, damaged or not a ViT.
    """
    if name not in BACKBONES:
        raise ValueError(f"no backbone is called {name!r}: expected one of {', '.join(BACKBONES)}")
    if name == "vit_b_16":
        return load_vit_b_16()
    if name == "auto" and os.environ.get("VIT_WEIGHTS"):
        return load_vit_file(os.environ["VIT_WEIGHTS"])
    if name == "auto" and get_source() != "synthetic":
        try:
            return load_vit_b_16()
        except DownloadError as error:
            backbone, transform, description = load_drawn_dishes()
            return backbone, transform, f"{description}. No ViT-B/16: {error}"
    return load_drawn_dishes()


def vit_of(backbone: nn.Module) -> ViT:
    """The `ViT` in a backbone of `load_pretrained_backbone`, to look inside.

    It is the backbone's own part; of torchvision's model, a copy in our class.

    Raises:
        TypeError: for any other model.
    """
    if isinstance(backbone, VisionTransformer):
        device = next(backbone.parameters()).device
        return load_vit(backbone.state_dict()).to(device).eval()
    vit = getattr(backbone, "vit", backbone)
    if not isinstance(vit, ViT):
        raise TypeError(
            f"there is no ViT in a {type(backbone).__name__}: give a backbone of "
            "load_pretrained_backbone, or what load_vit returns"
        )
    return vit


def load_vit_b_16() -> tuple[nn.Module, Transform, str]:
    """torchvision's ViT-B/16 as a backbone; see `load_pretrained_backbone`."""
    vit = published_vit_b_16()
    vit.heads = nn.Identity()
    vit.name, vit.embedding_dim = "vit_b_16", vit.hidden_dim
    description = "torchvision's ViT-B/16, pretrained on ImageNet-1k"
    return vit, ViT_B_16_Weights.DEFAULT.transforms(), description


def published_vit_b_16() -> VisionTransformer:
    """torchvision's own model with its published weights, head and all.

    Raises:
        DownloadError: if the weights cannot be had.
    """
    weights = ViT_B_16_Weights.DEFAULT
    cache_weights(weights.url)
    return vit_b_16(weights=weights).eval()


def load_vit_file(path: str | Path) -> tuple[nn.Module, Transform, str]:
    """Any file that `load_vit` can read; see `load_pretrained_backbone`.

    The feature is the class token, or the mean of the patches where there is none.
    Colours are normalised as most weights under these names expect it. (Some of timm's
    expect 0.5 instead of ImageNet's numbers, which their files do not say.)
    """
    tensors = read_weights(path)
    naming = naming_of(tensors)
    vit = load_vit(tensors, num_classes=0, representation_size=0)
    vit.name, vit.embedding_dim = Path(path).stem, vit.config.embedding_dim
    size = vit.config.image_size
    transform = evaluation_transform(size, naming.mean, naming.std)
    description = (
        f"a ViT with patches of {vit.config.patch_size} and images of {size} pixels "
        f"from the file {Path(path).name} (names of {naming.title})"
    )
    return vit, transform, description


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
        self.name = "drawn_dishes"
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

    The file holds numbers in half precision and nothing that could run.

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
        vit, _ = read_vit(DRAWN_DISHES)
    except ValueError as error:
        raise ValueError(
            f"{error}: it is damaged, restore it with `git checkout models`"
        ) from error
    transform = evaluation_transform(vit.config.image_size)
    description = f"a small ViT ({vit.config.image_size} pixels), pretrained on drawn dishes"
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
