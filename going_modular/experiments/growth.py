"""The model that grows from notebook 02 to notebook 07, and the table that measures it."""

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
LR = 1e-3
MEMORIZED = 0.05  # the loss below which a batch counts as memorized


def small_transform(size: int = SMALL.image_hw[0]) -> v2.Compose:
    """Pillow image in RGB -> tensor (3, size, size) with values from -1 to 1."""
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

    Each part, attention or MLP, is applied as in equations 2 and 3, with a LayerNorm
    before it and a residual around it: z = part(LN(z)) + z.

    Args:
        parts: modules that map (B, N+1, D) to (B, N+1, D), with D = 64.
        readout: what the head reads: the "mean" of all tokens, or the "class_token"
            after a LayerNorm (equation 4).

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
        class_token = self.class_token.expand(images.shape[0], -1, -1)
        z = torch.cat([class_token, self.patch_embedding(images)], dim=1)
        z = z + self.pos_embedding  # (B, N+1, D)
        for norm, part in zip(self.norms, self.parts, strict=True):
            z = part(norm(z)) + z
        z = self.norm(z)
        return self.head(z[:, 0] if self.readout == "class_token" else z.mean(dim=1))


class LinearOnPatches(nn.Module):
    """One linear layer on all patches, one after the other.

    Shapes: (B, 3, 64, 64) -> logits (B, 3).
    """

    def __init__(self):
        super().__init__()
        H, W = SMALL.image_hw
        self.head = nn.Linear(SMALL.in_channels * H * W, SMALL.num_classes)

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
    """Train small models in the same way, and print a table with one row for each.

    Every model sees the same images in the same order (`small_dataloaders`) and is
    trained by AdamW at a learning rate of 0.001. The columns are the number of
    parameters, the multiply-adds for one image, the steps until one batch is memorized
    (`steps_to_memorize`), and the accuracy on held-out images after training.

    Args:
        stages: the name of each model, and a function that builds it.
        epochs: passes over the training images. At most 30 steps for each of them are
            spent on memorizing one batch.

    Returns:
        The held-out accuracy (0 to 1) of each stage.
    """
    device, most_steps = get_device(), 30 * epochs
    train_loader, held_out_loader = small_dataloaders(seed)
    batch = next(iter(train_loader))
    rows, accuracies = [], {}
    for name, build in stages.items():
        set_seeds(seed)
        model = build().to(device)
        multiply_adds = count_multiply_adds(model, batch[0][:1].to(device))
        steps = steps_to_memorize(model, batch, most_steps)
        set_seeds(seed)
        model = build().to(device)
        results = engine.train(
            model,
            train_loader,
            held_out_loader,
            torch.optim.AdamW(model.parameters(), lr=LR),
            nn.CrossEntropyLoss(),
            epochs,
            device,
            progress=False,
        )
        accuracies[name] = results["test_acc"][-1]
        rows.append(
            [
                name,
                f"{count_parameters(model):,}",
                f"{multiply_adds / 1e6:.2f} M",
                f"> {most_steps}" if steps is None else steps,
                f"{accuracies[name]:.2f}",
            ]
        )
    print_table(
        ["model", "parameters", "multiply-adds", f"steps to {MEMORIZED}", "held-out accuracy"], rows
    )
    count = len(held_out_loader.dataset)  # type: ignore[arg-type]
    standard_error = 0.5 / count**0.5  # binomial, at an accuracy of one half
    print(
        f"{epochs * len(train_loader)} steps each; {count} held-out images, so one "
        f"standard error of an accuracy is {standard_error:.2f}"
    )
    return accuracies


def steps_to_memorize(
    model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor], most_steps: int
) -> int | None:
    """Steps on one batch until its loss is below `MEMORIZED`; `None` after `most_steps`."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    for step in range(most_steps + 1):  # a step returns the loss before it
        loss, _ = engine.train_step(model, [batch], nn.CrossEntropyLoss(), optimizer, get_device())
        if loss < MEMORIZED:
            return step
    return None
