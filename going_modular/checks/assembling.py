"""Checks of the exercises to notebook 07."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import nn

from going_modular import model_builder
from going_modular.checks import (
    NotYet,
    noise,
    require,
    require_answers,
    require_number,
    require_tensor,
    result_of,
    right,
)
from going_modular.model_builder import ViTConfig
from going_modular.utils import count_parameters, give_random_values

# No two sizes are equal, so that axes cannot be exchanged unnoticed.
TINY = ViTConfig(
    image_size=(24, 16),
    patch_size=4,
    in_channels=3,
    embedding_dim=30,
    num_layers=3,
    num_heads=5,
    mlp_dim=70,
    num_classes=7,
)


def on_meta(model_class, config) -> nn.Module:
    """A model of shapes without numbers, so that none is too large."""
    with torch.device("meta"):
        return model_class(config)


def two_images(config: ViTConfig) -> torch.Tensor:
    """(2, C, H, W) of noise."""
    return noise(2, config.in_channels, *config.image_hw)


def filled(config: ViTConfig) -> nn.Module:
    """The package's ViT with random values in all its tensors."""
    return give_random_values(model_builder.ViT(config)).eval()


def first_line(error: RuntimeError) -> str:
    """What is wrong first, of the long list that load_state_dict gives."""
    return str(error).splitlines()[1].strip()


def patches_of_eight(projection_change, positions_change) -> None:
    """7.1: what ViT-B/8 has more or less than ViT-B/16."""
    large, small = (on_meta(model_builder.ViT, ViTConfig(patch_size=P)) for P in (16, 8))
    parts = {
        "projection_change": (projection_change, lambda vit: vit.patch_embedding),
        "positions_change": (positions_change, lambda vit: vit.pos_embedding),
    }
    hints = {
        "projection_change": "one matrix of P²C rows and D columns, for P = 16 and for "
        "P = 8; its bias stays",
        "positions_change": "a row of D numbers for each patch: how many patches are "
        "there at P = 16, and how many at P = 8?",
    }
    for name, (answer, part) in parts.items():
        sizes = (sum(p.numel() for p in tensors_of(part(v))) for v in (large, small))
        before, after = sizes
        require_answers(**{name: answer})
        require(
            answer != before - after,
            f"{name}: the size is right, the sign is not; more is positive",
        )
        require_number(name, answer, after - before, hints[name])
    right(
        "Together they nearly cancel. What does not is the arithmetic: four times as "
        "many tokens go through each block."
    )


def tensors_of(part: nn.Module | nn.Parameter) -> list[nn.Parameter]:
    """The parameters of a module, or a parameter itself."""
    return [part] if isinstance(part, nn.Parameter) else list(part.parameters())


def one_block_twelve_times(parameters, arithmetic_falls) -> None:
    """7.2: what `[block] * 12` leaves of ViT-B/16, K = 3."""
    vit = on_meta(model_builder.ViT, ViTConfig(num_classes=3))
    whole, block = count_parameters(vit), count_parameters(vit.encoder[0])
    require_answers(parameters=parameters, arithmetic_falls=arithmetic_falls)
    require(
        parameters != whole - block,
        "parameters: there were twelve blocks; how many of them are left?",
    )
    require(
        parameters != whole - 12 * block, "parameters: one block is still there, and it is counted"
    )
    require_number(
        "parameters",
        parameters,
        whole - 11 * block,
        "start from the whole model and take away what is there no more",
    )
    require(isinstance(arithmetic_falls, bool), "arithmetic_falls should be True or False")
    require(
        not arithmetic_falls,
        "arithmetic_falls: how often does an image go through a block, before and "
        "after the mistake?",
    )
    right(
        "Shapes, loss and speed look right: only the count tells. (ALBERT, a language "
        "model, shares its blocks on purpose.)"
    )


def module_of_the_class(vit, parameters) -> None:
    """7.3: notebook 07's class in a module of its own, with 1000 classes."""
    require_answers(vit=vit, parameters=parameters)
    require(
        isinstance(vit, ModuleType),
        f"vit should be an imported module, and is {type(vit).__name__}",
    )
    require(hasattr(vit, "ViT"), "the module has been imported, and has no class ViT")
    require(
        vit.ViT.__module__ == vit.__name__ and vit.ViT is not model_builder.ViT,
        "the module's ViT was imported from elsewhere: the class itself should stand in vit.py",
    )
    reference, ours = filled(TINY), vit.ViT(TINY).eval()
    try:
        ours.load_state_dict(reference.state_dict())
    except RuntimeError as error:
        raise NotYet(f"not the class of notebook 07: {first_line(error)}") from None
    images = two_images(TINY)
    with torch.no_grad():
        require_tensor(
            "the module's logits",
            ours(images),
            reference(images),
            "is the cell in vit.py whole and unchanged?",
        )
    counts = {
        K: count_parameters(on_meta(model_builder.ViT, ViTConfig(num_classes=K))) for K in (3, 1000)
    }
    require(parameters != counts[3], "parameters: this is a model for three classes")
    require_number(
        "parameters",
        parameters,
        counts[1000],
        "the fields of ViTConfig() are those of ViT-B/16 for 1000 classes; count_parameters counts",
    )
    right("From now on it is `import`, and no notebook has to be run before.")


def logits_after_each_block(function: Callable) -> None:
    """7.4: equation 4 read after block 1, 2, … L."""
    vit, images = filled(TINY), two_images(TINY)
    expected, raw = [], []
    with torch.no_grad():
        for L in range(1, TINY.num_layers + 1):
            shorter = model_builder.ViT(replace(TINY, num_layers=L)).eval()
            shorter.load_state_dict({name: vit.state_dict()[name] for name in shorter.state_dict()})
            expected.append(shorter(images))
            shorter.norm = nn.Identity()
            raw.append(shorter(images))
        logits = result_of(function, vit, images)
    expected, raw = torch.stack(expected), torch.stack(raw)  # each (L, B, K)
    require(
        isinstance(logits, torch.Tensor),
        "the lists of logits should be stacked into one tensor: torch.stack",
    )
    shape = tuple(logits.shape)
    require(
        shape != (TINY.num_layers + 1, *expected.shape[1:]),
        "one too many: z_0 comes before all blocks and is not asked for",
    )
    require(
        shape != expected.shape or not torch.allclose(logits, raw, atol=1e-5),
        "the head expects what the last LayerNorm gives: equation 4 has an LN",
    )
    require_tensor(
        "logits_after_each_block(vit, images)",
        logits,
        expected,
        "each block goes on with what the one before it returned, not with what the "
        "LayerNorm made of it; the class token is token 0",
    )
    right(
        "The last row is the model's own answer; the others show how it comes about. "
        "(Of language models this is known as the logit lens.)"
    )


# nn.TransformerEncoderLayer's names and ours
BUILT_IN = {
    "self_attn.in_proj_": "attention.qkv.",
    "self_attn.out_proj.": "attention.projection.",
    "linear1.": "mlp.expand.",
    "linear2.": "mlp.contract.",
    "norm1.": "attention_norm.",
    "norm2.": "mlp_norm.",
}


def in_built_in_names(blocks: nn.Sequential) -> dict:
    """The tensors of our blocks under the names of nn.TransformerEncoder."""
    renamed = {}
    for name, tensor in blocks.state_dict().items():
        for their_name, our_name in BUILT_IN.items():
            name = name.replace(our_name, their_name)
        renamed[f"layers.{name}"] = tensor
    return renamed


class BuiltInViT(model_builder.ViT):
    """Our ViT with another encoder."""

    def __init__(self, config: ViTConfig, encoder: nn.Module):
        super().__init__(config)
        self.encoder = encoder


def vit_of_built_in_layers(function: Callable) -> None:
    """7.5: the chapter's exercise, ViT from nn.TransformerEncoder."""
    encoder = result_of(function, TINY)
    require(
        isinstance(encoder, nn.TransformerEncoder),
        "what comes back should be an nn.TransformerEncoder",
    )
    layer = encoder.layers[0]
    require(
        layer.self_attn.batch_first,
        "without batch_first=True the first axis counts as the tokens, and the images "
        "of a batch attend to each other",
    )
    require(layer.norm_first, "a ViT has the LayerNorm before each part: norm_first")
    require(layer.activation is not F.relu, "the layer's default is ReLU")
    require(encoder.norm is None, "ViT has the last LayerNorm already, as self.norm")
    require(
        layer.norm1.eps == layer.norm2.eps == TINY.layer_norm_eps,
        "the layer has an eps of its own; take that of the configuration",
    )
    require(
        layer.dropout1.p == layer.dropout2.p == TINY.dropout,
        "the dropout is not that of the configuration",
    )
    starts = [[p for p in one.parameters() if p.ndim == 2] for one in encoder.layers]
    differ = all(
        not torch.equal(a, b)
        for first, second in pairwise(starts)
        for a, b in zip(first, second, strict=True)
    )
    reference = filled(TINY)
    try:
        encoder.load_state_dict(in_built_in_names(reference.encoder))
    except RuntimeError as error:
        raise NotYet(f"not the tensors of our blocks: {first_line(error)}") from None
    with torch.no_grad():
        z_0 = reference.embed(two_images(TINY))  # (B, N+1, D)
        require_tensor(
            "what the encoder gives",
            encoder.eval()(z_0),
            reference.encoder(z_0),
            "how many heads are there, and is anything done to what the layers give?",
        )
    require(
        differ,
        "the tokens are right, but the layers start with the same matrices, because "
        "nn.TransformerEncoder copies one layer: let them differ",
    )
    config = ViTConfig(num_classes=3)
    with torch.device("meta"):
        vit, ours = BuiltInViT(config, function(config)), model_builder.ViT(config)
        shape = tuple(vit(torch.zeros(1, 3, 224, 224)).shape)
    require(
        count_parameters(vit) == count_parameters(ours),
        "the tiny model is right, but ViT-B/16 has another number of parameters",
    )
    right(
        f"ViT-B/16: {count_parameters(vit):,} parameters and logits {shape}, as ours. "
        "In training its dropout falls on the attention weights too (Section 6.2)."
    )
