"""A grammar of dishes: three written by hand, and any number of random ones.

A `Piece` is a shape of some material, and has layers on top. A `Layer` says how many
pieces lie on it, and where. Each of these may have layers again: dough, sauce, cheese,
basil.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from going_modular.drawings.painting import Material, Scene, Shape
from going_modular.drawings.pantry import (
    ASPARAGUS,
    AVOCADO,
    BACON,
    BASIL,
    BEARNAISE,
    BONE,
    BREAM,
    BUTTER,
    CARROT,
    CUCUMBER,
    EEL,
    FRIES,
    GINGER,
    HAM,
    LEMON,
    MASH,
    MOZZARELLA,
    MUSHROOM,
    NORI,
    OLIVE,
    OMELETTE,
    ONION,
    PANTRY,
    PEAS,
    PEPPER,
    PEPPERCORN,
    PEPPERONI,
    RED_PEPPER,
    RICE,
    ROCKET,
    ROE,
    SALAD,
    SALMON,
    SAUCE,
    SESAME,
    SHRIMP,
    TOMATO,
    TUNA,
    WASABI,
    pick,
    plain,
    random_material,
    varied,
)

Layers = tuple["Layer", ...]


@dataclass(frozen=True)
class Piece:
    """A shape of some material and height, with layers of pieces on top."""

    shape: Shape
    material: Material
    height: float = 0.04
    layers: Layers = ()


@dataclass(frozen=True)
class Layer:
    """Pieces of one kind that lie on the piece below.

    Attributes:
        piece: the kind of piece.
        layout: "scatter" for pieces apart from each other, "pile" for pieces on top of
            each other, "row", "grid", "ring" for a circle along the edge, "spokes" for
            pieces that point outward, or "one" for the middle.
        count: the smallest and the largest number of pieces.
        spread: how far out the pieces lie; 1 is the edge of the piece below.
        center: of the layer, in table units from the center of the piece below.
        turn: angle to the piece below in radians, or None for any angle.
    """

    piece: Piece
    layout: str = "scatter"
    count: tuple[int, int] = (1, 1)
    spread: float = 0.75
    center: tuple[float, float] = (0.0, 0.0)
    turn: float | None = None


def place(scene: Scene, piece: Piece, center=(0.0, 0.0), angle=0.0, base=0.0) -> None:
    """Paint a piece, and its layers on top."""
    scene.paint(piece.shape, piece.material, center, angle, base, piece.height)
    place_layers(scene, piece.layers, piece.shape, center, angle, base + piece.height)


def place_layers(scene: Scene, layers: Layers, below: Shape, center, angle, base) -> None:
    """Paint layers on a shape, and the pieces of each layer from back to front."""
    cos, sin = np.cos(angle), np.sin(angle)
    for layer in layers:
        spots = [
            (rise, center[1] + x * sin + y * cos, center[0] + x * cos - y * sin, angle + turn)
            for x, y, rise, turn in positions(layer, below, scene.rng)
        ]
        for rise, y, x, turn in sorted(spots):
            place(scene, layer.piece, (x, y), turn, base + rise)


def positions(layer: Layer, below: Shape, rng) -> list[tuple[float, ...]]:
    """Return (x, y, rise, angle) of each piece of a layer, relative to the piece below."""
    count = int(rng.integers(layer.count[0], layer.count[1] + 1))
    half = np.array([below.length, below.width]) / 2 * layer.spread
    shape = layer.piece.shape
    turns = rng.uniform(0, 2 * np.pi, count)
    if layer.turn is not None:
        turns = layer.turn + rng.normal(0, 0.03, count)
    spots: np.ndarray
    rise: np.ndarray = np.zeros(count)
    if layer.layout == "one":
        spots = rng.normal(0, 0.01, (count, 2))
    elif layer.layout == "scatter":
        spots = scattered_spots(count, below, layer.spread, rng)
    elif layer.layout == "pile":
        spots = rng.normal(0, 0.45, (count, 2)) * half
        rise = np.linspace(0, layer.piece.height * min(count - 1, 6) * 0.4, count)
    elif layer.layout == "row":
        step = min(2 * half[0] / max(count, 1), shape.width * 1.08)
        along = (np.arange(count) - (count - 1) / 2) * step
        spots = np.stack([along, rng.normal(0, 0.012, count)], axis=1)
        rise = np.arange(count) * 1e-4 if step < shape.width else rise
    elif layer.layout == "grid":
        columns = max(1, int(np.sqrt(count * half[0] / half[1]) + 0.5))
        row, column = np.divmod(np.arange(count), columns)
        rows = row[-1] + 1
        place_x = (column + 0.5) / columns * 2 - 1
        place_y = (row + 0.5) / rows * 2 - 1
        spots = np.stack([place_x, place_y], axis=1) * half
        spots += rng.normal(0, 0.012, (count, 2))
    else:
        around = 2 * np.pi * (np.arange(count) / count) + rng.uniform(0, 2 * np.pi)
        spots = np.stack([np.cos(around), np.sin(around)], axis=1) * half
        turns = around + (np.pi / 2 if layer.layout == "ring" else 0)
    spots = spots + np.array(layer.center)
    places = zip(spots, rise, turns, strict=False)  # scattered pieces may be fewer than `count`
    return [(*spot, up, turn) for spot, up, turn in places]


def scattered_spots(count: int, below: Shape, spread: float, rng) -> np.ndarray:
    """Return up to `count` places (x, y) on a shape.

    Each place is the one of four tries that is farthest from all places before it.
    """
    tries = (rng.random((max(count, 1) * 12, 2)) * 2 - 1) * below.extent(0.0)
    inside = below.distance(tries[:, 0], tries[:, 1])
    tries = tries[inside > (1 - spread) * min(below.length, below.width) / 2]
    chosen = list(tries[:1])
    for start in range(1, max(1, len(tries) - 4), 4):
        if len(chosen) == count:
            break
        four = tries[start : start + 4]
        gaps = np.linalg.norm(four[:, None] - np.array(chosen)[None], axis=2).min(axis=1)
        chosen.append(four[gaps.argmax()])
    return np.array(chosen[:count]).reshape(-1, 2)


# Small things that lie on many dishes


def disc(size: float, material: Material, height=0.03, lump=0.0, width=None, **shape) -> Piece:
    """Return a round piece, or an oval one if a width is given."""
    outline = Shape("disc", size, width or size, lump=lump, **shape)
    return Piece(outline, material, height)


def strip(
    length: float, width: float, material: Material, height=0.03, corner=None, **shape
) -> Piece:
    """Return a long piece. Its ends are round unless the radius of a corner is given."""
    corner = width / 2 if corner is None else corner  # 0 makes sharp corners
    return Piece(Shape("slab", length, width, corner, **shape), material, height)


def leaf(length: float, width: float, material: Material, **shape) -> Piece:
    """Return a leaf."""
    return Piece(Shape("leaf", length, width, **shape), material, 0.015)


def ring(size: float, thickness: float, material: Material, height=0.025) -> Piece:
    """Return a ring."""
    return Piece(Shape("ring", size, size, thickness), material, height)


FRY = strip(0.4, 0.05, FRIES, 0.05, corner=0.008)
SPEAR = Piece(
    Shape("slab", 0.6, 0.05, 0.025, taper=0.35),
    ASPARAGUS,
    0.04,
    (Layer(leaf(0.12, 0.05, ROCKET), "row", (1, 1), center=(0.26, 0.0), turn=0.0),),
)
ROSEMARY = Piece(
    Shape("slab", 0.42, 0.014, 0.007, bend=0.12),
    plain("55603a"),
    0.01,
    (
        Layer(leaf(0.09, 0.016, ROCKET), "row", (9, 12), 0.9, (0, 0.03), 1.0),
        Layer(leaf(0.09, 0.016, ROCKET), "row", (9, 12), 0.9, (0, -0.03), -1.0),
    ),
)
SALAD_LEAF = Piece(Shape("disc", 0.3, 0.2, lump=0.05, lump_size=0.07), SALAD, 0.02)
PAT = strip(0.17, 0.15, BUTTER, 0.05, corner=0.03)
ROCKET_LEAF = leaf(0.2, 0.06, ROCKET, lump=0.02, lump_size=0.04)

# Side dishes of steaks and of random dishes. They are chosen by position, as in PANTRY.
SIDES = {
    "fries": (FRY, "pile", (16, 26), 0.5),
    "asparagus": (SPEAR, "row", (4, 6), 0.5),
    "peas": (disc(0.055, PEAS, 0.045), "pile", (25, 45), 0.34),
    "mash": (disc(0.5, MASH, 0.1, 0.05, lump_size=0.15), "one", (1, 1), 0.3),
    "tomatoes": (disc(0.2, TOMATO, 0.07), "pile", (2, 4), 0.36),
    "salad": (SALAD_LEAF, "pile", (7, 12), 0.45),
    "carrots": (strip(0.3, 0.07, CARROT, 0.05, taper=0.4), "pile", (5, 8), 0.4),
    "mushrooms": (disc(0.14, MUSHROOM, 0.06), "pile", (4, 8), 0.42),
    "lemon": (Piece(Shape("slice", 0.2, 0.2, opening=120), LEMON, 0.05), "one", (1, 1), 1),
}


def side(name: str, center: tuple[float, float]) -> Layer:
    """Return a side dish, to be put on the plate around a center."""
    piece, layout, count, spread = SIDES[name]
    turn = 1.2 if layout == "row" else None
    return Layer(piece, layout, count, spread, center, turn)


# Three dishes written by hand


def pizza(rng) -> Layers:
    """Return a whole pizza, one without a slice, half a pizza, or slices."""
    crust, sauce, melted = (
        varied(rng, pick(rng, PANTRY[name])) for name in ("bread", "tomato sauce", "melted cheese")
    )
    form = pick(rng, ["whole", "whole", "missing", "half", "slice", "slices"])
    opening = {"missing": rng.uniform(290, 325), "half": 180}.get(form, 50)
    radius = {"slice": 1.2, "slices": 0.9}.get(form, 0.75)
    sliced = form in ("slice", "slices")

    def disc_or_slice(scale, material, height, layers=(), lump=0.02):
        size = radius * scale
        shape = Shape("slice", size, size, opening=opening, lump=lump)
        if form == "whole":
            shape = Shape("disc", 2 * size, 2 * size, lump=lump)
        return Piece(shape, material, height, layers)

    def on_top(scale, below):  # the tips of slices of two sizes lie in one place
        back = radius * (below - scale) / 2 if sliced else 0.0
        return {"layout": "one", "center": (-back, 0.0), "turn": 0.0}

    toppings = tuple(
        Layer(piece, "scatter", (low // 3 + 1, high // 3 + 1) if sliced else (low, high))
        for piece, low, high in pick(rng, PIZZA_TOPPINGS)
    )
    if form == "whole" and rng.random() < 0.5:
        toppings += (Layer(CUT, "spokes", (6, 8), 0.5),)
    top = disc_or_slice(0.82, melted, 0.012, toppings, lump=0.05)
    red = disc_or_slice(0.87, sauce, 0.005, (Layer(top, **on_top(0.82, 0.87)),), lump=0.03)
    whole = disc_or_slice(1.0, crust, 0.07, (Layer(red, **on_top(0.87, 1.0)),))
    if form == "slices":
        return (Layer(whole, "ring", (2, 4), 0.42),)
    return (Layer(whole, "one", center=tuple(rng.normal(0, 0.06, 2))),)


CUT = strip(0.72, 0.012, plain("8a4a20"), 0.0)
PIZZA_TOPPINGS = [
    [(disc(0.2, PEPPERONI, 0.015, 0.01), 12, 22)],
    [(disc(0.26, MOZZARELLA, 0.025, 0.04), 5, 8), (leaf(0.2, 0.11, BASIL), 4, 8)],
    [(disc(0.22, PEPPERONI, 0.015, 0.01), 8, 12), (ring(0.11, 0.04, OLIVE), 8, 14)],
    [
        (disc(0.16, MUSHROOM, 0.02, taper=0.5, width=0.11), 10, 16),
        (strip(0.22, 0.09, HAM, 0.02, lump=0.02, bend=0.2), 6, 10),
    ],
    [
        (ring(0.26, 0.03, PEPPER), 6, 9),
        (ring(0.24, 0.02, ONION, 0.015), 5, 9),
        (ring(0.1, 0.035, OLIVE), 6, 10),
    ],
    [(disc(0.13, TOMATO, 0.03), 8, 14), (ROCKET_LEAF, 12, 22)],
    [(strip(0.3, 0.14, HAM, 0.02, lump=0.03, bend=0.3), 5, 8), (ROCKET_LEAF, 14, 24)],
    [
        (strip(0.2, 0.04, RED_PEPPER, 0.03, bend=0.4), 6, 10),
        (strip(0.2, 0.04, PEPPER, 0.03, bend=0.4), 6, 10),
        (disc(0.12, BACON, 0.04, 0.02), 8, 12),
    ],
    [(disc(0.3, MOZZARELLA, 0.02, 0.05), 6, 9)],
]


def steak(rng) -> Layers:
    """Return a steak with up to three side dishes: whole, with a bone, or in slices."""
    meat = varied(rng, pick(rng, PANTRY["seared meat"]))
    cut = pick(rng, ["whole", "whole", "T-bone", "rib", "slices", "slices"])
    if cut == "slices":
        food, size = steak_in_slices(rng, meat), 1.2
    else:
        food, size = steak_in_one(rng, meat, bone=cut == "T-bone")

    # The steak lies on one side of the plate, the side dishes on the other.
    names = list(rng.permutation(list(SIDES))[: rng.integers(0, 4)])
    start = rng.uniform(0, 2 * np.pi)
    angles = start + 1.1 * np.arange(len(names))
    layers = [
        side(name, (0.56 * np.cos(angle), 0.56 * np.sin(angle)))
        for name, angle in zip(names, angles, strict=True)
    ]
    opposite = start + 0.55 * (len(names) - 1) + np.pi
    far = 0.24 if names else 0.0
    center = np.array([far * np.cos(opposite), far * np.sin(opposite)])
    turn = opposite + np.pi / 2 + rng.normal(0, 0.3)
    if cut == "rib":
        rib = strip(0.55, 0.11, BONE, 0.07, bend=0.1, taper=0.2)
        tip = center + 0.62 * size * np.array([np.cos(turn), np.sin(turn)])
        layers.append(Layer(rib, "one", center=tuple(tip), turn=turn))
    layers.append(Layer(food, "one", center=tuple(center), turn=turn))
    return tuple(layers)


def steak_in_one(rng, meat: Material, bone: bool) -> tuple[Piece, float]:
    """Return an uncut steak with something on top, and its length."""
    size = rng.uniform(0.95, 1.25)
    outline = Shape(
        "disc",
        size,
        size * rng.uniform(0.55, 0.75),
        bend=rng.uniform(-0.15, 0.15),
        taper=rng.uniform(-0.3, 0.3),
        lump=0.06,
        lump_size=0.3,
    )
    layers: Layers = ()
    if bone:
        long, short = (strip(length, 0.06, BONE, 0.012, bend=0.1) for length in (0.75 * size, 0.28))
        stem = Layer(short, "one", center=(0.1, 0.12), turn=1.5)
        layers = (Layer(long, "one", turn=0.1), stem)
    layers += pick(
        rng,
        [
            (),
            (Layer(ROSEMARY, "one"),),
            (Layer(PAT, "one", turn=0.3),),
            (Layer(disc(0.4, SAUCE, 0.008, 0.08), "one"),),
            (Layer(disc(0.5, BEARNAISE, 0.015, 0.1), "one"),),
            (Layer(disc(0.025, PEPPERCORN, 0.01), "scatter", (15, 30)),),
            (Layer(leaf(0.07, 0.03, BASIL), "scatter", (6, 14)),),
        ],
    )
    return Piece(outline, meat, 0.11, layers), size


def steak_in_slices(rng, meat: Material) -> Piece:
    """Return slices, pink inside, in their juice. The uncut end may lie beside them."""
    pink = varied(rng, pick(rng, PANTRY["pink meat"]))
    inside = replace(pink, rim=meat.second, rim_width=0.045)
    one = Piece(Shape("slab", 0.17, 0.55, 0.07, lump=0.02), inside, 0.08)
    layers: Layers = (Layer(one, "row", (6, 9), 0.9, turn=0.12),)
    if rng.random() < 0.5:
        end = Piece(Shape("disc", 0.5, 0.56, lump=0.04), meat, 0.11)
        layers += (Layer(end, "one", center=(0.55, 0.0)),)
    return Piece(Shape("disc", 1.2, 0.62, lump=0.08), SAUCE, 0.0, layers)


def sushi(rng) -> Layers:
    """Return rows of nigiri, of maki, of rolls with rice outside, or of several kinds."""
    kinds = pick(
        rng,
        [
            [nigiri, nigiri],
            [maki, maki],
            [uramaki, uramaki],
            [nigiri, maki],
            [nigiri, maki],
            [nigiri, maki, uramaki, gunkan],
        ],
    )
    rows = len(kinds)
    step = 0.62 if kinds == [nigiri, nigiri] else 0.92 / rows
    layers = []
    for row, kind in enumerate(kinds):
        center = (-0.14, (row - (rows - 1) / 2) * step)
        count = (3, 5) if kind is nigiri else (4, 6)
        turn = 1.3 if kind is nigiri else rng.uniform(0, 3)
        layers.append(Layer(kind(rng), "row", count, 0.72, center, turn))
    if rng.random() < 0.7:
        x, y = 0.74, rng.uniform(-0.3, 0.1)
        wasabi = disc(0.16, WASABI, 0.07, 0.03)
        ginger = Piece(Shape("disc", 0.16, 0.12, lump=0.02), GINGER, 0.012)
        layers.append(Layer(wasabi, "one", center=(x, y)))
        layers.append(Layer(ginger, "pile", (6, 9), 0.14, (x - 0.04, y + 0.26)))
    return tuple(layers)


def nigiri(rng) -> Piece:
    """Return a slice of fish, omelette or shrimp on a finger of rice."""
    fish = pick(rng, [SALMON, SALMON, TUNA, SHRIMP, OMELETTE, EEL, BREAM])
    shape = Shape("slab", 0.6, 0.26, 0.1, bend=0.08, taper=-0.1, lump=0.008)
    band: Layers = ()
    if fish in (OMELETTE, EEL):
        shape = Shape("slab", 0.58, 0.25, 0.03)
        band = (Layer(strip(0.08, 0.27, NORI, 0.004, corner=0.0), "one", turn=0.0),)
    top = Piece(shape, fish, 0.05, band)
    rice = Shape("slab", 0.52, 0.2, 0.09, lump=0.012, lump_size=0.05)
    return Piece(rice, RICE, 0.13, (Layer(top, "one", turn=0.0),))


def filling(rng, size: float) -> Layers:
    """Return the filling in the middle of a roll: one ingredient or two."""
    kinds = [SALMON, TUNA, CUCUMBER, AVOCADO, OMELETTE, CARROT]
    if rng.random() < 0.5:
        one = disc(size, replace(pick(rng, kinds), texture="blotch"), 0.005, 0.01)
        return (Layer(one, "one"),)
    first, second = (replace(kinds[i], texture="blotch") for i in rng.permutation(len(kinds))[:2])
    return tuple(
        Layer(strip(size, size * 0.5, material, 0.005, corner=0.02), "one", center=center, turn=0.0)
        for material, center in [(first, (0.0, -size * 0.28)), (second, (0.0, size * 0.28))]
    )


def maki(rng) -> Piece:
    """Return a slice of a roll: a filling in rice in seaweed."""
    size = rng.uniform(0.26, 0.36)
    rice = replace(RICE, cell=(0.035, 0.014), bevel=0.02)
    white = replace(disc(size * 0.88, rice, 0.003), layers=filling(rng, size * 0.36))
    return replace(disc(size, NORI, 0.2, 0.006), layers=(Layer(white, "one", turn=0.0),))


def uramaki(rng) -> Piece:
    """Return a slice of a roll with rice outside, and perhaps seeds, or with roe outside."""
    size = rng.uniform(0.34, 0.42)
    coat = pick(rng, [RICE, RICE, ROE])
    outside = replace(
        coat,
        rim=coat.second if coat is ROE else None,
        rim_width=0.02,
        cell=(0.035, 0.016),
        bevel=0.03,
        side=coat.second,
    )
    middle = disc(size * 0.5, replace(RICE, cell=(0.03, 0.012)), 0.001)
    middle = replace(middle, layers=filling(rng, size * 0.36))
    black = replace(disc(size * 0.62, NORI, 0.002), layers=(Layer(middle, "one"),))
    layers: Layers = (Layer(black, "one"),)
    if coat is RICE and rng.random() < 0.6:
        seed = leaf(0.035, 0.016, pick(rng, [SESAME, OLIVE]))
        layers += (Layer(seed, "ring", (9, 14), 0.82),)
    return Piece(Shape("disc", size, size, lump=0.01), outside, 0.2, layers)


def gunkan(rng) -> Piece:
    """Return roe in a little boat of seaweed."""
    inside = Piece(Shape("disc", 0.36, 0.22), ROE, 0.03)
    return Piece(Shape("disc", 0.42, 0.27), NORI, 0.18, (Layer(inside, "one", turn=0.0),))


RECIPES: dict[str, Callable[..., Layers]] = {"pizza": pizza, "steak": steak, "sushi": sushi}


# Any number of random dishes


def random_shape(rng, size: float) -> Shape:
    """Return a random shape, about `size` long."""
    kinds = ["disc"] * 2 + ["slab"] * 2 + ["leaf", "ring", "slice"] + ["contour"] * 3
    kind = pick(rng, kinds)
    width = size * rng.uniform(0.25, 1.0)
    if kind in ("ring", "slice") or rng.random() < 0.25:
        width = size
    return Shape(
        kind,
        size,
        width,
        corner=width * rng.uniform(0.1, 0.5),
        opening=rng.uniform(25, 320),
        bend=rng.uniform(-0.4, 0.4) * (rng.random() < 0.4),
        taper=rng.uniform(-0.6, 0.6) * (rng.random() < 0.4),
        lump=size * rng.uniform(0, 0.15) * (rng.random() < 0.5),
        lump_size=size * rng.uniform(0.1, 0.5),
        waves=random_waves(rng) if kind == "contour" else (),
    )


def random_waves(rng) -> tuple[tuple[float, float], ...]:
    """Return one to seven waves of a contour; the more of them around it, the flatter."""
    number = np.arange(1, rng.integers(2, 9))
    amplitudes = rng.uniform(0.1, 0.5) * rng.normal(size=len(number))
    amplitudes = amplitudes / number ** rng.uniform(0.3, 1.5)
    phases = rng.uniform(0, 2 * np.pi, len(number))
    return tuple(zip(amplitudes.tolist(), phases.tolist(), strict=True))


def random_toppings(rng, size: float, room: int) -> Layers:
    """Return up to three layers of smaller pieces, with at most `room` pieces in each."""
    layers = []
    for _ in range(rng.integers(0, 4) if room > 1 else 0):
        if rng.random() < 0.25:  # a cover: sauce, cheese, icing
            cover = random_shape(rng, size * rng.uniform(0.6, 0.9))
            piece = Piece(cover, random_material(rng), 0.01)
            layers.append(Layer(piece, "one", turn=0.0))
            continue
        part = size * np.exp(rng.uniform(np.log(0.06), np.log(0.6)))
        most = int(np.clip(0.5 * (size / part) ** 1.5, 1, room))
        layout = pick(rng, ["scatter", "scatter", "pile", "row", "ring", "spokes", "one"])
        turn = rng.uniform(0, np.pi) if rng.random() < 0.4 else None
        piece = random_piece(rng, part, room // most // 4)
        count = (max(1, most // 2), most)
        layers.append(Layer(piece, layout, count, rng.uniform(0.4, 0.9), turn=turn))
    return tuple(layers)


def random_piece(rng, size: float, room: int = 24) -> Piece:
    """Return a random piece, about `size` long, with at most `room` pieces in each layer."""
    shape = random_shape(rng, size)
    height = min(size * rng.uniform(0.02, 0.5), 0.3)
    layers = random_toppings(rng, size, room)
    if room > 4 and rng.random() < 0.2:  # a stack
        for _ in range(rng.integers(1, 4)):
            below = random_material(rng)
            layers = (Layer(Piece(shape, below, height, layers), "one", turn=0.0),)
    return Piece(shape, random_material(rng), height, layers)


def random_dish(seed: int) -> Layers:
    """Return the dish of a seed. It has the same pieces and materials every time."""
    rng = np.random.default_rng(seed)
    layers: list[Layer] = []
    for _ in range(rng.integers(1, 4)):
        count = pick(rng, [(1, 1), (2, 3), (3, 6), (5, 12), (10, 24)])
        size = rng.uniform(1.0, 1.7) / np.sqrt(count[1]) ** 0.9
        layout = "one"
        if count[1] > 1:
            layout = pick(rng, ["scatter", "pile", "row", "grid", "ring"])
        turn = rng.uniform(0, np.pi) if rng.random() < 0.5 else None
        x, y = rng.normal(0, 0.05 + 0.25 * len(layers), 2)
        piece = random_piece(rng, size, 24 // count[1])
        layers.append(Layer(piece, layout, count, rng.uniform(0.5, 0.75), (x, y), turn))
    if rng.random() < 0.4:
        around = rng.uniform(0, 2 * np.pi)
        name = pick(rng, list(SIDES))
        layers.append(side(name, (0.55 * np.cos(around), 0.55 * np.sin(around))))
    return tuple(layers)
