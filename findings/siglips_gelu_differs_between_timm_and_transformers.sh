#!/usr/bin/env bash
# timm 1.0.31 and transformers 5.24.0 offer the same published ViT, SigLIP's B/16 at 224
# pixels, with different GELUs. timm computes the exact one, transformers its approximation
# by tanh, which SigLIP was trained with. timm's own B/32 at 256 pixels has tanh as well. So
# features of the same weights differ, and neither the weights nor timm's name for them says so.
#
# Fails if the two agree.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 torchvision==0.29.1 timm==1.0.31 transformers==5.24.0
cat >"$folder/show.py" <<'PYTHON'
import timm
import torch
from transformers import SiglipVisionConfig

for name in ("vit_base_patch16_siglip_224", "vit_base_patch32_siglip_256"):
    with torch.device("meta"):  # without memory
        print("timm", name, timm.create_model(name).blocks[0].mlp.act)
print("transformers", SiglipVisionConfig().patch_size, SiglipVisionConfig().hidden_act)
PYTHON
"$folder/venv/bin/python" "$folder/show.py" >"$folder/seen"
cat "$folder/seen"
diff "$folder/seen" - <<'SEEN'
timm vit_base_patch16_siglip_224 GELU(approximate='none')
timm vit_base_patch32_siglip_256 GELUTanh()
transformers 16 gelu_pytorch_tanh
SEEN
