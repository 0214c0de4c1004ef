"""What became of the Vision Transformer: each later part as a difference to `model_builder`.

DeiT, DINOv2, DINOv3, CLIP, SigLIP and EVA-02 are the ViT of the paper with some of these
parts. A `DescendantConfig` says which; with its defaults, a `Descendant` is a `ViT`. What
can be folded into the paper's ViT, such as layer scale, is no part here: see `folding`.

Shape letters are those of `model_builder`. R is the number of registers, and T the number
of all tokens: the class token if there is one, the registers, then the N patches.
"""

import torch
import torch.nn.functional as F
from torch import nn

from going_modular.model_builder import (
    MLPBlock,
    MultiheadSelfAttentionBlock,
    TransformerEncoderBlock,
    ViT,
)
from going_modular.vit.attention import scaled_dot_product_attention
from going_modular.vit.config import ViTConfig
from going_modular.vit.descendant_config import DescendantConfig


def build_vit(config: ViTConfig) -> ViT:
    """A `ViT`, or a `Descendant` if the configuration is that of one."""
    return Descendant(config) if isinstance(config, DescendantConfig) else ViT(config)


class DescendantAttention(MultiheadSelfAttentionBlock):
    """Self-attention whose queries and keys may be normalized and turned.

    Rotary positions see each head's D/h numbers as D/2h points in a plane: number i and
    number i + D/2h are one point. A patch's place turns each point by an angle, at another
    speed for each. The product of a turned query and a turned key then depends only on the
    offset from one patch to the other: so many rows down and so many columns to the right.
    """

    def __init__(self, config: DescendantConfig):
        D, h = config.embedding_dim, config.num_heads
        super().__init__(D, h, config.dropout, config.attention_dropout)
        eps, rotary = config.layer_norm_eps, config.rotary
        self.query_norm: nn.Module = nn.Identity()
        self.key_norm: nn.Module = nn.Identity()
        if config.qk_norm:
            self.query_norm = nn.LayerNorm(D // h, eps=eps)
            self.key_norm = nn.LayerNorm(D // h, eps=eps)
        if config.attention_norm:
            self.projection = NormedLinear(D, D, eps)
        if rotary is not None:
            frequencies = rotary.frequencies(D // h)
            if rotary.learned:
                self.frequencies = nn.Parameter(frequencies.repeat(1, h, 1))  # (2, h, D/2h)
            else:
                self.register_buffer("frequencies", frequencies, persistent=False)
        self.coordinates: torch.Tensor | None = None  # (T, 2); `Descendant.embed` sets them

    def queries_keys_values(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = super().queries_keys_values(x)
        q, k = self.query_norm(q), self.key_norm(k)
        if self.coordinates is not None:
            rows, columns = self.coordinates[:, :, None].to(x.device).unbind(1)  # each (T, 1)
            f_rows, f_columns = self.frequencies[:, :, None]  # each (h, 1, D/2h), or (1, 1, D/2h)
            angles = rows * f_rows + columns * f_columns  # (h, T, D/2h)
            q, k = turn(q, angles), turn(k, angles)
        return torch.stack([q, k, v])


def turn(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Turn points in the plane: (B, h, T, D/h) by (h, T, D/2h)."""
    cos, sin = angles.cos(), angles.sin()
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return turned.to(x.dtype)


class NormedLinear(nn.Linear):
    """A linear layer with a LayerNorm before it."""

    def __init__(self, in_features: int, out_features: int, eps: float):
        super().__init__(in_features, out_features)
        self.norm = nn.LayerNorm(in_features, eps=eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(self.norm(x))


class QuickGELU(nn.Module):
    """x·σ(1.702x), with which OpenAI's CLIP was trained."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


class DescendantMLP(MLPBlock):
    """The MLP of equation 3 with CLIP's GELU, or with a LayerNorm in it."""

    def __init__(self, config: DescendantConfig):
        D, hidden = config.embedding_dim, config.mlp_dim
        quick = config.gelu == "quick"
        super().__init__(D, hidden, config.dropout, "exact" if quick else config.gelu)
        if quick:
            self.gelu = QuickGELU()
        if config.mlp_norm:
            self.contract = NormedLinear(hidden, D, config.layer_norm_eps)


class SwiGLU(DescendantMLP):
    """An MLP with a gate: contract(silu(gate(x)) · expand(x)) (Shazeer, arXiv 2002.05202)."""

    def __init__(self, config: DescendantConfig):
        super().__init__(config)
        self.gate = nn.Linear(config.embedding_dim, config.mlp_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.dropout(F.silu(self.gate(x)) * self.expand(x))  # (B, T, mlp_dim)
        return self.dropout(self.contract(x))  # (B, T, D)


class AttentionPooling(nn.Module):
    """What a head reads in SigLIP: one learned query asks all tokens: (B, T, D) -> (B, D)."""

    def __init__(self, config: DescendantConfig):
        super().__init__()
        D = config.embedding_dim
        self.latent = nn.Parameter(torch.empty(1, 1, D).normal_(std=D**-0.5))
        heads = config.pooling_heads or config.num_heads
        self.attention = MultiheadSelfAttentionBlock(D, heads, dropout=0.0)
        self.norm = nn.LayerNorm(D, eps=config.layer_norm_eps)
        self.mlp = MLPBlock(D, config.mlp_dim, 0.0, "tanh" if config.gelu == "tanh" else "exact")

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        q, _, _ = self.attention.queries_keys_values(self.latent.expand(len(z), -1, -1))
        _, k, v = self.attention.queries_keys_values(z)
        y = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # (B, 1, D)
        y = self.attention.projection(y)
        return (y + self.mlp(self.norm(y)))[:, 0]


class Descendant(ViT):
    """A ViT with the parts that its configuration names; see `ViT`.

    Shapes: images (B, C, H, W) -> logits (B, K), or with `num_classes=0` what a head reads.
    """

    config: DescendantConfig

    def __init__(self, config: DescendantConfig):
        super().__init__(config)
        D, eps = config.embedding_dim, config.layer_norm_eps
        if config.num_registers:
            self.registers = nn.Parameter(torch.empty(1, config.num_registers, D).normal_(std=0.02))
        self.pre_norm: nn.Module = nn.LayerNorm(D, eps=eps) if config.pre_norm else nn.Identity()
        if not config.last_norm:
            self.norm = nn.Identity()
        if config.pool == "attention":
            self.pooling = AttentionPooling(config)
        if config.num_classes and config.pooled_dim != D:
            self.head = nn.Linear(config.pooled_dim, config.num_classes)
            for parameter in self.head.parameters():
                nn.init.zeros_(parameter)

    def build_block(self, layer: int) -> TransformerEncoderBlock:
        """One layer of the encoder: equations 2 and 3 with other attention and MLP."""
        config = self.config
        block = TransformerEncoderBlock(
            config.embedding_dim,
            config.num_heads,
            config.mlp_dim,
            layer_norm_eps=config.layer_norm_eps,
            stochastic_depth=config.stochastic_depth_of(layer),
        )
        block.attention = DescendantAttention(config)
        block.mlp = SwiGLU(config) if config.swiglu else DescendantMLP(config)
        return block

    def embed(self, images: torch.Tensor, interpolate: bool = False) -> torch.Tensor:
        """z_0 of equation 1, with registers between class token and patches: (B, T, D)."""
        z, config = super().embed(images, interpolate), self.config
        first = config.num_class_tokens
        if config.num_registers:
            registers = self.registers.expand(len(z), -1, -1)  # they have no positions
            z = torch.cat([z[:, :first], registers, z[:, first:]], dim=1)
        if config.rotary is not None:
            grid = (images.shape[2] // config.patch_size, images.shape[3] // config.patch_size)
            places = config.rotary.coordinates(grid)
            # Tokens without a place are turned by 0, which leaves them as they are
            places = F.pad(places, (0, 0, config.num_tokens_before_patches, 0))
            for block in self.encoder:
                block.attention.coordinates = places
        return self.pre_norm(z)

    def forward_features(self, images: torch.Tensor, interpolate: bool = False) -> torch.Tensor:
        """All tokens, after the final LayerNorm unless that follows the pooling: (B, T, D)."""
        z_L = self.encoder(self.embed(images, interpolate))
        return z_L if self.config.pooled_norm else self.norm(z_L)

    def pooled(self, z: torch.Tensor) -> torch.Tensor:
        """What the head reads, from all tokens: (B, T, D) -> (B, D), or (B, 2D) for two."""
        pool, patches = self.config.pool, z[:, self.config.num_tokens_before_patches :]
        if pool == "attention":
            return self.pooling(patches if self.config.pools_patches else z)
        if pool == "mean":
            return patches.mean(dim=1)
        if pool == "class_token":
            return z[:, 0]
        return torch.cat([z[:, 0], z[:, 1] if pool == "class_and_register" else patches.mean(1)], 1)

    def forward(self, images: torch.Tensor, interpolate: bool = False) -> torch.Tensor:
        y = self.pooled(self.forward_features(images, interpolate))
        if self.config.pooled_norm:
            y = self.norm(y)
        return self.head(self.representation(y))
