"""E_pos of equation 1: four kinds of position embedding, and other resolutions.

A position embedding is a tensor of shape (1, T, D) that is added to the T tokens. The
class token comes first, if there is one, then the patches row by row. A grid is (rows,
columns) of patches, (H/P, W/P).
"""

import torch
import torch.nn.functional as F
from torch import nn

Grid = tuple[int, int]


def init_pos_embedding(kind: str, grid: Grid, D: int, class_tokens: int) -> torch.Tensor:
    """The tensor that a ViT keeps for its positions, learned or fixed.

    - "learned_1d": one vector for each token, as in the paper, (1, T, D).
    - "learned_2d": half a vector for each row and for each column,
      (1, H/P + W/P, D/2), see `join_axes`.
    - "sincos_2d" (see `sincos_2d`) and "none" (zeros), (1, T, D): fixed and not saved.

    Appendix D.4 compares learned_1d, learned_2d, none, and relative positions.
    """
    rows, columns = grid
    T = rows * columns + class_tokens
    if kind in ("learned_1d", "learned_2d"):
        shape = (1, T, D) if kind == "learned_1d" else (1, rows + columns, D // 2)
        return nn.Parameter(torch.empty(shape).normal_(std=0.02))
    fixed = torch.zeros(1, T, D)
    if kind == "sincos_2d":
        fixed[:, class_tokens:] = sincos_2d(grid, D)
    return nn.Buffer(fixed, persistent=False)


def join_axes(axes: torch.Tensor, grid: Grid, class_tokens: int) -> torch.Tensor:
    """Each position put together from its column and its row (D.4, "2-dimensional").

    The first D/2 numbers are those of the column (x), the others those of the row (y).
    The class token has no column and no row. It gets zeros; its own vector is learned.

    Shapes: (1, H/P + W/P, D/2), rows first -> (1, N + class_tokens, D).
    """
    rows, columns = grid
    y, x = axes.split(grid, dim=1)
    x = x.unsqueeze(1).expand(-1, rows, -1, -1)  # (1, H/P, W/P, D/2)
    y = y.unsqueeze(2).expand(-1, -1, columns, -1)
    patches = torch.cat([x, y], dim=-1).flatten(1, 2)  # (1, N, D)
    return F.pad(patches, (0, 0, class_tokens, 0))


def sincos_2d(grid: Grid, D: int, temperature: float = 10_000) -> torch.Tensor:
    """Sines and cosines of x and of y, D/4 numbers each: (1, N, D).

    They are not in the paper. Its authors use them in "Better plain ViT baselines for
    ImageNet-1k" (arXiv 2205.01580). Wavelengths grow from 2π to 2π · `temperature`
    patches.
    """
    y, x = torch.meshgrid(*(torch.arange(float(n)) for n in grid), indexing="ij")
    # transformers keeps `torch.device` from reaching linspace, see findings/
    omega = temperature ** -torch.linspace(0, 1, D // 4, device=y.device)
    x, y = (axis.flatten()[:, None] * omega for axis in (x, y))  # each (N, D/4)
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1).unsqueeze(0)


def interpolate_pos_embedding(
    pos_embedding: torch.Tensor, grid: Grid, new_grid: Grid
) -> torch.Tensor:
    """The positions interpolated to a finer or coarser grid (Section 3.2).

    The position of the class token stays as it is. Interpolation is bicubic with aligned
    corners, as in torchvision. The paper's code is linear, and timm and Hugging Face do
    not align the corners: at other sizes their logits are close to ours, not equal.

    Shapes: (1, T, D) with T = rows · columns of `grid`, one more with a class token
    -> the same for `new_grid`. The same grid returns the tensor itself.

    Raises:
        ValueError: if the tensor does not have one position for each patch of `grid`.
    """
    N, T = grid[0] * grid[1], pos_embedding.shape[1]
    if pos_embedding.ndim != 3 or T - N not in (0, 1):
        raise ValueError(
            f"expected positions of shape (1, {N}, D) or, with a class token, "
            f"(1, {N + 1}, D) for a grid of {grid[0]} × {grid[1]} patches, "
            f"got {tuple(pos_embedding.shape)}"
        )
    if tuple(grid) == tuple(new_grid):
        return pos_embedding
    class_token, patches = pos_embedding.split([T - N, N], dim=1)
    patches = patches.unflatten(1, grid).permute(0, 3, 1, 2)  # (1, D, rows, columns)
    patches = F.interpolate(patches, new_grid, mode="bicubic", align_corners=True)
    return torch.cat([class_token, patches.flatten(2).transpose(1, 2)], dim=1)
