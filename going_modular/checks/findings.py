"""Checks for the exercises of notebook 13."""

import math
from collections.abc import Callable
from statistics import mean, pstdev, stdev

import torch
import torch.nn.functional as F

from going_modular.checks import (
    is_close,
    require,
    require_answers,
    require_number,
    require_tensor,
    result_of,
    right,
)
from going_modular.experiments.claims import BLOCK, MODELS, ridge_probe
from going_modular.experiments.sweeps import read_results


def patches_half_as_wide(embedding_factor, mlp_factor, scores_factor) -> None:
    """Exercise 13.1: how the work grows when patches shrink."""
    usual, smaller = MODELS["ViT"], MODELS["smaller patches"]

    def factor(multiply_adds):
        return multiply_adds(smaller) / multiply_adds(usual)

    embedding = factor(lambda c: c.num_patches * c.patch_size**2 * c.embedding_dim)
    mlp = factor(lambda c: c.num_patches * c.embedding_dim * c.mlp_dim)
    scores = factor(lambda c: c.num_patches**2 * c.embedding_dim)
    for name, answer, expected, hint in (
        (
            "embedding_factor",
            embedding_factor,
            embedding,
            "the embedding takes N · P²C · D multiply-adds. How do N and P²C change?",
        ),
        (
            "mlp_factor",
            mlp_factor,
            mlp,
            "an MLP does the same work for each token. How many more tokens are there if "
            "patches are half as high and half as wide?",
        ),
        (
            "scores_factor",
            scores_factor,
            scores,
            "each token's query meets each token's key. How many products is that?",
        ),
    ):
        require_number(name, answer, expected, hint)
    right(
        "Most of this small network's work is in its matrices, and it grows as in the "
        "MLPs. In all, the network costs nearly five times as much."
    )


def reference_difference(
    lines: list[dict], one: tuple, other: tuple, spread: Callable = stdev
) -> tuple[float, float]:
    """Return how much more accurate point `one` is than `other`, and the standard error.

    A point is (model, images, lr). `spread` computes the deviation of its seeds.
    """
    a, b = (
        [
            line["right"] / BLOCK
            for line in lines
            if (line["model"], line["images"], line["lr"]) == point
        ]
        for point in (one, other)
    )
    error = (spread(a) ** 2 / len(a) + spread(b) ** 2 / len(b)) ** 0.5
    return mean(a) - mean(b), error


def difference_of_points(difference: Callable, vit_gains, cnn_gains) -> None:
    """Exercise 13.2: the difference of two mean accuracies, and its standard error."""
    invented = [
        {"model": name, "images": 600, "lr": lr, "seed": seed, "right": number}
        for name, lr, numbers in (
            ("small", 0.01, (300, 330, 324, 342)),
            ("small", 0.1, (100, 200, 150)),
            ("large", 0.01, (420, 426, 414, 402)),
        )
        for seed, number in enumerate(numbers)
    ]
    stored, lr = read_results("claims"), 1e-3
    for lines, one, other in (
        (invented, ("large", 600, 0.01), ("small", 600, 0.01)),
        (invented, ("small", 600, 0.1), ("large", 600, 0.01)),
        (stored, ("hybrid", 2400, lr), ("ViT", 2400, lr)),
        (stored, ("ViT", 150, lr), ("CNN", 150, lr)),
    ):
        found = result_of(difference, lines, one, other)
        require(
            isinstance(found, list | tuple) and len(found) == 3,
            "difference should return three values: gain, error, effect",
        )
        gain, error = reference_difference(lines, one, other)
        name = f"difference(lines, {one}, {other})"
        require(
            not isinstance(found[0], float) or abs(found[0] - gain * BLOCK) > 1e-6,
            "an accuracy is a share, and a line counts right answers. Of how many drawings?",
        )
        require_number(
            f"{name}, gain",
            found[0],
            gain,
            "average each point's accuracy over its seeds, then subtract the second mean",
        )
        for wrong, hint in (
            (
                reference_difference(lines, one, other, pstdev)[1],
                "this deviation divides by the number of seeds. With so few seeds it is "
                "too small on average. What should it divide by?",
            ),
            (
                reference_difference(lines, one, other, lambda a: stdev(a) * len(a) ** 0.5)[1],
                "this is the deviation of single seeds. The error of their mean is smaller",
            ),
            (
                sum(reference_difference(lines, p, p)[1] for p in (one, other)) / 2**0.5,
                "independent errors do not add up. What does?",
            ),
        ):
            is_this = isinstance(found[1], float) and abs(found[1] - wrong) < 1e-9
            require(not is_this, f"{name}, error: {hint}")
        require_number(
            f"{name}, error",
            found[1],
            error,
            "start with the standard error of each mean. How do two independent errors combine?",
        )
        require(
            found[2] == (abs(gain) >= 3 * error),
            f"{name}, effect: compare the size of the gain, up or down, with three times its error",
        )
    for name, model, answer in (("vit", "ViT", vit_gains), ("cnn", "CNN", cnn_gains)):
        require_answers(**{f"{name}_gains": answer})
        require(answer in (True, False), f"{name}_gains should be True or False")
        gain, error = reference_difference(stored, (model, 2400, lr), (model, 600, lr))
        require(
            answer == (abs(gain) >= 3 * error and gain > 0),
            f"{name}_gains: what does your function return for 2,400 images against 600?",
        )
    right("The larger gain is not always the surer one, because seeds differ.")


def chance_of_an_effect(seeds: int, times: float = 3.0) -> float:
    """Return P(|difference| >= times · its standard error) for two points that are equal.

    The accuracies are normal. So the ratio has Student's t distribution with
    2 (seeds - 1) degrees of freedom. This number is even, which makes it a finite sum.
    """
    freedom = 2 * (seeds - 1)
    cosine2 = freedom / (freedom + times**2)
    term = total = 1.0
    for k in range(1, freedom // 2):
        term *= (2 * k - 1) / (2 * k) * cosine2
        total += term
    return 1 - math.sqrt(1 - cosine2) * total


def effects_by_luck(share_of_effects: Callable, at_least_one) -> None:
    """Exercise 13.3: how often chance alone makes an effect, in one and in 19 comparisons."""
    for seeds in (3, 5):
        share = result_of(share_of_effects, seeds)
        name = f"share_of_effects({seeds})"
        require(
            isinstance(share, float | int) and not isinstance(share, bool),
            f"{name} should be a number",
        )
        expected = chance_of_an_effect(seeds)
        for wrong, hint in (
            (expected / 2, "an effect can also be a loss. Do you count both directions?"),
            (
                chance_of_an_effect(seeds, 3 * ((seeds - 1) / seeds) ** 0.5),
                "your standard deviations are too small. What do they divide by?",
            ),
        ):
            require(abs(share - wrong) > min(0.004, expected / 4), f"{name}: {hint}")
        require(
            abs(share - expected) < min(0.008, expected / 2),
            f"{name} is {share:.4f}. With 20,000 pairs it should be "
            f"{'lower' if share > expected else 'higher'}. Do both points draw from the "
            "same distribution? Do you compare with three times the error of the difference?",
        )
    require_number(
        "at_least_one",
        at_least_one,
        1 - (1 - 0.04) ** 19,
        "how likely is it that none of the 19 is an effect?",
    )
    right("So report how many comparisons you made, and do not rely on a single effect.")


def few_shot_probe(scores_of: Callable) -> None:
    """Exercise 13.4: ridge regression by the normal equations."""
    generator = torch.Generator().manual_seed(13)
    for M, D, K, ridge in ((12, 7, 3, 1.0), (9, 20, 4, 2.5)):
        features = 3 + 2 * torch.randn(M, D, generator=generator).double()
        new = 4 + torch.randn(5, D, generator=generator).double()
        labels = torch.cat([torch.arange(K), torch.zeros(M - K, dtype=torch.long)])
        expected = ridge_probe(features, labels, ridge)(new)
        found = result_of(scores_of, features, labels, new, ridge)
        average, spread = features.mean(dim=0), features.std(dim=0, correction=0)

        def variant(x, new_x, Y, ridge=ridge, offset=True, D=D):
            centre = Y.mean(dim=0) if offset else torch.zeros(Y.shape[1])
            inner = x.T @ x + ridge * torch.eye(D).double()
            return new_x @ torch.linalg.solve(inner, x.T @ (Y - centre)) + centre

        x, new_x = (features - average) / spread, (new - average) / spread
        own = (new - new.mean(dim=0)) / new.std(dim=0, correction=0)
        targets = F.one_hot(labels, K).double()
        Y = 2 * targets - 1
        for wrong, hint in (
            (
                variant(x, own, Y),
                "which images' mean and deviation should standardize the new features?",
            ),
            (
                variant(x, new_x, targets),
                "your targets are 1 and 0. Which targets does the exercise ask for?",
            ),
            (
                variant(x, new_x, Y, offset=False),
                "what does the exercise do with the mean of the targets?",
            ),
            (
                variant(x, new_x, Y) - Y.mean(dim=0),
                "you subtracted the mean of the targets. Do the scores get it back?",
            ),
        ):
            require(not is_close(found, wrong), hint)
        require_tensor(
            f"the scores with {M} examples of {D} features",
            found,
            expected,
            "check each step: standardized features, with correction=0 in the deviations, "
            "centered targets, then (XᵀX + λI) W = XᵀY",
        )
    right("Two formulas give the same W. Use the one with the smaller matrix, D × D or M × M.")
