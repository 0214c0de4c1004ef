"""What every part of the series needs: paths, errors, seeds, the device, counting, saving."""

import errno
import glob
import json
import os
import platform
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from io import TextIOWrapper
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from filelock import FileLock
from platformdirs import user_cache_path
from safetensors import SafetensorError
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

PACKAGE = Path(__file__).resolve().parent
# The repository that contains the package. None where pip copied it to site-packages.
CHECKOUT = PACKAGE.parent if (PACKAGE.parent / "pyproject.toml").is_file() else None
SIZES = ("smoke", "cpu", "paper")
PRECISIONS = ("float32", "bfloat16", "float16")
# Errors that tell the user of a command what to do.
USER_ERRORS = (OSError, ValueError, ImportError, FloatingPointError)
Model = TypeVar("Model", bound=nn.Module)


def project_path(path: str | Path) -> Path:
    """Return an absolute path. A relative path starts at the checkout, if there is one.

    Notebooks run in `notebooks/`, tests and scripts elsewhere. In a checkout, a relative
    path means the same folder for all of them. Without a checkout, it starts at the
    working directory, as in any other program.
    """
    return (CHECKOUT or Path.cwd()) / expand_home(path)


def expand_home(path: str | Path) -> Path:
    """Return a path with the home folder in place of "~"; a name that is no user's stays.

    A shell leaves the "~" of `--data=~/photos` to the program.
    """
    return Path(os.path.expanduser(path))


def command_path(path: str) -> Path:
    """Return an absolute path. A relative path starts at the working directory.

    Use it for paths on a command line, which `project_path` then leaves as they are.
    """
    return expand_home(path).absolute()


def data_dir() -> Path:
    """Return the folder for images that are downloaded or drawn.

    The environment variable FOODVISION_DATA names it. If that is not set, it is `data/`
    in the checkout. Without a checkout, it is in the user's cache folder, because files
    in site-packages would be lost with the next installation.
    """
    if chosen := os.environ.get("FOODVISION_DATA"):
        return project_path(chosen)
    if CHECKOUT:
        return CHECKOUT / "data"
    return user_cache_path("vit-paper-replicating") / "data"


def require_checkout() -> None:
    """Raise `FileNotFoundError` where pip installed the package without the repository."""
    if CHECKOUT is None:
        raise FileNotFoundError(
            "this command works on the files of the repository, and pip installed "
            "going_modular without them: run it in a checkout of the repository"
        )


class ErrorInLines(ValueError):
    """A user's error that lists something: a command prints its lines as they are."""


def replace_unprintable() -> None:
    """Let this program print "?" for a character that its console does not have.

    Python would raise `UnicodeEncodeError`, for a class called 寿司 on a console that is not
    UTF-8. Output that is no text file, as in a notebook, stays as it is.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")


@contextmanager
def errors_in_one_line(
    program: str, *more: type[Exception], memory_advice: str = ""
) -> Iterator[None]:
    """End a command with the line "program: error: message" if a user's error is raised.

    The line goes to the error stream, and the exit status is 2, as argparse does it for
    wrong arguments. `ErrorInLines` keeps its lines. Any other error is a bug and keeps its
    traceback. From here on, the command prints as `replace_unprintable` says.

    Args:
        more: errors that a user of this command can cause, besides `USER_ERRORS` and too
            little memory.
        memory_advice: what to do if there is too little memory.

    Raises:
        SystemExit: for a user's error.
    """
    replace_unprintable()
    try:
        yield
    except Exception as error:
        lacks_memory = is_out_of_memory(error)
        if not lacks_memory and not isinstance(error, (*USER_ERRORS, *more)):
            raise
        lines = str(error).splitlines()
        if any("Original Traceback" in line for line in lines):  # of a DataLoader's worker
            lines = lines[-1:]
        separator = "\n" if isinstance(error, ErrorInLines) else " "
        message = separator.join(lines) or type(error).__name__
        if lacks_memory and memory_advice:
            message += f". {memory_advice}"
        print(f"{program}: error: {message}", file=sys.stderr)
        sys.exit(2)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory is too small, on a GPU or on the CPU.

    For the memory of the CPU, PyTorch raises a plain `RuntimeError`. Its message names the
    part of PyTorch that failed.
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def set_seeds(seed: int = 42) -> None:
    """Seed the generators of Python, NumPy and PyTorch, on all devices."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def get_device() -> torch.device:
    """Return the fastest device of this machine: CUDA, else Apple's MPS, else the CPU.

    The environment variable FOODVISION_DEVICE overrides the choice, for example "cpu".

    Raises:
        ValueError: if the variable names no device, or one that this machine does not have.
    """
    if chosen := os.environ.get("FOODVISION_DEVICE"):
        try:
            device = torch.device(chosen)
        except RuntimeError as error:
            raise ValueError(f"FOODVISION_DEVICE={chosen!r}: expected cpu, cuda or mps") from error
        counts = {"cuda": torch.cuda.device_count, "mps": torch.mps.device_count}
        if device.type in counts and (device.index or 0) >= counts[device.type]():
            raise ValueError(
                f"FOODVISION_DEVICE={chosen!r}: this machine has no such device; choose cpu, "
                "or unset the variable"
            )
        return device
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def get_source() -> str:
    """Return FOODVISION_SOURCE: "auto", "synthetic", or a mirror, for images and weights."""
    return os.environ.get("FOODVISION_SOURCE") or "auto"


def get_size() -> str:
    """Return how large a notebook runs: "smoke" for tests, "cpu", or "paper" for a GPU.

    The environment variable FOODVISION_SIZE decides. If it is not set, the device does.

    Raises:
        ValueError: if the variable holds anything else.
    """
    default = "cpu" if get_device().type == "cpu" else "paper"
    size = os.environ.get("FOODVISION_SIZE") or default
    if size not in SIZES:
        raise ValueError(f"FOODVISION_SIZE={size!r}: expected one of {', '.join(SIZES)}")
    return size


def best_precision(device: torch.device) -> str:
    """Return the fastest safe precision for `autocast` on a device.

    A GPU or a CPU that multiplies in bfloat16 gets "bfloat16". A GPU that only emulates it
    gets "float16". Every other device gets "float32".

    The environment variable FOODVISION_PRECISION overrides the choice, for example
    "float32".

    Raises:
        ValueError: if the variable holds anything else than a precision.
    """
    if chosen := os.environ.get("FOODVISION_PRECISION"):
        if chosen not in PRECISIONS:
            raise ValueError(
                f"FOODVISION_PRECISION={chosen!r}: expected one of {', '.join(PRECISIONS)}"
            )
        return chosen
    if bfloat16_instructions(device):
        return "bfloat16"
    return "float16" if device.type == "cuda" else "float32"


def bfloat16_instructions(device: torch.device) -> str:
    """Return the name of a device's instructions for products in bfloat16, or "".

    Without them, a device converts to float32 and back, which is slow. Of CPUs, "amx_bf16" and
    "avx512_bf16" count. We have not measured ARM's, so they do not.
    """
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else ""
    if device.type != "cpu":
        return ""
    if hasattr(torch.cpu, "get_capabilities"):
        found = torch.cpu.get_capabilities()
    else:  # PyTorch before 2.10 tells it in private
        found = {
            "amx_bf16": torch.cpu._is_amx_tile_supported(),
            "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
        }
    return next((name for name in ("amx_bf16", "avx512_bf16") if found.get(name)), "")


def autocast(device: torch.device | str, precision: str) -> AbstractContextManager:
    """Compute in 16 bits where PyTorch considers it safe, as in matrix products.

    Raises:
        ValueError: if the precision is not "float32", "bfloat16" or "float16".
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    device = torch.device(device)
    if precision == "float32":
        return without_autocast(device)
    return torch.autocast(device.type, getattr(torch, precision))


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Leave `autocast`, on a device that has it; PyTorch's "meta", without numbers, has not."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def describe_environment(precision: str = "") -> str:
    """Return versions and machine in two lines, for the first cell of each notebook.

    Args:
        precision: that of matrix products, named as well if it is given.
    """
    import torchvision  # here, because it takes as long as PyTorch

    device = get_device()
    if device.type == "cuda":
        machine = torch.cuda.get_device_name(device)
    else:
        machine = f"{platform.machine()}, {torch.get_num_threads()} threads"
    return (
        f"Python {platform.python_version()} · torch {torch.__version__} · "
        f"torchvision {torchvision.__version__}\n{platform.system()} · "
        f"{device.type} ({machine})" + (f" · {precision}" if precision else "")
    )


def count_parameters(model: nn.Module, trainable_only: bool = False) -> int:
    """Count the parameters of a model, or only those that are not frozen."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable_only)


def count_multiply_adds(model: nn.Module, images: torch.Tensor) -> int:
    """Count the multiply-adds of one forward pass over `images`.

    PyTorch's counter reports FLOPs, which are two per multiply-add. On the CPU it cannot
    see fused attention, so we force the plain "math" kernel. We also switch gradients on:
    without them, PyTorch's own encoder layers take another fused path.
    """
    from torch.utils.flop_counter import FlopCounterMode  # here, because it takes 0.2 s

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
    """Print rows under a header, with the first column aligned left, the others right."""
    cells = [[str(value) for value in row] for row in (header, *rows)]
    widths = [max(len(value) for value in column) for column in zip(*cells, strict=True)]
    for row in (cells[0], ["-" * width for width in widths], *cells[1:]):
        first, *others = zip(row, widths, strict=True)
        print("  ".join([first[0].ljust(first[1]), *(v.rjust(w) for v, w in others)]))


def markdown_table(header: Sequence[str], rows: Sequence[Sequence]) -> str:
    """Return rows under a header as a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


@torch.no_grad()
def give_random_values(model: Model, seed: int = 0) -> Model:
    """Fill every parameter with random numbers, so that a test of the model can fail.

    A head of zeros gives zero for any features, right or wrong. Biases of zero hide a
    missing bias. The activations keep about unit scale: the standard deviation is
    1 / sqrt(fan-in) for weight matrices around 0, and 0.1 for everything else, around 1
    for LayerNorm weights and around 0 otherwise.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            values = torch.randn(parameter.shape, generator=generator)
            if isinstance(module, nn.LayerNorm) and name == "weight":
                values = 1 + 0.1 * values
            elif parameter.ndim in (2, 4):  # linear layers and convolutions
                values = values / parameter[0].numel() ** 0.5
            else:
                values = 0.1 * values
            parameter.copy_(values)
    return model


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to, then move that file to `path` in one step.

    A reader of `path` finds the old file or the new one, and never half of one. The old
    file also stays if the body raises or the process is killed. Several processes may
    write the same path at once: the last one to finish wins. A killed process leaves its
    unfinished file in a hidden folder, see `remove_unfinished`.

    Raises:
        OSError: if the file cannot be written, for instance because the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A folder of its own for each writer. The body creates the file in it by a plain
    # open(), so that the file gets the usual permissions.
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
        unfinished = Path(folder, path.name)
        try:
            yield unfinished
            with unfinished.open("rb+") as file:
                os.fsync(file.fileno())  # on disk before the old file goes
        except Exception as error:
            if not is_full_disk(error):
                raise
            free = shutil.disk_usage(path.parent).free / 1e6
            raise OSError(
                f"{path} cannot be written completely; {free:,.0f} MB are free on that disk. "
                "Make room, or choose another folder. The file is as it was before"
            ) from error
        if path.exists():
            shutil.copymode(path, unfinished)
        unfinished.replace(path)


def is_full_disk(error: Exception) -> bool:
    """Whether an error says that a file cannot grow, as on a full disk.

    Python's error names no file then. PyTorch and safetensors raise errors of their own.
    """
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", None))
    in_pytorch = isinstance(error, RuntimeError) and "inline_container" in str(error)
    return in_pytorch or isinstance(error, SafetensorError)


def remove_unfinished(path: Path) -> None:
    """Remove what processes left behind that were killed while they wrote a path.

    Call it only where no other process writes the path at the same time.
    """
    for folder in path.parent.glob(f".{glob.escape(path.name)}-*/"):
        shutil.rmtree(folder, ignore_errors=True)


def append_line(path: Path, entry: dict) -> None:
    """Add one line of JSON to a file. Several processes may do so at once.

    Each process waits for a lock, the hidden file `.<name>.lock`. If a killed writer left
    half a line at the end of the file, the new entry starts on a line of its own.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")), path.open("ab+") as file:
        if file.tell():  # not empty: append mode starts at the end
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                file.write(b"\n")
        file.write(json.dumps(entry).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def save_model(model: nn.Module, target_dir: str | Path, model_name: str) -> Path:
    """Save a model's parameters, its `state_dict`, and return the file's path.

    The file appears under its name only when it is complete. `project_path` says where a
    relative `target_dir` starts.

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
    """Load the parameters that `save_model` wrote into `model`, and set it to eval mode.

    Raises:
        FileNotFoundError: if there is no such file.
        RuntimeError: if the names or shapes in the file differ from the model's.
            PyTorch's message lists them.
        pickle.UnpicklingError: if the file holds anything but numbers.
    """
    path = project_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no saved model at {path}: save one with save_model")
    # With weights_only, PyTorch never runs code from the file.
    model.load_state_dict(torch.load(path, map_location=device, weights_only=True))
    return model.to(device).eval()
