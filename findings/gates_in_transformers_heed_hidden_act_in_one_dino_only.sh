#!/usr/bin/env bash
# transformers 5.24.0: the MLPs of the largest DINOv2 and DINOv3 have a gate, SiLU in both.
# `Dinov2Config.hidden_act` does not change it. `DINOv3ViTConfig.hidden_act` does, and its
# default is GELU, so `use_gated_mlp=True` alone is not the published model.
#
# Fails if both heed it, or none.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 transformers==5.24.0
cat >"$folder/show.py" <<'PYTHON'
import torch
from transformers import Dinov2Config, Dinov2Model, DINOv3ViTConfig, DINOv3ViTModel

sizes = dict(hidden_size=24, num_hidden_layers=1, num_attention_heads=3, image_size=32, patch_size=8)
images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def features(model_class, config_class, **options):
    torch.manual_seed(0)
    model = model_class(config_class(**sizes, layerscale_value=1.0, **options)).eval()
    with torch.no_grad():
        return model(pixel_values=images).last_hidden_state


for classes, gated in (
    ((Dinov2Model, Dinov2Config), {"use_swiglu_ffn": True}),
    ((DINOv3ViTModel, DINOv3ViTConfig), {"use_gated_mlp": True, "intermediate_size": 48}),
):
    default, silu, gelu = (
        features(*classes, **gated, **act) for act in ({}, {"hidden_act": "silu"}, {"hidden_act": "gelu"})
    )
    print(classes[0].__name__, "GELU for SiLU changes nothing:", torch.equal(silu, gelu))
    print(classes[0].__name__, "the default is SiLU:", torch.equal(default, silu))
PYTHON
"$folder/venv/bin/python" "$folder/show.py" >"$folder/seen"
cat "$folder/seen"
diff "$folder/seen" - <<'SEEN'
Dinov2Model GELU for SiLU changes nothing: True
Dinov2Model the default is SiLU: True
DINOv3ViTModel GELU for SiLU changes nothing: False
DINOv3ViTModel the default is SiLU: False
SEEN
