"""What the commands of this folder share: their options, and how they end early."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from going_modular.utils import errors_in_one_line


@contextmanager
def endings_in_one_line(program: str) -> Iterator[None]:
    """`errors_in_one_line`, and a line after Ctrl-C that says how to go on.

    Raises:
        SystemExit: for a user's error, or after Ctrl-C.
    """
    try:
        with errors_in_one_line(program):
            yield
    except KeyboardInterrupt:
        sys.exit("stopped: the same command goes on from here")


def positive(text: str) -> int:
    """A command's argument as a whole number of at least 1.

    Raises:
        argparse.ArgumentTypeError: if it is anything else.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number >= 1, got {text!r}")
    return int(text)


def command_parser(name: str, description: str) -> argparse.ArgumentParser:
    """A parser for `python -m going_modular.experiments.<name>`."""
    return argparse.ArgumentParser(f"python -m {__package__}.{name}", description=description)


def sweep_parser(name: str, description: str) -> argparse.ArgumentParser:
    """A parser with the options that every sweep has."""
    parser = command_parser(name, description)
    parser.add_argument("--seeds", type=positive, default=3, help="0, 1, ... (default: 3)")
    parser.add_argument("--jobs", type=positive, default=1, help="processes side by side")
    return parser
