"""The Vision Transformer, written as the four equations of its paper.

Dosovitskiy et al., "An Image is Worth 16x16 Words: Transformers for Image
Recognition at Scale", arXiv 2010.11929. Section and equation numbers below are
the paper's.

Shape letters: B batch, C channels, H W image height and width, P patch size,
N patches, D embedding, h heads, L layers, K classes. With the class token, a
sequence has N+1 tokens.
"""

from dataclasses import replace

import torch
from torch import nn

from going_modular.utils import without_autocast
from going_modular.vit.attention import scaled_dot_product_attention
from going_modular.vit.config import (
    VIT_CONFIGS,
    ViTConfig,
    check_choice,
    check_divisible,
    check_size,
)
from going_modular.vit.dropout import Dropout, StochasticDepth
from going_modular.vit.initialization import init_lecun_normal_
from going_modular.vit.positions import init_pos_embedding, interpolate_pos_embedding, join_axes


class PatchEmbedding(nn.Module):
    """Cut images into patches and project each patch linearly: x_p E of equation 1.

    A convolution whose stride equals its kernel size applies one linear layer to
    every patch. (This is not the paper's hybrid, which cuts up the features of a CNN.)

    Shapes: (B, C, H, W) -> (B, N, D), patches row by row from the top left.

    Raises:
        ValueError: in `forward`, if patches do not fit into the images.
    """

    def __init__(self, in_channels: int = 3, patch_size: int = 16, embedding_dim: int = 768):
        super().__init__()
        check_size("in_channels", in_channels)
        check_size("patch_size", patch_size)
        self.in_channels = in_channels
        self.patch_size = patch_size
        self.projection = nn.Conv2d(in_channels, embedding_dim, patch_size, stride=patch_size)
        init_lecun_normal_(self.projection)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        P = self.patch_size
        C, H, W = images.shape[1:] if images.ndim == 4 else (0, 0, 0)
        if C != self.in_channels or min(H, W) < P or H % P or W % P:
            raise ValueError(
                f"expected images of shape (B, {self.in_channels}, H, W) with H and W "
                f"multiples of the patch size {P}, got {tuple(images.shape)}"
            )
        # In 16 bits, the first layer would lose what no later one can find again
        with without_autocast(images.device):
            x = self.projection(images.to(self.projection.weight.dtype))  # (B, D, H/P, W/P)
        return x.flatten(2).transpose(1, 2)  # (B, N, D)


class MultiheadSelfAttentionBlock(nn.Module):
    """Multi-head self-attention, MSA of equation 2 (Appendix A, equations 5-8).

    Each token compares its query with the keys of all tokens, and takes a weighted
    mean of their values: softmax(q kᵀ / sqrt(D/h)) v, in h heads of D/h dimensions.

    Shapes: (B, N+1, D) -> (B, N+1, D), for any number of tokens.

    Raises:
        ValueError: if D is not divisible by the number of heads.
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
        self.dropout = Dropout(dropout)
        with torch.no_grad():  # U_q, U_k and U_v are initialized separately, as D×D
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
        x = scaled_dot_product_attention(q, k, v, dropout_p=dropout)  # equations 6-7
        x = x.transpose(1, 2).flatten(2)  # heads side by side: (B, N+1, D)
        return self.dropout(self.projection(x))  # equation 8


class MLPBlock(nn.Module):
    """Two dense layers with a GELU between them, MLP of equation 3 (Section 3.1).

    Shapes: (B, N+1, D) -> (B, N+1, D); each token is processed on its own.
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
        self.gelu: nn.Module = nn.GELU(approximate="none" if gelu == "exact" else gelu)
        self.contract = nn.Linear(mlp_dim, embedding_dim)
        self.dropout = Dropout(dropout)
        for layer in (self.expand, self.contract):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.normal_(layer.bias, std=1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.dropout(self.gelu(self.expand(x)))  # (B, N+1, mlp_dim)
        return self.dropout(self.contract(x))  # (B, N+1, D)


class TransformerEncoderBlock(nn.Module):
    """One layer of the encoder: equations 2 and 3, each with its residual.

    LayerNorm comes before each part ("pre-norm"), so the residual path carries the
    input through all layers unchanged. `stochastic_depth` is the probability that a
    part is skipped for an image in training; `drop_path` does that, separately for each image.

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
            embedding_dim, num_heads, dropout, attention_dropout
        )
        self.mlp_norm = nn.LayerNorm(embedding_dim, eps=layer_norm_eps)
        self.mlp = MLPBlock(embedding_dim, mlp_dim, dropout, gelu)
        self.drop_path = StochasticDepth(stochastic_depth)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        z = self.drop_path(self.attention(self.attention_norm(z))) + z  # equation 2
        z = self.drop_path(self.mlp(self.mlp_norm(z))) + z  # equation 3
        return z


class ViT(nn.Module):
    """The Vision Transformer: equations 1 to 4.

    Shapes: (B, C, H, W) -> logits (B, K). With `num_classes=0` the output is what a
    head would read: (B, D) or (B, representation_size). With `pool="mean"` there is no
    class token; N+1 is then N everywhere.

    The head starts at zero (Section 3.2), so an untrained model gives every class the
    same logit. `forward(images, interpolate=True)` takes images of any size that the
    patch size divides, and interpolates the positions to their grid (Section 3.2).

    Args:
        config: all sizes.
        stem: a CNN before the patches makes a hybrid (Section 3.1); C, H and W of
            `config` are then those of its feature map. With `patch_size=1` each pixel
            of the map becomes a token.

    Raises:
        ValueError: in `forward`, if the images or the stem's features do not fit `config`.
    """

    def __init__(self, config: ViTConfig, stem: nn.Module | None = None):
        super().__init__()
        self.config = config
        D, L = config.embedding_dim, config.num_layers
        self.stem = nn.Identity() if stem is None else stem
        self.patch_embedding = PatchEmbedding(config.in_channels, config.patch_size, D)
        if config.num_class_tokens:
            self.class_token = nn.Parameter(torch.zeros(1, 1, D))
        self.pos_embedding = init_pos_embedding(
            config.pos_embedding, config.grid, D, config.num_class_tokens
        )
        self.dropout = Dropout(config.dropout)
        self.encoder = nn.Sequential(*(self.build_block(layer) for layer in range(L)))
        self.norm: nn.Module = nn.LayerNorm(D, eps=config.layer_norm_eps)
        self.representation: nn.Module = nn.Identity()
        self.head: nn.Module = nn.Identity()
        if config.representation_size:
            dense = nn.Linear(D, config.representation_size)
            init_lecun_normal_(dense)
            self.representation = nn.Sequential(dense, nn.Tanh())
        if config.num_classes:
            self.head = nn.Linear(config.representation_size or D, config.num_classes)
            for parameter in self.head.parameters():
                nn.init.zeros_(parameter)

    def build_block(self, layer: int) -> TransformerEncoderBlock:
        """One layer of the encoder, counted from 0."""
        config = self.config
        return TransformerEncoderBlock(
            config.embedding_dim,
            num_heads=config.num_heads,
            mlp_dim=config.mlp_dim,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
            layer_norm_eps=config.layer_norm_eps,
            gelu=config.gelu,
            stochastic_depth=config.stochastic_depth_of(layer),
        )

    def positions(self, grid: tuple[int, int]) -> torch.Tensor:
        """E_pos of equation 1 on a grid of (rows, columns) patches: (1, N+1, D)."""
        E_pos, config = self.pos_embedding, self.config
        if config.pos_embedding == "learned_2d":
            E_pos = join_axes(E_pos, config.grid, config.num_class_tokens)
        return interpolate_pos_embedding(E_pos, config.grid, grid)

    def embed(self, images: torch.Tensor, interpolate: bool = False) -> torch.Tensor:
        """z_0 of equation 1: (B, C, H, W) -> (B, N+1, D)."""
        x, P = self.stem(images), self.config.patch_size
        shape = (self.config.in_channels, *self.config.image_hw)
        if x.shape[1:] != shape and not interpolate:
            what = "images" if x is images else "features of the stem"
            raise ValueError(
                f"expected {what} of shape (B, {', '.join(map(str, shape))}), got "
                f"{tuple(x.shape)}; for another height and width: interpolate=True"
            )
        tokens = [self.patch_embedding(x)]  # (B, N, D)
        if self.config.num_class_tokens:
            tokens.insert(0, self.class_token.expand(x.shape[0], -1, -1))  # (B, 1, D)
        z = torch.cat(tokens, dim=1)  # (B, N+1, D)
        E_pos = self.positions((x.shape[2] // P, x.shape[3] // P))
        return self.dropout(z + E_pos)  # equation 1

    def forward_features(self, images: torch.Tensor, interpolate: bool = False) -> torch.Tensor:
        """All tokens after the final LayerNorm: (B, C, H, W) -> (B, N+1, D)."""
        z_0 = self.embed(images, interpolate)
        z_L = self.encoder(z_0)  # equations 2 and 3, L times: (B, N+1, D)
        return self.norm(z_L)

    def forward(self, images: torch.Tensor, interpolate: bool = False) -> torch.Tensor:
        z = self.forward_features(images, interpolate)
        # equation 4: the class token, or the mean of all patches, (B, D)
        y = z[:, 0] if self.config.num_class_tokens else z.mean(dim=1)
        return self.head(self.representation(y))  # (B, K)


def create_vit(name: str, **overrides) -> ViT:
    """A ViT of a published size, e.g. `create_vit("ViT-B/16", num_classes=3)`.

    `overrides` are fields of `ViTConfig`; anything else is a `TypeError`.

    Raises:
        ValueError: if the name is not in `VIT_CONFIGS`, or the sizes clash.
    """
    if name not in VIT_CONFIGS:
        raise ValueError(f"no ViT called {name!r}: choose from {', '.join(VIT_CONFIGS)}")
    return ViT(replace(VIT_CONFIGS[name], **overrides))
