"""Checks for the exercises of notebook 01."""

import re
from collections.abc import Callable

import torch
from torch import nn

from going_modular.checks import require, require_answers, require_number, result_of, right
from going_modular.model_builder import ViT, ViTConfig, create_vit
from going_modular.utils import count_parameters

# No two of its sizes are the same, nor is any combination that is easy to mix up.
OTHER = ViTConfig(
    image_size=(48, 80),
    patch_size=8,
    in_channels=4,
    embedding_dim=24,
    num_layers=2,
    num_heads=3,
    mlp_dim=96,
    num_classes=7,
)


def sharper_images(tokens_large, tokens_huge) -> None:
    """Exercise 1.1: T of ViT-L/16 at 512 pixels and of ViT-H/14 at 518."""
    require_answers(tokens_large=tokens_large, tokens_huge=tokens_huge)
    for name, answer, size, P in (
        ("tokens_large", tokens_large, 512, 16),
        ("tokens_huge", tokens_huge, 518, 14),
    ):
        N = ViTConfig(image_size=size, patch_size=P).num_patches
        require(answer != N, f"{name}: these are the patches; which token is missing?")
        require_number(name, answer, N + 1, f"how often does {P} go into {size}? Square that")
    right("Over five times as many as at 224 pixels; of the parameters only E_pos grows.")


def another_journey(shapes) -> None:
    """Exercise 1.2: shapes in a model of other sizes, against the model itself."""
    vit, c = ViT(OTHER).eval(), OTHER
    images = torch.zeros(5, c.in_channels, *c.image_hw)
    expected = {}
    watched = {"patches × E": vit.patch_embedding, "z_0": vit.dropout}
    watched |= {"z_L": vit.encoder[-1], "logits": vit.head}
    for name, layer in watched.items():
        layer.register_forward_hook(
            lambda layer, given, result, name=name: expected.update({name: result})
        )
    vit.head.register_forward_hook(lambda _, given, result: expected.update(y=given[0]))
    with torch.inference_mode():
        vit(images)
    require_answers(**shapes)
    require(shapes.keys() == expected.keys(), f"give five shapes: {', '.join(expected)}")
    for name, result in expected.items():
        shape, answer = tuple(result.shape), shapes[name]
        require(isinstance(answer, tuple), f"{name}: a shape is a tuple, as (2, 3)")
        require(
            len(answer) == len(shape),
            f"{name}: is that one row for each image, or one for each of its tokens?",
        )
        rows = answer[1] if len(answer) == 3 else None
        require(
            rows not in [(side // c.patch_size) ** 2 for side in c.image_hw],
            f"{name}: H and W differ, so the grid has fewer rows than columns",
        )
        require(
            rows == shape[1] or rows not in (c.num_patches, c.num_patches + 1),
            f"{name}: is the class token among the rows here?",
        )
        require(
            answer == shape,
            f"{name}: go through the table of letters: B images, then tokens if they "
            "are still all there, then D, or at the end K",
        )
    right("Neither C nor h nor the size of the MLP is seen outside the layers.")


def where_symbols_live(lives_in) -> None:
    """Exercise 1.3: symbols of the paper, by the names of our parameters."""
    require_answers(**lives_in)
    vit = create_vit("ViT-B/16", image_size=16, embedding_dim=12, num_layers=3)
    names = {id(parameter): name for name, parameter in vit.named_parameters()}
    expected = {
        "E": vit.patch_embedding.projection.weight,
        "x_class": vit.class_token,
        "E_pos": vit.pos_embedding,
        "U_qkv, layer 2": vit.encoder[1].attention.qkv.weight,
        "U_msa, layer 3": vit.encoder[2].attention.projection.weight,
        "LN of equation 3, layer 1": vit.encoder[0].mlp_norm.weight,
        "LN of equation 4": vit.norm.weight,
    }
    require(lives_in.keys() == expected.keys(), f"it should have {', '.join(expected)}")
    for symbol, parameter in expected.items():
        answer, name = lives_in[symbol], names[id(parameter)]
        known = isinstance(answer, str) and answer in names.values()
        require(known, f"{symbol}: {answer!r} is none of the names that were printed")
        require(
            not answer.endswith(".bias") or answer != name.replace("weight", "bias"),
            f"{symbol}: the right layer, but its bias",
        )
        require(
            answer == name or re.sub(r"\d+", "", answer) != re.sub(r"\d+", "", name),
            f"{symbol}: the right part of another layer. The paper counts layers from "
            "1 to L; from where does Python count?",
        )
        require(
            answer == name,
            f"{symbol}: in which equation does it stand, and which class is that? "
            "See the table in notebook 01, section 1.3",
        )
    right("With such a list one can load weights that somebody else has trained.")


def twelve_d_squared(encoder_parameters: Callable) -> None:
    """Exercise 1.4: parameters of L encoder blocks."""
    for L, D in ((1, 6), (3, 10), (2, 64)):
        vit = ViT(
            ViTConfig(image_size=16, embedding_dim=D, num_layers=L, num_heads=2, mlp_dim=4 * D)
        )
        expected = count_parameters(vit.encoder)
        answer = result_of(encoder_parameters, L, D)
        norms = [m for m in vit.encoder.modules() if isinstance(m, nn.LayerNorm)]
        dense = [m for m in vit.encoder.modules() if isinstance(m, nn.Linear)]
        name = f"encoder_parameters({L}, {D})"
        for left_out, hint in (
            (sum(count_parameters(m) for m in norms), "the LayerNorms are missing"),
            (len(norms) // 2 * 2 * D, "there are two LayerNorms in a block"),
            (sum(m.bias.numel() for m in dense), "the biases are missing"),
            (
                sum(p.numel() for p in vit.encoder.parameters() if p.ndim == 1),
                "these are the matrices; biases and LayerNorms are missing",
            ),
            (
                expected - expected // L if L > 1 else None,
                "that is one block, and there are L of them",
            ),
        ):
            require(left_out is None or answer != expected - left_out, f"{name}: {hint}")
        require_number(
            name,
            answer,
            expected,
            "go through the list: how many rows and columns has each matrix, and how "
            "long is the bias that goes with it?",
        )
    right("Nearly 12 L D²: twice the width costs four times the parameters.")


def one_pixel(changed_tokens: Callable) -> None:
    """Exercise 1.5: how far a change of one pixel has come after each block."""
    T = OTHER.num_patches + 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vit = ViT(OTHER).eval()
        deaf = ViT(OTHER).eval()  # its attention adds nothing
        images = torch.randn(1, OTHER.in_channels, *OTHER.image_hw)
    for block in deaf.encoder:
        nn.init.zeros_(block.attention.projection.weight)
    one, two = images.clone(), images.clone()
    one[0, 1, 20, 33] += 5
    two[0, 1, [20, 47], [33, 0]] += 5
    for what, model, others, expected in (
        ("one pixel changed", vit, one, [1, T, T]),
        ("two pixels in two patches changed", vit, two, [2, T, T]),
        ("nothing changed", vit, images, [0, 0, 0]),
        ("one pixel changed, in a model without attention", deaf, one, [1, 1, 1]),
    ):
        answer = result_of(changed_tokens, model, images, others)
        require(isinstance(answer, list), "it should return a list of whole numbers")
        require(
            len(answer) == len(expected),
            f"with {what}: there should be one number for equation 1 and one for each "
            f"block, and there are {len(answer)} in all for {OTHER.num_layers} blocks",
        )
        require(
            all(n <= T for n in answer),
            f"with {what}: more than there are tokens. A token has changed if any of "
            "its D numbers has; count it once",
        )
        require(
            answer == expected,
            f"with {what}: these are not the tokens that changed. Compare what "
            "`vit.dropout` and each block of `vit.encoder` return for the two images",
        )
    right(
        "Attention is global (Section 3.1): one block, and each token has heard of the "
        "pixel. A 3 × 3 convolution carries it one pixel further at a time."
    )
