"""Checks for the exercises of notebook 07."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import nn

from going_modular import model_builder
from going_modular.checks import (
    SMALL,
    NotYet,
    is_close,
    require,
    require_answers,
    require_number,
    require_tensor,
    result_of,
    right,
    small_images,
    small_vit,
)
from going_modular.model_builder import ViTConfig
from going_modular.utils import count_parameters


def on_meta(config: ViTConfig) -> model_builder.ViT:
    """Return a ViT on PyTorch's "meta" device: it has shapes and takes no memory."""
    with torch.device("meta"):
        return model_builder.ViT(config)


def first_problem(error: RuntimeError) -> str:
    """Return the first line of the list in an error of `load_state_dict`."""
    return str(error).splitlines()[1].strip()


def patches_of_eight(projection_change, positions_change) -> None:
    """Exercise 7.1: how ViT-B/8's parameters differ from ViT-B/16's."""
    large, small = (on_meta(ViTConfig(patch_size=P)) for P in (16, 8))
    parts = {
        "projection_change": (projection_change, lambda vit: vit.patch_embedding),
        "positions_change": (positions_change, lambda vit: vit.pos_embedding),
    }
    hints = {
        "projection_change": "the matrix has P²C rows and D columns. How large is it for "
        "P = 16 and for P = 8? Does the bias change?",
        "positions_change": "each patch has a row of D numbers. How many patches are "
        "there for P = 16 and for P = 8?",
    }
    for name, (answer, part) in parts.items():
        before, after = (sum(p.numel() for p in tensors_of(part(v))) for v in (large, small))
        require_answers(**{name: answer})
        require(
            answer != before - after,
            f"{name}: the size is right but the sign is wrong. A gain is positive",
        )
        require_number(name, answer, after - before, hints[name])
    right(
        "The two nearly cancel. The computation does not: four times as many tokens go "
        "through each block."
    )


def tensors_of(part: nn.Module | nn.Parameter) -> list[nn.Parameter]:
    """Return the parameters of a module, or the parameter itself."""
    return [part] if isinstance(part, nn.Parameter) else list(part.parameters())


def one_block_twelve_times(parameters, arithmetic_falls) -> None:
    """Exercise 7.2: the parameters of a ViT-B/16 that repeats one block, `[block] * 12`."""
    vit = on_meta(ViTConfig(num_classes=3))
    total, block = count_parameters(vit), count_parameters(vit.encoder[0])
    require_answers(parameters=parameters, arithmetic_falls=arithmetic_falls)
    require(
        parameters != total - block,
        "parameters: there were twelve blocks. How many different ones are left?",
    )
    require(parameters != total - 12 * block, "parameters: is there really no block left to count?")
    require_number(
        "parameters",
        parameters,
        total - 11 * block,
        "start from the full model and subtract the blocks that are gone",
    )
    require(isinstance(arithmetic_falls, bool), "arithmetic_falls should be True or False")
    require(
        not arithmetic_falls,
        "arithmetic_falls: how many blocks does an image go through before and after the mistake?",
    )
    right(
        "Shapes, loss and speed look normal. Only the parameter count shows the mistake. "
        "ALBERT, a language model, shares its blocks on purpose."
    )


def module_of_the_class(vit, parameters) -> None:
    """Exercise 7.3: notebook 07's class in a module of its own, with 1000 classes."""
    require_answers(vit=vit, parameters=parameters)
    require(
        isinstance(vit, ModuleType),
        f"vit should be an imported module, but its type is {type(vit).__name__}",
    )
    require(hasattr(vit, "ViT"), "the module was imported, but it has no class ViT")
    require(
        vit.ViT.__module__ == vit.__name__ and vit.ViT is not model_builder.ViT,
        "vit.py imports its ViT from another module. It should define the class itself",
    )
    reference, ours = small_vit(), vit.ViT(SMALL).eval()
    try:
        ours.load_state_dict(reference.state_dict())
    except RuntimeError as error:
        raise NotYet(f"this is not the class of notebook 07: {first_problem(error)}") from None
    images = small_images()
    with torch.no_grad():
        require_tensor(
            "the module's logits",
            ours(images),
            reference(images),
            "does vit.py hold the complete cell, unchanged?",
        )
    counts = {K: count_parameters(on_meta(ViTConfig(num_classes=K))) for K in (3, 1000)}
    require(parameters != counts[3], "parameters: this is a model for three classes")
    require_number(
        "parameters",
        parameters,
        counts[1000],
        "the defaults of ViTConfig() describe ViT-B/16 for 1000 classes. Pass such a model "
        "to count_parameters",
    )
    right("From now on you can import the class without running a notebook first.")


def logits_after_each_block(function: Callable) -> None:
    """Exercise 7.4: the logits of equation 4 after each block, 1 to L."""
    vit, images = small_vit(), small_images()
    logits_by_depth, logits_without_norm = [], []
    with torch.no_grad():
        for L in range(1, SMALL.num_layers + 1):
            shorter = model_builder.ViT(replace(SMALL, num_layers=L)).eval()
            shorter.load_state_dict({name: vit.state_dict()[name] for name in shorter.state_dict()})
            z_L = shorter.encoder(shorter.embed(images))
            logits_by_depth.append(shorter(images))
            logits_without_norm.append(shorter.head(z_L[:, 0]))
        logits = result_of(function, vit, images)
    expected, unnormalized = torch.stack(logits_by_depth), torch.stack(logits_without_norm)
    require(
        isinstance(logits, torch.Tensor),
        "the result should be one tensor: torch.stack makes one from a list of logits",
    )
    shape = tuple(logits.shape)
    require(
        shape != (SMALL.num_layers + 1, *expected.shape[1:]),
        "there is one result too many: z_0 comes before the first block",
    )
    require(
        not is_close(logits, unnormalized),
        "what does equation 4 do to the class token before the head reads it?",
    )
    require_tensor(
        "logits_after_each_block(vit, images)",
        logits,
        expected,
        "what does each block get: the output of the block before it, or a normalized "
        "copy? Which token does the head read?",
    )
    right(
        "The last row is the model's own answer. The others show how it develops. For "
        "language models this is called the logit lens."
    )


# The names of nn.TransformerEncoderLayer and ours
BUILT_IN = {
    "self_attn.in_proj_": "attention.qkv.",
    "self_attn.out_proj.": "attention.projection.",
    "linear1.": "mlp.expand.",
    "linear2.": "mlp.contract.",
    "norm1.": "attention_norm.",
    "norm2.": "mlp_norm.",
}


def in_built_in_names(blocks: nn.Module) -> dict[str, torch.Tensor]:
    """Return our blocks' state_dict with the names of nn.TransformerEncoder."""
    renamed = {}
    for name, tensor in blocks.state_dict().items():
        for their_name, our_name in BUILT_IN.items():
            name = name.replace(our_name, their_name)
        renamed[f"layers.{name}"] = tensor
    return renamed


def vit_of_built_in_layers(function: Callable) -> None:
    """Exercise 7.5: the chapter's exercise, a ViT from nn.TransformerEncoder."""
    encoder = result_of(function, SMALL)
    require(
        isinstance(encoder, nn.TransformerEncoder),
        f"the result should be an nn.TransformerEncoder, but its type is {type(encoder).__name__}",
    )
    layer = encoder.layers[0]
    require(
        layer.self_attn.batch_first,
        "the layer takes the first axis for the tokens, so the images of a batch attend "
        "to each other. Which argument says that the batch comes first?",
    )
    require(
        layer.norm_first,
        "where does the layer normalize, before or after each part? Where does a ViT?",
    )
    require(layer.activation is not F.relu, "which activation does the layer have by default?")
    require(
        encoder.norm is None,
        "our ViT has a last LayerNorm already, self.norm. The encoder should have none",
    )
    require(
        layer.norm1.eps == layer.norm2.eps == SMALL.layer_norm_eps,
        "the eps of the layer is PyTorch's default, not the one of the configuration",
    )
    require(
        layer.dropout1.p == layer.dropout2.p == SMALL.dropout,
        "the dropout is not the one of the configuration",
    )
    matrices = [[p for p in one.parameters() if p.ndim == 2] for one in encoder.layers]
    layers_differ = all(
        not torch.equal(a, b)
        for first, second in pairwise(matrices)
        for a, b in zip(first, second, strict=True)
    )
    reference = small_vit()
    try:
        encoder.load_state_dict(in_built_in_names(reference.encoder))
    except RuntimeError as error:
        raise NotYet(f"the encoder has other tensors than ours: {first_problem(error)}") from None
    with torch.no_grad():
        z_0 = reference.embed(small_images())  # (B, N+1, D)
        require_tensor(
            "the encoder's output",
            encoder.eval()(z_0),
            reference.encoder(z_0),
            "is the number of heads right? Does anything change the output of the layers?",
        )
    require(
        layers_differ,
        "the tokens are right. But nn.TransformerEncoder copies one layer, so all layers "
        "start with the same matrices. Initialize each layer on its own",
    )
    config = ViTConfig(num_classes=3)
    with torch.device("meta"):
        vit, ours = model_builder.ViT(config), model_builder.ViT(config)
        vit.encoder = function(config)
        logits_shape = tuple(vit(torch.zeros(1, 3, 224, 224)).shape)
    require(
        count_parameters(vit) == count_parameters(ours),
        "the small model is right, but ViT-B/16 has a different number of parameters",
    )
    right(
        f"ViT-B/16 has {count_parameters(vit):,} parameters and logits {logits_shape}, the "
        "same as ours. In training it also drops attention weights (Section 6.2)."
    )
