"""Plots for the notebooks, and a few functions of the package that most of them need.

The package `going_modular` never imports this file. What the package needs itself lives
there and is only passed on here.
"""

from collections.abc import Callable, Sequence

import matplotlib.pyplot as plt
import torch
from IPython.display import DisplayHandle

from going_modular.images.downloads import download_data
from going_modular.utils import give_random_values, print_table, set_seeds
from going_modular.vit.fonts import drawable_names

__all__ = [
    "CLASS_COLORS",
    "PALETTE",
    "download_data",
    "give_random_values",
    "live_curves",
    "plot_confusion_matrix",
    "plot_loss_curves",
    "print_table",
    "set_seeds",
    "show_images",
]

PALETTE = ["#2a7f86", "#c8553d", "#d9a441", "#6b4f4f", "#8fae6f"]
CLASS_COLORS = {"pizza": PALETTE[1], "steak": PALETTE[3], "sushi": PALETTE[0]}
plt.rcParams.update(
    {
        "figure.figsize": (8, 4),
        "figure.dpi": 100,
        "savefig.dpi": 100,
        "figure.constrained_layout.use": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 11,
        "axes.prop_cycle": plt.cycler(color=PALETTE),
        "image.cmap": "viridis",
    }
)


def show_images(
    images: Sequence, titles: Sequence[str] = (), columns: int = 4, **imshow_options
) -> None:
    """Draw images in a grid: Pillow images, or tensors (C, H, W) or (H, W)."""
    titles = drawable_names(titles, "image")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    _, axes = plt.subplots(rows, columns, figsize=(2.4 * columns, 2.6 * rows), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for i, (axis, image) in enumerate(zip(axes.flat, images, strict=False)):
        if isinstance(image, torch.Tensor):
            image = image.detach().cpu()
            image = (image.permute(1, 2, 0) if image.ndim == 3 else image).numpy()
        axis.imshow(image, **imshow_options)
        if i < len(titles):
            axis.set_title(titles[i])
    plt.show()


def plot_loss_curves(results: dict[str, list[float]], test_name: str = "test") -> None:
    """Draw loss and accuracy by epoch.

    Args:
        results: what `engine.train` returns.
        test_name: what the second curve was measured on, for instance "validation".
    """
    draw_curves(results, test_name)
    plt.show()


def draw_curves(results: dict[str, list[float]], test_name: str) -> plt.Figure:
    """The figure of `plot_loss_curves`."""
    epochs = range(1, len(results["train_loss"]) + 1)
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
    titles = {"loss": "loss (cross-entropy)", "acc": "accuracy"}
    for axis, (metric, title) in zip(axes, titles.items(), strict=True):
        axis.plot(epochs, results[f"train_{metric}"], marker=".", label="training")
        axis.plot(epochs, results[f"test_{metric}"], marker=".", label=test_name)
        axis.set_xlabel("epoch")
        axis.set_title(title)
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[1].set_ylim(0, 1.02)
    axes[0].legend(frameon=False)
    return figure


def live_curves(test_name: str = "test") -> Callable[[dict[str, list[float]]], None]:
    """A function for `on_epoch` of `engine.train` that draws the curves of `draw_curves`.

    In a notebook, each epoch redraws the same picture under the cell.
    """
    handle = DisplayHandle()
    show = handle.display

    def redraw(results: dict[str, list[float]]) -> None:
        nonlocal show
        figure = draw_curves(results, test_name)
        show(figure)
        show = handle.update
        plt.close(figure)

    return redraw


def plot_confusion_matrix(
    counts: torch.Tensor, class_names: Sequence[str], title: str = ""
) -> None:
    """Draw counts (K, K): a row for each true class, a column for each predicted one."""
    class_names = drawable_names(class_names)
    _, axis = plt.subplots(figsize=(4.2, 3.8))
    most = counts.sum(dim=1).max().item()
    axis.imshow(counts.tolist(), cmap="Blues", vmin=0, vmax=most)
    for row, values in enumerate(counts.tolist()):
        for column, value in enumerate(values):
            dark = value > 0.65 * most
            color = "white" if dark else "black"
            axis.text(column, row, value, ha="center", va="center", color=color)
    axis.set_xticks(range(len(class_names)), class_names)
    axis.set_yticks(range(len(class_names)), class_names)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    axis.set_title(title)
    plt.show()
