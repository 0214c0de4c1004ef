"""Checks of the exercises to notebook 06."""

from collections.abc import Callable

import torch
from torch import nn

from going_modular.checks import (
    noise,
    require,
    require_answers,
    require_number,
    require_tensor,
    result_of,
    right,
)
from going_modular.model_builder import VIT_CONFIGS, TransformerEncoderBlock, ViT, ViTConfig
from going_modular.utils import give_random_values

D = 6


def require_tensor_shape(answer, like: torch.Tensor) -> None:
    """Is it a tensor of this shape?"""
    require(
        isinstance(answer, torch.Tensor) and answer.shape == like.shape,
        f"the result should be a tensor of z's shape, {tuple(like.shape)}",
    )


def growth_of_the_residual_path(deviation, share_of_z_0) -> None:
    """6.1: the spread of z after L blocks, each of which adds two parts."""
    parts = 2 * VIT_CONFIGS["ViT-B/16"].num_layers
    require_answers(deviation=deviation, share_of_z_0=share_of_z_0)
    require(
        deviation != 1 + parts,
        "deviation: this is the variance, the square of the standard deviation",
    )
    require_number(
        "deviation",
        deviation,
        (1 + parts) ** 0.5,
        "count z_0 and all that is added, two parts for each block; variances add up",
    )
    require_number(
        "share_of_z_0",
        share_of_z_0,
        1 / (1 + parts),
        "divide the variance of z_0 by that of the whole sum",
    )
    right("What a block adds counts for less, the later it comes; LN hides the growth.")


def mean_of_the_patches(mean_logits: Callable) -> None:
    """6.2: the head on the mean of all patches, repaired (D.3)."""
    config = ViTConfig(
        image_size=(12, 20),
        patch_size=4,
        embedding_dim=D,
        num_layers=2,
        num_heads=2,
        mlp_dim=14,
        num_classes=4,
    )
    vit, images = give_random_values(ViT(config)).eval(), noise(2, 3, 12, 20)
    with torch.no_grad():
        logits = result_of(mean_logits, vit, images)
        z = vit.encoder(vit.embed(images))  # (B, N+1, D)
        y = vit.norm(z)
        require(
            isinstance(logits, torch.Tensor) and logits.shape == (2, config.num_classes),
            "the result should be (B, K), (2, 4): over which axis is the mean taken?",
        )
        known = (
            (y[:, 0], "this is the class token's answer: take the mean of the patches"),
            (y.mean(dim=1), "the class token is still in the mean"),
            (
                vit.norm(z.mean(dim=1)),
                "the class token is still in the mean, and LN comes after it",
            ),
            (
                vit.norm(z[:, 1:].mean(dim=1)),
                "LN comes after the mean: it should treat each token, before",
            ),
            (z[:, 1:].mean(dim=1), "the last LayerNorm is missing"),
        )
        for wrong, hint in known:
            same = torch.allclose(logits, vit.head(wrong), atol=1e-5)
            require(not same, hint)
        require_tensor(
            "mean_logits(vit, images)",
            logits,
            vit.head(y[:, 1:].mean(dim=1)),
            "last LayerNorm, mean over the N patches of each image, head",
        )
    right(
        "As good as a class token, the paper found, once the learning rate is chosen "
        "for it (Figure 9)."
    )


def block_of_noise() -> TransformerEncoderBlock:
    """A small block with numbers everywhere, in evaluation mode."""
    return give_random_values(TransformerEncoderBlock(D, num_heads=2, mlp_dim=14)).eval()


def post_norm_block(post_norm: Callable, pre_keeps, post_keeps) -> None:
    """6.3: the block of the first Transformer, and what passes through it."""
    block, z = block_of_noise(), noise(3, 5, D)
    with torch.no_grad():
        output = result_of(post_norm, block, z)
        middle = block.attention_norm(block.attention(z) + z)
        expected = block.mlp_norm(block.mlp(middle) + middle)
        require_tensor_shape(output, z)
        require(
            not torch.allclose(output, block(z), atol=1e-5), "this is pre-norm, the block as it is"
        )
        inside = block.attention_norm(block.attention(z)) + z
        inside = block.mlp_norm(block.mlp(inside)) + inside
        require(
            not torch.allclose(output, inside, atol=1e-5),
            "here only what the part gives is normalised; in the first Transformer it is the sum",
        )
        exchanged = block.mlp_norm(block.attention(z) + z)
        exchanged = block.attention_norm(block.mlp(exchanged) + exchanged)
        require(
            not torch.allclose(output, exchanged, atol=1e-5), "the two LayerNorms are exchanged"
        )
        require_tensor(
            "post_norm(block, z)",
            output,
            expected,
            "attention, sum, LayerNorm; then the MLP, sum, LayerNorm",
        )
        silent = block_of_noise()
        for layer in (silent.attention.projection, silent.mlp.contract):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        keeps = {
            "pre_keeps": (pre_keeps, torch.allclose(silent(z), z)),
            "post_keeps": (post_keeps, torch.allclose(post_norm(silent, z), z)),
        }
    for name, (answer, expected) in keeps.items():
        require_answers(**{name: answer})
        require(isinstance(answer, bool), f"{name} should be True or False")
        require(
            answer == expected,
            f"{name}: what is left of each line if attention and MLP give zeros?",
        )
    right(
        "Before the first step, a pre-norm block can be nearly nothing: deep models "
        "train more easily that way."
    )


def drop_path_by_hand(drop_path: Callable) -> None:
    """6.4: a part is left out for some images of the batch, whole."""
    part, p = noise(4000, 3, 2), 0.3
    require_tensor(
        "drop_path(part, p, False)",
        result_of(drop_path, part, p, False),
        part,
        "without training, every image gets its part",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        out, again = (result_of(drop_path, part, p, True) for _ in range(2))
    require(
        isinstance(out, torch.Tensor) and out.shape == part.shape,
        f"the result should have the part's shape, {tuple(part.shape)}",
    )
    kept = out != 0
    require(
        not (kept[:1] == kept).all(),
        "one draw decides for the whole batch: each image has a chance of its own",
    )
    require(
        not (~kept).all(dim=(1, 2)).sum() < 0.1 * len(part),
        "single numbers or tokens are left out, as in dropout; here all tokens of an "
        "image share one draw",
    )
    whole = kept.flatten(1)
    require(
        (whole == whole[:, :1]).all(),
        "of some images a piece is left out: either all of it or nothing",
    )
    zeros = 1 - whole[:, 0].float().mean().item()
    require(abs(zeros - (1 - p)) > 0.04, "p is the probability of being left out")
    require(abs(zeros - p) < 0.04, f"a share of {zeros:.2f} is left out, for p = {p}")
    require(not torch.equal(out, again), "each call should draw anew")
    require(
        not torch.equal(out[kept], part[kept]),
        "what remains has to grow, or its expected value is smaller in training",
    )
    require_tensor(
        "what remains",
        out[kept],
        part[kept] / (1 - p),
        "by what must it be multiplied so that the expected value is the old one?",
    )
    right("The residual carries z past the gap: each image gets a shallower model.")


def who_wrote_what(contributions: Callable) -> None:
    """6.5: z_L as a sum of what each part has added."""
    blocks = nn.Sequential(*(TransformerEncoderBlock(D, num_heads=2, mlp_dim=14) for _ in range(4)))
    give_random_values(blocks).eval()
    with torch.no_grad():
        z_0 = noise(3, 5, D)
        z, expected = z_0, [z_0]
        for block in blocks:
            expected.append(block.attention(block.attention_norm(z)))
            z = z + expected[-1]
            expected.append(block.mlp(block.mlp_norm(z)))
            z = z + expected[-1]
        expected = torch.stack(expected)  # (2L + 1, B, N+1, D)
        answer = result_of(contributions, blocks, z_0)
    require(
        isinstance(answer, torch.Tensor),
        "the list of contributions should be stacked into one tensor: torch.stack",
    )
    L = len(blocks)
    require(len(answer) != 2 * L, "one is missing: z_0 itself is a part of the sum")
    require(len(answer) != L + 1, "attention and MLP write a contribution each, two for a block")
    if answer.shape == expected.shape:
        require(
            not torch.allclose(answer, expected.cumsum(dim=0), atol=1e-4),
            "these are the sums so far; a contribution is what is added to them",
        )
    require_tensor(
        "contributions(encoder, z_0)",
        answer,
        expected,
        "equation 2 without its last z, then equation 3 without its last z: what goes "
        "into either is the sum of all contributions before it",
    )
    right("Their sum is z_L: the encoder only ever adds.")
