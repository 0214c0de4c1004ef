#!/usr/bin/env bash
# timm 1.0.31: vit_small_patch16_dinov3 has no biases for queries and values. A file under
# the names of facebookresearch/dinov3 that has them, as after fine-tuning, loads with
# strict=True: their numbers are left out, all keys count as matched, and the features
# differ. vit_small_patch16_dinov3_qkvb keeps them. (Most published files hold zeros there.)
#
# Fails if the file is refused, or the features are the same.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 torchvision==0.29.1 timm==1.0.31
cat >"$folder/show.py" <<'PYTHON'
import sys

import timm
import torch
from safetensors.torch import save_file
from timm.models import load_checkpoint
from timm.models.eva import checkpoint_filter_fn

torch.manual_seed(0)
path = sys.argv[1]
sizes = dict(img_size=64, embed_dim=96, depth=2, num_heads=2)
content = {}
for name, tensor in timm.create_model("vit_small_patch16_dinov3_qkvb", **sizes).state_dict().items():
    if name.endswith("q_bias"):
        content[name.replace("q_bias", "qkv.bias")] = torch.randn(288)
    elif not name.endswith("v_bias"):
        name = name.replace("reg_token", "storage_tokens").replace("gamma_", "ls")
        if name.endswith(("ls1", "ls2")):
            name, tensor = f"{name}.gamma", torch.ones(96)
        content[name] = tensor
save_file(content, path)
images, features = torch.randn(1, 3, 64, 64), []
for name in ("vit_small_patch16_dinov3_qkvb", "vit_small_patch16_dinov3"):
    model = timm.create_model(name, **sizes).eval()
    print(name, load_checkpoint(model, path, filter_fn=checkpoint_filter_fn, strict=True))
    with torch.no_grad():
        features.append(model(images))
print("more than a tenth apart:", bool((features[0] - features[1]).abs().max() > 0.1))
PYTHON
"$folder/venv/bin/python" "$folder/show.py" "$folder/dinov3.safetensors" >"$folder/seen"
cat "$folder/seen"
diff "$folder/seen" - <<'SEEN'
vit_small_patch16_dinov3_qkvb <All keys matched successfully>
`q_bias` is not an nn.Parameter
`q_bias` is not an nn.Parameter
vit_small_patch16_dinov3 <All keys matched successfully>
more than a tenth apart: True
SEEN
