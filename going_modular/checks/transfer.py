"""Checks for the exercises of notebook 09."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch

from going_modular import data_setup, engine
from going_modular.checks import (
    SMALL,
    noise,
    require,
    require_answers,
    require_number,
    require_tensor,
    result_of,
    right,
)
from going_modular.experiments.claims import ridge_probe
from going_modular.model_builder import ViT, create_vit
from going_modular.utils import count_parameters, give_random_values
from going_modular.vit.backbones import load_pretrained_backbone, vit_of
from going_modular.vit.positions import interpolate_pos_embedding


def parameters_to_train(head_numbers, with_norm) -> None:
    """Exercise 9.1: the parameters of a new head for ViT-L/16, without and with LayerNorm."""
    with torch.device("meta"):
        vit = create_vit("ViT-L/16", num_classes=101)
    head = count_parameters(vit.head)
    require_answers(head_numbers=head_numbers)
    require(
        head_numbers != vit.head.weight.numel(),
        "head_numbers: the weights are right. What else does a linear layer have?",
    )
    require_number(
        "head_numbers",
        head_numbers,
        head,
        "the head maps D features to K classes. Table 1 has the D of ViT-L",
    )
    require_number(
        "with_norm",
        with_norm,
        head + count_parameters(vit.norm),
        "which parameters does a LayerNorm have, and how long are they? Add them to the head's",
    )
    right("You train fewer than 4 in 10,000 parameters. All others are borrowed.")


def images_for_a_difference(images_needed: Callable) -> None:
    """Exercise 9.2: the test images that it takes to tell two accuracies apart."""
    for accuracy, difference, errors in ((0.93, 0.02, 2), (0.6, 0.05, 3), (0.8, 0.1, 1)):
        expected = 2 * accuracy * (1 - accuracy) * (errors / difference) ** 2
        name = f"images_needed({accuracy}, {difference}, {errors})"
        answer = result_of(images_needed, accuracy, difference, errors)
        for factor, hint in (
            (2, "how many of the two accuracies have an error?"),
            (errors / difference, "n is under a square root. How do you solve for it?"),
        ):
            is_this = isinstance(answer, float | int) and abs(answer * factor / expected - 1) < 1e-6
            require(not is_this, f"{name}: {hint}")
        require_number(
            name,
            answer,
            expected,
            "write down errors · (standard error of the difference) = difference, and solve for n",
        )
    right("To show half the difference you need four times the images.")


def without_a_leak(honest_accuracy: Callable) -> None:
    """Exercise 9.3: choose features without a look at the test images."""
    generator = torch.Generator().manual_seed(9)
    accuracies = []
    for draw in range(20):
        features = torch.randn(60, 1000, generator=generator)
        labels = torch.randint(2, (60,), generator=generator)
        is_test = torch.arange(60) % 3 == draw % 3
        accuracy = result_of(honest_accuracy, features, labels, is_test)
        flipped = torch.where(is_test, 1 - labels, labels)
        flipped_accuracy = result_of(honest_accuracy, features, flipped, is_test)
        require(
            abs(accuracy + flipped_accuracy - 1) < 1e-6,
            "we flipped all test labels. Every right answer is then wrong, so the accuracy "
            "a should become 1 - a. Yours does not. Where do the test labels come in before "
            "the comparison at the end?",
        )
        accuracies.append(accuracy)
    mean = sum(accuracies) / len(accuracies)
    require(
        0.4 < mean < 0.6,
        f"on random features the mean accuracy is {mean:.2f}, where guessing gives 0.5",
    )
    features[:, :30] += 3 * labels[:, None]
    require(
        result_of(honest_accuracy, features, labels, is_test) > 0.95,
        "it should still find features that really differ between the classes",
    )
    right("If test labels take part in any choice, the accuracy on the test set is too high.")


def another_resolution(tokens, position_numbers, at_resolution: Callable) -> None:
    """Exercise 9.4: a ViT at a higher resolution, with interpolated positions."""
    c = vit_of(load_pretrained_backbone("drawn_dishes")[0]).config
    N = (168 // c.patch_size) ** 2
    require_answers(tokens=tokens)
    require(tokens != N, "tokens: this counts the patches. Which token is missing?")
    require_number(
        "tokens",
        tokens,
        N + 1,
        "how many patches of 14 pixels fit along a side of 168? Which other token is there?",
    )
    require_answers(position_numbers=position_numbers)
    require_number(
        "position_numbers",
        position_numbers,
        (N + 1) * c.embedding_dim,
        "each token has a position of D numbers. Does the class token have one?",
    )
    for old_size, new_size in ((32, 48), (32, (40, 24)), ((32, 16), 48)):
        vit = give_random_values(ViT(replace(SMALL, image_size=old_size))).eval()
        before = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
        expected = ViT(replace(vit.config, image_size=new_size)).eval()
        positions = interpolate_pos_embedding(
            before["pos_embedding"], vit.config.grid, expected.config.grid
        )
        expected.load_state_dict(before | {"pos_embedding": positions})
        answer = result_of(at_resolution, vit, new_size)
        require(isinstance(answer, ViT), "at_resolution should return a ViT of the package")
        require(
            answer.config.grid == expected.config.grid,
            f"for images of {new_size} pixels the grid is {expected.config.grid}, but your "
            f"ViT has the grid {answer.config.grid}. Which field of the config decides?",
        )
        require_tensor(
            "pos_embedding[:, 0]",
            answer.pos_embedding[:, 0],
            before["pos_embedding"][:, 0],
            "does the class token have a place on the grid?",
        )
        require_tensor(
            "pos_embedding[:, 1:]",
            answer.pos_embedding[:, 1:],
            expected.pos_embedding[:, 1:],
            "are the positions of the old grid interpolated to the new one? Try grids that "
            "are not square",
        )
        images = noise(2, SMALL.in_channels, *expected.config.image_hw)
        with torch.inference_mode():
            require_tensor(
                f"your ViT's logits for images of {new_size} pixels",
                answer.eval()(images),
                expected(images),
                "are all other weights those of the given ViT?",
            )
        same = all(torch.equal(before[name], vit.state_dict()[name]) for name in before)
        require(same, "your function changes the given ViT. It should fill a new one")
    right("Only the positions depend on the size of the image, all other weights do not.")


@cache
def drawn_features() -> list[tuple[torch.Tensor, ...]]:
    """Return (features, labels) of the drawn training images and of the test images."""
    backbone, transform, _ = load_pretrained_backbone("drawn_dishes")
    drawn = data_setup.get_drawn_images()
    return [
        engine.extract_features(
            backbone,
            data_setup.create_dataloader(data_setup.PhotoFolder(folder, transform), 32),
            "cpu",
        ).tensors
        for folder in (drawn.train_dir, drawn.test_dir)
    ]


def twice_the_data(missing, features, labels, guesses, accuracy) -> None:
    """Exercise 9.5: a head on 450 drawn images, 150 of each class."""
    (old, old_labels), (test_features, test_labels) = drawn_features()
    require_answers(missing=missing)
    names = ("pizza", "steak", "sushi")
    expected = dict(zip(names, (150 - old_labels.bincount()).tolist(), strict=True))
    require(
        missing == expected,
        "missing: how many of the 225 labels has each class? Each should have 150 in the end",
    )
    for name, tensor, shape in (
        ("features", features, (450, old.shape[1])),
        ("labels", labels, (450,)),
        ("guesses", guesses, test_labels.shape),
    ):
        require_answers(**{name: tensor})
        require(
            isinstance(tensor, torch.Tensor) and tensor.shape == shape,
            f"{name} should be a tensor of shape {tuple(shape)}",
        )
    for name, tensor in (("labels", labels), ("guesses", guesses)):
        require(
            not tensor.is_floating_point() and set(tensor.tolist()) <= {0, 1, 2},
            f"{name} should contain the class numbers 0, 1 and 2",
        )
    require(labels.bincount().tolist() == [150] * 3, "each class should have 150 labels")
    require(
        torch.allclose(features[:225], old, atol=1e-3) and torch.equal(labels[:225], old_labels),
        "the first 225 rows should be the drawn training images, in their order. Yours differ",
    )
    new, new_labels = features[225:], labels[225:]
    # A matrix product would round, so that equal rows would not have distance 0.
    distances = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
    require(
        distances.fill_diagonal_(torch.inf).min().item() > 1e-3,
        "two of the 450 images are identical. Does each new picture have its own number?",
    )
    agreement = (ridge_probe(old, old_labels)(new).argmax(dim=1) == new_labels).float().mean()
    require(
        agreement.item() > 0.7,
        f"a classifier trained on the 225 agrees with only {agreement:.0%} of your new "
        "labels. Are pictures and labels in the same order? Do you use the backbone's "
        "transform?",
    )
    measured = (guesses == test_labels).float().mean().item()
    probe = ridge_probe(features, labels)(test_features).argmax(dim=1)
    require(
        measured < 1 or torch.equal(probe, test_labels),
        "all guesses are right, which is not plausible. Are they the labels?",
    )
    require_number(
        "accuracy", accuracy, measured, "for which share of the test images is the guess right?"
    )
    require(
        measured > 0.8,
        f"the accuracy is {measured:.2f}, but a head on these features should exceed 0.8. Do "
        "the guesses come from the head that was trained on all 450, for the test images?",
    )
    right(
        "Is it more than before? The standard error is about 0.03, so 75 test images "
        "cannot tell. See exercise 9.2."
    )
