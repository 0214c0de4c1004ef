import math
from dataclasses import replace

import pytest
import torch
from tiny_vit import TINY, tiny_vit
from torch import nn
from torchvision.models.vision_transformer import interpolate_embeddings

from going_modular.model_builder import ViT
from going_modular.utils import give_random_values
from going_modular.vit.positions import interpolate_pos_embedding, join_axes, sincos_2d
from going_modular.vit.weights import load_weights

GRID = (3, 4)
KINDS = ("learned_1d", "learned_2d", "sincos_2d", "none")
each_kind = pytest.mark.parametrize("kind", KINDS)
each_pool = pytest.mark.parametrize("pool", ["class_token", "mean"])


def vit_of(**overrides):
    return tiny_vit(**{"image_size": (24, 32), **overrides})


# Four kinds


@each_pool
@each_kind
def test_every_kind_adds_its_positions_and_saves_what_it_learns(kind, pool):
    vit = vit_of(pos_embedding=kind, pool=pool)
    images, tokens = torch.randn(2, 3, 24, 32), 12 + (pool == "class_token")
    assert vit.positions(GRID).shape == (1, tokens, 24)
    seen = []
    vit.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    features = vit.forward_features(images)
    assert features.shape == (2, tokens, 24)
    patches = vit.patch_embedding(images)
    expected = patches + vit.positions(GRID)[:, -12:]
    assert torch.equal(seen[0][:, -12:], expected)

    saved = vit.state_dict()
    assert ("pos_embedding" in saved) == (kind in ("learned_1d", "learned_2d"))
    assert ("class_token" in saved) == (pool == "class_token")
    again = ViT(vit.config).eval()
    again.load_state_dict(saved, strict=True)
    assert torch.equal(again(images), vit(images))


@each_kind
def test_what_a_kind_learns(kind):
    with_positions = sum(p.numel() for p in vit_of(pos_embedding=kind).parameters())
    without = sum(p.numel() for p in vit_of(pos_embedding="none").parameters())
    learned = {"learned_1d": 13 * 24, "learned_2d": (3 + 4) * 12}.get(kind, 0)
    assert with_positions - without == learned


def test_learned_2d_joins_the_column_and_the_row():
    axes = torch.randn(1, 3 + 4, 12)
    joined = join_axes(axes, GRID, class_tokens=1)
    assert not joined[:, 0].any()
    for row in range(3):
        for column in range(4):
            place = joined[0, 1 + 4 * row + column]
            x, y = axes[0, 3 + column], axes[0, row]
            assert torch.equal(place, torch.cat([x, y]))


def test_sines_and_cosines_number_by_number():
    positions, D = sincos_2d(GRID, 24)[0], 24
    for row in range(3):
        for column in range(4):
            expected = [
                function(place / 10_000 ** (i / (D // 4 - 1)))
                for place in (column, row)
                for function in (math.sin, math.cos)
                for i in range(D // 4)
            ]
            torch.testing.assert_close(positions[4 * row + column], torch.tensor(expected))


def test_the_fixed_kinds_are_what_they_are_called():
    positions = vit_of(pos_embedding="sincos_2d").positions(GRID)
    assert not positions[:, 0].any()  # the class token's
    assert torch.equal(positions[:, 1:], sincos_2d(GRID, 24))
    assert not vit_of(pos_embedding="none").positions(GRID).any()


def test_without_positions_the_order_of_patches_is_lost():
    images = torch.randn(1, 3, 24, 32)
    shuffled = torch.cat([images[..., 8:], images[..., :8]], dim=-1)  # whole patches
    for kind in KINDS:
        vit = vit_of(pos_embedding=kind).double()
        with torch.no_grad():
            change = (vit(images.double()) - vit(shuffled.double())).abs().max()
        assert (change < 1e-12) == (kind == "none"), kind


# Mean pooling


def test_the_mean_of_the_patches_is_read_and_there_is_no_class_token():
    vit = vit_of(pool="mean").double()
    images = torch.randn(2, 3, 24, 32, dtype=torch.float64)
    z = vit.encoder(vit.patch_embedding(images) + vit.pos_embedding)  # (B, N, D)
    expected = vit.head(vit.norm(z).mean(dim=1))
    torch.testing.assert_close(vit(images), expected, rtol=1e-10, atol=1e-12)
    assert "class_token" not in dict(vit.named_parameters())


# Other resolutions


@pytest.mark.parametrize("new_size", [32, 64, 384])
def test_interpolation_equals_torchvisions(new_size):
    positions = torch.randn(1, 8 * 8 + 1, 24)
    state_dict = {"encoder.pos_embedding": positions.clone()}
    theirs = interpolate_embeddings(new_size, 8, state_dict)["encoder.pos_embedding"]
    ours = interpolate_pos_embedding(positions, (8, 8), (new_size // 8, new_size // 8))
    assert torch.equal(ours, theirs)


def test_the_same_grid_gives_the_same_tensor():
    positions = torch.randn(1, 13, 24)
    assert interpolate_pos_embedding(positions, GRID, GRID) is positions


def test_interpolation_on_grids_that_are_not_square():
    positions = torch.randn(1, 13, 24)
    new = interpolate_pos_embedding(positions, GRID, (5, 9))
    assert torch.equal(new[:, 0], positions[:, 0])  # the class token's
    old_grid, new_grid = (positions[0, 1:].unflatten(0, GRID), new[0, 1:].unflatten(0, (5, 9)))
    for row in (0, -1):
        for column in (0, -1):  # corners stay where they are
            torch.testing.assert_close(new_grid[row, column], old_grid[row, column])
    # Rows and columns are independent: first one, then the other, gives the same
    rows_first = interpolate_pos_embedding(positions[:, 1:], GRID, (5, 4))
    both = interpolate_pos_embedding(rows_first, (5, 4), (5, 9))
    torch.testing.assert_close(both, new[:, 1:], rtol=1e-5, atol=1e-5)
    # ... and turning the grid over its diagonal changes their roles
    turned = old_grid.transpose(0, 1).flatten(0, 1).unsqueeze(0)
    turned = interpolate_pos_embedding(turned, (4, 3), (9, 5))[0].unflatten(0, (9, 5))
    torch.testing.assert_close(turned.transpose(0, 1), new_grid)


def test_positions_that_do_not_fit_a_grid():
    for shape in ((1, 14, 24), (1, 11, 24), (13, 24), (24, 13), (1, 13, 24, 1)):
        with pytest.raises(ValueError, match=r"\(1, 12, D\).*3 × 4") as error:
            interpolate_pos_embedding(torch.zeros(shape), GRID, (5, 5))
        assert str(shape) in str(error.value)


@each_pool
@each_kind
def test_forward_at_another_resolution(kind, pool):
    vit = vit_of(pos_embedding=kind, pool=pool)
    same, other = torch.randn(2, 3, 24, 32), torch.randn(2, 3, 48, 40)
    assert torch.equal(vit(same, interpolate=True), vit(same))
    with pytest.raises(ValueError, match=r"\(B, 3, 24, 32\).*interpolate=True"):
        vit(other)
    tokens = 6 * 5 + (pool == "class_token")
    assert vit.forward_features(other, interpolate=True).shape == (2, tokens, 24)
    for wrong in ((2, 3, 50, 40), (2, 1, 48, 40)):
        with pytest.raises(ValueError, match="expected images of shape"):
            vit(torch.zeros(wrong), interpolate=True)


def test_loading_at_another_resolution_is_the_same_as_running_at_it():
    small = vit_of(image_size=32)
    large = tiny_vit(seed=1, image_size=(48, 40))
    with pytest.raises(ValueError, match=r"(?s)pos_embedding has shape .*interpolate=True"):
        load_weights(large, small.state_dict())
    load_weights(large, small.state_dict(), interpolate=True)
    images = torch.randn(2, 3, 48, 40)
    assert torch.equal(large(images), small(images, interpolate=True))


# Hybrid


def test_a_stem_makes_a_hybrid():
    """Section 3.1: with 1×1 patches the sequence is the flattened feature map."""
    stem = nn.Sequential(nn.Conv2d(3, 10, 3, stride=2, padding=1), nn.MaxPool2d(4))
    config = replace(TINY, image_size=(3, 4), patch_size=1, in_channels=10)
    vit = give_random_values(ViT(config, stem=stem)).eval()
    images = torch.randn(2, 3, 24, 32)
    features = stem(images)  # (B, 10, 3, 4)
    tokens = features.flatten(2).transpose(1, 2)  # (B, N, 10)
    E = vit.patch_embedding.projection
    expected = tokens @ E.weight.flatten(1).T + E.bias
    torch.testing.assert_close(vit.patch_embedding(features), expected)
    assert vit(images).shape == (2, 5)
    assert vit(torch.randn(2, 3, 48, 32), interpolate=True).shape == (2, 5)
    with pytest.raises(ValueError, match=r"\(B, 10, 3, 4\).*\(2, 10, 6, 4\)"):
        vit(torch.randn(2, 3, 48, 32))
    vit(images).sum().backward()
    assert stem[0].weight.grad.any()
