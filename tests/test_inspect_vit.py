"""Maps, rollout, distances and the rest against values that are known otherwise."""

import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from tiny_vit import tiny_vit
from torch import nn
from torch.testing import assert_close

from going_modular.vit.inspect import (
    attention_maps,
    attention_relevance,
    attention_rollout,
    attention_weights,
    class_attention,
    cover,
    embedding_filters,
    grid_of,
    light_on,
    mean_attention_distance,
    occlusion_sensitivity,
    patch_distances,
    position_embedding_similarity,
    token_similarity,
    tokens_before_patches,
)

KINDS = {
    "class token": {},
    "mean": {"pool": "mean"},
    "not square": {"image_size": (16, 40)},
    "one layer, one head": {"num_layers": 1, "num_heads": 1},
}
each_kind = pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)


def images_for(vit, count=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, *vit.config.image_hw, generator=generator)


def random_maps(*shape):
    """Rows that sum to 1."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).softmax(-1)


# Maps


@each_kind
def test_maps_are_the_softmax_of_the_queries_and_keys_that_a_hook_sees(changes):
    """Hooks on our own qkv layer; the loop over heads and tokens is plain."""
    vit = tiny_vit(**changes)
    images, seen = images_for(vit, count=2), []
    for block in vit.encoder:
        block.attention.qkv.register_forward_hook(lambda *call: seen.append(call[2]))
    with torch.inference_mode():
        vit(images)
    by_forward_pass = list(seen)
    maps = attention_maps(vit, images)
    D, h = vit.config.embedding_dim, vit.config.num_heads
    T = vit.config.num_patches + (vit.config.pool == "class_token")
    assert maps.shape == (2, vit.config.num_layers, h, T, T)
    for layer, qkv in enumerate(by_forward_pass):
        for image, head in product(range(2), range(h)):
            part = slice(head * D // h, (head + 1) * D // h)
            q, k, _ = (m[:, part] for m in qkv[image].split(D, dim=1))
            for token in range(T):
                scores = torch.stack([q[token] @ key for key in k]) / (D / h) ** 0.5
                assert_close(maps[image, layer, head, token], scores.softmax(0))


@each_kind
def test_with_the_values_the_maps_make_the_models_own_output(changes):
    vit = tiny_vit(**changes)
    images = images_for(vit)
    maps = attention_maps(vit, images)
    with torch.inference_mode():
        z = vit.embed(images)
        for layer, block in enumerate(vit.encoder):
            _, _, v = block.attention.queries_keys_values(block.attention_norm(z))
            heads = (maps[:, layer] @ v).transpose(1, 2).flatten(2)
            z = z + block.attention.projection(heads)
            z = z + block.mlp(block.mlp_norm(z))
        assert_close(vit.norm(z), vit.forward_features(images))


@each_kind
def test_rows_sum_to_one_and_a_batch_is_its_images_one_by_one(changes):
    vit = tiny_vit(**changes)
    images = images_for(vit)
    maps = attention_maps(vit, images)
    assert_close(maps.sum(-1), torch.ones(maps.shape[:-1]))
    single = torch.cat([attention_maps(vit, image[None]) for image in images])
    assert_close(maps, single)
    rollout = attention_rollout(maps)
    assert_close(rollout.sum(-1), torch.ones(rollout.shape[:-1]))
    for image, of_image in zip(maps, rollout, strict=True):
        assert_close(attention_rollout(image), of_image)
    distances = mean_attention_distance(maps, vit.config.grid, vit.config.patch_size)
    for image, of_image in zip(maps, distances, strict=True):
        alone = mean_attention_distance(image, vit.config.grid, vit.config.patch_size)
        assert_close(alone, of_image)


def test_maps_switch_dropout_off_and_take_images_of_other_sizes():
    vit = tiny_vit(dropout=0.5).train()
    images = images_for(vit)
    assert torch.equal(attention_maps(vit, images), attention_maps(vit, images))
    wide = torch.randn(1, 3, 24, 48)
    assert grid_of(vit, wide) == (3, 6)
    assert attention_maps(vit, wide, interpolate=True).shape[-1] == 3 * 6 + 1
    with pytest.raises(ValueError, match="interpolate=True"):
        attention_maps(vit, wide)


def test_maps_of_a_hybrid():
    stem = nn.Sequential(nn.Conv2d(3, 6, 4, stride=4), nn.BatchNorm2d(6))
    vit = type(tiny_vit())(tiny_vit(image_size=(4, 6), patch_size=2, in_channels=6).config, stem)
    images = torch.randn(2, 3, 16, 24)
    assert grid_of(vit, images) == (2, 3)
    assert attention_maps(vit, images).shape == (2, 2, 3, 7, 7)
    assert not stem[1].running_mean.any()  # only looked at, not trained


# Rollout and class token


def test_rollout_is_the_product_over_all_paths():
    """A path goes from token to token, layer by layer; its weight is a product."""
    maps = random_maps(3, 2, 4, 4).double()  # L, h, T, T
    mixed = (maps.mean(1) + torch.eye(4)) / 2
    expected = torch.zeros(4, 4, dtype=torch.double)
    for a, b, c, d in product(range(4), repeat=4):
        expected[a, d] += mixed[2, a, b] * mixed[1, b, c] * mixed[0, c, d]
    assert_close(attention_rollout(maps), expected)


def test_rollout_of_attention_to_oneself_stays_where_it_is():
    eye = torch.eye(5).expand(1, 4, 2, 5, 5)
    assert_close(attention_rollout(eye), torch.eye(5)[None])


def test_rollout_halves_the_residual_with_each_layer():
    """All attention goes to token 0: a token keeps 2^-L of itself."""
    maps = torch.zeros(6, 1, 3, 3)
    maps[..., 0] = 1
    assert_close(attention_rollout(maps)[1], torch.tensor([1 - 2**-6, 2**-6, 0]))


# Relevance


def relevance_by_autograd(vit, images, head, classes):
    """Equations 5 and 6 of Chefer et al., with A as a part of the graph."""
    z, maps = vit.embed(images), []
    for block in vit.encoder:
        q, k, v = block.attention.queries_keys_values(block.attention_norm(z))
        maps.append(attention_weights(q, k))
        z = z + block.attention.projection((maps[-1] @ v).transpose(1, 2).flatten(2))
        z = z + block.mlp(block.mlp_norm(z))
    read = vit.norm(z)
    logits = head(read[:, 0] if vit.config.num_class_tokens else read.mean(dim=1))
    gradients = torch.autograd.grad(logits[torch.arange(len(images)), classes].sum(), maps)
    R = torch.eye(maps[0].shape[-1]).expand(len(images), -1, -1)
    for A, gradient in zip(maps, gradients, strict=True):
        R = R + (A * gradient).clamp(min=0).mean(dim=1) @ R
    return R.detach()


@each_kind
def test_relevance_is_attention_times_its_gradient(changes):
    vit = tiny_vit(num_classes=0, **changes)
    head, images = nn.Linear(vit.config.embedding_dim, 5), images_for(vit)
    classes = torch.tensor([4, 0, 2])
    expected = relevance_by_autograd(vit, images, head, classes)
    assert (expected - torch.eye(expected.shape[-1])).max() > 1e-3  # it is not the identity
    assert_close(attention_relevance(vit, images, head, classes), expected)
    with torch.inference_mode():  # as in a notebook's cell
        assert_close(attention_relevance(vit, images, head, classes), expected)


def test_relevance_explains_the_predicted_class_of_a_frozen_model_by_default():
    vit = tiny_vit(num_classes=5).requires_grad_(False)
    images = images_for(vit)
    predicted = vit(images).argmax(dim=1)
    by_default = attention_relevance(vit, images)
    assert_close(by_default, attention_relevance(vit, images, classes=predicted))
    assert not torch.equal(by_default, attention_relevance(vit, images, classes=4 - predicted))
    assert not any(block.attention._forward_pre_hooks for block in vit.encoder)


def test_nothing_is_relevant_to_a_head_that_reads_nothing():
    vit = tiny_vit(num_classes=5)
    nn.init.zeros_(vit.head.weight)
    relevance = attention_relevance(vit, images_for(vit))
    assert_close(relevance, torch.eye(relevance.shape[-1]).expand_as(relevance))


def test_class_attention_is_row_0_or_the_mean_of_all_rows():
    maps = random_maps(2, 5, 5)
    picture = class_attention(maps, (2, 2))
    assert torch.equal(picture[1], maps[1, 0, 1:].view(2, 2))
    picture = class_attention(maps, (1, 5))
    assert_close(picture[1, 0], torch.stack([row for row in maps[1]]).mean(0))
    with pytest.raises(ValueError, match="5 tokens are not a grid of 2 x 3 = 6"):
        class_attention(maps, (2, 3))


def test_light_on_a_mask_is_1_for_even_light_and_counted_by_hand_for_other():
    mask = torch.zeros(2, 2, 4)
    mask[0, 0, :2] = 1  # two of eight patches
    mask[1, 1, 3] = 0.5  # half of one
    assert_close(light_on(torch.full((2, 2, 4), 0.3), mask), torch.ones(2))
    light = torch.zeros(2, 2, 4)
    light[:, 0, 0], light[:, 1, 3] = 3, 1
    assert_close(light_on(light, mask), torch.tensor([0.75 / 0.25, 0.125 / 0.0625]))
    with pytest.raises(ValueError, match="nothing belongs to one of the masks"):
        light_on(light, torch.zeros(2, 2, 4))


def test_tokens_that_are_not_those_of_a_grid():
    assert [tokens_before_patches(tokens, (2, 3)) for tokens in (6, 7, 22)] == [0, 1, 16]
    for tokens in (5, 23):
        with pytest.raises(ValueError, match=f"{tokens} tokens are not a grid of 2 x 3 = 6"):
            tokens_before_patches(tokens, (2, 3))
    for side in range(8, 40):  # the grid of images of another size
        with pytest.raises(ValueError, match="give the grid of these images"):
            tokens_before_patches((side + 1) ** 2 + 1, (side, side))


# Distance


def with_class_token(patches):
    """Attention among patches as a part of attention among tokens."""
    N = len(patches)
    maps = torch.full((N + 1, N + 1), 1 / (N + 1))
    maps[1:, 0] = 0.3
    maps[1:, 1:] = 0.7 * patches
    return maps


@pytest.mark.parametrize("grid", [(3, 3), (2, 5), (1, 4)])
def test_distances_of_attentions_made_by_hand(grid):
    rows, columns = grid
    N, P = rows * columns, 16
    places = [(r, c) for r in range(rows) for c in range(columns)]
    everywhere = sum(math.dist(a, b) for a in places for b in places) / N**2 * P
    by_hand = {"itself": (torch.eye(N), 0.0)}
    by_hand["everywhere"] = (torch.full((N, N), 1 / N), everywhere)
    shift = torch.zeros(N, N)  # to the right; at the border it stays
    for patch, (_, column) in enumerate(places):
        shift[patch, patch + (column + 1 < columns)] = 1
    by_hand["one to the right"] = (shift, P * (columns - 1) / columns)
    for patches, expected in by_hand.values():
        for maps in (patches, with_class_token(patches)):
            distance = mean_attention_distance(maps, grid, P)
            assert distance.item() == pytest.approx(expected, abs=1e-4)


def test_patch_distances():
    distances = patch_distances((2, 3), 10)
    assert distances[0].tolist() == pytest.approx([0, 10, 20, 10, 200**0.5, 500**0.5])
    assert torch.equal(distances, distances.T)


def test_distances_keep_the_leading_dimensions():
    assert mean_attention_distance(random_maps(2, 4, 3, 7, 7), (2, 3), 8).shape == (2, 4, 3)


# Weights


@pytest.mark.parametrize("kind", ["learned_1d", "learned_2d", "sincos_2d"])
def test_a_position_is_most_similar_to_itself(kind):
    vit = tiny_vit(pos_embedding=kind, image_size=(16, 32))
    similarity = position_embedding_similarity(vit)
    assert similarity.shape == (2, 4, 2, 4)
    positions = vit.positions((2, 4))[0, 1:].view(2, 4, -1)
    for r, c, i, j in product(range(2), range(4), range(2), range(4)):
        expected = F.cosine_similarity(positions[r, c], positions[i, j], dim=0)
        assert_close(similarity[r, c, i, j], expected.detach(), atol=1e-5, rtol=0)
    for r, c in product(range(2), range(4)):
        assert similarity[r, c].argmax() == r * 4 + c
        assert similarity[r, c, r, c].item() == pytest.approx(1, abs=1e-5)


def test_orthogonal_positions_are_similar_to_themselves_alone():
    vit = tiny_vit()
    with torch.no_grad():
        vit.pos_embedding[0, 1:] = 3 * torch.eye(24)[:16]
    similarity = position_embedding_similarity(vit)
    assert_close(similarity.flatten(2).flatten(0, 1), torch.eye(16))
    with pytest.raises(ValueError, match="nothing to see"):
        position_embedding_similarity(tiny_vit(pos_embedding="none"))


def test_filters_are_orthonormal_and_explain_the_variance_they_state():
    vit = tiny_vit()
    count = 10
    filters, shares = embedding_filters(vit, count)
    assert filters.shape == (count, 3, 8, 8)
    flat = filters.flatten(1)
    assert_close(flat @ flat.T, torch.eye(count), atol=1e-5, rtol=0)
    E = vit.patch_embedding.projection.weight.detach().flatten(1)
    centred = E - E.mean(dim=0)
    variance = (centred @ flat.T).square().sum(dim=0) / centred.square().sum()
    assert_close(shares, variance, atol=1e-5, rtol=1e-4)
    assert (shares.diff() <= 0).all() and shares.sum() < 1
    assert_close(embedding_filters(vit, 23)[1].sum(), torch.tensor(1.0))
    assert (flat.gather(1, flat.abs().argmax(1, keepdim=True)) > 0).all()


def test_filters_of_an_embedding_of_low_rank():
    vit, (first, second) = tiny_vit(), torch.eye(192)[[5, 77]]
    with torch.no_grad():
        amounts = torch.tensor([3.0, -3.0] * 6 + [1.0, -1.0] * 6)
        E = torch.cat([amounts[:12, None] * first, amounts[12:, None] * second])
        vit.patch_embedding.projection.weight.copy_(E.view(24, 3, 8, 8))
    filters, shares = embedding_filters(vit, 2)
    assert_close(filters.flatten(1), torch.stack([first, second]), atol=1e-6, rtol=0)
    assert_close(shares, torch.tensor([0.9, 0.1]))
    for count in (0, 24):
        with pytest.raises(ValueError, match="from 1 to 23"):
            embedding_filters(vit, count)


# Tokens and predictions


def test_similar_tokens():
    tokens = torch.eye(7)[None].repeat(2, 1, 1) * 5
    tokens[1, 4] = tokens[1, 2] * 0.1  # patches 3 and 1 point the same way
    assert_close(
        token_similarity(tokens, 1, (2, 3)),
        torch.tensor([[[0.0, 1, 0], [0, 0, 0]], [[0, 1, 0], [1, 0, 0]]]),
    )
    assert_close(token_similarity(tokens, 6, (1, 7))[0, 0], torch.eye(7)[6])
    for patch in (-1, 6):
        with pytest.raises(ValueError, match="from 0 to 5"):
            token_similarity(tokens, patch, (2, 3))


def test_cover_hides_these_patches_and_no_others():
    images = torch.rand(2, 3, 4, 6) + 1
    covered = cover(images, torch.tensor([[0, 5], [2, 2]]), 2, color=-1.0)
    hidden = covered == -1
    assert hidden[0, :, :2, :2].all() and hidden[0, :, 2:, 4:].all()
    assert hidden[1, :, :2, 4:].all()
    assert hidden.sum() == 3 * 3 * 4
    assert torch.equal(covered[~hidden], images[~hidden])
    with pytest.raises(ValueError, match="patches of 4 pixels do not fit into 4 x 6"):
        cover(images, torch.tensor([[0], [0]]), 4)
    for patches in ([[0], [6]], [[-1], [0]], [[0]]):
        with pytest.raises(ValueError, match="from 0 to 5, a row for each of 2 images"):
            cover(images, torch.tensor(patches), 2)


def test_occlusion_finds_the_patch_that_decides():
    """A model that looks at one pixel of each image."""

    def model(images):
        score = images[:, 0, 5, 9]  # of the patch in row 1, column 2
        return torch.stack([score, torch.zeros_like(score)], dim=1)

    images = torch.ones(2, 3, 8, 12)
    images[1] *= -2  # class 1 there
    drop = occlusion_sensitivity(model, images, 4)
    expected = torch.zeros(2, 2, 3)
    for i, score in enumerate((1.0, 2.0)):
        expected[i, 1, 2] = torch.tensor(score).sigmoid() - 0.5
    assert_close(drop, expected)


def test_occlusion_of_a_batch_is_that_of_its_images_one_by_one():
    vit = tiny_vit(image_size=(16, 24))
    images = images_for(vit)
    batch = occlusion_sensitivity(vit, images, 8)
    assert batch.shape == (3, 2, 3) and (batch.abs() <= 1).all()
    for image, of_image in zip(images, batch, strict=True):
        assert_close(occlusion_sensitivity(vit, image[None], 8)[0], of_image)
