"""Our ViT as weights of others: the way back of `weights`.

What `folding` folded away is written as what changes nothing: a layer scale of ones, for
example. Features and logits stay the same.
"""

from dataclasses import fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from going_modular.model_builder import ViT, ViTConfig
from going_modular.vit.descendant_config import DescendantConfig
from going_modular.vit.names import Naming
from going_modular.vit.published_names import (
    HUGGINGFACE_CLIP,
    HUGGINGFACE_SIGLIP,
    JAX,
    TIMM,
    TORCHVISION,
    huggingface_deit,
    huggingface_dinov2,
    huggingface_dinov3,
    huggingface_vit,
    timm_eva,
)
from going_modular.vit.relatives import TURNINGS


class Kind(NamedTuple):
    """The parts of a kind of ViT that others have a place for: those that it has, or may have."""

    has: dict[str, Any]
    may_have: tuple[str, ...] = ()


DINO = ("pool", "swiglu")
KINDS = {
    "vit": Kind({}),
    "deit": Kind({"num_registers": 1, "pool": "class_and_register"}),
    "dinov2": Kind({}, DINO),
    "dinov2_with_registers": Kind({}, (*DINO, "num_registers")),
    "dinov3": Kind({"rotary": TURNINGS["dinov3"].rotary}, (*DINO, "num_registers")),
    "clip": Kind({"pre_norm": True}, ("gelu",)),
    "siglip": Kind({"pool": "attention", "class_token": False}),
}
HUGGINGFACE_PREFIXES = {  # before all names but those of the head
    "vit": "vit.",
    "deit": "deit.",
    "dinov2": "dinov2.",
    "dinov2_with_registers": "dinov2_with_registers.",
    "clip": "vision_model.",
    "siglip": "vision_model.",
}


def kind_of(config: ViTConfig) -> str:
    """The kind of ViT, a key of `KINDS`, that has a place for all parts of a configuration.

    Raises:
        ValueError: if there is none.
    """
    for kind in KINDS:
        if fits(config, kind):
            return kind
    raise ValueError(
        f"no other implementation here has a place for all parts of {config}: expected those "
        f"of one of {', '.join(KINDS)}. write_vit keeps every part"
    )


def fits(config: ViTConfig, kind: str) -> bool:
    """Whether a kind of ViT has a place for all parts of a configuration."""
    if not isinstance(config, DescendantConfig):
        return kind in ("vit", "dinov2")
    try:
        if kind == "deit" and config.pool == "class_token":  # a class with one head reads that
            config = replace(config, pool="class_and_register", representation_size=0)
        sizes = {each.name: getattr(config, each.name) for each in fields(ViTConfig)}
        paper = sizes | {"pool": "class_token", "class_token": True}
        if config.gelu == "quick":
            paper["gelu"] = "exact"
        parts = {part: getattr(config, part) for part in KINDS[kind].may_have}
        return config == DescendantConfig(**paper | KINDS[kind].has | parts)
    except ValueError:  # such parts do not go together
        return False


def to_torchvision(vit: ViT) -> dict[str, torch.Tensor]:
    """For `torchvision.models.VisionTransformer`; see `write_weights`."""
    return write_weights(vit, vit_tensors(vit, TORCHVISION), TORCHVISION)


def to_jax(vit: ViT) -> dict[str, np.ndarray]:
    """For the official code, whose files `numpy.savez(path, **to_jax(vit))` writes."""
    written = write_weights(vit, vit_tensors(vit, JAX), JAX)
    return {name: tensor.float().numpy() for name, tensor in written.items()}


def to_timm(vit: ViT, *, layer_scale: bool = False) -> dict[str, torch.Tensor]:
    """For timm's `VisionTransformer`; see `write_weights`.

    With `pool="mean"` it is the one with `class_token=False`, `global_pool="avg"` and
    `fc_norm=False`. A DeiT is for `VisionTransformerDistilled`, and a DINOv3 for `Eva`, as
    in vit_small_patch16_dinov3_qkvb. Registers are for `no_embed_class=True`, as in
    vit_small_patch14_reg4_dinov2.

    Args:
        layer_scale: True adds a layer scale of ones, which DINOv2's architectures have.
            DINOv3 gets it in any case.
    """
    kind = kind_of(vit.config)
    tensors = vit_tensors(vit, TIMM)
    if kind == "deit":
        unfold_distillation(tensors)
    if kind.startswith("dinov2"):
        check_pool(vit.config, ("class_token", "mean"))
        unfold_gates(tensors)
    if kind == "dinov2_with_registers":
        class_position, patches = tensors["pos_embedding"].tensor_split([1], dim=1)
        tensors["class_token"] = tensors["class_token"] + class_position
        tensors["pos_embedding"] = patches
    if kind == "dinov3":
        check_pool(vit.config, ("class_token", "mean"))
        unfold_biases(tensors)
    if kind == "clip":
        unfold_patch_bias(tensors)
    if kind == "siglip":
        unfold_pooling(tensors)
    if layer_scale or kind == "dinov3":
        unfold_layer_scale(tensors, vit.config)
    gated = "encoder.0.mlp.gate.weight" in tensors
    return write_weights(vit, tensors, timm_eva(gated) if kind == "dinov3" else TIMM)


def to_huggingface(vit: ViT, generation: int = 5, *, kind: str = "") -> dict[str, torch.Tensor]:
    """For a class of transformers; see `write_weights`.

    | kind | class with a head | without |
    | --- | --- | --- |
    | vit | ViTForImageClassification | ViTModel |
    | deit | DeiTForImageClassificationWithTeacher | DeiTModel |
    | dinov2 | Dinov2ForImageClassification | Dinov2Model |
    | dinov2_with_registers | Dinov2WithRegistersForImageClassification | ...Model |
    | dinov3 | | DINOv3ViTModel |
    | clip | CLIPVisionModelWithProjection | CLIPVisionModel |
    | siglip | | SiglipVisionModel |

    Its configuration needs `layer_norm_eps=vit.config.layer_norm_eps` and the GELU of
    `vit.config.gelu`: each class has defaults of its own.

    Args:
        generation: 5 has the names of version 5's models, 4 those of the files on the
            Hub, which both versions read.
        kind: by default that of `kind_of`. A ViT can be written as "dinov2", too, and one
            with a register as "deit", for a class without the second head.
    """
    config = vit.config
    kind = kind or kind_of(config)
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if generation not in (4, 5):
        raise ValueError(f"generation must be 4 or 5, got {generation!r}")
    if not fits(config, kind):
        raise ValueError(f"a {kind} has no place for all parts of {config}")
    if config.num_classes and config.representation_size:
        raise ValueError(
            "Hugging Face's classifier reads the class token directly: it has no place "
            f"for representation_size={config.representation_size} before the head"
        )
    if config.num_classes and kind in ("dinov3", "siglip"):
        raise ValueError(
            f"transformers has no {kind} with a head: leave it out, with num_classes=0"
        )
    gated = "encoder.0.mlp.gate.weight" in vit.state_dict()
    naming = {
        "deit": huggingface_deit(generation, two_heads=config.pool == "class_and_register"),
        "dinov2": huggingface_dinov2(generation, gated),
        "dinov2_with_registers": huggingface_dinov2(generation, gated),
        "dinov3": huggingface_dinov3(generation, gated),
        "clip": HUGGINGFACE_CLIP,
        "siglip": HUGGINGFACE_SIGLIP,
    }.get(kind, huggingface_vit(generation))
    tensors = vit_tensors(vit, naming)
    if kind == "deit":
        unfold_distillation(tensors)
    if kind.startswith("dino"):
        unfold_layer_scale(tensors, config)
        tensors["mask_token"] = torch.zeros_like(tensors["class_token"])  # for training alone
    if kind == "dinov3":
        tensors.setdefault("registers", tensors["class_token"][:, :0])
    if kind.startswith("dinov2"):
        check_pool(config, ("class_token", "mean", "class_and_mean"))
        unfold_head(tensors, config.pool)
        tensors["mask_token"] = tensors["mask_token"][0]
        if generation == 4:
            unfold_gates(tensors)
    if kind == "clip":
        unfold_patch_bias(tensors)
        if "head.bias" in tensors:
            check_zero(tensors.pop("head.bias"), "the head's bias has numbers")
        tensors["class_token"] = tensors["class_token"][0, 0]
    if kind in ("clip", "siglip"):
        tensors["pos_embedding"] = tensors["pos_embedding"][0]
    written = write_weights(vit, tensors, naming)
    if kind == "dinov3":  # key_bias=False is its default
        for name in [name for name in written if name.endswith("k_proj.bias")]:
            if not written[name].any():
                del written[name]
    has_prefix = config.num_classes or (generation == 4 and kind in ("clip", "siglip"))
    prefix = HUGGINGFACE_PREFIXES.get(kind, "") if has_prefix else ""
    heads = ("classifier.", "cls_classifier.", "distillation_classifier.", "visual_projection.")
    return {n if n.startswith(heads) else prefix + n: tensor for n, tensor in written.items()}


def vit_tensors(vit: ViT, naming: Naming) -> dict[str, torch.Tensor]:
    """Our tensors, with positions of every kind as a table, (1, T, D) without registers.

    Raises:
        ValueError: if the ViT has a part that the other implementation lacks: a stem, for
            example.
    """
    config = vit.config
    if not isinstance(vit.stem, nn.Identity):
        raise ValueError(f"{naming.title} has no place for a stem")
    if not config.num_class_tokens and naming not in (TIMM, JAX, HUGGINGFACE_SIGLIP):
        raise ValueError(f"{naming.title} has no ViT without a class token")
    if naming in (TORCHVISION, JAX) and kind_of(config) != "vit":
        raise ValueError(f"{naming.title} has no place for the parts of {config}")
    tensors = dict(vit.state_dict())
    if not (isinstance(config, DescendantConfig) and config.rotary):
        tensors["pos_embedding"] = vit.positions(config.grid).detach()
    return tensors


def write_weights(
    vit: ViT, tensors: dict[str, torch.Tensor], naming: Naming
) -> dict[str, torch.Tensor]:
    """A copy of a ViT's weights, on the CPU, under another implementation's names.

    Raises:
        ValueError: if the other implementation has no name for a tensor.
    """
    written = naming.export(tensors, vit.config.num_layers, vit.config.num_heads)
    known = naming.names(vit.config.num_layers).values()
    if nameless := [name for name in written if name not in known]:
        raise ValueError(f"{naming.title} has no name for {', '.join(nameless)}")
    contiguous = torch.contiguous_format
    return {n: t.cpu().clone(memory_format=contiguous) for n, t in written.items()}


def check_pool(config: ViTConfig, pools: tuple[str, ...]) -> None:
    """Raise `ValueError` unless a head reads what others read, too."""
    if config.num_classes and config.pool not in pools:
        raise ValueError(f'no head reads pool="{config.pool}" there, but {" or ".join(pools)}')


# Parts that were folded away, as what changes nothing


def unfold_layer_scale(tensors: dict[str, torch.Tensor], config: ViTConfig) -> None:
    """A layer scale of ones."""
    for layer in range(config.num_layers):
        for part in ("attention", "mlp"):
            tensors[f"encoder.{layer}.{part}.scale"] = torch.ones(config.embedding_dim)


def unfold_distillation(tensors: dict[str, torch.Tensor]) -> None:
    """DeiT's token with a position of zeros, and a head for each token, if ours reads both."""
    tensors["distillation_token"] = tensors.pop("registers")
    first, patches = tensors["pos_embedding"].tensor_split([1], dim=1)
    tensors["pos_embedding"] = torch.cat([first, torch.zeros_like(first), patches], dim=1)
    D = tensors["class_token"].shape[-1]
    if "head.weight" in tensors and tensors["head.weight"].shape[1] == 2 * D:
        W, b = tensors.pop("head.weight"), tensors.pop("head.bias")
        for head, half in zip(("head", "distillation_head"), W.chunk(2, dim=1), strict=True):
            tensors[f"{head}.weight"], tensors[f"{head}.bias"] = 2 * half, b


def unfold_head(tensors: dict[str, torch.Tensor], pool: str) -> None:
    """A head that reads class token and mean; the one of the two that ours ignores gets zeros."""
    if "head.weight" in tensors:
        W, b = tensors.pop("head.weight"), tensors.pop("head.bias")
        if pool != "class_and_mean":
            both = [W, torch.zeros_like(W)]
            W = torch.cat(both if pool == "class_token" else both[::-1], dim=1)
        tensors |= {"class_and_mean_head.weight": W, "class_and_mean_head.bias": b}


def unfold_patch_bias(tensors: dict[str, torch.Tensor]) -> None:
    """A bias of all patches is part of their positions: (E x + b) + E_pos = E x + (b + E_pos)."""
    bias = tensors.pop("patch_embedding.projection.bias")
    first, patches = tensors["pos_embedding"].tensor_split([1], dim=1)
    tensors["pos_embedding"] = torch.cat([first, patches + bias], dim=1)


def unfold_biases(tensors: dict[str, torch.Tensor]) -> None:
    """Biases of queries and values alone. Those of keys have to be zero."""
    for name in [name for name in tensors if name.endswith("attention.qkv.bias")]:
        q, k, v = tensors.pop(name).chunk(3)
        check_zero(k, f"{name} has numbers for keys")
        layer = name.removesuffix("qkv.bias")
        tensors |= {f"{layer}q_bias": q, f"{layer}v_bias": v}


def unfold_gates(tensors: dict[str, torch.Tensor]) -> None:
    """Gate and expansion of a SwiGLU in one matrix, the gate first."""
    for name in [name for name in tensors if ".mlp.gate." in name]:
        expand = name.replace(".gate.", ".expand.")
        tensors[expand] = torch.cat([tensors.pop(name), tensors[expand]])


def unfold_pooling(tensors: dict[str, torch.Tensor]) -> None:
    """Queries of an attention pooling apart from keys and values."""
    for kind in ("weight", "bias"):
        q, k, v = tensors.pop(f"pooling.attention.qkv.{kind}").chunk(3)
        tensors |= {
            f"pooling.attention.q.{kind}": q,
            f"pooling.attention.kv.{kind}": torch.cat([k, v]),
        }


def check_zero(bias: torch.Tensor, what: str) -> None:
    """Raise `ValueError` if a bias that others have no place for is not zero."""
    if bias.any():
        raise ValueError(f"{what}, and the other implementation has no place for them")
