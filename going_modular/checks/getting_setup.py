"""Checks for the exercises of notebook 00."""

import math
import random
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from going_modular.checks import (
    require,
    require_answers,
    require_number,
    require_tensor,
    result_of,
    right,
)


def bigger_batches(batches, last_batch, times_as_much) -> None:
    """Exercise 0.1: batches of 100 of the 225 training images."""
    require_answers(batches=batches, last_batch=last_batch, times_as_much=times_as_much)
    sizes = [len(batch) for batch in DataLoader(range(225), batch_size=100)]
    full, last = sizes[0], sizes[-1]
    require(
        batches != len(sizes) - 1,
        "batches: the images that do not fill a batch come too, in one of their own",
    )
    require_number("batches", batches, len(sizes), "divide 225 by 100; what about the rest?")
    require_number("last_batch", last_batch, last, "what do the full batches leave?")
    require(
        times_as_much != last / full,
        "times_as_much: the other way round, fewer images share the same weight",
    )
    require_number(
        "times_as_much",
        times_as_much,
        full / last,
        "each batch weighs the same, and its images share that weight",
    )
    right("A larger batch makes fewer, but steadier steps: three in an epoch, not eight.")


def sure_and_wrong(expected_loss: Callable, best_q) -> None:
    """Exercise 0.2: cross-entropy of a classifier that is always equally sure."""
    for accuracy, q, K in ((0.8, 0.6, 3), (0.5, 0.9, 3), (0.9, 0.7, 10)):
        loss = result_of(expected_loss, accuracy, q, K)
        when_right, others = -accuracy * math.log(q), 1 - accuracy
        expected = when_right - others * math.log((1 - q) / (K - 1))
        name = f"expected_loss({accuracy}, {q}, {K})"
        for value, hint in (
            (when_right, "this leaves out the images it gets wrong, which count too"),
            (
                when_right - others * math.log(1 - q),
                "where it is wrong, the true class gets only its share of 1 - q",
            ),
            (
                when_right + others * math.log((1 - q) / (K - 1)),
                "a minus sign is missing: no image has a loss below zero",
            ),
        ):
            is_this = isinstance(loss, float) and math.isclose(loss, value)
            require(not is_this, f"{name}: {hint}")
        require_number(
            name,
            loss,
            expected,
            "average -ln p over two kinds of images, p being what the true class gets",
        )
    require_answers(best_q=best_q)
    losses = {q: expected_loss(0.8, q, 3) for q in (0.5, 0.6, 0.7, 0.8, 0.9, 0.99)}
    require_number(
        "best_q",
        best_q,
        min(losses, key=losses.get),
        "compare the six losses; which is the lowest?",
    )
    right(
        "Cross-entropy is lowest where a model is as sure as it is often right. A loss "
        "can rise while the accuracy stays: the model got surer of its mistakes."
    )


def whole_picture(padded_to_square: Callable, empty_patches) -> None:
    """Exercise 0.3: a square without cutting or squeezing, and what it costs."""
    for C, H, W in ((3, 5, 10), (1, 9, 6), (3, 5, 5)):
        image = torch.rand((C, H, W), generator=torch.Generator().manual_seed(0))
        square = result_of(padded_to_square, image)
        S = max(H, W)
        top, left = (S - H) // 2, (S - W) // 2
        sides = (left, S - W - left, top, S - H - top)
        black = F.pad(image, sides)
        name = f"the square of an image {(C, H, W)}"
        if isinstance(square, torch.Tensor) and square.shape == black.shape and H != W:
            corner = F.pad(image, (0, S - W, 0, S - H), value=0.5)
            for value, hint in (
                (black, "the new pixels are black, and should be 0.5"),
                (corner, "the image is in a corner, and should be in the middle"),
            ):
                require(not torch.equal(square, value), f"{name}: {hint}")
        require_tensor(
            name,
            square,
            F.pad(image, sides, value=0.5),
            "each pixel of the image is kept, with half of what is missing before "
            "and half after it (one more after it, if that is odd)",
        )
    require_answers(empty_patches=empty_patches)
    H, W, P = 126, 224, 16
    seen = padded_to_square(torch.ones(1, H, W))
    empty = (F.unfold(seen[None], P, stride=P) == 0.5).all(dim=1).sum().item()
    require(
        empty_patches != (W * W - H * W) / P**2,
        "empty_patches: a patch on the edge of the picture still shows some of it",
    )
    require_number(
        "empty_patches",
        empty_patches,
        empty,
        "how high is the picture now, and how many whole rows of patches fit into "
        "the bar above it? And below?",
    )
    right("Nothing is lost and nothing is oval, but much of the sequence is grey.")


def a_generator_of_its_own(training_and_held_out: Callable) -> None:
    """Exercise 0.4: a random split that neither hears nor disturbs other random numbers."""

    def states():
        numbers = np.random.get_state()[1].tolist()
        return torch.get_rng_state().tolist(), random.getstate(), numbers

    before = states()
    parts = result_of(training_and_held_out, 20, 6, 1)
    after = states()
    require(
        isinstance(parts, (list, tuple)) and [len(part) for part in parts] == [14, 6],
        "it should return two lists, the second as long as num_held_out says",
    )
    require(
        sorted(int(i) for part in parts for i in part) == list(range(20)),
        "every number below num_images should be in one of the lists, once",
    )
    require(
        after == before,
        "whoever draws random numbers after this call gets others than without it: "
        "the shuffle still uses, or seeds, the numbers that all share",
    )
    with torch.random.fork_rng(devices=[]):
        torch.rand(1)
        again = result_of(training_and_held_out, 20, 6, 1)
    require(
        [list(part) for part in again] == [list(part) for part in parts],
        "the same seed gave another split: is the generator seeded, and used?",
    )
    others = [sorted(training_and_held_out(20, 6, seed)[1]) for seed in (2, 3)]
    require(
        any(other != sorted(parts[1]) for other in others),
        "each seed gives the same split: is it used?",
    )
    right("That is how our DataLoader shuffles: by its own seed and the epoch alone.")


def detective_work(right_answers: Callable) -> None:
    """Exercise 0.5: how many answers were right, from a mean over batches."""
    for full, last, counts in ((32, 11, (31, 30, 9)), (32, 11, (32, 32, 8)), (50, 7, (44, 50, 7))):
        sizes = (full, full, last)
        shares = [n / size for n, size in zip(counts, sizes, strict=True)]
        printed = round(sum(shares) / 3, 4)
        answer = result_of(right_answers, printed, full, last)
        name = f"right_answers({printed}, {full}, {last})"
        require(
            answer not in (round(printed * sum(sizes)), printed * sum(sizes)),
            f"{name}: this takes the printed number for a share of all images, but it "
            "is a mean of three batches, and the last one is small",
        )
        require_number(
            name,
            answer,
            sum(counts),
            "how many possibilities are there for the full batches together, and how "
            "many for the last?",
        )
    right("Two answers in a small last batch can move the mean more than five others.")
