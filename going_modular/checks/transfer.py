"""Checks for the exercises of notebook 09."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch

from going_modular import data_setup, engine
from going_modular.checks import (
    require,
    require_answers,
    require_number,
    require_tensor,
    result_of,
    right,
)
from going_modular.experiments.claims import ridge_probe
from going_modular.model_builder import ViT, ViTConfig, create_vit
from going_modular.utils import count_parameters, give_random_values
from going_modular.vit.backbones import load_pretrained_backbone, vit_of
from going_modular.vit.positions import interpolate_pos_embedding


def parameters_to_train(head_numbers, with_norm) -> None:
    """Exercise 9.1: the head of ViT-L/16 for Food-101, alone and with the last LayerNorm."""
    with torch.device("meta"):
        vit = create_vit("ViT-L/16", num_classes=101)
    head = count_parameters(vit.head)
    require_answers(head_numbers=head_numbers)
    require(head_numbers != vit.head.weight.numel(), "each class has a bias as well")
    require_number(
        "head_numbers",
        head_numbers,
        head,
        "a weight for each feature and each class, and a bias for each class; the "
        "features are D numbers, and Table 1 has D for ViT-L",
    )
    require_number(
        "with_norm",
        with_norm,
        head + count_parameters(vit.norm),
        "a LayerNorm has a factor and a summand for each of the D numbers; they come "
        "to those of the head",
    )
    right("Less than 4 in 10,000 of all its numbers: the rest is borrowed.")


def images_for_a_difference(images_needed: Callable) -> None:
    """Exercise 9.2: how many test images show a difference of two accuracies."""
    for accuracy, difference, errors in ((0.93, 0.02, 2), (0.6, 0.05, 3), (0.8, 0.1, 1)):
        expected = 2 * accuracy * (1 - accuracy) * (errors / difference) ** 2
        name = f"images_needed({accuracy}, {difference}, {errors})"
        given = result_of(images_needed, accuracy, difference, errors)
        for factor, hint in (
            (2, "the difference has an error from each of the two accuracies"),
            (errors / difference, "n stands under a root, so it takes a square"),
        ):
            is_it = isinstance(given, float | int) and (abs(given * factor / expected - 1) < 1e-6)
            require(not is_it, f"{name}: {hint}")
        require_number(
            name,
            given,
            expected,
            "write down errors · (standard error of the difference) = difference, and solve for n",
        )
    right("Half the difference wants four times the images.")


def without_a_leak(honest_accuracy: Callable) -> None:
    """Exercise 9.3: nothing of the test images has a part in choosing features."""
    generator = torch.Generator().manual_seed(9)
    on_noise = []
    for draw in range(20):
        features = torch.randn(60, 1000, generator=generator)
        labels = torch.randint(2, (60,), generator=generator)
        is_test = torch.arange(60) % 3 == draw % 3
        accuracy = result_of(honest_accuracy, features, labels, is_test)
        turned = torch.where(is_test, 1 - labels, labels)
        other_way = result_of(honest_accuracy, features, turned, is_test)
        require(
            abs(accuracy + other_way - 1) < 1e-6,
            "with all test labels turned round, what was right is wrong and nothing "
            "else should change: an accuracy a becomes 1 - a. Yours does not, so the "
            "test labels decide something before the counting, or the counting is off",
        )
        on_noise.append(accuracy)
    mean = sum(on_noise) / len(on_noise)
    require(
        0.4 < mean < 0.6,
        f"on numbers without any meaning it is {mean:.2f} on average, where a guess is "
        "right in one of two cases",
    )
    features[:, :30] += 3 * labels[:, None]
    require(
        result_of(honest_accuracy, features, labels, is_test) > 0.95,
        "it should still find features that do differ between the classes",
    )
    right("Whatever is chosen with the test labels in view has already seen the test.")


def another_resolution(tokens, position_numbers, at_resolution: Callable) -> None:
    """Exercise 9.4: a ViT's weights at another resolution, positions interpolated."""
    c = vit_of(load_pretrained_backbone("drawn_dishes")[0]).config
    N = (168 // c.patch_size) ** 2
    require_answers(tokens=tokens)
    require(tokens != N, "tokens: there is one more than there are patches")
    require_number(
        "tokens",
        tokens,
        N + 1,
        "how many patches of 14 pixels fit along a side of 168? And the class token",
    )
    require_answers(position_numbers=position_numbers)
    require_number(
        "position_numbers",
        position_numbers,
        (N + 1) * c.embedding_dim,
        "each token has a position of D numbers, and the class token is one of them",
    )
    generator = torch.Generator().manual_seed(9)
    for given, size in ((32, 48), (32, (40, 24)), ((32, 16), 48)):
        vit = ViT(
            ViTConfig(
                given, 8, embedding_dim=24, num_layers=2, num_heads=2, mlp_dim=40, num_classes=0
            )
        ).eval()
        give_random_values(vit)
        before = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
        expected = ViT(replace(vit.config, image_size=size)).eval()
        expected.load_state_dict(
            before
            | {
                "pos_embedding": interpolate_pos_embedding(
                    before["pos_embedding"], vit.config.grid, expected.config.grid
                )
            }
        )
        other = result_of(at_resolution, vit, size)
        require(isinstance(other, ViT), "at_resolution should return a ViT of the package")
        require(
            other.config.grid == expected.config.grid,
            f"for images of {size} pixels the grid is {expected.config.grid}, and that "
            f"of your ViT is {other.config.grid}: replace image_size in the config",
        )
        require_tensor(
            "pos_embedding[:, 0]",
            other.pos_embedding[:, 0],
            before["pos_embedding"][:, 0],
            "the class token belongs to no place in the image, so its position stays",
        )
        require_tensor(
            "pos_embedding[:, 1:]",
            other.pos_embedding[:, 1:],
            expected.pos_embedding[:, 1:],
            "the patches' positions are those of the old grid, stretched",
        )
        images = torch.rand(2, 3, *expected.config.image_hw, generator=generator)
        with torch.inference_mode():
            require_tensor(
                f"what your ViT makes of images of {size} pixels",
                other.eval()(images),
                expected(images),
                "all weights but the positions are those of the ViT that was given",
            )
        same = all(torch.equal(before[name], vit.state_dict()[name]) for name in before)
        require(same, "the ViT that was given has changed: fill a new one")
    right("Of all its weights, only the positions know how large an image is.")


@cache
def drawn_features() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Features and labels of the drawn twin's training and test images, on the CPU."""
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
    wanted = dict(zip(names, (150 - old_labels.bincount()).tolist(), strict=True))
    require(
        missing == wanted,
        "missing: count the labels of the 225, class by class; each class is to have "
        "150 in the end",
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
            f"{name} should hold the numbers of classes: 0, 1 and 2",
        )
    require(labels.bincount().tolist() == [150] * 3, "each class should have 150 labels")
    require(
        torch.allclose(features[:225], old, atol=1e-3) and torch.equal(labels[:225], old_labels),
        "the first 225 should be FoodVision Mini's own, in their order; the new ones "
        "come after them",
    )
    new, new_labels = features[225:], labels[225:]
    # by a matrix product, equal rows would not have distance 0
    exact = {"compute_mode": "donot_use_mm_for_euclid_dist"}
    distances = torch.cdist(features, features, **exact).fill_diagonal_(torch.inf)
    require(
        distances.min() > 1e-3,
        "two of the 450 are the same picture: give each its own random numbers",
    )
    good = (ridge_probe(old, old_labels)(new).argmax(dim=1) == new_labels).float().mean()
    require(
        good > 0.7,
        f"a classifier that learnt from the 225 finds {good:.0%} of your new labels "
        "right: do pictures and labels come in the same order, and do you use the "
        "backbone's transform?",
    )
    measured = (guesses == test_labels).float().mean().item()
    probe = ridge_probe(features, labels)(test_features).argmax(dim=1)
    require(
        measured < 1 or torch.equal(probe, test_labels),
        "all guesses are right, which is hard to believe: are they the labels?",
    )
    require_number(
        "accuracy", accuracy, measured, "the share of the test images whose guess is their label"
    )
    require(
        measured > 0.8,
        "with these features a head gets more than eight in ten test images right: are "
        "the guesses those of the head that learnt from all 450, for the test images?",
    )
    right(
        "Is it more than before? The standard error is near 0.03: 75 test images cannot tell (9.2)."
    )
