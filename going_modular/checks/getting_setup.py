"""Checks for the exercises of notebook 00."""

import math
import random
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

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
    sizes = [len(batch) for batch in torch.arange(225).split(100)]
    full, last = sizes[0], sizes[-1]
    require(
        batches != len(sizes) - 1, "batches: what happens to the images that do not fill a batch?"
    )
    require_number("batches", batches, len(sizes), "divide 225 by 100. What about the rest?")
    require_number("last_batch", last_batch, last, "how many images do the full batches leave?")
    require(
        times_as_much != last / full,
        "times_as_much: does an image count more or less if fewer images share the weight?",
    )
    require_number(
        "times_as_much",
        times_as_much,
        full / last,
        "each batch has the same weight, and its images share it",
    )
    right("Larger batches mean fewer and steadier steps: three in an epoch instead of eight.")


def sure_and_wrong(expected_loss: Callable, best_q) -> None:
    """Exercise 0.2: the cross-entropy of a classifier that is always equally sure."""
    for accuracy, q, K in ((0.8, 0.6, 3), (0.5, 0.9, 3), (0.9, 0.7, 10)):
        loss = result_of(expected_loss, accuracy, q, K)
        when_right, others = -accuracy * math.log(q), 1 - accuracy
        expected = when_right - others * math.log((1 - q) / (K - 1))
        name = f"expected_loss({accuracy}, {q}, {K})"
        for value, hint in (
            (when_right, "what is the loss of the images that it gets wrong?"),
            (
                when_right - others * math.log(1 - q),
                "if it is wrong, how much of 1 - q does the true class get?",
            ),
            (
                when_right + others * math.log((1 - q) / (K - 1)),
                "no image can have a loss below zero. Check the signs",
            ),
        ):
            is_this = isinstance(loss, float) and math.isclose(loss, value)
            require(not is_this, f"{name}: {hint}")
        require_number(
            name,
            loss,
            expected,
            "average -ln p over two kinds of images, where p is the probability of the true class",
        )
    require_answers(best_q=best_q)
    losses = {q: expected_loss(0.8, q, 3) for q in (0.5, 0.6, 0.7, 0.8, 0.9, 0.99)}
    require_number(
        "best_q",
        best_q,
        min(losses, key=lambda q: losses[q]),
        "compute the six losses. Which is the lowest?",
    )
    right(
        "The cross-entropy is lowest if the probability equals the accuracy. The loss can "
        "rise at the same accuracy if the model becomes surer of its mistakes."
    )


def whole_picture(padded_to_square: Callable, empty_patches) -> None:
    """Exercise 0.3: make a square without cropping or squeezing, and count the empty patches."""
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
                (black, "the new pixels are black. Which value should they have?"),
                (corner, "the image is in a corner. Where should it be?"),
            ):
                require(not torch.equal(square, value), f"{name}: {hint}")
        require_tensor(
            name,
            square,
            F.pad(image, sides, value=0.5),
            "does it keep every pixel? Is half of the missing space before the image and "
            "half after it? Try an odd number of missing rows",
        )
    require_answers(empty_patches=empty_patches)
    H, W, P = 126, 224, 16
    square = padded_to_square(torch.ones(1, H, W))
    empty = (F.unfold(square[None], P, stride=P) == 0.5).all(dim=1).sum().item()
    require(
        empty_patches != (W * W - H * W) / P**2,
        "empty_patches: are there patches that show both grey and a piece of the picture?",
    )
    require_number(
        "empty_patches",
        empty_patches,
        empty,
        "how high is the picture now? How many full rows of patches fit into the bar "
        "above it, and into the bar below?",
    )
    right("Nothing is cut off or squeezed, but many of the tokens are grey.")


def a_generator_of_its_own(training_and_held_out: Callable) -> None:
    """Exercise 0.4: a random split with its own generator."""

    def states():
        """Return the states of the three generators that a program shares."""
        _, keys, *position = np.random.get_state()
        return torch.get_rng_state().tolist(), random.getstate(), keys.tolist(), position

    before = states()
    parts = result_of(training_and_held_out, 20, 6, 1)
    after = states()
    require(
        isinstance(parts, (list, tuple)) and [len(part) for part in parts] == [14, 6],
        "it should return two lists, and the second should have num_held_out numbers",
    )
    require(
        sorted(int(i) for part in parts for i in part) == list(range(20)),
        "every number from 0 to num_images - 1 should be in one of the two lists, once",
    )
    require(
        after == before,
        "your function changes the random numbers that the program draws after it. Which "
        "generator does it use or seed?",
    )
    with torch.random.fork_rng(devices=[]):
        torch.rand(1)
        again = result_of(training_and_held_out, 20, 6, 1)
    require(
        [list(part) for part in again] == [list(part) for part in parts],
        "the same seed gave two different splits. Do you seed the generator and use it?",
    )
    others = [sorted(training_and_held_out(20, 6, seed)[1]) for seed in (2, 3)]
    require(
        any(other != sorted(parts[1]) for other in others),
        "each seed gives the same split. Do you use the seed?",
    )
    right("Our DataLoader shuffles in the same way: only its seed and the epoch matter.")


def detective_work(right_answers: Callable) -> None:
    """Exercise 0.5: the number of right answers from a mean over batches."""
    for full, last, counts in ((32, 11, (31, 30, 9)), (32, 11, (32, 32, 8)), (50, 7, (44, 50, 7))):
        sizes = (full, full, last)
        shares = [n / size for n, size in zip(counts, sizes, strict=True)]
        printed = round(sum(shares) / 3, 4)
        answer = result_of(right_answers, printed, full, last)
        name = f"right_answers({printed}, {full}, {last})"
        require(
            answer not in (round(printed * sum(sizes)), printed * sum(sizes)),
            f"{name}: the printed number is not a share of all images. What is it the mean of?",
        )
        require_number(
            name,
            answer,
            sum(counts),
            "which counts are possible in the full batches together, and which in the last batch?",
        )
    right("Two answers in the small last batch can move the mean more than five in the others.")
