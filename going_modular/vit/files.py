"""One file for a trained ViT: tensors, configuration, normalization, and notes."""

import json
import math
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from going_modular.images.transforms import (
    IMAGENET,
    EvaluationTransform,
    Normalization,
    evaluation_transform,
)
from going_modular.model_builder import ViT, ViTConfig
from going_modular.utils import atomic_write, project_path
from going_modular.vit.config import is_number
from going_modular.vit.names import OURS, Tensors, mismatches

FOREIGN = (".npz", ".pth", ".pt", ".bin")  # `read_weights` reads them; none is ours


class Stored(NamedTuple):
    """The content of a file that `write_vit` wrote."""

    tensors: Tensors
    config: ViTConfig
    normalization: Normalization
    notes: dict[str, Any]


class Classifier(NamedTuple):
    """A model, with everything that is needed to use it and to describe it."""

    model: nn.Module
    vit: ViT  # the part of the model that has attention
    transform: EvaluationTransform
    class_names: list[str]
    description: str


def write_vit(
    vit: ViT, path: str | Path, *, normalization: Normalization = IMAGENET, **notes
) -> Path:
    """Write a ViT to a .safetensors file, with all that is needed to use it.

    Args:
        normalization: how colors were normalized in training.
        notes: anything else about the model, as values that JSON has. A classifier has
            `class_names`, one for each output, in order.

    Raises:
        ValueError: if the file does not end in .safetensors, or could not be read again:
            no configuration describes a stem, a note cannot be called "config", and class
            names and the normalization have to be those of `read_classifier`.
    """
    path = project_path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"a ViT is written to a file that ends in .safetensors, got {path.name}")
    if not isinstance(vit.stem, nn.Identity):
        raise ValueError("a ViT with a stem cannot be written: save its state_dict instead")
    if "config" in notes:
        raise ValueError('a note cannot be called "config": the ViT\'s own is stored there')
    metadata = {
        "config": asdict(vit.config),
        "normalization": {"mean": list(normalization.mean), "std": list(normalization.std)},
        **notes,
    }
    parse_normalization(metadata["normalization"])
    class_names_in(notes, path.name)
    texts = {name: json.dumps(value) for name, value in metadata.items()}
    tensors = {name: t.contiguous().cpu() for name, t in vit.state_dict().items()}
    with atomic_write(path) as unfinished:
        save_file(tensors, unfinished, texts)
    return path


def read_vit(path: str | Path) -> tuple[ViT, dict[str, Any]]:
    """The ViT in a file of `write_vit`, in evaluation mode, and its notes.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, or was not written by `write_vit`.
    """
    stored = read_own(path)
    return build_vit(stored, Path(path).name), stored.notes


def read_classifier(path: str | Path) -> Classifier:
    """The classifier in a file of `python -m going_modular.train`, ready to use.

    Raises:
        FileNotFoundError, ValueError: see `read_vit`; also if the file has no class names.
    """
    stored, name = read_own(path), Path(path).name
    class_names = class_names_in(stored.notes, name)
    if class_names is None:
        raise ValueError(
            f"{name} does not name its classes, so its outputs mean nothing: train a "
            f"classifier from it with `python -m going_modular.train --weights {name}`"
        )
    if len(class_names) != stored.config.num_classes:
        raise ValueError(
            f"{name} names {len(class_names)} classes for {stored.config.num_classes} "
            "outputs, so it is damaged: train it again, or use an intact copy"
        )
    vit = build_vit(stored, name)
    transform = evaluation_transform(stored.config.image_size, *stored.normalization)
    description = f"the ViT of {name}. Its accuracy was not measured here"
    return Classifier(vit, vit, transform, class_names, description)


def stored_class_names(path: str | Path) -> list[str] | None:
    """The class names in a file of weights; None if it has none, or others wrote it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged.
    """
    stored = read_stored(path)
    return class_names_in(stored.notes, Path(path).name) if stored else None


def read_own(path: str | Path) -> Stored:
    """`read_stored`; raises `ValueError` for a file that others wrote."""
    stored = read_stored(path)
    if stored is None:
        raise ValueError(
            f"{Path(path).name} was not written by `python -m going_modular.train`, so it "
            "does not store the configuration of a ViT: `going_modular.vit.weights.load_vit` "
            "reads the weights of other projects"
        )
    return stored


def read_stored(path: str | Path) -> Stored | None:
    """The content of a file that `write_vit` wrote; None for a file that others wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged.
    """
    path = existing_file(path)
    if path.suffix in FOREIGN:
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path.name} ({path.stat().st_size} bytes) cannot be read: {error}. Expected "
            "the .safetensors file that `python -m going_modular.train` wrote"
        ) from error
    # Others have metadata as well, and may have an entry of the same name
    if "config" not in metadata or "patch_embedding.projection.weight" not in tensors:
        return None
    try:
        entries = {name: parse_json(name, text) for name, text in metadata.items()}
        config = parse_config(entries.pop("config"))
        normalization = parse_normalization(entries.pop("normalization", None))
        check_tensors(tensors, config)
    except ValueError as error:
        raise ValueError(
            f"{path.name} is damaged, or a newer version of this package wrote it: {error}. "
            "Use an intact copy, or train it again"
        ) from error
    return Stored(tensors, config, normalization, entries)


def parse_json(name: str, text: str) -> Any:
    """An entry of the metadata; raises `ValueError` if it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its entry {name!r} is not JSON ({error})") from error


def parse_config(entry: Any) -> ViTConfig:
    """A configuration from what JSON made of it; raises `ValueError` if it is none."""
    if not isinstance(entry, dict):
        raise ValueError(f"expected a configuration as a JSON object, got {entry!r}")
    if unknown := entry.keys() - {field.name for field in fields(ViTConfig)}:
        raise ValueError(f"its configuration has unknown fields: {', '.join(sorted(unknown))}")
    return ViTConfig(**entry)


def parse_normalization(entry: Any) -> Normalization:
    """A normalization from what JSON made of it; raises `ValueError` if it is none.

    Files that are older than this entry were trained with ImageNet's numbers.
    """
    if entry is None:
        return IMAGENET
    if not isinstance(entry, dict) or entry.keys() != {"mean", "std"}:
        raise ValueError(f"expected a normalization with mean and std, got {entry!r}")
    for name, values in entry.items():
        is_triple = isinstance(values, list) and len(values) == 3
        if not is_triple or not all(is_number(v) and math.isfinite(v) for v in values):
            raise ValueError(f"expected a {name} of three numbers for colors, got {values!r}")
    normalization = Normalization(tuple(entry["mean"]), tuple(entry["std"]))
    if min(normalization.std) <= 0:
        raise ValueError(f"the std of colors must be > 0, got {entry['std']}")
    return normalization


def class_names_in(notes: dict[str, Any], file_name: str) -> list[str] | None:
    """The note `class_names`; raises `ValueError` unless it is a list of names."""
    names = notes.get("class_names")
    if names is not None and not (
        isinstance(names, list)
        and all(isinstance(name, str) for name in names)
        and len(set(names)) == len(names)
    ):
        raise ValueError(f"expected a list of different class names in {file_name}, got {names!r}")
    return names


def check_tensors(tensors: Tensors, config: ViTConfig) -> None:
    """Raise `ValueError` unless tensors are those of a ViT with this configuration."""
    if (layers := OURS.depth(tensors)) != config.num_layers:
        raise ValueError(f"it holds {layers} layers, its configuration has {config.num_layers}")
    try:
        with torch.device("meta"):  # without memory: a damaged size may be huge
            expected = ViT(config).state_dict()
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"PyTorch cannot make tensors for {config}") from error
    if problems := mismatches(tensors, expected):
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        first = "; ".join(problems[:3])
        raise ValueError(f"its tensors do not fit its configuration: {first}{more}")


def build_vit(stored: Stored, name: str) -> ViT:
    """The ViT of a file, in evaluation mode; raises `ValueError` if memory is too small."""
    try:
        vit = ViT(stored.config)
    except (RuntimeError, MemoryError) as error:
        raise ValueError(
            f"there is not enough memory for the ViT of {name}, {stored.config}"
        ) from error
    vit.load_state_dict(stored.tensors)
    return vit.eval()


def existing_file(path: str | Path) -> Path:
    """The absolute path of a file of weights; raises `FileNotFoundError` if there is none."""
    path = project_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of weights at {path}")
    return path
