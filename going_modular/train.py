"""Train a ViT on folders of images: `python -m going_modular.train --help`."""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch
from torch import nn
from torch.distributed.elastic.multiprocessing.errors import record
from torch.utils.data import Dataset, Subset
from torchvision.transforms import v2

from going_modular import data_setup, engine, recipes, scaling
from going_modular.checkpoints import Checkpoint
from going_modular.classifier_file import write_vit
from going_modular.distributed import (
    SHARDINGS,
    distribute,
    process_count,
    process_rank,
    processes,
    share_of,
    whole_tensors,
)
from going_modular.model_builder import VIT_CONFIGS, ViT
from going_modular.recipes import MINI, RECIPES, Recipe
from going_modular.utils import (
    PRECISIONS,
    best_precision,
    count_parameters,
    describe_environment,
    repository_path,
    set_seeds,
    written_whole,
)
from going_modular.vit_config import check_divisible
from going_modular.weights import evaluation_transform, load_vit

MODELS = {"ViT-Mini/12": MINI, **VIT_CONFIGS}
FEW = 5000  # so many images are kept in memory instead of read in every epoch


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
        train_images: (tensor, label), changed as the recipe says (`changed_images`).
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
        scaling.check_memory(
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
            "averaged weights cannot be sharded: set average_decay to 0, or use "
            'sharding="ddp"'
        )
    train_loader, test_loader = (
        share_of(
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
            scheduler=recipes.build_scheduler(
                optimizer, recipe, epochs * steps_per_epoch
            ),
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
    return whole_tensors(trained), results


def changed_images(
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


def shrinking(size: int) -> data_setup.Transform:
    """Pillow image -> uint8 tensor (3, 1.5 size, 1.5 size), to take crops from."""
    length = size * 3 // 2
    return v2.Compose([v2.Resize((length, length)), v2.PILToTensor()])


def shrunk(folder: str | Path, size: int) -> Dataset:
    """A folder's images, in memory if they are few, as squares of 1.5 times `size`.

    Training crops at least a part of them, so the shrunk ones are sharp enough.
    """
    images = data_setup.PhotoFolder(folder)
    if len(images) > FEW:
        return images
    images.transform = shrinking(size)
    return data_setup.load_into_memory(images)


class Log:
    """Epochs as lines of `log.jsonl`, and in TensorBoard if that is installed."""

    def __init__(self, folder: Path):
        self.path, self.began = folder / "log.jsonl", time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(folder)
        except ImportError:
            self.board = None

    def on_epoch(self, results: dict[str, list]) -> None:
        """Write the epoch that has ended.

        Lines of this epoch and later ones, from a run that was killed before it saved
        them, are dropped.
        """
        epoch = len(results["train_loss"])
        entry = {
            "epoch": epoch,
            **{name: values[-1] for name, values in results.items()},
        }
        entry["seconds"] = round(time.monotonic() - self.began, 2)
        lines = self.path.read_text().splitlines() if self.path.is_file() else []
        lines = [line for line in lines if json.loads(line)["epoch"] < epoch]
        with written_whole(self.path) as unfinished:
            unfinished.write_text("\n".join([*lines, json.dumps(entry)]) + "\n")
        if self.board is not None:
            for name, value in entry.items():
                self.board.add_scalar(name, value, epoch)
            self.board.flush()
        self.began = time.monotonic()


def build_vit(options: argparse.Namespace, recipe: Recipe, num_classes: int) -> ViT:
    """The ViT that the options ask for, new or from a file of weights."""
    config = {
        "num_classes": num_classes,
        "dropout": recipe.dropout,
        "stochastic_depth": recipe.stochastic_depth,
    }
    for name in ("image_size", "patch_size", "pool"):
        if (value := getattr(options, name)) is not None:
            config[name] = value
    set_seeds(options.seed)
    if options.weights:
        return load_vit(options.weights, **config)
    return recipes.start_as(recipe.start, ViT(replace(MODELS[options.model], **config)))


def run(options: argparse.Namespace, device: torch.device) -> None:
    """What the command does, on each process."""
    recipe = recipe_of(options)
    if options.data:
        train_dir, test_dir = options.data / "train", options.data / "test"
        source = str(options.data)
    else:
        train_dir, test_dir, _, source = data_setup.get_food_images()
    class_names = data_setup.PhotoFolder(train_dir).classes
    vit = build_vit(options, recipe, len(class_names))
    size = vit.config.image_size
    train_images = shrunk(train_dir, size)
    test_name, transform = "test", evaluation_transform(size)
    if options.hold_out:
        test_name = "held-out"
        kept, held_out = data_setup.split_train_validation(
            train_dir, options.hold_out, transform=transform
        )
        train_images, test_images = Subset(train_images, kept.indices), held_out
    else:
        test_images = data_setup.PhotoFolder(test_dir, transform)
        data_setup.check_same_classes(data_setup.PhotoFolder(train_dir), test_images)
    if len(test_images) <= FEW:
        test_images = data_setup.load_into_memory(test_images)

    name = f"{options.model}-{options.recipe}-{options.seed}".replace("/", "-")
    folder = options.output or repository_path(f"build/training/{name}")
    precision = options.precision or best_precision(device)
    is_first = process_rank() == 0
    log = Log(folder) if is_first else None
    if is_first:
        print(f"{describe_environment()}\nImages: {source}")
        print(
            f"{len(train_images)} to train on, {len(test_images)} {test_name} images, "
            f"{len(class_names)} classes; {count_parameters(vit):,} parameters"
        )
    set_seeds(options.seed + process_rank())  # dropout differs between processes
    tensors, results = fit(
        vit,
        recipe,
        changed_images(train_images, recipe, size, options.seed),
        test_images,
        len(class_names),
        device=device,
        seed=options.seed,
        accumulate=options.accumulate,
        precision=precision,
        sharding=options.sharding,
        num_workers=options.workers,
        progress=is_first,
        test_name=test_name,
        checkpoint=Checkpoint(
            folder / "checkpoint.pt",
            {
                "recipe": asdict(recipe),
                "config": asdict(vit.config),
                "class_names": class_names,
                "images": str(train_dir),
                "hold_out": options.hold_out,
                "weights": str(options.weights),
                "seed": options.seed,
                "accumulate": options.accumulate,
                "precision": precision,
                "sharding": options.sharding,
            },
        ),
        on_epoch=log and log.on_epoch,
    )
    if is_first:
        vit = ViT(vit.config)
        vit.load_state_dict(tensors)
        weights = write_vit(vit, folder / "vit.safetensors", class_names=class_names)
        accuracy, count = results["test_acc"][-1], len(test_images)
        print(
            f"{test_name} accuracy {accuracy:.4f} ({round(accuracy * count)} of "
            f"{count}), loss {results['test_loss'][-1]:.4f} · weights: {weights}"
        )


def recipe_of(options: argparse.Namespace) -> Recipe:
    """The named recipe, with the settings that the options change."""
    changes = {
        each.name: getattr(options, each.name)
        for each in fields(Recipe)
        if getattr(options, each.name, None) is not None
    }
    if changes.keys() & {"epochs", "steps"}:  # one of them replaces the other
        changes = {"epochs": 0, "steps": 0, **changes}
    return replace(RECIPES[options.recipe], **changes)


def absolute(path: str) -> Path:
    """A path as the reader means it, seen from the folder of the command."""
    return Path(path).absolute()


def build_parser() -> argparse.ArgumentParser:
    """The options of the command; those of a recipe are the fields of `Recipe`."""
    parser = argparse.ArgumentParser(
        prog="python -m going_modular.train",
        description="Train a Vision Transformer on folders of images. Without options: "
        "a small one, from scratch, on FoodVision Mini, in some minutes on a laptop. "
        "Stopped or killed, it goes on from its last epoch when the same command is "
        "given again.",
        epilog="On several processes: torchrun --nproc-per-node 8 -m "
        "going_modular.train ... (docs/scaling_out.md).",
    )
    texts = {
        "data": "holds train/ and test/, each with a folder of images for each class; "
        "without: pizza, steak and sushi, which are downloaded or drawn",
        "model": f"a size of ViT: {', '.join(MODELS)} (default: %(default)s)",
        "weights": "start from these instead of from scratch: a file of ours, "
        "torchvision's, timm's, Hugging Face's or the paper's",
        "recipe": f"how to train: {', '.join(RECIPES)} (default: %(default)s)",
        "hold_out": "evaluate on this share of the training images, and leave the test "
        "images alone: for as long as you are choosing",
        "output": "for checkpoint, log and weights (default: in build/training)",
        "precision": "of matrix products (default: the best that the device has)",
        "accumulate": "split each batch into N parts that go through the model one "
        "after the other, to save memory",
        "sharding": "with torchrun: whole models (ddp), or parts of one (fsdp)",
    }
    add = parser.add_argument
    add("--data", type=absolute, metavar="FOLDER", help=texts["data"])
    add("--model", choices=MODELS, default="ViT-Mini/12", metavar="NAME",
        help=texts["model"])  # fmt: skip
    add("--weights", type=absolute, metavar="FILE", help=texts["weights"])
    add("--image-size", type=int, metavar="PIXELS", help="height and width")
    add("--patch-size", type=int, metavar="PIXELS", help="height and width of a patch")
    add("--pool", choices=["class_token", "mean"], help="what the head reads")
    add("--recipe", choices=RECIPES, default="mini", metavar="NAME",
        help=texts["recipe"])  # fmt: skip
    add("--hold-out", type=float, default=0.0, metavar="SHARE", help=texts["hold_out"])
    add("--output", type=absolute, metavar="FOLDER", help=texts["output"])
    add("--seed", type=int, default=42, metavar="N", help="decides all random numbers")
    add("--workers", type=int, default=0, metavar="N", help="that read images")
    add("--precision", choices=PRECISIONS, help=texts["precision"])
    add("--accumulate", type=int, default=1, metavar="N", help=texts["accumulate"])
    add("--sharding", choices=SHARDINGS, default="ddp", help=texts["sharding"])
    group = parser.add_argument_group("settings of the recipe, in place of its own")
    for each in fields(Recipe):
        option, help = f"--{each.name.replace('_', '-')}", each.metadata["help"]
        if each.type is bool:
            group.add_argument(
                option, action=argparse.BooleanOptionalAction, default=None, help=help
            )
        elif each.type in (int, float, str):
            group.add_argument(
                option,
                type=each.type,
                choices=recipes.CHOICES.get(each.name),
                metavar=None if each.type is str else "N",
                help=help,
            )
    return parser


@record  # so that torchrun shows the error of the process that failed first
def main(arguments: Sequence[str] | None = None) -> None:
    parser = build_parser()
    options = parser.parse_args(arguments)
    try:
        with processes() as device:
            run(options, device)
    except KeyboardInterrupt as stop:
        sys.exit(f"stopped, {stop}. The same command goes on from the last checkpoint")
    except (OSError, ValueError) as error:
        if "WORLD_SIZE" in os.environ:  # torchrun collects the errors of all processes
            raise
        parser.error(str(error))


if __name__ == "__main__":
    main()
