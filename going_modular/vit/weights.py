"""Weights: everybody's into our `ViT` and back, and pretrained backbones.

`load_vit` makes a model from a file; `load_weights` fills one that is there, from the
names of torchvision, timm, Hugging Face transformers, the official JAX checkpoints or
this project (`weight_names.py`); `to_torchvision`, `to_timm`, `to_huggingface` and
`to_jax` go the other way. `load_pretrained_backbone` is what notebook 09 starts from.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from going_modular.model_builder import ViT, ViTConfig
from going_modular.utils import project_path
from going_modular.vit.config import VIT_CONFIGS
from going_modular.vit.files import stored_config
from going_modular.vit.names import (
    JAX,
    OURS,
    TIMM,
    TORCHVISION,
    Naming,
    Tensors,
    huggingface,
    naming_of,
)
from going_modular.vit.positions import Grid, interpolate_pos_embedding

# Everybody's weights into our ViT


def load_vit(weights: str | Path | Mapping[str, torch.Tensor], **overrides) -> ViT:
    """A ViT made from a file of weights or a state_dict, in evaluation mode.

    `overrides` are fields of `ViTConfig`. With another `num_classes` the weights' head
    is left out, with another `image_size` their positions are interpolated. A file of
    `write_vit` tells its own configuration. Official
    JAX checkpoints were trained with `gelu="tanh"`.

    Raises:
        FileNotFoundError, ValueError: see `read_weights`, `config_from_state_dict` and
            `load_weights`.
    """
    is_file = isinstance(weights, str | Path)
    tensors = read_weights(weights) if is_file else weights
    told = stored_config(weights) if is_file else {}
    found = config_from_state_dict(tensors, **told | overrides)
    vit = ViT(replace(found, **overrides))
    load_weights(
        vit,
        tensors,
        head=vit.config.num_classes == found.num_classes,
        interpolate=found.grid,
        layer_norm_eps=overrides.get("layer_norm_eps"),
    )
    return vit.eval()


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a file by name: .safetensors, .npz, .pth, .pt or .bin.

    None of these can run code here. A relative path is seen from the repository's root.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is of another kind, damaged, or holds more than tensors.
    """
    path = project_path(path)
    unpickle = partial(torch.load, map_location="cpu", weights_only=True)
    readers = {
        ".safetensors": load_file,
        ".npz": lambda path: dict(np.load(path)),
        **dict.fromkeys((".pth", ".pt", ".bin"), unpickle),
    }
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of weights at {path}")
    if path.suffix not in readers:
        raise ValueError(f"{path.name}: expected a file that ends in {' '.join(readers)}")
    try:
        content = readers[path.suffix](path)
        if not isinstance(content, Mapping):
            raise ValueError(f"it holds a {type(content).__name__}, no tensors by name")
        for wrapper in ("model", "state_dict"):  # as DeiT and Lightning write them
            content = content.get(wrapper, content)
        return {name: torch.as_tensor(values) for name, values in content.items()}
    except Exception as error:  # each format fails in ways of its own
        raise ValueError(f"{path.name} cannot be read as weights: {error}") from error


def config_from_state_dict(state_dict: Mapping[str, torch.Tensor], **told) -> ViTConfig:
    """The sizes of the ViT that a set of weights belongs to, from their shapes.

    `told` are fields of `ViTConfig` for what has no shape: `gelu`, the dropouts,
    `layer_norm_eps` (else what `load_weights` sets), `num_heads` (else that of the
    published variant with the same D, else D / 64; JAX's files know it), and, unless
    the patches make a square and each has its position, `image_size` and
    `pos_embedding`. Where shapes say something else than `told`, the shapes win.

    Raises:
        ValueError: if names are unknown, or something is missing, misshapen or untold.
    """
    given = {name: torch.as_tensor(values) for name, values in state_dict.items()}
    naming = naming_of(given)
    names = naming.names(naming.depth(given))
    if unknown := given.keys() - names.values():
        raise ValueError(
            f"these names are like those of {naming.title}, but not all are a ViT's:\n"
            + "\n".join(f"  unknown: {name}" for name in given if name in unknown)
        )
    axes = {
        "patch_embedding.projection.weight": 4,
        "encoder.0.mlp.expand.weight": 2,
        "class_token": 3,
        "pos_embedding": 3,
        "representation.0.weight": 2,
        "head.weight": 2,
    }
    found = {names[n]: given[names[n]] for n in axes if names.get(n) in given}
    tensors = naming.translate(found)
    optional = {"class_token", "representation.0.weight", "head.weight", *told}
    for name, count in axes.items():
        fits = tensors[name].ndim == count if name in tensors else name in optional
        if not fits:
            raise ValueError(
                f"these names are most like those of {naming.title}, but there is no "
                f"{names[name]} with {count} axes among the weights"
            )
    D, C, P, _ = tensors["patch_embedding.projection.weight"].shape
    heads = {c.embedding_dim: c.num_heads for c in VIT_CONFIGS.values()}

    def length(name):  # of the first axis; 0 where there is no such tensor
        return len(tensors.get(name, ()))

    untold = {"num_heads": heads.get(D) or max(D // 64, 1), "layer_norm_eps": naming.layer_norm_eps}
    sizes = {
        "patch_size": P,
        "in_channels": C,
        "embedding_dim": D,
        "num_layers": naming.depth(given),
        "mlp_dim": length("encoder.0.mlp.expand.weight"),
        "num_classes": length("head.weight"),
        "pool": "class_token" if "class_token" in tensors else "mean",
        "representation_size": length("representation.0.weight"),
    }
    query = given.get(names.get("encoder.0.attention.q.weight"))
    if query is not None and query.ndim == 3:  # (D, h, D/h), in JAX's files
        sizes["num_heads"] = query.shape[1]
    if "pos_embedding" in tensors:
        _, T, width = tensors["pos_embedding"].shape
        sizes["pos_embedding"] = "learned_1d" if width == D else "learned_2d"
        N = T - length("class_token")
        if width == D and N > 0 and math.isqrt(N) ** 2 == N:
            sizes["image_size"] = math.isqrt(N) * P
        elif "image_size" not in told:
            raise ValueError(
                f"{N} patches are no square: tell their image_size=(H, W), or make a "
                "ViT of that size and fill it with load_weights"
            )
    return ViTConfig(**(untold | told | sizes))


def load_weights(
    vit: ViT,
    state_dict: Mapping[str, torch.Tensor],
    *,
    head: bool = True,
    interpolate: bool | Grid = False,
    layer_norm_eps: float | None = None,
) -> list[str]:
    """Fill a ViT with weights under anybody's names (`weight_names.NAMINGS`).

    Args:
        head: False leaves out the weights' head, and keeps that of `vit` as it is. So
            it is with a pre-training layer (`representation_size`) that only one has.
        interpolate: stretch positions of another grid (Section 3.2), given as (rows,
            columns) or True for a square. (True takes as many positions as `vit` has to
            be of its own grid.)
        layer_norm_eps: what LayerNorms are to use. If not given it is what models under
            these names compute with, 1e-12 for Hugging Face transformers, else 1e-6;
            under this project's names they keep theirs. The kind of GELU is never
            changed: official JAX checkpoints want a ViT with `gelu="tanh"`.

    Returns:
        The names of those weights that were left out: a head that is not wanted, and a
        pre-training layer (Hugging Face's "pooler") that has no head behind it.

    Raises:
        ValueError: if any weight is unknown, missing, of another shape, or of whole
            numbers. It lists them all by the names that they were given under; `vit`
            is as it was.
    """
    given = {name: torch.as_tensor(values) for name, values in state_dict.items()}
    naming, c = naming_of(given), vit.config
    expected = dict(naming.export(vit.state_dict(), c.num_layers, c.num_heads))
    # Where they have no name for a tensor, it goes by ours, as in `export`
    names = {name: name for name in vit.state_dict()} | naming.names(c.num_layers)
    heads, representation = (
        {theirs for ours, theirs in names.items() if ours.startswith(part)}
        for part in ("head.", "representation.")
    )

    dispensable = set()
    if not head:
        both = representation & given.keys() and representation & expected.keys()
        dispensable = heads if both else heads | representation
    elif not heads & given.keys():  # a head would have been trained behind it
        dispensable = representation - expected.keys()
    left_out = [name for name in given if name in dispensable]
    for name in dispensable:
        given.pop(name, None)
        expected.pop(name, None)
    if interpolate:
        fit_positions(given, names["pos_embedding"], vit, interpolate)
    check_weights(given, expected, naming)

    vit.load_state_dict(naming.translate(given), strict=False)  # all are accounted for
    if layer_norm_eps is None and naming is not OURS:
        layer_norm_eps = naming.layer_norm_eps
    if layer_norm_eps is not None:
        vit.config = replace(c, layer_norm_eps=layer_norm_eps)
        for module in (*vit.encoder.modules(), vit.norm):  # a stem keeps its own
            if isinstance(module, nn.LayerNorm):
                module.eps = layer_norm_eps
    return left_out


def fit_positions(given: dict[str, torch.Tensor], name: str, vit: ViT, grid: Grid | bool) -> None:
    """Stretch the positions among the given weights to the grid of `vit`.

    What has not the shape of positions on that grid is left for `check_weights`.
    """
    c, positions = vit.config, given.get(name)
    if c.pos_embedding != "learned_1d" or positions is None or positions.ndim != 3:
        return
    N = positions.shape[1] - vit.class_token.shape[1]
    if grid is True:
        side = math.isqrt(max(N, 0))
        grid = c.grid if N == c.num_patches else (side, side)
    if N > 0 and grid[0] * grid[1] == N and positions.shape[2] == c.embedding_dim:
        positions = positions.to(vit.pos_embedding.dtype)
        given[name] = interpolate_pos_embedding(positions, grid, c.grid)


def check_weights(given: Tensors, expected: Tensors, naming: Naming) -> None:
    """Raise `ValueError`, with all of their names, unless the weights fit a ViT."""
    problems = [
        *(f"unknown: {name}" for name in given if name not in expected),
        *(f"missing: {name}" for name in expected if name not in given),
    ]
    for name, tensor in expected.items():
        if name in given and given[name].shape != tensor.shape:
            shapes = f"{tuple(given[name].shape)}, not {tuple(tensor.shape)}"
            problems.append(f"{name} has shape {shapes}")
        elif name in given and not given[name].is_floating_point():
            problems.append(f"{name} holds {given[name].dtype}, not real numbers")
    if problems:
        raise ValueError(
            f"these weights (names of {naming.title}) are not those of this ViT:\n  "
            + "\n  ".join(problems)
            + "\nload_weights can leave out a head of other classes (head=False) and "
            "stretch positions to another image size (interpolate=True)."
        )


# Our ViT as everybody's weights


def to_torchvision(vit: ViT) -> dict[str, torch.Tensor]:
    """For `torchvision.models.VisionTransformer`; see `write_weights`."""
    return write_weights(vit, TORCHVISION)


def to_timm(vit: ViT) -> dict[str, torch.Tensor]:
    """For timm's `VisionTransformer`; see `write_weights`.

    With `pool="mean"` it is the one with `class_token=False`, `global_pool="avg"` and
    `fc_norm=False`.
    """
    return write_weights(vit, TIMM)


def to_huggingface(vit: ViT, generation: int = 5) -> dict[str, torch.Tensor]:
    """For transformers' `ViTForImageClassification`, or without a head `ViTModel`.

    Its configuration has to say `layer_norm_eps=vit.config.layer_norm_eps`; there the
    default is 1e-12. `generation` 5 has the names of version 5's models, 4 those of
    the files on the Hub, which both versions read.
    """
    has_head = bool(vit.config.num_classes)
    if has_head and vit.config.representation_size:
        raise ValueError(
            "Hugging Face's classifier reads the class token itself: there is no place "
            f"for representation_size={vit.config.representation_size} before a head"
        )
    return write_weights(vit, huggingface(generation, "vit." if has_head else ""))


def to_jax(vit: ViT) -> dict[str, np.ndarray]:
    """For the official code, whose files `numpy.savez(path, **to_jax(vit))` writes."""
    return {name: tensor.numpy() for name, tensor in write_weights(vit, JAX).items()}


def write_weights(vit: ViT, naming: Naming) -> dict[str, torch.Tensor]:
    """A copy of a ViT's weights, on the CPU, under another implementation's names.

    Positions of any kind are written as the table that they amount to, (1, T, D).

    Raises:
        ValueError: if the ViT has something that they have not: a stem, say.
    """
    c = vit.config
    if not isinstance(vit.stem, nn.Identity):
        raise ValueError(f"{naming.title} has no place for a stem")
    if c.pool == "mean" and naming not in (TIMM, JAX):
        raise ValueError(f"{naming.title} has no ViT without a class token")
    tensors = vit.state_dict() | {"pos_embedding": vit.positions(c.grid).detach()}
    written = naming.export(tensors, c.num_layers, c.num_heads)
    known = naming.names(c.num_layers).values()
    if nameless := [name for name in written if name not in known]:
        raise ValueError(f"{naming.title} has no name for {', '.join(nameless)}")
    contiguous = torch.contiguous_format
    return {n: t.cpu().clone(memory_format=contiguous) for n, t in written.items()}


# Pretrained backbones
