"""What other implementations call the tensors of a ViT, and how they lay them out.

A `Naming` turns our tensors into another implementation's (`export`) and theirs into
ours (`translate`). It is a table of names. Some implementations have three layers for
queries, keys and values; our fused `qkv` is then split in three. JAX transposes its
matrices and gives the heads an axis of their own.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch

from going_modular.images.transforms import HALF, IMAGENET, Normalization

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
    """

    title: str
    parts: dict[str, str]
    layer_norm_eps: float = 1e-6
    gelu: str = "exact"
    normalization: Normalization = IMAGENET
    jax: bool = False

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
    """`qkv`, (3D, D) and (3D), -> `q`, `k` and `v`, each (D, D) and (D)."""
    split = {}
    for name, tensor in tensors.items():
        if ".qkv." in name:
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
        "pooling.latent": "attn_pool.latent",
        "pooling.attention.q.": "attn_pool.q.",
        "pooling.attention.kv.": "attn_pool.kv.",
        "pooling.attention.projection.": "attn_pool.proj.",
        "pooling.norm.": "attn_pool.norm.",
        "pooling.mlp.expand.": "attn_pool.mlp.fc1.",
        "pooling.mlp.contract.": "attn_pool.mlp.fc2.",
    },
)
# Names of one tensor in several of timm's models, and the one in `TIMM`
SPELLINGS = [
    (re.compile(r"^(blocks\.\d+)\.gamma_([12])$"), r"\1.ls\2.gamma"),
    (re.compile(r"^(blocks\.\d+\.mlp)\.fc1_x\."), r"\1.fc1."),
]


def respell(tensors: Tensors) -> dict[str, torch.Tensor]:
    """Tensors under the names of `NAMINGS` where they have other spellings."""
    respelled = {}
    for name, tensor in tensors.items():
        for pattern, spelling in SPELLINGS:
            name = pattern.sub(spelling, name)
        respelled[name] = tensor
    return respelled


HUGGINGFACE_BLOCKS = {
    5: {
        "encoder.{}.attention.q.": "layers.{}.attention.q_proj.",
        "encoder.{}.attention.k.": "layers.{}.attention.k_proj.",
        "encoder.{}.attention.v.": "layers.{}.attention.v_proj.",
        "encoder.{}.attention.projection.": "layers.{}.attention.o_proj.",
        "encoder.{}.attention_norm.": "layers.{}.layernorm_before.",
        "encoder.{}.mlp_norm.": "layers.{}.layernorm_after.",
        "encoder.{}.mlp.expand.": "layers.{}.mlp.fc1.",
        "encoder.{}.mlp.contract.": "layers.{}.mlp.fc2.",
    },
    4: {
        "encoder.{}.attention.q.": "encoder.layer.{}.attention.attention.query.",
        "encoder.{}.attention.k.": "encoder.layer.{}.attention.attention.key.",
        "encoder.{}.attention.v.": "encoder.layer.{}.attention.attention.value.",
        "encoder.{}.attention.projection.": "encoder.layer.{}.attention.output.dense.",
        "encoder.{}.attention_norm.": "encoder.layer.{}.layernorm_before.",
        "encoder.{}.mlp_norm.": "encoder.layer.{}.layernorm_after.",
        "encoder.{}.mlp.expand.": "encoder.layer.{}.intermediate.dense.",
        "encoder.{}.mlp.contract.": "encoder.layer.{}.output.dense.",
    },
}


def huggingface(generation: int, prefix: str) -> Naming:
    """The names of transformers: generation 5 in its models, 4 in the files on the Hub.

    `ViTModel` has no prefix. `ViTForImageClassification` puts "vit." before every name
    except those of the head.
    """
    body = {
        "patch_embedding.projection.": "embeddings.patch_embeddings.projection.",
        "class_token": "embeddings.cls_token",
        "pos_embedding": "embeddings.position_embeddings",
        **HUGGINGFACE_BLOCKS[generation],
        "norm.": "layernorm.",
        "representation.0.": "pooler.dense.",
    }
    return Naming(
        "Hugging Face transformers",
        {ours: prefix + theirs for ours, theirs in body.items()} | {"head.": "classifier."},
        layer_norm_eps=1e-12,
        normalization=HALF,
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
    *(huggingface(generation, prefix) for generation in (5, 4) for prefix in ("", "vit.")),
    JAX,
)


def naming_of(names: Iterable[str]) -> Naming:
    """The naming that knows most of these names.

    A new head often has another place than the published one: `model.heads =
    nn.Linear(...)` makes it "heads.", where torchvision has "heads.head.".

    Raises:
        ValueError: if no naming knows any of them.
    """
    names = set(names)
    best = max(NAMINGS, key=lambda naming: known_names(naming, names))
    layers = {name.rpartition(".")[0] for name in names if best.is_head(name)}
    place = f"{layers.pop()}." if len(layers) == 1 and not best.jax else ""
    if place and place != best.parts["head."]:
        best = replace(best, parts=best.parts | {"head.": place})
    if not known_names(best, names):
        titles = ", ".join(dict.fromkeys(naming.title for naming in NAMINGS))
        first = ", ".join(sorted(names)[:5]) or "there are no tensors at all"
        raise ValueError(
            f"these are not the names of a ViT that is known here ({titles}): {first}. "
            'If they share a prefix, such as "module.", remove it.'
        )
    return best


def known_names(naming: Naming, names: Iterable[str]) -> int:
    """How many of these names a naming knows."""
    return len(set(names).intersection(naming.names(naming.depth(names)).values()))


def count_known(names: Iterable[str]) -> int:
    """How many of these names the best naming knows."""
    return max(known_names(naming, names) for naming in NAMINGS)


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
