"""What goes on inside a ViT: the measurements behind Figures 6 and 7 of the paper.

Functions of tensors, for any `ViT`, ours or one with loaded weights. Shape letters are
those of `model_builder`, and T tokens: the N patches are the last of them. A class token
and the registers of a descendant come before, and have no place in the image. A grid is
(rows, columns) of patches; patches are numbered row by row from the top left.
`plots.py` draws what these functions return.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from going_modular.model_builder import TransformerEncoderBlock, ViT
from going_modular.vit.descendant_config import DescendantConfig
from going_modular.vit.positions import Grid

MOST_BEFORE = 16  # tokens before the patches; published ViTs have 10 at most


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


def tokens_before_patches(tokens: int, grid: Grid) -> int:
    """How many of the tokens come before the patches: a class token and registers.

    Raises:
        ValueError: if there are fewer tokens than patches, or more than `MOST_BEFORE` before
            them. They are those of another grid then.
    """
    rows, columns = grid
    before = tokens - rows * columns
    if not 0 <= before <= MOST_BEFORE:
        raise ValueError(
            f"{tokens} tokens are not a grid of {rows} x {columns} = {rows * columns} "
            f"patches, with at most {MOST_BEFORE} tokens before them: give the grid of these "
            "images, see grid_of"
        )
    return before


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
    z, maps = vit.eval().embed(images, interpolate), []
    for block in blocks_of(vit):
        q, k, _ = block.attention.queries_keys_values(block.attention_norm(z))
        maps.append(attention_weights(q, k))
        z = block(z)
    return torch.stack(maps, dim=1)


def blocks_of(vit: ViT) -> list[TransformerEncoderBlock]:
    """The blocks of the encoder.

    Raises:
        TypeError: if one of them is not one of ours.
    """
    blocks = []
    for block in vit.encoder:
        if not isinstance(block, TransformerEncoderBlock):
            raise TypeError(
                f"attention maps need an encoder of TransformerEncoderBlocks, got a "
                f"{type(block).__name__}: load its weights into our ViT with load_vit"
            )
        blocks.append(block)
    return blocks


def attention_weights(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """softmax(q kᵀ / sqrt(D/h)): (B, h, Q, D/h) and (B, h, T, D/h) -> (B, h, Q, T)."""
    return (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(dim=-1)


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


def attention_relevance(
    vit: ViT,
    images: torch.Tensor,
    head: nn.Module | None = None,
    classes: torch.Tensor | None = None,
) -> torch.Tensor:
    """How much each input token speaks for a class: attention times its gradient.

    Attention says how much a token takes, and not what the answer makes of it. So each
    weight of A is multiplied by the gradient of the class's logit with respect to it. A
    negative product speaks against the class and counts as zero. With the mean over the
    heads, Ā, each layer adds what it mixes: R = R + Ā R, beginning with R = I. These are
    equations 5 and 6 of Chefer et al. (arXiv 2103.15679). Rows do not sum to 1.

    The forward pass is the model's own: with y = A v, the gradient of A is that of y
    times vᵀ. The model is put into evaluation mode.

    Shapes: (B, C, H, W) -> (B, T, T), to be drawn like a rollout with `class_attention`.

    Args:
        head: from what the ViT returns to logits (B, K), if it has no head of its own.
        classes: (B,), which class to explain for each image; by default the predicted one.

    Raises:
        TypeError: if the encoder is not made of our blocks.
    """
    mixed, parts = [], []  # for each layer: A v, and (q, k, v)
    hooks = []
    for block in blocks_of(vit.eval()):
        attention = block.attention
        hooks += [
            attention.register_forward_pre_hook(
                lambda module, inputs: parts.append(module.queries_keys_values(inputs[0].detach()))
            ),
            attention.projection.register_forward_pre_hook(
                lambda module, inputs: mixed.append(inputs[0])
            ),
        ]
    try:
        with torch.inference_mode(False), torch.enable_grad():
            pixels = images.detach().clone().requires_grad_()  # also where weights are frozen
            logits = vit(pixels) if head is None else head(vit(pixels))
            chosen = logits.argmax(dim=1) if classes is None else classes
            score = logits.gather(1, chosen[:, None]).sum()
            gradients = torch.autograd.grad(score, mixed)
    finally:
        for hook in hooks:
            hook.remove()
    relevance = torch.eye(mixed[0].shape[1]).to(images).expand(len(images), -1, -1)
    for (q, k, v), gradient in zip(parts, gradients, strict=True):
        of_heads = gradient.unflatten(-1, (q.shape[1], -1)).transpose(1, 2)  # (B, h, T, D/h)
        for_class = attention_weights(q, k) * (of_heads @ v.transpose(-2, -1))
        relevance = relevance + for_class.clamp(min=0).mean(dim=1) @ relevance
    return relevance.detach()


def class_attention(
    attention: torch.Tensor, grid: Grid, read: torch.Tensor | None = None
) -> torch.Tensor:
    """How much of each patch goes to what the head reads, as a picture.

    It is the row of the class token, without what that token takes from itself and from
    registers. Without a class token it is the mean of all rows, because the head reads the
    mean of all tokens. The head of a descendant may read others: `read` weights the rows.

    Shapes: maps or a rollout (..., T, T) -> (..., rows, columns).

    Args:
        read: of `read_by_head`, (B, T), for attention of shape (B, ..., T, T).

    Raises:
        ValueError: if the tokens are not of this grid, or if there are registers and no `read`.
    """
    before = tokens_before_patches(attention.shape[-1], grid)
    if read is not None:
        rows = torch.einsum("bi,b...ij->b...j", read, attention)
    elif before > 1:
        raise ValueError(
            f"{before} tokens come before the patches, so the head may read others than the "
            "first: give read=read_by_head(vit, images)"
        )
    else:
        rows = attention[..., 0, :] if before else attention.mean(dim=-2)
    return rows[..., before:].unflatten(-1, grid)


def light_on(light: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """How much brighter than the whole image a mask is lit: 1 if the light is even.

    It is the share of the light that falls on the mask, divided by the mask's share of the
    image.

    Shapes: light, as of `class_attention`, and mask, the share of each patch that belongs
    to it: (..., rows, columns) both -> (...).

    Raises:
        ValueError: if a mask is empty.
    """
    share = mask.mean(dim=(-2, -1))
    if not share.all():
        raise ValueError("nothing belongs to one of the masks: give images that show the object")
    on_mask = (light * mask).sum(dim=(-2, -1)) / light.sum(dim=(-2, -1))
    return on_mask / share


@torch.inference_mode()
def read_by_head(vit: ViT, images: torch.Tensor, interpolate: bool = False) -> torch.Tensor:
    """How much of each token the head reads: a weighted mean of the last layer's tokens.

    It is 1 for a class token, or 1/N for each patch if the head reads their mean. If the
    head reads two vectors side by side, each counts half. For an attention pooling it is
    the attention of its query, averaged over its heads. The model is put into evaluation
    mode.

    Shapes: (B, C, H, W) -> (B, T); each row sums to 1.

    Args:
        interpolate: see `ViT`.
    """
    z, pool = vit.eval().forward_features(images, interpolate), vit.config.pool
    if pool == "attention":
        attention = vit.pooling.attention
        left_out = vit.config.num_tokens_before_patches
        left_out *= isinstance(vit.config, DescendantConfig) and vit.config.pools_patches
        q, _, _ = attention.queries_keys_values(vit.pooling.latent)  # (1, h, 1, D/h)
        _, k, _ = attention.queries_keys_values(z[:, left_out:])
        return F.pad(attention_weights(q, k).mean(dim=1).squeeze(1), (left_out, 0))
    read = torch.zeros(z.shape[:2]).to(z)
    if pool in ("mean", "class_and_mean"):
        patches = read[:, vit.config.num_tokens_before_patches :]
        patches += 1 / patches.shape[1]
    if pool != "mean":
        read[:, 0] += 1
    if pool == "class_and_register":
        read[:, 1] += 1
    return read / read.sum(dim=1, keepdim=True)


def patch_distances(grid: Grid, patch_size: int) -> torch.Tensor:
    """Distance in pixels between the centers of any two patches, (N, N)."""
    rows, columns = torch.meshgrid(*map(torch.arange, grid), indexing="ij")
    places = torch.stack([rows, columns], dim=-1).flatten(0, 1).double() * patch_size
    return (places[:, None] - places).square().sum(dim=-1).sqrt()


def mean_attention_distance(maps: torch.Tensor, grid: Grid, patch_size: int) -> torch.Tensor:
    """How far a patch looks, on average, in pixels (Figure 7, right; D.7).

    The distances from a patch to all patches are weighted with its attention, and then
    averaged over the patches. The class token and registers have no place in the image, so
    they are left out, and each row is divided by the sum of what remains. The paper does
    not say how it treats the class token.

    Args:
        patch_size: pixels from one patch to the next. For a hybrid it is the stride of
            the stem times the patch size.

    Shapes: maps (..., T, T) -> (...); for `attention_maps` (B, L, h).

    Raises:
        ValueError: if the tokens are not of this grid.
    """
    before = tokens_before_patches(maps.shape[-1], grid)
    patches = maps[..., before:, before:]
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
        ValueError: if the model has no table of positions.
    """
    if vit.config.pos_embedding == "none":
        is_rotary = isinstance(vit.config, DescendantConfig) and vit.config.rotary is not None
        reason = (
            "its rotary positions turn queries and keys, and make no table to compare"
            if is_rotary
            else 'it has pos_embedding="none"'
        )
        raise ValueError(f"there is nothing to see: {reason}. Use a ViT that adds positions")
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
    patches = tokens[:, tokens_before_patches(tokens.shape[1], grid) :]
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
