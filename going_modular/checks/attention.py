"""Checks of the exercises to notebook 04."""

import itertools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from going_modular.checks import (
    is_close,
    require,
    require_answers,
    require_number,
    require_tensor,
    result_of,
    right,
)
from going_modular.model_builder import MultiheadSelfAttentionBlock
from going_modular.utils import count_multiply_adds


def random_numbers(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    """The same tensors of these shapes each time."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def by_hand(weight, output, weight_undivided) -> None:
    """4.1: one query, two tokens."""
    require_answers(weight=weight, output=output, weight_undivided=weight_undivided)
    q = torch.ones(1, 4, dtype=torch.float64)
    k = torch.tensor([[1, -1, 1, -1], [math.log(9), 0, 0, 0]], dtype=torch.float64)
    v = torch.tensor([[8], [4]], dtype=torch.float64)
    divided, undivided = ((q @ k.T / root).softmax(dim=-1)[0, 1].item() for root in (2, 1))
    if isinstance(weight, (int, float)):
        require(
            not math.isclose(weight, undivided, rel_tol=1e-6),
            "weight: the dot products have not been divided yet",
        )
        require(
            not math.isclose(weight, 1 - divided, rel_tol=1e-6),
            "weight: that is the weight of the first token",
        )
    require_number(
        "weight",
        weight,
        divided,
        "half of ln 9 is ln of its root, and e to the power of a logarithm undoes it; "
        "then divide by the sum over both tokens",
    )
    require_number(
        "output",
        output,
        F.scaled_dot_product_attention(q, k, v).item(),
        "the average of both values, each with its token's weight",
    )
    require_number(
        "weight_undivided",
        weight_undivided,
        undivided,
        "the same without the division: e to the power of each dot product",
    )
    right("Dividing the logits by a larger number brings the weights nearer together.")


def what_it_costs(multiply_adds: Callable, equal_tokens) -> None:
    """4.2: multiply-adds of MSA."""

    def expected(T: int, D: int, h: int = 2) -> tuple[int, int]:
        """Of the matrices and of the pairs: the latter grow with T²."""
        block = MultiheadSelfAttentionBlock(D, num_heads=h)
        once, twice = (count_multiply_adds(block, torch.zeros(1, n, D)) for n in (T, 2 * T))
        pairs = (twice - 2 * once) // 2
        return once - pairs, pairs

    for T, D in ((10, 24), (31, 6)):
        both = result_of(multiply_adds, T, D)
        is_pair = isinstance(both, (tuple, list)) and len(both) == 2
        require(is_pair, "it should return two numbers, for the matrices and the pairs")
        require_answers(matrices=both[0], pairs=both[1])
        matrices, pairs = expected(T, D)
        name = f"multiply_adds({T}, {D})"
        require(
            both[0] * 4 != matrices * 3,
            f"{name}, matrices: the last one, of equation 8, is missing",
        )
        require(
            both[0] * T != matrices, f"{name}, matrices: each of the T tokens goes through them"
        )
        require_number(
            f"{name}, matrices",
            both[0],
            matrices,
            "a token of D numbers times a matrix D × D takes D² of them; how many such "
            "matrices are there, and how many tokens?",
        )
        require(
            both[1] * 2 != pairs,
            f"{name}, pairs: two products have a row for each token and a column for "
            "each token, equation 6 makes A and equation 7 uses it",
        )
        require_number(
            f"{name}, pairs",
            both[1],
            pairs,
            "a dot product of two vectors of D/h numbers takes D/h of them, for every "
            "pair of tokens, in each of h heads",
        )
    require_answers(equal_tokens=equal_tokens)
    D = 768
    matrices, pairs = expected(8, D)
    require_number(
        "equal_tokens",
        equal_tokens,
        (matrices / 8) / (pairs / 8**2),
        "set both numbers equal, and divide both by T and by D",
    )
    right(
        "With 197 tokens the famous T² is a small part of the cost; it takes over for "
        "large images and long texts."
    )


def three_mistakes(attended: Callable) -> None:
    """4.3: attention of all heads, merged."""
    B, h, T, D_h = 2, 3, 5, 4
    q, k, v = random_numbers(*[(B, h, T, D_h)] * 3)
    answer = result_of(attended, q, k, v)

    def variant(wrong_axis, wrong_root, not_swapped):
        root = (h * D_h if wrong_root else D_h) ** 0.5
        A = (q @ k.transpose(2, 3) / root).softmax(dim=2 if wrong_axis else 3)
        x = A @ v  # (B, h, T, D_h)
        return (x if not_swapped else x.transpose(1, 2)).reshape(B, T, h * D_h)

    hints = (
        "the rows of A do not sum to 1, as equation 6 has them: look at the softmax",
        "what does equation 6 divide by, and is it the same for all h heads together?",
        "the numbers of one token are scattered over several rows: heads and tokens "
        "have to change places before heads and D_h are merged",
    )
    for mistakes in itertools.product((False, True), repeat=3):
        if any(mistakes) and is_close(answer, variant(*mistakes)):
            found = "; and ".join(h for h, m in zip(hints, mistakes, strict=True) if m)
            require(False, f"{sum(mistakes)} to go: {found}")
    require_tensor(
        "attended",
        answer,
        F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2),
        "compare each line with equations 6 and 7, axis by axis",
    )
    right(
        "Shapes find none of the three, so compare numbers with those of code that you "
        "trust, here PyTorch's."
    )


def a_listener(who_may_look: Callable, masked_attention: Callable) -> None:
    """4.4: attention with a mask; patches that do not see the class token."""
    for N in (3, 6):
        mask = result_of(who_may_look, N)
        expected = torch.ones(N + 1, N + 1, dtype=torch.bool)
        expected[1:, 0] = False
        is_mask = isinstance(mask, torch.Tensor) and mask.dtype == torch.bool
        require(is_mask, "who_may_look should return a tensor of True and False")
        require(mask.shape != (N, N), "who_may_look: the class token has a row and a column")
        for value, hint in (
            (expected.T, "here the class token is blind: rows look, columns are seen"),
            (~expected, "True and False are swapped"),
            (expected & (torch.arange(N + 1) > 0), "the class token may look at itself, too"),
        ):
            require(not is_close(mask, value), f"who_may_look: {hint}")
        require_tensor(
            f"who_may_look({N})",
            mask,
            expected,
            "row i, column j: may token i look at token j? One column has to change",
        )

    B, h, T, D_h = 2, 3, 5, 4
    q, k, v = random_numbers(*[(B, h, T, D_h)] * 3)
    chance = torch.rand((T, T), generator=torch.Generator().manual_seed(1)) < 0.4
    for mask in (chance | torch.eye(T, dtype=torch.bool), who_may_look(T - 1)):
        answer = result_of(masked_attention, q, k, v, mask)
        logits = q @ k.transpose(2, 3) / D_h**0.5
        for value, hint in (
            (
                (logits.softmax(dim=3) * mask) @ v,
                "the weights of a row no longer sum to 1: whoever must not be seen has "
                "to be out before the softmax",
            ),
            (
                (logits * mask).softmax(dim=3) @ v,
                "a logit of 0 is no weight of 0: what does softmax turn into 0?",
            ),
            (logits.softmax(dim=3) @ v, "the mask has no effect"),
            (
                logits.masked_fill(mask, -torch.inf).softmax(dim=3) @ v,
                "True means that a token may look, here it is hidden",
            ),
            (
                (logits * D_h**0.5).masked_fill(~mask, -torch.inf).softmax(dim=3) @ v,
                "the logits are not divided",
            ),
        ):
            require(not is_close(answer, value), f"masked_attention: {hint}")
        require_tensor(
            "masked_attention",
            answer,
            F.scaled_dot_product_attention(q, k, v, attn_mask=mask),
            "as in section 4.2 of the notebook, but for the logits of the hidden",
        )
    right(
        "Language models do the same with a triangle, so that no word sees the next "
        "one. A ViT needs none: a picture has no order in time."
    )


def sum_of_heads(msa: Callable) -> None:
    """4.5: MSA from the matrices of equations 5 and 8."""
    for B, T, D, h, D_h in ((2, 5, 12, 3, 7), (1, 4, 6, 2, 3)):
        shapes = (B, T, D), (3, h, D, D_h), (h, D_h, D)
        z, U_qkv, U_msa = random_numbers(*shapes)
        U_qkv = U_qkv / D**0.5
        answer = result_of(msa, z, U_qkv, U_msa)

        def heads(z, U_qkv, scale=None, order=(0, 1, 2)):
            all_heads = z[:, None, None] @ U_qkv  # (B, 3, h, T, D_h)
            q, k, v = (all_heads[:, i] for i in order)
            return F.scaled_dot_product_attention(q, k, v, scale=scale)

        expected = (heads(z, U_qkv) @ U_msa).sum(dim=1)
        for value, hint in (
            (heads(z, U_qkv, scale=1.0) @ U_msa, "the logits are not divided"),
            (
                heads(z, U_qkv, scale=(D / h) ** -0.5) @ U_msa,
                "the root is that of D_h, the last axis of U_qkv: here it is not D/h",
            ),
            (
                heads(z, U_qkv, order=(1, 0, 2)) @ U_msa,
                "queries and keys are swapped: whose row is it?",
            ),
        ):
            wrong = value.sum(dim=1)
            require(is_close(expected, wrong) or not is_close(answer, wrong), hint)
        require_tensor(
            f"msa for B = {B}, T = {T}, D = {D}, h = {h}, D_h = {D_h}",
            answer,
            expected,
            "which letters does each of the four products sum over: D, D_h, the tokens "
            "that are looked at, and at the end h and D_h",
        )

    D, h = 12, 3
    layer = nn.MultiheadAttention(D, h, bias=False, batch_first=True)
    (z,) = random_numbers((2, 5, D))
    with torch.inference_mode():
        U_qkv = layer.in_proj_weight.view(3, h, D // h, D).transpose(2, 3)
        U_msa = layer.out_proj.weight.T.reshape(h, D // h, D)
        require_tensor(
            "msa with the weights of nn.MultiheadAttention",
            result_of(msa, z, U_qkv, U_msa),
            layer(z, z, z, need_weights=False)[0],
            "it should be the same as that layer",
        )
    right(
        "The same as nn.MultiheadAttention. No head needs the others: side by side and "
        "through one matrix is a sum of what each head adds by itself."
    )
