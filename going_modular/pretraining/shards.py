"""Drawings of random dishes, with the truth about every pixel, kept in shards.

A shard is a tar file of 1000 drawings in the layout of WebDataset: `0000042.jpg` is
drawing 42, and `0000042.png` says what each of its pixels shows. Nobody has to label
that, because the program that paints a pixel knows what it paints.
"""

import io
import os
import sys
import tarfile
from collections.abc import Iterator
from multiprocessing import Pool
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from going_modular.drawings.synthetic_food import NAMES, draw_scene
from going_modular.utils import atomic_write

SIZE = 144  # pixels of a drawing; the network sees crops of it
SHARD = 1000  # drawings
HEIGHTS = 400  # steps of a height, for one table unit
SEED = 7  # beside the number of a drawing; the number alone is the seed of its dish


class Drawing(NamedTuple):
    """A picture, and what its pixels show, as the bytes of two files.

    The truth is (SIZE, SIZE, 3) uint8: the material, an index of `NAMES`; the height above
    the table in steps of 1 / `HEIGHTS` table units, at most 255; and the role, an index of
    `painting.ROLES`.
    """

    jpeg: bytes
    png: bytes

    def image(self) -> Image.Image:
        """The picture."""
        return Image.open(io.BytesIO(self.jpeg))

    def truth(self) -> np.ndarray:
        """What its pixels show, (SIZE, SIZE, 3)."""
        return np.asarray(Image.open(io.BytesIO(self.png)))


def draw_numbered(number: int) -> Drawing:
    """The drawing of a number: the random dish of this seed, arranged once."""
    scene = draw_scene(number, np.random.default_rng([SEED, number]), SIZE)
    materials = np.array([NAMES.index(name) for name in scene.names], np.uint8)[scene.labels]
    heights = np.clip(scene.heights * HEIGHTS, 0, 255).astype(np.uint8)
    jpeg, png = io.BytesIO(), io.BytesIO()
    scene.develop().save(jpeg, "JPEG", quality=92)
    Image.fromarray(np.dstack([materials, heights, scene.roles])).save(png, "PNG")
    return Drawing(jpeg.getvalue(), png.getvalue())


def draw_shards(count: int, folder: Path) -> list[Path]:
    """The shards of the first `count` drawings, a number that 1000 divides.

    Shards that are there are not drawn again, so a call that was stopped goes on with the
    next call. All cores draw.

    Raises:
        ValueError: if 1000 does not divide `count`.
    """
    if count % SHARD:
        raise ValueError(f"drawings must be a multiple of {SHARD}, got {count}")
    paths = [folder / f"drawings_{start:07}.tar" for start in range(0, count, SHARD)]
    missing = [path for path in paths if not path.is_file()]
    if not missing:
        return paths
    with Pool(os.cpu_count()) as pool:
        for path in tqdm(missing, "drawing shards", file=sys.stdout):
            start = int(path.stem.rsplit("_")[-1])
            numbers = range(start, start + SHARD)
            drawings = pool.imap(draw_numbered, numbers, chunksize=16)
            with atomic_write(path) as unfinished, tarfile.open(unfinished, "w") as tar:
                for number, drawing in zip(numbers, drawings, strict=True):
                    add_file(tar, f"{number:07}.jpg", drawing.jpeg)
                    add_file(tar, f"{number:07}.png", drawing.png)
    return paths


def add_file(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Put a file into a tar file, the same bytes every time."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def read_shards(paths: list[Path]) -> list[Drawing]:
    """All drawings of some shards, in memory: about 14 KB each.

    Raises:
        ValueError: if a shard is damaged, or holds other drawings than this code makes.
    """
    drawings = [drawing for path in paths for drawing in read_shard(path)]
    first = draw_numbered(int(paths[0].stem.rsplit("_")[-1]))
    if not np.array_equal(drawings[0].truth(), first.truth()):
        raise ValueError(
            f"{paths[0].parent} does not hold the drawings that this code makes: another "
            "version of the code, of NumPy or of Pillow made them. Remove it, and the "
            "checkpoints of any training on these drawings, and start again"
        )
    return drawings


def read_shard(path: Path) -> Iterator[Drawing]:
    """The drawings of one shard.

    Raises:
        ValueError: if it is damaged.
    """
    try:
        with tarfile.open(path) as tar:
            files = {member.name: tar.extractfile(member) for member in tar}
            content = {name: file.read() for name, file in files.items() if file}
        names = sorted({name.partition(".")[0] for name in content})
        drawings = [Drawing(content[f"{name}.jpg"], content[f"{name}.png"]) for name in names]
    except (tarfile.TarError, EOFError, KeyError) as error:
        raise ValueError(f"{path} is damaged ({error}): remove it to draw it again") from error
    if len(drawings) != SHARD:
        raise ValueError(
            f"{path} holds {len(drawings)} drawings of {SHARD}: remove it to draw it again"
        )
    yield from drawings
