import hashlib

import pytest
import torch
from PIL import Image

from going_modular import weights
from going_modular.data_setup import DownloadError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and no way to fill it."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    url = "http://127.0.0.1:9/vit_b_16-c867db91.pth"
    monkeypatch.setattr(type(weights.ViT_B_16_Weights.DEFAULT), "url", url)
    return tmp_path / "checkpoints"


def test_without_a_network_the_backbone_says_that_it_is_untrained(cache):
    state = torch.get_rng_state()
    backbone, transform, description = weights.load_pretrained_backbone()
    assert torch.equal(torch.get_rng_state(), state)
    assert "UNTRAINED" in description and "vit_b_16-c867db91.pth" in description
    assert str(cache) not in description
    assert sum(p.numel() for p in backbone.parameters()) == 85_798_656
    again, _, _ = weights.load_pretrained_backbone()
    assert torch.equal(backbone.conv_proj.weight, again.conv_proj.weight)
    assert transform.crop_size == [224]


def test_a_broken_file_in_the_cache_is_named_and_not_loaded(cache):
    cache.mkdir()
    (cache / "vit_b_16-c867db91.pth").write_bytes(b"half a download")
    _, _, description = weights.load_pretrained_backbone()
    assert "UNTRAINED" in description and "is there but not whole" in description


def test_a_whole_file_in_the_cache_is_taken(cache):
    cache.mkdir()
    name = f"model-{hashlib.sha256(b'numbers').hexdigest()[:8]}.pth"
    (cache / name).write_bytes(b"numbers")
    assert weights.cache_weights(f"http://127.0.0.1:9/{name}") == cache / name
    (cache / name).write_bytes(b"other numbers")
    with pytest.raises(DownloadError, match="not whole"):
        weights.cache_weights(f"http://127.0.0.1:9/{name}")


def test_published_weights_are_loaded_and_the_head_is_left_out(monkeypatch):
    """Planted weights stand in for the download; the real loading code runs."""
    planted = weights.vit_b_16().state_dict()
    source = weights.ViT_B_16_Weights.DEFAULT
    monkeypatch.setattr(weights, "cache_weights", lambda url: None)
    monkeypatch.setattr(type(source), "get_state_dict", lambda *_, **__: planted)
    backbone, _, description = weights.load_pretrained_backbone()
    assert "pretrained on ImageNet-1k" in description
    assert torch.equal(backbone.conv_proj.weight, planted["conv_proj.weight"])
    assert not any(name.startswith("heads") for name in backbone.state_dict())


def test_small_images_for_tests():
    backbone, transform, description = weights.load_pretrained_backbone(image_size=32)
    images = transform(Image.new("RGB", (50, 40))).unsqueeze(0)
    assert images.shape == (1, 3, 32, 32)
    assert backbone.eval()(images).shape == (1, 768)
    assert "UNTRAINED" in description
