"""Sizes and parts of the ViTs after the paper's; `descendants` builds them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from typing import Any, ClassVar

import torch

from going_modular.vit.config import CHOICES, ViTConfig, check_size
from going_modular.vit.positions import Grid


@dataclass(frozen=True)
class Rotary:
    """How rotary positions turn queries and keys (Su et al., arXiv 2104.09864).

    - `temperature`: the slowest of the D/4h frequencies of an axis turns nearly this many
      times slower than the fastest.
    - `centered`: coordinates go from -2π to 2π over each axis, whatever the grid, as in
      DINOv3. Otherwise they count patches.
    - `reference`: if not 0, patches are counted as on a grid of so many rows and columns.
    - `offset` of the first patch, where patches are counted.
    - `learned`: each head has frequencies of its own, which mix both axes
      (Heo et al., arXiv 2403.13298).
    """

    temperature: float = 10_000.0
    centered: bool = False
    reference: int = 0
    offset: float = 0.0
    learned: bool = False

    def coordinates(self, grid: Grid) -> torch.Tensor:
        """Row and column of each patch, (N, 2), in the units that `frequencies` turn by."""
        axes = []
        for length in grid:
            places = torch.arange(length, dtype=torch.float32)
            if self.centered:
                axes.append((2 * (places + 0.5) / length - 1) * 2 * math.pi)
            else:
                places = places + self.offset
                axes.append(places / length * self.reference if self.reference else places)
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1)

    def frequencies(self, head_dim: int) -> torch.Tensor:
        """(2, 1, D/2h): the first half turns with the row, the second with the column."""
        exponents = torch.arange(head_dim // 4, dtype=torch.float32) * 4 / head_dim
        of_an_axis = self.temperature**-exponents
        return torch.block_diag(of_an_axis, of_an_axis).unsqueeze(1)


def rotary_from(fields: Mapping[str, Any]) -> Rotary:
    """Rotary positions from what JSON made of them; raises `ValueError` for anything else."""
    kinds = {each.name: type(each.default) for each in dataclass_fields(Rotary)}
    for name, value in fields.items():
        if type(value) is not kinds.get(name):
            raise ValueError(f"rotary positions have no {name}={value!r}")
    return Rotary(**fields)


@dataclass(frozen=True)
class DescendantConfig(ViTConfig):
    """Sizes and parts of a descendant; the defaults of the parts are those of the paper.

    - `class_token`: whether there is one. `pool="class_token"` needs it.
    - `pool`: what the head reads. Besides the class token and the mean of the patches, it
      may be "attention" (SigLIP), or two vectors side by side: "class_and_register", the
      class token and DeiT's distillation token, or "class_and_mean" (DINOv2).
    - `num_registers`: tokens without a place in the image. Darcet et al. (arXiv 2309.16588)
      add them to keep attention maps clean; DeiT's distillation token is one, too.
    - `pre_norm`: a LayerNorm before the encoder (CLIP).
    - `pooled_norm`: the last LayerNorm comes after the pooling instead of before. Without
      `last_norm` there is none.
    - `pooling_heads` of `pool="attention"`; 0 stands for as many as in the encoder. With
      `pools_patches` it asks the patches alone, not class token and registers.
    - `gelu` may also be "quick", x·σ(1.702x) (CLIP).
    - `swiglu`: a gate in the MLP, see `SwiGLU`.
    - `attention_norm`, `mlp_norm`: a LayerNorm before the last linear layer of attention
      or MLP (EVA-02). `qk_norm`: one for the queries and one for the keys of each head.
    - `rotary`: positions that turn queries and keys; None is without.
    """

    choices: ClassVar = CHOICES | {
        "pool": (*CHOICES["pool"], "attention", "class_and_register", "class_and_mean"),
        "gelu": (*CHOICES["gelu"], "quick"),
    }
    class_token: bool = True
    num_registers: int = 0
    pre_norm: bool = False
    pooled_norm: bool = False
    last_norm: bool = True
    pooling_heads: int = 0
    pools_patches: bool = False
    swiglu: bool = False
    attention_norm: bool = False
    mlp_norm: bool = False
    qk_norm: bool = False
    rotary: Rotary | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for each in dataclass_fields(self):
            if each.type is bool and not isinstance(getattr(self, each.name), bool):
                value = getattr(self, each.name)
                raise ValueError(f"{each.name} must be True or False, got {value!r}")
        if isinstance(self.rotary, dict):  # from JSON
            object.__setattr__(self, "rotary", rotary_from(self.rotary))
        check_size("num_registers", self.num_registers, least=0)
        check_size("pooling_heads", self.pooling_heads, least=0)
        if self.pool.startswith("class") and not self.class_token:
            raise ValueError(f'pool="{self.pool}" needs class_token=True')
        if self.pool == "class_and_register" and not self.num_registers:
            raise ValueError('pool="class_and_register" needs num_registers of at least 1')
        if self.pooled_norm and self.pooled_dim != self.embedding_dim:
            raise ValueError(f'pool="{self.pool}" reads two vectors: pooled_norm has no place')
        if self.representation_size and self.pooled_dim != self.embedding_dim:
            raise ValueError(
                f'pool="{self.pool}" has no layer before the head: representation_size=0'
            )
        if self.rotary and self.embedding_dim // self.num_heads % 4:
            raise ValueError(
                "rotary positions need an embedding_dim that is a multiple of 4 · num_heads, "
                f"got {self.embedding_dim} and {self.num_heads} heads"
            )

    @property
    def num_class_tokens(self) -> int:
        return int(self.class_token)

    @property
    def num_tokens_before_patches(self) -> int:
        return self.num_class_tokens + self.num_registers

    @property
    def pooled_dim(self) -> int:
        two = self.pool in ("class_and_register", "class_and_mean")
        return 2 * self.embedding_dim if two else self.embedding_dim


def config_from(fields: Mapping[str, Any]) -> ViTConfig:
    """A configuration from its fields: that of a `ViT` if it has no others.

    Raises:
        ValueError: see `ViTConfig`; also if a field is unknown.
    """
    plain = {each.name for each in dataclass_fields(ViTConfig)}
    kind = ViTConfig if fields.keys() <= plain else DescendantConfig
    if unknown := fields.keys() - {each.name for each in dataclass_fields(kind)}:
        raise ValueError(f"its configuration has unknown fields: {', '.join(sorted(unknown))}")
    return kind(**fields)
