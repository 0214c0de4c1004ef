"""How the tensors of a ViT get the names and the layout of another implementation, and back.

A `Naming` turns our tensors into another implementation's (`export`) and theirs into
ours (`translate`). It is a table of names; `published_names` has those tables. Some
implementations have three layers for queries, keys and values; our fused `qkv` is then
split in three. JAX transposes its matrices and gives the heads an axis of their own.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from going_modular.images.transforms import IMAGENET, Normalization

Tensors = Mapping[str, torch.Tensor]
# Numbers of 8 bits and fewer mean nothing without a scale, which no ViT here has
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Naming:
    """How one implementation names the tensors of a ViT.

    - `parts` maps our names to theirs. "{}" is the number of the layer. A name that ends
      in "." stands for a "weight" and a "bias"; any other is the name of one tensor.
    - `layer_norm_eps` and `gelu` are what its models compute with.
    - `normalization` is what most of its published weights expect of colors.
    - `jax`: the tensors are laid out as in Flax, see `jax_layout`.
    - `turning`: the rotary positions of its models, a key of `relatives.TURNINGS`.
    """

    title: str
    parts: dict[str, str]
    layer_norm_eps: float = 1e-6
    gelu: str = "exact"
    normalization: Normalization = IMAGENET
    jax: bool = False
    turning: str = ""

    def names(self, num_layers: int) -> dict[str, str]:
        """Our name -> their name, for every tensor that a model may have."""
        names = {}
        for ours, theirs in self.parts.items():
            for layer in range(num_layers if "{}" in ours else 1):
                for kind in ("weight", "bias") if ours.endswith(".") else ("",):
                    their_kind = kind
                    if self.jax and kind == "weight":
                        their_kind = "scale" if ours.endswith("norm.") else "kernel"
                    names[ours.format(layer) + kind] = theirs.format(layer) + their_kind
        return names

    def depth(self, names: Iterable[str]) -> int:
        """L, the number of layers in a set of their names."""
        before, _, _ = self.parts["encoder.{}.mlp_norm."].partition("{}")
        layer = re.compile(re.escape(before) + r"(\d+)")
        # A name with another number is unknown then, and so refused, however large it is
        return len({int(m[1]) for m in map(layer.match, names) if m})

    def is_head(self, name: str) -> bool:
        """Whether one of their tensors is part of the head, even if it is of another form."""
        root = re.split(r"[./]", self.parts["head."])[0]
        return re.match(rf"{root}[./]", name) is not None and not any(
            name.startswith(theirs)
            for ours, theirs in self.parts.items()
            if ours.startswith("representation.")
        )

    def export(self, tensors: Tensors, num_layers: int, num_heads: int) -> Tensors:
        """Our tensors under their names and in their layout.

        A tensor that they have no name for keeps ours: the stem of a hybrid, for example.
        """
        names = self.names(num_layers)
        if "encoder.{}.attention.qkv." not in self.parts:
            tensors = split_qkv(tensors)
        if self.jax:
            tensors = {n: jax_layout(n, t, num_heads) for n, t in tensors.items()}
        return {names.get(name, name): tensor for name, tensor in tensors.items()}

    def translate(self, tensors: Tensors) -> Tensors:
        """Their tensors under our names and in our layout: the inverse of `export`."""
        ours = {theirs: ours for ours, theirs in self.names(self.depth(tensors)).items()}
        renamed = {ours.get(name, name): tensor for name, tensor in tensors.items()}
        if self.jax:
            renamed = {name: our_layout(name, tensor) for name, tensor in renamed.items()}
        return fuse_qkv(renamed)


def split_qkv(tensors: Tensors) -> Tensors:
    """`qkv` of the encoder, (3D, D) and (3D), -> `q`, `k` and `v`, each (D, D) and (D)."""
    split = {}
    for name, tensor in tensors.items():
        if name.startswith("encoder.") and ".qkv." in name:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                split[name.replace(".qkv.", f".{letter}.")] = part
        else:
            split[name] = tensor
    return split


def fuse_qkv(tensors: Tensors) -> Tensors:
    """`q`, `k` and `v` -> `qkv`: the inverse of `split_qkv`.

    Where no layer has a bias for keys, it is zero. A layer without one of the three stays
    as it is.
    """
    fused = dict(tensors)
    queries = [name for name in tensors if re.match(r"encoder\.\d+\.attention\.q\.", name)]
    keys = [name.replace(".q.", ".k.") for name in queries]
    if not any(key.endswith("bias") and key in tensors for key in keys):
        for q, k in zip(queries, keys, strict=True):
            if q.endswith("bias"):
                fused[k] = torch.zeros_like(tensors[q])
    for q in queries:
        three = [q.replace(".q.", f".{letter}.") for letter in "qkv"]
        if all(name in fused for name in three):
            fused[q.replace(".q.", ".qkv.")] = torch.cat([fused.pop(name) for name in three])
    return fused


def module_name(name: str) -> str:
    """The module of a tensor: 'q' in encoder.0.attention.q.weight."""
    return name.split(".")[-2:][0]


def jax_layout(name: str, tensor: torch.Tensor, num_heads: int) -> torch.Tensor:
    """One of our tensors as Flax lays it out. A dense layer is x W there, not x Wᵀ.

    Shapes: convolution (D, C, P, P) -> (P, P, C, D); dense (out, in) -> (in, out);
    q, k, v (D, D) and (D) -> (D, h, D/h) and (h, D/h); U_msa (D, D) -> (h, D/h, D).
    """
    part = module_name(name)
    if tensor.ndim == 4:
        return tensor.permute(2, 3, 1, 0)
    if tensor.ndim == 2:
        tensor = tensor.T
    if part in ("q", "k", "v"):
        return tensor.unflatten(-1, (num_heads, -1))
    if part == "projection" and tensor.ndim == 2:
        return tensor.unflatten(0, (num_heads, -1))
    return tensor


def our_layout(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The inverse of `jax_layout`."""
    part = module_name(name)
    if tensor.ndim == 4:
        return tensor.permute(3, 2, 0, 1)
    if part in ("q", "k", "v"):
        tensor = tensor.flatten(-2)
    if part == "projection" and tensor.ndim == 3:
        tensor = tensor.flatten(0, 1)
    return tensor.T if tensor.ndim == 2 else tensor


def mismatches(given: Tensors, expected: Tensors) -> list[str]:
    """What keeps tensors from taking the place of others, one line for each problem.

    A tensor may be unknown, missing, of another shape, or not of floating-point numbers.
    """
    problems = [
        *(f"unknown: {name}" for name in given if name not in expected),
        *(f"missing: {name}" for name in expected if name not in given),
    ]
    for name in (name for name in expected if name in given):
        tensor, shape = given[name], tuple(expected[name].shape)
        if tensor.shape != shape:
            problems.append(f"{name} has shape {tuple(tensor.shape)}, not {shape}")
        elif tensor.dtype not in FLOATS:
            problems.append(f"{name} holds {tensor.dtype}, not floating-point numbers")
    return problems
