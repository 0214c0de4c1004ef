"""How a ViT is trained: the paper's settings as data, and the parts they ask for.

Table 3 (training) and Table 4 (fine-tuning) of the paper, the chapter's recipe, our
own for a few hundred images, and functions that build what a recipe names: optimizer,
course of the learning rate, augmentation, averaged weights, all from PyTorch's parts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    SequentialLR,
)
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.transforms import v2

from going_modular.images.transforms import IMAGENET_MEAN, IMAGENET_STD, Transform
from going_modular.model_builder import MultiheadSelfAttentionBlock, ViT, ViTConfig
from going_modular.vit.config import check_choice, check_probability, check_size, is_number

CHOICES = {
    "init": ("paper", "chapter"),
    "optimizer": ("adamw", "adam", "sgd"),
    "schedule": ("constant", "linear", "cosine"),
}

AMOUNTS = ("lr", "weight_decay", "momentum", "clip_norm", "mixup", "cutmix")
SHARES = ("label_smoothing", "crop_scale", "color_jitter")
# Below 1: at 1, dropout or the last block lets nothing through, and the average never moves.
PROBABILITIES = ("dropout", "stochastic_depth", "average_decay")


def setting(default, meaning: str):
    """A field of `Recipe`, and what it means, for the help of the command."""
    return field(default=default, metadata={"help": meaning})


@dataclass(frozen=True)
class Recipe:
    """All settings of a training; 0 or `False` leaves a part out.

    Its length is in epochs, or in steps as in Table 4, and then in as many whole
    epochs as these take.

    Raises:
        ValueError: if a setting is none of its choices, or out of its range.
    """

    epochs: int = setting(0, "passes over the training images; or give steps")
    steps: int = setting(0, "length in steps, rounded up to whole epochs")
    batch_size: int = setting(32, "images in a step, on all processes together")
    lr: float = setting(1e-3, "the largest learning rate")
    init: str = setting("paper", "how weights are initialized")
    optimizer: str = setting("adamw", '"adam" puts the decay into the gradient (L2)')
    weight_decay: float = setting(0.0, "of the layers' matrices")
    decay_everything: bool = setting(False, "decay biases, norms and positions too")
    betas: tuple[float, float] = setting((0.9, 0.999), "of AdamW and Adam")
    momentum: float = setting(0.9, "of SGD")
    schedule: str = setting("constant", "after the warm-up; linear and cosine end at 0")
    warmup_steps: int = setting(0, "in which the learning rate grows from 0")
    clip_norm: float = setting(0.0, "gradients longer than this are shortened to it")
    dropout: float = setting(0.0, "share of activations set to 0")
    stochastic_depth: float = setting(0.0, "chance that an image skips the last block's parts")
    label_smoothing: float = setting(0.0, "share of a label given to all classes")
    crop_scale: float = setting(0.0, "least part of an image that a crop keeps")
    flip: bool = setting(False, "mirror half of the images")
    color_jitter: float = setting(0.0, "change of brightness, contrast, saturation")
    randaugment: int = setting(0, "magnitude, 1 to 30, of two random changes")
    mixup: float = setting(0.0, "α of MixUp; Beta(α, α) gives the shares")
    cutmix: float = setting(0.0, "α of CutMix; with both, one of them for a batch")
    average_decay: float = setting(0.0, "of a moving average of weights, by step")

    def __post_init__(self):
        for name, choices in CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        check_size("batch_size", self.batch_size)
        for name in ("epochs", "steps", "warmup_steps", "randaugment"):
            check_size(name, getattr(self, name), least=0)
        for name in (*AMOUNTS, *SHARES):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a number >= 0, got {getattr(self, name)!r}")
        for name in PROBABILITIES:
            check_probability(name, getattr(self, name))
        if len(self.betas) != 2 or not all(is_number(b) and 0 <= b < 1 for b in self.betas):
            raise ValueError(f"betas must be two numbers from 0 to below 1, got {self.betas!r}")
        for name, most in {"randaugment": 30, **dict.fromkeys(SHARES, 1)}.items():
            if getattr(self, name) > most:
                raise ValueError(f"{name} must be at most {most}, got {getattr(self, name)!r}")
        if (self.epochs > 0) == (self.steps > 0):
            raise ValueError(
                f"a recipe needs epochs or steps, one of them: got {self.epochs} "
                f"epochs and {self.steps} steps"
            )

    def epochs_of(self, steps_per_epoch: int) -> int:
        """How many epochs it takes, with a data loader of so many batches."""
        return self.epochs or -(-self.steps // steps_per_epoch)


# The paper's tables

_SHARED = Recipe(epochs=1, batch_size=4096, warmup_steps=10_000)
_JFT = replace(_SHARED, weight_decay=0.1, schedule="linear")
_IMAGENET_21K = replace(_SHARED, lr=1e-3, weight_decay=0.03, schedule="linear", dropout=0.1)
_IMAGENET = replace(
    _SHARED, epochs=300, lr=3e-3, weight_decay=0.3, schedule="cosine", dropout=0.1, clip_norm=1.0
)

# Table 3: training, at 224 pixels. Where the paper gives two lengths, the longer one.
# It says Adam with weight decay. In the authors' later code (big_vision) the decay is not
# part of the gradient, which makes it AdamW.
TABLE_3 = {
    ("ViT-B/16", "JFT-300M"): replace(_JFT, epochs=7, lr=8e-4),
    ("ViT-B/32", "JFT-300M"): replace(_JFT, epochs=7, lr=8e-4),
    ("ViT-L/32", "JFT-300M"): replace(_JFT, epochs=7, lr=6e-4),
    ("ViT-L/16", "JFT-300M"): replace(_JFT, epochs=14, lr=4e-4),
    ("ViT-H/14", "JFT-300M"): replace(_JFT, epochs=14, lr=3e-4),
    ("ViT-B/16", "ImageNet-21k"): replace(_IMAGENET_21K, epochs=90),
    ("ViT-B/32", "ImageNet-21k"): replace(_IMAGENET_21K, epochs=90),
    ("ViT-L/16", "ImageNet-21k"): replace(_IMAGENET_21K, epochs=90),
    ("ViT-L/32", "ImageNet-21k"): replace(_IMAGENET_21K, epochs=90),
    ("ViT-B/16", "ImageNet"): _IMAGENET,
    ("ViT-B/32", "ImageNet"): _IMAGENET,
    ("ViT-L/16", "ImageNet"): _IMAGENET,
    ("ViT-L/32", "ImageNet"): _IMAGENET,
}

# Table 4: fine-tuning, at 384 pixels: steps, and the learning rates among which a part
# of the training images, set aside, chooses.
_FEW_RATES = (0.001, 0.003, 0.01, 0.03)
TABLE_4 = {
    "ImageNet": (20_000, (0.003, 0.01, 0.03, 0.06)),
    "CIFAR-100": (10_000, _FEW_RATES),
    "CIFAR-10": (10_000, _FEW_RATES),
    "Oxford-IIIT Pets": (500, _FEW_RATES),
    "Oxford Flowers-102": (500, _FEW_RATES),
    "VTAB (19 tasks)": (2_500, (0.01,)),
}


def finetuning_recipe(dataset: str, lr: float) -> Recipe:
    """The paper's recipe for fine-tuning on a data set of `TABLE_4`."""
    steps, _ = TABLE_4[dataset]
    return Recipe(
        steps=steps, batch_size=512, lr=lr, optimizer="sgd", schedule="cosine", clip_norm=1.0
    )


# A ViT that some hundred images can train on a laptop, and its recipe: see notebook 11.
MINI = ViTConfig(
    image_size=96,
    patch_size=12,
    embedding_dim=128,
    num_layers=6,
    num_heads=4,
    mlp_dim=512,
    num_classes=3,
    dropout=0.0,
    pool="mean",
)

# What `python -m going_modular.train --recipe` knows by name.
RECIPES = {
    "mini": Recipe(
        epochs=50,
        batch_size=32,
        lr=1e-3,
        weight_decay=0.05,
        schedule="cosine",
        warmup_steps=40,
        clip_norm=1.0,
        stochastic_depth=0.1,
        label_smoothing=0.1,
        crop_scale=0.25,
        flip=True,
        color_jitter=0.2,
    ),
    # learnpytorch.io, chapter 08: Table 3's numbers for ImageNet, without the rest
    "chapter": Recipe(
        epochs=10,
        batch_size=32,
        lr=3e-3,
        init="chapter",
        optimizer="adam",
        weight_decay=0.3,
        decay_everything=True,
        dropout=0.1,
    ),
    "paper-imagenet": TABLE_3["ViT-B/16", "ImageNet"],
    "paper-imagenet21k": TABLE_3["ViT-B/16", "ImageNet-21k"],
    "paper-jft": TABLE_3["ViT-B/16", "JFT-300M"],
    "paper-finetune": finetuning_recipe("Oxford-IIIT Pets", lr=0.003),
}


# What a recipe is made of


def initialize(init: str, vit: ViT) -> ViT:
    """Initialize a ViT's weights as a recipe asks, and return it.

    "paper" leaves them as `ViT` has them. "chapter" is what the chapter's code does:
    PyTorch's defaults for each layer, `nn.MultiheadAttention` among them, and N(0, 1)
    for class token and positions.
    """
    if init == "chapter":
        for module in vit.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        for module in vit.modules():
            if isinstance(module, MultiheadSelfAttentionBlock):
                nn.init.xavier_uniform_(module.qkv.weight)  # 3D×D as one matrix
                nn.init.zeros_(module.qkv.bias)
                nn.init.zeros_(module.projection.bias)
        if vit.config.num_class_tokens:
            nn.init.normal_(vit.class_token)
        nn.init.normal_(vit.pos_embedding)
    return vit


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict]:
    """Parameters for an optimizer: those that weight decay shrinks, and the others.

    Decay is for the matrices of layers. Biases, LayerNorms, the class token, the positions
    and what else is no layer (registers, a pooling's query, learned frequencies) are not
    decayed, as in the authors' code; frozen parameters are in no group.
    """
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_matrix = parameter.ndim > 1 and name.endswith("weight")
            chosen = decayed if is_matrix or recipe.decay_everything else others
            chosen.append(parameter)
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer for all parameters that are not frozen.

    A fused optimizer updates a parameter in one pass over its memory.
    """
    groups = parameter_groups(model, recipe)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, recipe.lr, momentum=recipe.momentum, fused=True)
    adam = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[recipe.optimizer]
    return adam(groups, recipe.lr, betas=recipe.betas, fused=True)


def build_scheduler(optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> LRScheduler:
    """The course of the learning rate, one value a step: warm-up, then decay.

    With S = `steps`, W = `warmup_steps` and t = 0, 1, ..., S - 1, the rate is
    lr · (t + 1) / W while t < W, and then, with s = (t - W) / (S - W), lr, lr · (1 - s)
    or lr · (1 + cos(π s)) / 2.

    Raises:
        ValueError: if the warm-up takes all steps.
    """
    W = recipe.warmup_steps
    if W >= steps:
        raise ValueError(
            f"{W} steps of warm-up leave nothing of a training of {steps} steps: take "
            "fewer (a tenth of all is usual), or train longer"
        )
    decay = {
        "constant": lambda: ConstantLR(optimizer, factor=1.0),
        "linear": lambda: LinearLR(optimizer, 1.0, 0.0, total_iters=steps - W),
        "cosine": lambda: CosineAnnealingLR(optimizer, T_max=steps - W),
    }[recipe.schedule]
    if W == 0:
        return decay()
    warmup = LinearLR(optimizer, 1 / W, 1.0, total_iters=max(W - 1, 1))
    return SequentialLR(optimizer, [warmup, decay()], milestones=[W])


def learning_rates(recipe: Recipe, steps: int) -> list[float]:
    """The learning rate of each step, as a training will have them."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], recipe.lr)
    scheduler = build_scheduler(optimizer, recipe, steps)
    rates = []
    for _ in range(steps):
        rates.append(float(scheduler.get_last_lr()[0]))
        optimizer.step()
        scheduler.step()
    return rates


def training_transform(
    recipe: Recipe,
    size: int | tuple[int, int],
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Transform:
    """Image (Pillow, or uint8 tensor) -> tensor (3, H, W), changed at random.

    Args:
        size: pixels of a square, or (H, W).
    """
    size = (size, size) if isinstance(size, int) else size
    steps: list[v2.Transform] = [v2.Resize(size)]
    if recipe.crop_scale:
        steps = [v2.RandomResizedCrop(size, scale=(recipe.crop_scale, 1.0))]
    if recipe.flip:
        steps.append(v2.RandomHorizontalFlip())
    if recipe.randaugment:
        steps.append(v2.RandAugment(magnitude=recipe.randaugment))
    if recipe.color_jitter:
        steps.append(v2.ColorJitter(*[recipe.color_jitter] * 3))
    to_numbers = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    return v2.Compose([v2.ToImage(), *steps, *to_numbers])


def build_mix(recipe: Recipe, num_classes: int) -> v2.Transform | None:
    """MixUp, CutMix, either by chance, or `None`: of a batch's images and labels.

    Zhang et al., arXiv 1710.09412, blend two images; Yun et al., arXiv 1905.04899,
    paste a part of one into the other. Labels (B,) become shares (B, K) of both.
    """
    mixes = [
        mix(alpha=alpha, num_classes=num_classes)
        for mix, alpha in ((v2.MixUp, recipe.mixup), (v2.CutMix, recipe.cutmix))
        if alpha
    ]
    return v2.RandomChoice(mixes) if mixes else None


def build_average(model: nn.Module, recipe: Recipe) -> AveragedModel | None:
    """A moving average of the weights (Polyak; the paper has one for Table 2).

    After each step: average = decay · average + (1 - decay) · weights. It starts at the
    weights after the first step.
    """
    if not recipe.average_decay:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.average_decay))


HEAD = Recipe(epochs=10, batch_size=32, lr=1e-3, optimizer="adam")
