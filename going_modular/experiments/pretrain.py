"""Pretrain a small ViT on drawn dishes: `python -m going_modular.experiments.pretrain`.

The network learns two things about pictures of random dishes (`synthetic_food.draw`
with an integer). The mean and the spread of all patches say which dish it is, after
Kataoka et al., *Pre-training without Natural Images* (arXiv 2101.08515). And each patch
says what it shows, rice or the table: the program that paints a pixel knows what it
painted, so nobody has to label it. Pizza, steak and sushi are never drawn, and no photo
is used.

Everything goes to `build/pretraining`. A run that was stopped goes on from its last
checkpoint, with the numbers that it would have had without the stop.
"""

import argparse
import json
import time
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torchvision import tv_tensors
from torchvision.transforms import v2
from tqdm import tqdm

from going_modular.drawings.synthetic_food import NAMES, draw_scene, drawn_once
from going_modular.images.transforms import IMAGENET_MEAN, IMAGENET_STD
from going_modular.model_builder import ViT, ViTConfig
from going_modular.training.recipes import Recipe, build_optimizer, build_scheduler
from going_modular.utils import atomic_write, autocast, get_device, project_path
from going_modular.vit.backbones import statistics_of
from going_modular.vit.files import write_vit

FOLDER = project_path("build/pretraining")
SIZE = 128  # pixels of a drawn picture; the network sees crops of 112
HELD_OUT = 1  # picture of each dish to measure the accuracy on
CONFIG = ViTConfig(
    image_size=112,
    patch_size=14,
    embedding_dim=192,
    num_layers=6,
    num_heads=3,
    mlp_dim=768,
    num_classes=0,
    dropout=0.0,
)
NORMALIZE = v2.Compose(
    [v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
)
CROP = v2.Compose(
    [v2.RandomResizedCrop(CONFIG.image_size, scale=(0.3, 1.0)), v2.RandomHorizontalFlip()]
)
TOGETHER = 8  # pictures share one random change of colours, which is much faster
RECOLOR = v2.Compose(
    [
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4)], 0.6),
        v2.RandomGrayscale(0.1),
        v2.RandomApply([v2.GaussianBlur(5, (0.1, 1.5))], 0.2),
        NORMALIZE,
    ]
)


class Pretrainer(nn.Module):
    """The backbone with two heads, one for the whole picture and one for each token.

    `kept` holds the numbers of some patches of each image; only those go through the
    encoder, as in He et al., *Masked Autoencoders* (arXiv 2111.06377). A quarter of the
    patches costs about a quarter, so that many more images can be seen.

    Shapes: images (B, 3, 112, 112), kept (B, n) or None for all N patches
    -> dish (B, dishes), contents (B, n+1, len(NAMES)).
    """

    def __init__(self, dishes: int):
        super().__init__()
        self.backbone = ViT(CONFIG)
        self.dish = nn.Linear(2 * CONFIG.embedding_dim, dishes)
        self.contents = nn.Linear(CONFIG.embedding_dim, len(NAMES))

    def forward(self, images: torch.Tensor, kept: torch.Tensor | None = None):
        vit = self.backbone
        patches = vit.patch_embedding(images) + vit.pos_embedding[:, 1:]  # (B, N, D)
        if kept is not None:
            patches = torch.take_along_dim(patches, kept.unsqueeze(2), dim=1)
        first = (vit.class_token + vit.pos_embedding[:, :1]).expand(len(images), -1, -1)
        tokens = vit.norm(vit.encoder(torch.cat([first, patches], dim=1)))
        return self.dish(statistics_of(tokens[:, 1:])), self.contents(tokens)


def draw_numbered(key: tuple[int, int]) -> np.ndarray:
    """Picture and labels (SIZE, SIZE, 3 + 1); key = (dish, picture) decides all."""
    # NumPy fills seeds up with zeros, so picture 0 is laid out by the numbers that made
    # up its dish. The held-out picture is the last one: no accuracy depends on it.
    scene = draw_scene(key[0], np.random.default_rng(key), (SIZE, SIZE))
    labels = np.array([NAMES.index(name) for name in scene.names], np.uint8)
    return np.dstack([np.asarray(scene.develop()), labels[scene.labels]])


def draw_pictures(dishes: int, pictures: int, folder: Path) -> torch.Tensor:
    """Pictures of random dishes (dishes, pictures, SIZE, SIZE, 3 + 1), drawn once.

    2000 x 20 of them take 2.6 GB, on disk and in memory.

    Raises:
        ValueError: see `drawn_once`.
    """
    keys = [(dish, picture) for dish in range(dishes) for picture in range(pictures)]
    drawn = drawn_once(folder / f"{dishes}x{pictures}.npy", draw_numbered, keys)
    return torch.from_numpy(drawn).unflatten(0, (dishes, pictures))


def batch_of(drawn: torch.Tensor, step: int, size: int):
    """A step's images, dishes and contents, and which patches are kept.

    All randomness comes from the step's number, so that a resumed run sees the same.

    Shapes: drawn (dishes, pictures, SIZE, SIZE, 3 + 1) -> images (B, 3, 112, 112),
    dishes (B,), contents (B, N+1, len(NAMES)), kept (B, N/4).
    """
    torch.manual_seed(step)
    dishes = torch.randint(drawn.shape[0], (size,))
    pictures = torch.randint(drawn.shape[1] - HELD_OUT, (size,))
    cropped = [
        CROP(tv_tensors.Image(picture[:3]), tv_tensors.Mask(picture[3:]))
        for picture in drawn[dishes, pictures].permute(0, 3, 1, 2).contiguous()
    ]
    images, labels = (torch.stack(part) for part in zip(*cropped, strict=True))
    groups = images.split(TOGETHER)
    images = torch.cat([RECOLOR(group) for group in groups])
    N = CONFIG.num_patches
    kept = torch.rand(size, N).argsort(dim=1)[:, : N // 4]
    return images, dishes, contents_of(labels.squeeze(1)), kept


def contents_of(labels: torch.Tensor) -> torch.Tensor:
    """The share of each of `NAMES` in each patch, and in the whole picture.

    Shapes: labels (B, H, W) -> (B, N+1, len(NAMES)), rows sum to 1, the whole first.
    """
    P = CONFIG.patch_size
    patches = labels.long().unfold(1, P, P).unfold(2, P, P).flatten(3).flatten(1, 2)
    pixels = torch.zeros(*patches.shape[:2], len(NAMES))
    contents = pixels.scatter_add(2, patches, torch.ones(patches.shape)) / P**2
    return torch.cat([contents.mean(dim=1, keepdim=True), contents], dim=1)


@torch.inference_mode()
def held_out_accuracy(network: Pretrainer, drawn: torch.Tensor, device) -> float:
    """Part of the held-out pictures whose dish the network names; never augmented."""
    network.eval()
    crop = v2.Compose([v2.CenterCrop(CONFIG.image_size), NORMALIZE])
    correct = 0
    for dishes in torch.arange(drawn.shape[0]).split(64):
        images = drawn[dishes, -HELD_OUT:, ..., :3].flatten(0, 1).permute(0, 3, 1, 2)
        scores = network(crop(images).to(device))[0].cpu()
        correct += (scores.argmax(1) == dishes.repeat_interleave(HELD_OUT)).sum().item()
    return correct / (drawn.shape[0] * HELD_OUT)


def losses_of(network: Pretrainer, images, dishes, contents, kept):
    """(loss of the dish, loss of the contents), from the patches that are kept.

    Cross-entropy, and the Kullback-Leibler divergence from the true shares, which is
    zero where both are equal. The arguments are those that `batch_of` makes.
    """
    dish_scores, contents_scores = network(images, kept)
    whole, patches = contents[:, :1], contents[:, 1:]
    patches = torch.take_along_dim(patches, kept.unsqueeze(2), dim=1)
    contents = torch.cat([whole, patches], dim=1)  # (B, N/4+1, len(NAMES))
    dish_loss = nn.functional.cross_entropy(dish_scores, dishes, label_smoothing=0.1)
    contents_loss = nn.functional.kl_div(
        contents_scores.log_softmax(-1).flatten(0, 1), contents.flatten(0, 1), reduction="batchmean"
    )
    return dish_loss, contents_loss


def pretrain(options: argparse.Namespace) -> Path:
    """Draw, train, and write the backbone's weights; return their path.

    Raises:
        ValueError: if the options leave nothing to train on, or what lies in
            `build/pretraining` belongs to another run.
    """
    least = min(options.dishes, options.batch_size, options.save_every)
    if least < 1 or options.pictures <= HELD_OUT or options.images < options.batch_size:
        raise ValueError(
            f"got {vars(options)}: expected more than {HELD_OUT} pictures (held out of "
            "each dish), at least one batch of images, and nothing below 1"
        )
    steps = options.images // options.batch_size
    device = get_device()
    drawn = draw_pictures(options.dishes, options.pictures, FOLDER)
    torch.manual_seed(options.seed)
    network = Pretrainer(options.dishes).to(device)
    recipe = Recipe(
        steps=steps,
        batch_size=options.batch_size,
        lr=options.lr,
        betas=(0.9, 0.95),
        weight_decay=0.05,
        warmup_steps=steps // 20,
        schedule="cosine",
    )
    optimizer = build_optimizer(network, recipe)
    scheduler = build_scheduler(optimizer, recipe, steps)
    checkpoint = FOLDER / "checkpoint.pt"
    log, start, seconds = [], 0, 0.0
    if checkpoint.is_file():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        if state["options"] != vars(options):
            raise ValueError(
                f"{checkpoint} belongs to a run with {state['options']}, this one has "
                f"{vars(options)}: give the same options, or remove the file"
            )
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        log, start, seconds = state["log"], state["step"], state["seconds"]

    precision = "float32" if options.full_precision else "bfloat16"
    begin, losses = time.monotonic() - seconds, []
    bar = tqdm(range(start, steps), "pretraining", steps, initial=start, mininterval=10)
    for step in bar:
        network.train()
        batch = batch_of(drawn, step, options.batch_size)
        batch = [part.to(device) for part in batch]
        with autocast(device, precision):
            dish_loss, contents_loss = losses_of(network, *batch)
        optimizer.zero_grad()
        (dish_loss + 3 * contents_loss).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        losses.append([dish_loss.item(), contents_loss.item()])
        if (step + 1) % options.save_every and step + 1 < steps:
            continue
        seconds = time.monotonic() - begin
        dish_loss, contents_loss = np.mean(losses, axis=0).tolist()
        entry = {
            "images": (step + 1) * options.batch_size,
            "minutes": round(seconds / 60, 1),
            "dish_loss": round(dish_loss, 4),
            "contents_loss": round(contents_loss, 4),
            "held_out_accuracy": round(held_out_accuracy(network, drawn, device), 4),
        }
        tqdm.write(json.dumps(entry))
        log.append(entry)
        losses = []
        state = {
            "options": vars(options),
            "network": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "log": log,
            "step": step + 1,
            "seconds": seconds,
        }
        with atomic_write(checkpoint) as unfinished:
            torch.save(state, unfinished)
    backbone = deepcopy(network.backbone).half()
    return write_vit(backbone, FOLDER / "vit_drawn_dishes.safetensors", log=log)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dishes", type=int, default=2000, help="classes")
    parser.add_argument("--pictures", type=int, default=20, help="of each dish")
    parser.add_argument("--images", type=int, default=2_000_000, help="seen in all")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3, help="the largest")
    parser.add_argument("--save-every", type=int, default=2000, help="steps")
    parser.add_argument("--seed", type=int, default=0, help="of the first weights")
    parser.add_argument(
        "--full-precision",
        action="store_true",
        help="float32 throughout, for processors that are slow in bfloat16",
    )
    print("weights:", pretrain(parser.parse_args()))


if __name__ == "__main__":
    main()
