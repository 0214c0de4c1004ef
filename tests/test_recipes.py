import math

import pytest
import torch
from PIL import Image
from tiny_vit import tiny_vit
from torch import nn

from going_modular.images.transforms import IMAGENET_MEAN, IMAGENET_STD
from going_modular.model_builder import VIT_CONFIGS
from going_modular.training import recipes
from going_modular.training.recipes import RECIPES, TABLE_3, TABLE_4, Recipe


def expected_rate(recipe, steps, t):
    """The formula in `build_scheduler`'s docstring."""
    W = recipe.warmup_steps
    if t < W:
        return recipe.lr * (t + 1) / W
    s = (t - W) / (steps - W)
    return (
        recipe.lr
        * {"constant": 1, "linear": 1 - s, "cosine": (1 + math.cos(math.pi * s)) / 2}[
            recipe.schedule
        ]
    )


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup_steps", [0, 1, 2, 7])
def test_learning_rates_follow_the_formula(schedule, warmup_steps):
    recipe = Recipe(epochs=1, lr=0.3, schedule=schedule, warmup_steps=warmup_steps)
    rates = recipes.learning_rates(recipe, steps=20)
    expected = [expected_rate(recipe, 20, t) for t in range(20)]
    assert rates == pytest.approx(expected, rel=1e-9)
    assert max(rates) == pytest.approx(0.3)


def test_a_warm_up_of_the_whole_training_is_an_error():
    with pytest.raises(ValueError, match="10000 steps of warm-up.*of 300 steps"):
        recipes.learning_rates(RECIPES["paper-imagenet"], steps=300)


def test_decay_is_for_the_matrices_of_layers_only():
    vit = tiny_vit(num_classes=3)
    recipe = Recipe(epochs=1, weight_decay=0.3)
    decayed, others = recipes.parameter_groups(vit, recipe)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    matrices = {
        id(module.weight) for module in vit.modules() if isinstance(module, nn.Linear | nn.Conv2d)
    }
    assert {id(p) for p in decayed["params"]} == matrices
    rest = {id(p) for p in others["params"]}
    assert {id(vit.class_token), id(vit.pos_embedding)} <= rest
    assert len(matrices) + len(rest) == len(list(vit.parameters()))


def test_frozen_parameters_are_in_no_group():
    vit = tiny_vit(num_classes=3).requires_grad_(False)
    vit.head.requires_grad_(True)
    groups = recipes.parameter_groups(vit, Recipe(epochs=1))
    trained = [p for group in groups for p in group["params"]]
    assert {id(p) for p in trained} == {id(vit.head.weight), id(vit.head.bias)}


def test_the_decay_of_adamw_is_not_a_gradient():
    """Without a gradient AdamW takes lr · decay of a weight away, Adam almost lr."""
    after = {}
    for name in ("adamw", "adam"):
        layer = nn.Linear(1, 1)
        layer.weight.data.fill_(1.0)
        recipe = Recipe(epochs=1, lr=0.01, optimizer=name, weight_decay=0.3)
        optimizer = recipes.build_optimizer(layer, recipe)
        layer.weight.grad = torch.zeros(1, 1)
        optimizer.step()
        after[name] = layer.weight.item()
    assert after["adamw"] == pytest.approx(1 - 0.01 * 0.3, abs=1e-7)
    assert after["adam"] == pytest.approx(1 - 0.01, abs=1e-6)


def test_the_papers_tables():
    assert {recipe.batch_size for recipe in TABLE_3.values()} == {4096}
    assert {recipe.warmup_steps for recipe in TABLE_3.values()} == {10_000}
    assert {recipe.betas for recipe in TABLE_3.values()} == {(0.9, 0.999)}
    assert {name for name, _ in TABLE_3} <= set(VIT_CONFIGS)
    imagenet = TABLE_3["ViT-B/16", "ImageNet"]
    assert (imagenet.epochs, imagenet.lr, imagenet.weight_decay) == (300, 3e-3, 0.3)
    assert (imagenet.schedule, imagenet.dropout) == ("cosine", 0.1)
    assert imagenet.clip_norm == 1.0  # on ImageNet alone
    others = {r.clip_norm for (_, data), r in TABLE_3.items() if data != "ImageNet"}
    assert others == {0.0}
    huge = TABLE_3["ViT-H/14", "JFT-300M"]
    assert (huge.epochs, huge.lr, huge.weight_decay) == (14, 3e-4, 0.1)
    assert (huge.schedule, huge.dropout) == ("linear", 0.0)
    steps, rates = TABLE_4["ImageNet"]
    assert steps == 20_000 and rates == (0.003, 0.01, 0.03, 0.06)
    finetune = recipes.finetuning_recipe("CIFAR-10", lr=0.01)
    assert (finetune.steps, finetune.optimizer, finetune.momentum) == (10_000, "sgd", 0.9)
    assert (finetune.batch_size, finetune.weight_decay) == (512, 0.0)
    assert finetune.epochs_of(steps_per_epoch=98) == 103  # 102.04, rounded up


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "needs epochs or steps"),
        ({"epochs": 1, "steps": 1}, "needs epochs or steps"),
        ({"epochs": 1, "optimizer": "lion"}, 'optimizer must be "adamw" or "adam"'),
        ({"epochs": 1, "lr": -1.0}, "lr must be a number >= 0, got -1.0"),
        ({"epochs": 1, "lr": math.nan}, "lr must be a number"),
        ({"epochs": 1, "batch_size": 0}, "batch_size must be a whole number >= 1"),
        ({"epochs": 1, "crop_scale": 2.0}, "crop_scale must be at most 1, got 2.0"),
        ({"epochs": 1, "randaugment": 31}, "randaugment must be at most 30"),
        ({"epochs": 1, "average_decay": 1.0}, "average_decay must be .* below 1, got 1.0"),
        ({"epochs": 1, "dropout": 1.0}, "dropout must be a number from 0 to below 1, got 1.0"),
        ({"epochs": 1, "stochastic_depth": 1}, "stochastic_depth must be .* below 1, got 1"),
        ({"epochs": 1, "betas": (2, 3)}, r"betas must be two numbers .*, got \(2, 3\)"),
        ({"epochs": 1, "betas": (0.9, 1.0)}, r"below 1, got \(0.9, 1.0\)"),
        ({"epochs": 1, "betas": (0.9,)}, r"betas must be two numbers .*, got \(0.9,\)"),
    ],
)
def test_impossible_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**settings)


def test_transforms_give_the_size_asked_for_and_normalised_colours():
    image = Image.new("RGB", (50, 30), "white")
    for recipe in RECIPES.values():
        tensor = recipes.training_transform(recipe, 16)(image)
        assert tensor.shape == (3, 16, 16) and tensor.dtype == torch.float32
    recipe = Recipe(epochs=1)  # nothing random: the training image is the whole one
    tensor = recipes.training_transform(recipe, 16)(image)
    white = (1 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    torch.testing.assert_close(tensor, white.view(3, 1, 1).expand(3, 16, 16))


def test_each_setting_changes_the_image():
    torch.manual_seed(0)
    image = (255 * torch.rand(3, 24, 24)).to(torch.uint8)
    plain = recipes.training_transform(Recipe(epochs=1), 16)(image)
    for setting in ("crop_scale", "color_jitter", "randaugment", "flip"):
        value = {"randaugment": 9, "flip": True}.get(setting, 0.3)
        transform = recipes.training_transform(Recipe(epochs=1, **{setting: value}), 16)
        changed = [transform(image) for _ in range(8)]
        assert any(not torch.equal(each, plain) for each in changed), setting
        if setting == "flip":
            mirrored = [torch.equal(each, plain.flip(2)) for each in changed]
            assert any(mirrored) and not all(mirrored)


def test_mixed_labels_are_shares_of_two_classes():
    images, labels = torch.rand(6, 3, 8, 8), torch.arange(6) % 3
    assert recipes.build_mix(Recipe(epochs=1), 3) is None
    for setting in ({"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}):
        mix = recipes.build_mix(Recipe(epochs=1, **setting), 3)
        mixed, shares = mix(images, labels)
        assert shares.shape == (6, 3) and not torch.equal(mixed, images)
        torch.testing.assert_close(shares.sum(dim=1), torch.ones(6))


def test_averaged_weights_follow_the_formula():
    layer, decay = nn.Linear(1, 1, bias=False), 0.9
    average = recipes.build_average(layer, Recipe(epochs=1, average_decay=decay))
    expected = None
    for value in (1.0, 2.0, 5.0):
        layer.weight.data.fill_(value)
        average.update_parameters(layer)
        first = expected is None
        expected = value if first else decay * expected + (1 - decay) * value
        assert average.module.weight.item() == pytest.approx(expected, rel=1e-6)
    assert recipes.build_average(layer, Recipe(epochs=1)) is None


def test_the_chapters_start_has_its_spread():
    vit = recipes.initialize("chapter", tiny_vit(embedding_dim=64, num_heads=2))
    assert vit.class_token.std().item() == pytest.approx(1, abs=0.3)
    assert vit.pos_embedding.std().item() == pytest.approx(1, abs=0.2)
    block = vit.encoder[0]
    assert not block.attention.qkv.bias.any()  # as nn.MultiheadAttention starts
    assert not block.attention.projection.bias.any() and block.mlp.expand.bias.all()
    bound = (6 / (64 + 3 * 64)) ** 0.5
    assert 0.95 * bound < block.attention.qkv.weight.abs().max() <= bound
    before = {n: p.clone() for n, p in vit.named_parameters()}
    recipes.initialize("paper", vit)  # leaves a ViT as it is
    assert all(torch.equal(p, before[n]) for n, p in vit.named_parameters())
