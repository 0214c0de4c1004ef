import random

import numpy as np
import pytest
import torch
from torch import nn

from going_modular import utils
from going_modular.model_builder import ViT, ViTConfig, create_vit
from going_modular.utils import give_random_values


def test_relative_paths_start_at_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (utils.project_path("going_modular") / "utils.py").is_file()
    assert utils.project_path(tmp_path / "x") == tmp_path / "x"


def test_set_seeds_covers_python_numpy_and_torch():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    utils.set_seeds(1)
    first = draw()
    utils.set_seeds(1)
    assert draw() == first
    utils.set_seeds(2)
    assert all(a != b for a, b in zip(draw(), first, strict=True))


def test_size_follows_the_variable_then_the_device(monkeypatch):
    monkeypatch.setenv("FOODVISION_SIZE", "smoke")
    assert utils.get_size() == "smoke"
    monkeypatch.setenv("FOODVISION_SIZE", "huge")
    with pytest.raises(ValueError, match="smoke, cpu, paper"):
        utils.get_size()
    monkeypatch.delenv("FOODVISION_SIZE")
    for device, size in (("cpu", "cpu"), ("cuda", "paper"), ("mps", "paper")):
        monkeypatch.setattr(utils, "get_device", lambda d=device: torch.device(d))
        assert utils.get_size() == size


def test_device_prefers_cuda_then_mps(monkeypatch):
    monkeypatch.delenv("FOODVISION_DEVICE", raising=False)
    for cuda, mps, expected in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda x=cuda: x)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda x=mps: x)
        assert utils.get_device().type == expected


def test_the_device_can_be_chosen(monkeypatch):
    monkeypatch.setenv("FOODVISION_DEVICE", "meta")
    assert utils.get_device() == torch.device("meta")


def test_environment_in_two_lines():
    versions, machine = utils.describe_environment().split("\n")
    assert torch.__version__ in versions and "/" not in versions + machine


def test_multiply_adds_equal_the_formula_and_mode_is_kept():
    vit = ViT(
        ViTConfig(
            image_size=32,
            patch_size=8,
            embedding_dim=24,
            num_layers=2,
            num_heads=3,
            mlp_dim=40,
            num_classes=5,
        )
    )
    T, D = 17, 24
    per_block = 4 * T * D * D + 2 * T * T * D + 2 * T * D * 40
    expected = 16 * 192 * D + 2 * per_block + D * 5
    vit.train()
    vit.encoder.eval()  # as a frozen part would be
    assert utils.count_multiply_adds(vit, torch.zeros(1, 3, 32, 32)) == expected
    assert vit.training and vit.head.training and not vit.encoder.training


def test_multiply_adds_of_built_in_layers_do_not_depend_on_the_callers_mode():
    """Without gradients PyTorch's own layers take a fused path that hides attention."""
    layer = nn.TransformerEncoderLayer(24, 4, 40, batch_first=True, norm_first=True)
    tokens = torch.zeros(1, 17, 24)
    expected = 4 * 17 * 24 * 24 + 2 * 17 * 17 * 24 + 2 * 17 * 24 * 40
    assert utils.count_multiply_adds(layer, tokens) == expected
    with torch.no_grad():
        assert utils.count_multiply_adds(layer, tokens) == expected


@pytest.mark.parametrize(("size", "giga"), [(224, 17.56), (384, 55.48)])
def test_multiply_adds_of_vit_b(size, giga):
    with torch.device("meta"):
        vit, image = (create_vit("ViT-B/16", image_size=size), torch.zeros(1, 3, size, size))
    assert round(utils.count_multiply_adds(vit, image) / 1e9, 2) == giga


def test_save_and_load_round_trip(tmp_path):
    model = give_random_values(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))
    path = utils.save_model(model, tmp_path / "new" / "folder", "model.pth")
    assert [p.name for p in path.parent.iterdir()] == ["model.pth"]
    fresh = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    assert utils.load_model(fresh, path) is fresh and not fresh.training
    x = torch.randn(2, 3)
    assert torch.equal(fresh(x), model.eval()(x))


def test_save_and_load_say_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match=r"\.pth or \.pt, got 'model'"):
        utils.save_model(nn.Linear(1, 1), tmp_path / "new", "model")
    assert not (tmp_path / "new").exists()
    with pytest.raises(FileNotFoundError, match="save_model"):
        utils.load_model(nn.Linear(1, 1), tmp_path / "absent.pth")
    path = utils.save_model(nn.Linear(1, 1), tmp_path, "model.pth")
    with pytest.raises(RuntimeError, match="weight"):
        utils.load_model(nn.Linear(2, 1), path)


def test_loading_does_not_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("code ran",))

    torch.save({"weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(Exception, match="[Ww]eights.only"):
        utils.load_model(nn.Linear(1, 1), tmp_path / "evil.pth")


# Precision


@pytest.mark.parametrize(
    ("device", "real", "precision"),
    [
        ("cuda", True, "bfloat16"),
        ("cuda", False, "float16"),  # an older GPU would only emulate bfloat16
        ("cpu", True, "float32"),
        ("mps", True, "float32"),
    ],
)
def test_the_best_precision_is_one_that_the_device_has(monkeypatch, device, real, precision):
    def supported(including_emulation=True):
        return True if including_emulation else real

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert utils.best_precision(torch.device(device)) == precision


def test_autocast_computes_in_the_precision_asked_for():
    ones = torch.ones(2, 2)
    for precision in utils.PRECISIONS:
        with utils.autocast("cpu", precision):
            assert (ones @ ones).dtype == getattr(torch, precision)
    with pytest.raises(ValueError, match="'half'"), utils.autocast("cpu", "half"):
        pass
