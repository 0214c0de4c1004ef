#!/usr/bin/env bash
# torch 2.14.1, torch.distributed.checkpoint.state_dict: `get_state_dict` with
# `full_state_dict=True` saves a model and plain SGD, and `set_state_dict` with the same
# options refuses to load what it saved: "Expected device to be set". It takes the device
# from the optimizer's tensors, and SGD without momentum has none. With momentum, or
# without `full_state_dict`, the same lines work.
#
# Fails if a newer version loads it, or says something else.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1
cat >"$folder/show.py" <<'PYTHON'
import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict


def outcome(momentum: float, full: bool) -> str:
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=momentum)
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    options = StateDictOptions(full_state_dict=full)
    weights, state = get_state_dict(layer, optimizer, options=options)
    try:
        set_state_dict(
            layer, optimizer, model_state_dict=weights, optim_state_dict=state, options=options
        )
    except AssertionError as error:
        return f"AssertionError: {error}"
    return "loaded"


for momentum, full in ((0.0, True), (0.9, True), (0.0, False)):
    print(f"momentum {momentum}, full_state_dict {full}: {outcome(momentum, full)}")
PYTHON
"$folder/venv/bin/python" "$folder/show.py" >"$folder/seen"
cat "$folder/seen"
diff "$folder/seen" - <<'SEEN'
momentum 0.0, full_state_dict True: AssertionError: Expected device to be set
momentum 0.9, full_state_dict True: loaded
momentum 0.0, full_state_dict False: loaded
SEEN
