"""Pretrain a small ViT on drawn dishes. The file in `pretrained/` is still an older version's.

python -m going_modular.experiments.pretrain

It draws dishes that do not exist, keeps them with the truth about every pixel, and trains
a ViT to say what each patch and the whole image show. Pizza, steak and sushi are never
drawn, and no photo is used. `pretraining/` holds the parts: the drawings, the views that
the network gets of them, its task, and its optimizers.

Everything goes to `build/pretraining`. A run that was stopped goes on from where it was,
in the drawing as in the training, and ends with the same weights as without the stop.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from going_modular.experiments.command_line import command_parser, endings_in_one_line, positive
from going_modular.model_builder import ViT, ViTConfig
from going_modular.pretraining.optimizers import Schedules, build_optimizers
from going_modular.pretraining.shards import SHARD, Drawing, draw_shards, read_shards
from going_modular.pretraining.teacher import Pretrainer, total
from going_modular.pretraining.views import Views, views_of
from going_modular.training.checkpoints import Checkpoint
from going_modular.training.interrupts import delayed_interrupts
from going_modular.training.progress import check_finite
from going_modular.training.recipes import Recipe
from going_modular.utils import autocast, get_device, project_path
from going_modular.vit.files import write_vit

FOLDER = project_path("build/pretraining")
CONFIG = ViTConfig(
    image_size=112,
    patch_size=8,
    embedding_dim=192,
    num_layers=6,
    num_heads=3,
    mlp_dim=768,
    num_classes=0,
    dropout=0.0,
)
HELD_OUT_BATCHES = 8  # of views of the held-out drawings, the same ones every time


@dataclass
class PretrainingProgress:
    """How far the pretraining has come. A checkpoint holds it."""

    step: int = 0  # steps that are done
    seconds: float = 0.0
    losses: list[dict[str, float]] = field(default_factory=list)  # since the last entry
    log: list[dict] = field(default_factory=list)

    def state_dict(self) -> dict:
        """All of it in plain types."""
        return asdict(self)

    def load_state_dict(self, state_dict: dict) -> None:
        """Stand where another run stood."""
        vars(self).update(state_dict)


def pretrain(options: argparse.Namespace) -> Path:
    """Draw, train, and write the weights of the backbone; return their path.

    Raises:
        ValueError: if the options leave nothing to train on, or a file in
            `build/pretraining` belongs to another run.
        FloatingPointError: if the loss is not finite.
        KeyboardInterrupt: if somebody asked to stop, once the checkpoint is saved.
    """
    if options.drawings < 2 * SHARD:
        raise ValueError(
            f"drawings must be at least {2 * SHARD}, one shard to train on and one that is "
            f"held out, got {options.drawings}"
        )
    steps = options.images // options.batch_size
    if steps < 20:
        raise ValueError(
            f"images must be at least 20 batches of {options.batch_size}, got {options.images}"
        )
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
    precision = "float32" if options.full_precision else "bfloat16"
    drawings = read_shards(draw_shards(options.drawings, FOLDER / "shards"))
    training, held_out = drawings[:-SHARD], drawings[-SHARD:]
    device = get_device()
    torch.manual_seed(options.seed)
    network = Pretrainer(ViT(CONFIG)).to(device)
    optimizers = build_optimizers(network, recipe)
    schedules = Schedules(optimizers, recipe, steps)
    progress = PretrainingProgress()
    checkpoint = Checkpoint(FOLDER / "checkpoint.pt", vars(options))
    # The state of the random generators is not needed: see `views_of`
    checkpoint.load(network, optimizers, schedules, progress)

    began = time.monotonic() - progress.seconds
    bar = tqdm(range(progress.step, steps), "pretraining", steps, initial=progress.step)
    with delayed_interrupts() as stop_requested:
        for step in bar:
            views = views_of(training, step, options.batch_size, CONFIG).to(device)
            losses = pretraining_step(network, views, optimizers, recipe.clip_norm, precision)
            schedules.step()
            progress.losses.append(losses)
            progress.step, progress.seconds = step + 1, time.monotonic() - began
            entry_is_due = progress.step % options.save_every == 0 or progress.step == steps
            if entry_is_due:
                add_entry(progress, options.batch_size, held_out_losses(network, held_out, device))
                tqdm.write(json.dumps(progress.log[-1]))
            if entry_is_due or stop_requested():
                checkpoint.save(network, optimizers, schedules, progress)
            if stop_requested():
                raise KeyboardInterrupt(f"saved in {checkpoint.path}")
    backbone = deepcopy(network.backbone).half()
    return write_vit(backbone, FOLDER / "vit_drawn_dishes.safetensors", log=progress.log)


def pretraining_step(
    network: Pretrainer,
    views: Views,
    optimizers: Sequence[torch.optim.Optimizer],
    clip_norm: float,
    precision: str,
) -> dict[str, float]:
    """One step; return its losses by name.

    Raises:
        FloatingPointError: if the loss is not finite.
    """
    network.train()
    with autocast(views.images.device, precision):
        losses = network.losses(views)
    loss = total(losses)
    check_finite(loss, "pretraining")
    network.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), clip_norm)
    for optimizer in optimizers:
        optimizer.step()
    return {name: value.item() for name, value in losses.items()}


@torch.inference_mode()
def held_out_losses(
    network: Pretrainer, drawings: Sequence[Drawing], device: torch.device | str
) -> dict[str, float]:
    """The mean losses on views of drawings that are never trained on."""
    network.eval()
    batches = [
        network.losses(views_of(drawings, step, 125, CONFIG).to(device))
        for step in range(HELD_OUT_BATCHES)
    ]
    return mean_losses([{name: loss.item() for name, loss in batch.items()} for batch in batches])


def mean_losses(losses: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each loss, in four digits."""
    return {name: round(statistics.fmean(row[name] for row in losses), 4) for name in losses[0]}


def add_entry(progress: PretrainingProgress, batch_size: int, held_out: dict[str, float]) -> None:
    """Add an entry to the log, with the mean losses since the last one."""
    entry = {"images": progress.step * batch_size, "minutes": round(progress.seconds / 60, 1)}
    progress.log.append(entry | {"training": mean_losses(progress.losses), "held_out": held_out})
    progress.losses = []


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_parser("pretrain", "Pretrain a small ViT on drawn dishes")
    parser.add_argument("--drawings", type=positive, default=40_000)
    parser.add_argument("--images", type=positive, default=850_000, help="crops seen in all")
    parser.add_argument("--batch-size", type=positive, default=128)
    parser.add_argument("--lr", type=float, default=4e-3, help="the largest learning rate of Muon")
    parser.add_argument("--save-every", type=positive, default=500, help="steps")
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
