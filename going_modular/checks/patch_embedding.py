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
    """Exercise 3.1: the projection of ViT-S/16 for color and depth."""
    require_answers(parameters=parameters, more_parameters=more_parameters, more_tokens=more_tokens)
    P, D = 16, VIT_CONFIGS["ViT-S/16"].embedding_dim
    rgbd, rgb = (count_parameters(PatchEmbedding(C, P, D)) for C in (4, 3))
    require(parameters != rgbd - D, "parameters: the bias is missing")
    require(parameters != rgb, "parameters: this is the count for three channels")
    require_number(
        "parameters",
        parameters,
        rgbd,
        "the projection maps a patch to an embedding. How many numbers has each of them?",
    )
    require(
        more_parameters != rgbd - rgb + D,
        "more_parameters: does the bias depend on the number of channels?",
    )
    require_number(
        "more_parameters",
        more_parameters,
        rgbd - rgb,
        "how many numbers does a patch have in the new channel?",
    )
    require_number("more_tokens", more_tokens, 0, "does N = HW / P² depend on the channels?")
    right("A patch becomes one token, whatever it holds. More channels, the same attention.")


def whose_pixel(token_of_pixel: Callable) -> None:
    """Exercise 3.2: the token that contains a pixel."""
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
            (token - 1, "which token comes before the patches?"),
            (
                1 + x // P * (W // P) + y // P,
                "patches count row by row. Which of x and y gives the row?",
            ),
        ):
            require(value == token or answer != value, f"{name}: {hint}")
        require_number(
            name,
            answer,
            token,
            "how many full rows of patches lie above, how many patches are in a row, and "
            "how many lie to the left?",
        )
    right("Notebook 12 uses the inverse, to draw attention over the image.")


def four_mistakes(equation_1: type) -> None:
    """Exercise 3.3: find four mistakes in a module for equation 1."""
    C, P, D, (H, W) = 2, 4, 12, (8, 12)
    N = ViTConfig(image_size=(H, W), patch_size=P).num_patches
    require_answers(Equation1=equation_1)
    model = equation_1(C, P, D, N)
    for name in ("projection", "class_token", "pos_embedding"):
        exists = getattr(model, name, ...) is not ...
        require(exists, f"replace the dots: __init__ creates no self.{name} yet")
    shape = tuple(model.projection.weight.shape)
    require(
        shape == (D, C, P, P),
        f"the projection of a model with patch_size={P} has a weight of shape {shape}, not "
        "(D, C, P, P). Which patch size does the convolution use?",
    )
    for name in ("class_token", "pos_embedding"):
        require(
            isinstance(getattr(model, name), nn.Parameter),
            f"model.parameters() does not contain {name}, so no optimizer will train it",
        )
    require(
        model.class_token.shape[0] == 1,
        "class_token: it should start with an axis of 1. Its shape must not depend on the batch",
    )
    require(
        model.pos_embedding.shape[1] != N,
        "pos_embedding has one row for each patch. Which token is left without a position?",
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
            (last, "where in equation 1 does the class token stand?"),
            (expected - model.pos_embedding, "the positions are missing"),
        ):
            require(not is_close(z_0, value), f"z_0: {hint}")
        require_tensor(
            f"z_0 of {B} images",
            z_0,
            expected,
            "compare the order of the tokens and the sum with equation 1",
        )
    z_0.sum().backward()
    for name in ("class_token", "pos_embedding"):
        require(
            getattr(model, name).grad is not None,
            f"{name} gets no gradient. Does forward use the parameter itself or a copy?",
        )
    right(
        "None of the four mistakes changes the shape. Shapes show many mistakes, but for "
        "these you have to compare numbers."
    )


def pixel_by_pixel(linear_like: Callable) -> None:
    """Exercise 3.4: a strided convolution as a linear layer on the paper's flattened patches."""
    for C, D, P in ((3, 10, 4), (5, 7, 2)):
        conv = give_random_values(nn.Conv2d(C, D, kernel_size=P, stride=P))
        images = noise(2, C, 3 * P, 2 * P)
        by_channel = F.unfold(images, P, stride=P).transpose(1, 2)  # (B, N, CP²)
        by_pixel = by_channel.unflatten(2, (C, P * P)).transpose(2, 3).flatten(2)
        linear = result_of(linear_like, conv)
        require(
            isinstance(linear, nn.Linear) and tuple(linear.weight.shape) == (D, P * P * C),
            f"it should return an nn.Linear from P²C numbers to D, here from {P * P * C} to {D}",
        )
        require(linear.bias is not None, "the convolution has a bias. The linear layer has none")
        with torch.inference_mode():
            expected = conv(images).flatten(2).transpose(1, 2)  # (B, N, D)
            answer = linear(by_pixel)
            require(
                not is_close(linear(by_channel), expected),
                "your layer fits patches that are flattened channel by channel. In which "
                "order do the numbers stand here?",
            )
            offset = answer - expected  # the same for all patches if the weights are right
            require(
                is_close(answer, expected)
                or not is_close(offset, offset[:1, :1].expand_as(offset)),
                "the weights are right. Is the bias the one of the convolution?",
            )
        require_tensor(
            f"linear(patches) for C = {C}, D = {D}, P = {P}",
            answer,
            expected,
            "the weights have the axes (D, C, P, P). In which order does a flattened patch "
            "need them?",
        )
    right("You need this to read weights that others have saved.")


def the_way_back(patches_again: Callable, no_way_back) -> None:
    """Exercise 3.5: patches recovered from their embeddings."""
    C, P = 3, 2
    for D in (30, 8):
        conv = give_random_values(nn.Conv2d(C, D, kernel_size=P, stride=P)).double()
        images = noise(2, C, 6, 4).double()
        patches = F.unfold(images, P, stride=P).transpose(1, 2)  # (B, N, P²C)
        W = conv.weight.flatten(1)  # (D, P²C)
        with torch.inference_mode():
            tokens = conv(images).flatten(2).transpose(1, 2)  # (B, N, D)
            inverse = torch.linalg.pinv(W).T
            with_bias = tokens @ inverse
            expected = (tokens - conv.bias) @ inverse
            answer = result_of(patches_again, tokens, conv)
        name = f"patches of {P * P * C} numbers from tokens of {D}"
        require(not is_close(answer, with_bias), f"{name}: what did the layer add to the tokens?")
        require_tensor(
            name,
            answer,
            expected,
            "the layer computes tokens = patches @ W.T + bias. Undo its steps in reverse order",
        )
        if D >= P * P * C:
            assert torch.allclose(expected, patches)
    require_answers(no_way_back=no_way_back)
    require(
        isinstance(no_way_back, list) and set(no_way_back) <= set(VIT_CONFIGS),
        f"no_way_back should be a list of names from {', '.join(VIT_CONFIGS)}",
    )
    lossy = {
        name for name, c in VIT_CONFIGS.items() if c.embedding_dim < c.patch_size**2 * c.in_channels
    }
    too_many, too_few = set(no_way_back) - lossy, lossy - set(no_way_back)
    require(not too_many, "no_way_back: in at least one of these, a token has room for its patch")
    require(not too_few, "no_way_back: at least one is missing. Compare D with P²C for each model")
    right(
        "A trained E keeps what is useful. Most of that lies in a few directions, which "
        "look like smooth waves (Figure 7, left)."
    )
