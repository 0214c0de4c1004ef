import socket
from urllib.error import URLError

import pytest
import torch

from going_modular import weights


@pytest.fixture
def no_network(monkeypatch):
    calls = []

    def vit_b_16(weights=None, **options):
        calls.append(socket.getdefaulttimeout())
        if weights is not None:
            raise URLError("no network")
        return real(**options)

    real = weights.vit_b_16
    monkeypatch.setattr(weights, "vit_b_16", vit_b_16)
    return calls


def test_without_a_network_the_backbone_says_that_it_is_untrained(no_network):
    before = socket.getdefaulttimeout()
    backbone, transform, description = weights.load_pretrained_backbone()
    assert "UNTRAINED" in description and "vit_b_16-c867db91.pth" in description
    assert no_network[0] == weights.TIMEOUT and socket.getdefaulttimeout() == before
    assert sum(p.numel() for p in backbone.parameters()) == 85_798_656
    again, _, _ = weights.load_pretrained_backbone()
    assert torch.equal(backbone.conv_proj.weight, again.conv_proj.weight)
    assert transform.crop_size == [224]


def test_small_images_for_tests():
    backbone, transform, description = weights.load_pretrained_backbone(image_size=32)
    from PIL import Image

    images = transform(Image.new("RGB", (50, 40))).unsqueeze(0)
    assert images.shape == (1, 3, 32, 32)
    assert backbone.eval()(images).shape == (1, 768)
    assert "UNTRAINED" in description
