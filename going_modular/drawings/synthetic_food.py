"""Food drawn from numbers: three dishes like FoodVision Mini's, and as many others.

`pizza`, `steak` and `sushi` are written by hand (`dishes.py`); any integer is the seed
of another dish, so there are as many classes as one wants. That a network can learn to
see from drawn classes is the idea of Kataoka et al., *Pre-training without Natural
Images* (ACCV 2020, arXiv 2101.08515).
"""

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from going_modular.drawings.dishes import (
    RECIPES,
    ROCKET_LEAF,
    Layer,
    Piece,
    disc,
    lay,
    place,
    random_dish,
    ring,
    strip,
)
from going_modular.drawings.painting import TEXTURES, Material, Scene, Shape
from going_modular.drawings.pantry import MASH, PANTRY, SALAD, SAUCE, TOMATO, pick, plain
from going_modular.utils import atomic_write, project_path

# What a dish without a recipe may show, see `Scene.names`. `pretrain` numbers it by
# position.
NAMES = (
    "table",
    *TEXTURES,
    *PANTRY,
    "crockery",
    "board",
    "broth",
    "cloth",
    "glass",
    "drink",
    "steel",
    "chopstick",
)


def random_table(rng) -> Material:
    """Wood, cloth, stone, or a plain surface."""
    kind = pick(rng, ["wood", "wood", "cloth", "check", "stone", "plain"])
    color, second = pick(
        rng,
        {
            "wood": [
                ("8a5a34", "5c3a20"),
                ("b98a5a", "8f6238"),
                ("4a3426", "2c1e16"),
                ("d8b98a", "b08d5c"),
                ("6e6055", "4a4038"),
            ],
            "cloth": [
                ("e8e4da", "cfc8ba"),
                ("7a8fa3", "5c7085"),
                ("a33b35", "7d2a26"),
                ("3d4a3a", "2b352a"),
                ("d9c7a3", "c2ab80"),
            ],
            "check": [("eeeae0", "b8433a"), ("efece4", "4f6f9a"), ("f0ead8", "6f8f5a")],
            "stone": [("d6d3ce", "a8a49e"), ("4b4d50", "2e3033"), ("e6e0d8", "c4b8a8")],
            "plain": [
                ("f2f0ec", "e4e0d8"),
                ("26282b", "33363a"),
                ("c98a4a", "b5763a"),
                ("5a7d78", "4a6b66"),
                ("b8b2a8", "a29b90"),
            ],
        }[kind],
    )
    texture, cell = {
        "wood": ("marble", (1.2, rng.uniform(0.05, 0.14))),
        "cloth": ("grains", (0.05, 0.02)),
        "check": ("check", (rng.uniform(0.15, 0.35),) * 2),
        "stone": ("marble", (0.5, 0.4)),
        "plain": ("blotch", (0.6, 0.6)),
    }[kind]
    return plain(color, second, texture=texture, cell=cell, bump=0.25)


def random_plate(rng, dish: str | int) -> Piece | None:
    """What a dish is served on: plate, bowl, board, slate, tray, or the bare table."""
    white = pick(rng, ["f4f2ee", "f4f2ee", "e6e2da", "d8dde0", "f0e6d2"])
    color = pick(rng, [white, white, white, "3a3d42", "7f98a8", "a8674a", "5c6b52"])
    glaze = plain(color, bevel=0.07, gloss=0.3, bump=0.05, cell=(0.5, 0.5), name="crockery")
    line = tuple(0.8 * part for part in glaze.color)
    well = replace(glaze, bevel=0.02, gloss=0.1, rim=line, rim_width=0.012)
    board = plain(
        *pick(rng, [("a8743f", "7d5029"), ("c99c63", "a67840"), ("5d3d26", "412816")]),
        texture="marble",
        cell=(0.9, 0.07),
        bevel=0.03,
        bump=0.3,
        name="board",
    )
    slate = plain("3b3e42", "2a2c30", cell=(0.3, 0.2), bevel=0.015, bump=0.6, name="board")
    size = rng.uniform(1.75, 2.0)
    deep = disc(size * 0.72, well, 0.0)
    plate = replace(disc(size, glaze, 0.05), layers=(Layer(deep, "one", turn=0.0),))
    long = Piece(Shape("slab", 2.0, 1.35, 0.1), pick(rng, [glaze, slate, board]), 0.06)
    flat = Piece(Shape("disc", size, size), board, 0.06)
    broth = plain(pick(rng, ["a86a2c", "d9b46a", "8f3a22", "e8dfc8"]), gloss=0.4, name="broth")
    bowl = disc(size, glaze, 0.25)
    bowl = replace(bowl, layers=(Layer(disc(size * 0.88, broth, 0.0), "one"),))
    options = {
        "pizza": [plate, plate, flat, flat, long, None],
        "steak": [plate, plate, plate, flat, long, None],
        "sushi": [plate, plate, flat, long, long, long],
    }.get(dish, [plate, plate, long, flat, bowl, None])
    return pick(rng, options)


STEEL = plain("c9ccd0", "8f949a", cell=(0.5, 0.02), bevel=0.03, gloss=0.5, name="steel")
NAPKINS = ["e8e2d4", "a83a34", "3f5f7d", "d8b04a", "6a8560"]


def clutter(scene: Scene, dish: str | int) -> None:
    """What else stands on the table, around the plate."""
    rng = scene.rng
    color = pick(rng, NAPKINS)
    cloth = plain(color, texture="grains", cell=(0.06, 0.02), bevel=0.02, name="cloth")
    napkin = Piece(Shape("slab", 0.75, 0.7, 0.03), cloth, 0.02)
    rim = ring(0.46, 0.03, plain("dfe6ea", gloss=0.6, name="glass"), 0.0)
    drink = pick(rng, ["7d2a2e", "d9a83a", "cfdfe4", "3a241a"])
    drink = disc(0.4, plain(drink, name="drink"), 0.0)
    glass = disc(0.46, plain("b8c4ca", gloss=0.5, name="glass"), 0.3)
    glass = replace(glass, layers=(Layer(drink, "one"), Layer(rim, "one")))
    bowl = disc(0.44, plain("f0eee8", gloss=0.3, name="crockery"), 0.12)
    content = pick(rng, [SAUCE, TOMATO, MASH, SALAD, SAUCE])
    bowl = replace(bowl, layers=(Layer(disc(0.36, content, 0.0), "one"),))
    knife = strip(1.3, 0.08, STEEL, 0.02, taper=0.3)
    wood = plain("a8703c", "7d4c24", cell=(0.5, 0.03), name="chopstick")
    stick = strip(1.7, 0.045, wood, 0.03)
    options = [napkin, glass, bowl, knife, ROCKET_LEAF]
    if dish == "sushi" or (not isinstance(dish, str) and rng.random() < 0.2):
        options = [stick, stick, bowl, glass]
    for _ in range(rng.integers(0, 4)):
        piece = pick(rng, options)
        angle = rng.uniform(0, 2 * np.pi)
        far = 1.02 + piece.shape.width / 2
        at = (far * np.cos(angle), far * np.sin(angle))
        along = angle + np.pi / 2 + rng.normal(0, 0.15)
        place(scene, piece, at, along)
        if piece is stick:
            near = (at[0] * 0.93, at[1] * 0.93)
            place(scene, piece, near, along + rng.normal(0, 0.05))


def draw(dish: str | int, rng, size: int | tuple[int, int] = 512) -> Image.Image:
    """One picture of a dish; see `draw_scene`."""
    return draw_scene(dish, rng, size).develop()


def draw_scene(dish: str | int, rng, size: int | tuple[int, int]) -> Scene:
    """A table with a dish: "pizza", "steak", "sushi" or the seed of another one.

    Args:
        rng: a NumPy generator; decides camera, light, table, plate, and how the dish
            is laid out this time.
        size: (width, height) in pixels, or the side of a square.

    Raises:
        ValueError: if the dish is a name without a recipe, or below 0.
    """
    if isinstance(dish, str) and dish not in RECIPES:
        raise ValueError(
            f"no dish is called {dish!r}: expected one of {', '.join(RECIPES)}, or an "
            "integer for a dish without a name"
        )
    size = (size, size) if isinstance(size, int) else size
    layers = RECIPES[dish](rng) if isinstance(dish, str) else random_dish(dish)
    # As people photograph a dish; nearer where patches are to tell what they show
    log_zoom = (-0.3, 0.4) if isinstance(dish, str) else (-0.1, 0.7)
    zoom = np.exp(rng.uniform(*log_zoom))
    scene = Scene(rng, size, zoom, tilt=rng.uniform(0, 52))
    scene.cover(random_table(rng), rng.uniform(0, np.pi))
    clutter(scene, dish)
    plate = random_plate(rng, dish)
    angle = rng.normal(0, 0.25) if dish == "sushi" else rng.uniform(0, 2 * np.pi)
    if plate is None:
        lay(scene, layers, Shape("disc", 1.9, 1.9), (0.0, 0.0), angle, 0.0)
    else:
        place(scene, replace(plate, layers=plate.layers + layers), (0.0, 0.0), angle)
    return scene


def drawn_once(path: Path, draw_one: Callable[[Any], np.ndarray], keys: Sequence) -> np.ndarray:
    """One picture for each key, (len(keys), ...) uint8, drawn by all cores and kept.

    Args:
        path: of the .npy file that keeps them; it takes its name once it is whole.
        draw_one: makes a picture from a key, the same one each time.

    Raises:
        ValueError: if the file of an earlier run holds other pictures, by their number
            and the last of them.
    """
    last = draw_one(keys[-1])
    if not path.is_file():
        shape = (len(keys), *last.shape)
        with atomic_write(path) as unfinished, Pool(os.cpu_count()) as pool:
            drawn = np.lib.format.open_memmap(unfinished, "w+", np.uint8, shape)
            jobs = pool.imap(draw_one, keys, chunksize=64)
            jobs = tqdm(jobs, "drawing", len(keys), leave=False, file=sys.stdout)
            for i, picture in enumerate(jobs):
                drawn[i] = picture
            drawn.flush()
            del drawn  # closes the file: Windows does not rename an open one
    drawn = np.load(path)
    if len(drawn) != len(keys) or not np.array_equal(drawn[-1], last):
        raise ValueError(
            f"{path} is not what this code draws: it is from other code, or from other "
            "versions of NumPy or Pillow. Remove it, and any checkpoint of a training "
            "on these pictures, and start again"
        )
    return drawn


# FoodVision Mini's twin

COUNTS = {
    "train": {"pizza": 78, "steak": 75, "sushi": 72},
    "test": {"pizza": 25, "steak": 19, "sushi": 31},
}
LONGER_SIDE = 512  # pixels, as in Food-101
CUSTOM, CUSTOM_NUMBER = "custom.jpg", 1025  # with seed 42, a handsome pizza
DRAWN_BY = "drawn_by.txt"


def make_food_dataset(root: str | Path, seed: int = 42) -> Path:
    """Draw FoodVision Mini's twin into a folder, unless it is there; return the folder.

    `train/` and `test/` hold as many pictures of pizza, steak and sushi as FoodVision
    Mini; `custom.jpg` is one more, a pizza. The folder takes its name only when it is
    whole, and is drawn again if it comes from another seed or from other code.
    """
    root = project_path(root)
    stamp = signature(seed)
    if is_drawn(root, stamp):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    names = [
        f"{part}/{dish}/{number:03}.jpg"
        for part, counts in COUNTS.items()
        for dish, count in counts.items()
        for number in range(count)
    ]
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=root.parent) as temp:
        new = Path(temp, root.name)
        for folder in {(new / name).parent for name in names}:
            folder.mkdir(parents=True, exist_ok=True)

        def draw_file(number: int, name: str) -> None:
            rng = np.random.default_rng([seed, number])
            picture = draw(Path(name).parent.name, rng, photo_size(rng))
            picture.save(new / name, quality=int(rng.integers(75, 96)))

        # NumPy and Pillow release Python's lock: threads draw side by side.
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            drawn = pool.map(draw_file, range(len(names)), names)
            list(tqdm(drawn, "drawing", len(names), leave=False, file=sys.stdout))
        rng = np.random.default_rng([seed, CUSTOM_NUMBER])
        draw("pizza", rng, (768, 1024)).save(new / CUSTOM, quality=90)
        (new / DRAWN_BY).write_text(stamp)
        if is_drawn(root, stamp):  # another process was faster
            return root
        if root.exists():
            root.rename(Path(temp, "old"))
        new.rename(root)
    return root


def photo_size(rng) -> tuple[int, int]:
    """Width and height as photos have them: often 4:3, some square, others between."""
    narrow = rng.integers(LONGER_SIDE * 9 // 16, LONGER_SIDE)
    sides = LONGER_SIDE, int(pick(rng, [LONGER_SIDE * 3 // 4, LONGER_SIDE, narrow]))
    return sides if rng.random() < 0.6 else sides[::-1]


def is_drawn(root: Path, stamp: str) -> bool:
    """True for a folder whose pictures come from this seed and this code."""
    mark = root / DRAWN_BY
    return mark.is_file() and mark.read_text() == stamp


def signature(seed: int) -> str:
    """What the pictures depend on: the seed, and the code that draws them."""
    modules = ("painting", "pantry", "dishes", "synthetic_food")
    code = b"".join(Path(__file__).with_name(f"{m}.py").read_bytes() for m in modules)
    return f"seed {seed}, code {hashlib.sha256(code).hexdigest()}\n"
