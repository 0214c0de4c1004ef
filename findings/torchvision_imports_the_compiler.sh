#!/usr/bin/env bash
# torch 2.14.1, torchvision 0.29.1: `import torchvision` imports torch._dynamo, the front of
# torch.compile, with several hundred modules. `torchvision.ops.roi_align` asks it at import
# whether it can compile. So to import torchvision took us as long again as to import torch
# (1.9 s more on top of 1.9 s, of which 1.1 s for torch._dynamo; two cores).
#
# Fails if a newer version leaves it out, or needs few modules of it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 torchvision==0.29.1 numpy==2.4.6
cat >"$folder/show.py" <<'PYTHON'
import sys

import torch

print("after torch:", "torch._dynamo" in sys.modules)
before = set(sys.modules)
import torchvision

new = set(sys.modules) - before
print("after torchvision:", "torch._dynamo" in sys.modules)
print("more than 250 modules of torch:", sum(name.split(".")[0] == "torch" for name in new) > 250)
print("more than 100 of torchvision:", sum(name.split(".")[0] == "torchvision" for name in new) > 100)
PYTHON
"$folder/venv/bin/python" "$folder/show.py" >"$folder/seen"
cat "$folder/seen"
diff "$folder/seen" - <<'SEEN'
after torch: False
after torchvision: True
more than 250 modules of torch: True
more than 100 of torchvision: True
SEEN
