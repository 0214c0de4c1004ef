"""Train a model by a recipe, on as many processes as there are."""

from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Dataset
from torchvision.transforms import v2

from going_modular import data_setup, engine
from going_modular.images import transforms
from going_modular.model_builder import ViT
from going_modular.training import memory, recipes
from going_modular.training.distributed import (
    distribute,
    full_state_dict,
    process_count,
    shard_dataloader,
)
from going_modular.training.recipes import Recipe
from going_modular.vit.config import check_divisible

MAX_IN_MEMORY = 5000  # so many images are kept in memory instead of read in every epoch


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
            longer than the training, or weights are to be averaged in shards.
        MemoryError: if a GPU has too little for such batches; it says what would fit.
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
        )
    if recipe.average_decay and sharding == "fsdp":
        raise ValueError(
            'averaged weights cannot be sharded: set average_decay to 0, or use sharding="ddp"'
        )
    train_loader, test_loader = (
        shard_dataloader(
            data_setup.create_dataloader(
                images,
                recipe.batch_size // accumulate,
                shuffle=images is train_images,
                num_workers=num_workers,
                seed=seed,
            )
        )
        for images in (train_images, test_images)
    )
    steps_per_epoch = -(-len(train_loader) // accumulate)
    epochs = recipe.epochs_of(steps_per_epoch)
    model.to(device)
    average = recipes.build_average(model, recipe)
    model = distribute(model, sharding)
    optimizer = recipes.build_optimizer(model, recipe)
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
    trained = model if average is None else average.module
    return full_state_dict(trained), results


def augment(
    images: Dataset, recipe: Recipe, size: int, seed: int = 42, **colors
) -> data_setup.Augmented:
    """A data set's images as the recipe changes them, at a size.

    Args:
        images: (image, label) with Pillow images or uint8 tensors.
        seed: with epoch and index, decides each change.
        colors: `mean` and `std`, see `recipes.training_transform`.
    """
    transform = recipes.training_transform(recipe, size, **colors)
    return data_setup.Augmented(images, transform, seed)


def shrinking(size: int) -> transforms.Transform:
    """Pillow image -> uint8 tensor (3, 1.5 size, 1.5 size), to take crops from."""
    length = size * 3 // 2
    return v2.Compose([v2.Resize((length, length)), v2.PILToTensor()])


def load_resized(folder: str | Path, size: int) -> Dataset:
    """A folder's images, in memory if they are few, as squares of 1.5 times `size`.

    Training crops at least a part of them, so the load_resized ones are sharp enough.
    """
    images = data_setup.PhotoFolder(folder)
    if len(images) > MAX_IN_MEMORY:
        return images
    images.transform = shrinking(size)
    return data_setup.load_into_memory(images)
