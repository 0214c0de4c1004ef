#!/usr/bin/env bash
# torch 2.14.1, CPU: with the same seed, dropout drops other numbers of a tensor when the
# same values lie in memory in another order. A ViT's patches come out of its convolution
# as (B, D, N) and are transposed to (B, N, D). `torch.cat` with a class token writes them
# anew, in order; a ViT without a class token that leaves out the `cat` trains with other
# masks. So two models with equal weights, inputs and seeds can train apart.
#
# Fails if a newer version draws the same mask for both.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1
cat >"$folder/show.py" <<'PYTHON'
import torch


def kept(tokens: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.dropout(tokens, 0.5, train=True) != 0


patches = torch.ones(2, 48, 16)  # (B, D, N), as a convolution gives them
transposed = patches.transpose(1, 2)  # (B, N, D)
print("equal values:", torch.equal(transposed, transposed.contiguous()))
print("equal masks:", torch.equal(kept(transposed), kept(transposed.contiguous())))
in_memory_order = kept(transposed).transpose(1, 2).flatten()
print("equal masks in memory order:", torch.equal(in_memory_order, kept(patches).flatten()))
PYTHON
"$folder/venv/bin/python" "$folder/show.py" >"$folder/seen"
cat "$folder/seen"
diff "$folder/seen" - <<'SEEN'
equal values: True
equal masks: False
equal masks in memory order: True
SEEN
