"""The materials of drawn food: ingredients in several looks, and random materials.

The recipes take their materials from here. So do the random dishes: tomatoes may lie on
a dish that has no name, as they may on any food.
"""

import colorsys
from dataclasses import replace

import numpy as np

from going_modular.drawings.painting import Color, Material, rgb
from going_modular.drawings.textures import FORMULA, TEXTURES


def plain(color: str, second: str | None = None, **look) -> Material:
    """Return a material from colors in hexadecimal digits."""
    rim = look.pop("rim", None)
    return Material(rgb(color), rgb(second or color), rim=rgb(rim) if rim else None, **look)


# All looks of each ingredient, by its name. Random dishes choose by position, so another
# entry or another order gives other dishes for the same seeds.
PANTRY: dict[str, list[Material]] = {}


def ingredient(name: str, color: str, second: str | None = None, **look) -> Material:
    """Put a material into the pantry, and return it."""
    material = plain(color, second, name=name, **look)
    PANTRY.setdefault(name, []).append(material)
    return material


BASIL = ingredient("basil", "3f7d2c", "6fae4a", cell=(0.05, 0.2), bevel=0.03, gloss=0.2)
SALAD = ingredient("salad", "6aa03a", "a9cc62", cell=(0.06, 0.06), bevel=0.05, bump=1.2)
ROCKET = ingredient("rocket", "3c6e2a", "5d9440", cell=(0.05, 0.1), bevel=0.02)
TOMATO = ingredient("tomato", "c3301f", "e8694a", cell=(0.05, 0.05), rim="a51d14", gloss=0.3)
OLIVE = ingredient("olive", "2c2530", "4a4250", gloss=0.35, bevel=0.02)
ONION = ingredient("onion", "b58ab5", "ecd9ea", texture="rings", cell=(0.03, 0.03), bump=0.3)
MUSHROOM = ingredient("mushroom", "d9c3a0", "b8966b", rim="7d5b3c", rim_width=0.015)
LEMON = ingredient("lemon", "f2d648", "f9efa8", texture="rings", cell=(0.07, 0.07), gloss=0.25)
FRIES = ingredient("potato", "ebb84b", "c98a2b", cell=(0.2, 0.04), bevel=0.02, gloss=0.1)
PEAS = ingredient("peas", "5d9a35", "86bd52", bevel=0.03, gloss=0.35)
CARROT = ingredient("carrot", "e07a28", "f0a050", bevel=0.03, gloss=0.2)
ASPARAGUS = ingredient("asparagus", "5c8a36", "85ad55", cell=(0.12, 0.03), gloss=0.15)
MASH = ingredient("mash", "f0dfae", "dcc384", cell=(0.08, 0.08), bevel=0.12, bump=1.5)
PEPPER = ingredient("pepper", "4f8f35", "7db457", gloss=0.25, bevel=0.015)
RED_PEPPER = ingredient("pepper", "c8321e", "e2603a", gloss=0.25, bevel=0.015)
SAUCE = ingredient("gravy", "3c1d10", "57301a", gloss=0.45, bevel=0.03, bump=0.1)
BEARNAISE = ingredient("bearnaise", "efcf78", "f7e3a8", bevel=0.04, gloss=0.25, bump=0.3)
PEPPERCORN = ingredient("peppercorn", "2a2018")
BUTTER = ingredient("butter", "f7e08a", "fbeeb5", gloss=0.3)
PEPPERONI = ingredient("sausage", "b5402a", "d8704a", cell=(0.04, 0.04), rim="8a2a1a", gloss=0.3)
HAM = ingredient("ham", "e39a90", "f2c0b5", cell=(0.1, 0.05), rim="c9746a", bevel=0.02)
BACON = ingredient("bacon", "8a5a3a", "6a3f26")
MOZZARELLA = ingredient(
    "fresh cheese", "fbf6e6", "ead9ae", cell=(0.08, 0.08), bevel=0.07, gloss=0.3
)
BONE = ingredient("bone", "efe2c8", "d8c19a", cell=(0.2, 0.05), bevel=0.04)
RICE = ingredient(
    "rice", "d8cdb4", "faf4e4", texture="grains", cell=(0.05, 0.018), bevel=0.06, bump=0.6
)
NORI = ingredient("seaweed", "16211c", "26352c", cell=(0.03, 0.03), bevel=0.01, gloss=0.12)
SALMON = ingredient(
    "salmon",
    "ee7a40",
    "fbd0ac",
    texture="lines",
    cell=(0.075, 0.3),
    amount=0.8,
    gloss=0.35,
    bevel=0.07,
    bump=0.15,
)
TUNA = ingredient("tuna", "b8303a", "d4606a", cell=(0.07, 0.3), gloss=0.35, bevel=0.07)
SHRIMP = ingredient(
    "shrimp", "f6d9c8", "ee8a5a", texture="stripes", cell=(0.13, 0.4), gloss=0.3, bevel=0.07
)
OMELETTE = ingredient("egg", "f2c744", "f7dd80", cell=(0.2, 0.1), bevel=0.03, gloss=0.15)
EEL = ingredient("eel", "5a2f18", "8a5228", cell=(0.05, 0.1), gloss=0.5, bevel=0.06)
BREAM = ingredient("bream", "f4e6e0", "e6a8a0", cell=(0.1, 0.3), gloss=0.35, bevel=0.06)
ROE = ingredient("roe", "c83a10", "f8903a", texture="beads", cell=(0.04, 0.04), gloss=0.5, bump=1.6)
AVOCADO = ingredient("avocado", "9ab84a", "d8dc8a", bevel=0.02)
CUCUMBER = ingredient("cucumber", "b9d48a", "dcebb8", rim="4f7d35", rim_width=0.012, bevel=0.01)
SESAME = ingredient("sesame", "f2e6c4", "d9c49a", bevel=0.01)
WASABI = ingredient("wasabi", "8fae4a", "a8c468", cell=(0.04, 0.04), bevel=0.06, bump=1.0)
GINGER = ingredient("ginger", "f3c9b5", "fae3d6", cell=(0.08, 0.02), bevel=0.03, gloss=0.2)
for first in ("e3b878", "d9a55e", "ecc990"):
    for browned in ("9a5a24", "7d4319", "b0722f"):
        ingredient(
            "bread",
            first,
            browned,
            texture="spots",
            cell=(0.09, 0.09),
            bevel=0.1,
            bump=0.8,
            rim=browned,
            rim_width=0.02,
        )
for first in ("b5301a", "c4411f", "9c2a18"):
    ingredient("tomato sauce", first, "d86a3a", gloss=0.2)
for first, browned in [
    ("f3d37c", "e0963c"),
    ("f6e3b0", "d99a4a"),
    ("efc15a", "cf7a2c"),
    ("f5e9cf", "c9a05a"),
    ("a9b858", "6f8a34"),
    ("cf9a5c", "8f5a2c"),
    ("c44f30", "9a3420"),
]:
    ingredient("melted cheese", first, browned, cell=(0.11, 0.11), bevel=0.03, bump=1.1, gloss=0.25)
seared = {"rim_width": 0.035, "bevel": 0.07, "gloss": 0.28}
grilled = {"texture": "lines", "cell": (0.16, 0.5), "bump": -0.7}
fried = {"texture": "blotch", "cell": (0.14, 0.09), "bump": 1.0}
for first, charred in [
    ("7a4a2c", "4a2716"),
    ("8f5a38", "5a3220"),
    ("5f3520", "331a10"),
    ("a06a48", "6e4028"),
]:
    ingredient("seared meat", first, charred, rim=charred, **grilled, **seared)
    ingredient("seared meat", first, charred, rim="d9b58a", **grilled, **seared)
    ingredient("seared meat", first, charred, rim=charred, **fried, **seared)
for first, red in [("c8635a", "b23f3a"), ("b5483f", "8f2a28"), ("d18a78", "b8604f")]:
    ingredient("pink meat", first, red, cell=(0.05, 0.14), gloss=0.3, bevel=0.03)


def pick(rng, options):
    """Return one of the options unchanged. NumPy's `choice` would turn it into an array."""
    return options[int(rng.integers(len(options)))]


def varied(rng, material: Material) -> Material:
    """Return the same ingredient in another look, because no two tomatoes are alike."""

    def shade(color):
        change = rng.normal(1, 0.06) * np.array(color) + rng.normal(0, 0.025, 3)
        return tuple(np.clip(change, 0, 1).tolist())

    size = float(np.exp(rng.normal(0, 0.3)))
    return replace(
        material,
        color=shade(material.color),
        second=shade(material.second),
        rim=material.rim and shade(material.rim),
        cell=(material.cell[0] * size, material.cell[1] * size),
        bump=material.bump * rng.uniform(0.6, 1.3),
        gloss=material.gloss * rng.uniform(0.5, 1.4),
    )


def random_color(rng) -> Color:
    """Return a color of food: mostly warm, green, pale or dark, and now and then any."""
    hue, low, high, value = pick(
        rng,
        [
            (0.07, 0.3, 0.8, (0.3, 0.9)),
            (0.03, 0.4, 0.85, (0.35, 0.9)),
            (0.12, 0.2, 0.7, (0.7, 1.0)),
            (0.27, 0.3, 0.75, (0.25, 0.8)),
            (0.1, 0.0, 0.2, (0.75, 1.0)),
            (0.05, 0.1, 0.6, (0.08, 0.3)),
            (rng.random(), 0.1, 0.9, (0.2, 1.0)),
        ],
    )
    hue = (hue + rng.normal(0, 0.025)) % 1
    return colorsys.hsv_to_rgb(hue, rng.uniform(low, high), rng.uniform(*value))


def random_material(rng) -> Material:
    """Return a random material, two times in three from the pantry, in many looks.

    Any other material is named after its texture.
    """
    polish = float(np.exp(rng.uniform(0, 2))) if rng.random() < 0.4 else 1.0
    if rng.random() < 0.67:
        return replace(other_light(rng, random_ingredient(rng)), polish=polish)
    color = random_color(rng)
    second = nearby(rng, color, 0.15) if rng.random() < 0.6 else random_color(rng)
    texture = FORMULA if rng.random() < 0.5 else pick(rng, TEXTURES)
    cell = np.exp(rng.uniform(np.log(0.02), np.log(0.3), 2))
    return Material(
        color,
        second,
        texture,
        (float(cell[0]), float(cell[0] if rng.random() < 0.5 else cell[1])),
        amount=rng.uniform(0.2, 1),
        rim=random_color(rng) if rng.random() < 0.4 else None,
        rim_width=rng.uniform(0.01, 0.08),
        bevel=rng.uniform(0.01, 0.15),
        bump=rng.uniform(-0.5, 1.5),
        gloss=rng.uniform(0, 0.7) * (rng.random() < 0.6),
        name=texture,
        formula=random_formula(rng),
        palette=random_palette(rng, color) if texture == FORMULA else (),
        polish=polish,
    )


def random_ingredient(rng) -> Material:
    """Return an ingredient, now and then with a fine structure that it never has."""
    material = varied(rng, pick(rng, PANTRY[pick(rng, list(PANTRY))]))
    if rng.random() < 0.15:
        material = replace(material, texture=FORMULA, formula=random_formula(rng))
    return material


def random_formula(rng) -> int:
    """Return the seed of a formula."""
    return int(rng.integers(1 << 30))


def random_palette(rng, first: Color) -> tuple[Color, ...]:
    """Return two to four colors in any order, most of them near the first."""
    others = [
        random_color(rng) if rng.random() < 0.35 else nearby(rng, first, 0.1, rng.uniform(0.4, 1.5))
        for _ in range(rng.integers(1, 4))
    ]
    colors = [first, *others]
    return tuple(colors[i] for i in rng.permutation(len(colors)))


def nearby(rng, color: Color, spread: float, brightness: float = 1.0) -> Color:
    """Return a color near another one."""
    red, green, blue = np.clip(np.array(color) * brightness + rng.normal(0, spread, 3), 0, 1)
    return float(red), float(green), float(blue)


def other_light(rng, material: Material) -> Material:
    """Return a material as it looks lighter or darker, and with another tint."""
    change = rng.normal(1, 0.1) * np.exp(rng.normal(0, 0.04, 3))

    def shade(color):
        return tuple(np.clip(np.array(color) * change, 0, 1).tolist())

    return replace(
        material,
        color=shade(material.color),
        second=shade(material.second),
        rim=material.rim and shade(material.rim),
    )
