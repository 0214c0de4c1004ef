"""What goes on inside a ViT: the measurements behind Figures 6 and 7 of the paper.

Functions of tensors, for any `ViT`, ours or one with loaded weights. Shape letters are
those of `model_builder`, and T tokens: N+1 with a class token, N without. A grid is
(rows, columns) of patches; patches are numbered row by row from the top left.
`plots.py` draws what these functions return.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from going_modular.model_builder import TransformerEncoderBlock, ViT
from going_modular.vit.positions import Grid


def grid_of(vit: ViT, images: torch.Tensor) -> Grid:
    """(H/P, W/P), the grid of patches that a ViT cuts images (B, C, H, W) into.

    For a hybrid it is the grid of the stem's features. The model is put into evaluation
    mode.

    Raises:
        ValueError: if the patches do not fit.
    """
    with torch.inference_mode():
        return grid_in(vit.eval().stem(images), vit.config.patch_size)


def grid_in(images: torch.Tensor, patch_size: int) -> Grid:
    """(H/P, W/P) for images or features (B, C, H, W).

    Raises:
        ValueError: if the patch size does not divide height and width.
    """
    H, W = images.shape[2:]
    if H % patch_size or W % patch_size:
        raise ValueError(
            f"patches of {patch_size} pixels do not fit into {H} x {W}: give images "
            "whose height and width they divide"
        )
    return H // patch_size, W // patch_size


def class_tokens_in(tokens: int, grid: Grid) -> int:
    """How many of the tokens are class tokens: 1 or 0.

    Raises:
        ValueError: if there are neither as many tokens as patches, nor one more.
    """
    rows, columns = grid
    class_tokens = tokens - rows * columns
    if class_tokens not in (0, 1):
        raise ValueError(
            f"{tokens} tokens are not a grid of {rows} x {columns} = {rows * columns} "
            "patches, with or without a class token: give the grid of these images, "
            "see grid_of"
        )
    return class_tokens


# Attention


@torch.inference_mode()
def attention_maps(vit: ViT, images: torch.Tensor, interpolate: bool = False) -> torch.Tensor:
    """The attention weights of all layers and heads: A of equation 6.

    A = softmax(q kᵀ / sqrt(D/h)). Row i says how much token i takes from each token;
    it sums to 1. The fused attention of a forward pass never stores these weights, so
    they are computed here from the queries and keys of each block. The model is put into
    evaluation mode.

    Shapes: (B, C, H, W) -> (B, L, h, T, T). For ViT-B/16 that is 22 MB for each image.

    Args:
        interpolate: see `ViT`.

    Raises:
        TypeError: if the encoder is not made of our blocks.
    """
    vit.eval()
    z, maps = vit.embed(images, interpolate), []
    for block in vit.encoder:
        if not isinstance(block, TransformerEncoderBlock):
            raise TypeError(
                f"attention maps need an encoder of TransformerEncoderBlocks, got a "
                f"{type(block).__name__}: load its weights into our ViT with load_vit"
            )
        q, k, _ = block.attention.queries_keys_values(block.attention_norm(z))
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        maps.append(scores.softmax(dim=-1))
        z = block(z)
    return torch.stack(maps, dim=1)


def attention_rollout(maps: torch.Tensor) -> torch.Tensor:
    """How much of each input token arrives at each output token (Figure 6, D.8).

    The mean over the heads is averaged with the identity, which stands for the residual
    path, and the layers are multiplied: Ã_L ... Ã_2 Ã_1 with Ã = (mean over heads of
    A + I) / 2. This is Abnar and Zuidema's method (arXiv 2005.00928); the paper does not
    mention the identity. Rows sum to 1. Rollout follows attention alone: it ignores
    values, MLPs and LayerNorms.

    Shapes: maps (..., L, h, T, T) -> (..., T, T).
    """
    mean = maps.mean(dim=-3)  # (..., L, T, T)
    layers = (mean + torch.eye(maps.shape[-1]).to(maps)) / 2
    rollout = layers[..., 0, :, :]
    for layer in range(1, layers.shape[-3]):
        rollout = layers[..., layer, :, :] @ rollout
    return rollout


def class_attention(attention: torch.Tensor, grid: Grid) -> torch.Tensor:
    """How much the token that the head reads takes from each patch, as a picture.

    It is the row of the class token, without what that token takes from itself. Without a
    class token it is the mean of all rows, because the head reads the mean of all tokens.

    Shapes: maps or a rollout (..., T, T) -> (..., rows, columns).

    Raises:
        ValueError: if the tokens are not of this grid.
    """
    if class_tokens_in(attention.shape[-1], grid):
        return attention[..., 0, 1:].unflatten(-1, grid)
    return attention.mean(dim=-2).unflatten(-1, grid)


def patch_distances(grid: Grid, patch_size: int) -> torch.Tensor:
    """Distance in pixels between the centers of any two patches, (N, N)."""
    rows, columns = torch.meshgrid(*map(torch.arange, grid), indexing="ij")
    places = torch.stack([rows, columns], dim=-1).flatten(0, 1).double() * patch_size
    return (places[:, None] - places).square().sum(dim=-1).sqrt()


def mean_attention_distance(maps: torch.Tensor, grid: Grid, patch_size: int) -> torch.Tensor:
    """How far a patch looks, on average, in pixels (Figure 7, right; D.7).

    The distances from a patch to all patches are weighted with its attention, and then
    averaged over the patches. The class token has no place in the image, so it is left
    out, and each row is divided by the sum of what remains. The paper does not say how it
    treats the class token.

    Args:
        patch_size: pixels from one patch to the next. For a hybrid it is the stride of
            the stem times the patch size.

    Shapes: maps (..., T, T) -> (...); for `attention_maps` (B, L, h).

    Raises:
        ValueError: if the tokens are not of this grid.
    """
    first = class_tokens_in(maps.shape[-1], grid)
    patches = maps[..., first:, first:]
    patches = patches / patches.sum(dim=-1, keepdim=True)
    distances = patch_distances(grid, patch_size).to(maps)
    return (patches * distances).sum(dim=-1).mean(dim=-1)


# Weights


@torch.inference_mode()
def position_embedding_similarity(vit: ViT) -> torch.Tensor:
    """Cosine similarity of the positions of any two patches (Figure 7, center).

    Shape: (rows, columns, rows, columns). [r, c] is one small picture: it compares the
    patch at row r and column c with all patches.

    Raises:
        ValueError: if the model has no positions.
    """
    if vit.config.pos_embedding == "none":
        raise ValueError(
            'this ViT has pos_embedding="none", so there is nothing to see: use one with positions'
        )
    grid = vit.config.grid
    E_pos = vit.positions(grid)[0, vit.config.num_class_tokens :]  # (N, D)
    E_pos = F.normalize(E_pos, dim=-1)
    return (E_pos @ E_pos.T).unflatten(1, grid).unflatten(0, grid)


@torch.inference_mode()
def embedding_filters(vit: ViT, count: int = 28) -> tuple[torch.Tensor, torch.Tensor]:
    """What the patch embedding looks for: its principal components (Figure 7, left).

    The D filters of E, one for each dimension of the embedding, are D points in a space
    of C·P² dimensions. Their principal components are the orthonormal directions along
    which they differ most, found by an SVD of the centered filters. The sign of a
    component has no meaning; here its largest number is positive.

    Returns:
        (components (count, C, P, P), their shares of the variance (count,))

    Raises:
        ValueError: if there are fewer components.
    """
    E = vit.patch_embedding.projection.weight  # (D, C, P, P)
    points = E.flatten(1).cpu().double()
    D, numbers = points.shape
    most = min(D - 1, numbers)  # D centered points span at most D - 1 dimensions
    if not 1 <= count <= most:
        raise ValueError(
            f"count must be from 1 to {most}, the number of components of this patch "
            f"embedding, got {count}"
        )
    _, S, Vh = torch.linalg.svd(points - points.mean(dim=0), full_matrices=False)
    largest = Vh.gather(1, Vh.abs().argmax(dim=1, keepdim=True))
    components = (Vh * largest.sign())[:count]
    shares = S.square() / S.square().sum()
    return components.unflatten(1, E.shape[1:]).float(), shares[:count].float()


# Tokens and predictions


def token_similarity(tokens: torch.Tensor, patch: int, grid: Grid) -> torch.Tensor:
    """Cosine similarity of one patch's token to the tokens of all patches.

    Shapes: tokens (B, T, D), for instance of `ViT.forward_features` -> (B, rows,
    columns).

    Raises:
        ValueError: if the tokens are not of this grid, or the grid has no such patch.
    """
    patches = tokens[:, class_tokens_in(tokens.shape[1], grid) :]
    if not 0 <= patch < patches.shape[1]:
        raise ValueError(
            f"patch must be from 0 to {patches.shape[1] - 1} in a grid of {grid[0]} x "
            f"{grid[1]} patches, got {patch}"
        )
    chosen = patches[:, patch : patch + 1]
    return F.cosine_similarity(patches, chosen, dim=-1).unflatten(-1, grid)


def cover(
    images: torch.Tensor, patches: torch.Tensor, patch_size: int, color: float = 0.0
) -> torch.Tensor:
    """A copy of the images with some patches painted over.

    Args:
        patches: (B, n), the numbers of the patches to cover in each image.
        color: 0 is the mean color of normalized images.

    Raises:
        ValueError: if the patch size does not fit, or there are no such patches.
    """
    rows, columns = grid_in(images, patch_size)
    B, last = images.shape[0], rows * columns - 1
    if patches.shape[0] != B or patches.min() < 0 or patches.max() > last:
        raise ValueError(
            f"expected numbers of patches from 0 to {last}, a row for each of "
            f"{B} images, got {tuple(patches.shape)} from {patches.min()} to "
            f"{patches.max()}"
        )
    hidden = torch.zeros(B, rows * columns, dtype=torch.bool)
    hidden.scatter_(1, patches.cpu(), True)
    hidden = hidden.view(-1, 1, rows, columns).to(images.device)
    hidden = hidden.repeat_interleave(patch_size, 2).repeat_interleave(patch_size, 3)
    return images.masked_fill(hidden, color)


@torch.inference_mode()
def occlusion_sensitivity(
    model: Callable[[torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    patch_size: int,
    color: float = 0.0,
) -> torch.Tensor:
    """What covering each patch costs the predicted class, in probability.

    p(class | image) - p(class | image without the patch), one patch after the other
    (Zeiler and Fergus, arXiv 1311.2901). It works for any model, and takes N + 1 forward
    passes where attention maps take one.

    Shapes: images (B, C, H, W) -> (B, H/P, W/P), each from -1 to 1; positive where the
    patch is evidence for the class.

    Args:
        model: images -> logits (B, K), in evaluation mode.
        color: see `cover`.

    Raises:
        ValueError: if the patch size does not fit.
    """
    rows, columns = grid_in(images, patch_size)
    uncovered, predicted = model(images).softmax(dim=-1).max(dim=-1)  # each (B,)
    drops = []
    for patch in range(rows * columns):
        chosen = torch.full((images.shape[0], 1), patch)
        covered = model(cover(images, chosen, patch_size, color)).softmax(dim=-1)
        drops.append(uncovered - covered.gather(1, predicted[:, None]).squeeze(1))
    return torch.stack(drops, dim=1).unflatten(1, (rows, columns))
