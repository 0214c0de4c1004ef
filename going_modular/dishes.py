"""What is on a plate: a grammar of dishes, three of them by hand, and any number more.

A `Piece` (a shape of some material) carries layers, a `Layer` says how many pieces lie
where on it, and each of those carries layers again: dough, sauce, cheese, basil.
"""

import colorsys
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from going_modular.painting import Color, Material, Scene, Shape, rgb

Layers = tuple["Layer", ...]


@dataclass(frozen=True)
class Piece:
    """Something with a shape, a material, a height, and layers of pieces on top."""

    shape: Shape
    material: Material
    height: float = 0.04
    layers: Layers = ()


@dataclass(frozen=True)
class Layer:
    """How many pieces lie where on the piece below.

    Attributes:
        piece: what lies there.
        layout: "scatter" (apart from each other), "pile" (upon each other), "row",
            "grid", "ring" (around the edge), "spokes" (from the centre) or "one".
        count: the least and the largest number of pieces.
        spread: how far out they go; 1 is the edge of the piece below.
        at: the layer's centre, in table units from the piece's.
        turn: angle to the piece below in radians; None for any.
    """

    piece: Piece
    layout: str = "scatter"
    count: tuple[int, int] = (1, 1)
    spread: float = 0.75
    at: tuple[float, float] = (0.0, 0.0)
    turn: float | None = None


def place(scene: Scene, piece: Piece, at=(0.0, 0.0), angle=0.0, base=0.0) -> None:
    """Paint a piece, and on it its layers."""
    scene.paint(piece.shape, piece.material, at, angle, base, piece.height)
    lay(scene, piece.layers, piece.shape, at, angle, base + piece.height)


def lay(scene: Scene, layers: Layers, below: Shape, at, angle, base) -> None:
    """Paint layers on a shape that is there, each from the back to the front."""
    cos, sin = np.cos(angle), np.sin(angle)
    for layer in layers:
        spots = [
            (rise, at[1] + x * sin + y * cos, at[0] + x * cos - y * sin, angle + turn)
            for x, y, rise, turn in positions(layer, below, scene.rng)
        ]
        for rise, y, x, turn in sorted(spots):
            place(scene, layer.piece, (x, y), turn, base + rise)


def positions(layer: Layer, below: Shape, rng) -> list[tuple[float, ...]]:
    """(x, y, rise, angle) of each piece of a layer, in the axes of the piece below."""
    count = int(rng.integers(layer.count[0], layer.count[1] + 1))
    half = np.array([below.length, below.width]) / 2 * layer.spread
    shape = layer.piece.shape
    turns = rng.uniform(0, 2 * np.pi, count)
    if layer.turn is not None:
        turns = layer.turn + rng.normal(0, 0.03, count)
    rise = np.zeros(count)
    if layer.layout == "one":
        spots = rng.normal(0, 0.01, (count, 2))
    elif layer.layout == "scatter":
        spots = apart(count, below, layer.spread, rng)
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
    spots = spots + np.array(layer.at)
    places = zip(spots, rise, turns, strict=False)  # a scatter may find less room
    return [(*spot, up, turn) for spot, up, turn in places]


def apart(count: int, below: Shape, spread: float, rng) -> np.ndarray:
    """Places on a shape, each the farthest of a few tries from those before it."""
    tries = (rng.random((max(count, 1) * 12, 2)) * 2 - 1) * below.extent(0.0)
    inside = below.distance(tries[:, 0], tries[:, 1])
    tries = tries[inside > (1 - spread) * min(below.length, below.width) / 2]
    chosen = list(tries[:1])
    for start in range(1, max(1, len(tries) - 4), 4):
        if len(chosen) == count:
            break
        few = tries[start : start + 4]
        gaps = np.linalg.norm(few[:, None] - np.array(chosen)[None], axis=2).min(axis=1)
        chosen.append(few[gaps.argmax()])
    return np.array(chosen[:count]).reshape(-1, 2)


# Small things that lie on many dishes


def disc(size: float, material: Material, height=0.03, lump=0.0, **shape) -> Piece:
    """A round piece."""
    outline = Shape("disc", size, shape.pop("width", size), lump=lump, **shape)
    return Piece(outline, material, height)


def strip(length: float, width: float, material: Material, height=0.03, **shape):
    """A long piece with round ends."""
    corner = shape.pop("corner", width / 2)
    return Piece(Shape("slab", length, width, corner, **shape), material, height)


def leaf(length: float, width: float, material: Material, **shape) -> Piece:
    """A leaf."""
    return Piece(Shape("leaf", length, width, **shape), material, 0.015)


def ring(size: float, thickness: float, material: Material, height=0.025) -> Piece:
    """A ring."""
    return Piece(Shape("ring", size, size, thickness), material, height)


def plain(color: str, second: str | None = None, **look) -> Material:
    """A material from colours as hexadecimal digits."""
    rim = look.pop("rim", None)
    return Material(
        rgb(color), rgb(second or color), rim=rgb(rim) if rim else None, **look
    )


BASIL = plain("3f7d2c", "6fae4a", cell=(0.05, 0.2), bevel=0.03, gloss=0.2)
SALAD = plain("6aa03a", "a9cc62", cell=(0.06, 0.06), bevel=0.05, bump=1.2)
ROCKET = plain("3c6e2a", "5d9440", cell=(0.05, 0.1), bevel=0.02)
TOMATO = plain("c3301f", "e8694a", cell=(0.05, 0.05), rim="a51d14", gloss=0.3)
OLIVE = plain("2c2530", "4a4250", gloss=0.35, bevel=0.02)
ONION = plain("b58ab5", "ecd9ea", texture="rings", cell=(0.03, 0.03), bump=0.3)
MUSHROOM = plain("d9c3a0", "b8966b", rim="7d5b3c", rim_width=0.015)
LEMON = plain("f2d648", "f9efa8", texture="rings", cell=(0.07, 0.07), gloss=0.25)
FRIES = plain("ebb84b", "c98a2b", cell=(0.2, 0.04), bevel=0.02, gloss=0.1)
PEAS = plain("5d9a35", "86bd52", bevel=0.03, gloss=0.35)
CARROT = plain("e07a28", "f0a050", bevel=0.03, gloss=0.2)
MASH = plain("f0dfae", "dcc384", cell=(0.08, 0.08), bevel=0.12, bump=1.5)
SAUCE = plain("3c1d10", "57301a", gloss=0.45, bevel=0.03, bump=0.1)
RICE = plain(
    "d8cdb4", "faf4e4", texture="grains", cell=(0.05, 0.018), bevel=0.06, bump=0.6
)
NORI = plain("16211c", "26352c", cell=(0.03, 0.03), bevel=0.01, gloss=0.12)

FRY = strip(0.4, 0.05, FRIES, 0.05, corner=0.008)
SPEAR = Piece(
    Shape("slab", 0.6, 0.05, 0.025, taper=0.35),
    plain("5c8a36", "85ad55", cell=(0.12, 0.03), gloss=0.15),
    0.04,
    (Layer(leaf(0.12, 0.05, ROCKET), "row", (1, 1), at=(0.26, 0.0), turn=0.0),),
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
ROCKET_LEAF = leaf(0.2, 0.06, ROCKET, lump=0.02, lump_size=0.04)

# Beside a steak, or on a plate of no name
SIDES = {
    "fries": (FRY, "pile", (16, 26), 0.5),
    "asparagus": (replace(SPEAR), "row", (4, 6), 0.5),
    "peas": (disc(0.055, PEAS, 0.045), "pile", (25, 45), 0.34),
    "mash": (disc(0.5, MASH, 0.1, 0.05, lump_size=0.15), "one", (1, 1), 0.3),
    "tomatoes": (disc(0.2, TOMATO, 0.07), "pile", (2, 4), 0.36),
    "salad": (SALAD_LEAF, "pile", (7, 12), 0.45),
    "carrots": (strip(0.3, 0.07, CARROT, 0.05, taper=0.4), "pile", (5, 8), 0.4),
    "mushrooms": (disc(0.14, MUSHROOM, 0.06), "pile", (4, 8), 0.42),
    "lemon": (
        Piece(Shape("slice", 0.2, 0.2, opening=120), LEMON, 0.05),
        "one",
        (1, 1),
        1,
    ),
}


def side(name: str, at: tuple[float, float]) -> Layer:
    """A side dish at a place of the plate."""
    piece, layout, count, spread = SIDES[name]
    turn = 1.2 if layout == "row" else None
    return Layer(piece, layout, count, spread, at, turn)


# Three dishes by hand


def pizza(rng) -> Layers:
    """A whole pizza, one with a slice missing, a half, or slices."""
    browned = pick(rng, ["9a5a24", "7d4319", "b0722f"])
    crust = plain(
        pick(rng, ["e3b878", "d9a55e", "ecc990"]), browned, texture="spots",
        cell=(0.09, 0.09), bevel=0.1, bump=0.8, rim=browned, rim_width=0.02,
    )  # fmt: skip
    sauce = plain(pick(rng, ["b5301a", "c4411f", "9c2a18"]), "d86a3a", gloss=0.2)
    cheese, spots = pick(
        rng,
        [("f3d37c", "e0963c"), ("f6e3b0", "d99a4a"), ("efc15a", "cf7a2c"),
         ("f5e9cf", "c9a05a"), ("a9b858", "6f8a34"), ("cf9a5c", "8f5a2c"),
         ("c44f30", "9a3420")],
    )  # fmt: skip
    melted = plain(cheese, spots, cell=(0.11, 0.11), bevel=0.03, bump=1.1, gloss=0.25)
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

    def on_top(scale, below):  # slices of two sizes have their tips in one place
        back = radius * (below - scale) / 2 if sliced else 0.0
        return {"layout": "one", "at": (-back, 0.0), "turn": 0.0}

    toppings = tuple(
        Layer(
            piece, "scatter", (low // 3 + 1, high // 3 + 1) if sliced else (low, high)
        )
        for piece, low, high in pick(rng, PIZZA_TOPPINGS)
    )
    if form == "whole" and rng.random() < 0.5:
        toppings += (Layer(CUT, "spokes", (6, 8), 0.5),)
    top = disc_or_slice(0.82, melted, 0.012, toppings, lump=0.05)
    red = disc_or_slice(
        0.87, sauce, 0.005, (Layer(top, **on_top(0.82, 0.87)),), lump=0.03
    )
    whole = disc_or_slice(1.0, crust, 0.07, (Layer(red, **on_top(0.87, 1.0)),))
    if form == "slices":
        return (Layer(whole, "ring", (2, 4), 0.42),)
    return (Layer(whole, "one", at=tuple(rng.normal(0, 0.06, 2))),)


CUT = strip(0.72, 0.012, plain("8a4a20"), 0.0)
PEPPERONI = plain("b5402a", "d8704a", cell=(0.04, 0.04), rim="8a2a1a", gloss=0.3)
HAM = plain("e39a90", "f2c0b5", cell=(0.1, 0.05), rim="c9746a", bevel=0.02)
MOZZARELLA = plain("fbf6e6", "ead9ae", cell=(0.08, 0.08), bevel=0.07, gloss=0.3)
PEPPER = plain("4f8f35", "7db457", gloss=0.25, bevel=0.015)
RED_PEPPER = plain("c8321e", "e2603a", gloss=0.25, bevel=0.015)
PIZZA_TOPPINGS = [
    [(disc(0.2, PEPPERONI, 0.015, 0.01), 12, 22)],
    [(disc(0.26, MOZZARELLA, 0.025, 0.04), 5, 8), (leaf(0.2, 0.11, BASIL), 4, 8)],
    [(disc(0.22, PEPPERONI, 0.015, 0.01), 8, 12), (ring(0.11, 0.04, OLIVE), 8, 14)],
    [(disc(0.16, MUSHROOM, 0.02, taper=0.5, width=0.11), 10, 16),
     (strip(0.22, 0.09, HAM, 0.02, lump=0.02, bend=0.2), 6, 10)],
    [(ring(0.26, 0.03, PEPPER), 6, 9), (ring(0.24, 0.02, ONION, 0.015), 5, 9),
     (ring(0.1, 0.035, OLIVE), 6, 10)],
    [(disc(0.13, TOMATO, 0.03), 8, 14), (ROCKET_LEAF, 12, 22)],
    [(strip(0.3, 0.14, HAM, 0.02, lump=0.03, bend=0.3), 5, 8), (ROCKET_LEAF, 14, 24)],
    [(strip(0.2, 0.04, RED_PEPPER, 0.03, bend=0.4), 6, 10),
     (strip(0.2, 0.04, PEPPER, 0.03, bend=0.4), 6, 10),
     (disc(0.12, plain("8a5a3a", "6a3f26"), 0.04, 0.02), 8, 12)],
    [(disc(0.3, MOZZARELLA, 0.02, 0.05), 6, 9)],
]  # fmt: skip


def steak(rng) -> Layers:
    """A steak, whole or with its bone, or cut into slices; up to three side dishes."""
    seared, charred = pick(
        rng, [("7a4a2c", "4a2716"), ("8f5a38", "5a3220"), ("5f3520", "331a10"),
              ("a06a48", "6e4028")],
    )  # fmt: skip
    surface, edge = pick(
        rng, [("grilled", charred), ("grilled", "d9b58a"), ("fried", charred)]
    )
    look = {
        "grilled": {"texture": "lines", "cell": (0.16, 0.5), "bump": -0.7},
        "fried": {"texture": "blotch", "cell": (0.14, 0.09), "bump": 1.0},
    }[surface]
    meat = plain(
        seared, charred, rim=edge, rim_width=0.035, bevel=0.07, gloss=0.28, **look
    )
    cut = pick(rng, ["whole", "whole", "T-bone", "rib", "slices", "slices"])
    if cut == "slices":
        food, size = steak_in_slices(rng, meat, charred), 1.2
    else:
        food, size = steak_in_one(rng, meat, bone=cut == "T-bone")

    # The steak lies on one side of the plate, what comes with it on the other.
    names = list(rng.permutation(list(SIDES))[: rng.integers(0, 4)])
    start = rng.uniform(0, 2 * np.pi)
    angles = start + 1.1 * np.arange(len(names))
    layers = [
        side(name, (0.56 * np.cos(angle), 0.56 * np.sin(angle)))
        for name, angle in zip(names, angles, strict=True)
    ]
    opposite = start + 0.55 * (len(names) - 1) + np.pi
    far = 0.24 if names else 0.0
    at = np.array([far * np.cos(opposite), far * np.sin(opposite)])
    turn = opposite + np.pi / 2 + rng.normal(0, 0.3)
    if cut == "rib":
        rib = strip(0.55, 0.11, BONE, 0.07, bend=0.1, taper=0.2)
        tip = at + 0.62 * size * np.array([np.cos(turn), np.sin(turn)])
        layers.append(Layer(rib, "one", at=tuple(tip), turn=turn))
    layers.append(Layer(food, "one", at=tuple(at), turn=turn))
    return tuple(layers)


def steak_in_one(rng, meat: Material, bone: bool) -> tuple[Piece, float]:
    """An uncut steak with something on top, and its length."""
    size = rng.uniform(0.95, 1.25)
    outline = Shape(
        "disc", size, size * rng.uniform(0.55, 0.75), bend=rng.uniform(-0.15, 0.15),
        taper=rng.uniform(-0.3, 0.3), lump=0.06, lump_size=0.3,
    )  # fmt: skip
    layers = ()
    if bone:
        long, short = (
            strip(length, 0.06, BONE, 0.012, bend=0.1) for length in (0.75 * size, 0.28)
        )
        stem = Layer(short, "one", at=(0.1, 0.12), turn=1.5)
        layers = (Layer(long, "one", turn=0.1), stem)
    layers += pick(
        rng,
        [(), (Layer(ROSEMARY, "one"),), (Layer(BUTTER, "one", turn=0.3),),
         (Layer(disc(0.4, SAUCE, 0.008, 0.08), "one"),),
         (Layer(disc(0.5, BEARNAISE, 0.015, 0.1), "one"),),
         (Layer(disc(0.025, PEPPERCORN, 0.01), "scatter", (15, 30)),),
         (Layer(leaf(0.07, 0.03, BASIL), "scatter", (6, 14)),)],
    )  # fmt: skip
    return Piece(outline, meat, 0.11, layers), size


def steak_in_slices(rng, meat: Material, charred: str) -> Piece:
    """Slices in their juice, pink inside, perhaps with the end that is not yet cut."""
    pink, red = pick(
        rng, [("c8635a", "b23f3a"), ("b5483f", "8f2a28"), ("d18a78", "b8604f")]
    )
    inside = plain(
        pink,
        red,
        cell=(0.05, 0.14),
        rim=charred,
        rim_width=0.045,
        gloss=0.3,
        bevel=0.03,
    )
    one = Piece(Shape("slab", 0.17, 0.55, 0.07, lump=0.02), inside, 0.08)
    layers = (Layer(one, "row", (6, 9), 0.9, turn=0.12),)
    if rng.random() < 0.5:
        end = Piece(Shape("disc", 0.5, 0.56, lump=0.04), meat, 0.11)
        layers += (Layer(end, "one", at=(0.55, 0.0)),)
    return Piece(Shape("disc", 1.2, 0.62, lump=0.08), SAUCE, 0.0, layers)


PEPPERCORN = plain("2a2018")
BONE = plain("efe2c8", "d8c19a", cell=(0.2, 0.05), bevel=0.04)
BEARNAISE = plain("efcf78", "f7e3a8", bevel=0.04, gloss=0.25, bump=0.3)
BUTTER = strip(0.17, 0.15, plain("f7e08a", "fbeeb5", gloss=0.3), 0.05, corner=0.03)


def sushi(rng) -> Layers:
    """Rows of nigiri, maki, rolls with rice outside, or all of them on a platter."""
    kinds = pick(
        rng,
        [[nigiri, nigiri], [maki, maki], [uramaki, uramaki], [nigiri, maki],
         [nigiri, maki], [nigiri, maki, uramaki, gunkan]],
    )  # fmt: skip
    rows = len(kinds)
    step = 0.62 if kinds == [nigiri, nigiri] else 0.92 / rows
    layers = []
    for row, kind in enumerate(kinds):
        at = (-0.14, (row - (rows - 1) / 2) * step)
        count = (3, 5) if kind is nigiri else (4, 6)
        turn = 1.3 if kind is nigiri else rng.uniform(0, 3)
        layers.append(Layer(kind(rng), "row", count, 0.72, at, turn))
    if rng.random() < 0.7:
        x, y = 0.74, rng.uniform(-0.3, 0.1)
        wasabi = disc(0.16, WASABI, 0.07, 0.03)
        ginger = Piece(Shape("disc", 0.16, 0.12, lump=0.02), GINGER, 0.012)
        layers.append(Layer(wasabi, "one", at=(x, y)))
        layers.append(Layer(ginger, "pile", (6, 9), 0.14, (x - 0.04, y + 0.26)))
    return tuple(layers)


WASABI = plain("8fae4a", "a8c468", cell=(0.04, 0.04), bevel=0.06, bump=1.0)
GINGER = plain("f3c9b5", "fae3d6", cell=(0.08, 0.02), bevel=0.03, gloss=0.2)
SALMON = plain(
    "ee7a40", "fbd0ac", texture="lines", cell=(0.075, 0.3), amount=0.8, gloss=0.35,
    bevel=0.07, bump=0.15,
)  # fmt: skip
TUNA = plain("b8303a", "d4606a", cell=(0.07, 0.3), gloss=0.35, bevel=0.07)
SHRIMP = plain(
    "f6d9c8", "ee8a5a", texture="stripes", cell=(0.13, 0.4), gloss=0.3, bevel=0.07
)
OMELETTE = plain("f2c744", "f7dd80", cell=(0.2, 0.1), bevel=0.03, gloss=0.15)
EEL = plain("5a2f18", "8a5228", cell=(0.05, 0.1), gloss=0.5, bevel=0.06)
BREAM = plain("f4e6e0", "e6a8a0", cell=(0.1, 0.3), gloss=0.35, bevel=0.06)
AVOCADO = plain("9ab84a", "d8dc8a", bevel=0.02)
CUCUMBER = plain("b9d48a", "dcebb8", rim="4f7d35", rim_width=0.012, bevel=0.01)
ROE = plain("c83a10", "f8903a", texture="beads", cell=(0.04, 0.04), gloss=0.5, bump=1.6)
SESAME = plain("f2e6c4", "d9c49a", bevel=0.01)


def nigiri(rng) -> Piece:
    """A slice of fish on a finger of rice."""
    fish = pick(rng, [SALMON, SALMON, TUNA, SHRIMP, OMELETTE, EEL, BREAM])
    shape = Shape("slab", 0.6, 0.26, 0.1, bend=0.08, taper=-0.1, lump=0.008)
    band = ()
    if fish in (OMELETTE, EEL):
        shape = Shape("slab", 0.58, 0.25, 0.03)
        band = (Layer(strip(0.08, 0.27, NORI, 0.004, corner=0.0), "one", turn=0.0),)
    top = Piece(shape, fish, 0.05, band)
    rice = Shape("slab", 0.52, 0.2, 0.09, lump=0.012, lump_size=0.05)
    return Piece(rice, RICE, 0.13, (Layer(top, "one", turn=0.0),))


def filling(rng, size: float) -> Layers:
    """What is in the middle of a roll."""
    kinds = [SALMON, TUNA, CUCUMBER, AVOCADO, OMELETTE, CARROT]
    if rng.random() < 0.5:
        one = disc(size, replace(pick(rng, kinds), texture="blotch"), 0.005, 0.01)
        return (Layer(one, "one"),)
    first, second = (
        replace(kinds[i], texture="blotch") for i in rng.permutation(len(kinds))[:2]
    )
    return tuple(
        Layer(
            strip(size, size * 0.5, material, 0.005, corner=0.02),
            "one",
            at=at,
            turn=0.0,
        )
        for material, at in [(first, (0.0, -size * 0.28)), (second, (0.0, size * 0.28))]
    )


def maki(rng) -> Piece:
    """A slice of a roll: seaweed, rice, a filling."""
    size = rng.uniform(0.26, 0.36)
    rice = replace(RICE, cell=(0.035, 0.014), bevel=0.02)
    white = replace(disc(size * 0.88, rice, 0.003), layers=filling(rng, size * 0.36))
    return replace(
        disc(size, NORI, 0.2, 0.006), layers=(Layer(white, "one", turn=0.0),)
    )


def uramaki(rng) -> Piece:
    """A slice of a roll with the rice outside, in sesame or roe."""
    size = rng.uniform(0.34, 0.42)
    coat = pick(rng, [RICE, RICE, ROE])
    outside = replace(
        coat, rim=coat.second if coat is ROE else None, rim_width=0.02,
        cell=(0.035, 0.016), bevel=0.03, side=coat.second,
    )  # fmt: skip
    middle = disc(size * 0.5, replace(RICE, cell=(0.03, 0.012)), 0.001)
    middle = replace(middle, layers=filling(rng, size * 0.36))
    black = replace(disc(size * 0.62, NORI, 0.002), layers=(Layer(middle, "one"),))
    layers = (Layer(black, "one"),)
    if coat is RICE and rng.random() < 0.6:
        seed = leaf(0.035, 0.016, pick(rng, [SESAME, OLIVE]))
        layers += (Layer(seed, "ring", (9, 14), 0.82),)
    return Piece(Shape("disc", size, size, lump=0.01), outside, 0.2, layers)


def gunkan(rng) -> Piece:
    """Roe in a little boat of seaweed."""
    inside = Piece(Shape("disc", 0.36, 0.22), ROE, 0.03)
    return Piece(
        Shape("disc", 0.42, 0.27), NORI, 0.18, (Layer(inside, "one", turn=0.0),)
    )


RECIPES: dict[str, Callable[..., Layers]] = {
    "pizza": pizza,
    "steak": steak,
    "sushi": sushi,
}


def pick(rng, options):
    """One of the options, as it is (NumPy's `choice` would make an array of it)."""
    return options[int(rng.integers(len(options)))]


# Any number of other dishes


TEXTURES = ["blotch"] * 3 + ["spots", "marble"] * 2
TEXTURES += ["stripes", "lines", "rings", "grains", "beads"]


def random_color(rng) -> Color:
    """A colour as food has it, mostly: warm, green, pale or dark; now and then any."""
    hue, low, high, value = pick(
        rng,
        [(0.07, 0.3, 0.8, (0.3, 0.9)), (0.03, 0.4, 0.85, (0.35, 0.9)),
         (0.12, 0.2, 0.7, (0.7, 1.0)), (0.27, 0.3, 0.75, (0.25, 0.8)),
         (0.1, 0.0, 0.2, (0.75, 1.0)), (0.05, 0.1, 0.6, (0.08, 0.3)),
         (rng.random(), 0.1, 0.9, (0.2, 1.0))],
    )  # fmt: skip
    hue = (hue + rng.normal(0, 0.025)) % 1
    return colorsys.hsv_to_rgb(hue, rng.uniform(low, high), rng.uniform(*value))


def random_material(rng) -> Material:
    """Any material."""
    cell = np.exp(rng.uniform(np.log(0.02), np.log(0.3), 2))
    color = random_color(rng)
    near = tuple(np.clip(np.array(color) + rng.normal(0, 0.15, 3), 0, 1))
    return Material(
        color,
        near if rng.random() < 0.6 else random_color(rng),
        pick(rng, TEXTURES),
        (float(cell[0]), float(cell[0] if rng.random() < 0.5 else cell[1])),
        amount=rng.uniform(0.2, 1),
        rim=random_color(rng) if rng.random() < 0.4 else None,
        rim_width=rng.uniform(0.01, 0.08),
        bevel=rng.uniform(0.01, 0.15),
        bump=rng.uniform(-0.5, 1.5),
        gloss=rng.uniform(0, 0.5) * (rng.random() < 0.6),
    )


def random_shape(rng, size: float) -> Shape:
    """Any shape, about `size` long."""
    kind = pick(rng, ["disc", "disc", "slab", "slab", "leaf", "ring", "slice"])
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
    )


def random_toppings(rng, size: float, room: int) -> Layers:
    """Up to three layers of smaller pieces, at most about `room` of them."""
    layers = []
    for _ in range(rng.integers(0, 4) if room > 1 else 0):
        if rng.random() < 0.25:  # a cover: sauce, cheese, icing
            cover = random_shape(rng, size * rng.uniform(0.6, 0.9))
            piece = Piece(cover, random_material(rng), 0.01)
            layers.append(Layer(piece, "one", turn=0.0))
            continue
        part = size * np.exp(rng.uniform(np.log(0.06), np.log(0.6)))
        most = int(np.clip(0.5 * (size / part) ** 1.5, 1, room))
        layout = pick(
            rng, ["scatter", "scatter", "pile", "row", "ring", "spokes", "one"]
        )
        turn = rng.uniform(0, np.pi) if rng.random() < 0.4 else None
        piece = random_piece(rng, part, room // most // 4)
        count = (max(1, most // 2), most)
        layers.append(Layer(piece, layout, count, rng.uniform(0.4, 0.9), turn=turn))
    return tuple(layers)


def random_piece(rng, size: float, room: int = 24) -> Piece:
    """Any piece, about `size` long, with about `room` pieces on it at most."""
    shape = random_shape(rng, size)
    height = min(size * rng.uniform(0.02, 0.5), 0.3)
    layers = random_toppings(rng, size, room)
    if room > 4 and rng.random() < 0.2:  # a stack
        for _ in range(rng.integers(1, 4)):
            below = random_material(rng)
            layers = (Layer(Piece(shape, below, height, layers), "one", turn=0.0),)
    return Piece(shape, random_material(rng), height, layers)


def random_dish(seed: int) -> Layers:
    """The dish that belongs to a seed: the same pieces and materials every time."""
    rng = np.random.default_rng(seed)
    layers = []
    for _ in range(1 if rng.random() < 0.6 else 2):
        count = pick(rng, [(1, 1), (1, 1), (2, 3), (3, 6), (5, 12)])
        size = rng.uniform(0.8, 1.5) / np.sqrt(count[1]) ** 0.9
        layout = "one"
        if count[1] > 1:
            layout = pick(rng, ["scatter", "pile", "row", "grid", "ring"])
        turn = rng.uniform(0, np.pi) if rng.random() < 0.5 else None
        at = tuple(rng.normal(0, 0.05 + 0.2 * len(layers), 2))
        piece = random_piece(rng, size, 24 // count[1])
        layers.append(Layer(piece, layout, count, rng.uniform(0.5, 0.75), at, turn))
    if rng.random() < 0.3:
        around = rng.uniform(0, 2 * np.pi)
        name = pick(rng, list(SIDES))
        layers.append(side(name, (0.55 * np.cos(around), 0.55 * np.sin(around))))
    return tuple(layers)
