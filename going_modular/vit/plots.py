"""Figures 6 and 7 of the paper, drawn from what `inspect.py` measures.

Most functions draw one figure and return it. Images are tensors (B, 3, H, W), normalized
as a model takes them. Pictures have a number for each patch, (B, rows, columns).
"""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from going_modular.images.transforms import denormalize
from going_modular.vit.fonts import drawable_names


def upsample(pictures: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    """Pictures (B, rows, columns) at the size of images, (B, H, W), by bilinear interpolation."""
    pictures = pictures.detach().cpu().float()[:, None]
    return F.interpolate(pictures, size, mode="bilinear").squeeze(1).numpy()


def plot_attention(
    images: torch.Tensor, attention: torch.Tensor, titles: Sequence[str] = (), **colors
) -> plt.Figure:
    """Each image, and below it the same image lit by the attention (Figure 6).

    The patch with the most attention keeps its brightness. A patch with none is black.

    Args:
        attention: (B, rows, columns), see `class_attention`.
        colors: `mean` and `std`, if they are not ImageNet's; see `denormalize`.
    """
    titles = drawable_names(titles, "image")
    seen = denormalize(images, **colors)
    light = upsample(attention, seen.shape[1:3])
    light = light / light.max(axis=(1, 2), keepdims=True)
    count = len(seen)
    side = 1.6 if count > 2 else 2.6  # inches
    figure, axes = plt.subplots(
        2, count, layout="constrained", squeeze=False, figsize=(side * count + 0.3, 2 * side + 0.4)
    )
    for top, bottom, image, brightness in zip(*axes, seen, light, strict=True):
        top.imshow(image)
        bottom.imshow(image * brightness[:, :, None])
    clear(axes)
    for axis, title in zip(axes[0], titles, strict=False):
        axis.set_title(title)
    axes[0, 0].set_ylabel("input")
    axes[1, 0].set_ylabel("attention")
    return figure


def clear(axes: np.ndarray) -> None:
    """Remove ticks and frames, but keep the labels."""
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)


def plot_heads(
    image: torch.Tensor, attention: torch.Tensor, layers: Sequence[int] = (), **colors
) -> plt.Figure:
    """One image (3, H, W), and what each head of each layer looks at.

    Each small picture has its own color scale, from its smallest value to its largest.

    Args:
        attention: (L, h, rows, columns), see `class_attention`.
        layers: the layers to draw, counted from 1; all of them if not given.
    """
    layers = layers or range(1, len(attention) + 1)
    heads = attention.shape[1]
    figure, axes = plt.subplots(
        heads,
        len(layers) + 1,
        layout="constrained",
        squeeze=False,
        figsize=(1.2 * (len(layers) + 1), 1.15 * heads + 0.3),
    )
    clear(axes)
    axes[heads // 2, 0].imshow(denormalize(image, **colors))
    for column, layer in enumerate(layers, start=1):
        axes[0, column].set_title(f"layer {layer}", fontsize=10)
        for head in range(heads):
            picture = attention[layer - 1, head].detach().cpu().numpy()
            axes[head, column].imshow(picture, cmap="viridis")
    for head in range(heads):
        axes[head, 1].set_ylabel(f"head {head + 1}", fontsize=10)
    return figure


def draw_attention_distance(
    axis: Axes, distances: torch.Tensor, everywhere: float, title: str = ""
) -> None:
    """A dot for each head of each layer, on an axis of yours (Figure 7, right).

    Args:
        distances: (L, h), pixels, the mean over images of `mean_attention_distance`.
        everywhere: the distance of a head that looks at all patches equally, pixels.
    """
    layers = range(1, len(distances) + 1)
    axis.plot(layers, distances.cpu().numpy(), "o", color="C0", ms=6, alpha=0.6)
    axis.axhline(everywhere, color="0.6", ls="--", lw=1)
    axis.text(
        1.02,
        everywhere,
        "everywhere\nequally",
        color="0.4",
        va="center",
        size=9,
        transform=axis.get_yaxis_transform(),
    )
    top = max(1.25 * everywhere, 1.05 * distances.max().item())
    axis.set(xlabel="layer", title=title, ylim=(0, top))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def plot_position_similarity(similarity: torch.Tensor, title: str = "") -> plt.Figure:
    """A small picture for each patch: which positions are similar to its own (Figure 7).

    Args:
        similarity: (rows, columns, rows, columns), cosines.
    """
    rows, columns = similarity.shape[:2]
    side = min(0.58, 7 / max(rows, columns))  # inches
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(side * columns + 1.1, side * rows + 0.7),
        squeeze=False,
        layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0),
    )
    clear(axes)
    for row in range(rows):
        axes[row, 0].set_ylabel(row + 1, rotation=0, ha="right", va="center", size=9)
        for column in range(columns):
            picture = axes[row, column].imshow(
                similarity[row, column].cpu().numpy(), cmap="viridis", vmin=-1, vmax=1
            )
    for column in range(columns):
        axes[-1, column].set_xlabel(column + 1, size=9)
    figure.supylabel("row of the patch", size=10)
    figure.supxlabel("column of the patch", size=10)
    figure.suptitle(title, size=11)
    bar = figure.colorbar(picture, ax=axes, fraction=0.05, pad=0.03, ticks=[-1, 0, 1])
    bar.set_label("cosine similarity", size=9)
    return figure


def plot_filters(filters: torch.Tensor, columns: int = 14) -> plt.Figure:
    """Components of a patch embedding as small color pictures (Figure 7, left).

    Numbers from -m to m become colors from dark to bright, where m is the largest absolute
    number of a component. Zero is gray.

    Args:
        filters: (count, 3, P, P), see `embedding_filters`.
    """
    rows = -(-len(filters) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(0.65 * columns, 0.68 * rows), squeeze=False, layout="constrained"
    )
    clear(axes)
    for axis, component in zip(axes.flat, filters, strict=False):
        colors = component / component.abs().max() / 2 + 0.5
        axis.imshow(colors.permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
    return figure


def plot_beside_images(
    images: torch.Tensor,
    pictures: Mapping[str, torch.Tensor],
    label: str = "",
    marked: int | None = None,
    titles: Sequence[str] = (),
    **colors,
) -> plt.Figure:
    """Each image, and below it pictures of its patches, one row for each kind.

    Args:
        pictures: by name, each (B, rows, columns).
        label: what the colors of all pictures mean, with the unit. Without it each picture
            has its own color scale around zero, red above and blue below; its title is the
            number with the darkest color.
        marked: number of a patch to frame in the images and the pictures.
    """
    titles = drawable_names(titles, "image")
    seen = denormalize(images, **colors)
    count, lines = len(seen), len(pictures) + 1
    figure, axes = plt.subplots(
        lines,
        count,
        layout="constrained",
        squeeze=False,
        figsize=(1.5 * count + 1.1, 1.6 * lines + 0.3),
    )
    clear(axes)
    for axis, image in zip(axes[0], seen, strict=True):
        axis.imshow(image)
    axes[0, 0].set_ylabel("image", size=10)
    for axis, title in zip(axes[0], titles, strict=False):
        axis.set_title(title, size=10)
    values = torch.stack(list(pictures.values())).detach().cpu().numpy()
    low, high = values.min(), values.max()
    for line, name, of_images in zip(axes[1:], pictures, values, strict=True):
        line[0].set_ylabel(name, size=10)
        for axis, picture in zip(line, of_images, strict=True):
            if label:
                axis.imshow(picture, cmap="viridis", vmin=low, vmax=high)
                continue
            largest = abs(picture).max()
            axis.imshow(picture, cmap="RdBu_r", vmin=-largest, vmax=largest)
            axis.set_title(f"±{largest:.3f}", size=9, color="0.4")
    if marked is not None:
        rows, columns = values.shape[2:]
        place = divmod(marked, columns)
        for axis in axes.flat:
            height, width = axis.images[0].get_array().shape[:2]
            frame_patch(axis, place, (height / rows, width / columns))
    if label:  # all pictures have the same scale
        drawn = axes[-1, -1].images[0]
        figure.colorbar(drawn, ax=axes[1:], fraction=0.03, pad=0.02, label=label)
    return figure


def frame_patch(axis: Axes, place: tuple[int, int], size: tuple[float, float]) -> None:
    """A frame around the patch at (row, column), for patches of (height, width) pixels."""
    (row, column), (height, width) = place, size
    corner = (column * width - 0.5, row * height - 0.5)  # pixel 0 reaches from -0.5 to 0.5
    axis.add_patch(Rectangle(corner, width, height, fill=False, ec="black", lw=3, clip_on=False))
    axis.add_patch(Rectangle(corner, width, height, fill=False, ec="white", lw=1.5, clip_on=False))
