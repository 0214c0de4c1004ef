"""From pictures to tensors, and back."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision.models import ViT_B_16_Weights
from torchvision.transforms import functional, v2

# Normalized with these, the colors of photos have mean 0 and standard deviation 1
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Transform = Callable[[Image.Image], torch.Tensor]


class Normalization(NamedTuple):
    """How colors become a model's input: (color - mean) / std, for each channel."""

    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD


IMAGENET = Normalization()
# CLIP's, from the 400 million images that it was trained on
CLIP = Normalization((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # colors from -1 to 1


class EvaluationTransform(Protocol):
    """A `Transform` that says what it does; sizes are in pixels."""

    crop_size: list[int]  # one number for a square, or height and width
    resize_size: list[int]
    mean: list[float]
    std: list[float]

    def __call__(self, image: Image.Image) -> torch.Tensor: ...


class ResizeAndCrop(nn.Module):
    """Resize a picture to cover `resize_size`, then cut `crop_size` out of its center.

    The aspect ratio is kept. torchvision's preset does the same for squares.

    Args:
        crop_size, resize_size: (height, width), pixels.
    """

    def __init__(
        self,
        crop_size: tuple[int, int],
        resize_size: tuple[int, int],
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ):
        super().__init__()
        self.crop_size, self.resize_size = list(crop_size), list(resize_size)
        self.mean, self.std = list(mean), list(std)

    def forward(self, image: Image.Image | torch.Tensor) -> torch.Tensor:
        width, height = functional.get_image_size(image)
        H, W = self.resize_size
        if H * width >= W * height:  # a picture resized to height H is at least W wide
            size = [H, H * width // height]
        else:
            size = [W * height // width, W]
        image = functional.center_crop(functional.resize(image, size), self.crop_size)
        pixels = image if isinstance(image, torch.Tensor) else functional.pil_to_tensor(image)
        colors = functional.convert_image_dtype(pixels, torch.float)
        return functional.normalize(colors, self.mean, self.std)

    def extra_repr(self) -> str:
        """As torchvision prints its preset: one attribute a line."""
        names = ("crop_size", "resize_size", "mean", "std")
        return "\n".join(f"{name}={getattr(self, name)}" for name in names)


def evaluation_transform(
    size: int | tuple[int, int],
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> EvaluationTransform:
    """The transform that models are evaluated with, for any size.

    A picture is resized until it covers 8/7 of `size`, the center of exactly `size` is
    cut out, and colors are normalized. For a square this is torchvision's own preset.

    Args:
        size: one number for a square, or (height, width); pixels.
    """
    H, W = (size, size) if isinstance(size, int) else size
    if H == W:
        return ViT_B_16_Weights.DEFAULT.transforms(
            crop_size=H, resize_size=H * 8 // 7, mean=mean, std=std
        )
    return ResizeAndCrop((H, W), (H * 8 // 7, W * 8 // 7), mean, std)


def to_normalized(
    mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> v2.Compose:
    """Pillow images or uint8 tensors (..., 3, H, W) -> normalized float32 tensors."""
    return v2.Compose(
        [
            v2.PILToTensor(),  # tensors pass unchanged
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean, std),
        ]
    )


def denormalize(
    images: torch.Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> np.ndarray:
    """Normalized images (..., 3, H, W) as colors from 0 to 1, (..., H, W, 3)."""
    shift, scale = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
    colors = (images.detach().cpu() * scale + shift).clamp(0, 1)
    return colors.movedim(-3, -1).numpy()
