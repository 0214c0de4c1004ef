"""Every size of a Vision Transformer, and the sizes that have a name."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from going_modular.vit.positions import Grid

SIZES = ("patch_size", "in_channels", "embedding_dim", "num_layers", "num_heads", "mlp_dim")
OPTIONAL_SIZES = ("num_classes", "representation_size")  # 0 is without
PROBABILITIES = ("dropout", "attention_dropout", "stochastic_depth")
CHOICES = {
    "gelu": ("exact", "tanh"),
    "pool": ("class_token", "mean"),
    "pos_embedding": ("learned_1d", "learned_2d", "sincos_2d", "none"),
}
LARGEST = 1_000_000  # of a size: no tensor of the ViT then has more than 2**63 bytes


@dataclass(frozen=True)
class ViTConfig:
    """Every size of a Vision Transformer; the defaults are ViT-B/16 (Table 1).

    - `image_size` is one number for a square, or (height, width).
    - `num_classes=0` builds a model without a head.
    - `dropout` follows every dense layer except the qkv projection, and the addition of
      positions (Appendix B.1). `attention_dropout` acts on the attention weights; the
      paper does not use it.
    - `stochastic_depth` is the probability that the last block skips its attention, or
      its MLP, for an image in training. It grows linearly from 0 at the first block
      (Huang et al., arXiv 1603.09382). The paper does not use it.
    - `gelu="tanh"` is the approximation that the paper's own code uses.
    - `pool="mean"` feeds the mean of all patches to the head. There is no class token
      then (Appendix D.3).
    - `representation_size` is the width of the tanh layer before the head in
      pre-training (Section 3.1); 0 is without.
    - `pos_embedding`: see `vit.positions.init_pos_embedding` (Appendix D.4).

    Raises:
        ValueError: if the sizes cannot make a model. The message says which numbers
            clash and what would fit.
    """

    choices: ClassVar[dict[str, tuple[str, ...]]] = CHOICES

    image_size: int | tuple[int, int] = 224  # H = W, or (H, W), pixels
    patch_size: int = 16  # P, pixels
    in_channels: int = 3  # C
    embedding_dim: int = 768  # D
    num_layers: int = 12  # L
    num_heads: int = 12  # h
    mlp_dim: int = 3072
    num_classes: int = 1000  # K
    dropout: float = 0.1
    attention_dropout: float = 0.0
    stochastic_depth: float = 0.0
    layer_norm_eps: float = 1e-6
    gelu: str = "exact"
    pool: str = "class_token"
    representation_size: int = 0
    pos_embedding: str = "learned_1d"

    def __post_init__(self) -> None:
        for name in SIZES:
            check_size(name, getattr(self, name))
        for name in OPTIONAL_SIZES:
            check_size(name, getattr(self, name), least=0)
        for name in PROBABILITIES:
            check_probability(name, getattr(self, name))
        for name, choices in self.choices.items():
            check_choice(name, getattr(self, name), choices)
        if not is_number(self.layer_norm_eps) or not 0 < self.layer_norm_eps:
            raise ValueError(f"layer_norm_eps must be a number > 0, got {self.layer_norm_eps!r}")
        object.__setattr__(self, "image_size", parse_image_size(self.image_size))
        for length in self.image_hw:
            check_divisible("image_size", length, "patch_size", self.patch_size)
        check_divisible("embedding_dim", self.embedding_dim, "num_heads", self.num_heads)
        parts = {"sincos_2d": 4, "learned_2d": 2}.get(self.pos_embedding, 1)
        if self.embedding_dim % parts:  # half of D for x and half for y, sines and cosines
            raise ValueError(
                f'pos_embedding="{self.pos_embedding}" needs an embedding_dim that is '
                f"divisible by {parts}, got {self.embedding_dim}"
            )

    @property
    def image_hw(self) -> tuple[int, int]:
        """(H, W), pixels."""
        size = self.image_size
        return size if isinstance(size, tuple) else (size, size)

    @property
    def grid(self) -> Grid:
        """Rows and columns of patches, (H/P, W/P)."""
        H, W = self.image_hw
        return (H // self.patch_size, W // self.patch_size)

    @property
    def num_patches(self) -> int:
        """N = HW / P² (Section 3.1)."""
        rows, columns = self.grid
        return rows * columns

    @property
    def num_class_tokens(self) -> int:
        """1, or 0 with mean pooling."""
        return 1 if self.pool == "class_token" else 0

    @property
    def num_tokens_before_patches(self) -> int:
        """T - N: class token and registers, which have no place in the image."""
        return self.num_class_tokens

    @property
    def pooled_dim(self) -> int:
        """The length of what the head reads: D, or 2D where it is two vectors."""
        return self.embedding_dim

    def stochastic_depth_of(self, layer: int) -> float:
        """The probability that a layer, counted from 0, skips its attention or its MLP."""
        return self.stochastic_depth * layer / max(self.num_layers - 1, 1)


def parse_image_size(size: Any) -> int | tuple[int, int]:
    """One number for a square, else (height, width), so that equal models compare equal.

    Raises:
        ValueError: if it is neither a whole number nor a pair of whole numbers.
    """
    if not isinstance(size, list | tuple):
        check_size("image_size", size)
        return size
    if len(size) != 2:
        raise ValueError(f"image_size must be a number or (H, W), got {size!r}")
    for length in size:
        check_size("image_size", length)
    H, W = size
    return H if H == W else (H, W)


def patches_in(image_size: Any, patch_size: int) -> int:
    """N, the number of patches of an image; raises `ValueError` if that is no size."""
    size = parse_image_size(image_size)
    H, W = size if isinstance(size, tuple) else (size, size)
    return (H // patch_size) * (W // patch_size)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number that fits a float; True and False are no numbers."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) <= sys.float_info.max


def check_size(name: str, value: Any, least: int = 1) -> None:
    """Raise `ValueError` unless a size is a whole number from `least` to `LARGEST`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}")
    if value > LARGEST:
        raise ValueError(f"{name} must be at most {LARGEST:,}, got {value:,}")


def check_probability(name: str, value: Any) -> None:
    """Raise `ValueError` unless a number is at least 0 and below 1."""
    if not is_number(value) or not 0 <= value < 1:
        raise ValueError(f"{name} must be a number from 0 to below 1, got {value!r}")


def check_choice(name: str, value: Any, choices: Sequence[str] = ()) -> None:
    """Raise `ValueError` unless a value is one of `choices`, or else of `CHOICES[name]`."""
    choices = choices or CHOICES[name]
    if value not in choices:
        known = " or ".join(f'"{choice}"' for choice in choices)
        raise ValueError(f"{name} must be {known}, got {value!r}")


def check_divisible(name: str, value: int, part_name: str, part: int) -> None:
    """Raise `ValueError` unless `part` divides `value`; name the nearest that would fit."""
    check_size(name, value)
    check_size(part_name, part)
    if value % part:
        multiples = sorted({max(value // part, 1) * part, (value // part + 1) * part})
        below = next(d for d in range(min(part, value), 0, -1) if value % d == 0)
        above = next((d for d in range(part + 1, value + 1) if value % d == 0), below)
        divisors = sorted({below, above})
        raise ValueError(
            f"{name}={value} is not divisible by {part_name}={part}: "
            f"use {name}={' or '.join(map(str, multiples))}, "
            f"or {part_name}={' or '.join(map(str, divisors))}"
        )


VIT_CONFIGS = {
    name: ViTConfig(patch_size=P, embedding_dim=D, num_layers=L, num_heads=h, mlp_dim=4 * D)
    for name, P, D, L, h in [
        ("ViT-Ti/16", 16, 192, 12, 3),  # Ti and S: DeiT, arXiv 2012.12877
        ("ViT-S/16", 16, 384, 12, 6),
        ("ViT-B/32", 32, 768, 12, 12),  # B, L and H: Table 1
        ("ViT-B/16", 16, 768, 12, 12),
        ("ViT-L/32", 32, 1024, 24, 16),
        ("ViT-L/16", 16, 1024, 24, 16),
        ("ViT-H/14", 14, 1280, 32, 16),
    ]
}
