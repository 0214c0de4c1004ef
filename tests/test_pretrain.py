"""Pretraining in small: a few steps on three dishes."""

import argparse
import json
import signal

import numpy as np
import pytest
import torch
from safetensors import safe_open

from going_modular.drawings.synthetic_food import NAMES, draw_scene
from going_modular.experiments import pretrain
from going_modular.images.transforms import IMAGENET_MEAN, IMAGENET_STD
from going_modular.vit import backbones
from going_modular.vit.backbones import statistics_of

OPTIONS = {
    "dishes": 3,
    "pictures": 4,
    "images": 20,
    "batch_size": 4,
    "lr": 1e-3,
    "save_every": 2,
    "seed": 0,
    "full_precision": False,
}


def run(folder, monkeypatch, **changes):
    monkeypatch.setattr(pretrain, "FOLDER", folder)
    return pretrain.pretrain(argparse.Namespace(**OPTIONS | changes))


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """The weights of a run that nobody stopped."""
    with pytest.MonkeyPatch.context() as patch:
        return run(tmp_path_factory.mktemp("complete"), patch)


def killed():
    raise RuntimeError("killed")


def asked_to_stop():
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(
    "stop, error, done",
    [
        (killed, RuntimeError, 2),  # the last checkpoint was after two steps
        (asked_to_stop, KeyboardInterrupt, 3),  # the step under way is finished and saved
    ],
)
def test_a_stopped_run_goes_on_to_the_same_weights(
    complete, tmp_path, monkeypatch, stop, error, done
):
    batch_of, steps = pretrain.batch_of, []

    def spied_batch_of(drawn, step, size):
        steps.append(step)
        if steps == [0, 1, 2]:
            stop()
        return batch_of(drawn, step, size)

    monkeypatch.setattr(pretrain, "batch_of", spied_batch_of)
    with pytest.raises(error):
        run(tmp_path, monkeypatch)
    resumed = run(tmp_path, monkeypatch)
    assert steps[3:] == list(range(done, 5))
    with safe_open(complete, "pt") as one, safe_open(resumed, "pt") as other:
        assert one.keys() == other.keys()
        for key in one.keys():
            assert torch.equal(one.get_tensor(key), other.get_tensor(key)), key
        logs = [json.loads(file.metadata()["log"]) for file in (one, other)]
    assert all(entry.pop("minutes") >= 0 for log in logs for entry in log)
    assert [entry["images"] for entry in logs[0]] == [8, 16, 20]
    assert logs[0] == logs[1]


def test_another_runs_checkpoint_is_refused_with_the_differences(tmp_path, monkeypatch):
    run(tmp_path, monkeypatch, images=8)
    with pytest.raises(ValueError, match="checkpoint: lr: 0.001 there, 0.1 here. Move"):
        run(tmp_path, monkeypatch, images=8, lr=0.1)
    (tmp_path / "checkpoint.pt").write_bytes(b"half a checkpoint")
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        run(tmp_path, monkeypatch, images=8)


def test_the_backbone_is_one_that_the_package_loads(complete, monkeypatch):
    monkeypatch.setattr(backbones, "DRAWN_DISHES", complete)
    backbone, _, _ = backbones.load_pretrained_backbone("drawn_dishes")
    assert backbone(torch.zeros(1, 3, 112, 112)).shape == (1, backbone.embedding_dim)


def test_a_run_that_diverges_writes_no_weights(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pretrain, "FOLDER", tmp_path)
    arguments = "--dishes 3 --pictures 4 --images 20 --batch-size 4 --lr 1e30".split()
    with pytest.raises(SystemExit) as end:
        pretrain.main(arguments)
    *_, line = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and ": error: the loss is " in line and "in step 2" in line
    assert not list(tmp_path.glob("*.safetensors"))


class ByBrightness(torch.nn.Module):
    """Names dish 0, 1 or 2 for a dark, a grey and a light picture."""

    def forward(self, images):
        light = images.mean(dim=(1, 2, 3)).unsqueeze(1)
        return -(light - torch.tensor([-2.0, 0.0, 2.0])).abs(), None


def test_the_accuracy_is_that_on_the_held_out_pictures():
    drawn = torch.zeros(3, 4, 128, 128, 4, dtype=torch.uint8)
    shades = torch.tensor([0, 115, 255]).view(3, 1, 1, 1, 1)
    drawn[:, -pretrain.HELD_OUT :, ..., :3] = shades
    assert pretrain.held_out_accuracy(ByBrightness(), drawn, "cpu") == 1
    drawn[2, -1] = 0
    accuracy = pretrain.held_out_accuracy(ByBrightness(), drawn, "cpu")
    assert accuracy == pytest.approx(2 / 3)


def test_options_and_files_that_do_not_fit_are_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="pictures must be more than 1, .* got 1"):
        run(tmp_path, monkeypatch, pictures=1)
    with pytest.raises(ValueError, match="images must be at least one batch of 4, got 3"):
        run(tmp_path, monkeypatch, images=3)
    np.save(tmp_path / "3x4.npy", np.zeros((12, 128, 128, 4), np.uint8))
    with pytest.raises(ValueError, match="3x4.npy does not hold the pictures that this code draws"):
        run(tmp_path, monkeypatch)


def test_held_out_pictures_are_not_trained_on():
    drawn = torch.zeros(3, 5, 128, 128, 4, dtype=torch.uint8)
    drawn[:, -pretrain.HELD_OUT :] = 1
    images, dishes, contents, kept = pretrain.batch_of(drawn, step=0, size=64)
    assert images.shape == (64, 3, 112, 112) and set(dishes.tolist()) == {0, 1, 2}
    black = -torch.tensor(IMAGENET_MEAN) / torch.tensor(IMAGENET_STD)
    torch.testing.assert_close(images.mean(dim=(0, 2, 3)), black)
    assert (contents[..., 0] == 1).all() and contents.shape[:2] == (64, 65)
    assert kept.shape == (64, 16) and all(len(set(row)) == 16 for row in kept.tolist())
    again = pretrain.batch_of(drawn, step=0, size=64)
    assert torch.equal(images, again[0]) and torch.equal(kept, again[3])


def test_only_the_patches_that_are_kept_go_through_the_encoder():
    network = pretrain.Pretrainer(dishes=3).eval()
    images = torch.randn(2, 3, 112, 112)
    tokens = network.backbone.forward_features(images)
    dish, contents = network(images)
    torch.testing.assert_close(dish, network.dish(statistics_of(tokens[:, 1:])))
    torch.testing.assert_close(contents, network.contents(tokens))
    every = torch.arange(64).expand(2, -1)
    torch.testing.assert_close(network(images, every)[1], contents)
    kept = torch.tensor([[0, 5], [63, 1]])
    changed = images.clone()
    changed[0, :, :14, 14:28] = 0  # patch 1, which only the second image keeps
    changed[1, :, :14, :14] = 0  # patch 0, which only the first keeps
    torch.testing.assert_close(network(changed, kept), network(images, kept))


def test_contents_are_what_each_patch_and_the_whole_show():
    labels = torch.zeros(1, 112, 112, dtype=torch.uint8)
    labels[0, :14, 14:28] = 5  # the second patch of the first row
    labels[0, -7:, -14:] = 9  # the lower half of the last patch
    contents = pretrain.contents_of(labels)
    torch.testing.assert_close(contents.sum(-1), torch.ones(1, 65))
    assert contents[0, 2, 5] == pytest.approx(1) and contents[0, 64, 9] == 0.5
    assert contents[0, 0, 5] == pytest.approx(1 / 64)
    assert contents[0, 0, 9] == pytest.approx(1 / 128)


class Omniscient(torch.nn.Module):
    """Answers with the contents that it was made with, for the patches it is asked."""

    def __init__(self, contents):
        super().__init__()
        self.scores = contents.clamp_min(1e-9).log()

    def forward(self, images, kept):
        patches = torch.take_along_dim(self.scores[:, 1:], kept.unsqueeze(2), dim=1)
        return torch.zeros(len(images), 3), torch.cat([self.scores[:, :1], patches], 1)


def test_the_right_contents_of_the_patches_that_are_kept_cost_nothing():
    torch.manual_seed(0)
    contents = pretrain.contents_of(torch.randint(0, 5, (2, 112, 112)))
    kept = torch.tensor([[0, 5, 7], [63, 1, 2]])
    images, dishes = torch.zeros(2, 3, 112, 112), torch.tensor([0, 2])
    known = Omniscient(contents)
    dish_loss, loss = pretrain.losses_of(known, images, dishes, contents, kept)
    assert loss == pytest.approx(0, abs=1e-5)
    assert dish_loss == pytest.approx(np.log(3))  # of three dishes, none preferred
    other = Omniscient(contents.roll(1, dims=1))
    assert pretrain.losses_of(other, images, dishes, contents, kept)[1] > 0.01


def test_the_labels_of_a_drawn_picture_are_what_the_painter_painted():
    key = (1, 2)
    drawn = pretrain.draw_numbered(key)
    scene = draw_scene(key[0], np.random.default_rng(key), (128, 128))
    assert len(scene.names) > 2 and drawn.shape == (128, 128, 4)
    for number, name in enumerate(scene.names):
        assert set(drawn[scene.labels == number, 3]) <= {NAMES.index(name)}


def test_full_precision_is_another_run(tmp_path, monkeypatch):
    half = run(tmp_path / "half", monkeypatch, images=8)
    full = run(tmp_path / "full", monkeypatch, images=8, full_precision=True)
    with safe_open(half, "pt") as one, safe_open(full, "pt") as other:
        pairs = [(one.get_tensor(key), other.get_tensor(key)) for key in one.keys()]
    assert any(not torch.equal(a, b) for a, b in pairs)
    for a, b in pairs:  # after two steps of at most 0.001 each
        assert (a - b).abs().max() < 0.01
