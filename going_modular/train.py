"""Train a ViT on folders of images: `python -m going_modular.train --help`."""

import argparse
import hashlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from filelock import FileLock, Timeout
from torch.distributed.elastic.multiprocessing.errors import record
from torch.utils.data import Subset, TensorDataset

from going_modular import data_setup
from going_modular.data_setup import PhotoFolder
from going_modular.images.checksums import sha256_of
from going_modular.images.folders import VALIDATION_NAMES, find_parts
from going_modular.images.transforms import Normalization, evaluation_transform
from going_modular.model_builder import VIT_CONFIGS, ViT
from going_modular.training import recipes
from going_modular.training.checkpoints import Checkpoint
from going_modular.training.distributed import SHARDINGS, print_once, process_group, process_rank
from going_modular.training.fit import Photos, augment, fit, for_crops, read_photos
from going_modular.training.log import Log
from going_modular.training.recipes import MINI, RECIPES, Recipe
from going_modular.utils import (
    PRECISIONS,
    best_precision,
    command_path,
    count_parameters,
    describe_environment,
    errors_in_one_line,
    project_path,
    replace_unprintable,
    set_seeds,
)
from going_modular.vit.descendants import build_vit
from going_modular.vit.files import read_weights, write_vit
from going_modular.vit.weights import load_vit

ADVICE_ON_MEMORY = "Give --accumulate 2, or 4, or a smaller --batch-size or --image-size."
Images = Photos | TensorDataset
MODELS = {"ViT-Mini/12": MINI, **VIT_CONFIGS}


def image_folders(options: argparse.Namespace) -> tuple[Path, Path | None, str]:
    """Folders of training and test images, and in words where they come from."""
    if options.data:
        return find_parts(options.data, options.hold_out)
    food = data_setup.get_food_images()
    return food.train_dir, None if options.hold_out else food.test_dir, food.source


def choose_vit(
    options: argparse.Namespace, recipe: Recipe, class_names: list[str]
) -> tuple[ViT, Normalization, str]:
    """The ViT that the options ask for, its colors, and in words where it comes from.

    A head from a file is kept only if it was trained for classes of the same names. A
    new task gets a new head.
    """
    config: dict[str, Any] = {
        "num_classes": len(class_names),
        "dropout": recipe.dropout,
        "stochastic_depth": recipe.stochastic_depth,
    }
    for name in ("image_size", "patch_size", "num_heads", "pool", "architecture"):
        if (value := getattr(options, name)) is not None:
            config[name] = value
    set_seeds(options.seed)
    if not options.weights:
        if options.architecture:
            raise ValueError("--architecture tells about a file of weights: give --weights as well")
        vit = ViT(replace(MODELS[options.model], **config))
        return recipes.initialize(recipe.init, vit), Normalization(), "from scratch"
    stored = read_weights(options.weights)
    same_classes = stored.class_names == class_names
    vit = load_vit(stored, head=same_classes, **config)
    head = "its head, for the same classes" if same_classes else "a new head"
    origin = f"from {stored.file_name}, with {head}"
    return vit, stored.normalization, origin


def read_images(
    train_folder: PhotoFolder,
    test_folder: PhotoFolder | None,
    hold_out: float,
    seed: int,
    size: int | tuple[int, int],
    normalization: Normalization,
) -> tuple[Images, Images, str]:
    """Training images, resized; test images as the ViT sees them; and a name for these.

    Without a test folder, a share of the training images, `hold_out`, takes its place. The
    seed decides which.
    """
    transform = evaluation_transform(size, *normalization)
    print_once(f"{train_folder.root}: {train_folder.summary()}")
    test: Photos
    if test_folder is None:
        kept, test = data_setup.split_train_validation(train_folder, hold_out, seed, transform)
        test_name = "held-out"
    else:
        test = test_folder.with_transform(transform)
        print_once(f"{test.root}: {test.summary()}")
        data_setup.check_same_classes(train_folder, test)
        is_validation = Path(test.root).name.lower() in VALIDATION_NAMES
        test_name = "validation" if is_validation else "test"
    train, test_images = read_photos([for_crops(train_folder, size), test])
    return train if test_folder else Subset(train, kept.indices), test_images, test_name


def output_folder(options: argparse.Namespace, train_dir: Path) -> Path:
    """Where a run writes: the folder asked for, or one that no other run shares.

    Its name tells images, model or weights, recipe and seed. Images and weights of equal
    names in other places are told apart by some digits of a hash of their paths.
    """
    if options.output:
        return options.output
    start = options.weights.stem if options.weights else options.model
    paths = f"{train_dir.resolve()} {options.weights}"
    digits = hashlib.sha256(paths.encode()).hexdigest()[:6]
    words = (train_dir.parent.name, digits, start, options.recipe, str(options.seed))
    return project_path("build/training") / "-".join(words).replace("/", "-")


@contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder; two would overwrite each other's files.

    The lock is the hidden file `.run.lock`. The system unlocks it if a process is killed.

    Raises:
        OSError: if another run is there, or the folder cannot be written to.
    """
    lock = FileLock(folder / ".run.lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise OSError(
            f"another run is writing to {folder}: wait for it, or choose another folder with "
            "--output"
        ) from error
    except OSError as error:
        raise OSError(
            f"{folder} cannot be written to ({error.strerror}): choose another folder with --output"
        ) from error
    try:
        yield
    finally:
        lock.release()


def checkpoint_of(
    path: Path,
    options: argparse.Namespace,
    recipe: Recipe,
    vit: ViT,
    train_folder: PhotoFolder,
    test_folder: PhotoFolder | None,
    precision: str,
) -> Checkpoint:
    """The checkpoint of a run, with all that makes a run the same one.

    Images and weights are compared by what they are, not by where they lie. More epochs
    or steps are the same run, and it goes on, if the learning rate stays constant. Then
    the steps so far are those of the longer run.
    """
    constant = recipe.schedule == "constant"
    reason = (
        " (only a longer training in the same unit can go on)"
        if constant
        else f" (schedule {recipe.schedule}: the learning rate of each step depends on the "
        "length, so a longer training is another run from the start)"
    )
    config = {name: value for name, value in asdict(vit.config).items() if name != "num_classes"}
    return Checkpoint(
        path,
        {
            **config,
            **asdict(recipe),
            "class names": train_folder.classes,
            "training images": train_folder.fingerprint(),
            "test images": test_folder.fingerprint() if test_folder else None,
            "hold_out": options.hold_out,
            "weights": sha256_of(options.weights) if options.weights else None,
            "seed": options.seed,
            "accumulate": options.accumulate,
            "precision": precision,
            "sharding": options.sharding,
        },
        may_grow=("epochs", "steps") if constant else (),
        remarks=dict.fromkeys(("epochs", "steps"), reason),
    )


def run(options: argparse.Namespace, device: torch.device) -> None:
    """What the command does, on each process."""
    recipe = recipe_of(options)
    train_dir, test_dir, source = image_folders(options)
    precision = options.precision or best_precision(device)
    print_once(f"{describe_environment(precision)}\nImages: {source}")
    train_folder = PhotoFolder(train_dir)
    test_folder = PhotoFolder(test_dir) if test_dir else None
    data_setup.check_several_classes(train_folder)
    class_names = train_folder.classes
    vit, normalization, origin = choose_vit(options, recipe, class_names)
    size = vit.config.image_size
    train_images, test_images, test_name = read_images(
        train_folder, test_folder, options.hold_out, options.seed, size, normalization
    )
    folder = output_folder(options, train_dir)
    is_first = process_rank() == 0
    if is_first:
        print(
            f"{len(train_images)} to train on, {len(test_images)} {test_name} images, "
            f"{len(class_names)} classes; {count_parameters(vit):,} parameters, {origin}"
        )
    with only_run_in(folder) if is_first else nullcontext():
        log = Log(folder) if is_first else None
        set_seeds(options.seed + process_rank())  # dropout differs between processes
        tensors, results = fit(
            vit,
            recipe,
            augment(train_images, recipe, size, options.seed, normalization),
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
            checkpoint=checkpoint_of(
                folder / "checkpoint.pt", options, recipe, vit, train_folder, test_folder, precision
            ),
            on_epoch=log and log.on_epoch,
        )
        if is_first:
            vit = build_vit(vit.config)
            vit.load_state_dict(tensors)
            path = folder / "vit.safetensors"
            write_vit(vit, path, normalization=normalization, class_names=class_names)
            accuracy, count = results["test_acc"][-1], len(test_images)
            print(
                f"{test_name} accuracy {accuracy:.4f} ({round(accuracy * count)} of "
                f"{count}), loss {results['test_loss'][-1]:.4f} · weights: {path}"
            )


def recipe_of(options: argparse.Namespace) -> Recipe:
    """The named recipe, with the settings that the options change."""
    changes = {
        each.name: getattr(options, each.name)
        for each in fields(Recipe)
        if getattr(options, each.name) is not None
    }
    if "betas" in changes:
        changes["betas"] = tuple(changes["betas"])
    if changes.keys() & {"epochs", "steps"}:  # one of them replaces the other
        changes = {"epochs": 0, "steps": 0, **changes}
    return replace(RECIPES[options.recipe], **changes)


def height_and_width(numbers: list[int]) -> int | tuple[int, ...]:
    """One number for a square; otherwise all of them, for `ViTConfig` to check."""
    return numbers[0] if len(numbers) == 1 else tuple(numbers)


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
        "data": "holds train/ and test/ (or val/), each with a folder of images for each class; "
        "without: pizza, steak and sushi, which are downloaded or drawn",
        "model": f"a size of ViT: {', '.join(MODELS)} (default: %(default)s)",
        "weights": "start from these instead of from scratch: a file of ours, "
        "torchvision's, timm's, Hugging Face's or the paper's, also of a DeiT, DINOv2, DINOv3, "
        "CLIP, SigLIP or EVA-02, which keep their parts",
        "architecture": "timm's name for the model in a file of --weights, such as "
        "vit_base_patch16_clip_224: it tells what no tensor shows",
        "image_size": "height and width in pixels, or one number for a square",
        "recipe": f"how to train: {', '.join(RECIPES)} (default: %(default)s)",
        "hold_out": "evaluate on this share of the training images, and leave the test "
        "images alone: for as long as you are choosing",
        "output": "for checkpoint, log and weights (default: in build/training)",
        "precision": "of matrix products (default: bfloat16 where the processor or GPU has "
        "instructions for it, otherwise float16 on a GPU and float32 on a CPU)",
        "accumulate": "split each batch into N parts that go through the model one "
        "after the other, to save memory",
        "sharding": "with torchrun: whole models (ddp), or parts of one (fsdp)",
    }
    add = parser.add_argument
    add("--data", type=command_path, metavar="FOLDER", help=texts["data"])
    start = parser.add_mutually_exclusive_group().add_argument
    start("--model", choices=MODELS, default="ViT-Mini/12", metavar="NAME", help=texts["model"])
    start("--weights", type=command_path, metavar="FILE", help=texts["weights"])
    add("--architecture", metavar="NAME", help=texts["architecture"])
    add("--image-size", type=int, nargs="+", metavar="PIXELS", help=texts["image_size"])
    add("--patch-size", type=int, metavar="PIXELS", help="height and width of a patch")
    add("--num-heads", type=int, metavar="N", help="of attention; files of others rarely tell it")
    add("--pool", choices=["class_token", "mean"], help="what the head reads")
    add("--recipe", choices=RECIPES, default="mini", metavar="NAME", help=texts["recipe"])
    add("--hold-out", type=float, default=0.0, metavar="SHARE", help=texts["hold_out"])
    add("--output", type=command_path, metavar="FOLDER", help=texts["output"])
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
        elif each.name == "betas":
            group.add_argument(option, type=float, nargs=2, metavar="N", help=help)
        else:
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
    replace_unprintable()  # before the help, which has an α
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.image_size:
        options.image_size = height_and_width(options.image_size)
    errors = (
        nullcontext()  # torchrun collects the errors of all processes
        if dist.is_torchelastic_launched()
        else errors_in_one_line(parser.prog, memory_advice=ADVICE_ON_MEMORY)
    )
    try:
        with errors, process_group() as device:
            run(options, device)
    except KeyboardInterrupt as stop:
        done = f", {stop}" if stop.args else ""
        sys.exit(f"stopped{done}. The same command goes on from the last checkpoint")


if __name__ == "__main__":
    main()
