"""What each process of `test_distributed.py` does; `torchrun` starts it.

distributed_worker.py folder         # trains sharded and not, stopped and not
distributed_worker.py folder fail    # one process cannot read an image
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from torch.distributed.elastic.multiprocessing.errors import record
from torch.utils.data import Dataset, TensorDataset

sys.path.insert(0, str(Path(__file__).parent))
from tiny_vit import tiny_vit

from going_modular.training.checkpoints import Checkpoint
from going_modular.training.distributed import SHARDINGS, process_group, process_rank
from going_modular.training.fit import fit
from going_modular.training.recipes import Recipe

RECIPE = Recipe(
    epochs=7,
    batch_size=4,
    lr=3e-3,
    weight_decay=0.1,
    schedule="cosine",
    warmup_steps=3,
    clip_norm=1.0,
    label_smoothing=0.1,
)


class Broken(Dataset):
    """Images of which process 1 cannot read one."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        if process_rank() == 1:
            raise OSError("the image is broken, says process 1")
        return self.dataset[index]


def train_small(device, sharding="ddp", checkpoint=None, stop=False, broken=False, accumulate=1):
    """21 steps without dropout and augmentation; what they did, as plain types."""
    torch.manual_seed(0)
    images = torch.rand(9, 3, 32, 32)  # batches of 4, 4 and 1
    labels = torch.arange(9) % 3
    train_images = TensorDataset(images, labels)
    steps = []

    def on_step(epoch, step):
        steps.append(step._asdict())
        if stop and len(steps) == 5 and process_rank() == 0:
            os.kill(os.getpid(), signal.SIGINT)

    tensors, results = fit(
        tiny_vit(num_classes=3, dropout=0.0),
        RECIPE,
        Broken(train_images) if broken else train_images,
        TensorDataset(images[:7], labels[:7]),  # batches of 4 and 3
        3,
        device=device,
        sharding=sharding,
        accumulate=accumulate,
        checkpoint=checkpoint,
        progress=False,
        on_step=on_step,
    )
    weights = {name: tensor.tolist() for name, tensor in tensors.items()}
    return {"results": results, "steps": steps, "weights": weights}


@record
def main(folder, event=None):
    runs = {}
    with process_group() as device:
        if event == "fail":
            train_small(device, broken=True)
        for sharding in SHARDINGS:
            runs[sharding] = train_small(device, sharding)
            runs[f"{sharding} in parts"] = train_small(device, sharding, accumulate=2)
            checkpoint = Checkpoint(Path(folder, f"{sharding}.pt"))
            try:
                train_small(device, sharding, checkpoint, stop=True)
            except KeyboardInterrupt:  # on both, though one was told to stop
                saved = torch.load(checkpoint.path, weights_only=True)
                runs[f"{sharding} stopped"] = saved["progress"]
            runs[f"{sharding} resumed"] = train_small(device, sharding, checkpoint)
        if process_rank() == 0:
            Path(folder, "runs.json").write_text(json.dumps(runs))


if __name__ == "__main__":
    main(*sys.argv[1:])
