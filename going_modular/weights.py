"""Pretrained weights, and what to do where they cannot be had."""

import socket

from torch import nn
from torchvision.models import ViT_B_16_Weights, vit_b_16
from torchvision.transforms._presets import ImageClassification

from going_modular.data_setup import Transform
from going_modular.utils import set_seeds

TIMEOUT = 30  # seconds to wait for the server; torch.hub itself waits for ever


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
    weights = ViT_B_16_Weights.DEFAULT
    transform, reason = weights.transforms(), f"at {image_size} pixels, for tests"
    if image_size == 224:
        reason, default = None, socket.getdefaulttimeout()
        socket.setdefaulttimeout(TIMEOUT)
        try:
            vit = vit_b_16(weights=weights)
        except (OSError, RuntimeError) as error:  # no network; a broken file
            name = weights.url.rsplit("/", 1)[1]
            reason = (
                f"the weights could not be had ({type(error).__name__}): connect to "
                f"the internet and run this cell again, or put the file {name} into "
                "the folder hub/checkpoints of torch's cache"
            )
        finally:
            socket.setdefaulttimeout(default)
    else:
        transform = ImageClassification(crop_size=image_size, resize_size=image_size)
    if reason:
        set_seeds(42)
        vit = vit_b_16(image_size=image_size)
    vit.heads = nn.Identity()
    state = f"UNTRAINED: {reason}" if reason else "pretrained on ImageNet-1k"
    return vit, transform, f"torchvision's ViT-B/16, {state}"
