"""Draw the architecture, one block and the equations from the code itself.

python -m going_modular.publishing.diagrams  # into docs/diagrams, for light and dark pages
"""

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.path import Path
from matplotlib.text import Text

from going_modular.model_builder import TransformerEncoderBlock, ViT, ViTConfig
from going_modular.utils import errors_in_one_line, project_path, require_checkout

FOLDER = "docs/diagrams"
CIRCLE: dict[str, Any] = {"boxstyle": "circle,pad=0"}
Point = tuple[float, float]


@dataclass(frozen=True)
class Theme:
    """The colors of a page. An equation has the same color here as in the notebooks."""

    page: str
    ink: str
    muted: str
    one: str  # equation 1: patches and positions
    two: str  # equation 2: attention
    three: str  # equation 3: the MLP
    four: str  # equation 4, the class token and the head

    def tint(self, color: str, share: float = 0.22) -> tuple[float, float, float]:
        """A color mixed into that of the page."""
        pairs = zip(to_rgb(self.page), to_rgb(color), strict=True)
        red, green, blue = ((1 - share) * page + share * ink for page, ink in pairs)
        return red, green, blue


LIGHT = Theme("#ffffff", "#222222", "#666666", "#b98316", "#2a7f86", "#6f8f3f", "#c8553d")
DARK = Theme("#131416", "#e8e8e8", "#a0a0a0", "#e0b25a", "#5db7be", "#a3c678", "#e58a76")
THEMES = {"light": LIGHT, "dark": DARK}


class Part(NamedTuple):
    """A rectangle of a sheet, around the point (x, y). Arrows join two of them."""

    name: str  # its id in the figure
    x: float
    y: float
    width: float = 0.0
    height: float = 0.0

    def edge(self, right: int, up: int) -> Point:
        """The middle of a side or a corner: (1, 0) right, (0, -1) below, (-1, -1) below left."""
        return self.x + right * self.width / 2, self.y + up * self.height / 2


class Step(NamedTuple):
    """A part of a chain. The text "+" makes it the addition of a residual."""

    name: str
    text: str
    color: str
    note: str = ""  # to the right of the part
    shape: str = ""  # of the tensor after it


class Sheet:
    """A figure on which to draw parts and arrows. Its unit is one inch."""

    def __init__(self, width: float, height: float, theme: Theme):
        self.theme = theme
        self.figure: Figure = plt.figure(figsize=(width, height), layout="none")
        self.axis = self.figure.add_axes((0, 0, 1, 1))
        self.axis.set(xlim=(0, width), ylim=(0, height))
        self.axis.set_axis_off()

    def text(self, x: float, y: float, text: str, size: float = 11, **options) -> None:
        """A text with its middle at (x, y), unless the options align it otherwise."""
        options = {"color": self.theme.ink, "ha": "center", "va": "center"} | options
        self.axis.text(x, y, text, fontsize=size, **options)

    def draw(self, part: Part, color: str, text: str = "", size: float = 11, **options) -> Part:
        """A box with a text in it; with `**CIRCLE`, a circle."""
        style: dict[str, Any] = {
            "boxstyle": "round,pad=0,rounding_size=0.06",
            "facecolor": self.theme.tint(color),
            "edgecolor": color,
            "lw": 1.2,
            "gid": part.name,
        } | options
        box = FancyBboxPatch(part.edge(-1, -1), part.width, part.height, **style)
        self.axis.add_patch(box)
        self.text(part.x, part.y, text, size)
        return part

    def line(self, start: Part, end: Part, points: Sequence[Point], color: str = "") -> None:
        """An arrow through points. Its id in the figure is "start__end"."""
        arrow = FancyArrowPatch(path=Path(points), arrowstyle="-|>", mutation_scale=10, lw=1.2)
        arrow.set(color=color or self.theme.muted, joinstyle="miter")
        arrow.set_gid(f"{start.name}__{end.name}")
        self.axis.add_patch(arrow)

    def arrow(self, start: Part, end: Part, color: str = "") -> None:
        """An arrow up or down to a part of the same column, or to the right.

        To the right it runs through the middle of the smaller part.
        """
        if start.x == end.x:
            up = 1 if end.y > start.y else -1
            points = [start.edge(0, up), end.edge(0, -up)]
        else:
            y = min(start, end, key=lambda part: part.height).y
            points = [(start.edge(1, 0)[0] + 0.05, y), (end.edge(-1, 0)[0] - 0.03, y)]
        self.line(start, end, points, color)

    def caption(self, part: Part, text: str, shape: str) -> None:
        """A text below a part, and the shape of the tensor that it shows."""
        _, bottom = part.edge(0, -1)
        self.text(part.x, bottom - 0.17, text, va="top")
        lines = text.count("\n") + 1
        self.text(part.x, bottom - 0.38 - 0.19 * lines, shape, 9, color=self.theme.muted)

    def chain(
        self, start: Part, up: int, steps: Sequence[Step], width: float, pitch: float, **note_style
    ) -> None:
        """Draw parts upwards (up = 1) or downwards (-1) from a point, joined by arrows.

        Their middles are one pitch apart. A residual leaves half-way to the first part that
        it goes around.
        """
        x, muted, side = start.x, self.theme.muted, start.x - width / 2 - 0.4
        last = source = start
        for number, step in enumerate(steps, 1):
            y = start.y + number * up * pitch
            if step.text == "+":
                part = Part(step.name, x, y, 0.26, 0.26)
                self.draw(part, step.color, facecolor=self.theme.page, **CIRCLE)
                self.axis.plot(x, y, "+", color=step.color, ms=10, mew=1.2)
                leaves = source.y + 0.45 * up * pitch
                self.line(source, part, [(x, leaves), (side, leaves), (side, y), part.edge(-1, 0)])
                middle = (leaves + y) / 2
                self.text(side - 0.16, middle, "residual", 9, color=muted, rotation=90)
                source = part
            else:
                part = Part(step.name, x, y, width, 0.56 if "\n" in step.text else 0.37)
                self.draw(part, step.color, step.text)
            self.arrow(last, part)
            last = part
            self.text(x + width / 2 + 0.15, y, step.note, ha="left", color=step.color, **note_style)
            self.text(x + 0.12, y + up * pitch / 2, step.shape, 9, ha="left", color=muted)
        self.arrow(last, Part("output", x, last.y + up * pitch))


def shape(*sizes) -> str:
    """A shape as the comments of the code write it."""
    return f"({', '.join(str(size) for size in sizes)})"


def draw_architecture(config: ViTConfig, theme: Theme = LIGHT) -> Figure:
    """Figure 1 of the paper: the model, and on the right one block of it."""
    c, sheet = config, Sheet(10.5, 5.2, theme)
    N, middle, top, heading = c.num_patches, 2.8, 4.25, 4.85
    tokens = shape("B", N + 1, c.embedding_dim)

    image = Part("image", 0.75, middle, 1.1, 1.1)
    for i, share in enumerate((0.15, 0.45, 0.3, 0.6, 0.5, 0.2, 0.65, 0.35, 0.25)):
        corner = (0.2 + 0.37 * (i % 3), middle + 0.2 - 0.37 * (i // 3))
        fill = theme.tint(theme.one, share)
        sheet.axis.add_patch(Rectangle(corner, 0.34, 0.34, facecolor=fill))
    sheet.caption(image, "image, cut\ninto patches", shape("B", c.in_channels, *c.image_hw))

    column = Part("tokens", 2.97, middle, 1.68, 3.6)
    sheet.arrow(image, column)
    sheet.text(1.7, middle + 0.2, "× E", color=theme.one)
    encoder = sheet.draw(Part("encoder", 4.85, middle, 1.15, 3.6), theme.two)
    sheet.text(4.85, middle + 0.15, "encoder:", weight="bold")
    sheet.text(4.85, middle - 0.15, f"{c.num_layers} blocks")
    for row, number in enumerate((0, 1, 2, 3, None, N)):
        y = top - 0.58 * row
        if number is None:
            sheet.text(2.62, y, "⋮", 14, color=theme.one)
            continue
        name, color = (f"patch {number}", theme.one) if number else ("class", theme.four)
        sheet.draw(Part(f"token-{number}", 2.62, y, 0.98, 0.42), color, name)
        sheet.text(3.27, y, "+", color=theme.muted)
        position = Part(f"position-{number}", 3.6, y, 0.4, 0.4)
        fill = theme.tint(theme.one, 0.1)
        sheet.draw(position, theme.one, str(number), 9, facecolor=fill, **CIRCLE)
        sheet.arrow(position, encoder)
    sheet.caption(column, "tokens + positions", tokens)
    sheet.caption(encoder, "same shape", tokens)

    norm = sheet.draw(Part("norm", 6.25, top, 0.95, 0.42), theme.four, "LayerNorm")
    head = sheet.draw(Part("head", 6.25, 3.3, 0.95, 0.42), theme.four, "head")
    scores = Part("scores", 6.25, 2.35, 0.63, 0.65)
    for i, height in enumerate((0.65, 0.22, 0.38)):
        corner = (5.93 + 0.23 * i, 2.02)
        fill = theme.tint(theme.four, 0.7)
        sheet.axis.add_patch(Rectangle(corner, 0.17, height, facecolor=fill))
    for start, end in ((encoder, norm), (norm, head), (head, scores)):
        sheet.arrow(start, end, theme.four)
    after_norm = {"ha": "left", "color": theme.muted}
    sheet.text(6.37, (top + 3.3) / 2, shape("B", c.embedding_dim), 9, **after_norm)
    sheet.caption(scores, "a score for\neach class", shape("B", c.num_classes))

    frame = Part("block", 8.8, 2.45, 3.1, 4.2)
    sheet.draw(frame, theme.muted, facecolor="none", lw=1, ls=(0, (4, 3)))
    steps = [
        Step("attention_norm", "LayerNorm", theme.muted),
        Step("attention", "multi-head\nself-attention", theme.two, "equation 2"),
        Step("add_attention", "+", theme.ink),
        Step("mlp_norm", "LayerNorm", theme.muted),
        Step("mlp", "MLP", theme.three, "equation 3"),
        Step("add_mlp", "+", theme.ink),
    ]
    sheet.chain(Part("input", 8.7, 0.2), 1, steps, width=1.35, pitch=0.6, size=9)

    for x, text, color in (
        (2.97, "equation 1", theme.one),
        (4.85, "equations 2, 3", theme.two),
        (6.25, "equation 4", theme.four),
        (8.7, "one block", theme.ink),
    ):
        sheet.text(x, heading, text, color=color, weight="bold")
    return sheet.figure


def draw_block(config: ViTConfig, theme: Theme = LIGHT) -> Figure:
    """An encoder block from top to bottom, with its shapes and the names in the code."""
    c = config
    T, D, h = c.num_patches + 1, c.embedding_dim, c.num_heads
    tokens, heads = shape("B", T, D), shape("B", h, T, D // h)
    norm, attention, mlp, ink = theme.muted, theme.two, theme.three, theme.ink
    kernel = "F.scaled_dot_product_attention"
    steps = [
        Step("attention_norm", "LayerNorm", norm, "attention_norm", tokens),
        Step(
            "attention.qkv",
            "queries, keys, values",
            attention,
            "attention.qkv",
            shape("B", T, 3 * D),
        ),
        Step("split", f"in {h} heads", attention, "unflatten, permute", f"q, k, v: {heads}"),
        Step("softmax", f"q kᵀ / √{D // h}, softmax", attention, kernel, shape("B", h, T, T)),
        Step("sum", "weighted sum of v", attention, "(in the same call)", heads),
        Step("join", "heads side by side", attention, "transpose, flatten", tokens),
        Step("attention.projection", "mix the heads", attention, "attention.projection", tokens),
        Step("add_attention", "+", ink, "... + z  # equation 2", tokens),
        Step("mlp_norm", "LayerNorm", norm, "mlp_norm", tokens),
        Step("mlp.expand", "dense layer", mlp, "mlp.expand", shape("B", T, c.mlp_dim)),
        Step("mlp.gelu", "GELU", mlp, "mlp.gelu", shape("B", T, c.mlp_dim)),
        Step("mlp.contract", "dense layer", mlp, "mlp.contract", tokens),
        Step("add_mlp", "+", ink, "... + z  # equation 3", tokens),
    ]
    pitch = 0.62
    start = Part("input", 2.05, pitch * (len(steps) + 1) + 0.1)
    sheet = Sheet(7, start.y + 0.4, theme)
    sheet.text(start.x, start.y + 0.18, f"z: {tokens}", weight="bold")
    note_style = {"family": "monospace", "size": 10}
    sheet.chain(start, -1, steps, width=2.1, pitch=pitch, **note_style)
    return sheet.figure


# The color of each equation, its formula, the function that computes it, and what its lines
# look like there
EQUATIONS = (
    (
        "one",
        r"$\mathbf{z}_0 = [\mathbf{x}_\mathrm{class};\, \mathbf{x}_p^1\mathbf{E};\, "
        r"\cdots;\, \mathbf{x}_p^N\mathbf{E}] + \mathbf{E}_{pos}$",
        ViT.embed,
        ("^tokens =", r"^tokens\.insert", "^z =", "^E_pos =", "^return"),
    ),
    (
        "two",
        r"$\mathbf{z}'_\ell = \mathrm{MSA}(\mathrm{LN}(\mathbf{z}_{\ell-1})) "
        r"+ \mathbf{z}_{\ell-1}$",
        TransformerEncoderBlock.forward,
        (r"self\.attention\(",),
    ),
    (
        "three",
        r"$\mathbf{z}_\ell = \mathrm{MLP}(\mathrm{LN}(\mathbf{z}'_\ell)) "
        r"+ \mathbf{z}'_\ell$",
        TransformerEncoderBlock.forward,
        (r"self\.mlp\(",),
    ),
    ("four", r"$\mathbf{y} = \mathrm{LN}(\mathbf{z}_L^0)$", ViT.forward_features, ("^return",)),
    ("four", "", ViT.forward, ("^y =", "^return")),
)


def lines_of(function: Callable, patterns: Sequence[str]) -> list[str]:
    """The line of a function that fits each pattern, without its comment.

    Raises:
        ValueError: if no line or several lines fit, because the code has changed.
    """
    lines = [line.split("  # ")[0].strip() for line in inspect.getsource(function).splitlines()]
    found = [[line for line in lines if re.search(pattern, line)] for pattern in patterns]
    if any(len(each) != 1 for each in found):
        raise ValueError(
            f"{function.__qualname__} should have one line for each of {patterns}, found "
            f"{found}: bring EQUATIONS up to date"
        )
    return [line for (line,) in found]


def draw_equations(theme: Theme = LIGHT) -> Figure:
    """Each equation above the lines of `model_builder.py` that compute it."""
    blocks = [
        (getattr(theme, color), equation, function.__qualname__, lines_of(function, patterns))
        for color, equation, function, patterns in EQUATIONS
    ]
    height = sum((0.96 if block[1] else 0.34) + 0.27 * len(block[3]) for block in blocks)
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


def diagrams(config: ViTConfig, theme: Theme) -> dict[str, Figure]:
    """All drawings by name."""
    return {
        "architecture": draw_architecture(config, theme),
        "block": draw_block(config, theme),
        "equations": draw_equations(theme),
    }


def words_of(figure: Figure) -> str:
    """All texts of a figure."""
    return " · ".join(" ".join(t.get_text().split()) for t in figure.findobj(Text) if t.get_text())


def write_diagrams() -> None:
    """Write each drawing as SVG, for light and for dark pages.

    Raises:
        FileNotFoundError: see `require_checkout`.
    """
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


def main() -> None:
    with errors_in_one_line("python -m going_modular.publishing.diagrams"):
        write_diagrams()


if __name__ == "__main__":
    main()
