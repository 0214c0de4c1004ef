"""Data, data loaders and a ViT for trainings of a fraction of a second."""

from dataclasses import replace

import torch
from tiny_vit import TINY
from torch.utils.data import TensorDataset

from going_modular import data_setup
from going_modular.model_builder import ViT


def samples(count=5, features=4, classes=3, seed=0):
    """Random features and labels."""
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(
        torch.randn(count, features, generator=generator),
        torch.randint(classes, (count,), generator=generator),
    )


def loader(dataset, batch_size=2, shuffle=False):
    return data_setup.create_dataloader(dataset, batch_size, shuffle)


def untrained_vit(**overrides):
    """For images of 16 pixels; `overrides` are fields of `ViTConfig`."""
    sizes = dict(image_size=16, embedding_dim=8, num_layers=1, num_heads=2, mlp_dim=16)
    return ViT(replace(TINY, **sizes | dict(num_classes=3) | overrides))
