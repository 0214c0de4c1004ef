"""Every size of a Vision Transformer, and the sizes that have a name."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

from going_modular.vit.positions import Grid

CHOICES = {
    "gelu": ("exact", "tanh"),
    "pool": ("class_token", "mean"),
    "pos_embedding": ("learned_1d", "learned_2d", "sincos_2d", "none"),
}


@dataclass(frozen=True)
class ViTConfig:
    """Every size of a Vision Transformer; the defaults are ViT-B/16 (Table 1).

    `image_size` is one number for a square, or (height, width). `num_classes=0` builds
    a model without a head. `dropout` follows every dense layer except the qkv
    projection, and the addition of positions (Appendix B.1); `attention_dropout` is
    that of the attention weights, which the paper does not use. `stochastic_depth` is
    the chance that the last block leaves out each of its two parts for an image while
    training; it grows linearly from 0 at the first block (Huang et al., arXiv
    1603.09382; not in the paper, usual since). `gelu="tanh"` is the approximation that
    the paper's own code uses. `pool="mean"` reads the mean of all patches instead of a
    class token, and there is none (D.3). `representation_size` is
    the width of the tanh layer before the head in pre-training (3.1); 0 is without.
    `pos_embedding` see `position_embedding.init_pos_embedding` (D.4).

    Raises:
        ValueError: if the sizes cannot make a model; the message says which
            numbers clash and what would fit.
    """

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

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is int:  # not so if annotations were strings
                may_be_zero = field.name in ("num_classes", "representation_size")
                check_size(field.name, value, least=0 if may_be_zero else 1)
            probability = field.name.endswith(("dropout", "stochastic_depth"))
            if probability and not 0 <= value < 1:
                raise ValueError(f"{field.name} must be from 0 to below 1, got {value!r}")
            if field.name in CHOICES:
                check_choice(field.name, value)
        size = self.image_size
        if isinstance(size, list | tuple):  # (224, 224) is the same model as 224
            size = size[0] if len(set(size)) == 1 and len(size) == 2 else tuple(size)
            object.__setattr__(self, "image_size", size)
        if isinstance(size, tuple) and len(size) != 2:
            raise ValueError(f"image_size must be a number or (H, W), got {size!r}")
        for length in self.image_hw:
            check_divisible("image_size", length, "patch_size", self.patch_size)
        check_divisible("embedding_dim", self.embedding_dim, "num_heads", self.num_heads)
        parts = {"sincos_2d": 4, "learned_2d": 2}.get(self.pos_embedding, 1)
        if self.embedding_dim % parts:  # x and y, each with sines and cosines
            raise ValueError(
                f'pos_embedding="{self.pos_embedding}" needs an embedding_dim that is '
                f"divisible by {parts}, got {self.embedding_dim}"
            )
        if not self.layer_norm_eps > 0:
            raise ValueError(f"layer_norm_eps must be > 0, got {self.layer_norm_eps}")

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


def check_size(name: str, value: int, least: int = 1) -> None:
    """Raise `ValueError` unless a size is a whole number, large enough."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}")


def check_choice(name: str, value: str, choices: Sequence[str] = ()) -> None:
    """Raise `ValueError` unless an option is one of the given ones, or of `CHOICES`."""
    choices = choices or CHOICES[name]
    if value not in choices:
        known = " or ".join(f'"{choice}"' for choice in choices)
        raise ValueError(f"{name} must be {known}, got {value!r}")


def check_divisible(name: str, value: int, part_name: str, part: int) -> None:
    """Raise `ValueError`, naming the nearest numbers that fit, if part ∤ value."""
    check_size(name, value)
    check_size(part_name, part)
    if value % part:
        multiples = {max(value // part, 1) * part, (value // part + 1) * part}
        divisors = [d for d in range(1, value + 1) if value % d == 0]
        below = max(d for d in divisors if d < part)
        divisors = [below, *(d for d in divisors if d > part)][:2]
        fits = [" or ".join(map(str, sorted(x))) for x in (multiples, divisors)]
        raise ValueError(
            f"{name}={value} is not divisible by {part_name}={part}: "
            f"use {name}={fits[0]}, or {part_name}={fits[1]}"
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
