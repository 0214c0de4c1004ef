"""What each part of a training recipe adds, for notebook 11.

python -m going_modular.experiments.recipe_parts
"""

import argparse
from dataclasses import replace
from functools import cache

import torch
from torch.utils.data import TensorDataset

from going_modular import data_setup
from going_modular.drawings.synthetic_food import make_food_dataset
from going_modular.experiments.sweeps import fingerprint, sweep
from going_modular.images.transforms import evaluation_transform
from going_modular.model_builder import ViT, ViTConfig
from going_modular.training.fit import augment, fit, load_resized
from going_modular.training.recipes import RECIPES, initialize
from going_modular.utils import data_dir, get_device, set_seeds

# What each part of a recipe gives, one after the other. The model is that of notebook
# 08 at size "cpu", the length always the same.
PARTS_MODEL = ViTConfig(
    image_size=64,
    patch_size=8,
    embedding_dim=128,
    num_layers=4,
    num_heads=4,
    mlp_dim=512,
    num_classes=3,
)
PARTS_EPOCHS = 30
PARTS = {"chapter's recipe": replace(RECIPES["chapter"], epochs=PARTS_EPOCHS)}
for _name, _changes in {
    "+ start values": {"start": "paper"},
    "+ AdamW": {"optimizer": "adamw", "decay_everything": False},
    "+ warm-up": {"warmup_steps": 40},
    "+ clipping": {"clip_norm": 1.0},
    "+ cosine decay": {"schedule": "cosine"},
    "+ learning rate 0.001": {"lr": 1e-3},
    "+ augmentation": {"crop_scale": 0.25, "flip": True, "color_jitter": 0.2},
}.items():
    PARTS[_name] = replace(list(PARTS.values())[-1], **_changes)


def run_part(part: str, seed: int, epochs: int | None = None, **options) -> dict:
    """Train by one row of `PARTS` on the drawings; what notebook 11 draws of it.

    It learns from the 225 training images and is measured on 300 others, drawn from
    another seed; the series' test images have no part in it.

    Args:
        epochs: fewer than the recipe's, for a quick look.
        options: of `engine.train`.
    """
    recipe = PARTS[part]
    if epochs is not None:
        recipe = replace(recipe, epochs=epochs, warmup_steps=0)
    set_seeds(seed)
    vit = initialize(recipe.start, ViT(replace(PARTS_MODEL, dropout=recipe.dropout)))
    size, norms = vit.config.image_size, []
    drawn = data_setup.get_drawn_images()
    _, results = fit(
        vit,
        recipe,
        augment(load_resized(drawn.train_dir, size), recipe, size, seed),
        held_out_drawings(size),
        num_classes=3,
        device=get_device(),
        seed=seed,
        progress=False,
        on_step=lambda epoch, step: norms.append(round(step.grad_norm, 4)),
        **options,
    )
    collapsed = results.pop("collapsed")
    digits = {name: [round(v, 4) for v in values] for name, values in results.items()}
    return {**digits, "collapsed": collapsed, "grad_norm": norms}


@cache
def held_out_drawings(size: int) -> TensorDataset:
    """300 drawings of another seed, as a model of this image size is evaluated."""
    folder = make_food_dataset(data_dir() / "more_synthetic_food", seed=7)
    transform = evaluation_transform(size)
    parts = [
        data_setup.load_into_memory(data_setup.PhotoFolder(folder / part, transform))
        for part in ("train", "test")
    ]
    return TensorDataset(*map(torch.cat, zip(*(p.tensors for p in parts), strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="0, 1, ... (default: 3)")
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side")
    options = parser.parse_args()
    points = [
        {"part": part, "seed": seed, "settings": fingerprint(PARTS_MODEL, recipe)}
        for seed in range(options.seeds)
        for part, recipe in PARTS.items()
    ]
    sweep("parts", points, run_part, options.jobs)


if __name__ == "__main__":
    main()
