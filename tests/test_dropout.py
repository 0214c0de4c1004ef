"""Our dropout against its definition, and against PyTorch's."""

import pytest
import torch
import torchvision
from torch import nn

from going_modular.model_builder import ViT, ViTConfig
from going_modular.vit.dropout import VALUES, Dropout, StochasticDepth, random_16_bits

MANY = 4_000_000


def mask(p: float = 0.1, count: int = MANY) -> torch.Tensor:
    """1 where a number was dropped, else 0."""
    return (Dropout(p)(torch.ones(count)) == 0).double()


def test_the_16_bits_are_uniform():
    torch.manual_seed(0)
    counts = (random_16_bits(MANY).long() + VALUES // 2).bincount(minlength=VALUES)
    expected = MANY / VALUES
    chi_squared = ((counts - expected) ** 2 / expected).sum().item()
    assert counts.shape == (VALUES,) and abs(chi_squared - VALUES) < 5 * (2 * VALUES) ** 0.5


@pytest.mark.parametrize("p", [0.001, 0.05, 0.1, 1 / 3, 0.5, 0.9, 0.999])
def test_the_rate_is_p(p):
    every_value = torch.arange(-VALUES // 2, VALUES // 2).to(torch.int16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("going_modular.vit.dropout.random_16_bits", lambda count: every_value.clone())
        outputs = Dropout(p)(torch.ones(VALUES))
    assert abs((outputs == 0).sum().item() / VALUES - p) < 1e-5
    assert outputs.mean().item() == pytest.approx(1, abs=1e-6)  # the expectation stays
    torch.manual_seed(0)
    assert abs(mask(p).mean().item() - p) < 5 * (p * (1 - p) / MANY) ** 0.5


def test_numbers_are_dropped_independently():
    torch.manual_seed(0)
    first, second = mask() - 0.1, mask() - 0.1
    most = 5 * 0.1 * 0.9 / MANY**0.5
    assert abs((first * second).mean().item()) < most
    for distance in (*range(1, 13), 64, 768, 3072):  # four neighbours share 64 bits
        assert abs((first[distance:] * first[:-distance]).mean().item()) < most
    triples = first[:-2] * first[1:-1] * first[2:]
    assert abs(triples.mean().item()) < 5 * (0.1 * 0.9) ** 1.5 / MANY**0.5


def test_what_stays_is_divided_by_1_minus_p_and_so_is_its_gradient():
    torch.manual_seed(0)
    x = torch.randn(5, 7, 3, requires_grad=True)
    y = Dropout(0.25)(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    kept = y != 0
    torch.testing.assert_close(y, x * kept / 0.75)
    torch.testing.assert_close(gradient, kept / 0.75)
    assert 0 < kept.sum() < kept.numel()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_type_stays(dtype):
    assert Dropout(0.1)(torch.ones(3, 4, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3,), (2, 3, 5)])
def test_any_shape(shape):
    assert Dropout(0.5)(torch.ones(shape)).shape == shape


@pytest.mark.parametrize("p", [0.0, 1e-6, 0.9999, 1.0])
def test_a_rate_that_16_bits_cannot_tell_is_left_to_PyTorch(p):
    x = torch.randn(1000)
    torch.manual_seed(0)
    ours = Dropout(p)(x)
    torch.manual_seed(0)
    assert torch.equal(ours, nn.Dropout(p)(x))


def test_without_training_nothing_happens():
    x, dropout = torch.randn(10), Dropout(0.5).eval()
    state = torch.get_rng_state()
    assert dropout(x) is x or torch.equal(dropout(x), x)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_seed_decides_all_masks():
    vit = ViT(ViTConfig(8, 4, 3, 12, 2, 3, 24, num_classes=2))
    nn.init.normal_(vit.head.weight)

    def logits(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return vit(torch.ones(4, 3, 8, 8))

    assert torch.equal(logits(0), logits(0)) and not torch.equal(logits(0), logits(1))
    rows = logits(0)
    assert not torch.equal(rows[0], rows[1])  # each image has its own masks


@pytest.mark.parametrize("p", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stochastic_depth_is_torchvisions(p, dtype):
    x = torch.randn(50, 3, 4, dtype=dtype)
    outputs = []
    for module in (StochasticDepth(p), torchvision.ops.StochasticDepth(p, "row")):
        torch.manual_seed(0)
        outputs.append(module(x))
        assert torch.equal(module.eval()(x), x)
    assert torch.equal(*outputs)


def test_stochastic_depth_of_1_skips_every_image():
    assert StochasticDepth(1.0).train()(torch.ones(4, 2)).eq(0).all()


def test_dropout_does_not_follow_a_default_device():
    with torch.device("meta"):
        dropped = Dropout(0.5)(torch.ones(1000, device="cpu"))
    assert 0 < dropped.eq(0).sum() < 1000


def test_dropout_can_be_compiled_as_a_whole():
    compiled = torch.compile(Dropout(0.5), backend="eager", fullgraph=True)
    dropped = compiled(torch.ones(1000))
    assert 0 < dropped.eq(0).sum() < 1000
