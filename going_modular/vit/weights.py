"""Weights of every implementation, into our `ViT`.

`load_vit` makes a model from a file, and `load_weights` fills a model that exists, from
any names in `published_names`. `export` goes the other way.
"""

import math
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from going_modular.images.transforms import Normalization
from going_modular.model_builder import ViT, ViTConfig
from going_modular.training.distributed import print_once
from going_modular.vit.config import VIT_CONFIGS, patches_in
from going_modular.vit.descendant_config import DescendantConfig
from going_modular.vit.descendants import build_vit
from going_modular.vit.files import StoredWeights, read_weights
from going_modular.vit.names import FLOATS, Naming, Tensors, mismatches
from going_modular.vit.positions import Grid, interpolate_pos_embedding
from going_modular.vit.published_names import (
    OPEN_CLIP,
    OURS,
    TIMM,
    naming_of,
    remarks_on,
    spellings,
)
from going_modular.vit.relatives import (
    TURNINGS,
    fold_turning,
    folded_with_parts,
    options_of,
    turning_told_by,
)

# What `load_vit` can be told
OPTIONS = {each.name for each in fields(DescendantConfig)} | {"architecture"}
# Heads of published ViTs by D: Table 1, DeiT's sizes, and g, G and SO400M (arXiv
# 2106.04560, 2305.13035)
PUBLISHED_HEADS = {c.embedding_dim: c.num_heads for c in VIT_CONFIGS.values()}
PUBLISHED_HEADS |= {1408: 16, 1664: 16, 1152: 16}
SEVERAL_HEADS = {768, 1280, 1536}  # timm has ViTs of these widths with other numbers


def load_vit(
    weights: str | Path | StoredWeights | Tensors, *, head: bool = True, **overrides
) -> ViT:
    """A ViT made from weights, in evaluation mode.

    A file of `write_vit` stores its configuration. For all other weights the sizes are
    read from the shapes, see `config_from_state_dict`, and a line is printed for what the
    shapes leave open: what a file beside the weights tells, and a guessed number of heads.

    Args:
        weights: the path of a file, its content from `read_weights`, or a state_dict.
        head: False makes a new head, all zero, as a new task needs. So does a
            `num_classes` that is not the weights' own.
        overrides: fields of `ViTConfig` or `DescendantConfig`. For another `image_size` the
            positions are interpolated. `architecture`, the name of one of timm's, tells
            what no tensor shows, such as CLIP's GELU; see `relatives.ARCHITECTURES`.

    Returns:
        A plain `ViT` if the weights fold into one, else a `Descendant`.

    Raises:
        FileNotFoundError, ValueError: see `read_weights`, `config_from_state_dict` and
            `load_weights`.
    """
    if isinstance(weights, str | Path):
        weights = read_weights(weights)
    if not isinstance(weights, StoredWeights):
        naming = naming_of(weights)
        weights = StoredWeights("these weights", weights, naming, naming.normalization)
    config, tensors = weights.config, weights.tensors
    known = weights.options | overrides
    if unknown := overrides.keys() - OPTIONS:
        raise ValueError(f"a ViT has no {', '.join(sorted(unknown))}: see DescendantConfig")
    remarks = list(weights.remarks)
    if config is None:
        own_size = weights.options.get("image_size")
        config, tensors = understand(tensors, own_size=own_size, **known)
        remarks += remarks_on(weights.tensors)
        remarks += doubt_of_heads(weights, config, known)
        remarks += doubts_of_descendants(weights.naming, config, known)
        remarks += doubt_of_rotary(weights, config, known)
        remarks += unread_by_classifier(weights)
    overrides.pop("architecture", None)
    if others := overrides.keys() - {each.name for each in fields(config)}:
        raise ValueError(f"{weights.file_name} is a plain ViT, without {', '.join(others)}")
    config_here = replace(config, **overrides)
    try:
        vit = build_vit(config_here)
    except (RuntimeError, MemoryError) as error:  # shapes in a damaged file may be huge
        raise ValueError(
            f"there is not enough memory for the ViT of {weights.file_name}, {config_here}"
        ) from error
    keeps_head = head and vit.config.num_classes == config.num_classes
    load_weights(
        vit,
        tensors,
        head=keeps_head,
        interpolate=True,
        grid=config.grid,
        layer_norm_eps=known.get("layer_norm_eps"),
    )
    if keeps_head and config.num_classes and not vit.head.weight.any():
        remarks.append(
            "the head is all zero, so it knows nothing yet: all classes are equally likely"
        )
    for remark in remarks:
        print_once(f"{weights.file_name}: {remark}")
    return vit.eval()


def doubt_of_heads(
    weights: StoredWeights, config: ViTConfig, known: Mapping[str, Any]
) -> list[str]:
    """A remark if the number of heads is a guess. Few files show it: JAX's and dinov3's do."""
    D, is_timm = config.embedding_dim, weights.naming.title == TIMM.title
    shown = weights.naming.jax or "rope_embed.periods" in weights.tensors
    if shown or "num_heads" in known | options_of(known.get("architecture", "")):
        return []
    is_timm = is_timm and "architecture" not in known
    if D in PUBLISHED_HEADS and not (is_timm and D in SEVERAL_HEADS):
        return []
    reason = (
        f"as most published ViTs with D = {D} have"
        if D in PUBLISHED_HEADS
        else "one for every 64 of D"
    )
    return [
        f"{config.num_heads} heads are a guess, {reason}. With another number, the ViT computes "
        "something else: num_heads=, or --num-heads of train, sets it"
    ]


def doubts_of_descendants(naming: Naming, config: ViTConfig, known: Mapping[str, Any]) -> list[str]:
    """A remark on each part that no tensor shows, if nobody told it."""
    if not isinstance(config, DescendantConfig) or "architecture" in known:
        return []
    remarks, advice = [], "architecture=, or --architecture of train, with timm's name, tells"
    if config.rotary is not None and not config.rotary.learned:
        remarks.append(f"{config.rotary} is a guess from the names of its tensors; {advice}")
    if (config.pre_norm or config.pool == "attention") and "gelu" not in known:
        remarks.append(f'gelu="{config.gelu}" is a guess, others have another; {advice}')
    open_pools = ("class_token", "attention")  # no tensor shows them; others do
    if naming.title in (TIMM.title, OPEN_CLIP.title) and config.pool in open_pools:
        if "pool" not in known:
            remarks.append(f'pool="{config.pool}" is a guess, others read another; {advice}')
    return remarks


def doubt_of_rotary(
    weights: StoredWeights, config: ViTConfig, known: Mapping[str, Any]
) -> list[str]:
    """A remark if a ViT of timm's class Eva gets none: it may have rotary positions as well."""
    is_eva = weights.naming.title == TIMM.title and any(".gamma_1" in n for n in weights.tensors)
    if not is_eva or "architecture" in known or getattr(config, "rotary", None) is not None:
        return []
    return ["no rotary positions is a guess: architecture=, with timm's name, tells"]


def unread_by_classifier(weights: StoredWeights) -> list[str]:
    """A remark on tensors that transformers' classifiers on CLIP and SigLIP do not read."""
    parts, names = weights.naming.parts, spellings(weights.tensors).values()
    if "mean_head." not in parts or f"{parts['mean_head.']}weight" not in names:
        return []
    unread = ("head.",) if "pooling.latent" in parts else (parts["norm."],)
    count = sum(name.startswith(unread) for name in names)
    return [f"{count} tensors of {unread[0]} are left out: its classifier does not read them"]


def normalization_of(weights: str | Path | Tensors) -> Normalization:
    """How the colors of images have to be normalized for these weights.

    A file of `write_vit` stores it; if it is older than that entry, it was trained with
    ImageNet's numbers. For all other weights the answer is what most published weights
    under their names expect. Some of timm's expect 0.5 instead of ImageNet's numbers,
    which their files do not say.

    Raises:
        FileNotFoundError, ValueError: see `read_weights`; also if the names are unknown.
    """
    if isinstance(weights, Mapping):
        return naming_of(weights).normalization
    return read_weights(weights).normalization


def config_from_state_dict(state_dict: Tensors, **options) -> ViTConfig:
    """The configuration of the ViT that weights belong to, from their shapes.

    Args:
        options: fields of `ViTConfig` that no shape shows: `gelu`, the dropouts,
            `layer_norm_eps`, `num_heads`, and, unless the patches make a square and each
            has its own position, `image_size` and `pos_embedding`. Where shapes and
            options differ, the shapes win. The default for `num_heads` is that of
            published ViTs with the same D, else D / 64; JAX's files show it. The defaults
            for `layer_norm_eps` and `gelu` are what models under these names compute with.

    Raises:
        ValueError: if names are unknown, or a tensor or option is missing or misshapen.
    """
    return understand(state_dict, **options)[0]


def understand(
    state_dict: Tensors, *, own_size: Any = None, **options
) -> tuple[ViTConfig, Tensors]:
    """What `config_from_state_dict` says, and the tensors that a model of it has.

    The tensors of a plain ViT are returned as they are. Those of a descendant have our
    names, and all that folds is folded.

    Args:
        own_size: the image size of these weights, if a file beside them tells it.
    """
    names_here = spellings(state_dict)
    given = {there: torch.as_tensor(state_dict[name]) for name, there in names_here.items()}
    naming = naming_of(given)
    names = naming.names(naming.depth(given))
    if unknown := given.keys() - names.values():
        raise ValueError(
            f"most of these names are those of {naming.title}, but some are not a ViT's:\n"
            + "\n".join(f"  unknown: {name}" for name, n in names_here.items() if n in unknown)
        )
    for name, there in names_here.items():
        if given[there].dtype not in FLOATS and not name.endswith("bias_mask"):
            raise ValueError(f"{name} holds {given[there].dtype}, not floating-point numbers")
    translated = naming.translate(given)
    told = {"gelu": naming.gelu, "turning": naming.turning}
    try:
        if naming.title == TIMM.title:
            told["turning"] = turning_told_by(state_dict, translated)
        told |= options_of(options.pop("architecture", "")) | options
        tensors, parts = folded_with_parts(translated, told)
    except (KeyError, IndexError, RuntimeError) as error:  # a part is missing or misshapen
        raise ValueError(f"these tensors do not go together ({error})") from error
    if naming.title == OURS.title and parts:
        raise ValueError(
            f"these tensors have parts that not all show ({', '.join(parts)}): save the model "
            "with going_modular.vit.files.write_vit, which keeps its configuration"
        )
    axes = {
        "patch_embedding.projection.weight": 4,
        "encoder.0.mlp.expand.weight": 2,
        "class_token": 3,
        "pos_embedding": 3,
        "representation.0.weight": 2,
        "head.weight": 2,
    }
    optional = {"class_token", "representation.0.weight", "head.weight", *told}
    if "rotary" in parts:
        optional.add("pos_embedding")
    for name, count in axes.items():
        fits = tensors[name].ndim == count if name in tensors else name in optional
        if not fits:
            raise ValueError(
                f"these names are most like those of {naming.title}, but there is no "
                f"{names[name]} with {count} axes among the weights"
            )
    D, C, P, _ = tensors["patch_embedding.projection.weight"].shape

    def rows(name: str) -> int:
        """The length of a tensor's first axis; 0 if there is no such tensor."""
        return tensors[name].shape[0] if name in tensors else 0

    newer = parts.get("pre_norm") or (parts.get("rotary") and parts["rotary"].centered)
    defaults: dict[str, Any] = {
        "num_heads": PUBLISHED_HEADS.get(D) or max(D // 64, 1),
        "layer_norm_eps": 1e-5 if newer else naming.layer_norm_eps,
    }
    sizes: dict[str, Any] = {
        "patch_size": P,
        "in_channels": C,
        "embedding_dim": D,
        "num_layers": naming.depth(given),
        "mlp_dim": rows("encoder.0.mlp.expand.weight"),
        "num_classes": rows("head.weight"),
        "pool": "class_token" if "class_token" in tensors else "mean",
        "representation_size": rows("representation.0.weight"),
    }
    query = given.get(names.get("encoder.0.attention.q.weight", ""))
    if query is not None and query.ndim == 3:  # (D, h, D/h), in JAX's files
        sizes["num_heads"] = query.shape[1]
    if "pos_embedding" in tensors:
        _, T, width = tensors["pos_embedding"].shape
        sizes["pos_embedding"] = "learned_1d" if width == D else "learned_2d"
        N = T - rows("class_token")
        if own_size is not None and patches_in(own_size, P) == N:
            sizes["image_size"] = own_size
        elif width == D and N > 0 and math.isqrt(N) ** 2 == N:
            sizes["image_size"] = math.isqrt(N) * P
        elif "image_size" not in options:
            raise ValueError(
                f"{N} patches are no square: give their image_size=(H, W), or make a "
                "ViT of that size and fill it with load_weights"
            )
    elif "rotary" in parts:
        sizes["pos_embedding"] = "none"
    values = defaults | told | sizes | parts
    turning = values.pop("turning", "")
    if not parts:
        if others := values.keys() - {each.name for each in fields(ViTConfig)}:
            raise ValueError(f"these weights are those of a plain ViT, without {', '.join(others)}")
        plain = all(tensor is translated.get(name) for name, tensor in tensors.items())
        return ViTConfig(**values), given if plain else tensors
    config = DescendantConfig(**values)
    if turning:
        try:
            fold_turning(tensors, TURNINGS[turning], config.num_heads)
        except (KeyError, IndexError, RuntimeError) as error:
            raise ValueError(f"queries and keys do not have {config.num_heads} heads") from error
    return config, tensors


def load_weights(
    vit: ViT,
    state_dict: Tensors,
    *,
    head: bool = True,
    interpolate: bool = False,
    grid: Grid | None = None,
    layer_norm_eps: float | None = None,
) -> list[str]:
    """Fill a ViT with weights under the names of any implementation in `NAMINGS`.

    Nothing is folded here: weights of a later ViT, with layer scale for example, are
    read by `load_vit`.

    Args:
        head: False leaves out the head of the weights and keeps that of `vit`. The same
            holds for a pre-training layer (`representation_size`) that only one of them
            has.
        interpolate: whether positions of another grid are interpolated (Section 3.2).
        grid: (rows, columns) of the weights' positions. Without it, they are those of
            `vit` if they are as many, else a square.
        layer_norm_eps: what LayerNorms are to use. Without it, weights under our names
            leave it as it is in `vit`, and all others set what models under their names
            compute with: 1e-12 for Hugging Face transformers, else 1e-6. The kind of GELU
            is never changed; the official JAX checkpoints need a ViT with `gelu="tanh"`,
            which `load_vit` builds.

    Returns:
        The names of the weights that were left out: a head that is not wanted, a
        pre-training layer (Hugging Face's "pooler") without a head behind it, and what is
        no part of a ViT, such as a token for masked patches.

    Raises:
        ValueError: if a weight is unknown, missing, of another shape, or not of
            floating-point numbers. The message lists all of them by the names that they
            were given under; `vit` is unchanged. Also for a `grid` without `interpolate`.
    """
    if grid and not interpolate:
        raise ValueError(f"grid={grid} has no effect: set interpolate=True as well")
    names_here = spellings(state_dict)
    given = {there: torch.as_tensor(state_dict[name]) for name, there in names_here.items()}
    naming, config = naming_of(given), vit.config
    expected = dict(naming.export(vit.state_dict(), config.num_layers, config.num_heads))
    # Tensors that they have no name for go by ours, as in `export`
    names = {name: name for name in vit.state_dict()} | naming.names(config.num_layers)
    heads = {name for name in given.keys() | expected.keys() if naming.is_head(name)}
    representation = {
        theirs for ours, theirs in names.items() if ours.startswith("representation.")
    }

    optional_names: set[str] = set()
    if not head:
        both = representation & given.keys() and representation & expected.keys()
        optional_names = heads if both else heads | representation
    elif not heads & given.keys():  # no head was trained behind this layer
        optional_names = representation - expected.keys()
    left_out = [name for name in state_dict if names_here.get(name) in {None, *optional_names}]
    for name in optional_names:
        given.pop(name, None)
        expected.pop(name, None)
    if interpolate:
        fit_positions(given, names["pos_embedding"], vit, grid)
    check_weights(given, expected, naming, names_here)

    vit.load_state_dict(naming.translate(given), strict=False)  # all are accounted for
    if layer_norm_eps is None and naming.title != OURS.title:
        layer_norm_eps = naming.layer_norm_eps
    if layer_norm_eps is not None:
        vit.config = replace(config, layer_norm_eps=layer_norm_eps)
        for module in (*vit.encoder.modules(), vit.norm):  # a stem keeps its own
            if isinstance(module, nn.LayerNorm):
                module.eps = layer_norm_eps
    return left_out


def fit_positions(
    given: dict[str, torch.Tensor], name: str, vit: ViT, grid: Grid | None = None
) -> None:
    """Interpolate the positions among the given weights to the grid of `vit`.

    Positions that do not have the shape of a grid are left for `check_weights`.
    """
    config, positions = vit.config, given.get(name)
    if config.pos_embedding != "learned_1d" or positions is None or positions.ndim != 3:
        return
    N = positions.shape[1] - config.num_class_tokens
    side = math.isqrt(max(N, 0))
    rows, columns = grid or (config.grid if N == config.num_patches else (side, side))
    if N > 0 and rows * columns == N and positions.shape[2] == config.embedding_dim:
        positions = positions.to(vit.pos_embedding.dtype)
        given[name] = interpolate_pos_embedding(positions, (rows, columns), config.grid)


def check_weights(
    given: Tensors, expected: Tensors, naming: Naming, names_here: Mapping[str, str]
) -> None:
    """Raise `ValueError`, with a line for each problem, unless the weights fit a ViT.

    The lines have the names that the weights were given under, see `spellings`.
    """
    shown = {there: name for name, there in names_here.items()}
    given, expected = (
        {shown.get(name, name): tensor for name, tensor in tensors.items()}
        for tensors in (given, expected)
    )
    if problems := mismatches(given, expected):
        raise ValueError(
            f"these weights (names of {naming.title}) are not those of this ViT:\n  "
            + "\n  ".join(problems)
            + "\nload_weights can leave out a head of other classes (head=False) and "
            "interpolate positions to another image size (interpolate=True)."
        )
