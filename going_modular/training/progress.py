"""How far a training has come: the sums of the epoch under way, and the epochs before."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

CHECK_EVERY = 100  # batches after which a GPU is asked whether the loss is finite


def zero(device: torch.device | str) -> torch.Tensor:
    """A sum that starts at 0 on a device, in double precision where the device has it."""
    dtype = torch.float32 if torch.device(device).type == "mps" else torch.float64
    return torch.zeros((), dtype=dtype, device=device)


def check_finite(loss: torch.Tensor | float, where: str) -> None:
    """Raise `FloatingPointError`, naming the usual causes, unless a loss is finite."""
    value = float(loss.detach() if isinstance(loss, torch.Tensor) else loss)
    if not math.isfinite(value):
        raise FloatingPointError(
            f"the loss is {value} in {where}. Usual causes: a learning rate that "
            "is too high (try a tenth of it), no warm-up or gradient clipping, images "
            "that hold NaN or are far from unit scale."
        )


class Step(NamedTuple):
    """What one step did, summed over all its samples on all processes."""

    loss_sum: float
    correct: int
    samples: int
    grad_norm: float  # before clipping; infinite where float16 overflowed
    lr: float
    batches: int  # of this process's data loader


class StepOnDevice(NamedTuple):
    """A `Step` whose sums are still tensors on the device.

    To read one, the CPU waits for all work that the GPU still has to do. So they are
    read all at once, and only where somebody needs them.
    """

    loss_sum: torch.Tensor
    correct: torch.Tensor
    samples: torch.Tensor
    grad_norm: torch.Tensor
    lr: float
    batches: int

    def read(self) -> Step:
        """The same step in Python numbers."""
        sums = (self.loss_sum, self.correct, self.samples, self.grad_norm)
        loss_sum, correct, samples, grad_norm = torch.stack(sums).tolist()
        return Step(loss_sum, int(correct), int(samples), grad_norm, self.lr, self.batches)


@dataclass
class Totals:
    """Sums over the steps of an epoch, as tensors that stay on the device."""

    loss_sum: torch.Tensor
    correct: torch.Tensor
    samples: torch.Tensor
    norm_sum: torch.Tensor  # of the gradient norms that are finite
    norm_count: torch.Tensor  # how many of them are

    @classmethod
    def zeros(cls, device: torch.device | str) -> "Totals":
        """The sums at the beginning of an epoch."""
        return cls(*(zero(device) for _ in range(5)))

    def add(self, step: StepOnDevice) -> None:
        """Count one more step."""
        finite = torch.isfinite(step.grad_norm)
        self.loss_sum += step.loss_sum
        self.correct += step.correct
        self.samples += step.samples
        self.norm_sum += torch.where(finite, step.grad_norm, 0)
        self.norm_count += finite

    def read(self) -> dict[str, float]:
        """All sums as Python numbers, by name. This waits for the device once."""
        return dict(zip(vars(self), torch.stack(list(vars(self).values())).tolist(), strict=True))


@dataclass
class Progress:
    """How far a training has come.

    Args:
        totals: of the steps of this epoch.
        epoch: the epoch under way, from 1.
        batch: how many of its batches are done: the position in the data order.
        lr: the learning rate of the last step.
        results: of the epochs before, see `engine.train`.
    """

    totals: Totals
    epoch: int = 1
    batch: int = 0
    lr: float = math.nan
    results: dict[str, list] = field(default_factory=dict)

    def add(self, step: StepOnDevice) -> None:
        """Count one more step, and look now and then whether the loss is finite.

        Raises:
            FloatingPointError: if it is not.
        """
        self.totals.add(step)
        self.batch += step.batches
        self.lr = step.lr
        if self.batch // CHECK_EVERY > (self.batch - step.batches) // CHECK_EVERY:
            self.read_totals()

    def read_totals(self) -> dict[str, float]:
        """The sums of this epoch as Python numbers, by name.

        Raises:
            FloatingPointError: if the loss is not finite.
        """
        sums = self.totals.read()
        check_finite(sums["loss_sum"], f"epoch {self.epoch}, at batch {self.batch} or before")
        return sums

    def averages(self) -> dict[str, float]:
        """Loss and accuracy of a sample, and the gradient norm of a step.

        Raises:
            FloatingPointError: if the loss is not finite.
            ValueError: if there was no sample.
        """
        sums = self.read_totals()
        if not sums["samples"]:
            raise ValueError("the data loader has no batches: is its data set empty?")
        return {
            "loss": sums["loss_sum"] / sums["samples"],
            "acc": sums["correct"] / sums["samples"],
            "grad_norm": sums["norm_sum"] / max(sums["norm_count"], 1),
        }

    def next_epoch(self, of_epoch: dict) -> None:
        """Keep an epoch's results, and stand at the beginning of the next one."""
        for name, value in of_epoch.items():
            self.results.setdefault(name, []).append(value)
        self.epoch, self.batch = self.epoch + 1, 0
        self.totals = Totals.zeros(self.totals.samples.device)

    def state_dict(self) -> dict:
        """All of it in plain types.

        Raises:
            FloatingPointError: if the loss is not finite: a checkpoint would keep it.
        """
        return {**vars(self), "totals": self.read_totals()}

    def load_state_dict(self, state: dict) -> None:
        """Stand where another training stood."""
        device = self.totals.samples.device
        totals = {name: zero(device) + value for name, value in state["totals"].items()}
        vars(self).update(state, totals=Totals(**totals))
