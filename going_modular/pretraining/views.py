"""What the network sees of the drawings in one step, and what it has to say about it."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from going_modular.drawings.painting import ROLES
from going_modular.drawings.synthetic_food import NAMES
from going_modular.images.transforms import to_normalized
from going_modular.model_builder import ViTConfig
from going_modular.pretraining.shards import Drawing

KEPT = 0.25  # share of the patches that go through the encoder
HEIGHT_SCALE = 100  # steps of a height that make 1 in the loss
GROUP = 4  # drawings that share one random change of colors, which is much faster
RECOLOR = v2.Compose(
    [
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.5, 0.05)], 0.8),
        v2.RandomGrayscale(0.1),
        v2.RandomApply([v2.GaussianBlur(7, (0.2, 1.5))], 0.2),
        to_normalized(),
    ]
)


class Views(NamedTuple):
    """Crops of drawings, and the truth about those of their patches that are kept.

    Shapes: images (B, 3, H, W), kept (B, n) indices of patches, contents of these patches
    (B, n, len(NAMES)), their heights (B, n), their roles (B, n, len(ROLES)), and the
    contents of the whole image (B, len(NAMES)). Contents and roles are shares: they sum
    to 1.
    """

    images: torch.Tensor
    kept: torch.Tensor
    contents: torch.Tensor
    heights: torch.Tensor
    roles: torch.Tensor
    whole: torch.Tensor

    def to(self, device: torch.device | str) -> "Views":
        """All of it on a device."""
        return Views(*(part.to(device) for part in self))


def views_of(drawings: Sequence[Drawing], step: int, batch_size: int, config: ViTConfig) -> Views:
    """The views of one step, for a ViT.

    All random numbers depend on the step alone, so that a resumed run sees the same.
    """
    torch.manual_seed(step)
    chosen = torch.randint(len(drawings), (batch_size,)).tolist()
    crop = v2.Compose(
        [v2.RandomResizedCrop(config.image_hw, scale=(0.25, 1.0)), v2.RandomHorizontalFlip()]
    )
    images, truths = [], []
    for drawing in map(drawings.__getitem__, chosen):
        truth = torch.from_numpy(drawing.truth().copy()).permute(2, 0, 1)
        image, mask = crop(drawing.image(), tv_tensors.Mask(truth))
        images.append(v2.functional.pil_to_tensor(image))
        truths.append(mask.as_subclass(torch.Tensor))
    groups = torch.stack(images).split(GROUP)
    N = config.num_patches
    kept = torch.rand(batch_size, N).argsort(dim=1)[:, : round(N * KEPT)]
    recolored = torch.cat([RECOLOR(group) for group in groups])
    return labelled(recolored, torch.stack(truths), kept, config.patch_size)


def labelled(
    images: torch.Tensor, truths: torch.Tensor, kept: torch.Tensor, patch_size: int
) -> Views:
    """Put images and the truth about the patches that are kept together.

    Shapes: images (B, 3, H, W), truths (B, 3, H, W) uint8, see `Drawing`; kept (B, n).
    """
    materials, heights, roles = in_patches(truths, patch_size).unbind(1)  # (B, N, P²) each
    contents = shares_of(materials, len(NAMES))
    return Views(
        images,
        kept,
        contents=pick(contents, kept),
        heights=pick(heights.float().mean(dim=2, keepdim=True), kept).squeeze(2) / HEIGHT_SCALE,
        roles=pick(shares_of(roles, len(ROLES)), kept),
        whole=contents.mean(dim=1),
    )


def in_patches(truths: torch.Tensor, P: int) -> torch.Tensor:
    """(B, C, H, W) -> (B, C, N, P²), patches row by row."""
    return truths.unfold(2, P, P).unfold(3, P, P).flatten(4).flatten(2, 3)


def shares_of(indices: torch.Tensor, count: int) -> torch.Tensor:
    """The share of each of `count` indices in a patch: (B, N, P²) -> (B, N, count)."""
    ones = torch.ones(indices.shape)
    shares = torch.zeros(*indices.shape[:2], count).scatter_add(2, indices.long(), ones)
    return shares / indices.shape[2]


def pick(patches: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """The patches that are kept: (B, N, K), (B, n) -> (B, n, K)."""
    return torch.take_along_dim(patches, kept.unsqueeze(2), dim=1)
