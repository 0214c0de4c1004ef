"""One file for a trained ViT: tensors, configuration, normalization, and notes."""

import json
import math
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
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


class Stored(NamedTuple):
    """What a file of `write_vit` holds beside its tensors."""

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
        ValueError: if the file does not end in .safetensors, the ViT has a stem, which
            no configuration describes, or a note is called "config".
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
    vit, stored = read_stored_vit(path)
    return vit, stored.notes


def read_classifier(path: str | Path) -> Classifier:
    """The classifier in a file of `python -m going_modular.train`, ready to use.

    Raises:
        FileNotFoundError, ValueError: see `read_vit`; also if the file has no class names.
    """
    vit, stored = read_stored_vit(path)
    name = Path(path).name
    class_names = class_names_in(stored.notes, name)
    if class_names is None:
        raise ValueError(
            f"{name} does not name its classes, so its outputs mean nothing: train a "
            f"classifier from it with `python -m going_modular.train --weights {name}`"
        )
    if len(class_names) != vit.config.num_classes:
        raise ValueError(
            f"{name} names {len(class_names)} classes for {vit.config.num_classes} outputs: "
            "it is damaged; train it again, or use a copy"
        )
    transform = evaluation_transform(vit.config.image_size, *stored.normalization)
    description = f"the ViT of {name}. Its accuracy was not measured here"
    return Classifier(vit, vit, transform, class_names, description)


def stored_class_names(path: str | Path) -> list[str] | None:
    """The class names in a file of weights; None if it has none, or others wrote it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged.
    """
    stored = stored_in(path)
    return class_names_in(stored.notes, Path(path).name) if stored else None


def stored_in(path: str | Path) -> Stored | None:
    """What `write_vit` stored in a file beside the tensors; None if others wrote it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged.
    """
    path = existing_file(path)
    if path.suffix != ".safetensors":
        return None  # `write_vit` writes no other kind
    try:
        with safe_open(path, framework="pt") as file:
            texts, names = file.metadata() or {}, file.keys()
    except (SafetensorError, OSError) as error:
        raise unreadable(path, error) from error
    # Others have metadata as well, perhaps even an entry "config"
    if "config" not in texts or "patch_embedding.projection.weight" not in names:
        return None
    try:
        entries = {name: json.loads(text) for name, text in texts.items()}
        config = parse_config(entries.pop("config"))
        normalization = parse_normalization(entries.pop("normalization", None))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"the metadata of {path.name} cannot be used: {error}. Use a copy of the file "
            "that is not damaged, or the version of this package that wrote it"
        ) from error
    return Stored(config, normalization, entries)


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


def read_stored_vit(path: str | Path) -> tuple[ViT, Stored]:
    """The ViT in a file of `write_vit`, and what is stored beside its tensors."""
    path = existing_file(path)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise unreadable(path, error) from error
    stored = stored_in(path)
    if stored is None:
        raise ValueError(
            f"{path.name} was not written by `python -m going_modular.train`, so it does not "
            "store the configuration of its ViT: `going_modular.vit.weights.load_vit` reads "
            "the weights of other projects"
        )
    if problems := differences(tensors, stored.config):
        raise ValueError(
            f"the tensors of {path.name} are not those of its configuration: "
            f"{'; '.join(problems)}. The file is damaged: train it again, or use a copy"
        )
    vit = ViT(stored.config)
    vit.load_state_dict(tensors)
    return vit.eval(), stored


def differences(tensors: Tensors, config: ViTConfig) -> list[str]:
    """What keeps tensors from being those of a ViT with this configuration."""
    if (layers := OURS.depth(tensors)) != config.num_layers:
        return [f"it has {layers} layers, not {config.num_layers}"]
    with torch.device("meta"):  # sizes without memory: those of a damaged file may be huge
        return mismatches(tensors, ViT(config).state_dict())


def existing_file(path: str | Path) -> Path:
    """The absolute path of a file of weights; raises `FileNotFoundError` if there is none."""
    path = project_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of weights at {path}")
    return path


def unreadable(path: Path, error: Exception) -> ValueError:
    """The error for a file that is not of the kind .safetensors, or is damaged."""
    return ValueError(
        f"{path.name} ({path.stat().st_size} bytes) cannot be read: {error}. Expected the "
        ".safetensors file that `python -m going_modular.train` wrote"
    )
