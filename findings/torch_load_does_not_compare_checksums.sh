#!/usr/bin/env bash
# torch 2.14.1: a file of `torch.save` is a zip archive, with a checksum for each tensor.
# `torch.load` does not compare them: after two bits of a tensor of zeros have changed on
# the disk, it loads another number and says nothing. Python's `zipfile` finds the damage.
#
# Fails if a newer version of torch notices it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6
cat >"$folder/show.py" <<'PYTHON'
import sys
import zipfile
from pathlib import Path

import torch

path = Path(sys.argv[1])
torch.save({"weight": torch.zeros(1000)}, path)
content = bytearray(path.read_bytes())
numbers = bytes(content).index(bytes(4000))  # the zeros of the tensor
content[numbers + 401] ^= 0x40
content[numbers + 403] ^= 0x40
path.write_bytes(content)
with zipfile.ZipFile(path) as archive:
    print("zipfile finds damage in:", archive.testzip())
print("torch.load gives:", torch.load(path, weights_only=True)["weight"].max().item())
PYTHON
"$folder/venv/bin/python" "$folder/show.py" "$folder/vit.pth" >"$folder/seen"
cat "$folder/seen"
diff "$folder/seen" - <<'SEEN'
zipfile finds damage in: vit/data/0
torch.load gives: 2.00390625
SEEN
