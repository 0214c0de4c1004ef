"""The model that grows from notebook 02 to notebook 07."""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from going_modular import data_setup, engine, model_builder
from going_modular.images.sources import get_food_images
from going_modular.utils import (
    count_multiply_adds,
    count_parameters,
    get_device,
    print_table,
    set_seeds,
)

SMALL = model_builder.ViTConfig(
    image_size=64,
    patch_size=8,
    embedding_dim=64,
    num_layers=4,
    num_heads=4,
    mlp_dim=256,
    num_classes=3,
    dropout=0.0,
)


def small_transform(size: int = SMALL.image_size) -> v2.Compose:
    """RGB image -> tensor (3, size, size) with values from -1 to 1."""
    return v2.Compose(
        [
            v2.Resize((size, size)),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean=[0.5] * 3, std=[0.5] * 3),
        ]
    )


class SmallClassifier(nn.Module):
    """Equation 1 at a small size, then the given parts, then a linear head.

    Each part (attention, MLP) is applied as equations 2 and 3 have it, with a
    LayerNorm before it and a residual round it: z = part(LN(z)) + z.

    Args:
        parts: modules that map (B, N+1, D) to (B, N+1, D), D = 64.
        readout: what the head sees: "mean", of all tokens, or "class_token", after a
            LayerNorm (equation 4).

    Shapes: (B, 3, 64, 64) -> logits (B, 3).
    """

    def __init__(self, parts: Sequence[nn.Module] = (), readout: str = "mean"):
        super().__init__()
        D = SMALL.embedding_dim
        self.readout = readout
        self.patch_embedding = model_builder.PatchEmbedding(3, SMALL.patch_size, D)
        self.class_token = nn.Parameter(torch.zeros(1, 1, D))
        self.pos_embedding = nn.Parameter(0.02 * torch.randn(1, SMALL.num_patches + 1, D))
        self.parts = nn.ModuleList(parts)
        self.norms = nn.ModuleList(nn.LayerNorm(D) for _ in parts)
        self.norm = nn.LayerNorm(D) if readout == "class_token" else nn.Identity()
        self.head = nn.Linear(D, SMALL.num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        class_token = self.class_token.expand(len(images), -1, -1)
        z = torch.cat([class_token, self.patch_embedding(images)], dim=1)
        z = z + self.pos_embedding  # (B, N+1, D)
        for norm, part in zip(self.norms, self.parts, strict=True):
            z = part(norm(z)) + z
        z = self.norm(z)
        return self.head(z[:, 0] if self.readout == "class_token" else z.mean(dim=1))


class LinearOnPatches(nn.Module):
    """One linear layer on all patches end to end: (B, 3, 64, 64) -> logits (B, 3)."""

    def __init__(self):
        super().__init__()
        numbers = SMALL.in_channels * SMALL.image_size**2
        self.head = nn.Linear(numbers, SMALL.num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        P = SMALL.patch_size
        patches = nn.functional.unfold(images, P, stride=P)  # (B, P²C, N)
        return self.head(patches.transpose(1, 2).flatten(1))


def small_dataloaders(seed: int = 42) -> tuple[DataLoader, DataLoader]:
    """Batches of 32 small training images: 150 to learn from, 75 held out."""
    train_data, held_out = (
        data_setup.load_into_memory(part)
        for part in data_setup.split_train_validation(
            get_food_images().train_dir, 1 / 3, seed, small_transform()
        )
    )
    return (
        data_setup.create_dataloader(train_data, 32, shuffle=True, seed=seed),
        data_setup.create_dataloader(held_out, 32),
    )


def measure_growth(
    stages: dict[str, Callable[[], nn.Module]], epochs: int, seed: int = 42
) -> dict[str, float]:
    """Train small models the same way and print a table, a row a model.

    Every model sees the same images in the same order (`small_dataloaders`) and is
    trained by AdamW at a learning rate of 0.001. Columns: parameters; multiply-adds for
    one image; steps on one batch until its training loss is below 0.05, at most 30 an
    epoch; accuracy on held-out images after training on all batches.

    Args:
        stages: a name and a function that builds the model, for each row.
        epochs: passes over the training images.

    Returns:
        The held-out accuracy (0 to 1) of each stage.
    """
    device, loss_fn, most_steps = get_device(), nn.CrossEntropyLoss(), 30 * epochs
    train_loader, held_out_loader = small_dataloaders(seed)
    one_batch = [next(iter(train_loader))]

    def fresh(build):
        set_seeds(seed)
        model = build().to(device)
        return model, torch.optim.AdamW(model.parameters(), lr=1e-3)

    rows, accuracies = [], {}
    for name, build in stages.items():
        model, optimizer = fresh(build)
        multiply_adds = count_multiply_adds(model, one_batch[0][0][:1].to(device))
        steps = f"> {most_steps}"
        for steps_so_far in range(most_steps + 1):  # the loss is that before the step
            loss, _ = engine.train_step(model, one_batch, loss_fn, optimizer, device)
            if loss < 0.05:
                steps = steps_so_far
                break
        model, optimizer = fresh(build)
        loaders = (train_loader, held_out_loader)
        results = engine.train(model, *loaders, optimizer, loss_fn, epochs, device, progress=False)
        accuracies[name] = results["test_acc"][-1]
        rows.append(
            [
                name,
                f"{count_parameters(model):,}",
                f"{multiply_adds / 1e6:.2f} M",
                steps,
                f"{accuracies[name]:.2f}",
            ]
        )
    print_table(
        ["model", "parameters", "multiply-adds", "steps to 0.05", "held-out accuracy"], rows
    )
    held_out = len(held_out_loader.dataset)
    standard_error = 0.5 / held_out**0.5  # binomial, at an accuracy of one half
    print(
        f"{epochs * len(train_loader)} steps each; {held_out} held-out images, so one "
        f"standard error of an accuracy is {standard_error:.2f}"
    )
    return accuracies
