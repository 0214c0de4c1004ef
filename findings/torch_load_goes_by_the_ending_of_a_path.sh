#!/usr/bin/env bash
# torch 2.14.1: what `torch.save` wrote cannot be loaded again if the file is called
# something.safetensors. `torch.load` gives any path with that ending to the safetensors
# library, whatever the file holds. The same file, opened first, loads.
#
# Fails if a newer version loads it by its path, or says something else.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6 safetensors==0.8.0
cat >"$folder/show.py" <<'PYTHON'
import sys

import torch


def outcome(source) -> str:
    try:
        return f"loaded {sorted(torch.load(source, weights_only=True))}"
    except Exception as error:
        return type(error).__name__


path = sys.argv[1]
torch.save({"weight": torch.ones(2)}, path)
print("by its path:", outcome(path))
with open(path, "rb") as file:
    print("opened first:", outcome(file))
PYTHON
"$folder/venv/bin/python" "$folder/show.py" "$folder/vit.safetensors" >"$folder/seen"
cat "$folder/seen"
diff "$folder/seen" - <<'SEEN'
by its path: SafetensorError
opened first: loaded ['weight']
SEEN
