"""The Vision Transformer, written as the four equations of its paper.

Dosovitskiy et al., "An Image is Worth 16x16 Words: Transformers for Image
Recognition at Scale", arXiv 2010.11929. Section and equation numbers below are
the paper's.

Shape letters: B batch, C channels, H W image height and width, P patch size,
N patches, D embedding, h heads, L layers, K classes. The class token makes
N patches into a sequence of N+1 tokens.
"""

import math
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class ViTConfig:
    """Every size of a Vision Transformer; the defaults are ViT-B/16 (Table 1).

    `num_classes=0` builds a model without a head. `gelu="tanh"` is the approximation
    that the paper's own code uses. `dropout` follows every dense layer except the qkv
    projection, and the addition of positions (Appendix B.1); `attention_dropout` is
    that of the attention weights, which the paper does not use.

    Raises:
        ValueError: if the sizes cannot make a model; the message says which
            numbers clash and what would fit.
    """

    image_size: int = 224  # H = W, pixels
    patch_size: int = 16  # P, pixels
    in_channels: int = 3  # C
    embedding_dim: int = 768  # D
    num_layers: int = 12  # L
    num_heads: int = 12  # h
    mlp_dim: int = 3072
    num_classes: int = 1000  # K
    dropout: float = 0.1
    attention_dropout: float = 0.0
    layer_norm_eps: float = 1e-6
    gelu: str = "exact"

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is int:
                check_size(field.name, value, least=int(field.name != "num_classes"))
            if field.name.endswith("dropout") and not 0 <= value < 1:
                raise ValueError(
                    f"{field.name} must be from 0 to below 1, got {value!r}"
                )
        check_divisible("image_size", self.image_size, "patch_size", self.patch_size)
        check_divisible(
            "embedding_dim", self.embedding_dim, "num_heads", self.num_heads
        )
        if not self.layer_norm_eps > 0:
            raise ValueError(f"layer_norm_eps must be > 0, got {self.layer_norm_eps}")
        gelu_layer(self.gelu)

    @property
    def num_patches(self) -> int:
        """N = HW / P² (Section 3.1)."""
        return (self.image_size // self.patch_size) ** 2


def check_size(name: str, value: int, least: int = 1) -> None:
    """Raise `ValueError` unless a size is a whole number, large enough."""
    if not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}")


def check_divisible(name: str, value: int, part_name: str, part: int) -> None:
    """Raise `ValueError`, naming the nearest numbers that fit, if part ∤ value."""
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


def gelu_layer(gelu: str) -> nn.GELU:
    """GELU, "exact" or as its "tanh" approximation; `ValueError` for anything else."""
    if gelu not in ("exact", "tanh"):
        raise ValueError(f'gelu must be "exact" or "tanh", got {gelu!r}')
    return nn.GELU(approximate="none" if gelu == "exact" else "tanh")


class PatchEmbedding(nn.Module):
    """Cut images into patches and project each one linearly: x_p E of equation 1.

    A convolution whose stride equals its kernel size applies one linear layer to
    every patch. (The paper's "hybrid" is something else: patches of CNN features.)

    Shapes: (B, C, H, W) -> (B, N, D), patches row by row from the top left.

    Raises:
        ValueError: in `forward`, if the images do not fit, naming both shapes.
    """

    def __init__(
        self, in_channels: int = 3, patch_size: int = 16, embedding_dim: int = 768
    ):
        super().__init__()
        check_size("in_channels", in_channels)
        check_size("patch_size", patch_size)
        self.in_channels = in_channels
        self.patch_size = patch_size
        self.projection = nn.Conv2d(
            in_channels, embedding_dim, kernel_size=patch_size, stride=patch_size
        )
        # Truncated LeCun normal as in JAX; 0.8796 is the standard deviation that
        # is left of a normal distribution cut off at two standard deviations.
        std = math.sqrt(1 / (in_channels * patch_size**2)) / 0.87962566103423978
        nn.init.trunc_normal_(self.projection.weight, std=std, a=-2 * std, b=2 * std)
        nn.init.zeros_(self.projection.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        P = self.patch_size
        C, H, W = images.shape[1:] if images.ndim == 4 else (0, 0, 0)
        if C != self.in_channels or min(H, W) < P or H % P or W % P:
            raise ValueError(
                f"expected images of shape (B, {self.in_channels}, H, W) with H and W "
                f"multiples of the patch size {P}, got {tuple(images.shape)}"
            )
        x = self.projection(images)  # (B, D, H/P, W/P)
        return x.flatten(2).transpose(1, 2)  # (B, N, D)


class MultiheadSelfAttentionBlock(nn.Module):
    """Multi-head self-attention, MSA of equation 2 (Appendix A, equations 5-8).

    Every token asks with its query, is found by its key and hands over its value:
    softmax(q kᵀ / sqrt(D/h)) v, in h heads of D/h dimensions each.

    Shapes: (B, N+1, D) -> (B, N+1, D), for any number of tokens.

    Raises:
        ValueError: if the heads cannot share the D dimensions equally.
    """

    def __init__(
        self,
        embedding_dim: int = 768,
        num_heads: int = 12,
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
    ):
        super().__init__()
        check_divisible("embedding_dim", embedding_dim, "num_heads", num_heads)
        self.num_heads = num_heads
        self.attention_dropout = attention_dropout
        self.qkv = nn.Linear(embedding_dim, 3 * embedding_dim)  # U_qkv of all heads
        self.projection = nn.Linear(embedding_dim, embedding_dim)  # U_msa
        self.dropout = nn.Dropout(dropout)
        with torch.no_grad():  # each D×D matrix by itself, not the fused 3D×D
            for matrix in (*self.qkv.weight.chunk(3), self.projection.weight):
                nn.init.xavier_uniform_(matrix)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.projection.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # (B, N+1, 3, h, D/h)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, h, N+1, D/h), equation 5
        dropout = self.attention_dropout if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)  # equations 6-7
        x = x.transpose(1, 2).flatten(2)  # heads side by side: (B, N+1, D)
        return self.dropout(self.projection(x))  # equation 8


class MLPBlock(nn.Module):
    """Two dense layers with a GELU between them, MLP of equation 3 (Section 3.1).

    Shapes: (B, N+1, D) -> (B, N+1, D); it works on each token by itself.
    """

    def __init__(
        self,
        embedding_dim: int = 768,
        mlp_dim: int = 3072,
        dropout: float = 0.1,
        gelu: str = "exact",
    ):
        super().__init__()
        self.expand = nn.Linear(embedding_dim, mlp_dim)
        self.gelu = gelu_layer(gelu)
        self.contract = nn.Linear(mlp_dim, embedding_dim)
        self.dropout = nn.Dropout(dropout)
        for layer in (self.expand, self.contract):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.normal_(layer.bias, std=1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.dropout(self.gelu(self.expand(x)))  # (B, N+1, mlp_dim)
        return self.dropout(self.contract(x))  # (B, N+1, D)


class TransformerEncoderBlock(nn.Module):
    """One layer of the encoder: equations 2 and 3, each with its residual.

    LayerNorm comes before each part ("pre-norm"), so that the residual path
    carries the input through all layers untouched.

    Shapes: (B, N+1, D) -> (B, N+1, D).
    """

    def __init__(
        self,
        embedding_dim: int = 768,
        num_heads: int = 12,
        mlp_dim: int = 3072,
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        layer_norm_eps: float = 1e-6,
        gelu: str = "exact",
    ):
        super().__init__()
        self.attention_norm = nn.LayerNorm(embedding_dim, eps=layer_norm_eps)
        self.attention = MultiheadSelfAttentionBlock(
            embedding_dim=embedding_dim,
            num_heads=num_heads,
            dropout=dropout,
            attention_dropout=attention_dropout,
        )
        self.mlp_norm = nn.LayerNorm(embedding_dim, eps=layer_norm_eps)
        self.mlp = MLPBlock(
            embedding_dim=embedding_dim, mlp_dim=mlp_dim, dropout=dropout, gelu=gelu
        )

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        z = self.attention(self.attention_norm(z)) + z  # equation 2
        z = self.mlp(self.mlp_norm(z)) + z  # equation 3
        return z


class ViT(nn.Module):
    """The Vision Transformer: equations 1 to 4.

    Shapes: (B, C, H, W) -> logits (B, K), or (B, D) where `num_classes=0`.
    The head starts at zero (Section 3.2), so an untrained model gives every class
    the same logit.

    Raises:
        ValueError: if the images are not (B, C, image_size, image_size).
    """

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.config = config
        D = config.embedding_dim
        self.patch_embedding = PatchEmbedding(config.in_channels, config.patch_size, D)
        self.class_token = nn.Parameter(torch.zeros(1, 1, D))
        self.pos_embedding = nn.Parameter(torch.empty(1, config.num_patches + 1, D))
        nn.init.normal_(self.pos_embedding, std=0.02)
        self.dropout = nn.Dropout(config.dropout)
        # All that a block needs stands in the config by the same name.
        needs = "num_heads mlp_dim dropout attention_dropout layer_norm_eps gelu"
        settings = {name: getattr(config, name) for name in needs.split()}
        self.encoder = nn.Sequential(
            *(TransformerEncoderBlock(D, **settings) for _ in range(config.num_layers))
        )
        self.norm = nn.LayerNorm(D, eps=config.layer_norm_eps)
        self.head = nn.Identity()
        if config.num_classes:
            self.head = nn.Linear(D, config.num_classes)
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        """All tokens after the final LayerNorm: (B, C, H, W) -> (B, N+1, D)."""
        c = self.config
        if images.shape[1:] != (c.in_channels, c.image_size, c.image_size):
            raise ValueError(
                f"expected images of shape (B, {c.in_channels}, {c.image_size}, "
                f"{c.image_size}), got {tuple(images.shape)}"
            )
        patches = self.patch_embedding(images)  # (B, N, D)
        class_token = self.class_token.expand(len(images), -1, -1)  # (B, 1, D)
        z = torch.cat([class_token, patches], dim=1) + self.pos_embedding  # equation 1
        z = self.encoder(self.dropout(z))  # equations 2 and 3, L times: (B, N+1, D)
        return self.norm(z)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        y = self.forward_features(images)[:, 0]  # equation 4: the class token, (B, D)
        return self.head(y)  # (B, K)


VIT_CONFIGS = {
    name: ViTConfig(
        patch_size=P, embedding_dim=D, num_layers=L, num_heads=h, mlp_dim=4 * D
    )
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


def create_vit(name: str, **overrides) -> ViT:
    """A ViT of a published size, e.g. `create_vit("ViT-B/16", num_classes=3)`.

    `overrides` are fields of `ViTConfig`.

    Raises:
        ValueError: if the name is none of `VIT_CONFIGS`, or the sizes clash.
        TypeError: if an override is no field of `ViTConfig`.
    """
    if name not in VIT_CONFIGS:
        raise ValueError(
            f"no ViT called {name!r}: choose from {', '.join(VIT_CONFIGS)}"
        )
    return ViT(replace(VIT_CONFIGS[name], **overrides))
