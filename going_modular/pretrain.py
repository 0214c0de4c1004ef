"""Pretrain a small ViT on drawn dishes: `python -m going_modular.pretrain`.

The network learns two things about pictures of random dishes (`synthetic_food.draw`
with an integer). The class token learns which dish it is, after Kataoka et al.,
*Pre-training without Natural Images* (arXiv 2101.08515). And each patch learns what it
shows, a "ring with spots" or the table: who draws a picture knows that for nothing.
Pizza, steak and sushi are never drawn, and no photo is used.

Everything goes to `build/pretraining`. A run that was stopped goes on from its last
checkpoint, with the numbers that it would have had without the stop.
"""

import argparse
import json
import os
import time
from dataclasses import asdict
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import tv_tensors
from torchvision.transforms import v2
from tqdm import tqdm

from going_modular.model_builder import ViT, ViTConfig
from going_modular.painting import NUM_LABELS
from going_modular.synthetic_food import draw_scene
from going_modular.utils import get_device, repository_path

FOLDER = repository_path("build/pretraining")
SIZE = 128  # pixels of a drawn picture; the network sees crops of 112
HELD_OUT = 2  # pictures of each dish to measure the accuracy on
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as is usual
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
    [
        v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
        v2.Normalize(MEAN, STD),
    ]
)
AUGMENT = v2.Compose(
    [
        v2.RandomResizedCrop(CONFIG.image_size, scale=(0.3, 1.0)),
        v2.RandomHorizontalFlip(),
        v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4),
        v2.RandomGrayscale(0.1),
        v2.RandomApply([v2.GaussianBlur(5, (0.1, 1.5))], 0.2),
        NORMALIZE,
    ]
)


class Pretrainer(nn.Module):
    """The backbone with two heads, one for the class token and one for all tokens.

    With `kept`, the numbers of some patches of each image, only those go through the
    encoder: half of them are nearly as good a lesson, and cost half as much.

    Shapes: images (B, 3, 112, 112), kept (B, n) or None for all N patches
    -> dish (B, dishes), contents (B, n+1, NUM_LABELS).
    """

    def __init__(self, dishes: int):
        super().__init__()
        self.backbone = ViT(CONFIG)
        self.dish = nn.Linear(CONFIG.embedding_dim, dishes)
        self.contents = nn.Linear(CONFIG.embedding_dim, NUM_LABELS)

    def forward(self, images: torch.Tensor, kept: torch.Tensor | None = None):
        vit = self.backbone
        patches = vit.patch_embedding(images) + vit.pos_embedding[:, 1:]  # (B, N, D)
        if kept is not None:
            patches = torch.take_along_dim(patches, kept.unsqueeze(2), dim=1)
        first = (vit.class_token + vit.pos_embedding[:, :1]).expand(len(images), -1, -1)
        tokens = vit.norm(vit.encoder(torch.cat([first, patches], dim=1)))
        return self.dish(tokens[:, 0]), self.contents(tokens)


def draw_numbered(number: tuple[int, int]) -> np.ndarray:
    """Picture and labels (SIZE, SIZE, 3 + 1) of a dish; (dish, picture) decides all."""
    scene = draw_scene(number[0], np.random.default_rng(number), (SIZE, SIZE))
    return np.dstack([np.asarray(scene.develop()), scene.labels])


def draw_pictures(dishes: int, pictures: int, folder: Path) -> torch.Tensor:
    """Pictures of random dishes (dishes, pictures, SIZE, SIZE, 3 + 1), drawn once."""
    path = folder / f"{dishes}x{pictures}.npy"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part")
        shape = (dishes * pictures, SIZE, SIZE, 4)
        drawn = np.lib.format.open_memmap(unfinished, "w+", np.uint8, shape)
        numbers = [
            (dish, picture) for dish in range(dishes) for picture in range(pictures)
        ]
        with Pool(os.cpu_count()) as pool:
            jobs = pool.imap(draw_numbered, numbers, chunksize=64)
            for i, picture in enumerate(tqdm(jobs, "drawing", len(numbers))):
                drawn[i] = picture
        drawn.flush()
        unfinished.replace(path)
    return torch.from_numpy(np.load(path)).unflatten(0, (dishes, pictures))


def batch_of(drawn: torch.Tensor, step: int, size: int):
    """The images (size, 3, 112, 112), dishes (size,) and contents of a step.

    All randomness comes from the step's number, so that a resumed run sees the same.
    """
    torch.manual_seed(step)
    dishes = torch.randint(drawn.shape[0], (size,))
    pictures = torch.randint(drawn.shape[1] - HELD_OUT, (size,))
    augmented = [
        AUGMENT(tv_tensors.Image(picture[:3]), tv_tensors.Mask(picture[3:]))
        for picture in drawn[dishes, pictures].permute(0, 3, 1, 2)
    ]
    images, labels = (torch.stack(part) for part in zip(*augmented, strict=True))
    return images, dishes, contents_of(labels.squeeze(1))


def contents_of(labels: torch.Tensor) -> torch.Tensor:
    """What part of each patch, and of the whole, shows what.

    Shapes: labels (B, H, W) -> (B, N+1, NUM_LABELS), rows sum to 1, the whole first.
    """
    P = CONFIG.patch_size
    patches = labels.long().unfold(1, P, P).unfold(2, P, P).flatten(3).flatten(1, 2)
    pixels = torch.zeros(*patches.shape[:2], NUM_LABELS)
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
        scores = network(crop(tv_tensors.Image(images)).to(device))[0].cpu()
        correct += (scores.argmax(1) == dishes.repeat_interleave(HELD_OUT)).sum().item()
    return correct / (drawn.shape[0] * HELD_OUT)


def optimizer_for(network: nn.Module, lr: float, steps: int):
    """AdamW and its learning rate by step: a short warm-up, then a cosine to zero.

    Biases, LayerNorms, the class token and the positions are not decayed.
    """
    parameters = dict(network.named_parameters())
    decayed = [n for n, p in parameters.items() if p.ndim > 1 and n.endswith("weight")]
    groups = [
        {"params": [parameters.pop(name) for name in decayed], "weight_decay": 0.05},
        {"params": list(parameters.values()), "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, steps, pct_start=0.05, cycle_momentum=False
    )


def losses_of(network: Pretrainer, images, dishes, contents):
    """Cross-entropy of the dish, and the tokens' distance from their contents.

    The second is the Kullback-Leibler divergence, zero where both are equal.
    """
    N = CONFIG.num_patches
    kept = torch.rand(len(images), N, device=images.device).argsort(dim=1)[:, : N // 2]
    dish_scores, contents_scores = network(images, kept)
    whole, patches = contents[:, :1], contents[:, 1:]
    patches = torch.take_along_dim(patches, kept.unsqueeze(2), dim=1)
    contents = torch.cat([whole, patches], dim=1)  # (B, N/2 + 1, NUM_LABELS)
    dish_loss = nn.functional.cross_entropy(dish_scores, dishes, label_smoothing=0.1)
    contents_loss = nn.functional.kl_div(
        contents_scores.log_softmax(-1).flatten(0, 1),
        contents.flatten(0, 1),
        reduction="batchmean",
    )
    return dish_loss, contents_loss


def pretrain(options: argparse.Namespace) -> Path:
    """Draw, train, and write the backbone's weights; return their path."""
    device = get_device()
    drawn = draw_pictures(options.dishes, options.pictures, FOLDER)
    torch.manual_seed(options.seed)
    network = Pretrainer(options.dishes).to(device)
    steps = options.images // options.batch_size
    optimizer, scheduler = optimizer_for(network, options.lr, steps)
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

    begin, losses = time.monotonic() - seconds, []
    bar = tqdm(range(start, steps), "pretraining", steps, initial=start, mininterval=10)
    for step in bar:
        network.train()
        images, dishes, contents = (
            part.to(device) for part in batch_of(drawn, step, options.batch_size)
        )
        dish_loss, contents_loss = losses_of(network, images, dishes, contents)
        optimizer.zero_grad()
        (dish_loss + contents_loss).backward()
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
        torch.save(state, checkpoint.with_suffix(".part"))
        checkpoint.with_suffix(".part").replace(checkpoint)
    return write_backbone(
        network.backbone, log, FOLDER / "vit_drawn_dishes.safetensors"
    )


def write_backbone(vit: ViT, log: list[dict], path: Path) -> Path:
    """Write the backbone in half precision, with its configuration and the log."""
    tensors = {
        name: value.half().contiguous().cpu()
        for name, value in vit.state_dict().items()
    }
    save_file(
        tensors, path, {"config": json.dumps(asdict(CONFIG)), "log": json.dumps(log)}
    )
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dishes", type=int, default=1000, help="classes")
    parser.add_argument("--pictures", type=int, default=40, help="of each dish")
    parser.add_argument("--images", type=int, default=800_000, help="seen in all")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3, help="the largest")
    parser.add_argument("--save-every", type=int, default=500, help="steps")
    parser.add_argument("--seed", type=int, default=0)
    print("weights:", pretrain(parser.parse_args()))


if __name__ == "__main__":
    main()
