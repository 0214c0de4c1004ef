"""Pretrained ViTs without their heads, for transfer learning."""

import os
import re
from pathlib import Path

import torch
from torch import nn
from torchvision.models import VisionTransformer, ViT_B_16_Weights, vit_b_16

from going_modular.images.downloads import DownloadError, download_file
from going_modular.images.transforms import EvaluationTransform, evaluation_transform
from going_modular.model_builder import ViT
from going_modular.utils import PACKAGE, get_source
from going_modular.vit.files import read_weights, vit_from
from going_modular.vit.weights import load_vit

DRAWN_DISHES = PACKAGE / "pretrained" / "vit_drawn_dishes.safetensors"
BACKBONES = ("auto", "vit_b_16", "drawn_dishes")


def load_pretrained_backbone(name: str = "auto") -> tuple[nn.Module, EvaluationTransform, str]:
    """A pretrained ViT without its head, and the transform that its images need.

    Shapes: backbone(images (B, 3, H, W)) -> features (B, D). Each backbone returns the
    feature that it was trained with. For ViT-B/16 that is the class token after the final
    LayerNorm (equation 4); for ours see `TokenStatistics`. D is `backbone.embedding_dim`,
    H and W are those of the transform, and `backbone.name` is a short name for files.

    Args:
        name: which backbone.

            - "vit_b_16" is torchvision's, pretrained on ImageNet-1k (346 MB, downloaded
              once).
            - "drawn_dishes" is a small ViT of our own, pretrained on drawn dishes. It is
              part of this package.
            - "auto" takes the file in the environment variable VIT_WEIGHTS, if that is
              set (see `load_vit_file`). Else it takes "vit_b_16" if that can be had, and
              "drawn_dishes" if not, or if FOODVISION_SOURCE is "synthetic".

    Returns:
        (backbone, transform from a Pillow image to a tensor, description in words)

    Raises:
        ValueError: for any other name.
        DownloadError: if "vit_b_16" was asked for by name and cannot be downloaded.
        FileNotFoundError, ValueError: if the file of "drawn_dishes" or of VIT_WEIGHTS is
            missing, damaged, or not a ViT.
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
    """The `ViT` inside a backbone of `load_pretrained_backbone`.

    It is the backbone's own part. For torchvision's model it is a copy in our class.

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


def load_vit_b_16() -> tuple[nn.Module, EvaluationTransform, str]:
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


def load_vit_file(path: str | Path) -> tuple[nn.Module, EvaluationTransform, str]:
    """Any file that `load_vit` can read; see `load_pretrained_backbone`.

    The feature is what a head would read: the class token, the mean of the patches, or
    what a descendant pools. Colors are normalized as `normalization_of` says.
    """
    stored = read_weights(path)
    vit = load_vit(stored, num_classes=0, representation_size=0)
    transform = evaluation_transform(vit.config.image_size, *stored.normalization)
    H, W = vit.config.image_hw
    description = (
        f"a ViT with patches of {vit.config.patch_size} and images of "
        f"{H if H == W else f'{H} × {W}'} pixels from the file {stored.file_name} "
        f"(names of {stored.naming.title})"
    )
    return Backbone(vit, Path(path).stem).eval(), transform, description


class Backbone(nn.Module):
    """A ViT without a head, under a short name.

    Shapes: images (B, C, H, W) -> (B, D), what a head would read; (B, 2D) if that is two
    vectors side by side.
    """

    def __init__(self, vit: ViT, name: str):
        super().__init__()
        self.vit = vit
        self.name = name
        self.embedding_dim = vit.config.pooled_dim

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.vit(images)


class TokenStatistics(nn.Module):
    """What the patches of a ViT have in common, and how much they differ.

    A class token has to learn which patches to look at. The mean and the standard
    deviation over all patches have nothing to learn. The standard deviation is small
    where all patches are similar, as on a pile of rice, and large for a plate of many
    things.

    Shapes: images (B, C, H, W) -> (B, 2D), the mean and then the standard deviation of
    the N patches after the final LayerNorm.
    """

    def __init__(self, vit: ViT):
        super().__init__()
        self.vit = vit
        self.name = "drawn_dishes"
        self.embedding_dim = 2 * vit.config.embedding_dim

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.vit.forward_features(images)
        return statistics_of(tokens[:, self.vit.config.num_tokens_before_patches :])


def statistics_of(patches: torch.Tensor) -> torch.Tensor:
    """(B, N, D) -> (B, 2D), the mean and the standard deviation over the patches."""
    # The slope of the root is infinite at 0, where all patches are equal
    spread = patches.var(dim=1, correction=0).add(1e-6).sqrt()
    return torch.cat([patches.mean(dim=1), spread], dim=1)


def load_drawn_dishes() -> tuple[nn.Module, EvaluationTransform, str]:
    """Our small ViT, see `pretrained/README.md`; the file holds half precision numbers.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it is damaged.
    """
    restore = (
        "It is part of this package: install it again, or, in a clone of the repository, "
        f"run `git checkout going_modular/pretrained/{DRAWN_DISHES.name}`"
    )
    if not DRAWN_DISHES.is_file():
        raise FileNotFoundError(f"there is no file {DRAWN_DISHES}. {restore}")
    try:
        stored = read_weights(DRAWN_DISHES)
        vit = vit_from(stored)
    except ValueError as error:
        raise ValueError(f"{DRAWN_DISHES.name} is damaged. {restore} ({error})") from error
    size = vit.config.image_size
    transform = evaluation_transform(size, *stored.normalization)
    description = f"a small ViT ({size} pixels), pretrained on drawn dishes"
    return TokenStatistics(vit).eval(), transform, description


def cache_weights(url: str) -> Path:
    """Put a weights file into torch's cache, unless an intact one is there.

    torch.hub would do that too, but it waits forever where a network drops packets, and
    never checks a file that is in its cache. The name of the file holds the first digits
    of its SHA-256; a file with other digits is downloaded again.

    Raises:
        DownloadError: if the file cannot be downloaded.
        ValueError: if there are no such digits in its name.
    """
    path = Path(torch.hub.get_dir(), "checkpoints", url.rsplit("/", 1)[1])
    digits = re.search(r"-([0-9a-f]+)\.", path.name)
    if digits is None:
        raise ValueError(f"expected the digits of a SHA-256 in the file name, got {path.name}")
    try:
        return download_file(url, path, digits[1])
    except OSError as error:
        state = "is there but incomplete" if path.is_file() else "is not there"
        raise DownloadError(
            f"{error} The file {path.name} {state} (folder hub/checkpoints of torch's "
            "cache). Connect to the internet and run this cell again, or put it there."
        ) from error
