import hashlib
import re

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from tiny_vit import tiny_vit
from torch.utils.data import DataLoader, TensorDataset

from going_modular import data_setup, engine
from going_modular.drawings.pantry import PANTRY
from going_modular.experiments.cross_validation import five_folds, read_images
from going_modular.experiments.transfer import fit_probe, linear_layer, probe
from going_modular.images.downloads import DownloadError
from going_modular.vit import backbones
from going_modular.vit.backbones import DRAWN_DISHES, load_pretrained_backbone

CARD = (DRAWN_DISHES.parent / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and no way to fill it."""
    monkeypatch.delenv("FOODVISION_SOURCE", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    url = "http://127.0.0.1:9/vit_b_16-c867db91.pth"
    monkeypatch.setattr(type(backbones.ViT_B_16_Weights.DEFAULT), "url", url)
    return tmp_path / "checkpoints"


@pytest.fixture
def planted(monkeypatch):
    """Random weights stand in for the download; the real loading code runs."""
    planted = backbones.vit_b_16().state_dict()
    source = backbones.ViT_B_16_Weights.DEFAULT
    monkeypatch.setattr(backbones, "cache_weights", lambda url: None)
    monkeypatch.setattr(type(source), "get_state_dict", lambda *_, **__: planted)
    return planted


# Which backbone


def test_without_a_network_the_small_backbone_is_taken_and_says_why(cache):
    backbone, transform, description = load_pretrained_backbone()
    assert "drawn dishes" in description and "vit_b_16-c867db91.pth" in description
    assert "is not there" in description and str(cache) not in description
    assert backbone.embedding_dim == 2 * backbone.vit.config.embedding_dim
    images = transform(Image.new("RGB", (300, 200))).unsqueeze(0)
    assert backbone(images).shape == (1, backbone.embedding_dim)
    assert not backbone.training


def test_asked_for_by_name_it_is_an_error_that_says_what_to_do(cache):
    with pytest.raises(DownloadError, match=r"vit_b_16-c867db91\.pth is not there"):
        load_pretrained_backbone("vit_b_16")
    with pytest.raises(ValueError, match="'vit_b_99'.*auto, vit_b_16, drawn_dishes"):
        load_pretrained_backbone("vit_b_99")


def test_an_incomplete_file_in_the_cache_is_named_and_not_loaded(cache):
    cache.mkdir()
    (cache / "vit_b_16-c867db91.pth").write_bytes(b"half a download")
    _, _, description = load_pretrained_backbone()
    assert "drawn dishes" in description and "is there but incomplete" in description


def test_with_drawn_images_nothing_is_downloaded(planted, monkeypatch):
    monkeypatch.setenv("FOODVISION_SOURCE", "synthetic")
    assert load_pretrained_backbone()[0].embedding_dim == 384
    assert load_pretrained_backbone("vit_b_16")[0].embedding_dim == 768


def test_torchvisions_weights_are_loaded_and_the_head_is_left_out(planted, monkeypatch):
    monkeypatch.delenv("FOODVISION_SOURCE", raising=False)
    backbone, transform, description = load_pretrained_backbone()
    assert "pretrained on ImageNet-1k" in description
    assert torch.equal(backbone.conv_proj.weight, planted["conv_proj.weight"])
    assert not any(name.startswith("heads") for name in backbone.state_dict())
    assert backbone.embedding_dim == 768 and transform.crop_size == [224]
    with torch.inference_mode():
        assert backbone(torch.zeros(1, 3, 224, 224)).shape == (1, 768)


def test_a_complete_file_in_the_cache_is_taken(cache):
    cache.mkdir()
    name = f"model-{hashlib.sha256(b'numbers').hexdigest()[:8]}.pth"
    (cache / name).write_bytes(b"numbers")
    assert backbones.cache_weights(f"http://127.0.0.1:9/{name}") == cache / name
    (cache / name).write_bytes(b"other numbers")
    with pytest.raises(DownloadError, match="incomplete"):
        backbones.cache_weights(f"http://127.0.0.1:9/{name}")


# The file in pretrained/, and what its card says


def test_a_missing_and_a_damaged_file_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(backbones, "DRAWN_DISHES", tmp_path / "vit.safetensors")
    with pytest.raises(
        FileNotFoundError, match=r"vit\.safetensors.*install it again.*git checkout"
    ):
        load_pretrained_backbone("drawn_dishes")
    half = DRAWN_DISHES.read_bytes()[: DRAWN_DISHES.stat().st_size // 2]
    (tmp_path / "vit.safetensors").write_bytes(half)
    with pytest.raises(ValueError, match=rf"is damaged.*git checkout.*{len(half)} bytes\)"):
        load_pretrained_backbone("drawn_dishes")


def test_the_features_are_mean_and_standard_deviation_of_the_patches():
    backbone, _, _ = load_pretrained_backbone("drawn_dishes")
    images = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    patches = backbone.vit.forward_features(images)[:, 1:]  # without the class token
    expected = torch.cat([patches.mean(1), patches.std(1, correction=0)], dim=1)
    torch.testing.assert_close(backbone(images), expected, rtol=1e-4, atol=1e-4)
    without = backbones.TokenStatistics(tiny_vit(pool="mean"))  # every token is a patch
    images = torch.randn(2, 3, 32, 32)
    patches = without.vit.forward_features(images)
    torch.testing.assert_close(without(images)[:, :24], patches.mean(1))
    equal = torch.ones(1, 64, 192, requires_grad=True)
    backbones.statistics_of(equal).sum().backward()
    assert equal.grad.isfinite().all()


def test_a_backbone_can_be_exported_for_any_number_of_images():
    vit = tiny_vit(num_classes=0)
    images, batch = torch.randn(5, 3, 32, 32), {0: torch.export.Dim("B")}
    for backbone in (backbones.TokenStatistics(vit), backbones.Backbone(vit, "tiny")):
        backbone.eval()
        program = torch.export.export(backbone, (images[:2],), dynamic_shapes=(batch,)).module()
        with torch.no_grad():
            for count in (1, 2, 5):
                assert torch.equal(program(images[:count]), backbone(images[:count]))


def test_the_file_is_small_numbers_only_and_the_one_of_the_card():
    assert DRAWN_DISHES.stat().st_size <= 12e6
    assert hashlib.sha256(DRAWN_DISHES.read_bytes()).hexdigest() in CARD
    with safe_open(DRAWN_DISHES, "pt") as file:
        tensors = [file.get_tensor(key) for key in file.keys()]
    assert {tensor.dtype for tensor in tensors} == {torch.float16}
    assert all(tensor.isfinite().all() for tensor in tensors)
    assert f"{sum(tensor.numel() for tensor in tensors):,} parameters" in CARD
    assert f"one of {len(PANTRY)} ingredients" in CARD


def test_only_the_weights_and_their_card_lie_in_pretrained():
    names = {path.name for path in DRAWN_DISHES.parent.iterdir()}
    shown = {name for name in names if not name.startswith(".")}
    assert shown == {DRAWN_DISHES.name, "README.md"}


def test_a_probe_is_one_linear_layer():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, 5, generator=generator) * torch.arange(1, 6) + 3
    fitted = fit_probe(features.numpy(), torch.arange(60) % 3)
    scores = torch.from_numpy(fitted.decision_function(features.numpy()))
    torch.testing.assert_close(linear_layer(fitted)(features), scores.float(), rtol=1e-4, atol=1e-4)


def test_a_linear_probe_on_its_features_reaches_what_the_card_says():
    """On the drawn images: 5 folds over all 300, for the shuffle with seed 0."""
    backbone, transform, _ = load_pretrained_backbone("drawn_dishes")
    images, labels, _ = read_images(data_setup.get_drawn_images(), transform)
    batches = DataLoader(TensorDataset(images, labels), 50)
    features = engine.extract_features(backbone, batches, "cpu").tensors[0].numpy()
    score = probe(features, labels, five_folds(labels, 0))
    documented = re.search(r"linear probe on the drawings, seed 0: (0\.\d+)", CARD)
    assert abs(score - float(documented[1])) < 0.015
