"""The tensors in anybody's file or folder of weights.

The first bytes of a file say what it is; its ending does not matter. Reading runs no code
from it: of a pickle, PyTorch builds tensors, plain types and what `HARMLESS` lists.
"""

import argparse
import json
import os
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from going_modular.vit.names import Tensors
from going_modular.vit.published_names import count_known

NUMPY_SCALAR = np.float64(0).__reduce__()[0]  # which NumPy 1 and 2 call by other names
# Classes without code of their own that training scripts store beside the weights
HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("float32", "float64", "int64", "bool")),
    (NUMPY_SCALAR, "numpy.core.multiarray.scalar"),
    (NUMPY_SCALAR, "numpy._core.multiarray.scalar"),
]
# What a folder of Hugging Face's may call its weights, or the list of their parts
IN_A_FOLDER = (
    "model.safetensors",
    "pytorch_model.bin",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)
DEEPEST = 3  # levels of a checkpoint that are searched for tensors


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The tensors and the metadata of a folder, in one file or in several parts.

    Raises:
        FileNotFoundError: if there are no weights in it, or a part is missing.
        ValueError: see `read_file`; also if the list of parts is damaged.
    """
    for name in IN_A_FOLDER:
        if (folder / name).is_file():
            return read_file(folder / name)
        if (index := folder / f"{name}.index.json").is_file():
            tensors: dict[str, Any] = {}
            for part in parts_of(index):
                tensors |= read_file(folder / part)[0]
            return tensors, {}
    names = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
    raise FileNotFoundError(
        f"there are no weights in the folder {folder}: expected {' or '.join(IN_A_FOLDER)}, "
        f"whole or in parts with a list of them; there is {names}"
    )


def parts_of(index: Path) -> list[str]:
    """The file names in a list of parts, each once.

    Raises:
        ValueError: if it is no such list, or names a file outside its folder.
    """
    try:
        parts = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{index.name} is damaged: expected JSON with a weight_map ({error})"
        ) from error
    for part in parts:
        if not isinstance(part, str) or not part or Path(part).name != part:
            raise ValueError(f"{index.name} names what is no file of its folder: {part!r}")
    return parts


def read_file(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """What a file holds by name, and its metadata, which only .safetensors has.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is of another kind or damaged, or if reading it would run code.
    """
    if not os.path.isfile(path):  # unlike Path.is_file, it takes a name that is too long
        raise FileNotFoundError(f"there is no file of weights at {path}")
    size = path.stat().st_size
    try:
        kind = kind_of(path)
        if kind == "safetensors":
            with safe_open(path, framework="pt") as file:
                return {n: file.get_tensor(n) for n in file.keys()}, file.metadata() or {}
        if kind == "npz":
            with path.open("rb") as archive:  # np.load leaves a damaged file open
                return dict(np.load(archive)), {}
        content = read_pickle(path)
    except Exception as error:  # each format fails in ways of its own
        raise ValueError(
            f"{path.name} ({size} bytes) cannot be read as weights: {error}"
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(
            f"{path.name} holds a {type(content).__name__}, not tensors by name: save "
            "model.state_dict() instead"
        )
    return dict(content), {}


def kind_of(path: Path) -> str:
    """The format of a file, from its first bytes: "safetensors", "npz" or "pickle".

    Raises:
        ValueError: if it is none of these.
    """
    with path.open("rb") as file:
        start = file.read(16)
    if len(start) > 8 and start[8:9] == b"{":  # after the length of its JSON
        return "safetensors"
    if start.startswith(b"PK"):
        with zipfile.ZipFile(path) as archive:
            names, damaged = archive.namelist(), archive.testzip()
        if damaged:  # PyTorch does not compare checksums
            raise ValueError(f"its part {damaged} is damaged")
        if any(name.endswith("data.pkl") for name in names):
            return "pickle"
        if names and all(name.endswith(".npy") for name in names):
            return "npz"
        raise ValueError("it is a zip file, but holds no weights")
    if start.startswith(b"\x80"):  # torch.save before version 1.6
        return "pickle"
    what = f"it begins with {start[:8]!r}"
    if not start:
        what = "it is empty"
    elif start.startswith(b"\x89HDF"):
        what = "it is an HDF5 file, as Keras writes it"
    raise ValueError(f"{what}; expected what .safetensors, .npz, .pth, .pt or .bin files hold")


def read_pickle(path: Path) -> Any:
    """What `torch.save` wrote, without running any code from it.

    Raises:
        ValueError: if it needs a class that is not in `HARMLESS`. Nothing was run then.
    """
    try:
        # A path would let its ending decide how PyTorch reads it
        with torch.serialization.safe_globals(HARMLESS), path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        classes = ", ".join(unknown_classes(path)[:5])
        reason = f"reading it would run code, for {classes}"
        if not classes:
            reason = f"it is damaged, or {reason}objects that are not tensors"
        raise ValueError(
            f"{reason}. Nothing was run. Where the file was made, save the tensors alone: "
            "torch.save(model.state_dict(), ...)"
        ) from error


def unknown_classes(path: Path) -> list[str]:
    """The classes for which `read_pickle` refuses a file; empty if the file hides them."""
    try:
        with torch.serialization.safe_globals(HARMLESS):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except Exception:  # an old or a damaged file
        return []


def find_tensors(content: Mapping[str, Any]) -> tuple[Tensors, list[str]]:
    """The tensors of a ViT in a checkpoint, which may hold much else.

    Training scripts wrap them, as in {"model": ..., "epoch": ...}, and put the same
    words before each name, as "module." of `DistributedDataParallel`.

    Returns:
        The tensors by name, and a remark on each thing that was left out.

    Raises:
        ValueError: if there are none, or those of several models.
    """
    found = [
        (keys, names)
        for keys, names in nested_tensors(content)
        if count_known(names) or count_known(without_prefix(names)[0])
    ]
    if not found:
        names = ", ".join(map(str, list(content)[:10])) or "nothing"
        raise ValueError(f"it holds no tensors of a ViT that is known here, but {names}")
    if len(found) > 1:
        where = " and ".join(".".join(keys) or "no key" for keys, _ in found)
        raise ValueError(
            f"it holds several models, under {where}: save the one that you want alone"
        )
    ((keys, tensors),) = found
    remarks = [f"the tensors are those under {'.'.join(keys)}"] if keys else []
    shorter, prefix = without_prefix(tensors)
    if count_known(shorter) > count_known(tensors):
        tensors = shorter
        remarks.append(f'"{prefix}" before each name was left out')
    return {name: dense_tensor(name, values) for name, values in tensors.items()}, remarks


def dense_tensor(name: str, values: torch.Tensor | np.ndarray) -> torch.Tensor:
    """An array or a tensor as a tensor that holds all its numbers.

    Raises:
        ValueError: if it holds texts or dates, or is sparse, nested or without memory.
    """
    try:
        tensor = torch.as_tensor(values)
    except TypeError as error:
        raise ValueError(f"{name} holds {values.dtype}, not numbers") from error
    if tensor.is_nested or tensor.is_meta or tensor.layout != torch.strided:
        raise ValueError(f"{name} is no dense tensor: it is sparse, nested or without memory")
    return tensor


def nested_tensors(
    content: Mapping[str, Any], keys: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Each mapping in a checkpoint that holds tensors by name, and the keys to it."""
    tensors = {
        name: value
        for name, value in content.items()
        if isinstance(name, str) and isinstance(value, torch.Tensor | np.ndarray)
    }
    if tensors:
        yield keys, tensors
    if len(keys) < DEEPEST:
        for key, value in content.items():
            if isinstance(key, str) and isinstance(value, Mapping):
                yield from nested_tensors(value, (*keys, key))


def without_prefix(tensors: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Tensors without the words that all their names begin with, and these words."""
    common = os.path.commonprefix(list(tensors))  # noqa: RUF071 (names are no paths)
    prefix = common[: common.rfind(".") + 1]
    return {name.removeprefix(prefix): value for name, value in tensors.items()}, prefix
