#!/usr/bin/env bash
# torch 2.14.1 and transformers 5.24.0: after the first `from_pretrained` of a process,
# `with torch.device("meta")` no longer reaches `torch.linspace`, which makes tensors on the
# CPU. transformers exchanges `torch.linspace` while it loads, and puts it back. But PyTorch
# makes its list of functions that follow `torch.device` only once, and did so in between.
#
# Fails if linspace follows the device afterwards.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 transformers==5.24.0
cat >"$folder/show.py" <<'PYTHON'
import sys

import torch
from transformers import ViTConfig, ViTModel


def made_on() -> str:
    with torch.device("meta"):
        return torch.linspace(0, 1, 3).device.type


if "before" in sys.argv:
    print("linspace before any from_pretrained:", made_on())
sizes = dict(hidden_size=24, num_hidden_layers=1, num_attention_heads=3, image_size=32, patch_size=8)
ViTModel(ViTConfig(**sizes, intermediate_size=48)).save_pretrained(sys.argv[1])
ViTModel.from_pretrained(sys.argv[1])
print("linspace after from_pretrained:", made_on())
with torch.device("meta"):
    print("arange after from_pretrained:", torch.arange(3).device.type)
PYTHON
{
    "$folder/venv/bin/python" "$folder/show.py" "$folder/vit"
    echo "asked before, too:"
    "$folder/venv/bin/python" "$folder/show.py" "$folder/vit" before
} >"$folder/seen" 2>"$folder/warnings"
cat "$folder/seen"
diff "$folder/seen" - <<'SEEN'
linspace after from_pretrained: cpu
arange after from_pretrained: meta
asked before, too:
linspace before any from_pretrained: meta
linspace after from_pretrained: meta
arange after from_pretrained: meta
SEEN
