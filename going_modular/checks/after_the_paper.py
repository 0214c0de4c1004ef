"""Checks for the exercises of notebook 14."""

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
from going_modular.utils import give_random_values
from going_modular.vit.config import VIT_CONFIGS
from going_modular.vit.descendants import turn


def a_quarter_of_the_patches(mlp_factor, scores_factor) -> None:
    """Exercise 14.1: what a masked autoencoder saves in the encoder of ViT-B/16."""
    config = VIT_CONFIGS["ViT-B/16"]
    N, visible = config.num_patches, config.num_patches // 4
    for name, answer in (("mlp_factor", mlp_factor), ("scores_factor", scores_factor)):
        require_answers(**{name: answer})
        require(answer not in (4, 16), f"{name}: does the work grow or shrink?")
    require_number(
        "mlp_factor",
        mlp_factor,
        visible / N,
        "an MLP does the same work for each token. How many tokens are left?",
    )
    require_number(
        "scores_factor",
        scores_factor,
        (visible / N) ** 2,
        "each token's query meets each token's key. How many products are left?",
    )
    right(
        "The larger the image, the larger the share of the scores, and the more MAE saves. "
        "The notebook printed 0.223 for its blocks. With D = 768 the linear layers, which save "
        "only a factor of 4, have a larger share."
    )


def two_heads_in_one(fold_heads: Callable) -> None:
    """Exercise 14.2: DeiT's two heads as one linear layer of both tokens."""
    D, K = 6, 5
    first, second = (give_random_values(nn.Linear(D, K), seed) for seed in (1, 2))
    tokens = noise(4, 2, D)
    with torch.no_grad():
        one, other = first(tokens[:, 0]), second(tokens[:, 1])
        found = result_of(fold_heads, first, second)
        require(
            isinstance(found, nn.Module),
            f"fold_heads should return a layer, but its type is {type(found).__name__}",
        )
        size = getattr(found, "in_features", 2 * D)
        require(
            size == 2 * D,
            f"the layer reads {size} numbers. How many do two tokens have side by side?",
        )
        answer = found(tokens.flatten(1))
        for wrong, hint in (
            (one + other, "this is the sum of the two answers. DeiT takes another combination"),
            (
                (one + other + first.bias + second.bias) / 2,
                "the biases belong to the mean as well. What happens to each of them?",
            ),
            ((first(tokens[:, 1]) + second(tokens[:, 0])) / 2, "which head reads the first token?"),
        ):
            require(not is_close(answer, wrong), hint)
        require_tensor(
            "the folded head's logits",
            answer,
            (one + other) / 2,
            "write the mean of W₁x₁ + b₁ and W₂x₂ + b₂ as one product with x₁ and x₂ in a row",
        )
    right("For a prediction, DeiT is a ViT with one more token and one wider head.")


def normalized(x: torch.Tensor, dim: int | tuple[int, ...], correction=0) -> torch.Tensor:
    """Return x with mean 0 and variance 1 along some dimensions."""
    mean = x.mean(dim=dim, keepdim=True)
    return (x - mean) / (x.var(dim=dim, correction=correction, keepdim=True) + 1e-6).sqrt()


def loss_of_hidden_patches(masked_loss: Callable) -> None:
    """Exercise 14.3: the loss of a masked autoencoder, with normalized patches."""
    B, N, size, visible = 3, 8, 12, 2
    found, target = noise(B, N, size), 2 + 3 * noise(B, N, size, seed=1)
    order = noise(B, N, seed=2).argsort(dim=1)

    def loss(target, indices):
        a, b = (torch.take_along_dim(x, indices.unsqueeze(2), dim=1) for x in (found, target))
        return F.mse_loss(a, b)

    hidden, by_patch = order[:, visible:], normalized(target, 2)
    answer = result_of(masked_loss, found, target, order, visible)
    for wrong, hint in (
        (loss(by_patch, order), "this is the error of all patches. Which ones count?"),
        (loss(by_patch, order[:, :visible]), "these are the patches that the encoder has seen"),
        (
            loss(by_patch, torch.arange(N).expand(B, -1)[:, visible:]),
            "`order` says which patches are hidden, and each image has its own",
        ),
        (loss(target, hidden), "which target does the exercise ask for?"),
        (
            loss(normalized(target, (1, 2)), hidden),
            "each patch has a mean and a deviation of its own",
        ),
        (loss(by_patch, hidden) * (N - visible) / N, "by how many patches do you divide?"),
        (
            loss(normalized(target, 2, correction=1), hidden),
            "by how many numbers does your variance divide? See `correction`",
        ),
    ):
        require(not is_close(answer, wrong), hint)
    require_tensor(
        "masked_loss(found, target, order, visible)",
        answer,
        loss(by_patch, hidden),
        "normalize each patch of the target, take the hidden patches of both, and average "
        "the squared differences",
    )
    right("A patch of one color and a patch full of detail now count the same.")


def scale_before_a_layer(fold_before: Callable) -> None:
    """Exercise 14.4: a scale folded into the linear layer after it."""
    layer, scale = give_random_values(nn.Linear(6, 6)), 1 + noise(6)
    x = noise(4, 6)
    with torch.no_grad():
        before, expected = layer(x), layer(scale * x)
        found = result_of(fold_before, layer, scale)
        require(
            is_close(layer(x), before),
            "the given layer has changed. Make a new layer and leave the old one as it is",
        )
        require(
            isinstance(found, nn.Module),
            f"fold_before should return a layer, but its type is {type(found).__name__}",
        )
        answer = found(x)
        for wrong, hint in (
            (
                expected + (scale - 1) * layer.bias,
                "the scale comes before the layer. Does the bias see it?",
            ),
            (scale * before, "this scale comes after the whole layer"),
            (
                scale * (before - layer.bias) + layer.bias,
                "each number that the layer reads has its own scale. Which numbers of W meet it?",
            ),
        ):
            require(not is_close(answer, wrong), hint)
        require_tensor(
            "the new layer's output",
            answer,
            expected,
            "output i is the sum of W[i, j] · s[j] · x[j] over j, and b[i]",
        )
    right("The learned scale of a LayerNorm can go into the next linear layer in the same way.")


def turned_pairs(turned: Callable, same_product) -> None:
    """Exercise 14.5: rotary positions on a line, and what they do to a product."""
    T, D = 7, 8
    x, positions, frequencies = noise(T, D), torch.arange(T) + 3.0, noise(D // 2, seed=1)
    angles = positions[:, None] * frequencies  # (T, D/2)
    answer = result_of(turned, x, positions, frequencies)
    neighbors = turn(x.unflatten(1, (-1, 2)).transpose(1, 2).flatten(1), angles)
    neighbors = neighbors.unflatten(1, (2, -1)).transpose(1, 2).flatten(1)
    for wrong, hint in (
        (turn(x, -angles), "these points turn the other way"),
        (neighbors, "which two numbers are the coordinates of one point?"),
    ):
        require(not is_close(answer, wrong), hint)
    require_tensor(
        "turned(x, positions, frequencies)",
        answer,
        turn(x, angles),
        "a point (a, b) that turns by φ becomes (a cos φ - b sin φ, b cos φ + a sin φ)",
    )
    pairs = [(6, 8), (3, 1), (2, 6)]
    is_row = isinstance(same_product, tuple | list) and len(same_product) == len(pairs)
    require_answers(same_product=same_product)
    require(is_row, "same_product should be three values, one for each pair")
    for pair, same in zip(pairs, same_product, strict=True):
        require_answers(**{f"same_product for {pair}": same})
        require(isinstance(same, bool), f"same_product for {pair} should be True or False")
    q, k = noise(2, 1, D, seed=3)
    first, *others = (
        (turn(q, of_query * frequencies) * turn(k, of_key * frequencies)).sum()
        for of_query, of_key in [(1, 3), *pairs]
    )
    for pair, same, product in zip(pairs, same_product, others, strict=True):
        require(
            same == is_close(product, first),
            f"same_product for {pair}: how far is it from the query to the key, and in which "
            "direction?",
        )
    right("A rotary model knows offsets, and needs no table of positions.")


def pooling_without_keys(pooled: Callable) -> None:
    """Exercise 14.6: attention pooling when all keys are zero."""
    values = 1 + noise(2, 3, 5, 4)  # (B, h, N, D/h)
    query = noise(2, 3, 1, 4, seed=1)
    answer = result_of(pooled, values)
    for wrong, hint in (
        (torch.zeros_like(query), "all products are zero. Are the weights of a softmax zero then?"),
        (values.sum(dim=2, keepdim=True), "what do the weights of a softmax add up to?"),
    ):
        require(not is_close(answer, wrong), hint)
    require_tensor(
        "pooled(values)",
        answer,
        F.scaled_dot_product_attention(query, torch.zeros_like(values), values),
        "which weights does the softmax make of N equal numbers?",
    )
    right("A pooling that finds no difference between its tokens falls back to their mean.")
