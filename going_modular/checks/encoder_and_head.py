"""Checks for the exercises of notebook 06."""

from collections.abc import Callable

import torch
from torch import nn

from going_modular.checks import (
    SMALL,
    is_close,
    noise,
    require,
    require_answers,
    require_number,
    require_tensor,
    result_of,
    right,
    small_images,
    small_vit,
)
from going_modular.model_builder import VIT_CONFIGS, TransformerEncoderBlock
from going_modular.utils import give_random_values

D = 6


def growth_of_the_residual_path(deviation, share_of_z_0) -> None:
    """Exercise 6.1: the standard deviation of z after L blocks, which add two parts each."""
    parts = 2 * VIT_CONFIGS["ViT-B/16"].num_layers
    require_answers(deviation=deviation, share_of_z_0=share_of_z_0)
    require(
        deviation != 1 + parts,
        "deviation: this is the variance. How do you get the standard deviation from it?",
    )
    require_number(
        "deviation",
        deviation,
        (1 + parts) ** 0.5,
        "variances add up. How many summands are there in all?",
    )
    require_number(
        "share_of_z_0",
        share_of_z_0,
        1 / (1 + parts),
        "divide the variance of z_0 by the variance of the sum",
    )
    right("The later a block comes, the less its part counts. LayerNorm hides the growth.")


def mean_of_the_patches(mean_logits: Callable) -> None:
    """Exercise 6.2: repair a head that reads the mean of all patches (Appendix D.3)."""
    vit, images = small_vit(), small_images()
    logits_shape = (len(images), SMALL.num_classes)
    with torch.no_grad():
        logits = result_of(mean_logits, vit, images)
        z = vit.encoder(vit.embed(images))  # (B, N+1, D)
        y = vit.norm(z)
        require(
            isinstance(logits, torch.Tensor) and logits.shape == logits_shape,
            f"the result should have the shape (B, K), {logits_shape}. Over which axis do "
            "you take the mean?",
        )
        for wrong, hint in (
            (y[:, 0], "these are the logits of the class token, not of the patches"),
            (y.mean(dim=1), "there is a token in the mean that is not a patch"),
            (
                vit.norm(z.mean(dim=1)),
                "there is a token in the mean that is not a patch. Also, what should be "
                "normalized, the tokens or their mean?",
            ),
            (
                vit.norm(z[:, 1:].mean(dim=1)),
                "what should be normalized, the tokens or their mean?",
            ),
            (z[:, 1:].mean(dim=1), "the last LayerNorm is missing"),
        ):
            require(not is_close(logits, vit.head(wrong)), hint)
        require_tensor(
            "mean_logits(vit, images)",
            logits,
            vit.head(y[:, 1:].mean(dim=1)),
            "three steps lead from z to the logits. Check the order and the axis of each",
        )
    right("With its own learning rate, it is as good as a class token, the paper found (Figure 9).")


def random_block() -> TransformerEncoderBlock:
    """Return a small block with random values in every parameter."""
    return give_random_values(TransformerEncoderBlock(D, num_heads=2, mlp_dim=14)).eval()


def post_norm_block(post_norm: Callable, pre_keeps, post_keeps) -> None:
    """Exercise 6.3: the block of the first Transformer, and when it keeps z unchanged."""
    block, z = random_block(), noise(3, 5, D)
    with torch.no_grad():
        output = result_of(post_norm, block, z)
        middle = block.attention_norm(block.attention(z) + z)
        expected = block.mlp_norm(block.mlp(middle) + middle)
        part_normalized = block.attention_norm(block.attention(z)) + z
        part_normalized = block.mlp_norm(block.mlp(part_normalized)) + part_normalized
        swapped = block.mlp_norm(block.attention(z) + z)
        swapped = block.attention_norm(block.mlp(swapped) + swapped)
        for wrong, hint in (
            (block(z), "this is the block as it is, pre-norm"),
            (part_normalized, "does the first Transformer normalize the new part or the sum?"),
            (swapped, "the two LayerNorms are swapped"),
        ):
            require(not is_close(output, wrong), hint)
        require_tensor(
            "post_norm(block, z)",
            output,
            expected,
            "follow the equation of the exercise from the inside out, first for attention, "
            "then for the MLP",
        )
        silent = random_block()
        for layer in (silent.attention.projection, silent.mlp.contract):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        keeps = {
            "pre_keeps": (pre_keeps, is_close(silent(z), z)),
            "post_keeps": (post_keeps, is_close(post_norm(silent, z), z)),
        }
    for name, (answer, kept) in keeps.items():
        require_answers(**{name: answer})
        require(isinstance(answer, bool), f"{name} should be True or False")
        require(
            answer == kept,
            f"{name}: what is left of each line if attention and the MLP return zeros?",
        )
    right(
        "A pre-norm block can start close to the identity. Deep models train more easily that way."
    )


def drop_path_by_hand(drop_path: Callable) -> None:
    """Exercise 6.4: stochastic depth, which drops a part for some images of a batch."""
    part, p = noise(4000, 3, 2), 0.3
    require_tensor(
        "drop_path(part, p, False)",
        result_of(drop_path, part, p, False),
        part,
        "outside training, every image keeps its part",
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
        "one random draw decides for the whole batch. Each image needs its own",
    )
    require(
        not (~kept).all(dim=(1, 2)).sum() < 0.1 * len(part),
        "single numbers or tokens are dropped, as in dropout. Here all tokens of an image "
        "share one random draw",
    )
    kept_by_image = kept.flatten(1)
    require(
        (kept_by_image == kept_by_image[:, :1]).all(),
        "some images lose a piece of the part. Each should lose all of it or nothing",
    )
    dropped = 1 - kept_by_image[:, 0].float().mean().item()
    require(abs(dropped - (1 - p)) > 0.04, "is p the probability to keep or to drop?")
    require(abs(dropped - p) < 0.04, f"for p = {p}, a share of {dropped:.2f} is dropped")
    require(not torch.equal(out, again), "two calls drop the same images: draw again in each call")
    require(
        not torch.equal(out[kept], part[kept]),
        "the expected value is smaller in training. What must happen to the kept numbers?",
    )
    require_tensor(
        "what remains",
        out[kept],
        part[kept] / (1 - p),
        "which factor keeps the expected value the same?",
    )
    right("The residual carries z past the gap, so each image sees a shallower model.")


def who_wrote_what(contributions: Callable) -> None:
    """Exercise 6.5: z_L as a sum of what each part has added."""
    blocks = nn.Sequential(*(TransformerEncoderBlock(D, num_heads=2, mlp_dim=14) for _ in range(4)))
    give_random_values(blocks).eval()
    with torch.no_grad():
        z_0 = noise(3, 5, D)
        z, added = z_0, [z_0]
        for block in blocks:
            added.append(block.attention(block.attention_norm(z)))
            z = z + added[-1]
            added.append(block.mlp(block.mlp_norm(z)))
            z = z + added[-1]
        expected = torch.stack(added)  # (2L + 1, B, N+1, D)
        answer = result_of(contributions, blocks, z_0)
    require(
        isinstance(answer, torch.Tensor),
        "the result should be one tensor: torch.stack makes one from a list of contributions",
    )
    L = len(blocks)
    require(len(answer) != 2 * L, "one contribution is missing. Where does the sum start?")
    require(len(answer) != L + 1, "how many parts of a block add to z?")
    require(
        not is_close(answer, expected.cumsum(dim=0)),
        "these are the sums so far. A contribution is what a part adds to the sum",
    )
    require_tensor(
        "contributions(encoder, z_0)",
        answer,
        expected,
        "which term of equation 2 and of equation 3 is new? What does each part read?",
    )
    right("The contributions sum to z_L: the encoder only ever adds.")
