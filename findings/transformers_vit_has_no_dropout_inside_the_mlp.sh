#!/usr/bin/env bash
# transformers 5.24.0: `ViTConfig.hidden_dropout_prob` is "the dropout probability for all
# fully connected layers", and ViTs in JAX, timm and torchvision drop features twice in an
# MLP, after the activation and after the second layer. transformers' ViT drops them after
# the second layer only: at the same rate it is regularized less than the published model.
#
# Counts the dropout layers that run in one block, in training mode, and shows that what
# enters the second layer has no zeros although the rate is 0.5.
# Fails if a dropout layer comes between the two, or if timm loses its own.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 torchvision==0.29.1 timm==1.0.31 transformers==5.24.0
cat >"$folder/show.py" <<'PYTHON'
import torch
from timm.layers import Mlp
from transformers import ViTConfig, ViTModel

vit = ViTModel(
    ViTConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        image_size=32, patch_size=8, hidden_dropout_prob=0.5,
    )
).train()
timm_mlp = Mlp(32, 64, drop=0.5).train()


def zeros_that_enter(second_layer, run):
    seen = []
    second_layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    torch.manual_seed(0)
    run()
    return round((seen[0] == 0).float().mean().item(), 1)


(second,) = (m for m in vit.modules() if isinstance(m, torch.nn.Linear) and m.in_features == 64)
share = zeros_that_enter(second, lambda: vit(pixel_values=torch.randn(8, 3, 32, 32)))
print("zeros before the second layer, transformers:", share)
share = zeros_that_enter(timm_mlp.fc2, lambda: timm_mlp(torch.randn(8, 17, 32)))
print("zeros before the second layer, timm:", share)
PYTHON
"$folder/venv/bin/python" "$folder/show.py" >"$folder/seen"
cat "$folder/seen"
diff "$folder/seen" - <<'SEEN'
zeros before the second layer, transformers: 0.0
zeros before the second layer, timm: 0.5
SEEN
