"""Checks for the exercises in notebooks/exercises, one module for each notebook.

A check compares an answer with what the package, PyTorch or a formula gives. It prints
that the answer is right, or it raises `NotYet` with a hint. A hint says what to look at
next. It never tells the answer.
"""

from collections.abc import Callable
from numbers import Real

import torch

from going_modular.model_builder import ViT, ViTConfig
from going_modular.utils import give_random_values

# A small ViT for the checks. Its sizes all differ, and so do their products, so that a
# mix-up changes the result.
SMALL = ViTConfig(
    image_size=(48, 80),
    patch_size=8,
    in_channels=4,
    embedding_dim=24,
    num_layers=2,
    num_heads=3,
    mlp_dim=96,
    num_classes=7,
)


class NotYet(AssertionError):
    """The answer is missing or wrong. Jupyter shows the hint without a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [f"✗ Not yet: {self}"]


def require(condition: bool, hint: str) -> None:
    """Raise `NotYet` with the hint unless the condition holds."""
    if not condition:
        raise NotYet(hint)


def require_answers(**answers) -> None:
    """Raise `NotYet` if an answer is still three dots."""
    for name, answer in answers.items():
        require(answer is not ..., f"replace the dots: {name} has no answer yet")


def require_number(name: str, answer, expected: float, hint: str, rel_tol: float = 1e-6) -> None:
    """Raise `NotYet` unless the answer is the expected number.

    An expected `int` must be met exactly, a `float` to the relative tolerance. An answer
    that looks rounded gets a hint that says so.
    """
    require_answers(**{name: answer})
    is_number = isinstance(answer, Real) and not isinstance(answer, bool)
    require(is_number, f"{name} should be a number, but its type is {type(answer).__name__}")
    tolerance = 0 if isinstance(expected, int) else rel_tol * abs(expected)
    error = abs(answer - expected)
    if 0 < tolerance < error < 2e-3 * abs(expected):
        hint = "very close. Write the calculation instead of a rounded number"
    require(error <= tolerance, f"{name}: {hint}")


def is_close(answer, expected: torch.Tensor) -> bool:
    """Return whether an answer of any type is a tensor equal to `expected`, to 1e-5."""
    same_shape = isinstance(answer, torch.Tensor) and answer.shape == expected.shape
    return same_shape and torch.allclose(answer.to(expected.dtype), expected, atol=1e-5)


def require_tensor(name: str, answer, expected: torch.Tensor, hint: str) -> None:
    """Raise `NotYet` unless the answer is the expected tensor, to 1e-5."""
    require_answers(**{name: answer})
    is_tensor = isinstance(answer, torch.Tensor)
    require(is_tensor, f"{name} should be a tensor, but its type is {type(answer).__name__}")
    shape, expected_shape = tuple(answer.shape), tuple(expected.shape)
    require(shape == expected_shape, f"{name} has the shape {shape}, not {expected_shape}")
    require(is_close(answer, expected), f"{name} has the right shape but wrong numbers: {hint}")


def result_of(function: Callable, *arguments):
    """Call the learner's function and return its result.

    Raises:
        NotYet: if the function is still three dots, or returns them, or returns nothing.
            An error inside the function comes through with its traceback.
    """
    name = getattr(function, "__name__", "the function")
    require_answers(**{name: function})
    result = function(*arguments)
    require(
        result is not ... and result is not None,
        f"{name} returns nothing yet: replace the dots, and return the result",
    )
    return result


def right(remark: str) -> None:
    """Print that the answer is right, and one thing to remember."""
    print(f"✓ Right. {remark}")


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Return normal random numbers. The same shape and seed give the same numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def small_vit() -> ViT:
    """Return a ViT of the sizes `SMALL`, with random values in every parameter."""
    return give_random_values(ViT(SMALL)).eval()


def small_images() -> torch.Tensor:
    """Return five images of noise for `small_vit`, (5, 4, 48, 80)."""
    return noise(5, SMALL.in_channels, *SMALL.image_hw)
