#!/usr/bin/env bash
# transformers 5.24.0: a classifier on CLIP or SigLIP does not read what the model pools for
# text. `CLIPForImageClassification` averages patches before the last LayerNorm, and
# `SiglipForImageClassification` after it, beside the attention pooling. So CLIP's last
# LayerNorm and all of SigLIP's pooling get no gradient: fine-tuned files keep them as they
# were, and training on several devices has to be told of unused parameters.
#
# Fails if they get gradients.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 transformers==5.24.0
cat >"$folder/show.py" <<'PYTHON'
import torch
import transformers

vision = dict(
    hidden_size=24, intermediate_size=48, num_hidden_layers=1, num_attention_heads=3, image_size=32, patch_size=8
)
text = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
for name in ("CLIP", "Siglip"):
    config = getattr(transformers, f"{name}Config")(vision_config=vision, text_config=text, num_labels=2)
    model = getattr(transformers, f"{name}ForImageClassification")(config)
    model(pixel_values=torch.randn(2, 3, 32, 32)).logits.sum().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None]
    print(name, len(without), sorted({".".join(n.split(".")[1:3]) for n in without}))
PYTHON
"$folder/venv/bin/python" "$folder/show.py" >"$folder/seen" 2>"$folder/warnings"
cat "$folder/seen"
diff "$folder/seen" - <<'SEEN'
CLIP 2 ['post_layernorm.bias', 'post_layernorm.weight']
Siglip 11 ['head.attention', 'head.layernorm', 'head.mlp', 'head.probe']
SEEN
