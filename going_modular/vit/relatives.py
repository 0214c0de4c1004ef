"""Which descendant of the ViT tensors belong to: its parts, from names, shapes and hints."""

import math
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch

from going_modular.vit.config import patches_in
from going_modular.vit.descendant_config import Rotary
from going_modular.vit.folding import fold, has_gates
from going_modular.vit.names import Tensors

PARTS = {
    "pre_norm": "pre_norm.weight",
    "pooled_norm": "pooled_norm.weight",
    "swiglu": "encoder.0.mlp.gate.weight",
    "attention_norm": "encoder.0.attention.projection.norm.weight",
    "mlp_norm": "encoder.0.mlp.contract.norm.weight",
    "qk_norm": "encoder.0.attention.query_norm.weight",
}


class Turning(NamedTuple):
    """Rotary positions as a library computes them.

    - `neighbors`: numbers 2i and 2i + 1 of a head are one point. With us, i and i + D/2h are.
    - `columns_first`: the first half of the points turns with the column.
    """

    rotary: Rotary
    neighbors: bool = False
    columns_first: bool = False


TURNINGS = {
    "dinov3": Turning(Rotary(100.0, centered=True)),
    "eva02": Turning(Rotary(reference=16), neighbors=True),
    "axial": Turning(Rotary(100.0), neighbors=True, columns_first=True),
    "mixed": Turning(Rotary(learned=True), neighbors=True, columns_first=True),
    "pe14": Turning(Rotary(reference=14, offset=1.0), neighbors=True, columns_first=True),
    "pe24": Turning(Rotary(reference=24, offset=1.0), neighbors=True, columns_first=True),
    "pe32": Turning(Rotary(reference=32, offset=1.0), neighbors=True, columns_first=True),
}
# What the name of one of timm's architectures tells that no tensor shows
ARCHITECTURES: list[tuple[str, dict[str, Any]]] = [
    (r"dinov3|lingbot", {"turning": "dinov3"}),
    (r"dinov3", {"pool": "mean"}),
    (r"^eva02|_rope_reg\d_gap", {"turning": "eva02"}),
    (r"_rope_(ape_)?\d", {"turning": "axial"}),
    (r"_rope_mixed", {"turning": "mixed"}),
    (r"_pe_core_base_patch16_224", {"turning": "pe14"}),
    (r"_pe_core_(small|tiny|large)", {"turning": "pe24"}),
    (r"_pe_core", {"pooling_heads": 8, "pools_patches": False}),
    (r"_pe_spatial", {"turning": "pe32", "pool": "mean", "last_norm": False}),
    (r"_radio_v[34]|_intern300m", {"last_norm": False}),
    (r"quickgelu", {"gelu": "quick"}),
    (r"^beit3", {"layer_norm_eps": 1e-5}),
    (r"patch32_siglip|(so400m|giantopt)_patch16_siglip", {"gelu": "tanh"}),
    (r"large_patch16_siglip_(gap_)?512", {"gelu": "tanh"}),
    (r"^vit_base_patch16_gap_224|giantopt", {"num_heads": 16}),
    (r"_7b_patch16_dinov3", {"num_heads": 32}),
    (r"_huge_plus_patch16_dinov3", {"num_heads": 20}),
    (r"_pe_(core|lang|spatial)_gigantic|^eva02_enormous", {"num_heads": 16}),
    (r"^eva02_enormous", {"late_norms": True}),
]


def options_of(architecture: str) -> dict[str, Any]:
    """The options that the name of one of timm's architectures tells; see `ARCHITECTURES`.

    Raises:
        ValueError: if it is no text.
    """
    if not isinstance(architecture, str):
        raise ValueError(f"architecture must be the name of one of timm's, got {architecture!r}")
    told: dict[str, Any] = {}
    for pattern, options in ARCHITECTURES:
        if re.search(pattern, architecture):
            told |= options
    return told


def turning_told_by(names: Iterable[str], tensors: Tensors) -> str:
    """The kind of rotary positions that timm's names tell, a key of `TURNINGS`, or "".

    `names` are those in the file, and `tensors` have ours. What timm calls Eva has rotary
    positions: its layer scales have names of their own, or it has gates without any.
    """
    names = set(names)
    if names & {"rope_embed.periods", "storage_tokens"}:
        return "dinov3"
    if "rotary_frequencies" in tensors:
        return "mixed"
    if "pos_embedding" in tensors:
        return "eva02" if has_gates(tensors) and "encoder.0.mlp.scale" not in tensors else ""
    if not any(".gamma_1" in name for name in names):
        return ""
    if "pooled_norm.weight" in tensors:
        return "eva02"
    return "dinov3" if "registers" in tensors else "axial"


def folded_with_parts(
    tensors: Tensors, told: dict[str, Any]
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Folded tensors, and fields of `DescendantConfig` where they are not those of a `ViT`.

    Tensors of a plain ViT come back as they are.

    Args:
        tensors: under our names, with those of `folding`.
        told: options, and what names tell: "turning", for example.

    Raises:
        ValueError: if their LayerNorms stand in other places, see `has_late_norms`, or
            their rotary positions turn at another speed.
    """
    if told.pop("late_norms", False) or has_late_norms(tensors):
        raise ValueError(
            "these tensors are those of a ViT whose LayerNorms follow attention and MLP, as "
            "timm's vit_base_patch16_rpn_224; our blocks have them before, so it is no part here"
        )
    if {"norm.weight", "pooled_norm.weight"} <= tensors.keys():
        raise ValueError("these tensors have a LayerNorm before and one after the pooling")
    folded = fold(tensors)
    split_positions(folded, told.get("image_size"))
    parts = pool_of(tensors, told)
    parts |= {part: True for part, name in PARTS.items() if name in folded}
    for kind in ("weight", "bias"):
        if f"pooled_norm.{kind}" in folded:
            folded[f"norm.{kind}"] = folded.pop(f"pooled_norm.{kind}")
        if not parts.get("last_norm", True):
            folded.pop(f"norm.{kind}", None)
    if "mean_head.weight" in tensors:  # which does not read the pooling that lies beside it
        for name in [name for name in folded if name.startswith("pooling.")]:
            del folded[name]
    if "registers" in folded:
        parts["num_registers"] = folded["registers"].shape[1]
    if parts.get("pool") == "attention":
        parts["pooling_heads"] = told.get("pooling_heads", 0)
        before_patches = {"class_token", "registers"} & folded.keys()
        parts["pools_patches"] = told.get("pools_patches", bool(before_patches))
    if turning := told.get("turning"):
        parts["turning"], parts["rotary"] = turning, TURNINGS[turning].rotary
    if (periods := folded.pop("rotary_periods", None)) is not None:
        parts["num_heads"] = heads_of(periods, parts["rotary"], len(folded["norm.weight"]))
        if told.get("num_heads", parts["num_heads"]) != parts["num_heads"]:
            raise ValueError(f"its periods are those of {parts['num_heads']} heads")
    if told.get("gelu") == "quick":
        parts["gelu"] = "quick"
    if parts:
        parts["class_token"] = "class_token" in folded
    return folded, parts


def pool_of(tensors: Tensors, told: dict[str, Any]) -> dict[str, Any]:
    """What the head reads, if it is not the class token, and whether a LayerNorm comes before."""
    parts = {"last_norm": told["last_norm"]} if "last_norm" in told else {}
    if "mean_head.weight" in tensors:  # classifiers of transformers: CLIP's leaves out a norm
        return {"pool": "mean", "last_norm": False} if "class_token" in tensors else {}
    if "class_and_mean_head.weight" in tensors:
        return parts | {"pool": "class_and_mean"}
    if "distillation_head.weight" in tensors:
        return parts | {"pool": "class_and_register"}
    if "pooling.latent" in tensors:
        return parts | {"pool": told.get("pool", "attention")}
    reads_mean = "pooled_norm.weight" in tensors or told.get("pool") == "mean"
    return parts | ({"pool": "mean"} if reads_mean and "class_token" in tensors else {})


def heads_of(periods: torch.Tensor, rotary: Rotary, D: int) -> int:
    """The number of heads, from the periods of rotary positions, which dinov3's files hold.

    Raises:
        ValueError: if they are not those of `rotary`, or their number does not fit D.
    """
    if periods.ndim != 1 or not len(periods) or D % (4 * len(periods)):
        raise ValueError(f"{tuple(periods.shape)} periods of rotary positions do not fit D = {D}")
    expected = 1 / rotary.frequencies(4 * len(periods))[0, 0, : len(periods)]
    if not torch.allclose(periods.float(), expected, rtol=0.01):  # some are stored in 8 bits
        raise ValueError(
            f"rotary positions turn with periods from {periods.min():.3g} to "
            f"{periods.max():.3g}, those of {rotary} from 1 to {expected.max():.3g}"
        )
    return D // (4 * len(periods))


def has_late_norms(tensors: Tensors) -> bool:
    """Whether these are the tensors of timm's res-post-norm ViT, whose names say nothing of it.

    Of all that timm has, it alone normalizes what was pooled, and has neither a class token
    nor biases of q, k and v nor a layer scale.
    """
    of_a_layer = {f"encoder.0.attention.{name}" for name in ("qkv.bias", "q_bias", "scale")}
    others = {"class_token", "registers"} | of_a_layer
    return "pooled_norm.weight" in tensors and not tensors.keys() & others


def fold_turning(tensors: dict[str, torch.Tensor], turning: Turning, num_heads: int) -> None:
    """Bring the numbers of each head into our order: a product of q and k stays the same."""
    D = tensors["patch_embedding.projection.weight"].shape[0]
    learned, width = turning.rotary.learned, D // num_heads
    numbers = torch.arange(width)
    points = numbers.view(-1, 2) if turning.neighbors else numbers.view(2, -1).T  # (D/2h, 2)
    if turning.columns_first and not learned:
        points = points.roll(width // 4, dims=0)
    order = points.T.flatten()
    for name, tensor in tensors.items():
        if re.fullmatch(r"encoder\.\d+\.attention\.qkv\.(weight|bias)", name):
            heads = tensor.unflatten(0, (3, num_heads, width)).clone()
            heads[:2] = heads[:2, :, order]
            tensors[name] = heads.flatten(0, 2)
        elif re.fullmatch(r"encoder\.\d+\.attention\.(query|key)_norm\.(weight|bias)", name):
            tensors[name] = tensor[order]
    if "rotary_frequencies" in tensors:  # (2, L, h, D/2h)
        frequencies = tensors.pop("rotary_frequencies")
        if turning.columns_first:
            frequencies = frequencies.flip(0)
        for layer, of_layer in enumerate(frequencies.unbind(1)):
            tensors[f"encoder.{layer}.attention.frequencies"] = of_layer


def split_positions(tensors: dict[str, torch.Tensor], image_size: Any = None) -> None:
    """Positions of class token and patches only; those of registers are added to them.

    A class token without a position gets one of zeros. Nothing changes where the patches
    neither make a square nor fill `image_size`.

    Raises:
        ValueError: if patches of several squares would fit, and no `image_size` decides.
    """
    E_pos = tensors.get("pos_embedding")
    E = tensors.get("patch_embedding.projection.weight")
    if E is None or E_pos is None or E_pos.ndim != 3 or E_pos.shape[2] != len(E):
        return
    num_patches = 0
    if image_size is not None:
        num_patches = patches_in(image_size, E.shape[-1])
    registers = tensors.get("registers")
    R = 0 if registers is None else registers.shape[1]
    first = int("class_token" in tensors)
    T = E_pos.shape[1]
    # Tokens besides patches that have a position: all, class token, or none
    several = list(dict.fromkeys((first + R, first, 0)))
    told = [given for given in several if 0 < T - given == num_patches]
    squares = [given for given in several if T > given and math.isqrt(T - given) ** 2 == T - given]
    if not told and len(squares) > 1:
        sides = " or ".join(str(math.isqrt(T - given)) for given in squares)
        raise ValueError(f"the patches may be {sides} in a row and a column: give image_size=")
    if not told and not squares:
        return
    given = (told or squares)[0]
    if given == first:  # as we have them
        return
    besides, patches = E_pos.split([given, T - given], dim=1)
    if registers is not None and given == first + R:
        tensors["registers"] = registers.float() + besides[:, first:]
    of_class = besides[:, :first] if given else torch.zeros_like(E_pos[:, :first])
    tensors["pos_embedding"] = torch.cat([of_class, patches], dim=1)
