"""A small painter: it shows lit, textured shapes on a table as a tilted camera sees them.

Lengths are in table units. A plate is about 1.8 units wide. NumPy and Pillow do the
work, and every random number comes from the generator of the scene.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from going_modular.drawings.textures import (
    CELLS,
    DOTS,
    FORMULA,
    formula_pattern,
    sheet,
    steep,
    wave,
)

Color = tuple[float, float, float]
ROLES = ("table", "around", "plate", "dish")


def rgb(code: str) -> Color:
    """Return a color from hexadecimal digits, for example orange from "ff8000"."""
    red, green, blue = (int(code[i : i + 2], 16) / 255 for i in (0, 2, 4))
    return red, green, blue


@dataclass(frozen=True)
class Shape:
    """An outline around (0, 0) that extends along x, given by the distance to its edge.

    Attributes:
        kind: "disc" for an ellipse, "slab" for a rectangle with round corners, "leaf",
            "ring", "slice" for a sector with `length` as its radius, or "contour" for an
            ellipse whose radius goes up and down with the angle.
        length, width: size along x and y.
        corner: radius of a slab's corners, or thickness of a ring.
        opening: angle of a slice in degrees. Above 180 it is a disc with a piece missing.
        bend: how far the ends curve to one side.
        taper: how much narrower the left end is than the middle, and how much wider the
            right end is; between -1 and 1.
        lump: how far the outline deviates, over distances of `lump_size`.
        waves: of a contour, (amplitude, phase) of two waves around it, of three, and so on.
    """

    kind: str
    length: float
    width: float
    corner: float = 0.05
    opening: float = 45.0
    bend: float = 0.0
    taper: float = 0.0
    lump: float = 0.0
    lump_size: float = 0.25
    waves: tuple[tuple[float, float], ...] = ()

    def extent(self, angle: float) -> np.ndarray:
        """Return the largest x and y that the shape can reach when it is turned by an angle."""
        long, wide = self.length / 2, self.width / 2 * (1 + abs(self.taper))
        wide += abs(self.bend) * self.length / 2
        if self.kind == "slice":
            long = wide = self.length
        cos, sin = abs(np.cos(angle)), abs(np.sin(angle))
        return np.array([long * cos + wide * sin, long * sin + wide * cos]) + self.lump

    def distance(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Return how far each point (u, v) is inside the edge. It is negative outside."""
        a, b = self.length / 2, self.width / 2
        if self.bend:
            v = v - 2 * self.bend * (u * u / a - a / 2)
        if self.taper:
            v = v / (1 + self.taper * np.clip(u / a, -1, 1))
        if self.kind == "disc":
            return (1 - np.sqrt((u / a) ** 2 + (v / b) ** 2)) * min(a, b)
        if self.kind == "contour":
            x, y = u / a, v / b
            angle = np.arctan2(y, x)
            edge, longest = np.ones_like(angle), 1.0
            for number, (amplitude, phase) in enumerate(self.waves, start=2):
                edge += amplitude * np.cos(number * angle + phase)
                longest += abs(amplitude)
            return (edge / longest - np.sqrt(x * x + y * y)) * min(a, b)
        if self.kind == "ring":
            r = np.sqrt(u * u + (v * (a / b)) ** 2)
            return self.corner / 2 - np.abs(r - a + self.corner / 2)
        if self.kind == "leaf":  # where two equal circles overlap
            radius = (a * a + b * b) / (2 * b)
            return radius - np.sqrt(u * u + (np.abs(v) + radius - b) ** 2)
        if self.kind == "slice":
            half = np.deg2rad(self.opening / 2)
            u = u + (self.length / 2 if self.opening < 180 else 0)
            edge = u * np.sin(half) - np.abs(v) * np.cos(half)
            return np.minimum(self.length - np.sqrt(u * u + v * v), edge)
        corner = min(self.corner, a, b)
        x, y = np.abs(u) - a + corner, np.abs(v) - b + corner
        outside = np.sqrt(np.maximum(x, 0) ** 2 + np.maximum(y, 0) ** 2)
        return corner - outside - np.minimum(np.maximum(x, y), 0)


@dataclass(frozen=True)
class Material:
    """The look of a surface: two colors mixed by a texture, an edge, relief and gloss.

    Attributes:
        color, second: the two colors. Where the texture is 0, only `color` shows; where
            it is 1, the share of `second` is `amount`.
        texture: "blotch", "spots", "marble" for veins, "stripes", "lines" for narrow
            stripes, "check", "rings" for stripes along the outline, "grains" for short
            strokes, "beads", or "formula" for a pattern of its own; see `formula_pattern`.
        cell: size of the texture's parts along and across the shape. Waves, grains and
            beads use only the first number.
        amount: the largest share of `second` in the mixture.
        rim, rim_width: color and width of the edge.
        bevel: the distance from the edge over which the surface curves down.
        bump: how deep the texture's relief is.
        gloss: how strongly the surface reflects the lamp.
        side: color of the sides. Without it they are a darker `rim` or `color`.
        name: what the material is, for example "rice".
        formula: seed of the formula.
        palette: colors from where the texture is 0 to where it is 1, instead of the two.
        polish: how small the reflections of the lamp are; 1 is a dull surface.
    """

    color: Color
    second: Color | None = None
    texture: str = "blotch"
    cell: tuple[float, float] = (0.12, 0.12)
    amount: float = 0.8
    rim: Color | None = None
    rim_width: float = 0.03
    bevel: float = 0.04
    bump: float = 0.5
    gloss: float = 0.15
    side: Color | None = None
    name: str = ""
    formula: int = 0
    palette: tuple[Color, ...] = ()
    polish: float = 1.0


class Window:
    """The pixels around a piece, and the coordinates (u, v) that they have on the piece.

    `half` is how far the window extends from its center in pixels: to the left and the
    right, up, and down. The piece is `rise` above the table.
    """

    def __init__(self, scene, center, angle, rise, half):
        unit, squeeze = scene.unit, scene.squeeze
        x = scene.center[0] + unit * center[0]
        y = scene.center[1] + unit * (center[1] * squeeze - rise * scene.lean)
        height, width = scene.canvas.shape[1:]
        left, right = max(0, int(x - half[0])), min(width, int(x + half[0]) + 1)
        top, bottom = max(0, int(y - half[1])), min(height, int(y + half[2]) + 1)
        self.area = (slice(None), slice(top, bottom), slice(left, right))
        self.shape = (bottom - top, right - left)
        cos, sin = np.cos(angle) / unit, np.sin(angle) / unit
        self.axes = (  # u = a column + b row + c, and the same for v
            (cos, sin / squeeze, cos * (left - x) + sin / squeeze * (top - y)),
            (-sin, cos / squeeze, -sin * (left - x) + cos / squeeze * (top - y)),
        )

    def coordinates(self) -> list[np.ndarray]:
        """Return u and v of every pixel, (height, width) each, in table units."""
        row, column = np.ogrid[: self.shape[0], : self.shape[1]]
        row, column = row.astype(np.float32), column.astype(np.float32)
        return [
            np.float32(a) * column + np.float32(b) * row + np.float32(c) for a, b, c in self.axes
        ]

    def cut(self, kind: str, cell: tuple[float, float], rng) -> np.ndarray:
        """Return a random piece of a texture's sheet, aligned with u and v."""
        height, width = self.shape
        affine = []
        for (a, b, c), step in zip(self.axes, cell, strict=True):
            ends = [c, c + a * width, c + b * height, c + a * width + b * height]
            length = max(ends) - min(ends)
            step = max(step, length / (CELLS - 2))  # it has to fit on the sheet
            start = 1 + rng.random() * (CELLS - 2 - length / step)
            dots = DOTS / step
            affine += [a * dots, b * dots, (c - min(ends)) * dots + start * DOTS]
        piece = sheet(kind).transform(
            (width, height), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR
        )
        return np.asarray(piece)


class Scene:
    """A table under a lamp and a camera. `paint` puts pieces on it, from back to front.

    Args:
        rng: NumPy generator that decides everything random.
        size: (width, height) in pixels.
        zoom: how much of the picture the plate fills.
        tilt: angle of the camera in degrees; 0 looks straight down.

    Attributes:
        canvas: the colors so far, (3, height, width).
        labels: what each pixel shows, as an index of `names`, (height, width).
        names: names of all materials painted so far, beginning with the table.
        heights: how far above the table each pixel's surface is, in table units. Where a
            piece shows its side, it is half of its height. (height, width).
        roles: what each pixel is a part of, as an index of `ROLES`, (height, width).
        role: that of the pieces painted next.
    """

    def __init__(self, rng, size, zoom=1.0, tilt=35.0):
        self.rng = rng
        self.unit = zoom * min(size) / 2.1  # pixels
        self.squeeze, self.lean = np.cos(np.deg2rad(tilt)), np.sin(np.deg2rad(tilt))
        self.center = np.array(size) / 2 + rng.normal(0, 0.08, 2) * self.unit
        angle = rng.uniform(0, 2 * np.pi)
        self.light = np.array([np.cos(angle), np.sin(angle)], np.float32)
        self.softness = rng.uniform(0.05, 0.2)  # of shadows
        self.contrast = np.float32(rng.uniform(0.6, 1.0))
        self.canvas = np.zeros((3, size[1], size[0]), np.float32)
        self.names = ["table"]
        self.labels = np.zeros((size[1], size[0]), np.uint8)
        self.heights = np.zeros((size[1], size[0]), np.float32)
        self.roles = np.zeros((size[1], size[0]), np.uint8)
        self.role = "table"

    def cover(self, material: Material, angle: float) -> None:
        """Fill the whole canvas with the table."""
        half = (10 * self.unit,) * 3
        window = Window(self, (0, 0), angle, 0, half)
        tone = self.texture(window, material, window.coordinates(), None)
        self.canvas[:] = self.surface(material, tone, None)

    def paint(self, shape, material, center=(0, 0), angle=0.0, base=0.0, height=0.05):
        """Paint a piece: its shadow, its sides and its lit top.

        Args:
            center: of the piece, in table units from the table's center.
            angle: in radians.
            base, height: how far above the table the piece stands, and how high it is.
        """
        unit = self.unit
        fall = height * self.lean * unit  # pixels from the top of the piece to its foot
        throw = -(0.6 * height + 0.01) * unit * self.light * (1, self.squeeze)
        soft = (self.softness * min(height, 0.3) + 0.012) * unit
        extent = shape.extent(angle) * (unit, unit * self.squeeze)
        margin = np.abs(throw) + soft + 2
        half = (*(extent + margin), extent[1] + margin[1] + fall)
        window = Window(self, center, angle, base + height, half)
        if min(window.shape) < 2:
            return
        u, v = window.coordinates()
        inside = shape.distance(u, v)
        if shape.lump:
            wander = window.cut("noise", (shape.lump_size,) * 2, self.rng)
            inside = inside + np.float32(shape.lump) * (2 * wander - 1)
        inside = inside * np.float32(unit)  # pixels
        area = self.canvas[window.area]

        body = inside
        thin = max(1.0, 0.3 * unit * min(shape.length, shape.width))
        for part in np.linspace(0, 1, int(fall / thin) + 2)[1:]:
            body = np.maximum(body, shift(inside, round(fall * part), 0))
        shadow = shift(body, round(throw[1]), round(throw[0]))
        dark = 0.55 * np.clip(0.5 + shadow / np.float32(2 * soft), 0, 1)
        contact = 0.35 * np.clip(1 + body / np.float32(0.03 * unit), 0, 1)
        area *= 1 - np.maximum(dark, contact)

        if fall > 0.7:
            color = channels(material.side or material.rim or material.color)
            across = np.linspace(-1, 1, window.shape[1], dtype=np.float32)
            blend(area, color * (0.68 + 0.22 * across * self.light[0]), body)

        tone = self.texture(window, material, (u, v), inside)
        blend(area, self.surface(material, tone, inside), inside)
        if material.name not in self.names:
            self.names.append(material.name)
        here = window.area[1:]
        self.labels[here][body > 0] = self.names.index(material.name)
        self.roles[here][body > 0] = ROLES.index(self.role)
        self.heights[here][body > 0] = base + height / 2
        self.heights[here][inside > 0] = base + height

    def texture(self, window, material, coordinates, inside) -> np.ndarray:
        """Return a material's texture on a window, between 0 and 1."""
        cell, kind = material.cell, material.texture
        if kind in ("grains", "beads"):
            return window.cut(kind, (cell[0], cell[0]), self.rng)
        if kind == FORMULA:
            return formula_pattern(
                material.formula,
                cell[0],
                coordinates,
                lambda cell: window.cut("noise", cell, self.rng),
            )
        noise = window.cut("noise", cell, self.rng)
        if kind == "marble":
            return steep(1 - np.abs(4 * noise - 2), 2)
        if kind == "spots":
            return steep(noise - 0.12, 6)
        if kind == "blotch":
            return steep(noise, 1.8)
        length = coordinates[0]
        if kind == "rings" and inside is not None:
            length = inside / np.float32(self.unit)
        tone = wave(length, cell[0], noise)
        if kind == "lines":
            return steep(tone - 0.3, 4)
        tone = steep(tone, 2.5)
        if kind == "check":
            tone = 0.5 * (tone + steep(wave(coordinates[1], cell[0], noise), 2.5))
        return tone

    def surface(self, material, tone, inside) -> np.ndarray:
        """Return the colors (3, height, width) of a lit surface with this texture."""
        color = channels(material.color)
        color = color + np.float32(material.amount) * tone * (
            channels(material.second or material.color) - color
        )
        if material.palette:
            stops = np.linspace(0, 1, len(material.palette))
            color = np.stack(
                [np.interp(tone, stops, values) for values in zip(*material.palette, strict=True)]
            ).astype(np.float32)
        relief = tone * np.float32(material.bump * 0.025 * self.unit)
        if inside is not None:
            if material.rim:
                width = np.float32(material.rim_width * self.unit)
                edge = np.clip(1.1 - inside / width + 0.8 * tone, 0, 1)
                color += edge * (channels(material.rim) - color)
            bevel = np.float32(max(material.bevel * self.unit, 1.0))
            slope = np.clip(1 - inside / bevel, 0, 1)
            relief = relief + bevel * np.sqrt(1 - np.float32(0.96) * slope * slope)
            color *= 1 + channels(self.rng.normal(0, 0.03, 3))
        down, right = np.gradient(relief)
        x, y = self.light
        lit = 1 - 0.45 * self.contrast * (right * x + down * y)
        color *= np.clip(lit, 0.35, 1.5)
        if material.gloss and inside is not None:  # strongest where the slope mirrors the lamp
            off = (right + 0.55 * x) ** 2 + (down + 0.55 * y) ** 2
            shine = np.clip(1 - np.float32(2.5 * material.polish) * off, 0, 1) ** 2
            color += np.float32(material.gloss) * shine
        return color

    def develop(self) -> Image.Image:
        """Return the finished picture, with uneven light, white balance, noise and blur."""
        rng = self.rng
        height, width = self.canvas.shape[1:]
        y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
        x = np.linspace(-1, 1, width, dtype=np.float32)
        fall = 1 + np.float32(0.14) * (x * self.light[0] + y * self.light[1])
        fall *= 1 - np.float32(rng.uniform(0, 0.18)) * (x * x + y * y)
        warmth, tint = rng.normal(0.06, 0.18), rng.normal(0, 0.05)
        balance = np.array([1 + warmth, 1 + tint, 1 - warmth]) * rng.uniform(0.62, 1.3)
        picture = self.canvas * fall * channels(balance)
        gray = picture.mean(axis=0)
        picture = gray + np.float32(rng.uniform(0.65, 1.1)) * (picture - gray)
        grain = rng.standard_normal((height, width), dtype=np.float32)
        picture += np.float32(rng.uniform(0.003, 0.02)) * grain
        values = np.clip(255 * picture + 0.5, 0, 255).astype(np.uint8)
        image = Image.fromarray(np.ascontiguousarray(values.transpose(1, 2, 0)))
        blur = rng.uniform(0, 0.0022) * max(width, height)
        return image.filter(ImageFilter.GaussianBlur(blur))


def channels(color) -> np.ndarray:
    """Return three numbers as an array (3, 1, 1) that broadcasts with (height, width)."""
    return np.array(color, np.float32)[:, None, None]


def shift(field: np.ndarray, down: int, right: int) -> np.ndarray:
    """Move a field by whole pixels. Its edge values fill the gap."""
    rows = np.clip(np.arange(field.shape[0]) - down, 0, field.shape[0] - 1)
    columns = np.clip(np.arange(field.shape[1]) - right, 0, field.shape[1] - 1)
    return field[rows][:, columns] if right else field[rows]


def blend(area: np.ndarray, color: np.ndarray, inside: np.ndarray) -> None:
    """Paint a color over an area where `inside`, in pixels from the edge, is above 0."""
    area += np.clip(inside + 0.5, 0, 1) * (color - area)
