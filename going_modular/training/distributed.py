"""One training on several processes, as `torchrun` starts them.

Without `torchrun` every function here does the plain thing for a single process, so
that `engine.py` reads the same for one process and for many.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler, default_collate

from going_modular.utils import get_device

SHARDINGS = ("ddp", "fsdp")
Optimizers = torch.optim.Optimizer | list[torch.optim.Optimizer]


def process_count() -> int:
    """How many processes share this training, W; 1 without `torchrun`."""
    return dist.get_world_size() if dist.is_initialized() else 1


def process_rank() -> int:
    """This process's number, from 0 to W - 1. Number 0 prints and writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def processes_here() -> int:
    """How many processes of this training share this machine and its memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if dist.is_initialized() else 1


def print_once(line: str) -> None:
    """Print a line on process 0 only."""
    if process_rank() == 0:
        print(line, flush=True)


@contextmanager
def process_group() -> Iterator[torch.device]:
    """Join the processes that `torchrun` started, and yield this one's device.

    One GPU a process and NCCL where there are GPUs, otherwise CPUs and gloo.
    """
    if not dist.is_torchelastic_launched():
        yield get_device()
        return
    device = torch.device("cpu")
    if get_device().type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    # Only on the way out without an error: a process that failed must not wait here
    # for the others. It ends with its own error, and torchrun stops the rest.
    yield device
    dist.destroy_process_group()


def sum_over_processes(values: torch.Tensor) -> torch.Tensor:
    """The sum of each number over all processes, the same on each of them."""
    if not dist.is_initialized():
        return values
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    total = values.to(device, copy=True)
    dist.all_reduce(total)
    return total.to(values.device)


def any_process(flag: bool) -> bool:
    """True on all processes if it is true on one of them."""
    if not dist.is_initialized():
        return flag
    return sum_over_processes(torch.tensor(float(flag))).item() > 0


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that processes may hold in parts, in one piece."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather_objects(value) -> list:
    """What each process holds, by rank; complete on process 0 only."""
    if not dist.is_initialized():
        return [value]
    gathered = [None] * process_count() if process_rank() == 0 else None
    dist.gather_object(value, gathered)
    return gathered or []


def distribute(model: nn.Module, sharding: str = "ddp") -> nn.Module:
    """The model as several processes train it; unchanged if there is only one.

    Args:
        sharding: "ddp", every process holds the whole model (DistributedDataParallel),
            or "fsdp", each holds a W-th of every encoder block's parameters, gradients
            and optimizer state, and gathers a block when its turn comes
            (`fully_shard`; Rajbhandari et al., ZeRO, arXiv 1910.02054). Slower, for
            models that do not fit otherwise.

    Raises:
        ValueError: if `sharding` is neither.
    """
    if sharding not in SHARDINGS:
        raise ValueError(f"sharding must be one of {SHARDINGS}, got {sharding!r}")
    if not dist.is_initialized():
        return model
    if sharding == "ddp":
        return DistributedDataParallel(model, gradient_as_bucket_view=True)
    for block in model.encoder:
        fully_shard(block)
    fully_shard(model)
    return model


@contextmanager
def sync_gradients(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Average the gradients of a backward pass over the processes, if it is wanted.

    Of an accumulated batch, only the last part needs to.
    """
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(wanted)
    if isinstance(model, DistributedDataParallel) and not wanted:
        with model.no_sync():
            yield
    else:
        yield


def full_state_dicts(model: nn.Module, optimizer: Optimizers) -> tuple[dict, dict]:
    """The state_dicts of a model and its optimizer, on the CPU, as one process has them.

    All processes have to call this; of a sharded model only process 0 gets them.
    """
    return get_state_dict(model, optimizer, options=state_dict_options(model))


def full_state_dict(model: nn.Module) -> dict[str, Any]:
    """The model's part of `full_state_dicts`."""
    return get_model_state_dict(model, options=state_dict_options(model))


def load_full_state_dicts(
    model: nn.Module, optimizer: Optimizers, states: tuple[dict, dict]
) -> None:
    """Load what `full_state_dicts` gave, on all processes."""
    weights, optimizer_state = states
    set_state_dict(
        model,
        optimizer,
        model_state_dict=weights,
        optim_state_dict=optimizer_state,
        options=state_dict_options(model),
    )


def state_dict_options(model: nn.Module) -> StateDictOptions:
    """Gather the parts of a sharded model; a whole one needs no gathering.

    Gathering fails for an optimizer that keeps no tensors, as SGD without momentum.
    """
    is_sharded = any(isinstance(parameter, DTensor) for parameter in model.parameters())
    return StateDictOptions(full_state_dict=is_sharded, cpu_offload=True)


class BatchShards(Sampler[list[int]]):
    """This process's share of each batch: every W-th sample, from its rank on.

    All processes together see each sample once, without the duplicates that
    PyTorch's `DistributedSampler` adds to make shares equal. So a share of the last
    batch can be smaller than the others', or empty.
    """

    def __init__(self, batches: BatchSampler, rank: int, count: int):
        self.batches, self.rank, self.count = batches, rank, count
        self.sampler = batches.sampler  # the engine tells it the epoch

    def __iter__(self) -> Iterator[list[int]]:
        return (batch[self.rank :: self.count] for batch in iter(self.batches))

    def __len__(self) -> int:
        return len(self.batches)


class CollateWithPlaceholder:
    """Batches as usual; for an empty share one image that stands in, and no label.

    Processes meet in every forward and backward pass, so one without a sample has to
    take part as well. What it computes is not counted (`engine.take_step`).
    """

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __call__(self, samples: list) -> list[torch.Tensor]:
        if samples:
            return default_collate(samples)
        images, labels = default_collate([self.dataset[0]])
        return [images, labels[:0]]


def shard_dataloader(dataloader: DataLoader) -> DataLoader:
    """This process's part of a data loader's batches; all of it if there is only one.

    The loader's batch size stays that of all processes together.
    """
    if not dist.is_initialized():
        return dataloader
    batches = dataloader.batch_sampler
    assert isinstance(batches, BatchSampler)  # as `create_dataloader` makes them
    return DataLoader(
        dataloader.dataset,
        batch_sampler=BatchShards(batches, process_rank(), process_count()),
        collate_fn=CollateWithPlaceholder(dataloader.dataset),
        num_workers=dataloader.num_workers,
        worker_init_fn=dataloader.worker_init_fn,
        pin_memory=dataloader.pin_memory,
    )
