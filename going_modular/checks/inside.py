"""Checks for the exercises of notebook 12."""

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F

from going_modular import data_setup
from going_modular.checks import (
    is_close,
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
    """Exercise 12.1: rollout of two tokens through two layers, by hand."""
    maps = torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]], [[[0.5, 0.5], [1.0, 0.0]]]])
    expected = attention_rollout(maps)[0].tolist()
    wrong = {
        attention_rollout(maps.flip(0))[0, 0].item(): "a layer's matrix stands to "
        "the left of those of the layers before it; or are the two answers exchanged?",
        (maps[1, 0] @ maps[0, 0])[0, 0].item(): "the residual path is missing: first "
        "each matrix is averaged with the identity",
        expected[0] * 4: "averaged: half of the matrix and half of the identity, in each layer",
    }
    require_answers(from_itself=from_itself)
    for number, hint in wrong.items():
        require(from_itself != number, f"from_itself: {hint}")
    require_number(
        "from_itself",
        from_itself,
        expected[0],
        "which row of the product is the first token's, and which column belongs to "
        "the first input?",
    )
    require_number("from_other", from_other, expected[1], "what should a row of a rollout sum to?")
    right("Every row still sums to 1, however many layers are multiplied.")


def neighbours(look_at_neighbours: Callable) -> None:
    """Exercise 12.2: a head in which each patch looks at those that touch its sides."""
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
                f"{name}: a patch looks at one that does not touch it. The next number "
                "is not always the next place: a row ends somewhere; and corners do "
                "not count",
            )
            require(
                torch.allclose(found.sum(dim=1).float(), torch.ones(rows * columns)),
                f"{name}: each row has to sum to 1, also at the rim, where patches "
                "have fewer neighbours",
            )
        require_tensor(name, found, expected, "each of a patch's neighbours gets the same share")
    right("Its mean attention distance is P exactly, whatever the grid.")


@cache
def maps_of_drawings() -> torch.Tensor:
    """(15, L, h, T, T), of our backbone and every fifth drawn test image."""
    backbone, transform, _ = load_pretrained_backbone("drawn_dishes")
    photos = data_setup.PhotoFolder(data_setup.get_drawn_images().test_dir, transform)
    images = torch.stack([photos[i][0] for i in range(0, len(photos), 5)])
    return attention_maps(vit_of(backbone), images)


def tokens_looked_at(width: Callable, layer, head) -> None:
    """Exercise 12.3: e to the entropy of a row of attention, and the head where it is least."""
    T, generator = 5, torch.Generator().manual_seed(12)
    even, one = torch.full((T, T), 1 / T), torch.eye(T).roll(1, 0)
    two = (torch.eye(T) + torch.eye(T).roll(1, 0)) / 2
    for attention, name, expected in (
        (even, "that looks at all alike", float(T)),
        (one, "that looks at one token", 1.0),
        (two, "that looks at two alike", 2.0),
    ):
        found = result_of(width, attention)
        if isinstance(found, torch.Tensor):
            require(
                not found.isnan().any(),
                "0 · ln 0 counts as 0, and to the computer it is NaN: torch.xlogy, or "
                "clamp before the logarithm",
            )
        require_tensor(
            f"the width of a head {name}",
            found,
            torch.tensor(expected),
            "for each row e to the power of -Σ a · ln a, then the mean over the rows",
        )
    maps = torch.rand(2, 3, 4, T, T, generator=generator).mul(4).softmax(dim=-1)
    widths = torch.special.entr(maps).sum(dim=-1).exp()  # (2, 3, 4, T)
    expected, found = widths.mean(dim=-1), result_of(width, maps)
    first = torch.special.entr(maps).sum(dim=-1).mean(dim=-1).exp()
    require(
        not is_close(found, first), "first e to the power of each row's entropy, and then the mean"
    )
    of_columns = torch.special.entr(maps).sum(dim=-2).exp().mean(dim=-1)
    require(not is_close(found, of_columns), "a token's attention is a row: sum over the last axis")
    require_tensor(
        "width(maps) for maps (2, 3, 4, T, T)", found, expected, "only the last two axes disappear"
    )
    of_heads = torch.special.entr(maps_of_drawings()).sum(dim=-1).exp().mean((0, -1))
    L, h = of_heads.shape
    for name, number, most in (("layer", layer, L), ("head", head, h)):
        require_answers(**{name: number})
        require(
            number in range(1, most + 1),
            f"{name} should be a number from 1 to {most} (and counted from 1)",
        )
    narrowest = divmod(of_heads.argmin().item(), h)
    require(
        (layer, head) == tuple(place + 1 for place in narrowest),
        f"a head of layer {layer} it is, but another one"
        if layer == narrowest[0] + 1
        else "another layer has a head that looks at fewer tokens: average over the "
        "images, then look for the smallest number; layers and heads count from 1",
    )
    right("Some heads look at nearly everything. This one has made its choice.")


def covering_and_showing(shown_alone: Callable, covering, showing) -> None:
    """Exercise 12.4: what each patch is worth without the others, and what both ways miss."""
    generator = torch.Generator().manual_seed(12)
    images = torch.randn(3, 2, 8, 12, generator=generator)
    weight = torch.randn(5, 2 * 8 * 12, generator=generator) / 4

    def some_model(images):
        return F.linear(images.flatten(1), weight) + images.square().mean()

    whole, guess = some_model(images).softmax(dim=1).max(dim=1)
    expected = torch.empty(3, 2, 3)
    for patch in range(6):
        others = [n for n in range(6) if n != patch]
        left = cover(images, torch.tensor([others] * 3), 4)
        probabilities = some_model(left).softmax(dim=1)
        expected.flatten(1)[:, patch] = probabilities[torch.arange(3), guess]
    before = images.clone()
    found = result_of(shown_alone, some_model, images, 4)
    require(torch.equal(images, before), "the images that were given have changed: work on a copy")
    lost = occlusion_sensitivity(some_model, images, 4)
    for wrong in (lost, whole[:, None, None] - lost):
        require(not is_close(found, wrong), "this covers one patch; here all others are covered")
    require_tensor(
        "shown_alone for images of 8 × 12 pixels in patches of 4",
        found,
        expected,
        "the probability of the class that is predicted for the whole image, when all "
        "but one patch are 0; patches are counted row by row",
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
            f"{way}: print what it gives for both models. In which one do the two "
            "patches that decide look no different from the others?",
        )
    right("Each way answers its own question: can it do without? Is it enough?")
