"""What each part of a training recipe adds, for notebook 11.

python -m going_modular.experiments.recipe_parts

Each run becomes one line of `results/parts.jsonl`, and a run that is stored there is not
done again. So a sweep that was stopped goes on where it was.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import torch
from torch.utils.data import TensorDataset

from going_modular import data_setup
from going_modular.drawings.synthetic_food import make_food_dataset
from going_modular.experiments.command_line import endings_in_one_line, sweep_parser
from going_modular.experiments.sweeps import fingerprint, sweep
from going_modular.images.transforms import evaluation_transform
from going_modular.model_builder import ViT, ViTConfig
from going_modular.training.fit import augment, fit, load_resized
from going_modular.training.recipes import RECIPES, initialize
from going_modular.utils import data_dir, get_device, require_checkout, set_seeds
from going_modular.vit.config import check_choice

# The model of notebook 08 at size "cpu"
PARTS_MODEL = ViTConfig(
    image_size=64,
    patch_size=8,
    embedding_dim=128,
    num_layers=4,
    num_heads=4,
    mlp_dim=512,
    num_classes=3,
)
PARTS_EPOCHS = 30  # of every recipe
# Each recipe is the one before it with one part more
_ADDED: dict[str, dict] = {
    "+ start values": {"init": "paper"},
    "+ AdamW": {"optimizer": "adamw", "decay_everything": False},
    "+ warm-up": {"warmup_steps": 40},
    "+ clipping": {"clip_norm": 1.0},
    "+ cosine decay": {"schedule": "cosine"},
    "+ learning rate 0.001": {"lr": 1e-3},
    "+ augmentation": {"crop_scale": 0.25, "flip": True, "color_jitter": 0.2},
}
PARTS = {"chapter's recipe": replace(RECIPES["chapter"], epochs=PARTS_EPOCHS)}
for _name, _changes in _ADDED.items():
    PARTS[_name] = replace(list(PARTS.values())[-1], **_changes)


def run_part(part: str, seed: int, epochs: int | None = None, **options) -> dict:
    """Train by one of `PARTS` on the drawings; return what notebook 11 draws of it.

    The ViT learns from the 225 training images and is evaluated on 300 others, which are
    drawn from another seed. The series' test images have no part in it.

    Args:
        epochs: fewer than the recipe's, for a quick look; without a warm-up.
        options: of `engine.train`.

    Returns:
        The results of `engine.train` by epoch, and the gradient's norm by step.

    Raises:
        ValueError: if there is no such part.
    """
    check_choice("part", part, list(PARTS))
    recipe = PARTS[part]
    if epochs is not None:
        recipe = replace(recipe, epochs=epochs, warmup_steps=0)
    set_seeds(seed)
    vit = initialize(recipe.init, ViT(replace(PARTS_MODEL, dropout=recipe.dropout)))
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
    """300 drawings of another seed, in the transform for evaluation at this size."""
    folder = make_food_dataset(data_dir() / "more_synthetic_food", seed=7)
    transform = evaluation_transform(size)
    parts = [
        data_setup.load_into_memory(data_setup.PhotoFolder(folder / part, transform))
        for part in ("train", "test")
    ]
    return TensorDataset(*map(torch.cat, zip(*(p.tensors for p in parts), strict=True)))


def settings_of(part: str) -> str:
    """A fingerprint of the settings of one of `PARTS`."""
    return fingerprint(PARTS_MODEL, PARTS[part])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = sweep_parser("recipe_parts", "What each part of a training recipe adds")
    options = parser.parse_args(arguments)
    points = [
        {"part": part, "seed": seed, "settings": settings_of(part)}
        for seed in range(options.seeds)
        for part in PARTS
    ]
    with endings_in_one_line(parser.prog):
        require_checkout()
        sweep("parts", points, run_part, options.jobs)


if __name__ == "__main__":
    main()
