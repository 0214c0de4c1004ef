"""Does a GPU have enough memory for a training run? Formulas, and a check before it starts."""

import torch

from going_modular.model_builder import ViTConfig
from going_modular.training.recipes import Recipe, parameter_groups
from going_modular.utils import count_parameters
from going_modular.vit.descendant_config import DescendantConfig
from going_modular.vit.descendants import build_vit

# What the formulas leave out: dropout's masks, work space, gaps between tensors
HEADROOM = 1.25


def activation_bytes(config: ViTConfig, batch_size: int, precision: str) -> int:
    """Bytes that a forward pass keeps for the backward pass, without dropout.

    Attention is that of a GPU. A CPU computes it in float32, see `vit.attention`.

    It is exact for a class token and no representation layer, and nearly so for the parts
    of descendants (`bytes_of_parts`).

    Of each token a block keeps, in numbers of w bytes (4 in "float32", else 2):

        2D      the residual stream before both LayerNorms, always of 4 bytes
        2D      what these put out, for the two dense layers that follow
        4D      queries, keys, values, and what attention makes of them
        2·mlp   the hidden layer of the MLP, before and after GELU
        4 + h   means and deviations of the LayerNorms, and the sum of each softmax,
                always of 4 bytes

    The model adds the images, always of 4 bytes, and the last LayerNorm. In 16 bit it adds a
    copy of each matrix but the first layer's, see `PatchEmbedding`.
    """
    D, h = config.embedding_dim, config.num_heads
    w = 4 if precision == "float32" else 2
    tokens = batch_size * (config.num_tokens_before_patches + config.num_patches)
    block = tokens * (2 * 4 * D + 6 * w * D + 2 * w * config.mlp_dim + 4 * (4 + h))
    outside = 0
    if isinstance(config, DescendantConfig):
        block += tokens * bytes_of_parts(config, w)
        outside += tokens * 4 * (D + 2) * config.pre_norm
        outside += tokens * 4 * w * D * (config.pool == "attention")  # q, k, v of all tokens
    H, W = config.image_hw
    outside += batch_size * config.in_channels * H * W * 4  # the images
    last_norm = tokens * 4 * (D + 2)
    if precision == "float32":  # the class token is a view of all tokens: all stay
        return config.num_layers * block + outside + last_norm + tokens * 4 * D
    first = config.in_channels * config.patch_size**2 * D
    copies = 2 * (matrix_numbers(config) - first)
    return config.num_layers * block + outside + last_norm + batch_size * D * w + copies


def bytes_of_parts(config: DescendantConfig, w: int) -> int:
    """What the parts of a descendant add to the bytes that a block keeps of each token.

    Attention keeps a copy of what it puts out. A gate keeps two more hidden layers, and
    CLIP's GELU one. A LayerNorm keeps its input and, for each vector, mean and deviation.
    Where queries and keys are normalized, or turned by learned frequencies, q, k and v are
    also kept as they were before. The angles of rotary positions are left out: they are as
    many for any number of images.

    Args:
        w: bytes of a number, see `activation_bytes`.
    """
    quick = config.gelu == "quick" and not config.swiglu
    learned = config.rotary is not None and config.rotary.learned
    hidden = 2 * config.swiglu + config.mlp_norm + quick
    width = 1 + config.attention_norm + 3 * config.qk_norm + 3 * learned
    width += config.swiglu and w == 2  # two layers copy the same input into 16 bit
    norms = config.mlp_norm + config.attention_norm + 2 * config.num_heads * config.qk_norm
    return w * (hidden * config.mlp_dim + width * config.embedding_dim) + 8 * norms


def matrix_numbers(config: ViTConfig) -> int:
    """How many numbers the matrices of a ViT hold."""
    with torch.device("meta"):
        matrices, _ = parameter_groups(build_vit(config), Recipe(epochs=1))
    return sum(parameter.numel() for parameter in matrices["params"])


def state_bytes(config: ViTConfig) -> int:
    """Bytes of parameters, gradients and AdamW's two averages: 16 a parameter."""
    with torch.device("meta"):
        return 16 * count_parameters(build_vit(config))


def process_bytes(
    config: ViTConfig,
    batch_size: int,
    processes: int = 1,
    sharding: str = "ddp",
    precision: str = "bfloat16",
    averaged: bool = False,
) -> int:
    """Bytes on each GPU while it trains on `batch_size` images of its own.

    With "fsdp", states are divided by the number of processes, and two blocks are there
    in full: the one that computes, and the next.

    Args:
        averaged: a moving average of the weights is kept beside them.
    """
    states = state_bytes(config)
    if averaged:
        states += states // 4
    if sharding == "fsdp":
        numbers = matrix_numbers(config) // config.num_layers
        states = states // processes + 2 * 4 * numbers
    return states + activation_bytes(config, batch_size, precision)


def largest_batch(config: ViTConfig, free: int, **options) -> int:
    """How many images of its own a GPU with `free` bytes trains on; 0 if on none.

    Args:
        options: of `process_bytes`.
    """
    one, two = (HEADROOM * process_bytes(config, n, **options) for n in (1, 2))
    return max(0, int((free - one) // (two - one)) + 1)


def check_memory(
    config: ViTConfig,
    batch_size: int,
    free: int,
    accumulate: int = 1,
    processes: int = 1,
    **options,
) -> None:
    """Before training starts, check that the GPU has enough memory for such batches.

    Args:
        batch_size: images of a step, in `accumulate` parts on each of `processes` GPUs.
        free: bytes of memory that nobody uses yet.
        options: others of `process_bytes`.

    Raises:
        MemoryError: if they do not fit; it says which would.
    """
    options |= {"processes": processes}
    fits = largest_batch(config, free, **options)

    def at_once(parts: int) -> int:
        return -(-batch_size // (parts * processes))

    if at_once(accumulate) > fits:
        divisors = [n for n in range(1, batch_size + 1) if batch_size % n == 0]
        needed = HEADROOM * process_bytes(config, at_once(accumulate), **options)
        raise MemoryError(
            f"training on {at_once(accumulate)} images at once needs about "
            f"{needed / 2**30:.1f} GiB of GPU memory, and {free / 2**30:.1f} are free: "
            + (
                f"at most {fits} fit, so set accumulate (--accumulate) to "
                f"{next(n for n in divisors if at_once(n) <= fits)}"
                if fits
                else "not even one fits, so take a smaller model or image_size"
            )
        )
