"""Checks for the exercises of notebook 10."""

from collections.abc import Callable

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
from going_modular.images.transforms import evaluation_transform


def what_is_seen(seen, stretched) -> None:
    """Exercise 10.1: the area that ViT-B/16's transform keeps, and the effect of squeezing."""
    width, height = 600, 400
    transform = evaluation_transform(224)
    (crop,), (resized,) = transform.crop_size, transform.resize_size
    scale = resized / min(width, height)
    shares = [crop / (side * scale) for side in (width, height)]
    require_answers(seen=seen)
    require(seen != shares[1], "seen: this is the share of the height. What about the width?")
    require(
        seen != shares[1] ** 2,
        "seen: the photo is wider than it is high. Is the same share of both sides kept?",
    )
    require_number(
        "seen",
        seen,
        shares[0] * shares[1],
        "how large is the photo after its shorter side is resized? Which share of its "
        "width and which share of its height are inside the square?",
    )
    require_answers(stretched=stretched)
    require(stretched != height / width, "stretched: is the pizza now higher or wider?")
    require_number(
        "stretched",
        stretched,
        width / height,
        "600 pixels of width and 400 of height become equally long. By which factor is "
        "each divided?",
    )
    right(
        "Cropping loses the edges, squeezing the shape. Use the transform that the model "
        "was evaluated with."
    )


def transparency(lay_on: Callable) -> None:
    """Exercise 10.2: transparent pictures on a background of any color."""
    generator = torch.Generator().manual_seed(10)
    for H, W in ((5, 7), (3, 2)):
        picture = torch.rand(4, H, W, generator=generator)
        color = torch.rand(3, generator=generator)
        colors, alpha = picture[:3], picture[3:]
        expected = torch.lerp(color[:, None, None].expand(3, H, W), colors, alpha)
        result = result_of(lay_on, picture, color)
        for wrong, hint in (
            (colors, "which color should a pixel with α = 0 show?"),
            (colors * alpha, "your background is black. Where does `color` come in?"),
            (
                torch.lerp(colors, color[:, None, None], alpha),
                "does α say how much you see of the picture or of the background?",
            ),
        ):
            require(not is_close(result, wrong), hint)
        require_tensor(
            "the picture on its background",
            result,
            expected,
            "each of the three numbers of a pixel is α of the picture's and 1 - α of "
            "the background's",
        )
    right("load_image does this with white, before the model sees anything.")


def temperature(with_temperature: Callable, best_temperature: Callable) -> None:
    """Exercise 10.3: probabilities at a temperature, and the temperature that fits best."""
    generator = torch.Generator().manual_seed(10)
    logits = 5 * torch.randn(7, 4, generator=generator)
    for T in (2.5, 0.4):
        result = result_of(with_temperature, logits, T)
        for wrong, hint in (
            (
                (logits * T).softmax(dim=1),
                "a higher temperature should bring the probabilities closer. Yours go apart",
            ),
            (
                logits.softmax(dim=1) / T,
                "the probabilities do not sum to 1. Does the division come before softmax?",
            ),
            ((logits / T).softmax(dim=0), "is your softmax over the classes or over the images?"),
        ):
            require(not is_close(result, wrong), hint)
        require_tensor(
            f"the probabilities at T = {T}",
            result,
            (logits / T).softmax(dim=1),
            "divide first, then softmax over the classes",
        )
    choices = [0.25, 0.5, 1, 2, 4, 8]
    for scale in (4, 0.5):  # the temperature that makes the logits calibrated again
        calibrated = 2 * torch.randn(2000, 3, generator=generator)
        labels = calibrated.softmax(dim=1).multinomial(1, generator=generator).squeeze(1)
        logits = scale * calibrated
        losses = [F.cross_entropy(logits / T, labels).item() for T in choices]
        best, worst = choices[losses.index(min(losses))], choices[losses.index(max(losses))]
        found = result_of(best_temperature, logits, labels, choices)
        require(found != worst, "this is the temperature with the largest loss")
        twice = [F.cross_entropy((logits / T).softmax(dim=1), labels).item() for T in choices]
        best_twice = choices[twice.index(min(twice))]
        require(
            found != best_twice or best_twice == best,
            "do you apply softmax twice? Look up what F.cross_entropy takes",
        )
        require_number(
            "best_temperature", found, best, "which of the choices has the smallest cross-entropy?"
        )
    right("The guesses and the accuracy stay the same. Only the probabilities change.")


def most_wrong(most_wrong: Callable) -> None:
    """Exercise 10.4: the images where a classifier is wrong and most sure."""
    generator = torch.Generator().manual_seed(10)
    for images, K, strength in ((40, 3, 1.5), (30, 4, 0.5), (25, 3, 40.0)):
        labels = torch.randint(K, (images,), generator=generator)
        logits = 2 * torch.randn(images, K, generator=generator)
        logits += strength * F.one_hot(labels, K)
        # An offset for each image. Softmax ignores it, but it misleads a sort by logits.
        logits += 20 * torch.rand(images, 1, generator=generator)
        sure, guess = logits.softmax(dim=1).max(dim=1)
        wrong = (guess != labels).nonzero().flatten()
        order = sure[wrong].argsort(descending=True)
        for count in (5, 3):
            found = result_of(most_wrong, logits, labels, count)
            require(
                isinstance(found, torch.Tensor) and found.ndim == 1,
                "most_wrong should return a tensor with one axis",
            )
            require(
                len(found) == 0 or not found.is_floating_point(),
                "most_wrong should return the numbers of images, which are whole numbers",
            )
            answer, expected = found.tolist(), wrong[order][:count].tolist()
            if answer == expected:
                continue
            require(
                not set(answer) <= set(range(len(wrong))) or answer != order[:count].tolist(),
                "these are places in the list of wrong images. Which images are they?",
            )
            require(
                set(answer) <= set(wrong.tolist()), "the model is right about some of these images"
            )
            require(
                len(answer) == len(expected),
                f"{len(wrong)} guesses are wrong, and count is {count}. You return {len(answer)} "
                "images. How many should it be?",
            )
            require(
                answer != wrong[order.flip(0)][:count].tolist(),
                "is the largest probability first or last?",
            )
            by_logit = logits.max(dim=1).values[wrong].argsort(descending=True)
            require(
                answer != wrong[by_logit][:count].tolist(),
                "your images are sorted by their logits. What says how sure the model is?",
            )
            require(False, "the images are right, but how are they sorted?")
    right("Look at these images first. Sometimes the label is wrong, not the model.")
