"""Pictures of food drawn by a program: the three dishes of FoodVision Mini, and more.

Pizza, steak and sushi are written by hand in `dishes.py`. Every integer is the seed of
another dish, so there are as many classes as you want. Kataoka et al. showed that a
network can learn to see from drawn classes: *Pre-training without Natural Images* (ACCV
2020, arXiv 2101.08515).
"""

import ast
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
    place,
    place_layers,
    random_dish,
    random_piece,
    ring,
    strip,
)
from going_modular.drawings.painting import Material, Scene, Shape
from going_modular.drawings.pantry import (
    MASH,
    PANTRY,
    SALAD,
    SAUCE,
    TOMATO,
    pick,
    plain,
    random_material,
)
from going_modular.drawings.textures import FORMULA, TEXTURES
from going_modular.images.checksums import differences, list_checksums, move_aside
from going_modular.utils import atomic_write, project_path

# Everything that a random dish may show; see `Scene.names`. Pretraining numbers these
# names by position, so a new order makes another task.
NAMES = (
    "table",
    FORMULA,
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
    """Return a table of wood, cloth, stone, or one color."""
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
    """Return a plate, bowl, board, slate or tray for a dish, or None for the bare table."""
    white = pick(rng, ["f4f2ee", "f4f2ee", "e6e2da", "d8dde0", "f0e6d2"])
    color = pick(rng, [white, white, white, "3a3d42", "7f98a8", "a8674a", "5c6b52"])
    glaze = plain(color, bevel=0.07, gloss=0.3, bump=0.05, cell=(0.5, 0.5), name="crockery")
    red, green, blue = glaze.color
    line = (0.8 * red, 0.8 * green, 0.8 * blue)
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
    options: dict[str | int, list[Piece | None]] = {
        "pizza": [plate, plate, flat, flat, long, None],
        "steak": [plate, plate, plate, flat, long, None],
        "sushi": [plate, plate, flat, long, long, long],
    }
    return pick(rng, options.get(dish, [plate, plate, long, flat, bowl, None]))


STEEL = plain("c9ccd0", "8f949a", cell=(0.5, 0.02), bevel=0.03, gloss=0.5, name="steel")
NAPKINS = ["e8e2d4", "a83a34", "3f5f7d", "d8b04a", "6a8560"]


def place_clutter(scene: Scene, dish: str | int) -> None:
    """Put up to three things on the table around the plate: a napkin, a glass, a knife."""
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
        x, y = far * np.cos(angle), far * np.sin(angle)
        along = angle + np.pi / 2 + rng.normal(0, 0.15)
        place(scene, piece, (x, y), along)
        if piece is stick:
            near = (x * 0.93, y * 0.93)
            place(scene, piece, near, along + rng.normal(0, 0.05))


def place_anything(scene: Scene) -> None:
    """Put one to four random pieces around the middle of the table."""
    rng = scene.rng
    for _ in range(rng.integers(1, 5)):
        far, way = rng.uniform(0.7, 1.7), rng.uniform(0, 2 * np.pi)
        piece = random_piece(rng, rng.uniform(0.2, 1.0), room=6)
        place(scene, piece, (far * np.cos(way), far * np.sin(way)), rng.uniform(0, 2 * np.pi))


def draw(dish: str | int, rng, size: int | tuple[int, int] = 512) -> Image.Image:
    """Return a picture of a dish; see `draw_scene`."""
    return draw_scene(dish, rng, size).develop()


def draw_scene(dish: str | int, rng, size: int | tuple[int, int]) -> Scene:
    """Return a table with a dish.

    Args:
        dish: "pizza", "steak", "sushi", or the seed of a random dish.
        rng: NumPy generator that decides the camera, the light, the table, the plate and
            how the dish lies on it this time.
        size: (width, height) in pixels, or the side of a square.

    Raises:
        ValueError: if the dish is a name without a recipe, or a negative number.
    """
    if isinstance(dish, str) and dish not in RECIPES:
        raise ValueError(
            f"there is no recipe for {dish!r}: expected one of {', '.join(RECIPES)}, or an "
            "integer for a random dish"
        )
    size = (size, size) if isinstance(size, int) else size
    layers = RECIPES[dish](rng) if isinstance(dish, str) else random_dish(dish)
    # Dishes with a name look like photos. Random dishes teach how to see: they are nearer
    # and farther, now and then on a table of anything, and among things that are no food.
    is_random = not isinstance(dish, str)
    zoom = np.exp(rng.uniform(-0.3, 0.9) if is_random else rng.uniform(-0.3, 0.4))
    scene = Scene(rng, size, zoom, tilt=rng.uniform(0, 52))
    table = random_table(rng)
    if is_random and rng.random() < 0.2:
        table = replace(random_material(rng), name="table", rim=None)
    scene.cover(table, rng.uniform(0, np.pi))
    scene.role = "around"
    place_clutter(scene, dish)
    if is_random and rng.random() < 0.3:
        place_anything(scene)
    plate = random_plate(rng, dish)
    angle = rng.normal(0, 0.25) if dish == "sushi" else rng.uniform(0, 2 * np.pi)
    below, height = Shape("disc", 1.9, 1.9), 0.0  # the bare table
    if plate is not None:
        below, height = plate.shape, plate.height
        scene.role = "plate"
        place(scene, plate, (0.0, 0.0), angle)
    scene.role = "dish"
    place_layers(scene, layers, below, (0.0, 0.0), angle, height)
    return scene


def drawn_once(path: Path, draw_one: Callable[[Any], np.ndarray], keys: Sequence) -> np.ndarray:
    """Return one picture for each key, (len(keys), ...) uint8.

    The first call draws them on all cores and keeps them in a file.

    Args:
        path: the .npy file that keeps the pictures. It appears only when it is complete.
        draw_one: returns the picture of a key, the same picture each time.

    Raises:
        ValueError: if the file holds other pictures. We compare their number and the
            last picture.
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
            del drawn  # closes the file, because Windows cannot rename an open one
    drawn = np.load(path)
    if len(drawn) != len(keys) or not np.array_equal(drawn[-1], last):
        raise ValueError(
            f"{path} does not hold the pictures that this code draws: another version of the "
            "code, of NumPy or of Pillow made it. Remove it, and the checkpoints of any "
            "training on these pictures, and start again"
        )
    return drawn


# The drawn twin of FoodVision Mini

COUNTS = {
    "train": {"pizza": 78, "steak": 75, "sushi": 72},
    "test": {"pizza": 25, "steak": 19, "sushi": 31},
}
LONGER_SIDE = 512  # pixels, as in Food-101
CUSTOM, CUSTOM_NUMBER = "custom.jpg", 1025  # with seed 42, a handsome pizza
# The list of all drawings, by their SHA-256. Its first line is the signature.
CHECKSUMS = ".drawings.sha256"


def make_food_dataset(root: str | Path, seed: int = 42) -> Path:
    """Draw the twin of FoodVision Mini into a folder, unless it is there; return the folder.

    `train/` and `test/` hold as many pictures of pizza, steak and sushi as FoodVision
    Mini. `custom.jpg` is one more pizza. The folder appears only when it is complete.

    A folder that is there is used if it holds exactly the listed drawings, made by this
    seed and this code. Otherwise it is drawn again, and a line says why. A folder with
    missing, changed or extra files is kept beside the new one.
    """
    root = project_path(root)
    fault = fault_of_drawings(root, seed)
    if not fault:
        return root
    if root.exists():
        print(f"{root} is drawn again: {fault}.")
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=root.parent) as temporary:
        new = Path(temporary, root.name)
        draw_food(new, seed)
        (new / CHECKSUMS).write_text(
            f"# {signature(seed)}\n{list_checksums(new)}", encoding="utf-8"
        )
        if not fault_of_drawings(root, seed):  # another process has been faster
            return root
        if changed_drawings(root):
            move_aside(root)
        elif root.exists():
            root.rename(Path(temporary, "old"))
        new.rename(root)
    return root


def draw_food(folder: Path, seed: int) -> None:
    """Draw `train/`, `test/` and `custom.jpg` into a folder."""
    names = file_names()
    for parent in {(folder / name).parent for name in names}:
        parent.mkdir(parents=True, exist_ok=True)

    def draw_file(name: str) -> None:
        scene = food_scene(name, seed)
        scene.develop().save(folder / name, quality=int(scene.rng.integers(75, 96)))

    # NumPy and Pillow release Python's lock, so threads draw at the same time.
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        drawn = pool.map(draw_file, names)
        list(tqdm(drawn, "drawing", len(names), leave=False, file=sys.stdout))
    rng = np.random.default_rng([seed, CUSTOM_NUMBER])
    draw("pizza", rng, (768, 1024)).save(folder / CUSTOM, quality=90)


def file_names() -> list[str]:
    """Return the names of the twin's 300 files, as "train/pizza/000.jpg"."""
    return [
        f"{part}/{dish}/{number:03}.jpg"
        for part, counts in COUNTS.items()
        for dish, count in counts.items()
        for number in range(count)
    ]


def food_scene(name: str, seed: int = 42) -> Scene:
    """Return the scene of one of the twin's files. It knows what each pixel shows."""
    rng = np.random.default_rng([seed, file_names().index(name)])
    return draw_scene(Path(name).parent.name, rng, photo_size(rng))


def photo_size(rng) -> tuple[int, int]:
    """Return the width and height of a photo: often 4:3, sometimes square or between."""
    narrow = rng.integers(LONGER_SIDE * 9 // 16, LONGER_SIDE)
    sides = LONGER_SIDE, int(pick(rng, [LONGER_SIDE * 3 // 4, LONGER_SIDE, narrow]))
    return sides if rng.random() < 0.6 else sides[::-1]


def fault_of_drawings(root: Path, seed: int) -> str:
    """Say in words why a folder does not hold the drawings of this seed; "" if it does."""
    if changed := changed_drawings(root):
        return f"{len(changed)} files are missing, changed or extra, the first is {changed[0]}"
    first_line = (root / CHECKSUMS).read_text(encoding="utf-8").partition("\n")[0]
    if first_line != f"# {signature(seed)}":
        return "another seed or other code has drawn it"
    return ""


def changed_drawings(root: Path) -> list[str]:
    """Name the files of a folder that are missing, changed, or not in its own list."""
    if not (root / CHECKSUMS).is_file():
        return [CHECKSUMS]
    return differences(root, root / CHECKSUMS)


def signature(seed: int) -> str:
    """Return in digits what the drawings depend on: the seed, and the code that draws."""
    modules = ("textures", "painting", "pantry", "dishes", "synthetic_food")
    files = (Path(__file__).with_name(f"{module}.py") for module in modules)
    code = "".join(drawing_code(file.read_text(encoding="utf-8")) for file in files)
    return f"seed {seed}, code {hashlib.sha256(code.encode()).hexdigest()}"


def drawing_code(source: str) -> str:
    """Return a module's code without imports, docstrings and comments: they draw nothing."""
    tree = ast.parse(source)
    tree.body = [node for node in tree.body if not isinstance(node, ast.Import | ast.ImportFrom)]
    for node in ast.walk(tree):
        kinds = ast.Module | ast.ClassDef | ast.FunctionDef
        if isinstance(node, kinds) and ast.get_docstring(node) is not None:
            del node.body[0]
    return structure_of(tree)


def structure_of(node: object) -> str:
    """Return a syntax tree as text, the same in every version of Python.

    `ast.dump` shows fields that are empty in some versions only.
    """
    if isinstance(node, list):
        return f"[{', '.join(map(structure_of, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = ((name, value) for name, value in ast.iter_fields(node) if value not in (None, []))
    inner = ", ".join(f"{name}={structure_of(value)}" for name, value in fields)
    return f"{type(node).__name__}({inner})"
