"""The architecture, one block and the equations, drawn from the code itself.

python -m going_modular.publishing.diagrams  # into docs/diagrams, for light and for dark pages
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Circle, FancyBboxPatch, Rectangle
from matplotlib.text import Text

from going_modular.model_builder import TransformerEncoderBlock, ViT, ViTConfig
from going_modular.publishing.hosted import require_checkout
from going_modular.utils import project_path

FOLDER = "docs/diagrams"


@dataclass(frozen=True)
class Theme:
    """Colours of a page; those of the parts are the equations' in all notebooks."""

    page: str
    ink: str
    muted: str
    one: str  # equation 1: patches and positions
    two: str  # equation 2: attention
    three: str  # equation 3: the MLP
    four: str  # equation 4, the class token and the head

    def tint(self, color: str, share: float = 0.22) -> tuple[float, ...]:
        """A colour mixed into the page."""
        page, color = to_rgb(self.page), to_rgb(color)
        return tuple((1 - share) * p + share * c for p, c in zip(page, color, strict=True))


LIGHT = Theme("#ffffff", "#222222", "#666666", "#b98316", "#2a7f86", "#6f8f3f", "#c8553d")
DARK = Theme("#131416", "#e8e8e8", "#a0a0a0", "#e0b25a", "#5db7be", "#a3c678", "#e58a76")
THEMES = {"light": LIGHT, "dark": DARK}


class Sheet:
    """A figure to draw boxes and arrows on; one unit is one inch."""

    def __init__(self, width: float, height: float, theme: Theme):
        self.theme = theme
        self.figure = plt.figure(figsize=(width, height), layout="none")
        self.axis: Axes = self.figure.add_axes((0, 0, 1, 1))
        self.axis.set(xlim=(0, width), ylim=(0, height))
        self.axis.set_axis_off()

    def text(self, x: float, y: float, text: str, size: float = 11, **options) -> Text:
        """A text, its middle at (x, y) if not asked for otherwise; size in points."""
        options = {"color": self.theme.ink, "ha": "center", "va": "center"} | options
        return self.axis.text(x, y, text, fontsize=size, **options)

    def box(
        self, x: float, y: float, width: float, height: float, color: str, text: str = ""
    ) -> None:
        """A box around the middle (x, y), with a text in it."""
        corner = (x - width / 2, y - height / 2)
        self.axis.add_patch(
            FancyBboxPatch(
                corner,
                width,
                height,
                boxstyle="round,pad=0,rounding_size=0.06",
                facecolor=self.theme.tint(color),
                edgecolor=color,
                lw=1.2,
            )
        )
        self.text(x, y, text)

    def arrow(self, *points: tuple[float, float], color: str = "") -> None:
        """A line through points, with a head at the last."""
        color = color or self.theme.muted
        if len(points) > 2:
            self.axis.plot(*zip(*points[:-1], strict=True), color=color, lw=1.2)
        self.axis.annotate(
            "",
            points[-1],
            points[-2],
            arrowprops=dict(arrowstyle="-|>", color=color, lw=1.2, shrinkA=0, shrinkB=0),
        )

    def plus(self, x: float, y: float) -> None:
        """The circle at which a residual is added."""
        theme = self.theme
        circle = Circle((x, y), 0.13, facecolor=theme.page, edgecolor=theme.ink, lw=1.2)
        self.axis.add_patch(circle)
        for dx, dy in ((0.07, 0), (0, 0.07)):
            self.axis.plot((x - dx, x + dx), (y - dy, y + dy), color=theme.ink, lw=1.2, zorder=3)


def shape(*sizes) -> str:
    """A shape as the comments of the code write it."""
    return f"({', '.join(str(size) for size in sizes)})"


def draw_architecture(config: ViTConfig, theme: Theme = LIGHT) -> plt.Figure:
    """What Figure 1 of the paper shows: the model, and on the right one block of it."""
    c, sheet = config, Sheet(10.5, 5.2, theme)
    N, D = c.num_patches, c.embedding_dim

    # the image, cut into patches
    shades = (0.15, 0.45, 0.3, 0.6, 0.5, 0.2, 0.65, 0.35, 0.25)
    for i, share in enumerate(shades):
        corner = (0.2 + 0.37 * (i % 3), 2.9 - 0.37 * (i // 3))
        color = theme.tint(theme.one, share)
        sheet.axis.add_patch(Rectangle(corner, 0.34, 0.34, facecolor=color))
    sheet.text(0.75, 1.75, "image, cut\ninto patches", color=theme.ink)
    sheet.text(0.75, 1.3, shape("B", c.in_channels, *c.image_hw), 9, color=theme.muted)

    # tokens with their positions, the class token on top
    sheet.arrow((1.38, 2.75), (2.05, 2.75))
    sheet.text(1.7, 2.95, "× E", color=theme.one)
    labels = ["class", "patch 1", "patch 2", "patch 3", "⋮", f"patch {N}"]
    for i, label in enumerate(labels):
        y = 4.25 - 0.58 * i
        color = theme.one if i else theme.four
        if label == "⋮":
            sheet.text(2.62, y, label, 14, color=theme.one)
            continue
        sheet.box(2.62, y, 0.98, 0.42, color, label)
        number = N if i == len(labels) - 1 else i
        sheet.text(3.27, y, "+", color=theme.muted)
        sheet.axis.add_patch(
            Circle((3.6, y), 0.2, facecolor=theme.tint(theme.one, 0.1), edgecolor=theme.one)
        )
        sheet.text(3.6, y, str(number), 9)
        sheet.arrow((3.85, y), (4.25, y))
    sheet.text(2.62, 0.75, "tokens", color=theme.ink)
    sheet.text(3.6, 0.75, "positions", color=theme.ink)
    sheet.text(3.1, 0.42, shape("B", N + 1, D), 9, color=theme.muted)
    sheet.text(2.2, 4.85, "equation 1", color=theme.one, weight="bold")

    # the encoder
    sheet.box(4.85, 2.8, 1.15, 3.6, theme.two)
    sheet.text(4.85, 2.95, "encoder:", weight="bold")
    sheet.text(4.85, 2.65, f"{c.num_layers} blocks")
    sheet.text(4.85, 0.75, "same shape", color=theme.ink)
    sheet.text(4.85, 0.42, shape("B", N + 1, D), 9, color=theme.muted)
    sheet.text(4.85, 4.85, "equations 2, 3", color=theme.two, weight="bold")

    # the class token's way out
    sheet.arrow((5.45, 4.25), (5.75, 4.25), color=theme.four)
    sheet.box(6.25, 4.25, 0.95, 0.42, theme.four, "LayerNorm")
    sheet.text(6.25, 4.85, "equation 4", color=theme.four, weight="bold")
    sheet.text(6.25, 3.87, shape("B", D), 9, color=theme.muted)
    sheet.arrow((6.25, 3.72), (6.25, 3.42), color=theme.four)
    sheet.box(6.25, 3.2, 0.95, 0.42, theme.four, "head")
    sheet.arrow((6.25, 2.97), (6.25, 2.67), color=theme.four)
    for i, height in enumerate((0.65, 0.22, 0.38)):
        corner = (5.93 + 0.23 * i, 1.9)
        color = theme.tint(theme.four, 0.7)
        sheet.axis.add_patch(Rectangle(corner, 0.17, height, facecolor=color))
    sheet.text(6.25, 1.65, "a score for\neach class", va="top")
    sheet.text(6.25, 1.05, shape("B", c.num_classes), 9, color=theme.muted)

    # one block, larger
    x = 8.75
    sheet.axis.add_patch(
        FancyBboxPatch(
            (7.3, 0.55),
            3.0,
            4.1,
            boxstyle="round,pad=0,rounding_size=0.1",
            facecolor="none",
            edgecolor=theme.muted,
            lw=1,
            ls=(0, (4, 3)),
        )
    )
    sheet.text(x, 4.85, "one block", weight="bold")
    parts = (
        ("LayerNorm", theme.muted, 1.3),
        ("multi-head\nself-attention", theme.two, 1.95),
        ("LayerNorm", theme.muted, 3.0),
        ("MLP", theme.three, 3.55),
    )
    for name, color, y in parts:
        sheet.box(x, y, 1.35, 0.58 if "\n" in name else 0.38, color, name)
    for start, end in (
        (0.3, 1.1),
        (1.5, 1.65),
        (2.25, 2.36),
        (2.62, 2.8),
        (3.2, 3.35),
        (3.75, 3.96),
        (4.22, 4.6),
    ):
        sheet.arrow((x, start), (x, end))
    for y, name, color in ((1.95, "equation 2", theme.two), (3.55, "equation 3", theme.three)):
        sheet.text(x + 1.1, y, name, 9, color=color)
    for start, end in ((0.85, 2.49), (2.72, 4.09)):
        sheet.axis.plot((x, x - 1.05), (start, start), color=theme.muted, lw=1.2)
        sheet.arrow((x - 1.05, start), (x - 1.05, end), (x - 0.13, end))
        sheet.plus(x, end)
    sheet.text(x - 1.2, 1.67, "residual", 9, color=theme.muted, rotation=90)
    sheet.text(x - 1.2, 3.4, "residual", 9, color=theme.muted, rotation=90)
    return sheet.figure


def draw_block(config: ViTConfig, theme: Theme = LIGHT) -> plt.Figure:
    """The shapes in an encoder block, from top to bottom, and the names in the code."""
    c = config
    T, D, h = c.num_patches + 1, c.embedding_dim, c.num_heads
    tokens, heads = shape("B", T, D), shape("B", h, T, D // h)
    kernel = "F.scaled_dot_product_attention"
    norm, attention, mlp, residual = theme.muted, theme.two, theme.three, theme.ink
    steps = [  # what is done, its colour, its name in the code, the shape after it
        ("LayerNorm", norm, "attention_norm", tokens),
        ("queries, keys, values", attention, "attention.qkv", shape("B", T, 3 * D)),
        (f"in {h} heads", attention, "unflatten, permute", f"q, k, v: {heads}"),
        (f"q kᵀ / √{D // h}, softmax", attention, kernel, shape("B", h, T, T)),
        ("weighted sum of v", attention, "(in the same call)", heads),
        ("heads side by side", attention, "transpose, flatten", tokens),
        ("mix the heads", attention, "attention.projection", tokens),
        ("+", residual, "... + z  # equation 2", tokens),
        ("LayerNorm", norm, "mlp_norm", tokens),
        ("dense layer", mlp, "mlp.expand", shape("B", T, c.mlp_dim)),
        ("GELU", mlp, "mlp.gelu", shape("B", T, c.mlp_dim)),
        ("dense layer", mlp, "mlp.contract", tokens),
        ("+", residual, "... + z  # equation 3", tokens),
    ]
    step, x = 0.62, 2.05
    sheet = Sheet(7, step * (len(steps) + 1) + 0.4, theme)
    top = step * (len(steps) + 1)
    sheet.text(x, top + 0.18, f"z: {tokens}", weight="bold")
    start = top - 0.1  # where the residual leaves
    for i, (name, color, code, after) in enumerate(steps):
        y = top - step * (i + 1)
        half = 0.13 if name == "+" else 0.18
        above = 0.13 if i and steps[i - 1][0] == "+" else 0.18
        sheet.arrow((x, y + step - (above if i else 0)), (x, y + half))
        if name == "+":
            sheet.plus(x, y)
            sheet.axis.plot((x, x - 1.45), (start, start), color=norm, lw=1.2)
            sheet.arrow((x - 1.45, start), (x - 1.45, y), (x - 0.13, y))
            sheet.text(x - 1.62, (start + y) / 2, "residual", 9, color=norm, rotation=90)
            start = y - 0.24
        else:
            sheet.box(x, y, 2.1, 2 * half, color, name)
        sheet.text(3.4, y, code, 10, ha="left", family="monospace", color=color)
        sheet.text(x + 0.12, y - step / 2, after, 9, ha="left", color=norm)
    last = top - step * len(steps)
    sheet.arrow((x, last - 0.13), (x, last - step + 0.1))
    return sheet.figure


# Where the code of each equation stands, and how its lines begin
EQUATIONS = (
    (
        "one",
        r"$\mathbf{z}_0 = [\mathbf{x}_\mathrm{class};\, \mathbf{x}_p^1\mathbf{E};\, "
        r"\cdots;\, \mathbf{x}_p^N\mathbf{E}] + \mathbf{E}_{pos}$",
        ViT.embed,
        ("z = self.patch", "class_token =", "z = torch.cat", "return"),
    ),
    (
        "two",
        r"$\mathbf{z}'_\ell = \mathrm{MSA}(\mathrm{LN}(\mathbf{z}_{\ell-1})) "
        r"+ \mathbf{z}_{\ell-1}$",
        TransformerEncoderBlock.forward,
        ("z = self.drop_path(self.attention",),
    ),
    (
        "three",
        r"$\mathbf{z}_\ell = \mathrm{MLP}(\mathrm{LN}(\mathbf{z}'_\ell)) "
        r"+ \mathbf{z}'_\ell$",
        TransformerEncoderBlock.forward,
        ("z = self.drop_path(self.mlp",),
    ),
    ("four", r"$\mathbf{y} = \mathrm{LN}(\mathbf{z}_L^0)$", ViT.forward_features, ("return",)),
    ("four", "", ViT.forward, ("y =", "return")),
)


def lines_of(function: Callable, starts: tuple[str, ...]) -> list[str]:
    """The lines of a function that begin so, without their comments.

    Raises:
        ValueError: if not exactly one line begins so: the code has changed.
    """
    lines = [line.split("  # ")[0].strip() for line in inspect.getsource(function).splitlines()]
    found = [[line for line in lines if line.startswith(start)] for start in starts]
    if any(len(each) != 1 for each in found):
        raise ValueError(
            f"{function.__qualname__} should have one line for each of {starts}, found "
            f"{found}: bring EQUATIONS up to date"
        )
    return [line for (line,) in found]


def draw_equations(theme: Theme = LIGHT) -> plt.Figure:
    """Each equation above the lines of `model_builder.py` that compute it."""
    blocks = [
        (getattr(theme, color), equation, function.__qualname__, lines_of(function, starts))
        for color, equation, function, starts in EQUATIONS
    ]
    height = sum(
        0.96 * bool(equation) + 0.34 * (not equation) + 0.27 * len(lines)
        for _, equation, _, lines in blocks
    )
    sheet, y = Sheet(7.2, height + 0.3, theme), height + 0.2
    left = {"ha": "left", "va": "center"}
    number = 0
    for color, equation, name, lines in blocks:
        top = y
        if equation:
            sheet.text(0.35, y - 0.32, equation, 15, **left)
            number += 1
            sheet.text(6.95, y - 0.32, f"({number})", ha="right")
            y -= 0.62
        sheet.text(0.35, y - 0.14, name, 9, color=color, family="monospace", **left)
        y -= 0.34
        for line in lines:
            sheet.text(0.55, y - 0.08, line, 9.5, family="monospace", **left)
            y -= 0.27
        sheet.axis.plot((0.15, 0.15), (y + 0.12, top - 0.08), color=color, lw=3)
    return sheet.figure


def diagrams(config: ViTConfig, theme: Theme) -> dict[str, plt.Figure]:
    """All of them, by name."""
    return {
        "architecture": draw_architecture(config, theme),
        "block": draw_block(config, theme),
        "equations": draw_equations(theme),
    }


def words_of(figure: plt.Figure) -> str:
    """All that is written in a figure."""
    return " · ".join(" ".join(t.get_text().split()) for t in figure.findobj(Text) if t.get_text())


def main() -> None:
    """Write each as a vector drawing, for light and for dark pages."""
    require_checkout()
    folder = project_path(FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    for name, theme in THEMES.items():
        for title, figure in diagrams(ViTConfig(num_classes=3), theme).items():
            with plt.rc_context({"svg.hashsalt": title}):  # the same bytes each time
                figure.savefig(
                    folder / f"{title}_{name}.svg",
                    transparent=True,
                    metadata={"Title": title, "Description": words_of(figure), "Date": None},
                )
            plt.close(figure)


if __name__ == "__main__":
    main()
