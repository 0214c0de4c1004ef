"""What decides the features that a backbone makes of an image, besides the image.

A `repr` is not enough. Of two heads or four it may say nothing, torchvision's preset does
not show `antialias`, and `ToDtype` does not show its dtype. So we look at every attribute.
"""

import hashlib
import random
from collections.abc import Iterator
from enum import Enum
from functools import partial
from types import BuiltinFunctionType, FunctionType

import numpy as np
import PIL
import torch
import torchvision
from torch import nn

from going_modular.images.checksums import sha256_of
from going_modular.images.folders import PhotoFolder
from going_modular.training.checkpoints import random_state, set_random_state
from going_modular.utils import PACKAGE

KNOWN = ("torch", "torchvision", "going_modular")  # their versions are part of the key
LEFT_BEHIND = "coordinates"  # by the last images, in a ViT with rotary positions
RANDOM = (
    "the transform is random, and the cache would keep one draw for every epoch: give the "
    "transform that you evaluate with, or leave out cache"
)
PLAIN = (bool, int, float, str, bytes, Enum, torch.dtype, torch.device, type(None))


class NotKept(Exception):
    """The reason why features cannot be kept, in words."""


def code_digest() -> str:
    """A hash of all files of this package as they are now."""
    files = sorted(PACKAGE.rglob("*.py"))
    return hashlib.sha256("".join(map(sha256_of, files)).encode()).hexdigest()


IMPORTED = code_digest()  # at import: later, the files may be others than the code that runs


def key_of(backbone: nn.Module, photos: PhotoFolder, setting: list[str]) -> str:
    """A hash of weights, settings and code, for the name of a file.

    Raises:
        NotKept: if a part is not known completely.
    """
    if code_digest() != IMPORTED:
        raise NotKept("files of going_modular have changed since this program imported them")
    versions = [torch.__version__, torchvision.__version__, PIL.__version__, IMPORTED]
    digest = hashlib.sha256()
    for words in describe([backbone, photos.transform, photos.loader, setting, versions], {}):
        digest.update(words.encode() + b"\n")
    return digest.hexdigest()[:32]


def describe(value: object, seen: dict[int, int]) -> Iterator[str]:
    """Everything that a value holds, in words.

    Args:
        seen: a number for each object, by its id. A second time, the number is enough.

    Raises:
        NotKept: for what cannot be described. Code of others is that too: it may change,
            and its name stays.
        ValueError: for a class of torchvision's that draws random numbers, by its name.
            `RandomCrop` draws none for an image that has the right size already.
    """
    if isinstance(value, PLAIN):
        yield repr(value)
    elif isinstance(value, torch.Tensor):
        numbers = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
        yield f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(numbers).hexdigest()}"
    elif isinstance(value, list | tuple | set | dict):
        items = sorted(value, key=repr) if isinstance(value, set) else list(value)
        yield f"{type(value).__name__} {len(items)}"
        for item in items:
            yield from describe(item, seen)
            if isinstance(value, dict):
                yield from describe(value[item], seen)
    elif isinstance(value, partial):
        yield from describe(["partial", value.func, value.args, value.keywords], seen)
    elif isinstance(value, type | FunctionType | BuiltinFunctionType):
        if value.__name__.startswith("Random"):
            raise ValueError(RANDOM)
        parts = vars(value).values() if isinstance(value, type) else []
        methods = [part for part in parts if isinstance(part, FunctionType)]
        for code in (value, *methods):  # somebody may have given a class another method
            check_known(code)
        yield f"{value.__module__}.{value.__qualname__}"
    elif not hasattr(value, "__dict__"):
        raise NotKept(f"a {type(value).__name__} does not show what it holds")
    elif id(value) in seen:
        yield f"object {seen[id(value)]}"
    else:
        seen[id(value)] = len(seen)
        yield from describe(type(value), seen)
        attributes = {name: each for name, each in vars(value).items() if name != LEFT_BEHIND}
        yield from describe(attributes, seen)


def check_known(code: type | FunctionType | BuiltinFunctionType) -> None:
    """Raise `NotKept` for a class or a function whose changes no version shows."""
    if "<" in code.__qualname__ or str(code.__module__).split(".")[0] not in KNOWN:
        raise NotKept(
            f"{code.__qualname__} is not code of {', '.join(KNOWN[:-1])} or {KNOWN[-1]}, "
            "and a change in it would stay unnoticed"
        )


def is_random(photos: PhotoFolder, index: int) -> bool:
    """Whether the transform draws random numbers, or gives two tensors for one image.

    All generators end as they were.
    """
    state = random_state()
    expected = next_draws()
    set_random_state(state)
    try:
        image = photos[index][0]
        drew = next_draws() != expected
        return drew or not np.array_equal(image, photos[index][0])
    finally:
        set_random_state(state)


def next_draws() -> tuple[float, float, float]:
    """One number from each of the generators that a transform may use."""
    return random.random(), np.random.random(), torch.rand(1).item()
