"""Pretraining in small: shards of eight drawings, a small network, a few steps."""

import argparse
import json
import signal
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tiny_vit import TINY

from going_modular.drawings.painting import ROLES
from going_modular.drawings.synthetic_food import NAMES, draw_scene
from going_modular.experiments import pretrain
from going_modular.model_builder import ViT
from going_modular.pretraining import shards, teacher, views
from going_modular.pretraining.optimizers import build_optimizers
from going_modular.training.recipes import Recipe
from going_modular.vit.weights import load_vit

SMALL = replace(TINY, num_classes=0, dropout=0.0)
OPTIONS = {
    "drawings": 24,
    "images": 80,
    "batch_size": 4,
    "lr": 5e-3,
    "save_every": 8,
    "seed": 0,
    "full_precision": False,
}


@pytest.fixture(autouse=True)
def in_small(monkeypatch):
    for module in (shards, pretrain):
        monkeypatch.setattr(module, "SHARD", 8)
    monkeypatch.setattr(pretrain, "CONFIG", SMALL)
    monkeypatch.setattr(pretrain, "HELD_OUT_BATCHES", 1)


def run(folder, monkeypatch, **changes):
    monkeypatch.setattr(pretrain, "FOLDER", folder)
    return pretrain.pretrain(argparse.Namespace(**OPTIONS | changes))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A folder with three shards."""
    folder = tmp_path_factory.mktemp("drawn")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD", 8)
        shards.draw_shards(24, folder / "shards")
    return folder


@pytest.fixture
def folder(drawn, tmp_path):
    """A folder of its own for a run, with the shards drawn already."""
    (tmp_path / "shards").symlink_to(drawn / "shards")
    return tmp_path


def killed():
    raise RuntimeError("killed")


def asked_to_stop():
    signal.raise_signal(signal.SIGINT)


def content_of(path):
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
        return tensors, json.loads(file.metadata()["log"])


@pytest.mark.parametrize(
    "stop, error, done",
    [
        (killed, RuntimeError, 8),  # the last checkpoint was after eight steps
        (asked_to_stop, KeyboardInterrupt, 11),  # the step under way is finished and saved
    ],
)
def test_a_stopped_run_goes_on_to_the_same_weights(
    folder, tmp_path_factory, drawn, monkeypatch, stop, error, done
):
    other = tmp_path_factory.mktemp("other")
    (other / "shards").symlink_to(drawn / "shards")
    complete, log = content_of(run(other, monkeypatch))
    training_step, steps = pretrain.pretraining_step, []

    def spied_step(*arguments):
        steps.append(len(steps))
        if len(steps) == 11:
            stop()
        return training_step(*arguments)

    monkeypatch.setattr(pretrain, "pretraining_step", spied_step)
    with pytest.raises(error):
        run(folder, monkeypatch)
    before = len(steps)
    resumed, other_log = content_of(run(folder, monkeypatch))
    assert len(steps) - before == 20 - done
    assert complete.keys() == resumed.keys()
    assert all(torch.equal(complete[key], resumed[key]) for key in complete)
    assert all(entry.pop("minutes") >= 0 for entry in log + other_log)
    assert [entry["images"] for entry in log] == [32, 64, 80] and log == other_log
    assert log[-1]["training"]["contents"] < log[0]["training"]["contents"]
    assert log[-1]["held_out"].keys() == teacher.WEIGHTS.keys()


def test_another_runs_checkpoint_is_refused_with_the_differences(folder, monkeypatch):
    run(folder, monkeypatch)
    with pytest.raises(ValueError, match="checkpoint: lr: 0.005 there, 0.1 here. Move"):
        run(folder, monkeypatch, lr=0.1)


def test_the_file_is_a_vit_in_half_precision_that_the_package_loads(folder, monkeypatch):
    path = run(folder, monkeypatch)
    tensors, _ = content_of(path)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    vit = load_vit(path)
    assert vit.config == SMALL and vit(torch.zeros(1, 3, 32, 32)).shape == (1, 24)


def test_full_precision_is_another_run(folder, monkeypatch):
    half, _ = content_of(run(folder, monkeypatch))
    (folder / "checkpoint.pt").unlink()
    full, _ = content_of(run(folder, monkeypatch, full_precision=True))
    assert any(not torch.equal(half[key], full[key]) for key in half)
    assert all((half[key] - full[key]).abs().max() < 0.05 for key in half)


def test_a_run_that_diverges_writes_no_weights(folder, monkeypatch, capsys):
    monkeypatch.setattr(pretrain, "FOLDER", folder)
    arguments = "--drawings 24 --images 80 --batch-size 4 --lr 1e30".split()
    with pytest.raises(SystemExit) as end:
        pretrain.main(arguments)
    *_, line = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and ": error: the loss is " in line
    assert not list(folder.glob("*.safetensors"))


def test_options_that_leave_nothing_to_do_are_named(folder, monkeypatch):
    with pytest.raises(ValueError, match="drawings must be at least 16, .* got 8"):
        run(folder, monkeypatch, drawings=8)
    with pytest.raises(ValueError, match="drawings must be a multiple of 8, got 20"):
        run(folder, monkeypatch, drawings=20)
    with pytest.raises(ValueError, match="images must be at least 20 batches of 4, got 76"):
        run(folder, monkeypatch, images=76)


# The drawings


def test_the_truth_is_what_the_painter_painted():
    drawing = shards.draw_numbered(5)
    scene = draw_scene(5, np.random.default_rng([shards.SEED, 5]), shards.SIZE)
    truth = drawing.truth()
    assert drawing.image().size == (144, 144) and truth.shape == (144, 144, 3)
    assert len(scene.names) > 2
    for number, name in enumerate(scene.names):
        assert set(truth[scene.labels == number, 0]) <= {NAMES.index(name)}
    assert np.array_equal(truth[..., 2], scene.roles) and len(np.unique(scene.roles)) > 2
    low = scene.heights < 0.6  # 255 steps are 0.6375 table units
    assert np.abs(truth[..., 1] / shards.HEIGHTS - scene.heights)[low].max() <= 1 / 400
    assert np.abs(np.asarray(drawing.image()).astype(int) - scene.develop()).mean() < 4


def test_shards_that_are_there_are_not_drawn_again(drawn, tmp_path, monkeypatch):
    paths = sorted((drawn / "shards").iterdir())
    first, second, _ = (path.read_bytes() for path in paths)
    (tmp_path / paths[0].name).write_bytes(first)
    assert shards.draw_shards(16, tmp_path) == [tmp_path / path.name for path in paths[:2]]
    assert (tmp_path / paths[1].name).read_bytes() == second  # the same bytes every time
    monkeypatch.setattr(shards, "draw_numbered", None)  # nothing is left to draw
    shards.draw_shards(16, tmp_path)


def test_shards_are_read_in_the_order_of_their_numbers(drawn):
    drawings = shards.read_shards(sorted((drawn / "shards").iterdir()))
    assert len(drawings) == 24
    assert drawings[0] == shards.draw_numbered(0) and drawings[13] == shards.draw_numbered(13)


def test_a_shard_is_a_tar_file_that_others_read(drawn):
    with tarfile.open(sorted((drawn / "shards").iterdir())[1]) as tar:
        assert tar.getnames()[:3] == ["0000008.jpg", "0000008.png", "0000009.jpg"]


def test_damaged_and_foreign_shards_are_refused(drawn, tmp_path):
    source = sorted((drawn / "shards").iterdir())
    path = tmp_path / source[0].name
    path.write_bytes(source[0].read_bytes()[:20_000])
    with pytest.raises(ValueError, match="remove it to draw it again"):
        shards.read_shards([path])
    path.write_bytes(source[1].read_bytes())
    with pytest.raises(ValueError, match="does not hold the drawings that this code makes"):
        shards.read_shards([path])


# The views


@pytest.fixture(scope="module")
def drawings(drawn):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD", 8)
        return shards.read_shards(sorted((drawn / "shards").iterdir())[:2])


def test_views_depend_on_the_step_alone(drawings):
    one, again = (views.views_of(drawings, 3, 6, SMALL) for _ in range(2))
    other = views.views_of(drawings, 4, 6, SMALL)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one.images, other.images)
    assert one.images.shape == (6, 3, 32, 32) and one.kept.shape == (6, 4)
    assert all(len(set(row)) == 4 for row in one.kept.tolist())
    assert one.contents.shape == (6, 4, len(NAMES)) and one.roles.shape == (6, 4, len(ROLES))
    for shares in (one.contents, one.roles, one.whole):
        torch.testing.assert_close(shares.sum(dim=-1), torch.ones(shares.shape[:-1]))


def test_the_truth_moves_with_the_picture(monkeypatch):
    """A drawing whose picture is its own truth: crops and mirrors must treat both alike."""
    ramp = np.tile(np.arange(144, dtype=np.uint8), (144, 1))

    class Ramp:
        def image(self):
            return shards.Image.fromarray(np.dstack([ramp] * 3))

        def truth(self):
            return np.dstack([ramp * 0, ramp, ramp * 0])

    monkeypatch.setattr(views, "RECOLOR", lambda images: images.float())
    monkeypatch.setattr(views, "KEPT", 1.0)
    seen = views.views_of([Ramp()], 0, 16, SMALL)
    light = seen.images[:, 0].unfold(1, 8, 8).unfold(2, 8, 8).mean((-1, -2)).flatten(1)
    expected = torch.take_along_dim(light, seen.kept, 1) / views.HEIGHT_SCALE
    torch.testing.assert_close(seen.heights, expected, atol=0.03, rtol=0)
    rises = light[:, 1] > light[:, 0]
    assert 0 < rises.sum() < 16  # some are mirrored


def test_the_labels_of_patches_are_counted_by_hand():
    truths = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    truths[0, 0, :8, 8:] = 5  # the second patch of the first row
    truths[0, 0, 12:, 8:] = 9  # the lower half of the last patch
    truths[0, 1, :8, :8] = 50
    truths[0, 2, 8:, :4] = 3
    kept = torch.tensor([[1, 3, 0, 2]])
    seen = views.labelled(torch.zeros(1, 3, 16, 16), truths, kept, patch_size=8)
    assert seen.contents[0, 0, 5] == 1 and seen.contents[0, 1, 9] == 0.5
    assert seen.contents[0, 1, 0] == 0.5 and seen.contents[0, 2, 0] == 1
    assert seen.whole[0, 5] == 0.25 and seen.whole[0, 9] == 0.125
    assert seen.heights.tolist() == [[0, 0, 0.5, 0]]
    assert seen.roles[0, 3].tolist() == [0.5, 0, 0, 0.5]


# The task


def test_only_the_patches_that_are_kept_go_through_the_encoder():
    torch.manual_seed(0)
    network = teacher.Pretrainer(ViT(SMALL)).eval()
    images = torch.randn(2, 3, 32, 32)
    every = torch.arange(16).expand(2, -1)
    tokens, decoded = network(images, every)
    torch.testing.assert_close(tokens, network.backbone.forward_features(images))
    assert decoded.shape == tokens.shape and not torch.equal(decoded, tokens)
    kept = torch.tensor([[0, 5], [15, 1]])
    changed = images.clone()
    changed[0, :, :8, 8:16] = 0  # patch 1, which only the second image keeps
    changed[1, :, :8, :8] = 0  # patch 0, which only the first keeps
    torch.testing.assert_close(network(changed, kept), network(images, kept))


def test_right_answers_cost_nothing():
    truth = torch.rand(2, 3, 5).softmax(dim=-1)
    assert teacher.divergence(truth.log() + 7, truth) == pytest.approx(0, abs=1e-6)
    even = teacher.divergence(torch.zeros(2, 3, 5), torch.eye(5)[:3].expand(2, 3, 5))
    assert even == pytest.approx(np.log(5))


def test_the_summary_is_standardized_and_teaches_the_class_token_alone():
    torch.manual_seed(0)
    patches = torch.randn(16, 9, 4, requires_grad=True)
    dish = torch.zeros(16, 9)
    dish[:, :3] = 1
    summary = teacher.summary_of(patches, dish)
    torch.testing.assert_close(summary.mean(dim=0), torch.zeros(16), atol=1e-5, rtol=0)
    torch.testing.assert_close(summary.std(dim=0), torch.ones(16), atol=0.02, rtol=0)
    assert not summary.requires_grad
    everywhere, on_dish = patches.mean(dim=1), patches[:, :3].mean(dim=1)
    assert torch.equal(summary[:, 0].argsort(), everywhere[:, 0].argsort())
    correlation = torch.corrcoef(torch.stack([summary[:, 8], on_dish[:, 0]]))[0, 1]
    assert correlation > 0.99  # a little of everywhere is in it


def test_statistics_are_weighted_means_and_deviations():
    torch.manual_seed(0)
    patches = torch.randn(3, 6, 4)
    weights = torch.tensor([[1.0] * 6, [1, 1, 0, 0, 0, 0], [2, 0, 1, 0, 0, 1]]).expand(3, 3, 6)
    with torch.autocast("cpu", torch.bfloat16):  # as in the pretraining
        found = teacher.weighted_statistics(patches, weights)
    some = patches[:, [0, 0, 2, 5]]
    for row, chosen in enumerate([patches, patches[:, :2], some]):
        expected = torch.cat([chosen.mean(1), chosen.std(1, correction=0)], dim=1)
        torch.testing.assert_close(found[:, row], expected, rtol=1e-4, atol=1e-4)
    alike = teacher.weighted_statistics(torch.ones(1, 6, 4), torch.ones(1, 1, 6))
    assert alike[0, 0].tolist() == [1] * 4 + [0] * 4


def test_every_loss_reaches_the_backbone_and_counts_with_its_weight(drawings):
    torch.manual_seed(0)
    network = teacher.Pretrainer(ViT(SMALL))
    seen = views.views_of(drawings, 0, 8, SMALL)
    losses = network.losses(seen)
    expected = sum(teacher.WEIGHTS[name] * value.item() for name, value in losses.items())
    assert teacher.total(losses).item() == pytest.approx(expected)
    for name, loss in losses.items():
        network.zero_grad()
        loss.backward(retain_graph=True)
        assert network.backbone.patch_embedding.projection.weight.grad.abs().sum() > 0, name
        assert getattr(network, name).weight.grad.abs().sum() > 0, name


# The optimizers


def test_each_parameter_has_one_optimizer_and_matrices_of_the_encoder_have_muon():
    network = teacher.Pretrainer(ViT(SMALL))
    recipe = Recipe(steps=100, batch_size=4, lr=1e-3, weight_decay=0.05)
    muon, adamw = build_optimizers(network, recipe)
    by_muon, by_adamw = (
        {id(p) for group in optimizer.param_groups for p in group["params"]}
        for optimizer in (muon, adamw)
    )
    assert not by_muon & by_adamw
    assert by_muon | by_adamw == {id(p) for p in network.parameters()}
    named = dict(network.named_parameters())
    for name in ("backbone.encoder.1.attention.qkv.weight", "decoder.2.mlp.expand.weight"):
        assert id(named[name]) in by_muon, name
    for name in ("contents.weight", "backbone.pos_embedding", "backbone.encoder.0.mlp.expand.bias"):
        assert id(named[name]) in by_adamw, name


def test_a_step_of_muon_moves_a_matrix_in_all_directions_alike():
    torch.manual_seed(0)
    network = teacher.Pretrainer(ViT(SMALL))
    muon, _ = build_optimizers(network, Recipe(steps=100, batch_size=4, lr=1e-3, weight_decay=0.0))
    matrix = network.backbone.encoder[0].mlp.expand.weight
    before = matrix.detach().clone()
    matrix.grad = torch.randn_like(matrix) * torch.logspace(0, 3, matrix.shape[1])
    muon.step()
    strengths = torch.linalg.svdvals(matrix.detach() - before)
    assert strengths.max() / strengths.min() < 10
    gradients = torch.linalg.svdvals(matrix.grad)
    assert gradients.max() / gradients.min() > 100
