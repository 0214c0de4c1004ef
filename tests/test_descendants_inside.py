"""Looking inside later ViTs, and training them: timm's attention, and what no patch is."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from test_descendants import PARTS, random_descendant, small
from test_distributed import launch
from tiny_vit import tiny_vit
from torch.testing import assert_close

from going_modular import train
from going_modular.training import recipes
from going_modular.vit.backbones import Backbone, TokenStatistics, load_vit_file, statistics_of
from going_modular.vit.descendant_config import Rotary
from going_modular.vit.files import write_vit
from going_modular.vit.inspect import (
    attention_maps,
    attention_rollout,
    class_attention,
    grid_of,
    mean_attention_distance,
    position_embedding_similarity,
    read_by_head,
    token_similarity,
    tokens_before_patches,
)
from going_modular.vit.weights import load_vit

# One of timm's architectures for each kind of attention, and its tokens before the patches
BEFORE = {
    "deit_tiny_distilled_patch16_224": 2,
    "eva02_base_patch14_224": 1,
    "vit_base_patch16_clip_224": 1,
    "vit_base_patch16_siglip_224": 0,
    "vit_medium_patch16_rope_reg1_gap_256": 1,
    "vit_small_patch14_reg4_dinov2": 5,
    "vit_small_patch16_dinov3": 5,
    "vit_small_plus_patch16_dinov3_qkvb": 5,
    "vit_small_patch16_rope_mixed_224": 1,
}


def images_of(count=2, height=32, width=32):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def timms_maps(vit, images):
    """What goes through the dropout of timm's attention weights, of all layers."""
    seen = []
    for block in vit.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda *call: seen.append(call[2]))
    with torch.inference_mode():
        vit(images)
    return torch.stack(seen, dim=1)


# Attention


@pytest.mark.parametrize(("name", "before"), BEFORE.items(), ids=BEFORE)
def test_the_same_attention_as_timms(name, before):
    vit, images = small(name), images_of(2, 64, 64)
    ours = load_vit(vit.state_dict(), architecture=name, num_heads=2, image_size=(64, 64))
    maps = attention_maps(ours, images)
    assert maps.shape == (2, 2, 2, 16 + before, 16 + before)
    assert_close(maps, timms_maps(vit, images), atol=1e-5, rtol=1e-5)
    assert maps.std() > 0.005
    assert_close(maps.sum(-1), torch.ones(maps.shape[:-1]))
    assert tokens_before_patches(maps.shape[-1], grid_of(ours, images)) == before
    rollout = attention_rollout(maps)
    picture = class_attention(rollout, (4, 4), read_by_head(ours, images))
    assert picture.shape == (2, 4, 4) and (picture.flatten(1).sum(dim=1) <= 1 + 1e-6).all()


def test_the_attention_of_siglips_pooling_is_timms():
    name = "vit_base_patch16_siglip_224"
    vit, images = small(name), images_of(2, 64, 64)
    ours = load_vit(vit.state_dict(), architecture=name, num_heads=2, image_size=(64, 64))
    pool = vit.attn_pool
    with torch.inference_mode():
        k = pool.kv(vit.forward_features(images)).unflatten(2, (2, 2, -1))[
            :, :, 0
        ]  # (B, T, h, D/h)
        q = pool.q(pool.latent).unflatten(2, (2, -1))[0, 0]  # (h, D/h)
        scores = torch.einsum("hd,bthd->bth", q, k) * pool.scale
    assert_close(read_by_head(ours, images), scores.softmax(dim=1).mean(dim=2))


# For each kind of pooling: parts, how much the head reads of each token before the 16
# patches, and of each patch
READ = {
    "class_token": ({"num_registers": 2}, [1.0, 0, 0], 0),
    "mean": ({"num_registers": 2}, [0.0, 0, 0], 1 / 16),
    "mean without a class token": ({"num_registers": 2, "class_token": False}, [0.0, 0], 1 / 16),
    "class_and_register": ({"num_registers": 1}, [1 / 2, 1 / 2], 0),
    "class_and_mean": ({"num_registers": 1}, [1 / 2, 0], 1 / 32),
}


@pytest.mark.parametrize("kind", READ)
def test_what_the_head_reads_is_a_mean_of_tokens(kind):
    parts, of_others, of_patch = READ[kind]
    expected, before = of_others + [of_patch] * 16, len(of_others)
    vit, images = random_descendant(pool=kind.split()[0], **parts), images_of()
    read = read_by_head(vit, images)
    assert_close(read, torch.tensor([expected, expected]))
    with torch.inference_mode():
        z = vit.forward_features(images)
        pooled = vit.pooled(z).view(2, -1, 24)  # one vector or two
        assert_close((read[:, :, None] * z).sum(dim=1), pooled.mean(dim=1))
    maps = attention_maps(vit, images)
    picture = class_attention(maps, (4, 4), read)
    assert picture.shape == (2, 2, 3, 4, 4)
    for image, layer, head in product(range(2), range(2), range(3)):
        rows = torch.tensor(expected) @ maps[image, layer, head]
        assert_close(picture[image, layer, head], rows[before:].view(4, 4))


def test_images_of_another_size_leave_nothing_behind():
    """Rotary positions stay those of the images that a model sees."""
    vit, images = random_descendant(num_registers=2, rotary=Rotary()), images_of()
    maps, wide = attention_maps(vit, images), images_of(1, 24, 48)
    assert attention_maps(vit, wide, interpolate=True).shape[-1] == 3 * 6 + 3
    assert read_by_head(vit, wide, interpolate=True).shape == (1, 3 * 6 + 3)
    assert torch.equal(attention_maps(vit, images), maps)


@pytest.mark.parametrize("pool", ["class_token", "mean"])
def test_without_registers_read_by_head_changes_nothing(pool):
    vit, images = tiny_vit(pool=pool), images_of()
    rollout = attention_rollout(attention_maps(vit, images))
    read = read_by_head(vit, images)
    assert_close(class_attention(rollout, (4, 4), read), class_attention(rollout, (4, 4)))


def test_the_mean_of_patches_is_no_row_of_the_class_token():
    """CLIP and DINOv3 have a class token, and a head may read the patches all the same."""
    vit, images = random_descendant(pool="mean"), images_of()
    maps = attention_maps(vit, images)[:, -1].mean(dim=1)
    picture = class_attention(maps, (4, 4), read_by_head(vit, images))
    assert_close(picture, maps[:, 1:, 1:].mean(dim=1).view(2, 4, 4))
    assert not torch.allclose(picture, maps[:, 0, 1:].view(2, 4, 4))


def test_with_registers_the_picture_needs_to_know_what_is_read():
    maps = torch.rand(2, 19, 19)
    with pytest.raises(ValueError, match="3 tokens come before .* read=read_by_head"):
        class_attention(maps, (4, 4))


# What is no patch


def test_registers_are_left_out():
    vit, images = random_descendant(num_registers=2, image_size=(16, 40)), images_of(2, 16, 40)
    grid = vit.config.grid
    maps = attention_maps(vit, images)
    among_patches = mean_attention_distance(maps[..., 3:, 3:], grid, 8)
    assert_close(mean_attention_distance(maps, grid, 8), among_patches)
    with torch.inference_mode():
        tokens = vit.forward_features(images)
        similar = token_similarity(tokens, 7, grid)
        assert_close(similar, token_similarity(tokens[:, 3:], 7, grid))
        assert similar[0].argmax() == 7
        statistics = TokenStatistics(vit)(images)
        assert torch.equal(statistics, statistics_of(tokens[:, 3:]))


def test_positions_beside_registers_can_be_compared():
    vit = random_descendant(num_registers=2, rotary=Rotary())
    patches = F.normalize(vit.pos_embedding[0, 1:].detach(), dim=1)
    similarity = position_embedding_similarity(vit)
    assert_close(similarity.flatten(2).flatten(0, 1), patches @ patches.T)
    vit = random_descendant(pos_embedding="none", rotary=Rotary())
    with pytest.raises(ValueError, match="rotary positions turn queries and keys"):
        position_embedding_similarity(vit)


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_a_backbone_knows_the_width_of_its_features(parts):
    backbone = Backbone(random_descendant(num_classes=0, **parts), "tiny")
    with torch.inference_mode():
        assert backbone(images_of()).shape == (2, backbone.embedding_dim)


def test_a_file_of_a_distilled_deit_is_a_backbone(tmp_path):
    vit = small("deit_tiny_distilled_patch16_224")
    save_file(vit.state_dict(), tmp_path / "deit.safetensors")
    backbone, *_ = load_vit_file(tmp_path / "deit.safetensors")
    assert backbone.embedding_dim == 2 * 96
    with torch.inference_mode():
        assert backbone(images_of(2, 64, 64)).shape == (2, 2 * 96)


# Training


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_only_the_matrices_of_layers_decay(parts):
    vit = random_descendant(**parts)
    decayed, others = recipes.parameter_groups(vit, recipes.Recipe(epochs=1, weight_decay=0.1))
    layers = (torch.nn.Linear, torch.nn.Conv2d)
    matrices = {id(module.weight) for module in vit.modules() if isinstance(module, layers)}
    assert {id(p) for p in decayed["params"]} == matrices
    no_layers = [
        parameter
        for name, parameter in vit.named_parameters()
        if name.split(".")[-1] in ("registers", "latent", "frequencies", "class_token")
    ]
    assert {id(p) for p in no_layers} <= {id(p) for p in others["params"]}


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_every_parameter_learns(parts, half):
    """All of them get a gradient: DDP on several processes waits for that."""
    vit = random_descendant(**parts).train()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        logits = vit(images_of())
    logits.float().square().sum().backward()
    assert [name for name, p in vit.named_parameters() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in vit.parameters())


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_a_frozen_body_leaves_the_head_to_train(parts):
    vit = random_descendant(**parts).requires_grad_(False)
    vit.head.requires_grad_(True)
    vit(images_of()).square().sum().backward()
    groups = recipes.parameter_groups(vit, recipes.Recipe(epochs=1))
    assert {id(p) for group in groups for p in group["params"]} == {
        id(vit.head.weight),
        id(vit.head.bias),
    }
    assert vit.head.weight.grad.any()


def test_stochastic_depth_and_dropout_act_in_training_only():
    torch.manual_seed(0)
    images = images_of(8)
    for changes in ({"dropout": 0.5}, {"stochastic_depth": 0.5, "dropout": 0.0}):
        for parts in PARTS.values():
            vit = random_descendant(**parts | changes)
            assert torch.equal(vit(images), vit(images))
            assert not torch.equal(vit.train()(images), vit(images))


def test_two_processes_train_the_parts_that_one_trains(food_folder):
    """Sharded: registers, query and frequencies lie in parts on both."""
    vit = random_descendant(
        num_classes=3, pool="attention", num_registers=2, rotary=Rotary(learned=True)
    )
    write_vit(vit, food_folder / "start.safetensors")
    settings = ["--data", food_folder, "--weights", food_folder / "start.safetensors"]
    settings += ["--batch-size", 8, "--epochs", 1, "--warmup-steps", 1, "--stochastic-depth", 0]
    train.main([str(word) for word in (*settings, "--output", food_folder / "one")])
    shards = ["--sharding", "fsdp", "--output", food_folder / "two"]
    finished = launch(*settings, *shards, what=("-m", "going_modular.train"))
    assert finished.returncode == 0, finished.stderr[-3000:]
    one, two = (load_file(food_folder / run / "vit.safetensors") for run in ("one", "two"))
    before = vit.state_dict()
    for name in ("registers", "pooling.latent", "encoder.1.attention.frequencies", "head.weight"):
        assert_close(two[name], one[name], atol=1e-5, rtol=0)
        assert not torch.equal(one[name], before[name])
