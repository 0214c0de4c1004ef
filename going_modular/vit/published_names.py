"""What the published implementations call the tensors of their ViTs.

`naming_of` finds the implementation that names belong to. facebookresearch's dinov2,
dinov3 and mae have timm's names, apart from a few; see `SPELLINGS`.
"""

import re
from collections.abc import Iterable
from dataclasses import replace
from itertools import product

from going_modular.images.transforms import CLIP, HALF
from going_modular.vit.names import Naming

TORCHVISION = Naming(
    "torchvision",
    {
        "patch_embedding.projection.": "conv_proj.",
        "class_token": "class_token",
        "pos_embedding": "encoder.pos_embedding",
        "encoder.{}.attention_norm.": "encoder.layers.encoder_layer_{}.ln_1.",
        "encoder.{}.attention.qkv.": "encoder.layers.encoder_layer_{}.self_attention.in_proj_",
        "encoder.{}.attention.projection.": (
            "encoder.layers.encoder_layer_{}.self_attention.out_proj."
        ),
        "encoder.{}.mlp_norm.": "encoder.layers.encoder_layer_{}.ln_2.",
        "encoder.{}.mlp.expand.": "encoder.layers.encoder_layer_{}.mlp.0.",
        "encoder.{}.mlp.contract.": "encoder.layers.encoder_layer_{}.mlp.3.",
        "norm.": "encoder.ln.",
        "representation.0.": "heads.pre_logits.",
        "head.": "heads.head.",
    },
)
TORCHVISION_FILES = Naming(  # older than the numbers of the MLP's layers
    "torchvision's published files",
    TORCHVISION.parts
    | {
        "encoder.{}.mlp.expand.": "encoder.layers.encoder_layer_{}.mlp.linear_1.",
        "encoder.{}.mlp.contract.": "encoder.layers.encoder_layer_{}.mlp.linear_2.",
    },
)
TIMM = Naming(
    "timm",
    {
        "patch_embedding.projection.": "patch_embed.proj.",
        "class_token": "cls_token",
        "pos_embedding": "pos_embed",
        "encoder.{}.attention_norm.": "blocks.{}.norm1.",
        "encoder.{}.attention.qkv.": "blocks.{}.attn.qkv.",
        "encoder.{}.attention.projection.": "blocks.{}.attn.proj.",
        "encoder.{}.mlp_norm.": "blocks.{}.norm2.",
        "encoder.{}.mlp.expand.": "blocks.{}.mlp.fc1.",
        "encoder.{}.mlp.contract.": "blocks.{}.mlp.fc2.",
        "norm.": "norm.",
        "head.": "head.",
        # Parts of later models, see `descendants`, and what `folding` folds
        "registers": "reg_token",
        "pre_norm.": "norm_pre.",
        "pooled_norm.": "fc_norm.",
        "distillation_token": "dist_token",
        "distillation_head.": "head_dist.",
        "rotary_frequencies": "rope.freqs",
        "encoder.{}.attention.scale": "blocks.{}.ls1.gamma",
        "encoder.{}.mlp.scale": "blocks.{}.ls2.gamma",
        "encoder.{}.attention.q_bias": "blocks.{}.attn.q_bias",
        "encoder.{}.attention.v_bias": "blocks.{}.attn.v_bias",
        "encoder.{}.attention.q.": "blocks.{}.attn.q_proj.",
        "encoder.{}.attention.k.": "blocks.{}.attn.k_proj.",
        "encoder.{}.attention.v.": "blocks.{}.attn.v_proj.",
        "encoder.{}.attention.query_norm.": "blocks.{}.attn.q_norm.",
        "encoder.{}.attention.key_norm.": "blocks.{}.attn.k_norm.",
        "encoder.{}.attention.projection.norm.": "blocks.{}.attn.norm.",
        "encoder.{}.mlp.gate.": "blocks.{}.mlp.fc1_g.",
        "encoder.{}.mlp.contract.norm.": "blocks.{}.mlp.norm.",
        "encoder.{}.attention.qkv.bias_mask": "blocks.{}.attn.qkv.bias_mask",
        "rotary_periods": "rope_embed.periods",
        "pooling.latent": "attn_pool.latent",
        "pooling.attention.q.": "attn_pool.q.",
        "pooling.attention.kv.": "attn_pool.kv.",
        "pooling.attention.projection.": "attn_pool.proj.",
        "pooling.norm.": "attn_pool.norm.",
        "pooling.mlp.expand.": "attn_pool.mlp.fc1.",
        "pooling.mlp.contract.": "attn_pool.mlp.fc2.",
    },
)


def timm_eva(gated: bool = False) -> Naming:
    """The names of timm's class `Eva` for DINOv3, whose largest have gated MLPs."""
    other = {
        "encoder.{}.attention.scale": "blocks.{}.gamma_1",
        "encoder.{}.mlp.scale": "blocks.{}.gamma_2",
        "encoder.{}.mlp.expand.": "blocks.{}.mlp.fc1_x." if gated else "blocks.{}.mlp.fc1.",
    }
    return replace(TIMM, parts=TIMM.parts | other)


def in_each_layer(before: str, parts: dict[str, str]) -> dict[str, str]:
    """Names of the parts of a layer, with the words before them."""
    return {f"encoder.{{}}.{ours}": before + theirs for ours, theirs in parts.items()}


# Hugging Face transformers: generation 5 is what its models have, and 4 the files on the Hub
HUGGINGFACE = "Hugging Face transformers"
ATTENTION = {
    5: {
        "attention.q.": "attention.q_proj.",
        "attention.k.": "attention.k_proj.",
        "attention.v.": "attention.v_proj.",
        "attention.projection.": "attention.o_proj.",
    },
    4: {
        "attention.q.": "attention.attention.query.",
        "attention.k.": "attention.attention.key.",
        "attention.v.": "attention.attention.value.",
        "attention.projection.": "attention.output.dense.",
    },
}
MLP = {"mlp.expand.": "mlp.fc1.", "mlp.contract.": "mlp.fc2."}
VIT_MLP = {5: MLP, 4: {"mlp.expand.": "intermediate.dense.", "mlp.contract.": "output.dense."}}
GATED_MLP = {
    "mlp.gate.": "mlp.gate_proj.",
    "mlp.expand.": "mlp.up_proj.",
    "mlp.contract.": "mlp.down_proj.",
}
DINOV2_GATED_MLP = {
    5: GATED_MLP,
    4: {"mlp.expand.": "mlp.weights_in.", "mlp.contract.": "mlp.weights_out."},  # gate and expand
}
DINO_NORMS = {
    "attention_norm.": "norm1.",
    "attention.scale": "layer_scale1.lambda1",
    "mlp_norm.": "norm2.",
    "mlp.scale": "layer_scale2.lambda1",
}
CLIP_LAYER = {
    "attention.q.": "self_attn.q_proj.",
    "attention.k.": "self_attn.k_proj.",
    "attention.v.": "self_attn.v_proj.",
    "attention.projection.": "self_attn.out_proj.",
    "attention_norm.": "layer_norm1.",
    "mlp_norm.": "layer_norm2.",
    **MLP,
}


def huggingface_vit(generation: int) -> Naming:
    """`ViT` and `DeiT`, which also have a head for the class token."""
    norms = {"attention_norm.": "layernorm_before.", "mlp_norm.": "layernorm_after."}
    parts = {
        "patch_embedding.projection.": "embeddings.patch_embeddings.projection.",
        "class_token": "embeddings.cls_token",
        "distillation_token": "embeddings.distillation_token",
        "pos_embedding": "embeddings.position_embeddings",
        **in_each_layer(
            {5: "layers.{}.", 4: "encoder.layer.{}."}[generation],
            ATTENTION[generation] | norms | VIT_MLP[generation],
        ),
        "norm.": "layernorm.",
        "representation.0.": "pooler.dense.",
        "head.": "classifier.",
        "distillation_head.": "distillation_classifier.",
    }
    return Naming(HUGGINGFACE, parts, layer_norm_eps=1e-12, normalization=HALF)


def huggingface_deit(generation: int, two_heads: bool) -> Naming:
    """`DeiTForImageClassificationWithTeacher`, whose heads have names of their own."""
    naming = huggingface_vit(generation)
    head = {"head.": "cls_classifier."} if two_heads else {}
    return replace(naming, parts=naming.parts | head)


def huggingface_dinov2(generation: int, gated: bool = False) -> Naming:
    """`Dinov2` and `Dinov2WithRegisters`, whose largest have gated MLPs."""
    mlp = DINOV2_GATED_MLP[generation] if gated else MLP
    parts = {
        "patch_embedding.projection.": "embeddings.patch_embeddings.projection.",
        "class_token": "embeddings.cls_token",
        "registers": "embeddings.register_tokens",
        "mask_token": "embeddings.mask_token",
        "pos_embedding": "embeddings.position_embeddings",
        **in_each_layer("encoder.layer.{}.", ATTENTION[generation] | DINO_NORMS | mlp),
        "norm.": "layernorm.",
        "class_and_mean_head.": "classifier.",
        "head.": "head.",
    }
    return Naming(HUGGINGFACE, parts)


def huggingface_dinov3(generation: int, gated: bool = False) -> Naming:
    """`DINOv3ViT`."""
    before = {5: "model.layer.{}.", 4: "layer.{}."}[generation]
    mlp = (
        GATED_MLP
        if gated
        else {ours: theirs for ours, theirs in GATED_MLP.items() if ours != "mlp.gate."}
    )
    parts = {
        "patch_embedding.projection.": "embeddings.patch_embeddings.",
        "class_token": "embeddings.cls_token",
        "registers": "embeddings.register_tokens",
        "mask_token": "embeddings.mask_token",
        **in_each_layer(before, ATTENTION[5] | DINO_NORMS | mlp),
        "norm.": "norm.",
        "head.": "classifier.",
    }
    return Naming(HUGGINGFACE, parts, layer_norm_eps=1e-5, turning="dinov3")


HUGGINGFACE_CLIP = Naming(
    HUGGINGFACE,
    {
        "patch_embedding.projection.": "embeddings.patch_embedding.",
        "class_token": "embeddings.class_embedding",
        "pos_embedding": "embeddings.position_embedding.weight",
        "pre_norm.": "pre_layrnorm.",
        **in_each_layer("encoder.layers.{}.", CLIP_LAYER),
        "norm.": "post_layernorm.",
        "head.": "visual_projection.",
        "mean_head.": "classifier.",
    },
    layer_norm_eps=1e-5,
    gelu="quick",
    normalization=CLIP,
)
HUGGINGFACE_SIGLIP = Naming(
    HUGGINGFACE,
    {
        "patch_embedding.projection.": "embeddings.patch_embedding.",
        "pos_embedding": "embeddings.position_embedding.weight",
        **in_each_layer("encoder.layers.{}.", CLIP_LAYER),
        "norm.": "post_layernorm.",
        "pooling.latent": "head.probe",
        "pooling.attention.qkv.": "head.attention.in_proj_",
        "pooling.attention.projection.": "head.attention.out_proj.",
        "pooling.norm.": "head.layernorm.",
        "pooling.mlp.expand.": "head.mlp.fc1.",
        "pooling.mlp.contract.": "head.mlp.fc2.",
        "head.": "visual_projection.",  # there is none: what is read from the pooling has no head
        "mean_head.": "classifier.",
    },
    gelu="tanh",
    normalization=HALF,
)
OPEN_CLIP = Naming(
    "open_clip",
    {
        "patch_embedding.projection.": "conv1.",
        "class_token": "class_embedding",
        "pos_embedding": "positional_embedding",
        "pre_norm.": "ln_pre.",
        **in_each_layer(
            "transformer.resblocks.{}.",
            {
                "attention_norm.": "ln_1.",
                "attention.qkv.": "attn.in_proj_",
                "attention.projection.": "attn.out_proj.",
                "attention.scale": "ls_1.gamma",
                "mlp_norm.": "ln_2.",
                "mlp.expand.": "mlp.c_fc.",
                "mlp.contract.": "mlp.c_proj.",
                "mlp.scale": "ls_2.gamma",
            },
        ),
        "norm.": "ln_post.",
        "transposed_head": "proj",
        "head.": "head.",
    },
    layer_norm_eps=1e-5,
    normalization=CLIP,
)
JAX_ATTENTION = "Transformer/encoderblock_{}/MultiHeadDotProductAttention_1/"
JAX = Naming(
    "the official JAX checkpoints",
    {
        "patch_embedding.projection.": "embedding/",
        "class_token": "cls",
        "pos_embedding": "Transformer/posembed_input/pos_embedding",
        "encoder.{}.attention_norm.": "Transformer/encoderblock_{}/LayerNorm_0/",
        "encoder.{}.attention.q.": JAX_ATTENTION + "query/",
        "encoder.{}.attention.k.": JAX_ATTENTION + "key/",
        "encoder.{}.attention.v.": JAX_ATTENTION + "value/",
        "encoder.{}.attention.projection.": JAX_ATTENTION + "out/",
        "encoder.{}.mlp_norm.": "Transformer/encoderblock_{}/LayerNorm_2/",
        "encoder.{}.mlp.expand.": "Transformer/encoderblock_{}/MlpBlock_3/Dense_0/",
        "encoder.{}.mlp.contract.": "Transformer/encoderblock_{}/MlpBlock_3/Dense_1/",
        "norm.": "Transformer/encoder_norm/",
        "representation.0.": "pre_logits/",
        "head.": "head/",
    },
    gelu="tanh",
    normalization=HALF,
    jax=True,
)
DESCENDANTS = """registers pre_norm. encoder.{}.attention.query_norm. encoder.{}.attention.key_norm.
encoder.{}.attention.projection.norm. encoder.{}.attention.frequencies encoder.{}.mlp.gate.
encoder.{}.mlp.contract.norm. pooling.latent pooling.attention.qkv. pooling.attention.projection.
pooling.norm. pooling.mlp.expand. pooling.mlp.contract.""".split()
OURS = Naming("this project", {name: name for name in (*TORCHVISION.parts, *DESCENDANTS)})

NAMINGS = (
    OURS,
    TORCHVISION,
    TORCHVISION_FILES,
    TIMM,
    *(huggingface_vit(generation) for generation in (5, 4)),
    *(huggingface_dinov2(*kind) for kind in product((5, 4), (False, True))),
    *(huggingface_dinov3(*kind) for kind in product((5, 4), (False, True))),
    HUGGINGFACE_SIGLIP,  # before CLIP's, which fit as well where SigLIP has no pooling
    HUGGINGFACE_CLIP,
    OPEN_CLIP,
    JAX,
)

# Words before the names of a ViT that is part of a larger model
WRAPPERS = re.compile(
    r"^(visual\.trunk|visual|vision_model|backbone|vit|deit|dinov2|dinov2_with_registers"
    r"|dinov3_vit|ijepa)\."
)
# Tensors beside a ViT, which its features do not need: of what, and their names
BESIDES = {
    "of the text tower": re.compile(
        r"(text|text_model|transformer|token_embedding|ln_final)\..*|positional_embedding"
        r"|text_projection(\.weight)?|logit_scale|logit_bias|attn_mask"
    ),
    "of a decoder": re.compile(r"decoder\..*|decoder_(embed|pos_embed|blocks|norm|pred).*"),
    "for masked patches": re.compile(r"(embeddings\.)?mask_token"),
    "that only counts positions": re.compile(r"embeddings\.position_ids"),
    "for small crops in training": re.compile(r"local_cls_norm\..*"),
    "of a head for training": re.compile(r"(dino|ibot)_head\..*"),
}
# Names of one tensor in several models, and the one in `NAMINGS`
SPELLINGS = [
    (re.compile(pattern), spelling)
    for pattern, spelling in [
        (r"^(blocks\.\d+)\.gamma_([12])$", r"\1.ls\2.gamma"),  # timm's EVA
        (r"^(blocks\.\d+\.mlp)\.fc1_x\.", r"\1.fc1."),
        (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),  # dinov2 in training, in chunks of layers
        (r"^(register|storage)_tokens$", "reg_token"),  # dinov2 and dinov3
        (r"^(blocks\.\d+\.mlp)\.w1\.", r"\1.fc1_g."),
        (r"^(blocks\.\d+\.mlp)\.(w2|w12)\.", r"\1.fc1."),
        (r"^(blocks\.\d+\.mlp)\.w3\.", r"\1.fc2."),
        (r"^cls_classifier\.", "classifier."),  # DeiT in transformers
        (r"^head\.proj\.", "head."),  # a ViT of timm's in open_clip
    ]
]


def spellings(names: Iterable[str]) -> dict[str, str]:
    """For each name of a ViT's tensor how `NAMINGS` spell it; what lies beside is left out.

    Raises:
        ValueError: if two names have the same spelling.
    """
    names = list(names)
    beside = {name for group in tensors_beside(names).values() for name in group}
    spelled = {name: spelling_of(name) for name in names if name not in beside}
    first: dict[str, str] = {}
    for name, spelling in spelled.items():
        if first.setdefault(spelling, name) != name:
            raise ValueError(f"{first[spelling]} and {name} are the same tensor of a ViT")
    return spelled


def spelling_of(name: str) -> str:
    """How `NAMINGS` spell a name."""
    name = WRAPPERS.sub("", name)
    for pattern, spelling in SPELLINGS:
        name = pattern.sub(spelling, name)
    return name


def tensors_beside(names: Iterable[str]) -> dict[str, list[str]]:
    """The names of tensors that are no part of a ViT, by what they are instead.

    A text tower has names of a ViT. It is one only beside another tower, for images.
    """
    names = list(names)
    towers = any(re.match(r"(visual|vision_model)\.", name) for name in names)
    return {
        what: found
        for what, pattern in BESIDES.items()
        if (towers or what != "of the text tower")
        and (found := [name for name in names if pattern.fullmatch(inner_name(name, what))])
    }


def inner_name(name: str, what: str) -> str:
    """A name without the words of a larger model; a text tower has names of its own."""
    return name if what == "of the text tower" else WRAPPERS.sub("", name)


def remarks_on(names: Iterable[str]) -> list[str]:
    """A sentence on all tensors that are no part of a ViT, if there are any."""
    groups = tensors_beside(names)
    counts = [
        f"{len(found)} {what}" if len(found) > 1 else f"{found[0]} ({what})"
        for what, found in groups.items()
    ]
    return [f"left out, for its features do not need them: {', '.join(counts)}"] if counts else []


def naming_of(names: Iterable[str]) -> Naming:
    """The naming that knows most of these names.

    A new head often has another place than the published one: `model.heads =
    nn.Linear(...)` makes it "heads.", where torchvision has "heads.head.".

    Raises:
        ValueError: if no naming knows any of them.
    """
    given, names = names, set(spellings(names).values())
    best = max(NAMINGS, key=lambda naming: known_names(naming, names))
    layers = {name.rpartition(".")[0] for name in names if best.is_head(name)}
    place = f"{layers.pop()}." if len(layers) == 1 and not best.jax else ""
    if place and place != best.parts["head."]:
        best = replace(best, parts=best.parts | {"head.": place})
    if not known_names(best, names):
        titles = ", ".join(dict.fromkeys(naming.title for naming in NAMINGS))
        first = ", ".join(sorted(given)[:5]) or "there are no tensors at all"
        raise ValueError(
            f"these are not the names of a ViT that is known here ({titles}): {first}. "
            'If they share a prefix, such as "module.", remove it.'
        )
    return best


def known_names(naming: Naming, names: Iterable[str]) -> int:
    """How many of these names a naming knows; 0 if no layer is among them."""
    names = set(names)
    depth = naming.depth(names)
    return len(names.intersection(naming.names(depth).values())) if depth else 0


def count_known(names: Iterable[str]) -> int:
    """How many of these names the best naming knows."""
    names = spellings(names).values()
    return max(known_names(naming, names) for naming in NAMINGS)
