"""Softmax attention, fused where that is quick."""

import torch
import torch.nn.functional as F

from going_modular.utils import without_autocast


def scaled_dot_product_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, dropout_p: float = 0.0
) -> torch.Tensor:
    """softmax(q kᵀ / sqrt(D/h)) v, equations 6-7, as PyTorch's function of this name.

    On a CPU, PyTorch's fused attention in 16 bits is quick in a forward pass and slow in a
    backward pass (measured with "avx512_bf16"). So under `utils.autocast`, and where
    gradients are needed, attention is computed in float32 there. It is a few hundredths of
    a step's multiply-adds.

    Shapes: q (..., M, D/h), k and v (..., N, D/h) -> (..., M, D/h).
    """
    trains = torch.is_grad_enabled() and any(each.requires_grad for each in (q, k, v))
    if not (trains and q.device.type == "cpu" and torch.is_autocast_enabled("cpu")):
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p)
    with without_autocast(q.device):
        q, k, v = q.float(), k.float(), v.float()
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p)
