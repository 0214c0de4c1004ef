"""Pretraining in small: a few steps on three dishes."""

import argparse
import json

import pytest
import torch
from safetensors import safe_open

from going_modular import pretrain

OPTIONS = {
    "dishes": 3,
    "pictures": 4,
    "images": 20,
    "batch_size": 4,
    "lr": 1e-3,
    "save_every": 2,
    "seed": 0,
}


def run(folder, monkeypatch, **changes):
    monkeypatch.setattr(pretrain, "FOLDER", folder)
    return pretrain.pretrain(argparse.Namespace(**OPTIONS | changes))


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    whole = run(tmp_path / "whole", monkeypatch)
    batch_of = pretrain.batch_of

    def stop_at_step_3(drawn, step, size):
        if step == 3:
            raise KeyboardInterrupt
        return batch_of(drawn, step, size)

    monkeypatch.setattr(pretrain, "batch_of", stop_at_step_3)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", monkeypatch)
    monkeypatch.setattr(pretrain, "batch_of", batch_of)
    with pytest.raises(ValueError, match="belongs to a run with"):
        run(tmp_path / "stopped", monkeypatch, lr=0.1)
    resumed = run(tmp_path / "stopped", monkeypatch)
    with safe_open(whole, "pt") as one, safe_open(resumed, "pt") as other:
        assert one.keys() == other.keys()
        for key in one.keys():
            assert torch.equal(one.get_tensor(key), other.get_tensor(key)), key
        logs = [json.loads(file.metadata()["log"]) for file in (one, other)]
    for log in logs:
        assert [entry.pop("minutes") >= 0 for entry in log] == [True] * 3
    assert logs[0] == logs[1]
    assert [entry["images"] for entry in logs[0]] == [8, 16, 20]


def test_held_out_pictures_are_not_trained_on():
    drawn = torch.zeros(3, 5, 128, 128, 4, dtype=torch.uint8)
    drawn[:, -pretrain.HELD_OUT :] = 1
    images, dishes, contents = pretrain.batch_of(drawn, step=0, size=64)
    assert images.shape == (64, 3, 112, 112) and set(dishes.tolist()) == {0, 1, 2}
    black = -torch.tensor(pretrain.MEAN) / torch.tensor(pretrain.STD)
    torch.testing.assert_close(images.mean(dim=(0, 2, 3)), black)
    assert (contents[..., 0] == 1).all() and contents.shape[:2] == (64, 65)
    again, _, _ = pretrain.batch_of(drawn, step=0, size=64)
    assert torch.equal(images, again)


def test_half_of_the_patches_go_through_the_encoder():
    network = pretrain.Pretrainer(dishes=3).eval()
    images = torch.randn(2, 3, 112, 112)
    tokens = network.backbone.forward_features(images)
    dish, contents = network(images)
    torch.testing.assert_close(dish, network.dish(tokens[:, 0]))
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
