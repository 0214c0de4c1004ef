"""Training and evaluation loops. Every metric is an average over samples.

Averages over batches are wrong where batches differ in size: 225 images in batches
of 32 leave one image alone in the last batch, where it would weigh as much as 32.
"""

import itertools
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import TensorDataset
from tqdm import tqdm

from going_modular.training.checkpoints import Checkpoint, set_random_state
from going_modular.training.distributed import (
    any_process,
    full_tensor,
    process_count,
    sum_over_processes,
    sync_gradients,
)
from going_modular.training.feature_cache import keep_features
from going_modular.training.interrupts import delayed_interrupts
from going_modular.training.progress import Progress, Step, StepOnDevice, Totals, check_finite, zero
from going_modular.utils import autocast, get_device

Batch = tuple[torch.Tensor, torch.Tensor]
Batches = Iterable[Batch]


def set_training_mode(model: nn.Module) -> None:
    """`model.train()`, except that frozen parts stay in evaluation mode.

    Dropout in a frozen backbone would only blur features that nothing can adapt to it,
    and BatchNorm would go on changing its averages. A layer without parameters, such as
    dropout, follows the parameters of the module that holds it: in a ViT, the dropout
    after the position embedding follows the position embedding.
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


def reads_are_free(device: torch.device | str) -> bool:
    """True on a CPU. To read a number from a GPU, the CPU waits for all of its work."""
    return torch.device(device).type == "cpu"


@dataclass
class Method:
    """How a step is taken, beyond optimizer and loss; the defaults are a plain step.

    Args:
        scheduler: sets the learning rate of each step. A step that "float16" skips
            because of an overflow counts too.
        clip_norm: a gradient longer than this is shortened to it. Its length is the norm
            over all parameters. 0 never clips.
        accumulate: how many batches of the data loader make up one step. Their
            gradients are added up, so that the step is that of one large batch, with
            only one small batch at a time in memory.
        precision: see `utils.autocast`.
        mix: MixUp or CutMix, (images, labels (B,)) -> (images, shares (B, K)). It mixes
            all images of a step, accumulated or not. With several processes, each of
            them mixes its own images.
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

    def stateful_parts(self) -> dict:
        """What changes during training and so belongs in a checkpoint, by name."""
        parts = {"scheduler": self.scheduler, "average": self.average, "scaler": self.scaler}
        return {name: part for name, part in parts.items() if part is not None}


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    """Images and labels on the device. A GPU copies pinned memory while the CPU goes on."""
    overlap = torch.device(device).type == "cuda"
    images, labels = batch
    return images.to(device, non_blocking=overlap), labels.to(device, non_blocking=overlap)


def most_likely(labels: torch.Tensor) -> torch.Tensor:
    """Labels (B,) as they are; of shares (B, K), the class with the largest."""
    return labels.argmax(dim=1) if labels.ndim == 2 else labels


def mix_parts(mix: Callable, parts: list[Batch]) -> list[Batch]:
    """Mix the images of all parts of a batch as if they were not in parts.

    A part without labels only stands in, see `training.distributed`; it stays as it is.
    """
    counts = [labels.shape[0] for _, labels in parts]
    if not any(counts):
        return parts
    images = torch.cat([images[:n] for (images, _), n in zip(parts, counts, strict=True)])
    labels = torch.cat([labels for _, labels in parts])
    images, labels = mix(images, labels)
    mixed = zip(images.split(counts), labels.split(counts), strict=True)
    return [new if n else old for old, new, n in zip(parts, mixed, counts, strict=True)]


def take_step(
    model: nn.Module,
    batches: list[Batch],
    loss_fn: nn.Module,
    optimizer: torch.optim.Optimizer,
    device: torch.device | str,
    method: Method,
    epoch: int = 1,
    done: int = 0,
) -> StepOnDevice:
    """One step on all samples of all batches, of all processes.

    Its loss is the sum over samples, divided by how many there are in all: so it does
    not matter how they are dealt to batches and processes.

    Args:
        epoch, done: the epoch, and how many of its batches came before, for an error.

    Raises:
        FloatingPointError: on a CPU, if the loss is not finite; no step is taken then.
    """
    batches = [to_device(batch, device) for batch in batches]
    if method.mix is not None:
        batches = mix_parts(method.mix, batches)
    lr = optimizer.param_groups[0]["lr"]
    samples = sum_over_processes(zero(device) + sum(labels.shape[0] for _, labels in batches))
    loss_sum, correct = zero(device), zero(device)

    optimizer.zero_grad()
    for number, (images, labels) in enumerate(batches, start=1):
        count = labels.shape[0]  # 0 for images that only stand in
        with sync_gradients(model, number == len(batches)):
            with autocast(device, method.precision):
                logits = model(images)[:count]
                loss = loss_fn(logits, labels) if count else logits.sum()
            if reads_are_free(device):
                check_finite(loss, f"epoch {epoch}, batch {done + number}")
            # W processes average their gradients: W times a share of a sum is a mean
            share = (zero(device) + count * process_count()) / samples
            method.scaler.scale(loss * share.to(loss.dtype)).backward()
        loss_sum += loss.detach().to(loss_sum.dtype) * count
        correct += (logits.argmax(dim=1) == most_likely(labels)).sum()
    method.scaler.unscale_(optimizer)
    norm = nn.utils.get_total_norm(p.grad for p in model.parameters() if p.grad is not None)
    if method.clip_norm:
        nn.utils.clip_grads_with_norm_(model.parameters(), method.clip_norm, norm)
    method.scaler.step(optimizer)
    method.scaler.update()

    if method.scheduler is not None:
        method.scheduler.step()
    if method.average is not None:
        method.average.update_parameters(model)
    loss_sum, correct = sum_over_processes(torch.stack([loss_sum, correct])).unbind()
    norm = full_tensor(norm).to(samples.dtype)
    return StepOnDevice(loss_sum, correct, samples, norm, lr, len(batches))


def batches_by_step(
    dataloader: Batches, size: int, epoch: int, done: int, progress: bool
) -> Iterator[list[Batch]]:
    """The batches of each step, `size` of them, with a progress bar if it is wanted."""
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
    while group := list(itertools.islice(batches, size)):
        yield group


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
        FloatingPointError: if the loss is not finite, see `train`.
        ValueError: if there is no batch.
    """
    method = method or Method()
    state = Progress(Totals.zeros(device), epoch)
    set_training_mode(model)
    for batches in batches_by_step(dataloader, method.accumulate, epoch, 0, progress):
        step = take_step(model, batches, loss_fn, optimizer, device, method, epoch, state.batch)
        state.add(step)
    averages = state.averages()
    return averages["loss"], averages["acc"]


@torch.no_grad()  # not inference_mode, in which fully sharded models fail
def evaluate(
    model: nn.Module,
    dataloader: Batches,
    loss_fn: nn.Module,
    device: torch.device | str,
    epoch: int = 1,
    precision: str = "float32",
) -> tuple[float, torch.Tensor]:
    """The average loss of a sample, and counts for each class.

    Every sample of every process counts once.

    Returns:
        The loss, and counts (3, K): how often each class is the label, how often it is
        predicted, and how often both.

    Raises:
        FloatingPointError: if the loss is not finite.
        ValueError: if there is no batch.
    """
    model.eval()
    loss_sum, counts = zero(device), None
    for batch, (images, labels) in enumerate(dataloader, start=1):
        images, labels = to_device((images, labels), device)
        count = labels.shape[0]
        with autocast(device, precision):
            logits = model(images)[:count]
        K = logits.shape[1]
        true, predicted = F.one_hot(labels, K), F.one_hot(logits.argmax(dim=1), K)
        by_class = torch.stack([true, predicted, true * predicted]).sum(dim=1)  # (3, K)
        counts = by_class if counts is None else counts + by_class
        if count:  # else the samples of this batch are with other processes
            loss = loss_fn(logits.float(), labels)  # as autocast would
            if reads_are_free(device):
                check_finite(loss, f"the evaluation after epoch {epoch}, batch {batch}")
            loss_sum += loss.to(loss_sum.dtype) * count
    if counts is None:
        raise ValueError("the data loader has no batches: is its data set empty?")
    counts = sum_over_processes(counts).cpu()
    loss_sum = sum_over_processes(loss_sum)
    check_finite(loss_sum, f"the evaluation after epoch {epoch}")
    return loss_sum.item() / counts[0].sum().item(), counts


def test_step(
    model: nn.Module,
    dataloader: Batches,
    loss_fn: nn.Module,
    device: torch.device | str,
    epoch: int = 1,
) -> tuple[float, float]:
    """Evaluate on every sample once: (loss, accuracy 0 to 1), averaged over samples.

    Raises:
        FloatingPointError: if the loss is not finite.
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
        FloatingPointError: if the loss is not finite. A CPU stops at the first such
            batch, before the model learns from it. A GPU goes on until its sums are
            read: after `progress.CHECK_EVERY` batches, or at the end of the epoch. No
            checkpoint is saved in between.
        KeyboardInterrupt: if somebody asked to stop, once the checkpoint is saved.
        ValueError: if the checkpoint is of another run, or there is no batch.
    """
    model.to(device)
    method = method or Method()
    evaluated = model if method.average is None else method.average.module
    state, random_state = Progress(Totals.zeros(device)), None
    if checkpoint is not None:
        random_state = checkpoint.load(model, optimizer, method, state)
        if progress and random_state is not None:
            more = f", and {state.batch} batches of the next" if state.batch else ""
            print(
                f"going on from {checkpoint.path}: {state.epoch - 1} of {epochs} epochs "
                f"are done{more}"
            )

    with (
        reset_epoch_at_exit(train_dataloader),
        delayed_interrupts(checkpoint is not None) as stop_requested,
    ):
        while (epoch := state.epoch) <= epochs:
            set_training_mode(model)
            set_epoch(train_dataloader, epoch)
            rest = remaining_batches(train_dataloader, state.batch, random_state)
            random_state = None
            for batches in batches_by_step(rest, method.accumulate, epoch, state.batch, progress):
                step = take_step(
                    model, batches, loss_fn, optimizer, device, method, epoch, state.batch
                )
                state.add(step)
                if on_step is not None:
                    on_step(epoch, step.read())
                if checkpoint is not None and any_process(stop_requested()):
                    checkpoint.save(model, optimizer, method, state)
                    raise KeyboardInterrupt(f"saved in {checkpoint.path}")

            averages = state.averages()
            test_loss, counts = evaluate(
                evaluated, test_dataloader, test_loss_fn or loss_fn, device, epoch, method.precision
            )
            results = summary(averages, test_loss, counts, state.lr)
            state.next_epoch(results)
            if progress:
                print_epoch(epoch, epochs, results, counts[1], test_name)
            if on_epoch is not None:
                on_epoch(state.results)
            if checkpoint is not None:
                checkpoint.save(model, optimizer, method, state)
                if any_process(stop_requested()):
                    raise KeyboardInterrupt(f"saved in {checkpoint.path}")
    return state.results


@contextmanager
def reset_epoch_at_exit(dataloader: Batches) -> Iterator[None]:
    """Whatever happens, set the order of batches back to that of a new data loader."""
    try:
        yield
    finally:
        set_epoch(dataloader, 0)


def set_epoch(dataloader: object, epoch: int) -> None:
    """Set the epoch of a data loader's sampler and dataset, where they have one.

    Any other collection of batches has no epoch, and nothing happens.
    """
    batch_sampler = getattr(dataloader, "batch_sampler", None)
    sampler: Any = getattr(batch_sampler, "sampler", None)
    dataset: Any = getattr(dataloader, "dataset", None)
    for part in (sampler, dataset):
        if hasattr(part, "set_epoch"):
            part.set_epoch(epoch)


def remaining_batches(dataloader: Batches, done: int, random_state: dict | None) -> Iterator[Batch]:
    """A data loader's batches without the first `done`.

    A resumed run reads these again and drops them. Then it sets all random generators
    to the state in which they were saved.
    """
    if random_state is not None and done == 0:  # saved before the epoch began
        set_random_state(random_state)
    batches = iter(dataloader)
    for _ in range(done):
        next(batches)
    if random_state is not None and done > 0:
        set_random_state(random_state)
    return batches


def summary(averages: dict, test_loss: float, counts: torch.Tensor, lr: float) -> dict:
    """An epoch's entries in the results of `train`, from its steps and `evaluate`."""
    true, predicted, right = counts
    return {
        "train_loss": averages["loss"],
        "train_acc": averages["acc"],
        "test_loss": test_loss,
        "test_acc": right.sum().item() / true.sum().item(),
        "collapsed": (predicted > 0).sum().item() == 1 < (true > 0).sum().item(),
        "lr": lr,
        "grad_norm": averages["grad_norm"],
    }


def print_epoch(
    epoch: int, epochs: int, results: dict, predicted: torch.Tensor, test_name: str
) -> None:
    """One line on an epoch, and a second one if the model has collapsed."""
    print(
        f"epoch {epoch:{len(str(epochs))}}/{epochs} | "
        f"train loss {results['train_loss']:.4f}, "
        f"accuracy {results['train_acc']:.4f} | "
        f"{test_name} loss {results['test_loss']:.4f}, "
        f"accuracy {results['test_acc']:.4f}"
    )
    if results["collapsed"]:
        print(
            f"  collapsed: all {predicted.sum()} {test_name} images are called "
            f"class {predicted.argmax()}"
        )


@torch.no_grad()
def predict(
    model: nn.Module, dataloader: Batches, device: torch.device | str, precision: str = "float32"
) -> tuple[torch.Tensor, torch.Tensor]:
    """The model's outputs (M, K) and the labels (M,) for all M samples, on the CPU.

    Args:
        precision: see `utils.autocast`, which decides the outputs' type as well.
    """
    model.to(device).eval()
    outputs, all_labels = [], []
    for images, labels in dataloader:
        with autocast(device, precision):
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
    backbone: nn.Module,
    dataloader: Batches,
    device: torch.device | str,
    *,
    cache: str | Path | None = None,
    precision: str = "float32",
) -> TensorDataset:
    """What a frozen backbone makes of each image: features (M, D) and labels (M,).

    A frozen backbone gives the same features in every epoch, as long as the
    transform is deterministic; a head can then train on these instead of images.

    Args:
        cache: a folder that keeps the features for the next run, see `feature_cache`. It
            needs photos in their order, and a transform without random numbers. A line
            says that it is used, and Python's `logging` how many features were computed. If
            the images are in memory, or code is not from torch, torchvision or this package,
            a line says that the folder is not used.
        precision: see `utils.autocast`. The features themselves are float32.

    Raises:
        ValueError: with `cache`, if the loader shuffles or the transform is random.
    """

    def compute(batches: Batches) -> tuple[torch.Tensor, torch.Tensor]:
        features, labels = predict(backbone, batches, device, precision)
        return features.float(), labels

    # One draw, however many data loaders the cache needs: what follows draws the same
    seed = int(torch.randint(2**62, (), device="cpu"))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if cache is None:
            return TensorDataset(*compute(dataloader))
        products = torch.get_float32_matmul_precision()
        setting = [precision, products, torch.device(device).type]
        return TensorDataset(*keep_features(compute, backbone, dataloader, setting, cache))
