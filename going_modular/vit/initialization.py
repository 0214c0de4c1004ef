"""Initial values that PyTorch does not have."""

import math

from torch import nn


def init_lecun_normal_(layer: nn.Linear | nn.Conv2d) -> None:
    """JAX's default: truncated normal weights of variance 1 / fan-in, biases of 0."""
    # A standard normal distribution that is cut off at ±2 has this standard deviation.
    std = math.sqrt(1 / layer.weight[0].numel()) / 0.87962566103423978
    nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
