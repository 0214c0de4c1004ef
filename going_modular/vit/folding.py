"""Parts of later ViTs that fold into plainer ones: other tensors, the same logits.

The functions here work on tensors under our names, as `Naming.translate` gives them. Parts
that our models do not have go by names of their own until they are folded: a layer scale
is "encoder.0.attention.scale", for example. What is left afterwards are the tensors of a
`ViT` or a `Descendant`.
"""

import re

import torch

from going_modular.vit.names import Tensors

LAYER = r"encoder\.\d+\."


def fold(tensors: Tensors) -> dict[str, torch.Tensor]:
    """Fold all that folds exactly; see the functions below."""
    folded = dict(tensors)
    fold_head(folded)
    fold_biases(folded)
    fold_layer_scale(folded)
    fold_gates(folded)
    fold_tokens(folded)
    fold_distillation(folded)
    fold_pooling(folded)
    return folded


def layers_with(tensors: Tensors, ending: str) -> list[str]:
    """The names of tensors of a layer that end so, without this ending."""
    pattern = re.compile(rf"({LAYER}.*){re.escape(ending)}")
    return [m[1] for m in map(pattern.fullmatch, tensors) if m]


def fold_head(tensors: dict[str, torch.Tensor]) -> None:
    """CLIP's head has no bias, and in open_clip it is x W, not x Wᵀ.

    Heads that read something else than the class token have names of their own.
    """
    if "transposed_head" in tensors:
        tensors["head.weight"] = tensors.pop("transposed_head").T
    for head in ("class_and_mean_head", "mean_head"):
        for kind in ("weight", "bias"):
            if f"{head}.{kind}" in tensors:
                tensors[f"head.{kind}"] = tensors.pop(f"{head}.{kind}")
    is_clip = "pre_norm.weight" in tensors or "pooling.latent" in tensors
    if is_clip and "head.weight" in tensors and "head.bias" not in tensors:
        tensors["head.bias"] = torch.zeros_like(tensors["head.weight"][:, 0])


def fold_biases(tensors: dict[str, torch.Tensor]) -> None:
    """Biases that a model does without are zero: those of keys in EVA, of patches in CLIP.

    EVA and BEiT keep the biases of queries and values apart. DINOv3 masks that of keys. A
    bias that only some layers lack is missing, and stays so; so is that of patches in a ViT
    that is no CLIP.
    """
    for layer in layers_with(tensors, "attention.qkv.bias_mask"):
        mask, name = tensors.pop(f"{layer}attention.qkv.bias_mask"), f"{layer}attention.qkv.bias"
        if not torch.isin(mask, torch.tensor([0.0, 1.0]).to(mask)).all():
            raise ValueError(f"the mask of {name} has other numbers than 0 and 1")
        tensors[name] = tensors[name] * mask
    for layer in layers_with(tensors, "attention.q_bias"):
        q, v = (tensors.pop(f"{layer}attention.{letter}_bias") for letter in "qv")
        tensors[f"{layer}attention.qkv.bias"] = torch.cat([q, torch.zeros_like(q), v])
    for part in ("attention.qkv.", "patch_embedding.projection."):
        if part.startswith("patch") and "pre_norm.weight" not in tensors:
            continue
        weights = [name for name in tensors if name.endswith(f"{part}weight")]
        biases = [name.replace("weight", "bias") for name in weights]
        if not tensors.keys() & set(biases):
            for weight, bias in zip(weights, biases, strict=True):
                tensors[bias] = torch.zeros_like(tensors[weight].flatten(1)[:, 0])


def fold_layer_scale(tensors: dict[str, torch.Tensor]) -> None:
    """s · (W x + b) is (s W) x + s b: the scale goes into the layer before it.

    Raises:
        ValueError: if only some layers have one.
    """
    for part, layer_before in (("attention", "projection"), ("mlp", "contract")):
        scaled = layers_with(tensors, f"{part}.scale")
        layers = layers_with(tensors, f"{part}.{layer_before}.weight")
        if scaled and (without := [layer for layer in layers if layer not in scaled]):
            raise ValueError(f"missing: the layer scale of {without[0]}{part}, others have one")
        for layer in scaled:
            scale = tensors.pop(f"{layer}{part}.scale").float()  # products of halves round
            name = f"{layer}{part}.{layer_before}."
            if scale.shape != tensors[f"{name}bias"].shape:
                raise ValueError(f"the layer scale of {layer}{part} has {len(scale)} numbers")
            tensors[f"{name}weight"] = scale[:, None] * tensors[f"{name}weight"]
            tensors[f"{name}bias"] = scale * tensors[f"{name}bias"]


def has_gates(tensors: Tensors) -> bool:
    """Whether the MLPs have gates, in a matrix of their own or in one with the expansion."""
    expand, after = (tensors.get(f"encoder.0.mlp.{part}.weight") for part in ("expand", "contract"))
    if expand is None or after is None or after.ndim != 2:  # `understand` says so
        return False
    return "encoder.0.mlp.gate.weight" in tensors or len(expand) == 2 * after.shape[1]


def fold_gates(tensors: dict[str, torch.Tensor]) -> None:
    """Gate and expansion of a SwiGLU may lie in one matrix, the gate first."""
    if not has_gates(tensors) or "encoder.0.mlp.gate.weight" in tensors:
        return
    for layer in layers_with(tensors, "mlp.expand.weight"):
        for kind in ("weight", "bias"):
            gate, expand = tensors[f"{layer}mlp.expand.{kind}"].chunk(2)
            tensors[f"{layer}mlp.gate.{kind}"] = gate
            tensors[f"{layer}mlp.expand.{kind}"] = expand


def fold_tokens(tensors: dict[str, torch.Tensor]) -> None:
    """Tokens and positions of CLIP lack the axis of the images. DeiT's token is a register."""
    for name, axes in (("class_token", 1), ("pos_embedding", 2)):
        if name in tensors and tensors[name].ndim == axes:
            tensors[name] = tensors[name].reshape(1, -1, tensors[name].shape[-1])
    if "distillation_token" in tensors:
        tensors["registers"] = tensors.pop("distillation_token")
    if "registers" in tensors and tensors["registers"].shape[1] == 0:  # transformers' DINOv3
        del tensors["registers"]


def fold_distillation(tensors: dict[str, torch.Tensor]) -> None:
    """The mean of DeiT's two answers is one linear layer of both tokens, side by side."""
    if "distillation_head.weight" in tensors:
        for kind in ("weight", "bias"):
            heads = ("head", "distillation_head")
            both = [tensors.pop(f"{head}.{kind}").float() for head in heads]
            tensors[f"head.{kind}"] = (
                torch.cat(both, dim=1) if kind == "weight" else both[0] + both[1]
            ) / 2


def fold_pooling(tensors: dict[str, torch.Tensor]) -> None:
    """Queries, keys and values of an attention pooling in one matrix."""
    for kind in ("weight", "bias"):
        if f"pooling.attention.q.{kind}" in tensors:
            parts = [tensors.pop(f"pooling.attention.{part}.{kind}") for part in ("q", "kv")]
            tensors[f"pooling.attention.qkv.{kind}"] = torch.cat(parts)
