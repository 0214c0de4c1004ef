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
    """Exercise 11.1: which statement is about which part of a recipe."""
    given = {"pretraining": pretraining, "warmup": warmup, "decay": decay, "clipping": clipping}
    require_answers(**given)
    about = {
        "A": "clipping",
        "B": "weight decay",
        "C": "decay",
        "D": "dropout",
        "E": "pretraining",
        "F": "warmup",
    }
    for name, letter in given.items():
        require(letter in about, f"{name} should be a letter from A to F, in quotes")
        require(
            (name, about[letter]) != ("decay", "weight decay"),
            "that is weight decay, another thing with nearly the same name: what falls "
            "here is the learning rate",
        )
        require(
            about[letter] == name,
            f"{name} is not what statement {letter} is about: does it change images, "
            "weights, the gradient or the length of steps, and when?",
        )
    right("None of the four is against overfitting, unless one counts the other images.")


def course_of_the_rate(linear_rate, cosine_rate, learning_rate: Callable) -> None:
    """Exercise 11.2: two rates by hand, and a cosine that ends above 0."""
    steps, warmup, t = 100, 10, 40  # a thousandth of each: the same shares
    for name, rate in (("linear", linear_rate), ("cosine", cosine_rate)):
        recipe = Recipe(epochs=1, lr=1e-3, schedule=name, warmup_steps=warmup)
        whole = Recipe(epochs=1, lr=1e-3, schedule=name)
        require_answers(**{f"{name}_rate": rate})
        without_warmup = learning_rates(whole, steps)[t]
        require(
            abs(rate - without_warmup) > 1e-9 if isinstance(rate, float) else True,
            f"{name}_rate: the decay begins after the warm-up, so of its steps fewer "
            "are done, and there are fewer of them",
        )
        require_number(
            f"{name}_rate",
            rate,
            learning_rates(recipe, steps)[t],
            "which share of the decay's steps is done? (The cosine of 60° is a half.)",
        )
    lr = 0.004
    for steps, warmup, lowest in ((23, 5, 0.0), (23, 5, 0.001), (12, 0, 0.002)):
        recipe = Recipe(epochs=1, lr=lr, schedule="cosine", warmup_steps=warmup)
        for t, plain in enumerate(learning_rates(recipe, steps)):
            expected = plain
            if t >= warmup:  # the same curve between lowest and lr instead of 0 and lr
                expected = lowest + (lr - lowest) * plain / lr
            name = f"learning_rate({t}, {steps}, {warmup}, {lr}, {lowest})"
            rate = result_of(learning_rate, t, steps, warmup, lr, lowest)
            if t < warmup:
                hint = "the warm-up ends at lr in its last step, and never is 0"
            elif lowest == 0.0:
                hint = "with a lowest rate of 0 it is the cosine of notebook 11"
            else:
                hint = "the cosine falls from lr to the lowest rate instead of to 0"
                require(
                    not isinstance(rate, float) or abs(rate - plain - lowest) > 1e-9,
                    f"{name}: {hint}. This starts above lr",
                )
            require_number(name, rate, expected, hint)
    right("One line of a formula. PyTorch calls the lowest rate eta_min.")


def clipping_by_hand(clipped: Callable) -> None:
    """Exercise 11.3: shorten the gradient of all parameters together."""
    generator = torch.Generator().manual_seed(11)
    shapes = ((4, 3), (5,), (2, 1, 3))
    for size, limit in ((3.0, 1.0), (3.0, 2.5), (0.01, 1.0)):
        given = [size * torch.randn(shape, generator=generator) for shape in shapes]
        parameters = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
        for parameter, gradient in zip(parameters, given, strict=True):
            parameter.grad = gradient.clone()
        nn.utils.clip_grad_norm_(parameters, limit)
        found = result_of(clipped, [gradient.clone() for gradient in given], limit)
        require(
            isinstance(found, list | tuple) and len(found) == len(given),
            "clipped should return a list with a tensor for each that it got",
        )
        length = torch.cat([gradient.flatten() for gradient in given]).norm()
        for wrong, hint in (
            (
                [g * (limit / g.norm()).clamp(max=1) for g in given],
                "the norm is that of all tensors together: clipped one by one, they "
                "point somewhere else",
            ),
            (
                [g.clamp(-limit, limit) for g in given],
                "the gradient keeps its direction: one factor for all numbers",
            ),
            (
                [g * limit / length for g in given],
                "a gradient that is shorter than the limit stays as it is",
            ),
            ([g * limit / length**2 for g in given], "the norm is the root of the sum of squares"),
        ):
            correct = all(is_close(w, p.grad) for w, p in zip(wrong, parameters, strict=True))
            same = all(is_close(f, w) for f, w in zip(found, wrong, strict=True))
            require(correct or not same, hint)
        for number, (tensor, parameter) in enumerate(zip(found, parameters, strict=True)):
            require_tensor(
                f"clipped(...)[{number}]",
                tensor,
                parameter.grad,
                "limit / norm is the factor, if the norm is larger than the limit",
            )
    right("The direction is the loss's; how far to go is for the recipe to say.")


def shares_of_labels(smoothed: Callable, loss_of: Callable) -> None:
    """Exercise 11.4: label smoothing, and the cross-entropy to shares."""
    generator = torch.Generator().manual_seed(11)
    for K, amount in ((4, 0.2), (3, 0.0)):
        labels = torch.randint(K, (6,), generator=generator)
        right_class = F.one_hot(labels, K).float()
        expected = (1 - amount) * right_class + amount / K
        shares = result_of(smoothed, labels, K, amount)
        if amount and getattr(shares, "shape", None) == expected.shape:
            others = right_class * (1 - amount) + (1 - right_class) * amount / (K - 1)
            require(
                not is_close(shares, others),
                "here all K classes get their part of the amount, the right one too",
            )
            require(
                is_close(shares.sum(dim=-1), torch.ones(6)),
                "the shares of an image sum to 1: what is given to all is taken from "
                "the right class",
            )
        require_tensor(
            f"smoothed(labels, {K}, {amount})",
            shares,
            expected,
            "take the amount from the right class, and share it out among all K",
        )
        logits = 3 * torch.randn(6, K, generator=generator)
        mixed = torch.rand(6, K, generator=generator)
        mixed /= mixed.sum(dim=1, keepdim=True)  # as MixUp makes them
        for some in (expected, mixed):
            loss = result_of(loss_of, logits, some)
            target = F.cross_entropy(logits, some)
            for wrong, hint in (
                (target * 6, "the mean over images is wanted, and not the sum"),
                (target / K, "sum over classes; only over images it is a mean"),
                (-target, "the logarithms are negative, the loss is not"),
                (
                    -(some * logits.softmax(dim=0).log()).sum(dim=1).mean(),
                    "softmax is over the classes",
                ),
            ):
                require(not is_close(loss, wrong), hint)
            require_tensor(
                "loss_of(logits, shares)",
                loss,
                target,
                "for each image -Σ share · ln p over its classes, then the mean",
            )
    torch.testing.assert_close(
        F.cross_entropy(logits, expected), F.cross_entropy(logits, labels, label_smoothing=amount)
    )
    right("PyTorch's label_smoothing is this; so is the loss of MixUp and CutMix.")


def same_gradient(accumulated_gradient: Callable) -> None:
    """Exercise 11.5: the gradient of a large batch, from small parts."""
    generator = torch.Generator().manual_seed(11)
    model = nn.Linear(5, 3)
    seen = []
    model.register_forward_hook(lambda module, given, result: seen.append(len(result)))
    for images, size in ((11, 4), (9, 3), (7, 2)):
        x = torch.randn(images, 5, generator=generator)
        y = torch.randint(3, (images,), generator=generator)
        model.zero_grad()
        F.cross_entropy(F.linear(x, model.weight, model.bias), y).backward()
        expected = model.weight.grad.clone()
        model.zero_grad()
        for a, b in zip(x.split(size), y.split(size), strict=True):
            F.cross_entropy(F.linear(a, model.weight, model.bias), b).backward()
        sums = model.weight.grad.clone()  # and left there, as by a step before
        seen.clear()
        found = result_of(accumulated_gradient, model, x, y, size)
        require(bool(seen), "call model(x): here nothing has gone through the model")
        require(max(seen) <= size, f"at most {size} images at a time go through the model")
        parts = -(-images // size)
        for wrong, hint in (
            (sums, "the gradients of parts that are means have to be weighted"),
            (sums / parts, "each part weighs the same here, however few images it has"),
            (expected + sums, "there was a gradient before: it has to be removed first"),
            (expected * images, "the mean over all images is wanted, not the sum"),
        ):
            require(is_close(wrong, expected) or not is_close(found, wrong), hint)
        require_tensor(
            f"the gradient of {images} images in parts of {size}",
            found,
            expected,
            "a part's mean loss counts with its share of all images",
        )
    right("So the paper's 4096 images fit on a laptop. They only take their time.")
