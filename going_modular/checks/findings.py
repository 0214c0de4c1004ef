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
    """Exercise 13.1: what grows when patches shrink."""
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
            "there are more patches, and each has fewer numbers: N · P²C · D",
        ),
        (
            "mlp_factor",
            mlp_factor,
            mlp,
            "an MLP does the same for each token: how many more are there, if patches "
            "are half as high and half as wide?",
        ),
        (
            "scores_factor",
            scores_factor,
            scores,
            "each token's query meets each token's key: N · N products",
        ),
    ):
        require_number(name, answer, expected, hint)
    right(
        "Most of this small network's work is that of its matrices, which grows like "
        "the MLPs': in all it costs nearly five times as much."
    )


def reference(lines: list[dict], one: tuple, other: tuple, spread=stdev) -> tuple:
    """(gain, its standard error) of two points."""
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
    """Exercise 13.2: means, their difference, its error, from the lines of a file."""
    made = [
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
        (made, ("large", 600, 0.01), ("small", 600, 0.01)),
        (made, ("small", 600, 0.1), ("large", 600, 0.01)),
        (stored, ("hybrid", 2400, lr), ("ViT", 2400, lr)),
        (stored, ("ViT", 150, lr), ("CNN", 150, lr)),
    ):
        found = result_of(difference, lines, one, other)
        require(
            isinstance(found, list | tuple) and len(found) == 3,
            "difference should return three things: gain, error, effect",
        )
        gain, error = reference(lines, one, other)
        name = f"difference(lines, {one}, {other})"
        require(
            not isinstance(found[0], float) or abs(found[0] - gain * BLOCK) > 1e-6,
            "an accuracy is the share of 600 drawings",
        )
        require_number(
            f"{name}, gain",
            found[0],
            gain,
            "the mean accuracy of the first point less that of the second, over seeds",
        )
        for wrong, hint in (
            (
                reference(lines, one, other, pstdev)[1],
                "so few seeds lie nearer to their own mean than to the true one: "
                "divide the squares by one less than there are",
            ),
            (
                reference(lines, one, other, lambda a: stdev(a) * len(a) ** 0.5)[1],
                "the error of a mean is smaller than the deviation of a seed",
            ),
            (
                sum(reference(lines, p, p)[1] for p in (one, other)) / 2**0.5,
                "errors do not add up: add their squares, and take the root",
            ),
        ):
            is_it = isinstance(found[1], float) and abs(found[1] - wrong) < 1e-9
            require(not is_it, f"{name}, error: {hint}")
        require_number(
            f"{name}, error",
            found[1],
            error,
            "the squared error of a mean is stdev² / (number of seeds); the squares of "
            "both means' errors are added, and then comes the root",
        )
        require(
            found[2] == (abs(gain) >= 3 * error),
            f"{name}, effect: True if the gain, up or down, is at least three times its error",
        )
    for name, model, answer in (("vit", "ViT", vit_gains), ("cnn", "CNN", cnn_gains)):
        require_answers(**{f"{name}_gains": answer})
        require(answer in (True, False), f"{name}_gains should be True or False")
        gain, error = reference(stored, (model, 2400, lr), (model, 600, lr))
        require(
            answer == (abs(gain) >= 3 * error and gain > 0),
            f"{name}_gains: what does your function say of 2,400 images against 600?",
        )
    right("The larger gain need not be the surer one: seeds differ.")


def chance_of_an_effect(seeds: int, times: float = 3.0) -> float:
    """Of two equal means: P(|difference| >= times · its error), for normal numbers.

    Student's t for 2 (seeds - 1) degrees of freedom, an even number: a finite sum.
    """
    freedom = 2 * (seeds - 1)
    cosine2 = freedom / (freedom + times**2)
    term = total = 1.0
    for k in range(1, freedom // 2):
        term *= (2 * k - 1) / (2 * k) * cosine2
        total += term
    return 1 - math.sqrt(1 - cosine2) * total


def effects_by_luck(share_of_effects: Callable, at_least_one) -> None:
    """Exercise 13.3: how often luck alone makes an effect, for one and for 19 comparisons."""
    for seeds in (3, 5):
        share = result_of(share_of_effects, seeds)
        name = f"share_of_effects({seeds})"
        require(
            isinstance(share, float | int) and not isinstance(share, bool),
            f"{name} should be a number",
        )
        expected = chance_of_an_effect(seeds)
        with_too_small_deviations = 3 * ((seeds - 1) / seeds) ** 0.5
        for wrong, hint in (
            (expected / 2, "a loss counts as well as a gain: take the absolute value"),
            (
                chance_of_an_effect(seeds, with_too_small_deviations),
                "the deviation that notebook 13 takes divides by one less than the number of seeds",
            ),
        ):
            require(abs(share - wrong) > min(0.004, expected / 4), f"{name}: {hint}")
        require(
            abs(share - expected) < min(0.008, expected / 2),
            f"{name} is {share:.4f}, and with 20,000 pairs it should come out "
            f"{'lower' if share > expected else 'higher'}: two times so many numbers "
            "from one distribution, difference of means, three times its error",
        )
    require_number(
        "at_least_one",
        at_least_one,
        1 - (1 - 0.04) ** 19,
        "with which probability is none of the 19 an effect? Multiply; the rest is it",
    )
    right("Hence: say how many comparisons you made, and do not count on a lone one.")


def few_shot_probe(scores_of: Callable) -> None:
    """Exercise 13.4: the ridge probe by the normal equations."""
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
                "the new images are brought to scale with the mean and the deviation "
                "of the features that were learnt from",
            ),
            (
                variant(x, new_x, targets),
                "the targets are 1 for the right class and -1 for the others",
            ),
            (
                variant(x, new_x, Y, offset=False),
                "the mean of the targets is taken off first, and added to the scores",
            ),
            (
                variant(x, new_x, Y) - Y.mean(dim=0),
                "the targets' mean has to be added to the scores again",
            ),
        ):
            require(not is_close(found, wrong), hint)
        require_tensor(
            f"the scores with {M} examples of {D} features",
            found,
            expected,
            "W solves (XᵀX + λI) W = XᵀY, with a D × D identity; deviations are those "
            "with correction=0",
        )
    right("Two formulas, one W: take the one whose matrix is smaller, D × D or M × M.")
