"""Checks for the exercises of notebook 04."""

import itertools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from going_modular.checks import (
    is_close,
    noise,
    require,
    require_answers,
    require_number,
    require_tensor,
    result_of,
    right,
)
from going_modular.model_builder import MultiheadSelfAttentionBlock
from going_modular.utils import count_multiply_adds


def by_hand(weight, output, weight_undivided) -> None:
    """Exercise 4.1: one query looks at two tokens."""
    require_answers(weight=weight, output=output, weight_undivided=weight_undivided)
    q = torch.ones(1, 4, dtype=torch.float64)
    k = torch.tensor([[1, -1, 1, -1], [math.log(9), 0, 0, 0]], dtype=torch.float64)
    v = torch.tensor([[8], [4]], dtype=torch.float64)
    divided, undivided = ((q @ k.T / root).softmax(dim=-1)[0, 1].item() for root in (2, 1))
    if isinstance(weight, (int, float)):
        require(
            not math.isclose(weight, undivided, rel_tol=1e-6),
            "weight: what does equation 6 divide the dot products by?",
        )
        require(
            not math.isclose(weight, 1 - divided, rel_tol=1e-6),
            "weight: this is the weight of the first token",
        )
    require_number(
        "weight",
        weight,
        divided,
        "what is half of ln 9 as a logarithm? Raise e to both logits, then divide by the "
        "sum over both tokens",
    )
    require_number(
        "output",
        output,
        F.scaled_dot_product_attention(q, k, v).item(),
        "take the average of the two values, each weighted with its token's weight",
    )
    require_number(
        "weight_undivided",
        weight_undivided,
        undivided,
        "repeat the calculation without the division: raise e to each dot product",
    )
    right("The larger the number that divides the logits, the closer the weights are.")


def what_it_costs(multiply_adds: Callable, equal_tokens) -> None:
    """Exercise 4.2: the multiply-adds of MSA."""

    def expected(T: int, D: int) -> tuple[int, int]:
        """Count those of the matrices, which grow with T, and of the pairs, with T²."""
        block = MultiheadSelfAttentionBlock(D, num_heads=2)
        once, twice = (count_multiply_adds(block, torch.zeros(1, n, D)) for n in (T, 2 * T))
        pairs = (twice - 2 * once) // 2
        return once - pairs, pairs

    for T, D in ((10, 24), (31, 6)):
        both = result_of(multiply_adds, T, D)
        is_pair = isinstance(both, (tuple, list)) and len(both) == 2
        require(is_pair, "return two numbers, one for the matrices and one for the pairs")
        require_answers(matrices=both[0], pairs=both[1])
        matrices, pairs = expected(T, D)
        name = f"multiply_adds({T}, {D})"
        require(
            both[0] * 4 != matrices * 3,
            f"{name}, matrices: which matrix does equation 8 multiply by?",
        )
        require(both[0] * T != matrices, f"{name}, matrices: is this the count for a single token?")
        require_number(
            f"{name}, matrices",
            both[0],
            matrices,
            "a token of D numbers times a D × D matrix takes D² multiply-adds. How many "
            "such matrices are there, and how many tokens?",
        )
        require(
            both[1] * 2 != pairs,
            f"{name}, pairs: equation 6 computes A, and equation 7 uses it. Did you count both?",
        )
        require_number(
            f"{name}, pairs",
            both[1],
            pairs,
            "a dot product of two vectors of D/h numbers takes D/h multiply-adds. How many "
            "pairs of tokens are there, and how many heads?",
        )
    require_answers(equal_tokens=equal_tokens)
    D = 768
    matrices, pairs = expected(8, D)
    require_number(
        "equal_tokens",
        equal_tokens,
        (matrices / 8) / (pairs / 8**2),
        "set the two counts equal, then divide both by T and by D",
    )
    right(
        "With 197 tokens, the famous T² is a small part of the cost. It dominates for "
        "large images and long texts."
    )


def three_mistakes(attended: Callable) -> None:
    """Exercise 4.3: find three mistakes in the attention of all heads."""
    B, h, T, D_h = 2, 3, 5, 4
    q, k, v = noise(3, B, h, T, D_h)
    answer = result_of(attended, q, k, v)

    def variant(wrong_axis, wrong_root, not_swapped):
        root = (h * D_h if wrong_root else D_h) ** 0.5
        A = (q @ k.transpose(2, 3) / root).softmax(dim=2 if wrong_axis else 3)
        x = A @ v  # (B, h, T, D_h)
        return (x if not_swapped else x.transpose(1, 2)).reshape(B, T, h * D_h)

    hints = (
        "in equation 6 the rows of A sum to 1, and yours do not. Look at the softmax",
        "what does equation 6 divide by? Is it a property of one head or of all heads?",
        "the numbers of one token are scattered over several rows. Which axes must be "
        "next to each other when you merge the heads?",
    )
    for mistakes in itertools.product((False, True), repeat=3):
        if any(mistakes) and is_close(answer, variant(*mistakes)):
            remaining = "\n- ".join(itertools.compress(hints, mistakes))
            require(False, f"mistakes left: {sum(mistakes)}\n- {remaining}")
    require_tensor(
        "attended",
        answer,
        F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2),
        "compare each line with equations 6 and 7, axis by axis",
    )
    right(
        "No shape shows any of the three mistakes. Compare your numbers with code that "
        "you trust, here PyTorch's."
    )


def a_listener(who_may_look: Callable, masked_attention: Callable) -> None:
    """Exercise 4.4: a mask that hides the class token from the patches."""
    for N in (3, 6):
        mask = result_of(who_may_look, N)
        expected = torch.ones(N + 1, N + 1, dtype=torch.bool)
        expected[1:, 0] = False
        is_mask = isinstance(mask, torch.Tensor) and mask.dtype == torch.bool
        require(is_mask, "who_may_look should return a tensor of type torch.bool")
        require(mask.shape != (N, N), "who_may_look: does the class token have a row and a column?")
        for value, hint in (
            (
                expected.T,
                "in your mask the class token cannot see the patches. Who looks, the row?",
            ),
            (~expected, "what does True mean, visible or hidden?"),
            (
                expected & (torch.arange(N + 1) > 0),
                "in your mask the class token cannot see itself",
            ),
        ):
            require(not is_close(mask, value), f"who_may_look: {hint}")
        require_tensor(
            f"who_may_look({N})",
            mask,
            expected,
            "row i, column j answers: may token i look at token j? Go through the class "
            "token's row and its column",
        )

    B, h, T, D_h = 2, 3, 5, 4
    q, k, v = noise(3, B, h, T, D_h)
    random_mask = (noise(T, T, seed=1) > 0) | torch.eye(T, dtype=torch.bool)
    for mask in (random_mask, who_may_look(T - 1)):
        answer = result_of(masked_attention, q, k, v, mask)
        logits = q @ k.transpose(2, 3) / D_h**0.5
        for value, hint in (
            (
                (logits.softmax(dim=3) * mask) @ v,
                "the weights of a row no longer sum to 1. Should the mask come before or "
                "after the softmax?",
            ),
            (
                (logits * mask).softmax(dim=3) @ v,
                "a logit of 0 does not give a weight of 0. Which logit does?",
            ),
            (logits.softmax(dim=3) @ v, "the mask has no effect"),
            (
                logits.masked_fill(mask, -torch.inf).softmax(dim=3) @ v,
                "True means that a token is visible. Here it is hidden",
            ),
            (
                (logits * D_h**0.5).masked_fill(~mask, -torch.inf).softmax(dim=3) @ v,
                "what does equation 6 divide the logits by?",
            ),
        ):
            require(not is_close(answer, value), f"masked_attention: {hint}")
        require_tensor(
            "masked_attention",
            answer,
            F.scaled_dot_product_attention(q, k, v, attn_mask=mask),
            "start from section 4.2 of the notebook. Only the logits of hidden tokens change",
        )
    right(
        "Language models use a triangular mask, so that no word sees the words after it. "
        "A ViT needs no mask, because an image has no order in time."
    )


def sum_of_heads(msa: Callable) -> None:
    """Exercise 4.5: MSA with the matrices of equations 5 and 8."""
    for B, T, D, h, D_h in ((2, 5, 12, 3, 7), (1, 4, 6, 2, 3)):
        z, U_msa = noise(B, T, D), noise(h, D_h, D, seed=1)
        U_qkv = noise(3, h, D, D_h, seed=2) / D**0.5
        answer = result_of(msa, z, U_qkv, U_msa)

        def heads(z, U_qkv, scale=None, order=(0, 1, 2)):
            all_heads = z[:, None, None] @ U_qkv  # (B, 3, h, T, D_h)
            q, k, v = (all_heads[:, i] for i in order)
            return F.scaled_dot_product_attention(q, k, v, scale=scale)

        expected = (heads(z, U_qkv) @ U_msa).sum(dim=1)
        for value, hint in (
            (heads(z, U_qkv, scale=1.0), "what does equation 6 divide the logits by?"),
            (
                heads(z, U_qkv, scale=(D / h) ** -0.5),
                "D_h need not be D/h here. Which axis of U_qkv shows it?",
            ),
            (
                heads(z, U_qkv, order=(1, 0, 2)),
                "queries and keys are swapped. Which of them belongs to the rows of A?",
            ),
        ):
            wrong = (value @ U_msa).sum(dim=1)
            require(is_close(expected, wrong) or not is_close(answer, wrong), hint)
        require_tensor(
            f"msa for B = {B}, T = {T}, D = {D}, h = {h}, D_h = {D_h}",
            answer,
            expected,
            "there are four products. Which axes does each of them sum over?",
        )

    D, h = 12, 3
    layer = nn.MultiheadAttention(D, h, bias=False, batch_first=True)
    z = noise(2, 5, D)
    with torch.inference_mode():
        U_qkv = layer.in_proj_weight.view(3, h, D // h, D).transpose(2, 3)
        U_msa = layer.out_proj.weight.T.reshape(h, D // h, D)
        require_tensor(
            "msa with the weights of nn.MultiheadAttention",
            result_of(msa, z, U_qkv, U_msa),
            layer(z, z, z, need_weights=False)[0],
            "your result should equal the layer's",
        )
    right(
        "Your MSA equals nn.MultiheadAttention. The heads are independent: to join them "
        "and multiply by one matrix is to sum up what each head contributes."
    )
