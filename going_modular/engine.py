"""Training and evaluation loops. Every metric is an average over samples.

Averages over batches are wrong where batches differ in size: 225 images in batches
of 32 leave one image alone in the last batch, where it would weigh as much as 32.
"""

import itertools
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import TensorDataset
from tqdm import tqdm

from going_modular.data_setup import set_epoch
from going_modular.training.checkpoints import (
    Checkpoint,
    Progress,
    delayed_interrupts,
    set_random_state,
)
from going_modular.training.distributed import (
    any_process,
    full_tensor,
    process_count,
    sum_over_processes,
    sync_gradients,
)
from going_modular.utils import autocast, get_device

Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]


def set_training_mode(model: nn.Module) -> None:
    """`model.train()`, except that frozen parts stay in evaluation mode.

    Dropout in a frozen backbone would only blur features that nothing can adapt,
    and BatchNorm would go on changing its averages. A layer without parameters of its
    own (dropout) goes with those that the module that holds it has itself, as the
    dropout after the position embedding goes with that in a ViT.
    """
    model.train()
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        everything = list(module.parameters())
        if everything and not any(p.requires_grad for p in everything):
            module.eval()
        elif own and not any(p.requires_grad for p in own):
            for child in module.children():
                if next(child.parameters(), None) is None:
                    child.eval()


def check_finite(loss: torch.Tensor, where: str) -> None:
    """Raise `FloatingPointError`, naming the usual causes, unless a loss is finite."""
    if not torch.isfinite(loss):
        raise FloatingPointError(
            f"the loss is {loss.item()} in {where}. Usual causes: a learning rate "
            "that is too high (try a tenth of it), no warm-up or gradient clipping, "
            "images that hold NaN or are far from unit scale."
        )


def averages(loss_sum: float, correct: float, samples: float) -> tuple[float, float]:
    """(loss, accuracy) of one sample on average; `ValueError` if there was none."""
    if not samples:
        raise ValueError("the data loader has no batches: is its data set empty?")
    return loss_sum / samples, correct / samples


@dataclass
class Method:
    """How a step is taken, beyond optimizer and loss; the defaults are a plain step.

    Args:
        scheduler: sets the learning rate of each step, those that "float16" skips
            because of an overflow included.
        clip_norm: a gradient longer than this (norm over all parameters) is shortened
            to it; 0 for never.
        accumulate: how many batches of the data loader make up one step. Their
            gradients are added up, so that the step is that of one large batch, with
            only one small batch at a time in memory.
        precision: see `utils.autocast`.
        mix: MixUp or CutMix, (images, labels (B,)) -> (images, shares (B, K)).
        average: a moving average of the weights; evaluations then measure it.

    With "float16", `scaler` keeps small gradients from becoming 0.
    """

    scheduler: LRScheduler | None = None
    clip_norm: float = 0.0
    accumulate: int = 1
    precision: str = "float32"
    mix: Callable | None = None
    average: AveragedModel | None = None

    def __post_init__(self):
        half = self.precision == "float16"
        self.scaler = torch.amp.GradScaler(get_device().type, enabled=half)

    def parts_with_state(self) -> dict:
        """What changes while training and so belongs into a checkpoint, by name."""
        parts = {name: vars(self)[name] for name in ("scheduler", "average", "scaler")}
        return {name: part for name, part in parts.items() if part is not None}


class Step(NamedTuple):
    """What one step did, summed over all its samples, of all processes."""

    loss_sum: float
    correct: float
    samples: float
    grad_norm: float  # before clipping; infinite where float16 was too small for it
    lr: float
    batches: int  # of this process' data loader


def add_step(sums: Sequence[float], step: Step) -> list[float]:
    """Sums of loss, correct, samples and finite gradient norms, and how many of these.

    `sums` are those so far; the result has one more step in it.
    """
    norm = (step.grad_norm, 1) if math.isfinite(step.grad_norm) else (0.0, 0)
    return [a + b for a, b in zip(sums, (*step[:3], *norm), strict=True)]


def take_step(
    model: nn.Module,
    batches: list[tuple[torch.Tensor, torch.Tensor]],
    loss_fn: nn.Module,
    optimizer: torch.optim.Optimizer,
    device: torch.device | str,
    method: Method,
    epoch: int,
    done: int,
) -> Step:
    """One step on all samples of all batches, of all processes.

    Its loss is the sum over samples, divided by how many there are in all: so it does
    not matter how they are dealt to batches and processes. `done` batches were before
    these in the epoch.

    Raises:
        FloatingPointError: if the loss is not finite; no step is taken then.
    """
    mine = sum(len(labels) for _, labels in batches)
    samples = sum_over_processes([mine])[0]
    loss_sum = correct = 0.0
    lr = optimizer.param_groups[0]["lr"]
    optimizer.zero_grad()
    for number, (images, labels) in enumerate(batches, start=1):
        images, labels = images.to(device), labels.to(device)
        count = len(labels)  # 0 if the images only stand in, see `distributed.py`
        if method.mix is not None and count:
            images, labels = method.mix(images, labels)
        with sync_gradients(model, number == len(batches)):
            with autocast(device, method.precision):
                logits = model(images)
                loss = loss_fn(logits, labels) if count else 0 * logits.sum()
            check_finite(loss, f"epoch {epoch}, batch {done + number}")
            # W processes average their gradients: W times a share of a sum is a mean
            share = count * process_count() / samples
            method.scaler.scale(loss * share).backward()
        likeliest = labels.argmax(dim=1) if labels.ndim == 2 else labels
        loss_sum += loss.item() * count
        correct += (logits[:count].argmax(dim=1) == likeliest).sum().item()
    method.scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(model.parameters(), method.clip_norm or torch.inf)
    method.scaler.step(optimizer)
    method.scaler.update()
    if method.scheduler is not None:
        method.scheduler.step()
    if method.average is not None:
        method.average.update_parameters(model)
    sums = sum_over_processes([loss_sum, correct, mine])
    return Step(*sums, full_tensor(norm).item(), lr, len(batches))


def steps_of(
    model: nn.Module,
    dataloader: Batches,
    loss_fn: nn.Module,
    optimizer: torch.optim.Optimizer,
    device: torch.device | str,
    epoch: int,
    progress: bool,
    method: Method,
    done: int = 0,
) -> Iterator[Step]:
    """Take the steps of one pass over the data, one after the other.

    With `done` batches taken before, the data loader gives those after them.
    """
    set_training_mode(model)
    bar = tqdm(
        dataloader,
        desc=f"epoch {epoch}",
        initial=done,
        unit="batch",
        leave=False,
        disable=not progress,
        file=sys.stdout,  # one stream, so that a notebook keeps its lines in order
    )
    batches = iter(bar)
    while group := list(itertools.islice(batches, method.accumulate)):
        yield take_step(model, group, loss_fn, optimizer, device, method, epoch, done)
        done += len(group)


def train_step(
    model: nn.Module,
    dataloader: Batches,
    loss_fn: nn.Module,
    optimizer: torch.optim.Optimizer,
    device: torch.device | str,
    epoch: int = 1,
    progress: bool = False,
    method: Method | None = None,
) -> tuple[float, float]:
    """Train for one pass over the data.

    Args:
        loss_fn: maps (logits (B, K), labels (B,)) to the batch's mean loss.
        epoch: only named, in the progress bar and in errors.
        method: schedule, clipping, precision and more, see `Method`.

    Returns:
        Loss and accuracy (0 to 1), averaged over samples, as seen while training:
        each batch is scored just before the model learns from it. Where images are
        mixed, the class with the larger share counts as the right one.

    Raises:
        FloatingPointError: at the first batch whose loss is not finite.
        ValueError: if there is no batch.
    """
    sums, method = [0.0] * 5, method or Method()
    for step in steps_of(model, dataloader, loss_fn, optimizer, device, epoch, progress, method):
        sums = add_step(sums, step)
    return averages(*sums[:3])


@torch.no_grad()  # fully sharded models do not bear inference_mode
def evaluate(
    model: nn.Module,
    dataloader: Batches,
    loss_fn: nn.Module,
    device: torch.device | str,
    epoch: int = 1,
    precision: str = "float32",
) -> tuple[float, torch.Tensor]:
    """The average loss of a sample, and how often each class is true, said and right.

    Every sample of every process counts once.

    Returns:
        The loss, and counts (3, K) by class: of labels, of predictions, and of
        predictions that are right.

    Raises:
        FloatingPointError: at the first batch whose loss is not finite.
        ValueError: if there is no batch.
    """
    model.eval()
    loss_sum, counts = 0.0, 0
    for batch, (images, labels) in enumerate(dataloader, start=1):
        images, labels = images.to(device), labels.to(device)
        with autocast(device, precision):
            logits = model(images)[: len(labels)]
        said = logits.argmax(dim=1)
        by_class = [
            classes.bincount(minlength=logits.shape[1])
            for classes in (labels, said, said[said == labels])
        ]
        counts = counts + torch.stack(by_class).cpu()
        if len(labels):  # else the rest of this batch is with other processes
            loss = loss_fn(logits, labels)
            check_finite(loss, f"the evaluation after epoch {epoch}, batch {batch}")
            loss_sum += loss.item() * len(labels)
    if isinstance(counts, int):
        raise ValueError("the data loader has no batches: is its data set empty?")
    counts = torch.tensor(sum_over_processes(counts.tolist()), dtype=torch.long)
    return sum_over_processes([loss_sum])[0] / counts[0].sum().item(), counts


def test_step(
    model: nn.Module,
    dataloader: Batches,
    loss_fn: nn.Module,
    device: torch.device | str,
    epoch: int = 1,
) -> tuple[float, float]:
    """Evaluate on every sample once: (loss, accuracy 0 to 1), averaged over samples.

    Raises:
        FloatingPointError: at the first batch whose loss is not finite.
        ValueError: if there is no batch.
    """
    loss, (true, _, right) = evaluate(model, dataloader, loss_fn, device, epoch)
    return loss, right.sum().item() / true.sum().item()


def train(
    model: nn.Module,
    train_dataloader: Batches,
    test_dataloader: Batches,
    optimizer: torch.optim.Optimizer,
    loss_fn: nn.Module,
    epochs: int,
    device: torch.device | str,
    progress: bool = True,
    test_name: str = "test",
    *,
    method: Method | None = None,
    test_loss_fn: nn.Module | None = None,
    checkpoint: Checkpoint | None = None,
    on_step: Callable[[int, Step], None] | None = None,
    on_epoch: Callable[[dict[str, list]], None] | None = None,
) -> dict[str, list]:
    """Train for some epochs, evaluating after each.

    Pass validation batches as `test_dataloader` while you still choose settings.
    The order of the training batches depends on the data loader's seed and the
    epoch only, so a second run from the same start repeats the same numbers.

    Args:
        loss_fn: maps (logits (B, K), labels (B,)) to the batch's mean loss.
        progress: print a line an epoch, and a bar while it runs.
        test_name: what the second data loader holds, as that line should call it.
        method: schedule, clipping, precision and more, see `Method`.
        test_loss_fn: the loss to evaluate with, if it is another, as with smoothed
            labels.
        checkpoint: where to save after each epoch, and after the step that is being
            taken when somebody asks to stop. If the file is there already, training
            goes on from it, to the same numbers as without the stop.
        on_step: called after each step with its epoch and what it did.
        on_epoch: called after each epoch with the results so far, to draw or log them.

    Returns:
        {"train_loss": [...], "train_acc": [...], "test_loss": [...],
        "test_acc": [...], "collapsed": [...], "lr": [...], "grad_norm": [...]}, one
        entry an epoch. `collapsed` says whether all predictions were one class although
        the labels were not; `lr` is the last step's, `grad_norm` the steps' average.

    Raises:
        FloatingPointError: at the first batch whose loss is not finite.
        KeyboardInterrupt: if somebody asked to stop, once the checkpoint is saved.
        ValueError: if the checkpoint is of another run, or there is no batch.
    """
    model.to(device)
    method = method or Method()
    at, random_state = Progress(), None
    if checkpoint is not None:
        at, random_state = checkpoint.load(model, optimizer, method)
    evaluated = model if method.average is None else method.average.module
    try:
        with delayed_interrupts(checkpoint is not None) as stop_requested:
            while at.epoch <= epochs:
                set_epoch(train_dataloader, at.epoch)
                batches = remaining_batches(train_dataloader, at.batch, random_state)
                random_state = None
                steps = steps_of(
                    model, batches, loss_fn, optimizer, device, at.epoch, progress, method, at.batch
                )
                for step in steps:
                    at.batch, at.lr = at.batch + step.batches, step.lr
                    at.sums = add_step(at.sums, step)
                    if on_step is not None:
                        on_step(at.epoch, step)
                    if checkpoint is not None and any_process(stop_requested()):
                        checkpoint.save(model, optimizer, method, at)
                        raise KeyboardInterrupt(f"saved in {checkpoint.path}")
                test_loss, counts = evaluate(
                    evaluated,
                    test_dataloader,
                    test_loss_fn or loss_fn,
                    device,
                    at.epoch,
                    method.precision,
                )
                of_epoch = summary(at, test_loss, counts)
                for name, value in of_epoch.items():
                    at.results.setdefault(name, []).append(value)
                if progress:
                    print_epoch(at.epoch, epochs, of_epoch, counts[1], test_name)
                if on_epoch is not None:
                    on_epoch(at.results)
                at.epoch, at.batch, at.sums = at.epoch + 1, 0, [0.0] * 5
                if checkpoint is not None:
                    checkpoint.save(model, optimizer, method, at)
                    if any_process(stop_requested()):
                        raise KeyboardInterrupt(f"saved in {checkpoint.path}")
    finally:
        set_epoch(train_dataloader, 0)  # who looks at a batch sees that of before
    return at.results


def remaining_batches(
    dataloader: Batches, done: int, random_state: dict | None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """A data loader's batches but for those done, with the random numbers of then.

    A resumed run reads the first batches again and lets them pass.
    """
    if random_state is not None and done == 0:  # saved before the epoch began
        set_random_state(random_state)
    batches = iter(dataloader)
    for _ in range(done):
        next(batches)
    if random_state is not None and done > 0:
        set_random_state(random_state)
    return batches


def summary(at: Progress, test_loss: float, counts: torch.Tensor) -> dict:
    """An epoch's entries in the results of `train`, from `evaluate` and the steps."""
    true, said, right = counts
    train_loss, train_acc = averages(*at.sums[:3])
    norm_sum, norms = at.sums[3:]
    return {
        "train_loss": train_loss,
        "train_acc": train_acc,
        "test_loss": test_loss,
        "test_acc": right.sum().item() / true.sum().item(),
        "collapsed": (said > 0).sum().item() == 1 < (true > 0).sum().item(),
        "lr": at.lr,
        "grad_norm": norm_sum / max(norms, 1),
    }


def print_epoch(epoch: int, epochs: int, results: dict, said: torch.Tensor, test_name: str) -> None:
    """One line on an epoch, and a second one if the model has collapsed."""
    print(
        f"epoch {epoch:{len(str(epochs))}}/{epochs} | "
        f"train loss {results['train_loss']:.4f}, "
        f"accuracy {results['train_acc']:.4f} | "
        f"{test_name} loss {results['test_loss']:.4f}, "
        f"accuracy {results['test_acc']:.4f}"
    )
    if results["collapsed"]:
        print(f"  collapsed: all {said.sum()} {test_name} images are called class {said.argmax()}")


@torch.no_grad()
def predict(
    model: nn.Module, dataloader: Batches, device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor]:
    """The model's outputs (M, K) and the labels (M,) for all M samples, on the CPU."""
    model.to(device).eval()
    outputs, all_labels = [], []
    for images, labels in dataloader:
        outputs.append(model(images.to(device)).cpu())
        all_labels.append(labels)
    return torch.cat(outputs), torch.cat(all_labels)


def confusion_matrix(
    predictions: torch.Tensor, labels: torch.Tensor, num_classes: int
) -> torch.Tensor:
    """Counts (K, K): row = true class, column = predicted class."""
    pairs = labels * num_classes + predictions
    return pairs.bincount(minlength=num_classes**2).view(num_classes, num_classes)


def extract_features(
    backbone: nn.Module, dataloader: Batches, device: torch.device | str
) -> TensorDataset:
    """What a frozen backbone makes of each image: features (M, D) and labels (M,).

    A frozen backbone gives the same features in every epoch, as long as the
    transform is deterministic; a head can then train on these instead of images.
    """
    return TensorDataset(*predict(backbone, dataloader, device))
