"""Attention of the model: PyTorch's, and in training on a CPU never in 16 bits."""

import pytest
import torch
import torch.nn.functional as F

from going_modular.utils import autocast
from going_modular.vit.attention import scaled_dot_product_attention


@pytest.fixture
def qkv():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, 5, 4, generator=generator, requires_grad=True) for _ in range(3)]


def gradients(attention, tensors):
    return torch.autograd.grad(attention(*tensors).float().square().sum(), tensors)


def test_in_float32_it_is_pytorchs_own(qkv):
    expected = F.scaled_dot_product_attention(*qkv)
    assert torch.equal(scaled_dot_product_attention(*qkv), expected)
    for pair in zip(
        gradients(scaled_dot_product_attention, qkv),
        gradients(F.scaled_dot_product_attention, qkv),
        strict=True,
    ):
        assert torch.equal(*pair)


def test_with_gradients_it_computes_in_float32(qkv):
    expected = F.scaled_dot_product_attention(*qkv)
    with autocast("cpu", "bfloat16"):
        assert torch.equal(scaled_dot_product_attention(*qkv), expected)
        halves = [each.bfloat16() for each in qkv]  # as a dense layer gives them
        assert scaled_dot_product_attention(*halves).dtype == torch.float32


def test_without_gradients_it_computes_in_16_bits(qkv):
    frozen = [each.detach() for each in qkv]
    with autocast("cpu", "bfloat16"):
        assert scaled_dot_product_attention(*frozen).dtype == torch.bfloat16
        with torch.no_grad():
            assert scaled_dot_product_attention(*qkv).dtype == torch.bfloat16
    assert scaled_dot_product_attention(*frozen).dtype == torch.float32


def test_dropout_reaches_it(qkv):
    torch.manual_seed(0)
    dropped = scaled_dot_product_attention(*qkv, dropout_p=0.5)
    torch.manual_seed(0)
    assert torch.equal(dropped, F.scaled_dot_product_attention(*qkv, dropout_p=0.5))
    assert not torch.equal(dropped, scaled_dot_product_attention(*qkv))
