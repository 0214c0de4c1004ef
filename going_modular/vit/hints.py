"""What the files beside weights tell that no tensor shows.

Hugging Face's `config.json` tells heads, epsilon, GELU and size, and its
`preprocessor_config.json` the colors. timm's `config.json` tells the name of the
architecture, what the head reads, the size of images and the colors.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from going_modular.images.transforms import Normalization
from going_modular.vit.config import is_number
from going_modular.vit.names import Tensors

# Hugging Face's names for GELU, and ours
GELUS = {
    "gelu": "exact",
    "gelu_python": "exact",
    "gelu_new": "tanh",
    "gelu_fast": "tanh",
    "gelu_pytorch_tanh": "tanh",
}
# timm's names for what the head reads, and ours
POOLS = {"avg": "mean", "token": "class_token"}
# What config.json calls them, and the field of `ViTConfig`
FIELDS = {
    "num_attention_heads": "num_heads",
    "layer_norm_eps": "layer_norm_eps",
    "image_size": "image_size",
}


@dataclass(frozen=True)
class Hints:
    """What was found: fields of `ViTConfig`, colors, and a sentence on each file."""

    options: dict[str, Any] = field(default_factory=dict)
    normalization: Normalization | None = None
    remarks: list[str] = field(default_factory=list)


def hints_beside(path: Path, tensors: Tensors) -> Hints:
    """What config.json and preprocessor_config.json say of weights in their folder.

    A config.json of another width is of another model. A remark says that it does not count.

    Raises:
        ValueError: if such a file is damaged, or tells of a model that is no plain ViT.
    """
    folder = path if path.is_dir() else path.parent
    config = read_json(folder / "config.json")
    width = config.get("hidden_size", config.get("num_features"))
    if width is None:  # of no model
        return Hints()
    if not any(width in tuple(tensor.shape) for tensor in tensors.values()):
        return Hints(remarks=[f"config.json tells of another model, of width {width}: not used"])
    options = {ours: config[theirs] for theirs, ours in FIELDS.items() if theirs in config}
    if isinstance(options.get("image_size"), list):
        options["image_size"] = tuple(options["image_size"])
    if "hidden_act" in config:
        if str(config["hidden_act"]) not in GELUS:
            raise ValueError(f"its config.json tells of {config['hidden_act']!r}, not of a GELU")
        options["gelu"] = GELUS[config["hidden_act"]]
    options |= told_by_timm(config)
    colors = read_json(folder / "preprocessor_config.json") or config.get("pretrained_cfg")
    remarks = [f"config.json tells {', '.join(f'{n}={v}' for n, v in options.items())}"]
    return Hints(options, normalization_in(colors), remarks if options else [])


def told_by_timm(config: dict[str, Any]) -> dict[str, Any]:
    """Options that timm's config.json tells: architecture, pooling and image size."""
    told: dict[str, Any] = {}
    if isinstance(config.get("architecture"), str):
        told["architecture"] = config["architecture"]
    if (pool := POOLS.get(str(config.get("global_pool")))) is not None:
        told["pool"] = pool
    pretrained = config.get("pretrained_cfg")
    size = pretrained.get("input_size") if isinstance(pretrained, dict) else None
    if isinstance(size, list) and len(size) == 3:
        told["image_size"] = tuple(size[1:])
    return told


def read_json(path: Path) -> dict[str, Any]:
    """An object in a JSON file; empty if there is no file. Raises `ValueError` otherwise."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} beside it is damaged ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} beside it holds a {type(content).__name__}, not an object")
    return content


def normalization_in(colors: Any) -> Normalization | None:
    """The colors that a preprocessor_config.json or timm's pretrained_cfg tells, if any.

    Raises:
        ValueError: if they are not three numbers each, or a std is not positive.
    """
    if not isinstance(colors, dict):
        return None
    if colors.get("do_normalize") is False:
        return Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    for names in (("image_mean", "image_std"), ("mean", "std")):
        if all(name in colors for name in names):
            mean, std = (three_numbers(name, colors[name]) for name in names)
            if min(std) <= 0:
                raise ValueError(f"expected {names[1]} > 0 for colors, got {list(std)}")
            return Normalization(mean, std)
    return None


def three_numbers(name: str, values: Any) -> tuple[float, float, float]:
    """A list from JSON as three numbers; raises `ValueError` if it is anything else."""
    if not isinstance(values, list) or len(values) != 3 or not all(map(is_number, values)):
        raise ValueError(f"expected {name} with three numbers for colors, got {values!r}")
    red, green, blue = values
    return (red, green, blue)
