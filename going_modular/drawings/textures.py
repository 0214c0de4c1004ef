"""The textures of drawn surfaces: patterns of values between 0 and 1.

A pattern is made of noise that is cut from one large sheet, of waves, or of both.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

TEXTURES = ("blotch", "spots", "marble", "stripes", "lines", "check", "rings", "grains", "beads")
FORMULA = "formula"  # the texture of a random formula; see `formula_pattern`
TURN = np.float32(2 * np.pi)
CELLS, DOTS = 96, 8  # a texture sheet has 96 × 96 cells of 8 × 8 pixels


@cache
def sheet(kind: str) -> Image.Image:
    """Return a large sheet of texture to cut pieces from. It is the same every time.

    "noise" is smooth and random, with details of a third of a cell. "grains" are short
    strokes in all directions, as long as a cell. "beads" are balls as large as a cell.
    Values lie between 0 and about 1.
    """
    rng = np.random.default_rng(0)
    side = CELLS * DOTS
    if kind == "noise":
        octaves = [
            Image.fromarray(rng.random((cells, cells), np.float32)) for cells in (CELLS, 3 * CELLS)
        ]
        coarse, fine = (
            np.asarray(octave.resize((side, side), Image.Resampling.BICUBIC)) for octave in octaves
        )
        return Image.fromarray(0.72 * coarse + 0.28 * fine)
    image = Image.new("F", (side, side), 0.15)
    pen = ImageDraw.Draw(image)
    count = 3 * CELLS * CELLS if kind == "grains" else 14000
    x, y, angle, tone = rng.random((4, count))
    dx, dy = DOTS / 2 * np.cos(angle * np.pi), DOTS / 2 * np.sin(angle * np.pi)
    x, y, tone = x * side, y * side, 0.4 + 0.6 * tone
    if kind == "grains":
        ends = np.stack([x - dx, y - dy, x + dx, y + dy], axis=1)
        for line, gray in zip(ends.tolist(), tone.tolist(), strict=True):
            pen.line(line, gray, width=3)
    else:
        for part in (0.5, 0.35, 0.2):
            r = part * DOTS
            boxes = np.stack([x - r, y - r, x + r, y + r], axis=1).tolist()
            for box, gray in zip(boxes, (tone - part * 0.6).tolist(), strict=True):
                pen.ellipse(box, gray)
    return image


def steep(values: np.ndarray, factor: float) -> np.ndarray:
    """Return values between 0 and 1 with more contrast around 0.5."""
    return np.clip((values - 0.5) * np.float32(factor) + 0.5, 0, 1)


def wave(length: np.ndarray, period: float, noise: np.ndarray) -> np.ndarray:
    """Return a wave between 0 and 1 along a length. Noise makes it uneven."""
    return 0.5 + 0.5 * np.sin(np.float32(2 * np.pi / period) * length + 2.5 * noise)


def formula_pattern(
    seed: int,
    cell: float,
    coordinates: tuple[np.ndarray, np.ndarray],
    noise_of: Callable[[tuple[float, float]], np.ndarray],
) -> np.ndarray:
    """Return the pattern of a random formula: noise, changed by two to four random steps.

    One seed is one formula. Baradad et al., *Procedural Image Programs for Representation
    Learning* (arXiv 2211.16412), train networks on pictures that such programs draw.

    Args:
        seed: of the formula.
        cell: size of the largest parts.
        coordinates: u and v of each pixel.
        noise_of: returns smooth noise with cells of a size (along, across).
    """
    rng = np.random.default_rng(seed)
    pattern = noise_of((cell, cell))
    for step in rng.integers(7, size=rng.integers(2, 5)):
        size = cell * float(np.exp(rng.uniform(np.log(0.08), np.log(0.8))))
        other = noise_of((size, size * float(np.exp(rng.normal(0, 0.5)))))
        strength, axis = float(rng.uniform(0.5, 3)), int(rng.integers(2))
        match step:
            case 0:  # contour lines
                pattern = 0.5 + 0.5 * np.sin(TURN * (strength * pattern + other / 2))
            case 1:  # waves
                along = coordinates[axis] / (2 * size)
                pattern = 0.5 + 0.5 * np.sin(TURN * (along + strength * pattern))
            case 2:  # veins
                pattern = np.abs(2 * steep(pattern, 1.5) - 1)
            case 3:  # islands
                pattern = np.maximum(pattern, steep(other, 2 + 3 * strength))
            case 4:  # holes
                pattern = np.minimum(pattern, steep(1.1 - other, 4))
            case 5:
                pattern = pattern * (0.4 + 1.2 * other)
            case 6:
                pattern = steep(0.6 * pattern + 0.4 * other, 1 + 2 * strength)
    return np.clip(pattern, 0, 1)
