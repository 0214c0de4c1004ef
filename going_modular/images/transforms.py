"""From pictures to tensors, and back."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torchvision.models import ViT_B_16_Weights

# With these, colours of photos have mean 0 and deviation 1, as start values expect it
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Transform = Callable[[Image.Image], torch.Tensor]


def evaluation_transform(
    size: int, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> Transform:
    """torchvision's own transform for evaluation, at another size.

    The shorter side is resized to 8/7 of `size`, the middle `size` × `size` pixels are
    cut out, and colours are normalised (by default with ImageNet's numbers).
    """
    return ViT_B_16_Weights.DEFAULT.transforms(
        crop_size=size, resize_size=size * 8 // 7, mean=mean, std=std
    )


def denormalize(
    images: torch.Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> np.ndarray:
    """Normalised images (..., 3, H, W) as colours from 0 to 1, (..., H, W, 3)."""
    mean, std = (torch.tensor(colors).view(3, 1, 1) for colors in (mean, std))
    colors = (images.detach().cpu() * std + mean).clamp(0, 1)
    return colors.movedim(-3, -1).numpy()


# With these, colours of photos have mean 0 and deviation 1, as start values expect it
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
