"""The Vision Transformer, written as the four equations of its paper.

Dosovitskiy et al., "An Image is Worth 16x16 Words: Transformers for Image
Recognition at Scale", arXiv 2010.11929. Section and equation numbers below are
the paper's.

Shape letters: B batch, C channels, H W image height and width, P patch size,
N patches, D embedding, h heads, L layers, K classes. The class token makes
N patches into a sequence of N+1 tokens.
"""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import stochastic_depth as leave_out

from going_modular.vit.config import (
    VIT_CONFIGS,
    ViTConfig,
    check_choice,
    check_divisible,
    check_size,
)
from going_modular.vit.positions import init_pos_embedding, interpolate_pos_embedding, join_axes


def init_lecun_normal_(layer: nn.Linear | nn.Conv2d) -> None:
    """Start a layer as JAX does: variance 1 / fan-in, truncated; bias 0."""
    # 0.8796 is the standard deviation that is left of a normal distribution cut off
    # at two standard deviations.
    std = math.sqrt(1 / layer.weight[0].numel()) / 0.87962566103423978
    nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
    nn.init.zeros_(layer.bias)


class PatchEmbedding(nn.Module):
    """Cut images into patches and project each one linearly: x_p E of equation 1.

    A convolution whose stride equals its kernel size applies one linear layer to
    every patch. (The paper's "hybrid" is something else: patches of CNN features.)

    Shapes: (B, C, H, W) -> (B, N, D), patches row by row from the top left.

    Raises:
        ValueError: in `forward`, if the images do not fit, naming both shapes.
    """

    def __init__(self, in_channels: int = 3, patch_size: int = 16, embedding_dim: int = 768):
        super().__init__()
        check_size("in_channels", in_channels)
        check_size("patch_size", patch_size)
        self.in_channels = in_channels
        self.patch_size = patch_size
        self.projection = nn.Conv2d(
            in_channels, embedding_dim, kernel_size=patch_size, stride=patch_size
        )
        init_lecun_normal_(self.projection)

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

    def queries_keys_values(self, x: torch.Tensor) -> torch.Tensor:
        """[q, k, v] of equation 5: (B, N+1, D) -> (3, B, h, N+1, D/h)."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # (B, N+1, 3, h, D/h)
        return qkv.permute(2, 0, 3, 1, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.queries_keys_values(x)  # each (B, h, N+1, D/h)
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
        check_choice("gelu", gelu)
        self.gelu = nn.GELU(approximate="none" if gelu == "exact" else gelu)
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
        stochastic_depth: float = 0.0,
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
        self.stochastic_depth = stochastic_depth

    def drop_path(self, part: torch.Tensor) -> torch.Tensor:
        """While training, leave a part out for some images; otherwise do nothing."""
        return leave_out(part, self.stochastic_depth, "row", self.training)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        z = self.drop_path(self.attention(self.attention_norm(z))) + z  # equation 2
        z = self.drop_path(self.mlp(self.mlp_norm(z))) + z  # equation 3
        return z


class ViT(nn.Module):
    """The Vision Transformer: equations 1 to 4.

    Shapes: (B, C, H, W) -> logits (B, K), or where `num_classes=0` what a head would
    see, (B, D) or (B, representation_size). With `pool="mean"` there are N tokens
    wherever a shape says N+1.

    The head starts at zero (Section 3.2), so an untrained model gives every class
    the same logit. With `interpolate=True`, `forward` takes images of another size
    than the configured one, and stretches the positions, of whatever kind, to their
    grid (Section 3.2).

    Args:
        config: all sizes.
        stem: a CNN before the patches makes a hybrid (Section 3.1); C, H and W of
            `config` are then those of its feature map. With `patch_size=1` each place
            of the map becomes a token.

    Raises:
        ValueError: if the images, or the stem's features, are not as configured.
    """

    def __init__(self, config: ViTConfig, stem: nn.Module | None = None):
        super().__init__()
        self.config = config
        D = config.embedding_dim
        self.stem = nn.Identity() if stem is None else stem
        self.patch_embedding = PatchEmbedding(config.in_channels, config.patch_size, D)
        if config.pool == "class_token":
            self.class_token = nn.Parameter(torch.zeros(1, 1, D))
        else:  # the mean of the patches needs none (D.3): no tokens in its place
            self.class_token = nn.Buffer(torch.zeros(1, 0, D), persistent=False)
        self.pos_embedding = init_pos_embedding(
            config.pos_embedding, config.grid, D, self.class_token.shape[1]
        )
        self.dropout = nn.Dropout(config.dropout)
        # All that a block needs stands in the config by the same name.
        needs = "num_heads mlp_dim dropout attention_dropout layer_norm_eps gelu"
        settings = {name: getattr(config, name) for name in needs.split()}
        L, last = config.num_layers, config.stochastic_depth
        depths = [last * layer / max(L - 1, 1) for layer in range(L)]
        self.encoder = nn.Sequential(
            *(TransformerEncoderBlock(D, **settings, stochastic_depth=depth) for depth in depths)
        )
        self.norm = nn.LayerNorm(D, eps=config.layer_norm_eps)
        self.representation = nn.Identity()
        if config.representation_size:
            dense = nn.Linear(D, config.representation_size)
            init_lecun_normal_(dense)
            self.representation = nn.Sequential(dense, nn.Tanh())
        self.head = nn.Identity()
        if config.num_classes:
            self.head = nn.Linear(config.representation_size or D, config.num_classes)
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def positions(self, grid: tuple[int, int]) -> torch.Tensor:
        """E_pos of equation 1 on a grid of (rows, columns) patches: (1, N+1, D)."""
        E_pos = self.pos_embedding
        if self.config.pos_embedding == "learned_2d":
            E_pos = join_axes(E_pos, self.config.grid, self.class_token.shape[1])
        return interpolate_pos_embedding(E_pos, self.config.grid, grid)

    def embed(self, images: torch.Tensor, interpolate: bool = False) -> torch.Tensor:
        """z_0 of equation 1: (B, C, H, W) -> (B, N+1, D)."""
        x, size = self.stem(images), (self.config.in_channels, *self.config.image_hw)
        if x.shape[1:] != size and not interpolate:
            what = "images" if x is images else "a feature map of the stem"
            raise ValueError(
                f"expected {what} of shape (B, {', '.join(map(str, size))}), got "
                f"{tuple(x.shape)}; for another height and width: interpolate=True"
            )
        patches = self.patch_embedding(x)  # (B, N, D)
        class_token = self.class_token.expand(len(patches), -1, -1)  # (B, 1, D)
        grid = tuple(n // self.config.patch_size for n in x.shape[2:])  # (H/P, W/P)
        z = torch.cat([class_token, patches], dim=1)  # (B, N+1, D)
        return self.dropout(z + self.positions(grid))  # equation 1

    def forward_features(self, images: torch.Tensor, interpolate: bool = False) -> torch.Tensor:
        """All tokens after the final LayerNorm: (B, C, H, W) -> (B, N+1, D)."""
        z_0 = self.embed(images, interpolate)
        z_L = self.encoder(z_0)  # equations 2 and 3, L times: (B, N+1, D)
        return self.norm(z_L)

    def forward(self, images: torch.Tensor, interpolate: bool = False) -> torch.Tensor:
        z = self.forward_features(images, interpolate)
        # equation 4: the class token, or the mean of all patches, (B, D)
        y = z[:, 0] if self.config.pool == "class_token" else z.mean(dim=1)
        return self.head(self.representation(y))  # (B, K)


def create_vit(name: str, **overrides) -> ViT:
    """A ViT of a published size, e.g. `create_vit("ViT-B/16", num_classes=3)`.

    `overrides` are fields of `ViTConfig`.

    Raises:
        ValueError: if the name is none of `VIT_CONFIGS`, or the sizes clash.
        TypeError: if an override is no field of `ViTConfig`.
    """
    if name not in VIT_CONFIGS:
        raise ValueError(f"no ViT called {name!r}: choose from {', '.join(VIT_CONFIGS)}")
    return ViT(replace(VIT_CONFIGS[name], **overrides))
