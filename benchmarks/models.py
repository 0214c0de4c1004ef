"""The same ViT in each library, and a training step of it."""

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch
import torchvision
from torch import nn

from going_modular import engine
from going_modular.model_builder import VIT_CONFIGS, ViT, ViTConfig
from going_modular.training.recipes import Recipe, build_optimizer
from going_modular.utils import autocast, best_precision

OURS, PEERS = "ours", ("timm", "transformers", "torchvision")
RECIPE = Recipe(epochs=1, lr=1e-4, weight_decay=0.05)  # AdamW
SHIPPED = "as shipped"
# Dropout and precision of a training step; None is what a library has by itself
SETTINGS: dict[str, tuple[float | None, str | None]] = {
    SHIPPED: (None, None),
    "float32, dropout 0": (0.0, "float32"),
    "float32, dropout 0.1": (0.1, "float32"),
    "bfloat16, dropout 0": (0.0, "bfloat16"),
    "bfloat16, dropout 0.1": (0.1, "bfloat16"),
}
BATCH = 8  # images of a training step
Work = Callable[[], Any]


def peers_here(quick: bool) -> list[str]:
    """The other libraries that are installed. A quick run takes the one that is always there."""
    return ["torchvision"] if quick else [name for name in PEERS if find_spec(name)]


def config_of(name: str, quick: bool, **sizes: Any) -> ViTConfig:
    """A configuration with other sizes; narrow, and of one layer, for a quick run."""
    if quick:
        sizes |= {"embedding_dim": 24, "num_layers": 1, "num_heads": 3, "mlp_dim": 96}
    return replace(VIT_CONFIGS[name], **sizes)


def build(library: str, c: ViTConfig, dropout: float | None = None) -> nn.Module:
    """A ViT with a library's own dropout, or with this rate in every place that the paper names."""
    rate: dict[str, Any] = {} if dropout is None else {"dropout": dropout}
    P, D, L, h, K = c.patch_size, c.embedding_dim, c.num_layers, c.num_heads, c.num_classes
    if library == OURS:
        return ViT(replace(c, **rate))
    if library == "torchvision":
        sizes = c.image_hw[0], P, L, h, D, c.mlp_dim
        return torchvision.models.VisionTransformer(*sizes, num_classes=K, **rate)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs, on what they will drop
        if library == "timm":
            from timm.models import VisionTransformer

            rate = dict.fromkeys(("pos_drop_rate", "proj_drop_rate"), dropout) if rate else {}
            depth: dict[str, Any] = {"embed_dim": D, "depth": L, "num_heads": h}
            return VisionTransformer(c.image_size, P, num_classes=K, **depth, **rate)
        import transformers

        config: Any = transformers.ViTConfig(image_size=c.image_size, patch_size=P)
        config.hidden_size, config.num_hidden_layers, config.num_attention_heads = D, L, h
        config.intermediate_size, config.num_labels = c.mlp_dim, K
        if rate:
            config.hidden_dropout_prob = dropout
        model = transformers.ViTForImageClassification(config)
        if dropout is not None:  # inside the MLP, it has no setting for it
            for name, gelu in list(model.named_modules()):
                if name.endswith("activation_fn"):
                    model.set_submodule(name, nn.Sequential(gelu, nn.Dropout(dropout)))
        return model


def logits_of(library: str, model: Callable, images: torch.Tensor, precision: str) -> torch.Tensor:
    """Logits in a precision: ours by `utils.autocast`, others as PyTorch's manual shows it."""
    device = images.device
    context: AbstractContextManager[Any] = autocast(device, precision)
    if library != OURS and precision != "float32":
        context = torch.autocast(device.type, getattr(torch, precision))
    with context:
        outputs = model(images)
    return getattr(outputs, "logits", outputs)


def training_step(
    library: str, setting: str, c: ViTConfig, device: torch.device, batch: int = BATCH
) -> Work:
    """A step of AdamW on the cross-entropy of one batch of random images.

    As shipped, ours is the step of `engine` in the best precision. The other libraries leave
    this to their users, so theirs is PyTorch's usual one. In all other settings every model
    has the same loop and the same optimizer.
    """
    dropout, precision = SETTINGS[setting]
    model = build(library, c, dropout).to(device).train()
    images = torch.randn(batch, c.in_channels, *c.image_hw, device=device)
    labels = torch.arange(batch, device=device) % c.num_classes
    optimizer, loss_fn = build_optimizer(model, RECIPE), nn.CrossEntropyLoss()
    if precision is None and library == OURS:
        method, data = engine.Method(precision=best_precision(device)), [(images, labels)]
        return lambda: engine.train_step(model, data, loss_fn, optimizer, device, method=method)
    if precision is None:
        optimizer = torch.optim.AdamW(model.parameters(), RECIPE.lr)

    def step() -> None:
        optimizer.zero_grad()
        loss_fn(logits_of(library, model, images, precision or "float32"), labels).backward()
        optimizer.step()

    return step
