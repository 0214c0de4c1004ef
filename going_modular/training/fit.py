"""Train a model by a recipe, on as many processes as there are."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset, Subset, TensorDataset
from torchvision.transforms import v2

from going_modular import data_setup, engine
from going_modular.data_setup import PhotoFolder
from going_modular.images.folders import check_images, damaged_error, find_damaged
from going_modular.images.transforms import Normalization, Transform
from going_modular.model_builder import ViT
from going_modular.training import memory, recipes
from going_modular.training.distributed import (
    distribute,
    full_state_dict,
    gather_objects,
    print_once,
    process_count,
    process_rank,
    processes_here,
    shard_dataloader,
)
from going_modular.training.recipes import Recipe
from going_modular.vit.config import check_divisible

MAX_IN_MEMORY = 4 * 2**30  # bytes on a machine; see `read_photos`
Photos = PhotoFolder | Subset  # a folder, or a part of one


def fit(
    model: nn.Module,
    recipe: Recipe,
    train_images: Dataset,
    test_images: Dataset,
    num_classes: int,
    *,
    device: torch.device,
    seed: int = 42,
    accumulate: int = 1,
    precision: str = "float32",
    sharding: str = "ddp",
    num_workers: int = 0,
    **options,
) -> tuple[dict[str, torch.Tensor], dict[str, list]]:
    """Train a model by a recipe, on as many processes as there are.

    Args:
        train_images: (tensor, label), changed as the recipe says (`augment`).
        test_images: (tensor, label), as the model is evaluated with.
        seed: with the epoch, decides the order of the training images.
        accumulate, precision: see `engine.Method`.
        sharding: see `distributed.distribute`.
        options: of `engine.train`.

    Returns:
        The model's trained tensors by name, averaged if the recipe says so (of a
        sharded model on process 0 only), and what `engine.train` returns.

    Raises:
        ValueError: if the recipe's batch cannot be accumulated so, its warm-up is
            longer than the training, or weights cannot be sharded: averaged ones, and
            those of SGD without momentum.
        MemoryError: if a GPU has too little for such batches; it says what would fit.
        ChildProcessError: if a worker that reads images dies.
        FloatingPointError, KeyboardInterrupt: see `engine.train`.
    """
    check_divisible("batch_size", recipe.batch_size, "accumulate", accumulate)
    if device.type == "cuda" and isinstance(model, ViT):
        torch.cuda.empty_cache()  # what earlier trainings left counts as used
        memory.check_memory(
            model.config,
            recipe.batch_size,
            torch.cuda.mem_get_info(device)[0],
            accumulate,
            processes=process_count(),
            sharding=sharding,
            precision=precision,
            averaged=bool(recipe.average_decay),
        )
    if recipe.average_decay and sharding == "fsdp":
        raise ValueError(
            'averaged weights cannot be sharded: set average_decay to 0, or use sharding="ddp"'
        )
    if recipe.optimizer == "sgd" and not recipe.momentum and sharding == "fsdp":
        raise ValueError(
            "SGD without momentum keeps no state, and PyTorch cannot save that in shards: set "
            'a momentum, or use sharding="ddp"'
        )
    train_loader, test_loader = (
        shard_dataloader(
            data_setup.create_dataloader(
                images,
                recipe.batch_size // accumulate,
                shuffle=shuffle,
                num_workers=num_workers,
                seed=seed,
            )
        )
        for images, shuffle in ((train_images, True), (test_images, False))
    )
    steps_per_epoch = -(-len(train_loader) // accumulate)
    epochs = recipe.epochs_of(steps_per_epoch)
    model.to(device)
    average = recipes.build_average(model, recipe)
    model = distribute(model, sharding)
    optimizer = recipes.build_optimizer(model, recipe)
    try:
        results = engine.train(
            model,
            train_loader,
            test_loader,
            optimizer,
            nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing),
            epochs,
            device,
            method=engine.Method(
                scheduler=recipes.build_scheduler(optimizer, recipe, epochs * steps_per_epoch),
                clip_norm=recipe.clip_norm,
                accumulate=accumulate,
                precision=precision,
                mix=recipes.build_mix(recipe, num_classes),
                average=average,
            ),
            test_loss_fn=nn.CrossEntropyLoss(),
            **options,
        )
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        reason = str(error).splitlines()[0].rstrip(".")
        raise ChildProcessError(
            f"a process that reads images has ended: {reason}. The last "
            "checkpoint is as it was. Give the same command again, with --workers 0 if that "
            "happens again"
        ) from error
    trained = model if average is None else average.module
    return full_state_dict(trained), results


def augment(
    images: Dataset,
    recipe: Recipe,
    size: int | tuple[int, int],
    seed: int = 42,
    normalization: Normalization = Normalization(),
) -> data_setup.Augmented:
    """A data set's images, changed at random as the recipe says, at a size.

    Args:
        images: (image, label) with Pillow images or uint8 tensors.
        size: pixels of a square, or (height, width).
        seed: with epoch and index, decides each change.
    """
    transform = recipes.training_transform(recipe, size, *normalization)
    return data_setup.Augmented(images, transform, seed)


def resize_for_crops(size: int | tuple[int, int]) -> Transform:
    """Pillow image -> uint8 tensor (3, 1.5 H, 1.5 W), to take random crops of H x W from.

    An image of other proportions is squeezed. Random crops change them anyway. `mini`
    learned as much from images that kept theirs: in 5 folds within the 225 training
    photos, seeds 0 to 2, it was right 464 of 675 times either way (in bfloat16).
    """
    H, W = (size, size) if isinstance(size, int) else size
    return v2.Compose([v2.Resize((H * 3 // 2, W * 3 // 2)), v2.PILToTensor()])


def for_crops(photos: PhotoFolder, size: int | tuple[int, int]) -> PhotoFolder:
    """The same photos, resized by `resize_for_crops`.

    A large JPEG is not decoded at its full size, but so that both sides keep at least twice
    the pixels that they will be resized to.
    """
    longest = size if isinstance(size, int) else max(size)
    return photos.with_transform(resize_for_crops(size), least=3 * longest)


def load_resized(folder: str | Path, size: int | tuple[int, int]) -> Photos | TensorDataset:
    """A folder's images for training, through `for_crops`; see `read_photos`."""
    return read_photos([for_crops(PhotoFolder(folder), size)])[0]


def read_photos(parts: Sequence[Photos]) -> list[Photos | TensorDataset]:
    """Check all images, and keep the parts in memory that fit into `MAX_IN_MEMORY`.

    Images that are kept are decoded once. The others are checked first, all of them, and
    read from disk again in every epoch; a line says so. Processes that `torchrun` started
    share memory and checks.

    Args:
        parts: with transforms that give all images one size.

    Raises:
        ValueError: if images of any part are damaged. The message names them all.
    """
    room = MAX_IN_MEMORY / processes_here()
    kept = []
    for part in parts:
        size = bytes_in_memory(part)
        kept.append(size <= room)
        if kept[-1]:
            room -= size
        else:
            print_once(
                f"{len(part)} images of {folder_of(part).root} would take {size / 1e9:.1f} GB of "
                f"memory, more than the {room / 1e9:.1f} GB that are left for images: they are "
                "checked now, and read from disk again in every epoch"
            )
    try:
        read = [
            data_setup.stack_images(part) if keep else part
            for part, keep in zip(parts, kept, strict=True)
        ]
    except (OSError, ValueError):
        check_images(files_of(parts))
        raise
    on_disk = files_of([part for part, keep in zip(parts, kept, strict=True) if not keep])
    share = on_disk[process_rank() :: process_count()]
    found = gather_objects(find_damaged(share, progress=process_rank() == 0))
    if damaged := sorted(name for names in found for name in names):
        raise damaged_error(damaged)
    return read


def folder_of(part: Photos) -> PhotoFolder:
    """The folder that a part belongs to."""
    folder = part.dataset if isinstance(part, Subset) else part
    return folder  # type: ignore[return-value]  # Subset does not declare what it is of


def files_of(parts: Sequence[Photos]) -> list[str]:
    """The files of all parts, each once."""
    return list(dict.fromkeys(path for part in parts for path in data_setup.paths_of(part)))


def bytes_in_memory(part: Photos) -> int:
    """The memory that a part's transformed images take: their number times that of one."""
    transform = folder_of(part).transform
    return len(part) * transform(Image.new("RGB", (1, 1))).nbytes
