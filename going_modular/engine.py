"""Training and evaluation loops. Every metric is an average over samples.

Averages over batches are wrong where batches differ in size: 225 images in batches
of 32 leave one image alone in the last batch, where it would weigh as much as 32.
"""

import sys
from collections.abc import Iterable

import torch
from torch import nn
from torch.utils.data import TensorDataset
from tqdm import tqdm

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


def averages(loss_sum: float, correct: int, seen: int) -> tuple[float, float]:
    """(loss, accuracy) of one sample on average; `ValueError` if there was none."""
    if not seen:
        raise ValueError("the data loader has no batches: is its data set empty?")
    return loss_sum / seen, correct / seen


def train_step(
    model: nn.Module,
    dataloader: Batches,
    loss_fn: nn.Module,
    optimizer: torch.optim.Optimizer,
    device: torch.device | str,
    epoch: int = 1,
    progress: bool = False,
) -> tuple[float, float]:
    """Train for one pass over the data.

    Args:
        loss_fn: maps (logits (B, K), labels (B,)) to the batch's mean loss.
        epoch: only named, in the progress bar and in errors.

    Returns:
        Loss and accuracy (0 to 1), averaged over samples, as seen while training:
        each batch is scored just before the model learns from it.

    Raises:
        FloatingPointError: at the first batch whose loss is not finite.
    """
    set_training_mode(model)
    loss_sum, correct, seen = 0.0, 0, 0
    batches = tqdm(
        dataloader,
        desc=f"epoch {epoch}",
        unit="batch",
        leave=False,
        disable=not progress,
        file=sys.stdout,  # one stream, so that a notebook keeps its lines in order
    )
    for batch, (images, labels) in enumerate(batches, start=1):
        images, labels = images.to(device), labels.to(device)
        logits = model(images)
        loss = loss_fn(logits, labels)
        check_finite(loss, f"epoch {epoch}, batch {batch}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss_sum += loss.item() * len(labels)
        correct += (logits.argmax(dim=1) == labels).sum().item()
        seen += len(labels)
    return averages(loss_sum, correct, seen)


@torch.inference_mode()
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
    """
    model.eval()
    loss_sum, correct, seen = 0.0, 0, 0
    for batch, (images, labels) in enumerate(dataloader, start=1):
        images, labels = images.to(device), labels.to(device)
        logits = model(images)
        loss = loss_fn(logits, labels)
        check_finite(loss, f"the evaluation after epoch {epoch}, batch {batch}")
        loss_sum += loss.item() * len(labels)
        correct += (logits.argmax(dim=1) == labels).sum().item()
        seen += len(labels)
    return averages(loss_sum, correct, seen)


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
) -> dict[str, list[float]]:
    """Train for some epochs, evaluating after each.

    Pass validation batches as `test_dataloader` while you still choose settings.
    The order of the training batches depends on the data loader's seed and the
    epoch only, so a second run from the same start repeats the same numbers.

    Args:
        loss_fn: maps (logits (B, K), labels (B,)) to the batch's mean loss.
        progress: print a line an epoch, and a bar while it runs.
        test_name: what the second data loader holds, as that line should call it.

    Returns:
        {"train_loss": [...], "train_acc": [...], "test_loss": [...],
        "test_acc": [...]}, one entry an epoch.

    Raises:
        FloatingPointError: at the first batch whose loss is not finite.
    """
    model.to(device)
    results = {"train_loss": [], "train_acc": [], "test_loss": [], "test_acc": []}
    set_epoch = getattr(
        getattr(train_dataloader, "sampler", None), "set_epoch", lambda epoch: None
    )
    try:
        for epoch in range(1, epochs + 1):
            set_epoch(epoch)
            train_loss, train_acc = train_step(
                model, train_dataloader, loss_fn, optimizer, device, epoch, progress
            )
            test_loss, test_acc = test_step(
                model, test_dataloader, loss_fn, device, epoch
            )
            results["train_loss"].append(train_loss)
            results["train_acc"].append(train_acc)
            results["test_loss"].append(test_loss)
            results["test_acc"].append(test_acc)
            if progress:
                print(
                    f"epoch {epoch:{len(str(epochs))}}/{epochs} | "
                    f"train loss {train_loss:.4f}, accuracy {train_acc:.4f} | "
                    f"{test_name} loss {test_loss:.4f}, accuracy {test_acc:.4f}"
                )
    finally:
        set_epoch(0)  # whoever looks at a batch afterwards sees the same as before
    return results


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
