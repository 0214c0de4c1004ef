"""Checks for the exercises of notebook 08."""

import math
from collections.abc import Callable
from functools import partial

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
    """Exercise 8.1: the number of steps in a training run."""
    runs = {
        "steps_of_32": (steps_of_32, 180, 32, 10),
        "steps_of_90": (steps_of_90, 180, 90, 10),
        "paper_steps": (paper_steps, 1_281_167, 4096, 300),
    }
    for name, (answer, images, batch_size, epochs) in runs.items():
        require_answers(**{name: answer})
        steps_per_epoch = math.ceil(images / batch_size)
        require(
            images % batch_size == 0 or answer != images // batch_size * epochs,
            f"{name}: does the last, smaller batch of an epoch take a step?",
        )
        require(answer != steps_per_epoch, f"{name}: these are the steps of one epoch")
        require_number(
            name,
            answer,
            steps_per_epoch * epochs,
            "how many batches are there in an epoch, and how many epochs?",
        )
    require_number(
        "epochs_of_90",
        epochs_of_90,
        math.ceil(180 / 32) * 10 * 90 // 180,
        "how many steps should it be in all, and how many are there in an epoch now?",
    )
    right("For the same number of epochs, a larger batch takes fewer steps.")


def loop_by_hand(training_losses: Callable) -> None:
    """Exercise 8.2: a training loop."""
    images, labels = noise(11, 6), torch.arange(11) % 4

    def losses_of(loop: Callable) -> list[float]:
        """Run a loop on a new model, in batches of 4, for three epochs."""
        model = give_random_values(nn.Linear(6, 4))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        return loop(model, optimizer, images, labels, 4, 3)

    losses = losses_of(lambda *arguments: result_of(training_losses, *arguments))
    require(
        isinstance(losses, list) and all(isinstance(loss, float) for loss in losses),
        "the result should be a list of numbers. loss.item() turns a loss into a number",
    )
    expected = losses_of(reference_loop)
    require(len(losses) != 3 * (len(images) // 4), "one batch of each epoch is missing. Which?")
    require(len(losses) != 3, "return one number for each step, not for each epoch")
    require(
        len(losses) == len(expected),
        f"there are {len(losses)} losses for 11 images in batches of 4 and three epochs. "
        "Return one for each step",
    )
    for wrong_loop, hint in (
        (
            partial(reference_loop, clear=False),
            "the gradients of earlier steps are still there when backward() adds new ones",
        ),
        (partial(reference_loop, move=False), "the weights never change. Who should change them?"),
    ):
        wrong = losses_of(wrong_loop)
        require(not is_close(torch.tensor(losses), torch.tensor(wrong)), hint)
    require_tensor(
        "training_losses",
        torch.tensor(losses),
        torch.tensor(expected),
        "check the order of the batches and of the lines. Each loss is the mean over its "
        "batch, before the step",
    )
    right("`engine.train` contains the same four lines, with much around them.")


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
    """Return the losses of the loop of exercise 8.2.

    The loop makes a mistake if `clear` is False, because the gradients add up, or if
    `move` is False, because the weights stay as they are.
    """
    losses = []
    for _ in range(epochs):
        for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True):
            loss = F.cross_entropy(model(x), y)
            if clear:
                optimizer.zero_grad()
            loss.backward()
            if move:
                optimizer.step()
            losses.append(loss.item())
    return losses


def noisy_patterns() -> tuple[torch.Tensor, torch.Tensor]:
    """Return 180 images of three patterns under strong noise, and their labels.

    Shapes: (180, 3, 16, 16) and (180,).
    """
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(180) % 3
    patterns = torch.randn(3, 3, 16, 16, generator=generator)
    return patterns[labels] + 3 * torch.randn(180, 3, 16, 16, generator=generator), labels


def fresh_vit() -> ViT:
    """Return a very small ViT for the noisy patterns, initialized the same each time."""
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
    """Exercise 8.3: measure larger batches and longer training."""
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
            "does each run start with a fresh ViT and a new optimizer for it? Is this the "
            "loss of its last step?",
            rel_tol=0.1,
        )
    require(learns_least in RUNS, "learns_least should be one of the three names")
    require(
        learns_least == max(measured, key=lambda name: measured[name]),
        "learns_least: compare the last losses of the three runs",
    )
    right(
        "The large batch had too few steps. With as many steps it gets as far, but it "
        "reads three times as many images. A larger learning rate can also help."
    )


def weights_after(
    optimizer_class: Callable, w: torch.Tensor, gradients: list, lr: float, decay: float
) -> torch.Tensor:
    """Return the weights after the optimizer has taken one step for each gradient."""
    weight = nn.Parameter(w.clone())
    optimizer = optimizer_class([weight], lr=lr, weight_decay=decay)
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    return weight.detach()


def decay_apart(after_adam, after_adamw, adamw_step: Callable) -> None:
    """Exercise 8.4: a step of AdamW, and a step of Adam with L2."""
    w, gradients = torch.tensor([2.0]), [torch.tensor([-0.1])]
    for name, answer, optimizer_class, hint in (
        (
            "after_adam",
            after_adam,
            torch.optim.Adam,
            "what does L2 add to the gradient? Which sign does the sum have?",
        ),
        (
            "after_adamw",
            after_adamw,
            torch.optim.AdamW,
            "the decay and the step are separate. How much does w shrink, and which way "
            "does the gradient alone move it?",
        ),
    ):
        expected = weights_after(optimizer_class, w, gradients, 0.1, 0.2).item()
        require_number(name, answer, expected, hint, rel_tol=1e-4)

    w, lr, decay = noise(5), 0.01, 3.0
    gradients = list(0.1 + noise(4, 5))

    def run(step: Callable) -> torch.Tensor:
        """Take one step for each gradient and return the weights."""
        weight, m, v = w, torch.zeros(5), torch.zeros(5)
        for t, gradient in enumerate(gradients, 1):
            result = step(weight.clone(), gradient, m, v, t, lr, decay)
            require(
                isinstance(result, tuple) and len(result) == 3,
                "adamw_step should return the three tensors w, m, v",
            )
            weight, m, v = result
            require(
                all(isinstance(x, torch.Tensor) and x.shape == (5,) for x in result),
                "w, m and v should be tensors of the weight's shape",
            )
        return weight

    answer = run(lambda *arguments: result_of(adamw_step, *arguments))

    def uncorrected(w, g, m, v, t, lr, decay):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        return (1 - lr * decay) * w - lr * m / (v.sqrt() + 1e-8), m, v

    for wrong, hint in (
        (
            weights_after(torch.optim.Adam, w, gradients, lr, decay),
            "this is Adam with L2. Where does AdamW apply the decay?",
        ),
        (run(uncorrected), "m and v start at zero. How does the formula correct that?"),
        (weights_after(torch.optim.AdamW, w, gradients, lr, 0.0), "the weights do not decay"),
        (
            weights_after(torch.optim.AdamW, w, gradients, lr, decay / lr),
            "in the formula, what is the decay multiplied by?",
        ),
    ):
        require(not is_close(answer, wrong), hint)
    require_tensor(
        "w after four steps",
        answer,
        weights_after(torch.optim.AdamW, w, gradients, lr, decay),
        "compare each line with the formula. Which m and v does the next step need?",
    )
    right("The loss asked for a larger weight. AdamW followed it, and Adam with L2 did not.")


def what_a_matrix_tells(recall: Callable, collapsed: Callable) -> None:
    """Exercise 8.5: the recall of each class, and whether a model has collapsed."""
    counts = torch.tensor([[14, 1, 5], [0, 9, 3], [2, 4, 6]])
    found = result_of(recall, counts)
    right_answers = counts.diagonal()
    for wrong, hint in (
        (
            right_answers / counts.sum(dim=0),
            "this is the precision, the share of a column. Is a true class a row or a column?",
        ),
        (right_answers / counts.sum(), "you divide by all images. Which images count for a class?"),
    ):
        require(not is_close(found, wrong), hint)
    require_tensor(
        "recall(counts)",
        found,
        right_answers / counts.sum(dim=1),
        "how many images has each class, and how many of them are recognized?",
    )
    for rows, case in (
        ([[0, 5, 0], [0, 7, 0], [0, 3, 0]], "every image is predicted as class 1"),
        ([[4, 0, 0], [0, 4, 0], [0, 0, 4]], "every prediction is right"),
        ([[0, 5, 0], [0, 7, 0], [1, 2, 0]], "one image is predicted as class 0"),
        ([[0, 0, 0], [0, 9, 0], [0, 0, 0]], "all images belong to one class"),
        ([[0, 0, 3], [0, 0, 0], [0, 0, 2]], "there are two true classes and one prediction"),
    ):
        counts = torch.tensor(rows)
        answer = result_of(collapsed, counts)
        require(
            isinstance(answer, bool),
            f"collapsed should return True or False, but it returns a {type(answer).__name__}",
        )
        num_true, num_predicted = (int(counts.sum(dim=d).count_nonzero()) for d in (1, 0))
        expected = num_predicted == 1 and num_true > 1
        require(answer == expected, f"collapsed(counts) is {answer}, but {case}")
    right(
        "A collapsed model has a recall of 1 for one class and of 0 for the others. So the "
        "mean recall is 1/K, whatever the accuracy."
    )
