"""Checks for the exercises of notebook 12."""

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F

from going_modular import data_setup
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
from going_modular.vit.backbones import load_pretrained_backbone, vit_of
from going_modular.vit.inspect import (
    attention_maps,
    attention_rollout,
    cover,
    occlusion_sensitivity,
    patch_distances,
)


def two_layers(from_itself, from_other) -> None:
    """Exercise 12.1: the rollout of two tokens through two layers, by hand."""
    maps = torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]], [[[0.5, 0.5], [1.0, 0.0]]]])
    expected = attention_rollout(maps)[0].tolist()
    wrong = {
        attention_rollout(maps.flip(0))[0, 0].item(): "in which order does the formula "
        "multiply the layers? Or did you swap the two answers?",
        (maps[1, 0] @ maps[0, 0])[0, 0].item(): "how does the formula account for the "
        "residual path?",
        expected[0] * 4: "does each row of each layer's matrix sum to 1 before you multiply?",
    }
    require_answers(from_itself=from_itself)
    for number, hint in wrong.items():
        require(from_itself != number, f"from_itself: {hint}")
    require_number(
        "from_itself",
        from_itself,
        expected[0],
        "which row of the product belongs to the first token, and which column to the first input?",
    )
    require_number("from_other", from_other, expected[1], "what should a row of a rollout sum to?")
    right("Every row still sums to 1, however many layers you multiply.")


def neighbours(look_at_neighbours: Callable) -> None:
    """Exercise 12.2: a head whose patches look at the patches that touch their sides."""
    for rows, columns in ((3, 4), (2, 5), (1, 3)):
        touching = (patch_distances((rows, columns), 1) == 1).float()  # (N, N)
        expected = touching / touching.sum(dim=1, keepdim=True)
        name = f"look_at_neighbours({rows}, {columns})"
        found = result_of(look_at_neighbours, rows, columns)
        if isinstance(found, torch.Tensor) and found.shape == expected.shape:
            require(not found.diagonal().any(), f"{name}: a patch looks at itself")
            far = patch_distances((rows, columns), 1) > 1
            require(
                not found[far].any(),
                f"{name}: a patch looks at one that does not touch its side. What happens "
                "at the end of a row, and at the corners?",
            )
            require(
                torch.allclose(found.sum(dim=1).float(), torch.ones(rows * columns)),
                f"{name}: each row should sum to 1. How many neighbours has a patch at the edge?",
            )
        require_tensor(name, found, expected, "does each neighbour of a patch get the same share?")
    right("The mean attention distance of this head is exactly P on every grid.")


@cache
def maps_of_drawings() -> torch.Tensor:
    """Return the attention of our backbone on every fifth drawn test image.

    Shape: (15, L, h, T, T).
    """
    backbone, transform, _ = load_pretrained_backbone("drawn_dishes")
    photos = data_setup.PhotoFolder(data_setup.get_drawn_images().test_dir, transform)
    images = torch.stack([photos[i][0] for i in range(0, len(photos), 5)])
    return attention_maps(vit_of(backbone), images)


def tokens_looked_at(width: Callable, layer, head) -> None:
    """Exercise 12.3: how many tokens a head looks at, and the head that looks at fewest."""
    T = 5
    one = torch.eye(T).roll(1, 0)
    for attention, num_tokens in (
        (torch.full((T, T), 1 / T), T),
        (one, 1),
        ((torch.eye(T) + one) / 2, 2),
    ):
        found = result_of(width, attention)
        if isinstance(found, torch.Tensor):
            require(
                not found.isnan().any(),
                "the width is NaN, because in floating point 0 · ln 0 is. What should it "
                "count as? Look at torch.xlogy",
            )
        require_tensor(
            f"the width of a head that looks evenly at {num_tokens} of {T} tokens",
            found,
            torch.tensor(float(num_tokens)),
            "compute e to the power of each row's entropy, then average over the rows",
        )
    maps = noise(2, 3, 4, T, T).softmax(dim=-1)
    entropy = torch.special.entr(maps)
    found = result_of(width, maps)
    for wrong, hint in (
        (entropy.sum(dim=-1).mean(dim=-1).exp(), "what comes first, the power of e or the mean?"),
        (entropy.sum(dim=-2).exp().mean(dim=-1), "is a token's attention a row or a column?"),
    ):
        require(not is_close(found, wrong), hint)
    require_tensor(
        "width(maps) for maps (2, 3, 4, T, T)",
        found,
        entropy.sum(dim=-1).exp().mean(dim=-1),
        "only the last two axes should disappear",
    )
    widths = torch.special.entr(maps_of_drawings()).sum(dim=-1).exp().mean((0, -1))  # (L, h)
    L, h = widths.shape
    for name, number, largest in (("layer", layer, L), ("head", head, h)):
        require_answers(**{name: number})
        require(number in range(1, largest + 1), f"{name} should be a number from 1 to {largest}")
    index = int(widths.argmin())
    narrowest_layer, narrowest_head = index // h + 1, index % h + 1
    require(
        layer == narrowest_layer,
        "a head in a different layer looks at fewer tokens. Average over the images, find "
        "the smallest number, and count layers and heads from 1",
    )
    require(head == narrowest_head, "the layer is right, the head is not")
    right("Some heads look at nearly every token. This one is selective.")


def covering_and_showing(shown_alone: Callable, covering, showing) -> None:
    """Exercise 12.4: the probability from each patch alone, and what each method misses."""
    images, weight = noise(3, 2, 8, 12), noise(5, 2 * 8 * 12, seed=1) / 4

    def some_model(images):
        return F.linear(images.flatten(1), weight) + images.square().mean()

    probability, guess = some_model(images).softmax(dim=1).max(dim=1)
    expected = torch.empty(3, 2, 3)
    for patch in range(6):
        others = [n for n in range(6) if n != patch]
        alone = cover(images, torch.tensor([others] * 3), 4)
        probabilities = some_model(alone).softmax(dim=1)
        expected.flatten(1)[:, patch] = probabilities[torch.arange(3), guess]
    before = images.clone()
    found = result_of(shown_alone, some_model, images, 4)
    require(torch.equal(images, before), "the function changes the images it gets: work on a copy")
    lost = occlusion_sensitivity(some_model, images, 4)
    for wrong in (lost, probability[:, None, None] - lost):
        require(not is_close(found, wrong), "this covers one patch. Which patches should it cover?")
    require_tensor(
        "shown_alone for images of 8 × 12 pixels in patches of 4",
        found,
        expected,
        "which class's probability is asked for? Which patches are 0? Patches count row by row",
    )
    answers = {"covering": covering, "showing": showing}
    require_answers(**answers)
    for way, answer in answers.items():
        require(answer in ("either", "both"), f'{way} should be "either" or "both", in quotes')
    missed = {}
    for name, combine in (("either", torch.maximum), ("both", torch.minimum)):

        def toy(images, combine=combine):
            evidence = 8 * combine(images[:, 0, 0, 0], images[:, 0, -1, -1]) - 4
            return torch.stack([-evidence, evidence], dim=1)

        bright = torch.ones(1, 1, 4, 6)
        if occlusion_sensitivity(toy, bright, 2).max() < 0.5:
            missed["covering"] = name
        else:
            missed["showing"] = name
    for way, answer in answers.items():
        require(
            answer == missed[way],
            f"{way}: print what it gives for both models. In which of them do the two "
            "deciding patches look the same as the others?",
        )
    right("Covering asks whether a patch is necessary. Showing asks whether it is enough.")
