"""Checks for the exercises of notebook 03."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from going_modular.checks import (
    is_close,
    noise,
    require,
    require_answers,
    require_number,
    require_tensor,
    result_of,
    right,
)
from going_modular.model_builder import VIT_CONFIGS, PatchEmbedding, ViTConfig
from going_modular.utils import count_parameters, give_random_values


def a_fourth_channel(parameters, more_parameters, more_tokens) -> None:
    """Exercise 3.1: the projection of ViT-S/16 for colour and depth."""
    require_answers(parameters=parameters, more_parameters=more_parameters, more_tokens=more_tokens)
    P, D = 16, VIT_CONFIGS["ViT-S/16"].embedding_dim
    rgbd, rgb = (count_parameters(PatchEmbedding(C, P, D)) for C in (4, 3))
    require(parameters != rgbd - D, "parameters: the bias is missing")
    require(parameters != rgb, "parameters: that is for three channels")
    require_number(
        "parameters",
        parameters,
        rgbd,
        "a weight for each number of a patch and each number of its embedding, and a "
        "bias for each number of the embedding",
    )
    require(
        more_parameters != rgbd - rgb + D,
        "more_parameters: the bias does not depend on the number of channels",
    )
    require_number(
        "more_parameters",
        more_parameters,
        rgbd - rgb,
        "how many numbers does a patch have in the new channel?",
    )
    require_number("more_tokens", more_tokens, 0, "does N = HW / P² depend on the channels?")
    right("Whatever a patch holds becomes one token: more channels, same attention.")


def whose_pixel(token_of_pixel: Callable) -> None:
    """Exercise 3.2: the token that a pixel goes into."""
    for y, x, H, W, P in (
        (0, 0, 224, 224, 16),
        (100, 50, 224, 224, 16),
        (47, 16, 48, 80, 8),
        (9, 79, 48, 80, 8),
        (39, 2, 40, 10, 5),
    ):
        name = f"token_of_pixel(y={y}, x={x}, W={W}, P={P})"
        image = torch.zeros(1, 1, H, W)
        image[0, 0, y, x] = 1
        embed = PatchEmbedding(1, P, 3)
        nn.init.ones_(embed.projection.weight)
        with torch.inference_mode():
            token = 1 + embed(image)[0, :, 0].argmax().item()
        answer = result_of(token_of_pixel, y, x, W, P)
        for value, hint in (
            (token - 1, "what is in front of the patches, as token 0?"),
            (
                1 + x // P * (W // P) + y // P,
                "x and y are swapped: patches are counted row by row, and y says in "
                "which row the pixel is",
            ),
        ):
            require(value == token or answer != value, f"{name}: {hint}")
        require_number(
            name,
            answer,
            token,
            "how many whole rows of patches lie above, how many patches are in a row, "
            "and how many lie to the left?",
        )
    right("Notebook 12 uses it the other way round, to draw attention over the image.")


def four_mistakes(equation_1: type) -> None:
    """Exercise 3.3: equation 1 as a module."""
    C, P, D, (H, W) = 2, 4, 12, (8, 12)
    N = ViTConfig(image_size=(H, W), patch_size=P).num_patches
    require_answers(Equation1=equation_1)
    model = equation_1(C, P, D, N)
    for name in ("projection", "class_token", "pos_embedding"):
        has_it = getattr(model, name, ...) is not ...
        require(has_it, f"replace the dots: __init__ makes no self.{name} yet")
    require(
        tuple(model.projection.weight.shape) == (D, C, P, P),
        f"a model with patch_size={P} has a projection of the shape "
        f"{tuple(model.projection.weight.shape)}: it is a convolution, and whose patch "
        "size does it use?",
    )
    for name in ("class_token", "pos_embedding"):
        require(
            isinstance(getattr(model, name), nn.Parameter),
            f"{name} is no parameter: no optimizer will ever change it, and no "
            "state_dict will keep it",
        )
    require(
        model.class_token.shape[0] == 1,
        "class_token: the batch is not part of it, its shape is (1, 1, D)",
    )
    require(
        model.pos_embedding.shape[1] != N,
        "pos_embedding has no row for the class token, which gets a position too",
    )
    give_random_values(model)
    for B in (1, 3):
        images = noise(B, C, H, W)
        z_0 = result_of(model.forward, images)
        patches = model.projection(images).flatten(2).transpose(1, 2)  # (B, N, D)
        first = model.class_token.expand(B, 1, D)
        expected = torch.cat([first, patches], dim=1) + model.pos_embedding
        last = torch.cat([patches, first], dim=1) + model.pos_embedding
        for value, hint in (
            (last, "the class token comes last, and should come first"),
            (expected - model.pos_embedding, "the positions are missing"),
        ):
            require(not is_close(z_0, value), f"z_0: {hint}")
        require_tensor(
            f"z_0 of {B} images",
            z_0,
            expected,
            "class token first, then the patches, and to all of them their positions",
        )
    z_0.sum().backward()
    for name in ("class_token", "pos_embedding"):
        require(
            getattr(model, name).grad is not None,
            f"no gradient comes back to {name}: is it used as it is?",
        )
    right(
        "All four mistakes left the shape as it should be. Shapes find many mistakes; "
        "the others take numbers."
    )


def pixel_by_pixel(linear_like: Callable) -> None:
    """Exercise 3.4: a strided convolution as a linear layer on the paper's flattened patches."""
    for C, D, P in ((3, 10, 4), (5, 7, 2)):
        generator = torch.Generator().manual_seed(0)
        conv = nn.Conv2d(C, D, kernel_size=P, stride=P)
        images = torch.randn((2, C, 3 * P, 2 * P), generator=generator)
        by_channel = F.unfold(images, P, stride=P).transpose(1, 2)  # (B, N, CP²)
        by_pixel = by_channel.unflatten(2, (C, P * P)).transpose(2, 3).flatten(2)
        linear = result_of(linear_like, conv)
        require(
            isinstance(linear, nn.Linear) and linear.in_features == P * P * C,
            f"it should return an nn.Linear that takes P²C numbers, {P * P * C} here",
        )
        require(linear.bias is not None, "the convolution has a bias: it comes along")
        with torch.inference_mode():
            expected = conv(images).flatten(2).transpose(1, 2)  # (B, N, D)
            answer = linear(by_pixel)
            in_other_order = torch.allclose(linear(by_channel), expected, atol=1e-5)
            only_weights = torch.allclose(answer - linear.bias, expected - conv.bias[:], atol=1e-5)
        require(
            not in_other_order,
            "this fits patches that are flattened channel by channel. Here the C "
            "numbers of a pixel stand together, so C has to be the last axis",
        )
        require(
            not only_weights or torch.allclose(linear.bias, conv.bias),
            "the weights are right, the bias is not that of the convolution",
        )
        require_tensor(
            f"linear(patches) for C = {C}, D = {D}, P = {P}",
            answer,
            expected,
            "bring the weights (D, C, P, P) into the order of the numbers in a patch, "
            "and copy weights and bias",
        )
    right("That is what it takes to read weights which others have saved.")


def the_way_back(patches_again: Callable, no_way_back) -> None:
    """Exercise 3.5: patches from their embeddings."""
    C, P = 3, 2
    for D in (30, 8):
        generator = torch.Generator().manual_seed(0)
        conv = nn.Conv2d(C, D, kernel_size=P, stride=P).double()
        images = torch.randn((2, C, 6, 4), generator=generator, dtype=torch.float64)
        patches = F.unfold(images, P, stride=P).transpose(1, 2)  # (B, N, P²C)
        W = conv.weight.flatten(1)  # (D, P²C)
        with torch.inference_mode():
            tokens = conv(images).flatten(2).transpose(1, 2)  # (B, N, D)
            inverse = torch.linalg.pinv(W).T
            with_bias = tokens @ inverse
            expected = (tokens - conv.bias) @ inverse
            answer = result_of(patches_again, tokens, conv)
        what = f"patches of {P * P * C} numbers from tokens of {D}"
        if isinstance(answer, torch.Tensor) and answer.shape == expected.shape:
            same = torch.allclose(answer.double(), with_bias, atol=1e-5)
            require(not same, f"{what}: take the bias away first")
        require_tensor(
            what,
            answer,
            expected,
            "the layer computes tokens = patches @ W.T + bias; undo the last one first",
        )
        if D >= P * P * C:
            assert torch.allclose(expected, patches)
    require_answers(no_way_back=no_way_back)
    require(
        isinstance(no_way_back, list) and set(no_way_back) <= set(VIT_CONFIGS),
        f"no_way_back: a list of names out of {', '.join(VIT_CONFIGS)}",
    )
    lossy = {
        name for name, c in VIT_CONFIGS.items() if c.embedding_dim < c.patch_size**2 * c.in_channels
    }
    too_many, too_few = set(no_way_back) - lossy, lossy - set(no_way_back)
    require(not too_many, "no_way_back: for at least one of these, a token has room for its patch")
    require(not too_few, "no_way_back: at least one is missing. Compare D with P²C for each model")
    right(
        "A trained E keeps what is useful: most of it lies in few directions, which "
        "look like smooth waves (Figure 7, left)."
    )
