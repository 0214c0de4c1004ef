"""Checks for the exercises of notebook 05."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from going_modular.checks import (
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
    """Exercise 5.1: parameters of ViT-L's MLP, and the width at which attention has as many."""
    c = VIT_CONFIGS["ViT-L/16"]
    D = c.embedding_dim
    require_answers(mlp_parameters=mlp_parameters, equal_width=equal_width)
    require(
        mlp_parameters != 2 * D * c.mlp_dim,
        "mlp_parameters: the two matrices are right; each layer has a bias as well",
    )
    with torch.device("meta"):
        expected = count_parameters(MLPBlock(D, c.mlp_dim))
    require_number(
        "mlp_parameters",
        mlp_parameters,
        expected,
        "one matrix leads from D to the MLP size and one leads back; a bias has one "
        "number for each output of its layer",
    )
    require_number(
        "equal_width",
        equal_width,
        4 * D**2 // (2 * D),
        "attention has the matrices for q, k and v and U_msa, each D × D; the MLP has "
        "two of D × width",
    )
    right("At the usual width of 4D an MLP has twice as many as attention.")


def gelu_three_times(
    gelu_by_cdf: Callable, gelu_by_sigmoid: Callable, off_tanh, off_sigmoid
) -> None:
    """Exercise 5.2: GELU by the normal distribution, and how far two approximations are off."""
    x = torch.linspace(-6, 6, 301)
    require_tensor(
        "gelu_by_cdf(x)",
        result_of(gelu_by_cdf, x),
        F.gelu(x),
        "it is x times the probability that a standard normal number is below x",
    )
    by_sigmoid = result_of(gelu_by_sigmoid, x)
    require_tensor("gelu_by_sigmoid(x)", by_sigmoid, x * (1.702 * x).sigmoid(), "x σ(…)")
    x = torch.linspace(-4, 4, 801)
    for name, answer, other in (
        ("off_tanh", off_tanh, F.gelu(x, approximate="tanh")),
        ("off_sigmoid", off_sigmoid, x * (1.702 * x).sigmoid()),
    ):
        hint = "the largest size of a difference, at the points of the text"
        largest = (other - F.gelu(x)).abs().max().item()
        require_number(name, answer, largest, hint, rel_tol=0.01)
    right(
        "The sigmoid is off about forty times as far as the tanh: weights that were "
        "trained with it (OpenAI's CLIP) want it back."
    )


def without_the_bend(merged: Callable) -> None:
    """Exercise 5.3: two dense layers without a GELU between them are one."""
    first, second = (
        give_random_values(nn.Linear(6, 11)),
        give_random_values(nn.Linear(11, 4), seed=1),
    )
    x = noise(2, 5, 6)
    layer = result_of(merged, first, second)
    require(
        isinstance(layer, nn.Linear),
        f"the result should be an nn.Linear, and is {type(layer).__name__}",
    )
    shape = tuple(layer.weight.shape)
    require(
        shape == (4, 6) and layer.bias is not None,
        f"the layer's weight is {shape} instead of (outputs, inputs), or the bias is missing",
    )
    with torch.no_grad():
        output, expected = layer(x), second(first(x))
        unbiased = F.linear(F.linear(x, first.weight), second.weight, second.bias)
        require(
            not torch.allclose(output, unbiased, atol=1e-5),
            "the first layer's bias is lost: it goes through the second layer too",
        )
        require_tensor(
            "what the merged layer returns",
            output,
            expected,
            "write out W_2 (W_1 x + b_1) + b_2 and sort by x",
        )
    right(
        "In ViT-B, 4.7 million parameters would do what 0.6 million can. The bend is "
        "what the width is for."
    )


def dropout_by_hand(dropout: Callable) -> None:
    """Exercise 5.4: dropout, training and not."""
    x, p = noise(200, 500), 0.3
    given = x.clone()
    out = result_of(dropout, x, p, False)
    hint = "without training, dropout returns what it was given"
    require_tensor("dropout(x, p, False)", out, given, hint)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        out, again = (result_of(dropout, x, p, True) for _ in range(2))
    require(torch.equal(x, given), "x itself was changed: make a new tensor")
    shape = tuple(out.shape)
    require(shape == (200, 500), f"the shape should stay, and has become {shape}")
    kept = out != 0
    zeros = 1 - kept.float().mean().item()
    require(
        abs(zeros - (1 - p)) > 0.02, "p is the probability of being dropped, not that of being kept"
    )
    require(abs(zeros - p) < 0.02, f"a share of {zeros:.2f} is dropped, for p = {p}")
    require(
        not ((kept == kept[:1]).all() or (kept == kept[:, :1]).all()),
        "whole rows or columns are dropped: each number has a chance of its own",
    )
    require(not torch.equal(out, again), "each call should draw anew")
    require(
        not torch.equal(out[kept], x[kept]),
        "what is kept has to grow, or sums are smaller in training than afterwards",
    )
    require_tensor(
        "what is kept",
        out[kept],
        x[kept] / (1 - p),
        "a share of 1 - p remains: by what must it be multiplied so that the expected "
        "sum is the old one?",
    )
    right("Since the numbers grow in training, evaluation has nothing to do.")


def mlp_of_convolutions(convolutional: Callable) -> None:
    """Exercise 5.5: the MLP as two convolutions with a kernel of 1 × 1."""
    D, rows, columns = 6, 3, 5
    block = give_random_values(MLPBlock(D, 14, dropout=0.1)).eval()
    maps = noise(2, D, rows, columns)
    network = result_of(convolutional, block)
    require(
        isinstance(network, nn.Module),
        f"the result should be a module, and is {type(network).__name__}",
    )
    kernels = {m.kernel_size for m in network.modules() if isinstance(m, nn.Conv2d)}
    require(kernels == {(1, 1)}, "use nn.Conv2d with kernels of 1 × 1, and no other")
    with torch.no_grad():
        output = network.eval()(maps)
        tokens = maps.flatten(2).transpose(1, 2)  # (B, N, D)

        def as_maps(tokens):
            return tokens.transpose(1, 2).unflatten(2, (rows, columns))

        unbent = as_maps(block.contract(block.expand(tokens)))
        require(
            not torch.allclose(output, unbent, atol=1e-5),
            "there is no GELU between the two convolutions",
        )
        require_tensor(
            "what the convolutions give",
            output,
            as_maps(block(tokens)),
            "do the convolutions have the block's weights and biases?",
        )
    right("So the MLP is a CNN, of kernels that see one patch each.")
