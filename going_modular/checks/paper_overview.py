"""Checks for the exercises of notebook 01."""

import re
from collections.abc import Callable

import torch
from torch import nn

from going_modular.checks import (
    SMALL,
    require,
    require_answers,
    require_number,
    result_of,
    right,
    small_images,
)
from going_modular.model_builder import MultiheadSelfAttentionBlock, ViT, ViTConfig, create_vit
from going_modular.utils import count_parameters


def sharper_images(tokens_large, tokens_huge) -> None:
    """Exercise 1.1: the tokens of ViT-L/16 at 512 pixels and of ViT-H/14 at 518."""
    require_answers(tokens_large=tokens_large, tokens_huge=tokens_huge)
    for name, answer, size, P in (
        ("tokens_large", tokens_large, 512, 16),
        ("tokens_huge", tokens_huge, 518, 14),
    ):
        N = ViTConfig(image_size=size, patch_size=P).num_patches
        require(answer != N, f"{name}: this counts the patches. Which token is missing?")
        require_number(name, answer, N + 1, f"how many patches of {P} pixels fit along {size}?")
    right("That is over five times as many as at 224 pixels. Only E_pos gets more parameters.")


def another_journey(shapes) -> None:
    """Exercise 1.2: the shapes in a model of unusual sizes."""
    vit, c = ViT(SMALL).eval(), SMALL
    with torch.inference_mode():
        images = small_images()
        z_0 = vit.embed(images)
        z_L = vit.encoder(z_0)
        y = vit.norm(z_L[:, 0])
        expected = {
            "patches × E": vit.patch_embedding(images),
            "z_0": z_0,
            "z_L": z_L,
            "y": y,
            "logits": vit.head(y),
        }
    require_answers(**shapes)
    require(shapes.keys() == expected.keys(), f"give five shapes: {', '.join(expected)}")
    for name, tensor in expected.items():
        shape, answer = tuple(tensor.shape), shapes[name]
        require(isinstance(answer, tuple), f"{name}: a shape is a tuple, such as (2, 3)")
        require(
            len(answer) == len(shape),
            f"{name}: is there one row for each image, or one for each of its tokens?",
        )
        tokens = answer[1] if len(answer) == 3 else None
        require(
            tokens not in [(side // c.patch_size) ** 2 for side in c.image_hw],
            f"{name}: the image is not square. How many rows and columns has its grid?",
        )
        require(
            tokens == shape[1] or tokens not in (c.num_patches, c.num_patches + 1),
            f"{name}: is the class token among the tokens here?",
        )
        require(
            answer == shape,
            f"{name}: go through the axes. B images come first. Are all tokens still "
            "there? Is the last axis D or K?",
        )
    right("Outside the layers you see neither C nor h nor the MLP size.")


def where_symbols_live(lives_in) -> None:
    """Exercise 1.3: the parameters that hold the symbols of the paper."""
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
    require(lives_in.keys() == expected.keys(), f"lives_in should have {', '.join(expected)}")
    for symbol, parameter in expected.items():
        answer, name = lives_in[symbol], names[id(parameter)]
        known = isinstance(answer, str) and answer in names.values()
        require(known, f"{symbol}: {answer!r} is not one of the printed names")
        require(
            not answer.endswith(".bias") or answer != name.replace("weight", "bias"),
            f"{symbol}: the layer is right, but this is its bias",
        )
        require(
            answer == name or re.sub(r"\d+", "", answer) != re.sub(r"\d+", "", name),
            f"{symbol}: this is the right part of the wrong layer. The paper counts layers "
            "from 1 to L. Where does Python start?",
        )
        require(
            answer == name,
            f"{symbol}: which equation is it in, and which class is that? See the table in "
            "notebook 01, section 1.3",
        )
    right("With such a list you can load weights that someone else has trained.")


def twelve_d_squared(encoder_parameters: Callable) -> None:
    """Exercise 1.4: the parameters of L encoder blocks."""
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
            (len(norms) // 2 * 2 * D, "how many LayerNorms are there in a block?"),
            (sum(m.bias.numel() for m in dense), "the biases are missing"),
            (
                sum(p.numel() for p in vit.encoder.parameters() if p.ndim == 1),
                "this counts the matrices. What else does a block hold?",
            ),
            (expected - expected // L if L > 1 else None, "this is the count for one block"),
        ):
            require(left_out is None or answer != expected - left_out, f"{name}: {hint}")
        require_number(
            name,
            answer,
            expected,
            "go through the list. How many rows and columns has each matrix, and how long "
            "is its bias?",
        )
    right("This is nearly 12 L D²: twice the width means four times the parameters.")


def one_pixel(changed_tokens: Callable) -> None:
    """Exercise 1.5: how far the change of one pixel spreads in each block."""
    T = SMALL.num_patches + 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vit, without_attention = ViT(SMALL).eval(), ViT(SMALL).eval()
    for module in without_attention.modules():
        if isinstance(module, MultiheadSelfAttentionBlock):
            nn.init.zeros_(module.projection.weight)
    image = small_images()[:1]
    one_changed, two_changed = image.clone(), image.clone()
    one_changed[0, 1, 20, 33] += 5
    two_changed[0, 1, [20, 47], [33, 0]] += 5  # in two patches
    for case, model, other, expected in (
        ("one pixel changed", vit, one_changed, [1, T, T]),
        ("two pixels in two patches changed", vit, two_changed, [2, T, T]),
        ("nothing changed", vit, image, [0, 0, 0]),
        ("one pixel changed, no attention", without_attention, one_changed, [1, 1, 1]),
    ):
        answer = result_of(changed_tokens, model, image, other)
        require(isinstance(answer, list), "it should return a list of whole numbers")
        require(
            len(answer) == len(expected),
            f"{case}: return one number for equation 1 and one for each block. For "
            f"{SMALL.num_layers} blocks there are {len(answer)} numbers",
        )
        require(
            all(n <= T for n in answer),
            f"{case}: there are fewer tokens than that. Does a token count once for each "
            "changed number?",
        )
        require(
            answer == expected,
            f"{case}: these are not the numbers of changed tokens. Compare the outputs of "
            "`vit.dropout` and of each block of `vit.encoder` for the two images",
        )
    right(
        "Attention is global (Section 3.1): after one block the pixel has reached every "
        "token. A 3 × 3 convolution carries it only one pixel further."
    )
