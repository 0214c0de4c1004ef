"""One file for a trained ViT: weights, configuration, and what else it should say."""

import json
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from going_modular.model_builder import ViT, ViTConfig
from going_modular.utils import atomic_write, project_path


def write_vit(vit: ViT, path: str | Path, **notes) -> Path:
    """Write a ViT's tensors, with its configuration, as a .safetensors file.

    Args:
        notes: what else the file should say of it, as values that JSON has.
    """
    path = project_path(path)
    tensors = {name: t.contiguous().cpu() for name, t in vit.state_dict().items()}
    metadata = {"config": asdict(vit.config), **notes}
    with atomic_write(path) as unfinished:
        save_file(tensors, unfinished, {k: json.dumps(v) for k, v in metadata.items()})
    return path


def notes_of(path: str | Path) -> dict:
    """What a .safetensors file says of itself, as `write_vit` wrote it."""
    with safe_open(project_path(path), framework="pt") as file:
        return {k: json.loads(v) for k, v in (file.metadata() or {}).items()}


def stored_config(path: str | Path) -> dict:
    """The fields of `ViTConfig` that a file tells; none if it is not of `write_vit`."""
    try:
        config = notes_of(path).get("config", {})
    except (SafetensorError, json.JSONDecodeError):  # of another kind, or of others
        return {}
    return config if isinstance(config, dict) else {}


def read_vit(path: str | Path) -> tuple[ViT, dict]:
    """The ViT of a file that `write_vit` wrote, in evaluation mode, and its notes.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, or of another kind.
    """
    path = project_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of weights at {path}")
    try:
        notes, tensors = notes_of(path), load_file(path)
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path.name} ({path.stat().st_size} bytes) cannot be read: {error}"
        ) from error
    if "config" not in notes:
        raise ValueError(
            f"{path.name} does not say its ViT's configuration: for weights of other "
            "projects see `weights.load_vit`"
        )
    vit = ViT(ViTConfig(**notes.pop("config")))
    vit.load_state_dict(tensors)
    return vit.eval(), notes
