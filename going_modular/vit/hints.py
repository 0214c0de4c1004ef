"""What the files beside weights tell that no tensor shows.

Hugging Face's `config.json` tells heads, epsilon, GELU and size, and its
`preprocessor_config.json` the colors. timm's `config.json` tells the name of the
architecture, what the head reads, the size of images and the colors. open_clip's
`open_clip_config.json` tells heads, GELU, size and colors.
"""

import json
import re
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
    "quick_gelu": "quick",
}
# timm's names for what the head reads, and ours
POOLS = {"avg": "mean", "token": "class_token", "map": "attention"}
# timm's options of a model that tensors show, or that are for training alone
SHOWN = re.compile(
    r"img_size|patch_size|in_chans|num_classes|embed_dim|depth|mlp_ratio|qkv_bias|init_values"
    r"|class_token|no_embed_class|reg_tokens|num_reg_tokens|dynamic_img_(size|pad)|strict_img_size"
    r"|.*drop.*|global_pool|num_heads"
)
# What config.json calls them, and the field of `ViTConfig`
FIELDS = {
    "num_attention_heads": "num_heads",
    "layer_norm_eps": "layer_norm_eps",
    "image_size": "image_size",
}
# Parts of open_clip's towers that are none here, and what they are without
OPEN_CLIP_PARTS: dict[str, Any] = {
    "attentional_pool": False,
    "pool_type": "tok",
    "final_ln_after_pool": False,
    "no_ln_pre": False,
    "pos_embed_type": "learnable",
    "qk_norm": False,
    "act_kwargs": None,
    "norm_kwargs": None,
    "timm_model_kwargs": None,
}
# What Hugging Face's config.json leaves out where it is the default of its class
DEFAULTS: dict[str, dict[str, Any]] = {
    "clip_vision_model": {
        "hidden_size": 768,
        "num_attention_heads": 12,
        "layer_norm_eps": 1e-5,
        "hidden_act": "quick_gelu",
    },
    "siglip_vision_model": {
        "hidden_size": 768,
        "num_attention_heads": 12,
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu_pytorch_tanh",
    },
}


@dataclass(frozen=True)
class Hints:
    """What was found: fields of `ViTConfig`, colors, and a sentence on each file."""

    options: dict[str, Any] = field(default_factory=dict)
    normalization: Normalization | None = None
    remarks: list[str] = field(default_factory=list)


def hints_beside(path: Path, tensors: Tensors) -> Hints:
    """What the files in the folder of weights say of them; see the top of this module.

    A configuration of another width is of another model. A remark says that it does not
    count.

    Raises:
        ValueError: if such a file is damaged, or tells of a part that is none here.
    """
    folder = path if path.is_dir() else path.parent
    config = read_json(folder / "config.json")
    vision = vision_part(config)
    width = vision.get("hidden_size", config.get("num_features"))
    if width is None:
        return told_by_open_clip(read_json(folder / "open_clip_config.json"), tensors)
    if not has_width(tensors, width):
        return Hints(remarks=[f"config.json tells of another model, of width {width}: not used"])
    options = told_by_huggingface(vision, tensors) | told_by_timm(config)
    colors = read_json(folder / "preprocessor_config.json") or config.get("pretrained_cfg")
    return Hints(options, normalization_in(colors), remarks_on("config.json", options))


def has_width(tensors: Tensors, width: Any) -> bool:
    """Whether any tensor has an axis of this length."""
    return any(width in tuple(tensor.shape) for tensor in tensors.values())


def remarks_on(name: str, options: dict[str, Any]) -> list[str]:
    """A sentence on what a file tells, if it tells anything."""
    return [f"{name} tells {', '.join(f'{n}={v}' for n, v in options.items())}"] if options else []


def vision_part(config: dict[str, Any]) -> dict[str, Any]:
    """Hugging Face's configuration of the ViT, with the defaults that it leaves out."""
    vision = config.get("vision_config", config)
    if not isinstance(vision, dict):
        raise ValueError(f"config.json beside it has no vision_config but {vision!r}")
    return DEFAULTS.get(str(vision.get("model_type")), {}) | vision


def told_by_huggingface(vision: dict[str, Any], tensors: Tensors) -> dict[str, Any]:
    """Options that Hugging Face's config.json tells.

    Raises:
        ValueError: if it tells of a part that is none here.
    """
    options = {ours: vision[theirs] for theirs, ours in FIELDS.items() if theirs in vision}
    if isinstance(options.get("image_size"), list):
        options["image_size"] = tuple(options["image_size"])
    gated = any(".gate_proj." in name or ".weights_in." in name for name in tensors)
    act = str(vision.get("hidden_act", "gelu"))
    is_dinov3 = vision.get("model_type") == "dinov3_vit"
    if gated and is_dinov3 and act not in ("silu", "swish"):
        raise ValueError(f"its config.json tells of a gate with {act!r}, not with SiLU")
    if "hidden_act" in vision and not gated:
        if act not in GELUS:
            raise ValueError(f"its config.json tells of {act!r}, not of a GELU")
        options["gelu"] = GELUS[act]
    if vision.get("pooler_act", "tanh") != "tanh":
        raise ValueError(f"its config.json tells of a pooler with {vision['pooler_act']!r}")
    rotary = vision.get("rope_parameters") or vision
    theta = rotary.get("rope_theta", 100) if isinstance(rotary, dict) else rotary
    if is_dinov3 and theta != 100:
        raise ValueError(f"its config.json tells of rotary positions with {theta!r}, not 100")
    return options


def told_by_open_clip(config: dict[str, Any], tensors: Tensors) -> Hints:
    """What open_clip_config.json tells; nothing if it is empty.

    Raises:
        ValueError: if it is damaged, or tells of a part that is none here.
    """
    if not config:
        return Hints()
    name, model = "open_clip_config.json", config.get("model_cfg", config)
    vision = model.get("vision_cfg") if isinstance(model, dict) else None
    if not isinstance(vision, dict):
        raise ValueError(f"{name} beside it has no vision_cfg")
    if unknown := [
        f"{n}={vision[n]!r}" for n, v in OPEN_CLIP_PARTS.items() if vision.get(n, v) != v
    ]:
        raise ValueError(f"its {name} tells of {', '.join(unknown)}, which is no part here")
    options: dict[str, Any] = {}
    if isinstance(vision.get("timm_model_name"), str):
        options["architecture"] = vision["timm_model_name"]
        options |= pool_told(vision.get("timm_pool"))
    width, head_width = vision.get("width"), vision.get("head_width", 64)
    if isinstance(width, int) and isinstance(head_width, int) and head_width > 0:
        if not has_width(tensors, width):
            return Hints(remarks=[f"{name} tells of another model, of width {width}: not used"])
        options["num_heads"] = width // head_width
        options["gelu"] = "quick" if model.get("quick_gelu") else "exact"
    if isinstance(size := vision.get("image_size"), list | int):
        options["image_size"] = tuple(size) if isinstance(size, list) else size
    return Hints(options, normalization_in(config.get("preprocess_cfg")), remarks_on(name, options))


def told_by_timm(config: dict[str, Any]) -> dict[str, Any]:
    """Options that timm's config.json tells: architecture, pooling, heads and image size.

    Raises:
        ValueError: if it tells of an option or a pooling that is none here.
    """
    told: dict[str, Any] = {}
    if not isinstance(config.get("architecture"), str):
        return told
    told["architecture"] = config["architecture"]
    arguments = config.get("model_args") or {}
    if not isinstance(arguments, dict):
        raise ValueError(f"its config.json has no model_args but {arguments!r}")
    if unknown := [name for name in arguments if not SHOWN.fullmatch(name)]:
        raise ValueError(f"its config.json tells of {', '.join(unknown)}, which is no part here")
    told |= pool_told(arguments.get("global_pool", config.get("global_pool")))
    if "num_heads" in arguments:
        told["num_heads"] = arguments["num_heads"]
    pretrained = config.get("pretrained_cfg")
    size = pretrained.get("input_size") if isinstance(pretrained, dict) else None
    if isinstance(size, list) and len(size) == 3:
        told["image_size"] = tuple(size[1:])
    return told


def pool_told(pool: Any) -> dict[str, Any]:
    """What timm's word for the pooling tells; nothing if there is none.

    Raises:
        ValueError: if it is another word.
    """
    if not pool:
        return {}
    if pool not in POOLS:
        raise ValueError(f"timm's pooling {pool!r} is no part here, but {', '.join(POOLS)}")
    return {"pool": POOLS[pool]}


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
    if (
        colors.get("do_rescale") is False
        or round(1 / (colors.get("rescale_factor") or 1 / 255)) != 255
    ):
        raise ValueError(
            "colors that are not from 0 to 1 before they are normalized are no part here"
        )
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
