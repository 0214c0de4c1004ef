"""Pretrain a small ViT on drawn dishes, as the file in `pretrained/` was made.

python -m going_modular.experiments.pretrain

The network learns two things about drawings of random dishes (`synthetic_food.draw` with
an integer). From the mean and the standard deviation of all patches it learns which dish
it sees, after Kataoka et al., *Pre-training without Natural Images* (arXiv 2101.08515).
And for each patch it learns what the patch shows, rice or the table. Nobody has to label
that, because the program that paints a pixel knows what it paints. Pizza, steak and sushi
are never drawn, and no photo is used.

Everything goes to `build/pretraining`. A run that was stopped goes on from its last
checkpoint, and ends with the same weights as without the stop.
"""

import argparse
import json
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torchvision import tv_tensors
from torchvision.transforms import v2
from tqdm import tqdm

from going_modular.drawings.synthetic_food import NAMES, draw_scene, drawn_once
from going_modular.engine import Method
from going_modular.experiments.command_line import command_parser, endings_in_one_line, positive
from going_modular.images.transforms import to_normalized
from going_modular.model_builder import ViT, ViTConfig
from going_modular.training.checkpoints import Checkpoint
from going_modular.training.interrupts import delayed_interrupts
from going_modular.training.progress import check_finite
from going_modular.training.recipes import Recipe, build_optimizer, build_scheduler
from going_modular.utils import autocast, get_device, project_path
from going_modular.vit.backbones import statistics_of
from going_modular.vit.files import write_vit

FOLDER = project_path("build/pretraining")
SIZE = 128  # pixels of a drawing; the network sees crops of 112
HELD_OUT = 1  # drawing of each dish on which the accuracy is measured
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
CONTENTS_WEIGHT = 3  # of the loss of the contents, beside that of the dish
CROP = v2.Compose(
    [v2.RandomResizedCrop(CONFIG.image_hw, scale=(0.3, 1.0)), v2.RandomHorizontalFlip()]
)
GROUP = 8  # drawings that share one random change of colors, which is much faster
RECOLOR = v2.Compose(
    [
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4)], 0.6),
        v2.RandomGrayscale(0.1),
        v2.RandomApply([v2.GaussianBlur(5, (0.1, 1.5))], 0.2),
        to_normalized(),
    ]
)


class Pretrainer(nn.Module):
    """The backbone with two heads, one for the whole image and one for each token.

    `kept` holds the indices of some patches of each image. Only those go through the
    encoder, as in He et al., *Masked Autoencoders* (arXiv 2111.06377). A quarter of the
    patches costs about a quarter of the time, so the network can see many more images.

    Shapes: images (B, 3, 112, 112), kept (B, n) or None for all N patches
    -> dish (B, dishes), contents (B, n+1, len(NAMES)).
    """

    def __init__(self, dishes: int):
        super().__init__()
        self.backbone = ViT(CONFIG)
        self.dish = nn.Linear(2 * CONFIG.embedding_dim, dishes)
        self.contents = nn.Linear(CONFIG.embedding_dim, len(NAMES))

    def forward(
        self, images: torch.Tensor, kept: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        vit = self.backbone
        patches = vit.patch_embedding(images) + vit.pos_embedding[:, 1:]  # (B, N, D)
        if kept is not None:
            patches = torch.take_along_dim(patches, kept.unsqueeze(2), dim=1)
        first = (vit.class_token + vit.pos_embedding[:, :1]).expand(images.shape[0], -1, -1)
        tokens = vit.norm(vit.encoder(torch.cat([first, patches], dim=1)))
        return self.dish(statistics_of(tokens[:, 1:])), self.contents(tokens)


@dataclass
class PretrainingProgress:
    """How far the pretraining has come. A checkpoint holds it."""

    step: int = 0  # steps that are done
    seconds: float = 0.0
    losses: list[list[float]] = field(default_factory=list)  # since the last entry of the log
    log: list[dict] = field(default_factory=list)

    def state_dict(self) -> dict:
        """All of it in plain types."""
        return asdict(self)

    def load_state_dict(self, state_dict: dict) -> None:
        """Stand where another run stood."""
        vars(self).update(state_dict)


def draw_numbered(key: tuple[int, int]) -> np.ndarray:
    """The drawing of a key (dish, picture), with a label for each pixel.

    Shapes: (SIZE, SIZE, 3 + 1), the colors and then the label, an index of `NAMES`.
    """
    # NumPy pads seeds with zeros. So the seed (dish, 0) equals the seed of the dish itself,
    # and picture 0 is arranged by the random numbers that made up its dish. The held-out
    # picture is the last one, so that no accuracy depends on it.
    scene = draw_scene(key[0], np.random.default_rng(key), (SIZE, SIZE))
    labels = np.array([NAMES.index(name) for name in scene.names], np.uint8)
    return np.dstack([np.asarray(scene.develop()), labels[scene.labels]])


def draw_pictures(dishes: int, pictures: int, folder: Path) -> torch.Tensor:
    """Drawings of random dishes (dishes, pictures, SIZE, SIZE, 3 + 1), drawn once.

    2000 x 20 of them take 2.6 GB, on disk and in memory.

    Raises:
        ValueError: see `drawn_once`.
    """
    keys = [(dish, picture) for dish in range(dishes) for picture in range(pictures)]
    drawn = drawn_once(folder / f"{dishes}x{pictures}.npy", draw_numbered, keys)
    return torch.from_numpy(drawn).unflatten(0, (dishes, pictures))


def batch_of(
    drawn: torch.Tensor, step: int, size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A step's images, dishes and contents, and the patches that are kept.

    All random numbers depend on the step alone, so that a resumed run sees the same.

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
    images = torch.cat([RECOLOR(group) for group in images.split(GROUP)])
    N = CONFIG.num_patches
    kept = torch.rand(size, N).argsort(dim=1)[:, : N // 4]
    return images, dishes, contents_of(labels.squeeze(1)), kept


def contents_of(labels: torch.Tensor) -> torch.Tensor:
    """The share of each of `NAMES` in the whole image and in each patch.

    Shapes: labels (B, H, W) -> (B, N+1, len(NAMES)). Each row sums to 1. The first row is
    the whole image's.
    """
    P = CONFIG.patch_size
    patches = labels.long().unfold(1, P, P).unfold(2, P, P).flatten(3).flatten(1, 2)
    pixels = torch.zeros(*patches.shape[:2], len(NAMES))
    contents = pixels.scatter_add(2, patches, torch.ones(patches.shape)) / P**2
    return torch.cat([contents.mean(dim=1, keepdim=True), contents], dim=1)


@torch.inference_mode()
def held_out_accuracy(
    network: Pretrainer, drawn: torch.Tensor, device: torch.device | str
) -> float:
    """The share of held-out drawings, without augmentation, whose dish the network names."""
    network.eval()
    crop = v2.Compose([v2.CenterCrop(CONFIG.image_hw), to_normalized()])
    correct = 0
    for dishes in torch.arange(drawn.shape[0]).split(64):
        images = drawn[dishes, -HELD_OUT:, ..., :3].flatten(0, 1).permute(0, 3, 1, 2)
        scores = network(crop(images).to(device))[0].cpu()
        correct += int((scores.argmax(1) == dishes.repeat_interleave(HELD_OUT)).sum())
    return correct / (drawn.shape[0] * HELD_OUT)


def losses_of(
    network: Pretrainer,
    images: torch.Tensor,
    dishes: torch.Tensor,
    contents: torch.Tensor,
    kept: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of the dish and the loss of the contents, from the patches that are kept.

    The first is the cross-entropy. The second is the Kullback-Leibler divergence from the
    true shares, which is zero where both are equal.

    Args:
        images, dishes, contents, kept: see `batch_of`.
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
    """Draw, train, and write the weights of the backbone; return their path.

    Raises:
        ValueError: if the options leave nothing to train on, or a file in
            `build/pretraining` belongs to another run.
        FloatingPointError: if the loss is not finite.
        KeyboardInterrupt: if somebody asked to stop, once the checkpoint is saved.
    """
    if options.pictures <= HELD_OUT:
        raise ValueError(
            f"pictures must be more than {HELD_OUT}, which is held out of each dish, got "
            f"{options.pictures}"
        )
    if options.images < options.batch_size:
        raise ValueError(
            f"images must be at least one batch of {options.batch_size}, got {options.images}"
        )
    steps = options.images // options.batch_size
    recipe = Recipe(
        steps=steps,
        batch_size=options.batch_size,
        lr=options.lr,
        betas=(0.9, 0.95),
        weight_decay=0.05,
        warmup_steps=steps // 20,
        schedule="cosine",
        clip_norm=1.0,
    )
    device = get_device()
    drawn = draw_pictures(options.dishes, options.pictures, FOLDER)
    torch.manual_seed(options.seed)
    network = Pretrainer(options.dishes).to(device)
    optimizer = build_optimizer(network, recipe)
    method = Method(
        build_scheduler(optimizer, recipe, steps),
        recipe.clip_norm,
        precision="float32" if options.full_precision else "bfloat16",
    )
    progress = PretrainingProgress()
    checkpoint = Checkpoint(FOLDER / "checkpoint.pt", vars(options))
    # The state of the random generators is not needed: see `batch_of`
    checkpoint.load(network, optimizer, method, progress)

    began = time.monotonic() - progress.seconds
    bar = tqdm(range(progress.step, steps), "pretraining", steps, initial=progress.step)
    with delayed_interrupts() as stop_requested:
        for step in bar:
            batch = [part.to(device) for part in batch_of(drawn, step, options.batch_size)]
            losses = pretraining_step(network, batch, optimizer, method, step)
            progress.losses.append(losses)
            progress.step, progress.seconds = step + 1, time.monotonic() - began
            entry_is_due = progress.step % options.save_every == 0 or progress.step == steps
            if entry_is_due:
                accuracy = held_out_accuracy(network, drawn, device)
                add_entry(progress, options.batch_size, accuracy)
                tqdm.write(json.dumps(progress.log[-1]))
            if entry_is_due or stop_requested():
                checkpoint.save(network, optimizer, method, progress)
            if stop_requested():
                raise KeyboardInterrupt(f"saved in {checkpoint.path}")
    backbone = deepcopy(network.backbone).half()
    return write_vit(backbone, FOLDER / "vit_drawn_dishes.safetensors", log=progress.log)


def pretraining_step(
    network: Pretrainer,
    batch: Sequence[torch.Tensor],
    optimizer: torch.optim.Optimizer,
    method: Method,
    step: int,
) -> list[float]:
    """One step on a batch of `batch_of`, on the device; return its two losses.

    Raises:
        FloatingPointError: if the loss is not finite.
    """
    network.train()
    with autocast(batch[0].device, method.precision):
        dish_loss, contents_loss = losses_of(network, *batch)
    loss = dish_loss + CONTENTS_WEIGHT * contents_loss
    check_finite(loss, f"step {step + 1}")
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), method.clip_norm)
    optimizer.step()
    if method.scheduler is not None:
        method.scheduler.step()
    return torch.stack([dish_loss, contents_loss]).tolist()


def add_entry(progress: PretrainingProgress, batch_size: int, accuracy: float) -> None:
    """Add an entry to the log, with the mean losses since the last one."""
    dish_loss, contents_loss = np.mean(progress.losses, axis=0).tolist()
    progress.losses = []
    progress.log.append(
        {
            "images": progress.step * batch_size,
            "minutes": round(progress.seconds / 60, 1),
            "dish_loss": round(dish_loss, 4),
            "contents_loss": round(contents_loss, 4),
            "held_out_accuracy": round(accuracy, 4),
        }
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_parser("pretrain", "Pretrain a small ViT on drawn dishes")
    parser.add_argument("--dishes", type=positive, default=2000, help="classes")
    parser.add_argument("--pictures", type=positive, default=20, help="of each dish")
    parser.add_argument("--images", type=positive, default=2_000_000, help="seen in all")
    parser.add_argument("--batch-size", type=positive, default=64)
    parser.add_argument("--lr", type=float, default=1e-3, help="the largest learning rate")
    parser.add_argument("--save-every", type=positive, default=2000, help="steps")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights")
    parser.add_argument(
        "--full-precision",
        action="store_true",
        help="float32 throughout, for processors that are slow in bfloat16",
    )
    options = parser.parse_args(arguments)
    with endings_in_one_line(parser.prog):
        print("weights:", pretrain(options))


if __name__ == "__main__":
    main()
