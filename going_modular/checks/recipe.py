"""Checks for the exercises of notebook 11."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from going_modular.checks import (
    is_close,
    require,
    require_answers,
    require_number,
    require_tensor,
    result_of,
    right,
)
from going_modular.training.recipes import Recipe, learning_rates


def four_names(pretraining, warmup, decay, clipping) -> None:
    """Exercise 11.1: the statement that describes each part of a recipe."""
    answers = {"pretraining": pretraining, "warmup": warmup, "decay": decay, "clipping": clipping}
    require_answers(**answers)
    about = {
        "A": "clipping",
        "B": "weight decay",
        "C": "decay",
        "D": "dropout",
        "E": "pretraining",
        "F": "warmup",
    }
    for name, letter in answers.items():
        require(letter in about, f"{name} should be a letter from A to F, in quotes")
        require(
            (name, about[letter]) != ("decay", "weight decay"),
            "decay: this statement is about weight decay. Which decay does the exercise ask for?",
        )
        require(
            about[letter] == name,
            f"{name}: statement {letter} is about something else. Does {name} change "
            "images, weights, the gradient or the length of the steps? And when?",
        )
    right(
        "Warm-up, decay and clipping help optimization, not against overfitting. "
        "Pretraining helps because it adds images."
    )


def course_of_the_rate(linear_rate, cosine_rate, learning_rate: Callable) -> None:
    """Exercise 11.2: two learning rates by hand, and a cosine that ends above 0."""
    steps, warmup, t = 100, 10, 40  # the exercise's numbers divided by 1000
    for name, rate in (("linear", linear_rate), ("cosine", cosine_rate)):
        with_warmup = Recipe(epochs=1, lr=1e-3, schedule=name, warmup_steps=warmup)
        without_warmup = Recipe(epochs=1, lr=1e-3, schedule=name)
        require_answers(**{f"{name}_rate": rate})
        wrong = learning_rates(without_warmup, steps)[t]
        require(
            not isinstance(rate, float) or abs(rate - wrong) > 1e-9,
            f"{name}_rate: at which step does the decay begin, and how many steps does it have?",
        )
        require_number(
            f"{name}_rate",
            rate,
            learning_rates(with_warmup, steps)[t],
            "which share of the decay's steps is done?",
        )
    lr = 0.004
    for steps, warmup, lowest in ((23, 5, 0.0), (23, 5, 0.001), (12, 0, 0.002)):
        recipe = Recipe(epochs=1, lr=lr, schedule="cosine", warmup_steps=warmup)
        for t, rate_to_zero in enumerate(learning_rates(recipe, steps)):
            expected = rate_to_zero
            if t >= warmup:  # the same curve, scaled from [0, lr] to [lowest, lr]
                expected = lowest + (lr - lowest) * rate_to_zero / lr
            name = f"learning_rate({t}, {steps}, {warmup}, {lr}, {lowest})"
            rate = result_of(learning_rate, t, steps, warmup, lr, lowest)
            if t < warmup:
                hint = "is the first rate of the warm-up above 0, and the last one lr?"
            elif lowest == 0.0:
                hint = "with lowest = 0 the rate should follow the cosine of notebook 11"
            else:
                hint = "where does the cosine start, and where does it end?"
                require(
                    not isinstance(rate, float) or abs(rate - rate_to_zero - lowest) > 1e-9,
                    f"{name}: your decay starts above lr",
                )
            require_number(name, rate, expected, hint)
    right("It takes one line of a formula. PyTorch calls the lowest rate eta_min.")


def clipping_by_hand(clipped: Callable) -> None:
    """Exercise 11.3: clip the gradient of all parameters together."""
    generator = torch.Generator().manual_seed(11)
    shapes = ((4, 3), (5,), (2, 1, 3))
    for size, limit in ((3.0, 1.0), (3.0, 2.5), (0.01, 1.0)):
        gradients = [size * torch.randn(shape, generator=generator) for shape in shapes]
        parameters = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
        expected = [gradient.clone() for gradient in gradients]
        for parameter, gradient in zip(parameters, expected, strict=True):
            parameter.grad = gradient
        nn.utils.clip_grad_norm_(parameters, limit)  # in place, so this changes `expected`
        found = result_of(clipped, [gradient.clone() for gradient in gradients], limit)
        require(
            isinstance(found, list | tuple) and len(found) == len(gradients),
            "clipped should return a list with one tensor for each tensor that it gets",
        )
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        for wrong, hint in (
            (
                [g * (limit / g.norm()).clamp(max=1) for g in gradients],
                "you clip each tensor on its own, which changes the direction of the "
                "gradient. Which norm is the global one?",
            ),
            (
                [g.clamp(-limit, limit) for g in gradients],
                "you limit each number, which changes the direction of the gradient",
            ),
            (
                [g * limit / norm for g in gradients],
                "what should happen to a gradient whose norm is below the limit?",
            ),
            ([g * limit / norm**2 for g in gradients], "is your norm squared?"),
        ):
            correct = all(is_close(w, e) for w, e in zip(wrong, expected, strict=True))
            same = all(is_close(f, w) for f, w in zip(found, wrong, strict=True))
            require(correct or not same, hint)
        for number, (tensor, gradient) in enumerate(zip(found, expected, strict=True)):
            require_tensor(
                f"clipped(...)[{number}]",
                tensor,
                gradient,
                "if the norm is larger than the limit, which factor makes it equal to the limit?",
            )
    right("The loss gives the direction of a step. Clipping only limits its length.")


def shares_of_labels(smoothed: Callable, loss_of: Callable) -> None:
    """Exercise 11.4: label smoothing, and cross-entropy with labels that are shares."""
    generator = torch.Generator().manual_seed(11)
    for K, amount in ((4, 0.2), (3, 0.0)):
        labels = torch.randint(K, (6,), generator=generator)
        right_class = F.one_hot(labels, K).float()
        expected = (1 - amount) * right_class + amount / K
        shares = result_of(smoothed, labels, K, amount)
        if amount and isinstance(shares, torch.Tensor) and shares.shape == expected.shape:
            without_own_part = right_class * (1 - amount) + (1 - right_class) * amount / (K - 1)
            require(
                not is_close(shares, without_own_part),
                "which classes get a part of the amount? Read the exercise again",
            )
            require(
                is_close(shares.sum(dim=-1), torch.ones(6)),
                "the shares of an image should sum to 1. Where does the amount come from?",
            )
        require_tensor(
            f"smoothed(labels, {K}, {amount})",
            shares,
            expected,
            "how much does the right class give up, and how much does each class get?",
        )
        logits = 3 * torch.randn(6, K, generator=generator)
        mixed = torch.rand(6, K, generator=generator)
        mixed /= mixed.sum(dim=1, keepdim=True)  # as in MixUp
        for target in (expected, mixed):
            loss = result_of(loss_of, logits, target)
            expected_loss = F.cross_entropy(logits, target)
            for wrong, hint in (
                (expected_loss * 6, "is this a mean or a sum over the images?"),
                (expected_loss / K, "over which axis do you take the mean? Over the classes, sum"),
                (-expected_loss, "the loss is negative. Check the sign"),
                (
                    -(target * logits.softmax(dim=0).log()).sum(dim=1).mean(),
                    "is your softmax over the classes or over the images?",
                ),
            ):
                require(not is_close(loss, wrong), hint)
            require_tensor(
                "loss_of(logits, shares)",
                loss,
                expected_loss,
                "compute the formula of the exercise for each image, then the mean",
            )
    torch.testing.assert_close(
        F.cross_entropy(logits, expected), F.cross_entropy(logits, labels, label_smoothing=amount)
    )
    right("PyTorch's label_smoothing does this. MixUp and CutMix use the same loss.")


def same_gradient(accumulated_gradient: Callable) -> None:
    """Exercise 11.5: the gradient of a large batch from small parts."""
    generator = torch.Generator().manual_seed(11)
    model = nn.Linear(5, 3)
    batch_sizes: list[int] = []
    model.register_forward_hook(lambda module, args, output: batch_sizes.append(len(output)))

    def gradient(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss = F.cross_entropy(F.linear(x, model.weight, model.bias), y)
        return torch.autograd.grad(loss, model.weight)[0]

    for images, size in ((11, 4), (9, 3), (7, 2)):
        x = torch.randn(images, 5, generator=generator)
        y = torch.randint(3, (images,), generator=generator)
        expected = gradient(x, y)
        parts = list(zip(x.split(size), y.split(size), strict=True))
        sums = torch.stack([gradient(*part) for part in parts]).sum(dim=0)
        model.weight.grad = sums.clone()  # as if left over from an earlier step
        batch_sizes.clear()
        found = result_of(accumulated_gradient, model, x, y, size)
        require(bool(batch_sizes), "your function never calls the model")
        require(
            max(batch_sizes) <= size,
            f"{max(batch_sizes)} images go through the model at once. At most {size} may",
        )
        for wrong, hint in (
            (sums, "you add up gradients of mean losses. How much should each part count?"),
            (sums / len(parts), "each part counts the same. Do all parts have the same size?"),
            (expected + sums, "the model had a gradient before. Does it belong in the result?"),
            (expected * images, "is this the gradient of the mean loss or of the sum?"),
        ):
            require(is_close(wrong, expected) or not is_close(found, wrong), hint)
        require_tensor(
            f"the gradient of {images} images in parts of {size}",
            found,
            expected,
            "how should each part count, so that the sum is the mean loss of all images?",
        )
    right("This way the paper's batch of 4096 images fits on a laptop. It only takes longer.")
