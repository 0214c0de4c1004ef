"""How much memory a training needs, counted and by formula, and the guard before it."""

import re
from dataclasses import asdict, replace

import pytest
import torch
from tiny_vit import TINY
from torch.autograd.graph import saved_tensors_hooks

from going_modular import model_builder
from going_modular.model_builder import VIT_CONFIGS, ViT
from going_modular.training import fit, memory, recipes
from going_modular.training.recipes import Recipe
from going_modular.vit import descendants
from going_modular.vit.descendant_config import DescendantConfig, Rotary
from going_modular.vit.descendants import Descendant, build_vit

SMALL = replace(VIT_CONFIGS["ViT-Ti/16"], num_layers=2, dropout=0.0)


def counted_activation_bytes(vit, batch_size, precision):
    """Bytes of all tensors that PyTorch keeps for the backward pass, but parameters.

    Attention is that of a GPU, fused in either precision.
    """
    seen = {parameter.untyped_storage().data_ptr() for parameter in vit.parameters()}
    kept = []  # the tensors themselves, so that no address is used twice

    def keep(tensor):
        address = tensor.untyped_storage().data_ptr()
        if address not in seen:
            seen.add(address)
            kept.append(tensor)
        return tensor

    images = torch.rand(batch_size, vit.config.in_channels, *vit.config.image_hw)
    half = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")
    with pytest.MonkeyPatch.context() as patch:
        for module in (model_builder, descendants):
            fused = torch.nn.functional.scaled_dot_product_attention
            patch.setattr(module, "scaled_dot_product_attention", fused)
        with saved_tensors_hooks(keep, lambda tensor: tensor), half:
            vit.train()(images)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept)


@pytest.mark.parametrize("config", [replace(TINY, dropout=0.0), SMALL])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_formula_for_activations_counts_every_byte(config, precision, batch_size):
    counted = counted_activation_bytes(ViT(config), batch_size, precision)
    assert memory.activation_bytes(config, batch_size, precision) == counted


PARTS = {
    "registers": {"num_registers": 3},
    "no class token": {"pool": "mean", "class_token": False},
    "attention pooling": {"pool": "attention", "class_token": False},
    "two tokens": {"pool": "class_and_register", "num_registers": 1},
    "rotary": {"rotary": Rotary(100.0, centered=True), "pos_embedding": "none"},
    "learned rotary": {"rotary": Rotary(learned=True)},
    "gate": {"swiglu": True},
    "gate and norms": {"swiglu": True, "mlp_norm": True, "attention_norm": True},
    "more norms": {"qk_norm": True, "pre_norm": True, "mlp_norm": True},
    "quick": {"gelu": "quick", "pooled_norm": True},
}


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_formula_for_descendants_is_near_the_count(parts, precision):
    config = DescendantConfig(**asdict(SMALL) | parts)
    counted = counted_activation_bytes(Descendant(config), 8, precision)
    assert memory.activation_bytes(config, 8, precision) == pytest.approx(counted, rel=0.03)


@pytest.mark.parametrize("config", [TINY, DescendantConfig(**asdict(TINY) | PARTS["gate"])])
def test_states_are_16_bytes_a_parameter(config):
    vit = build_vit(config)
    optimizer = recipes.build_optimizer(vit, Recipe(epochs=1, weight_decay=0.1))
    vit(torch.rand(1, 3, 32, 32)).sum().backward()
    optimizer.step()
    tensors = [
        *vit.parameters(),
        *(parameter.grad for parameter in vit.parameters()),
        *(t for state in optimizer.state.values() for t in state.values() if t.ndim),
    ]
    counted = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert memory.state_bytes(config) == counted


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_largest_batch_is_the_largest_that_fits(precision):
    def needed(batch_size):
        bytes_ = memory.process_bytes(SMALL, batch_size, precision=precision)
        return memory.HEADROOM * bytes_

    for images in (1, 2, 7, 100):
        for free, fits in ((needed(images), images), (needed(images) - 1, images - 1)):
            assert memory.largest_batch(SMALL, free, precision=precision) == fits


def test_the_guard_says_how_to_make_it_fit():
    vit_b, free = VIT_CONFIGS["ViT-B/16"], 15 * 2**30  # a free Colab GPU
    fits = memory.largest_batch(vit_b, free, precision="float16")
    assert 64 < fits < 512
    memory.check_memory(vit_b, fits, free, precision="float16")
    with pytest.raises(MemoryError, match="not even one fits"):
        memory.check_memory(VIT_CONFIGS["ViT-H/14"], 1, 2**30)


@pytest.mark.parametrize("batch_size", [30, 32, 37])
@pytest.mark.parametrize("accumulate, processes", [(1, 1), (2, 1), (2, 2), (1, 3)])
def test_the_guards_advice_can_be_followed(batch_size, accumulate, processes):
    free = int(memory.HEADROOM * memory.process_bytes(TINY, 4))
    with pytest.raises(MemoryError, match="at most 4 fit") as refused:
        memory.check_memory(TINY, batch_size, free, accumulate, processes)
    advised = int(re.search(r"set accumulate .* to (\d+)$", str(refused.value))[1])
    assert batch_size % advised == 0
    memory.check_memory(TINY, batch_size, free, advised, processes)


def test_training_on_a_gpu_asks_the_guard_first(monkeypatch):
    """With a made-up GPU, which nothing reaches."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**20, 2**30))
    recipe, cuda = Recipe(epochs=1, batch_size=32), torch.device("cuda")
    with pytest.raises(MemoryError, match="on 16 images at once"):
        fit.fit(ViT(TINY), recipe, [], [], 3, device=cuda, accumulate=2)
