"""A ViT small enough for a test, with random numbers in all its parameters."""

from dataclasses import replace

from going_modular.model_builder import ViT, ViTConfig
from going_modular.utils import give_random_values

TINY = ViTConfig(
    image_size=32,
    patch_size=8,
    embedding_dim=24,
    num_layers=2,
    num_heads=3,
    mlp_dim=40,
    num_classes=5,
)


def tiny_vit(seed=0, **overrides):
    """In evaluation mode; `overrides` are fields of `ViTConfig`."""
    return give_random_values(ViT(replace(TINY, **overrides)), seed).eval()
