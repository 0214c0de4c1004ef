"""What every part of the series needs: paths, seeds, the device, saved models."""

import json
import os
import platform
import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch
import torchvision
from platformdirs import user_cache_path
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

PACKAGE = Path(__file__).resolve().parent
# The checkout that the package lies in; None where pip installed it.
CHECKOUT = PACKAGE.parent if (PACKAGE.parent / "pyproject.toml").is_file() else None
SIZES = ("smoke", "cpu", "paper")
PRECISIONS = ("float32", "bfloat16", "float16")


def project_path(path: str | Path) -> Path:
    """An absolute path; a relative one starts at the checkout, if there is one.

    Notebooks run in `notebooks/`, tests and scripts elsewhere: in a checkout, a
    relative path means the same folder in all of them. Where pip installed the
    package, it starts at the working directory, as for any other program.
    """
    return (CHECKOUT or Path.cwd()) / Path(path).expanduser()


def data_dir() -> Path:
    """The folder for images that were downloaded or drawn.

    The environment variable FOODVISION_DATA, if it is set; else `data/` of the
    checkout; else, where pip installed the package, the user's cache folder.
    """
    if chosen := os.environ.get("FOODVISION_DATA"):
        return Path(chosen).expanduser().absolute()
    if CHECKOUT:
        return CHECKOUT / "data"
    return user_cache_path("vit-paper-replicating") / "data"


def set_seeds(seed: int = 42) -> None:
    """Seed every generator in use: Python's, NumPy's, PyTorch's on all devices."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def get_device() -> torch.device:
    """The fastest device at hand: CUDA, else Apple's MPS, else the CPU.

    The environment variable FOODVISION_DEVICE overrules that, "cpu" for example.
    """
    if chosen := os.environ.get("FOODVISION_DEVICE"):
        return torch.device(chosen)
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def get_size() -> str:
    """How large a notebook runs: "smoke" (tests), "cpu" or "paper" (wants a GPU).

    Read from the environment variable FOODVISION_SIZE; unset, it follows the device.

    Raises:
        ValueError: if the variable holds anything else.
    """
    default = "cpu" if get_device().type == "cpu" else "paper"
    size = os.environ.get("FOODVISION_SIZE") or default
    if size not in SIZES:
        raise ValueError(f"FOODVISION_SIZE={size!r}: expected one of {', '.join(SIZES)}")
    return size


def best_precision(device: torch.device) -> str:
    """The number format that trains fastest without harm: a choice of `autocast`.

    "bfloat16" only on a GPU that computes in it rather than emulating it; on older
    ones "float16". Elsewhere "float32".
    """
    if device.type != "cuda":
        return "float32"
    real = torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if real else "float16"


@contextmanager
def autocast(device: torch.device | str, precision: str) -> Iterator[None]:
    """Compute matrix products in 16 bit where PyTorch holds it to be safe.

    Raises:
        ValueError: if the precision is none of "float32", "bfloat16" and "float16".
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    kind = torch.device(device).type
    with ExitStack() as stack:
        if precision != "float32":
            stack.enter_context(torch.autocast(kind, getattr(torch, precision)))
            if kind == "cpu":  # its fused attention is slow in 16 bit
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield


def describe_environment() -> str:
    """Versions and machine in two lines, for the first cell of each notebook."""
    device = get_device()
    if device.type == "cuda":
        machine = torch.cuda.get_device_name(device)
    else:
        machine = f"{platform.machine()}, {torch.get_num_threads()} threads"
    return (
        f"Python {platform.python_version()} · torch {torch.__version__} · "
        f"torchvision {torchvision.__version__}\n{platform.system()} · "
        f"{device.type} ({machine})"
    )


def count_parameters(model: nn.Module, trainable_only: bool = False) -> int:
    """How many numbers a model learns, or those of them that are not frozen."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable_only)


def count_multiply_adds(model: nn.Module, images: torch.Tensor) -> int:
    """Multiply-adds of one forward pass over `images`, as PyTorch's counter sees them.

    The counter reports FLOPs, two for each multiply-add, and on the CPU it is blind to
    fused attention. So the plain ("math") kernel is forced, and gradients are switched
    on, because without them PyTorch's own encoder layers take a fused path as well.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    with (
        torch.enable_grad(),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        model(images)
    for module, training in modes:
        module.training = training
    return counter.get_total_flops() // 2


def print_table(header: Sequence[str], rows: Sequence[Sequence]) -> None:
    """Print rows under a header; the first column to the left, the others right."""
    cells = [[str(value) for value in row] for row in (header, *rows)]
    widths = [max(len(value) for value in column) for column in zip(*cells, strict=True)]
    for row in (cells[0], ["-" * width for width in widths], *cells[1:]):
        first, *others = zip(row, widths, strict=True)
        print("  ".join([first[0].ljust(first[1]), *(v.rjust(w) for v, w in others)]))


@torch.no_grad()
def give_random_values(model: nn.Module, seed: int = 0) -> nn.Module:
    """Fill every parameter with random numbers, so that a proof about it can fail.

    A head that starts at zero gives zero for any features, right or wrong, and biases
    at zero hide a missing bias. Activations stay near unit scale: LayerNorm weights
    are N(1, 0.1), weight matrices N(0, 1 / fan-in), everything else is N(0, 0.1).
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            values = torch.randn(parameter.shape, generator=generator)
            if isinstance(module, nn.LayerNorm) and name == "weight":
                values = 1 + 0.1 * values
            elif parameter.ndim in (2, 4):  # dense layers and convolutions
                values = values / parameter[0].numel() ** 0.5
            else:
                values = 0.1 * values
            parameter.copy_(values)
    return model


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a path to write to; the file takes its name once it is whole and on disk.

    Until then a file that was there before stays as it is, whatever happens.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".part")
    yield unfinished
    with unfinished.open("rb+") as file:
        os.fsync(file.fileno())
    unfinished.replace(path)


def append_line(path: Path, entry: dict) -> None:
    """Add one JSON line to a file, which never holds half a line."""
    lines = path.read_text(encoding="utf-8") if path.is_file() else ""
    with atomic_write(path) as unfinished:
        unfinished.write_text(f"{lines}{json.dumps(entry)}\n", encoding="utf-8")


def save_model(model: nn.Module, target_dir: str | Path, model_name: str) -> Path:
    """Save a model's parameters (its `state_dict`) and return the file's path.

    The file appears under its name only once it is whole. A relative `target_dir`
    is seen from the repository's root.

    Raises:
        ValueError: if `model_name` does not end in .pth or .pt.
    """
    if not model_name.endswith((".pth", ".pt")):
        raise ValueError(f"model_name must end in .pth or .pt, got {model_name!r}")
    path = project_path(target_dir) / model_name
    with atomic_write(path) as unfinished:
        torch.save(model.state_dict(), unfinished)
    return path


def load_model(model: nn.Module, path: str | Path, device: torch.device | str = "cpu") -> nn.Module:
    """Fill `model` with the parameters that `save_model` wrote; return it in eval mode.

    Raises:
        FileNotFoundError: if there is no such file.
        RuntimeError: if the file's names or shapes are not the model's (PyTorch's
            message lists them).
        pickle.UnpicklingError: if the file holds anything but numbers.
    """
    path = project_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no saved model at {path}: save one with save_model")
    # weights_only: a file of numbers cannot run code when it is opened.
    model.load_state_dict(torch.load(path, map_location=device, weights_only=True))
    return model.to(device).eval()
