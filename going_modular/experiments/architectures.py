"""Which of timm's ViTs become ours with equal logits, and which are refused.

python -m going_modular.experiments.architectures --write

Every tensor holds random numbers, and the image has the size that timm trained with. Two
models are equal if their logits differ by at most 1e-4, or 1e-4 of the largest logit.
"""

import argparse
import contextlib
import io
import re
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from going_modular.utils import (
    count_parameters,
    errors_in_one_line,
    give_random_values,
    markdown_table,
    print_table,
    project_path,
)
from going_modular.vit.weights import load_vit

PAGE = "docs/results/architectures.md"
KINDS = r"^(vit_|deit|flexivit|beit|eva)"
# Hybrids with CNNs, relative positions, and models that only share a prefix with ViTs
OTHERS = r"relpos|hybrid|_r\d|_r_|resnet|vitamin|efficientvit|eva_x"
TOLERANCE = 1e-4


class Result(NamedTuple):
    """What became of an architecture: "equal", "different" or "refused"."""

    name: str
    million: float  # parameters
    kind: str
    remark: str  # the largest difference, or why it is refused


def architectures(pattern: str, million: float) -> Iterator[tuple[str, float]]:
    """timm's ViTs whose names fit a pattern, and their millions of parameters.

    Raises:
        ImportError: if timm is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise ImportError(
            "this compares with timm: `pip install -r requirements.txt` installs it"
        ) from error
    for name in timm.list_models():
        if not re.search(KINDS, name) or re.search(OTHERS, name) or not re.search(pattern, name):
            continue
        with torch.device("meta"):  # without memory
            parameters = count_parameters(timm.create_model(name)) / 1e6
        if parameters <= million:
            yield name, parameters


def result_of(name: str, million: float, layers: int = 0) -> Result:
    """Compare one of timm's architectures with what `load_vit` makes of its tensors.

    Args:
        layers: its first layers alone; 0 takes all.
    """
    import timm

    only: dict[str, Any] = {"depth": layers} if layers else {}
    vit = give_random_values(timm.create_model(name, **only)).eval()
    size = tuple(vit.default_cfg["input_size"][1:])
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(), contextlib.redirect_stdout(io.StringIO()):
        expected = vit(images)
        try:
            ours = load_vit(vit.state_dict(), architecture=name, image_size=size)
        except ValueError as error:
            return Result(name, million, "refused", reason_in(str(error)))
        logits = ours(images)
    if logits.shape != expected.shape:
        return Result(name, million, "different", f"{tuple(logits.shape)} logits")
    apart, largest = (logits - expected).abs().max().item(), expected.abs().max().item()
    kind = "equal" if apart <= TOLERANCE * max(1.0, largest) else "different"
    return Result(name, million, kind, f"{apart:.0e} apart, largest {largest:.1f}")


def reason_in(message: str) -> str:
    """The first tensor that does not fit, or the start of a message."""
    problem = re.search(r"(unknown|missing): \S+|\S+ has shape .*", message)
    return problem[0] if problem else message.splitlines()[0].strip()


def page_of(results: Sequence[Result], versions: str) -> str:
    """The results as a page in Markdown."""
    counts = Counter(each.kind for each in results)
    header = ("timm's architecture", "million parameters", "result", "largest difference, or why")
    rows = [(each.name, f"{each.million:.0f}", each.kind, each.remark) for each in results]
    return (
        "# timm's ViTs through `load_vit`\n\n"
        f"{counts['equal']} of {len(results)} have equal logits, {counts['refused']} are refused, "
        f"{counts['different']} differ without a word. {versions}, random numbers in every "
        "tensor, one random image of the size that timm trained with. Two models are equal if "
        "their logits differ by at most 1e-4, or 1e-4 of the largest logit. By `python -m "
        "going_modular.experiments.architectures --write`.\n\n"
        f"{markdown_table(header, rows)}\n"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, print a line for each, and exit with 1 if any differ."""
    parser = argparse.ArgumentParser(
        prog="python -m going_modular.experiments.architectures",
        description=__doc__.splitlines()[0],
    )
    parser.add_argument("--pattern", default="", help="part of their names")
    parser.add_argument("--million", type=float, default=120.0, help="parameters, at most")
    parser.add_argument("--layers", type=int, default=0, help="the first layers alone")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE}")
    options = parser.parse_args(arguments)
    with errors_in_one_line(parser.prog), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm's, of names that it will drop
        began, results = time.monotonic(), []
        for name, million in architectures(options.pattern, options.million):
            results.append(result_of(name, million, options.layers))
            print(f"{results[-1].kind:9} {name}: {results[-1].remark}", flush=True)
        import timm

        versions = f"timm {timm.__version__}, torch {torch.__version__}"
        if options.write:
            project_path(PAGE).write_text(page_of(results, versions), encoding="utf-8")
    counts = Counter(each.kind for each in results)
    print_table(("result", "architectures"), list(counts.items()))
    print(f"{time.monotonic() - began:.0f} s")
    sys.exit(counts["different"] > 0)


if __name__ == "__main__":
    main()
