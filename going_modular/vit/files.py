"""Files of weights: our own, which hold all that is needed to use a ViT, and those of others."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
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
from going_modular.vit.descendant_config import config_from
from going_modular.vit.descendants import build_vit
from going_modular.vit.formats import find_tensors, read_file, read_folder
from going_modular.vit.hints import hints_beside
from going_modular.vit.names import Naming, Tensors, mismatches
from going_modular.vit.published_names import OURS, naming_of


@dataclass(frozen=True)
class StoredWeights:
    """The content of a file of weights.

    - `normalization`: a file of others does not store it. Then it is that of a file
      beside it, or what most published weights under the same names expect.
    - `config` and `notes`: None and empty in a file of others.
    - `options`: fields of `ViTConfig` that a file beside the weights tells.
    - `remarks`: what the reader has left out or assumed, a sentence each.
    """

    file_name: str
    tensors: Tensors
    naming: Naming
    normalization: Normalization
    config: ViTConfig | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    @property
    def class_names(self) -> list[str] | None:
        """A name for each output, in order; None if the file has none."""
        return self.notes.get("class_names")


class Classifier(NamedTuple):
    """A model, with everything that is needed to use it."""

    model: nn.Module
    transform: EvaluationTransform
    class_names: list[str]


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
    check_class_names(notes)
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
    stored = read_weights(path)
    return vit_from(stored), stored.notes


def read_classifier(path: str | Path) -> Classifier:
    """The classifier in a file of `python -m going_modular.train`, ready to use.

    Raises:
        FileNotFoundError, ValueError: see `read_vit`; also if the file has no class names.
    """
    stored = read_weights(path)
    vit, name, class_names = vit_from(stored), stored.file_name, stored.class_names
    if class_names is None:
        raise ValueError(
            f"{name} does not name its classes, so its outputs mean nothing: train a "
            f"classifier from it with `python -m going_modular.train --weights {name}`"
        )
    if len(class_names) != vit.config.num_classes:
        raise ValueError(
            f"{name} names {len(class_names)} classes for {vit.config.num_classes} "
            "outputs, so it is damaged: train it again, or use an intact copy"
        )
    transform = evaluation_transform(vit.config.image_size, *stored.normalization)
    return Classifier(vit, transform, class_names)


def stored_class_names(path: str | Path) -> list[str] | None:
    """The class names in a file of weights; None if it has none, or others wrote it.

    Raises:
        FileNotFoundError, ValueError: see `read_weights`.
    """
    return read_weights(path).class_names


def read_weights(path: str | Path) -> StoredWeights:
    """The content of a file of weights, or of a folder of Hugging Face's.

    Its first bytes say what a file is: .safetensors, .npz, or what `torch.save` writes.
    Reading runs no code from it. Read it once and hand the content on: it may have more
    than a gigabyte. A relative path starts at the checkout, see `utils.project_path`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is of another kind, damaged, or does not hold a ViT's tensors.
    """
    path = project_path(path)
    content, metadata = read_folder(path) if path.is_dir() else read_file(path)
    # Others have metadata as well, and may have an entry of the same name
    if "config" in metadata and "patch_embedding.projection.weight" in content:
        return own_weights(path.name, content, metadata)
    try:
        tensors, remarks = find_tensors(content)
        naming = naming_of(tensors)
        hints = hints_beside(path, tensors)
    except ValueError as error:
        raise ValueError(f"{path.name} is not a ViT that can be read here: {error}") from error
    return StoredWeights(
        path.name,
        tensors,
        naming,
        hints.normalization or naming.normalization,
        options=hints.options,
        remarks=[*remarks, *hints.remarks],
    )


def own_weights(name: str, tensors: Tensors, metadata: dict[str, str]) -> StoredWeights:
    """The content of a file of `write_vit`; raises `ValueError` if it is damaged."""
    try:
        notes = {key: parse_json(key, text) for key, text in metadata.items()}
        config = parse_config(notes.pop("config"))
        normalization = parse_normalization(notes.pop("normalization", None))
        check_class_names(notes)
        check_tensors(tensors, config)
    except ValueError as error:
        raise ValueError(
            f"{name} is damaged, or a newer version of this package wrote it: {error}. "
            "Use an intact copy, or train it again"
        ) from error
    return StoredWeights(name, tensors, OURS, normalization, config, notes)


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
    return config_from(entry)


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
        if not is_triple or not all(map(is_number, values)):
            raise ValueError(f"expected a {name} of three numbers for colors, got {values!r}")
    normalization = Normalization(tuple(entry["mean"]), tuple(entry["std"]))
    if min(normalization.std) <= 0:
        raise ValueError(f"the std of colors must be > 0, got {entry['std']}")
    return normalization


def check_class_names(notes: dict[str, Any]) -> None:
    """Raise `ValueError` unless the note `class_names`, if any, is a list of names."""
    names = notes.get("class_names")
    if names is not None and not (
        isinstance(names, list)
        and all(isinstance(name, str) for name in names)
        and len(set(names)) == len(names)
    ):
        raise ValueError(f"expected a list of different class names, got {names!r}")


def check_tensors(tensors: Tensors, config: ViTConfig) -> None:
    """Raise `ValueError` unless tensors are those of a ViT with this configuration."""
    if (layers := OURS.depth(tensors)) != config.num_layers:
        raise ValueError(f"it holds {layers} layers, its configuration has {config.num_layers}")
    try:
        with torch.device("meta"):  # without memory: a damaged size may be huge
            expected = build_vit(config).state_dict()
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"PyTorch cannot make tensors for {config}") from error
    if problems := mismatches(tensors, expected):
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        first = "; ".join(problems[:3])
        raise ValueError(f"its tensors do not fit its configuration: {first}{more}")


def vit_from(stored: StoredWeights) -> ViT:
    """The ViT of a file that `write_vit` wrote, in evaluation mode.

    Raises:
        ValueError: if others wrote the file, or memory is too small.
    """
    if stored.config is None:
        raise ValueError(
            f"{stored.file_name} was not written by `python -m going_modular.train`, so it "
            "does not store the configuration of a ViT: `going_modular.vit.weights.load_vit` "
            "reads the weights of other projects"
        )
    try:
        vit = build_vit(stored.config)
    except (RuntimeError, MemoryError) as error:
        raise ValueError(
            f"there is not enough memory for the ViT of {stored.file_name}, {stored.config}"
        ) from error
    vit.load_state_dict(stored.tensors)
    return vit.eval()
