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
    """Exercise 10.1: what ViT-B/16's transform keeps of a photo, and what squeezing does."""
    width, height = 600, 400
    transform = evaluation_transform(224)
    (crop,), (resized,) = transform.crop_size, transform.resize_size
    scale = resized / min(width, height)
    shares = [crop / (side * scale) for side in (width, height)]
    require_answers(seen=seen)
    require(seen != shares[1], "that is the share of the height; and of the width?")
    require(
        seen != shares[1] ** 2,
        "the photo is wider than it is high, so more of its width is cut off",
    )
    require_number(
        "seen",
        seen,
        shares[0] * shares[1],
        "how large is the photo once its shorter side is resized? Which share of its "
        "width, and which of its height, is inside the square?",
    )
    require_answers(stretched=stretched)
    require(stretched != height / width, "is the pizza now higher than wide, or the reverse?")
    require_number(
        "stretched",
        stretched,
        width / height,
        "600 pixels of width and 400 of height become equally long: by which factor is "
        "each divided?",
    )
    right("One way loses the rim, the other the shape. Use the one that was measured.")


def transparency(lay_on: Callable) -> None:
    """Exercise 10.2: pictures with transparency on a background of any colour."""
    generator = torch.Generator().manual_seed(10)
    for H, W in ((5, 7), (3, 2)):
        picture = torch.rand(4, H, W, generator=generator)
        color = torch.rand(3, generator=generator)
        colors, alpha = picture[:3], picture[3:]
        expected = torch.lerp(color[:, None, None].expand(3, H, W), colors, alpha)
        result = result_of(lay_on, picture, color)
        for wrong, hint in (
            (colors, "a pixel with α = 0 shows nothing of its own colour"),
            (colors * alpha, "that is on black: where α < 1, the background shows"),
            (
                torch.lerp(colors, color[:, None, None], alpha),
                "α is how much of the picture is seen, and not of the background",
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
    """Exercise 10.3: softer probabilities, and the temperature that fits best."""
    generator = torch.Generator().manual_seed(10)
    logits = 5 * torch.randn(7, 4, generator=generator)
    for T in (2.5, 0.4):
        result = result_of(with_temperature, logits, T)
        for wrong, hint in (
            ((logits * T).softmax(dim=1), "a higher temperature should soften"),
            (logits.softmax(dim=1) / T, "these do not sum to 1: divide the logits, before softmax"),
            (
                (logits / T).softmax(dim=0),
                "softmax over the classes of an image, not over the images",
            ),
        ):
            require(not is_close(result, wrong), hint)
        require_tensor(
            f"the probabilities at T = {T}",
            result,
            (logits / T).softmax(dim=1),
            "softmax of the logits divided by T",
        )
    choices = [0.25, 0.5, 1, 2, 4, 8]
    for truth in (4, 0.5):  # logits that are too large by so much
        fair = 2 * torch.randn(2000, 3, generator=generator)
        labels = fair.softmax(dim=1).multinomial(1, generator=generator).squeeze(1)
        losses = [F.cross_entropy(fair * truth / T, labels).item() for T in choices]
        found = result_of(best_temperature, fair * truth, labels, choices)
        require(
            found != choices[losses.index(max(losses))],
            "that is the temperature with the largest loss",
        )
        twice = [F.cross_entropy((fair * truth / T).softmax(dim=1), labels).item() for T in choices]
        best_twice = choices[twice.index(min(twice))]
        require(
            found != best_twice or best_twice == choices[losses.index(min(losses))],
            "is softmax done twice? F.cross_entropy takes logits, and does it itself",
        )
        require_number(
            "best_temperature",
            found,
            choices[losses.index(min(losses))],
            "which of the choices has the smallest cross-entropy?",
        )
    right("No guess has changed, so the accuracy is the same: only the claims are.")


def most_wrong(most_wrong: Callable) -> None:
    """Exercise 10.4: the images that a classifier is most surely wrong about."""
    generator = torch.Generator().manual_seed(10)
    for images, K, strength in ((40, 3, 1.5), (30, 4, 0.5), (25, 3, 40.0)):
        labels = torch.randint(K, (images,), generator=generator)
        logits = 2 * torch.randn(images, K, generator=generator)
        logits += strength * F.one_hot(labels, K)
        # The same for softmax; whoever sorts by logits is misled
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
                "most_wrong should return the numbers of images: whole numbers",
            )
            given, expected = found.tolist(), wrong[order][:count].tolist()
            if given == expected:
                continue
            require(
                not set(given) <= set(range(len(wrong))) or given != order[:count].tolist(),
                "these are places among the wrong ones: which images are they?",
            )
            require(
                set(given) <= set(wrong.tolist()),
                "there are images among them that the model is right about",
            )
            require(
                len(given) == len(expected),
                f"{len(wrong)} are wrong and {count} asked for, and it gives "
                f"{len(given)}: as many as asked for, or all if fewer are wrong",
            )
            require(
                given != wrong[order.flip(0)][:count].tolist(),
                "the largest probability comes first",
            )
            by_logit = logits.max(dim=1).values[wrong].argsort(descending=True)
            require(
                given != wrong[by_logit][:count].tolist(),
                "sorted by logits: how sure a model is, its probabilities say",
            )
            require(False, "sort by the probability of the guess, the largest first")
    right("Look at these first: some turn out to be wrong labels.")
