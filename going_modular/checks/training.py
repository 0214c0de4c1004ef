"""Checks for the exercises of notebook 08."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

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
from going_modular.model_builder import ViT, ViTConfig
from going_modular.utils import give_random_values, set_seeds

# (batch size, epochs) of exercise 8.3
RUNS = {"small batches": (30, 10), "large batches": (90, 10), "large batches for longer": (90, 30)}


def steps_by_hand(steps_of_32, steps_of_90, epochs_of_90, paper_steps) -> None:
    """Exercise 8.1: how many steps are taken in an epoch, and in all."""
    answers = {
        "steps_of_32": (steps_of_32, 180, 32, 10),
        "steps_of_90": (steps_of_90, 180, 90, 10),
        "paper_steps": (paper_steps, 1_281_167, 4096, 300),
    }
    for name, (answer, images, batch, epochs) in answers.items():
        require_answers(**{name: answer})
        require(
            not images % batch or answer != images // batch * epochs,
            f"{name}: the last batch of an epoch is smaller, and makes a step too",
        )
        require(answer != math.ceil(images / batch), f"{name}: these are the steps of one epoch")
        require_number(
            name,
            answer,
            math.ceil(images / batch) * epochs,
            "how many batches make up all images, the last one not full? So many steps "
            "in each epoch",
        )
    require_number(
        "epochs_of_90",
        epochs_of_90,
        math.ceil(180 / 32) * 10 * 90 // 180,
        "steps in all, divided by the steps that an epoch has now",
    )
    right("At the same number of epochs a larger batch takes fewer steps.")


def loop_by_hand(training_losses: Callable) -> None:
    """Exercise 8.2: a training loop."""
    data, labels = noise(11, 6), torch.arange(11) % 4

    def losses_by(loop) -> list[float]:
        model = give_random_values(nn.Linear(6, 4))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        return loop(model, optimizer, data, labels, 4, 3)

    losses = losses_by(lambda *given: result_of(training_losses, *given))
    require(
        isinstance(losses, list) and all(isinstance(one, float) for one in losses),
        "the result should be a list of numbers: loss.item() makes one of a loss",
    )
    expected = losses_by(reference_loop)
    require(len(losses) != 3 * (len(data) // 4), "the last, smaller batch of each epoch is missing")
    require(len(losses) != 3, "one number for each step, not for each epoch")
    require(
        len(losses) == len(expected),
        f"there are {len(losses)} losses for 11 images in batches of 4, three epochs: "
        "one for each step is asked for",
    )

    def wrong(**mistake):
        return losses_by(lambda *given: reference_loop(*given, **mistake))

    require(
        not all(
            math.isclose(a, b, rel_tol=1e-4)
            for a, b in zip(losses, wrong(clear=False), strict=True)
        ),
        "backward() adds to the gradients that are there: clear them before each step",
    )
    require(
        not all(
            math.isclose(a, b, rel_tol=1e-4) for a, b in zip(losses, wrong(move=False), strict=True)
        ),
        "the weights never move: the optimizer has to take a step",
    )
    require_tensor(
        "training_losses",
        torch.tensor(losses),
        torch.tensor(expected),
        "for each batch in order: loss, gradients from zero, step. Each loss is the "
        "mean over its batch, before the step",
    )
    right("`engine.train` has the same four lines inside, and much around them.")


def reference_loop(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: torch.Tensor,
    labels: torch.Tensor,
    batch_size: int,
    epochs: int,
    clear: bool = True,
    move: bool = True,
) -> list[float]:
    """The loop of exercise 8.2; without `clear` or `move`, with a mistake."""
    losses = []
    for _ in range(epochs):
        for batch, answers in zip(images.split(batch_size), labels.split(batch_size), strict=True):
            loss = F.cross_entropy(model(batch), answers)
            if clear:
                optimizer.zero_grad()
            loss.backward()
            if move:
                optimizer.step()
            losses.append(loss.item())
    return losses


def noisy_patterns() -> tuple[torch.Tensor, torch.Tensor]:
    """180 images (3, 16, 16) of three patterns under strong noise, and their labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(180) % 3
    patterns = torch.randn(3, 3, 16, 16, generator=generator)
    return patterns[labels] + 3 * torch.randn(180, 3, 16, 16, generator=generator), labels


def fresh_vit() -> ViT:
    """A very small ViT for the noisy patterns, with the same numbers each time."""
    set_seeds(42)
    return ViT(
        ViTConfig(
            image_size=16,
            patch_size=4,
            embedding_dim=32,
            num_layers=2,
            num_heads=2,
            mlp_dim=64,
            num_classes=3,
            dropout=0.0,
        )
    )


def larger_batches(last_loss, learns_least) -> None:
    """Exercise 8.3: larger batches, and longer training, measured."""
    require_answers(last_loss=last_loss, learns_least=learns_least)
    require(
        isinstance(last_loss, dict) and set(last_loss) == set(RUNS),
        f"last_loss should be a dictionary with the keys {', '.join(RUNS)}",
    )
    measured = {}
    for name, (batch_size, epochs) in RUNS.items():
        require_answers(**{f'last_loss["{name}"]': last_loss[name]})
        vit, data = fresh_vit(), noisy_patterns()
        optimizer = torch.optim.AdamW(vit.parameters(), lr=1e-3)
        losses = reference_loop(vit, optimizer, *data, batch_size, epochs)
        measured[name] = losses[-1]
        require_number(
            f'last_loss["{name}"]',
            last_loss[name],
            losses[-1],
            "does each run start with a fresh ViT and an optimizer for it? Its loss in "
            "the last step is asked for",
            rel_tol=0.1,
        )
    require(learns_least in RUNS, "learns_least should be one of the three names")
    require(
        learns_least == max(measured, key=measured.get),
        "learns_least: which run ends with the largest loss?",
    )
    right(
        "What the large batch lacked was steps. Given as many, it gets as far, and has "
        "read three times the images. One may also raise the learning rate with it."
    )


def one_step(optimizer_class, w: torch.Tensor, gradients, lr, decay) -> torch.Tensor:
    """The weights after one step for each of the gradients."""
    weight = nn.Parameter(w.clone())
    optimizer = optimizer_class([weight], lr=lr, weight_decay=decay)
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    return weight.detach()


def decay_apart(after_adam, after_adamw, adamw_step: Callable) -> None:
    """Exercise 8.4: AdamW's step, and where Adam with L2 goes instead."""
    w, gradients = torch.tensor([2.0]), [torch.tensor([-0.1])]
    for name, answer, optimizer_class, hint in (
        (
            "after_adam",
            after_adam,
            torch.optim.Adam,
            "the decay times w is added to the gradient first; of the sum only the sign is left",
        ),
        (
            "after_adamw",
            after_adamw,
            torch.optim.AdamW,
            "first shrink w by its share, then step by the learning rate, against the "
            "sign of the gradient alone",
        ),
    ):
        expected = one_step(optimizer_class, w, gradients, 0.1, 0.2).item()
        require_number(name, answer, expected, hint, rel_tol=1e-4)

    w, lr, decay = noise(5), 0.01, 3.0
    gradients = list(0.1 + noise(4, 5))

    def run(step):
        weight, m, v = w, torch.zeros(5), torch.zeros(5)
        for t, gradient in enumerate(gradients, 1):
            result = step(weight.clone(), gradient, m, v, t, lr, decay)
            require(
                isinstance(result, tuple) and len(result) == 3, "return the three tensors w, m, v"
            )
            weight, m, v = result
            require(
                all(isinstance(x, torch.Tensor) and x.shape == (5,) for x in result),
                "w, m and v should be tensors of the weight's shape",
            )
        return weight

    stepped = run(lambda *given: result_of(adamw_step, *given))

    def uncorrected(w, g, m, v, t, lr, decay):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        return (1 - lr * decay) * w - lr * m / (v.sqrt() + 1e-8), m, v

    known = (
        (
            one_step(torch.optim.Adam, w, gradients, lr, decay),
            "this is Adam with L2: the decay must not enter the gradient",
        ),
        (run(uncorrected), "m and v start at zero: divide by 1 - β^t before use"),
        (one_step(torch.optim.AdamW, w, gradients, lr, 0.0), "the weights do not decay"),
        (
            one_step(torch.optim.AdamW, w, gradients, lr, decay / lr),
            "the decay is multiplied by the learning rate",
        ),
    )
    for wrong, hint in known:
        require(not torch.allclose(stepped, wrong, atol=1e-5), hint)
    require_tensor(
        "w after four steps",
        stepped,
        one_step(torch.optim.AdamW, w, gradients, lr, decay),
        "compare each line with the formula; are m and v handed back, uncorrected?",
    )
    right(
        "The loss wanted a larger weight. AdamW gave way to it; Adam's L2 made the weight smaller."
    )


def what_a_matrix_tells(recall: Callable, collapsed: Callable) -> None:
    """Exercise 8.5: recall of each class, and whether a model gives one answer only."""
    counts = torch.tensor([[14, 1, 5], [0, 9, 3], [2, 4, 6]])
    found = result_of(recall, counts)
    right_ones = counts.diagonal()
    for wrong, hint in (
        (
            right_ones / counts.sum(dim=0),
            "this is precision, how often an answer is right: you divide by the sum of "
            "a column, and a true class is a row",
        ),
        (right_ones / counts.sum(), "divide by the images of the class, not by all images"),
    ):
        require(not is_close(found, wrong), hint)
    require_tensor(
        "recall(counts)",
        found,
        right_ones / counts.sum(dim=1),
        "of the images of a class, the share that is called so",
    )
    cases = (
        ([[0, 5, 0], [0, 7, 0], [0, 3, 0]], "every image is called class 1"),
        ([[4, 0, 0], [0, 4, 0], [0, 0, 4]], "all answers are right"),
        ([[0, 5, 0], [0, 7, 0], [1, 2, 0]], "one image is called class 0"),
        ([[0, 0, 0], [0, 9, 0], [0, 0, 0]], "there are images of one class only"),
        ([[0, 0, 3], [0, 0, 0], [0, 0, 2]], "two classes, and one answer"),
    )
    for rows, what in cases:
        counts = torch.tensor(rows)
        answer = result_of(collapsed, counts)
        require(
            isinstance(answer, bool),
            f"collapsed should return True or False, and gives {type(answer).__name__}",
        )
        true, said = (counts.sum(dim=d).count_nonzero().item() for d in (1, 0))
        require(answer == (said == 1 and true > 1), f"collapsed(counts) is {answer} where {what}")
    right(
        "A collapsed model has a recall of 1 for one class and 0 for the others, so "
        "their mean is 1/K, whatever its accuracy."
    )
