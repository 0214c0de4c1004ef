"""Checks for the exercises of notebook 05."""

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
from going_modular.model_builder import VIT_CONFIGS, MLPBlock
from going_modular.utils import count_parameters, give_random_values


def mlp_of_vit_l(mlp_parameters, equal_width) -> None:
    """Exercise 5.1: the parameters of ViT-L's MLP, and the width that equals attention."""
    c = VIT_CONFIGS["ViT-L/16"]
    D = c.embedding_dim
    require_answers(mlp_parameters=mlp_parameters, equal_width=equal_width)
    require(
        mlp_parameters != 2 * D * c.mlp_dim,
        "mlp_parameters: the two matrices are right. What else does a linear layer have?",
    )
    with torch.device("meta"):
        expected = count_parameters(MLPBlock(D, c.mlp_dim))
    require_number(
        "mlp_parameters",
        mlp_parameters,
        expected,
        "one matrix leads from D to the MLP size, and one leads back. How long is each bias?",
    )
    require_number(
        "equal_width",
        equal_width,
        4 * D**2 // (2 * D),
        "attention has matrices for q, k and v and U_msa, each D × D. What are the sizes "
        "of the MLP's two matrices?",
    )
    right("At the usual width of 4D, an MLP has twice as many parameters as attention.")


def gelu_three_times(
    gelu_by_cdf: Callable, gelu_by_sigmoid: Callable, off_tanh, off_sigmoid
) -> None:
    """Exercise 5.2: GELU from the normal distribution, and the errors of two approximations."""
    x = torch.linspace(-6, 6, 301)
    require_tensor(
        "gelu_by_cdf(x)",
        result_of(gelu_by_cdf, x),
        F.gelu(x),
        "multiply x by the probability that a standard normal number is below x",
    )
    require_tensor(
        "gelu_by_sigmoid(x)",
        result_of(gelu_by_sigmoid, x),
        x * (1.702 * x).sigmoid(),
        "compare your code with the formula of the exercise",
    )
    x = torch.linspace(-4, 4, 801)
    for name, answer, other in (
        ("off_tanh", off_tanh, F.gelu(x, approximate="tanh")),
        ("off_sigmoid", off_sigmoid, x * (1.702 * x).sigmoid()),
    ):
        hint = "take the largest absolute difference at the 801 points of the exercise"
        largest = (other - F.gelu(x)).abs().max().item()
        require_number(name, answer, largest, hint, rel_tol=0.01)
    right(
        "The error of the sigmoid is about forty times as large as that of the tanh. "
        "OpenAI's CLIP was trained with the sigmoid, so its weights need it."
    )


def without_the_bend(merged: Callable) -> None:
    """Exercise 5.3: two linear layers without a GELU between them are one."""
    first = give_random_values(nn.Linear(6, 11))
    second = give_random_values(nn.Linear(11, 4), seed=1)
    x = noise(2, 5, 6)
    layer = result_of(merged, first, second)
    require(
        isinstance(layer, nn.Linear),
        f"the result should be an nn.Linear, but its type is {type(layer).__name__}",
    )
    shape = tuple(layer.weight.shape)
    require(
        shape == (4, 6),
        f"the layer's weight has the shape {shape}. Which shape has the weight of an "
        "nn.Linear from 6 numbers to 4?",
    )
    require(layer.bias is not None, "the layer has no bias")
    with torch.no_grad():
        output, expected = layer(x), second(first(x))
        unbiased = F.linear(F.linear(x, first.weight), second.weight, second.bias)
        require(
            not is_close(output, unbiased),
            "the second layer's bias is there. What becomes of the first layer's bias?",
        )
        require_tensor(
            "the output of the merged layer",
            output,
            expected,
            "write out W_2 (W_1 x + b_1) + b_2, then collect the terms with x",
        )
    right(
        "Without GELU, the 4.7 million parameters of a ViT-B's MLP could do no more than "
        "0.6 million. The width only helps with the bend."
    )


def dropout_by_hand(dropout: Callable) -> None:
    """Exercise 5.4: dropout in training and in evaluation."""
    x, p = noise(200, 500), 0.3
    before = x.clone()
    out = result_of(dropout, x, p, False)
    require_tensor("dropout(x, p, False)", out, before, "outside training, dropout changes nothing")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        out, again = (result_of(dropout, x, p, True) for _ in range(2))
    require(torch.equal(x, before), "the function changes x itself: make a new tensor")
    shape = tuple(out.shape)
    require(shape == (200, 500), f"the shape was (200, 500) and has become {shape}")
    kept = out != 0
    dropped = 1 - kept.float().mean().item()
    require(abs(dropped - (1 - p)) > 0.02, "is p the probability to keep or to drop?")
    require(abs(dropped - p) < 0.02, f"for p = {p}, a share of {dropped:.2f} is dropped")
    require(
        not ((kept == kept[:1]).all() or (kept == kept[:, :1]).all()),
        "whole rows or columns are dropped. Each number needs its own random draw",
    )
    require(not torch.equal(out, again), "two calls drop the same numbers: draw again in each call")
    require(
        not torch.equal(out[kept], x[kept]),
        "sums are smaller in training than in evaluation. What must happen to the kept numbers?",
    )
    require_tensor(
        "the kept numbers",
        out[kept],
        x[kept] / (1 - p),
        "a share of 1 - p remains. Which factor keeps the expected sum the same?",
    )
    right("The kept numbers grow in training, so dropout has nothing to do in evaluation.")


def mlp_of_convolutions(convolutional: Callable) -> None:
    """Exercise 5.5: the MLP as two convolutions with 1 × 1 kernels."""
    D, rows, columns = 6, 3, 5
    block = give_random_values(MLPBlock(D, 14, dropout=0.1)).eval()
    maps = noise(2, D, rows, columns)
    network = result_of(convolutional, block)
    require(
        isinstance(network, nn.Module),
        f"the result should be an nn.Module, but its type is {type(network).__name__}",
    )
    kernels = {m.kernel_size for m in network.modules() if isinstance(m, nn.Conv2d)}
    require(kernels == {(1, 1)}, "every convolution should be an nn.Conv2d with a 1 × 1 kernel")
    with torch.no_grad():
        output = network.eval()(maps)
        tokens = maps.flatten(2).transpose(1, 2)  # (B, N, D)

        def as_maps(tokens):
            return tokens.transpose(1, 2).unflatten(2, (rows, columns))

        without_gelu = as_maps(block.contract(block.expand(tokens)))
        require(not is_close(output, without_gelu), "what does the MLP do between its two layers?")
        require_tensor(
            "the output of the convolutions",
            output,
            as_maps(block(tokens)),
            "do the convolutions have the block's weights and biases?",
        )
    right("So the MLP is a CNN whose kernels each see one patch.")
