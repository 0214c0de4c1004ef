"""Checks of the exercises in notebooks/exercises, a module for each notebook.

A check compares an answer with what the package, PyTorch or a formula gives. It raises
`NotYet` with a hint, which never tells the answer, or prints that it is right.
"""

from collections.abc import Callable
from numbers import Real

import torch


class NotYet(AssertionError):
    """An answer that is missing or wrong. Jupyter shows the hint and no traceback."""

    def _render_traceback_(self) -> list[str]:
        return [f"✗ Not yet: {self}"]


def require(condition: bool, hint: str) -> None:
    """Raise `NotYet` with the hint unless the condition holds."""
    if not condition:
        raise NotYet(hint)


def require_answers(**answers) -> None:
    """Raise `NotYet` if a place is still filled with dots."""
    for name, answer in answers.items():
        require(answer is not ..., f"replace the dots: {name} has no answer")


def require_number(name: str, answer, expected: float, hint: str, share: float = 1e-6) -> None:
    """Is the answer the expected number?

    A whole number to the last digit, another one to a share of it. Who has rounded it
    is told so.
    """
    require_answers(**{name: answer})
    is_number = isinstance(answer, Real) and not isinstance(answer, bool)
    require(is_number, f"{name} should be a number, and is {type(answer).__name__}")
    margin = 0 if isinstance(expected, int) else share * abs(expected)
    if 0 < margin < abs(answer - expected) < 2e-3 * abs(expected):
        hint = "nearly: write down the calculation in place of a rounded number"
    require(abs(answer - expected) <= margin, f"{name}: {hint}")


def is_close(answer, expected: torch.Tensor) -> bool:
    """Is an answer, whatever it is, this tensor, to 1e-5?"""
    is_it = isinstance(answer, torch.Tensor) and answer.shape == expected.shape
    return is_it and torch.allclose(answer.to(expected.dtype), expected, atol=1e-5)


def require_tensor(name: str, answer, expected: torch.Tensor, hint: str) -> None:
    """Is the answer the expected tensor, to 1e-5?"""
    require_answers(**{name: answer})
    is_tensor = isinstance(answer, torch.Tensor)
    require(is_tensor, f"{name} should be a tensor, and is {type(answer).__name__}")
    shapes = tuple(answer.shape), tuple(expected.shape)
    require(shapes[0] == shapes[1], f"{name} has the shape {shapes[0]}, not {shapes[1]}")
    require(is_close(answer, expected), f"{name} has the right shape, but other numbers: {hint}")


def result_of(function: Callable, *arguments):
    """What a function returns, which may still be dots.

    An error of the function itself comes through, with its traceback.
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
    """Say that an answer is right, and one thing to take along."""
    print(f"✓ Right. {remark}")


def noise(*shape: int) -> torch.Tensor:
    """The same numbers each time, normal."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))
