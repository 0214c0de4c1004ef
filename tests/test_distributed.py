"""Two processes on the CPU against one, with the same global batches."""

import json
import os
import subprocess
import sys
from pathlib import Path

import distributed_worker
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import BatchSampler, SequentialSampler

from going_modular import train
from going_modular.training.distributed import SHARDINGS, BatchShards, distribute


def launch(*arguments, what=(distributed_worker.__file__,)):
    """Two processes of the worker, as `torchrun` starts them."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [sys.executable, *torchrun, *what, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def single():
    return distributed_worker.train_small(torch.device("cpu"))


@pytest.fixture(scope="module")
def double(tmp_path_factory):
    folder = tmp_path_factory.mktemp("double")
    finished = launch(folder)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return json.loads(Path(folder, "runs.json").read_text())


@pytest.mark.parametrize("kind", ["", " in parts"])
@pytest.mark.parametrize("sharding", SHARDINGS)
def test_two_processes_take_the_steps_of_one(sharding, kind, single, double):
    """The last batch of each epoch holds one image, so one of the processes none."""
    both = double[sharding + kind]
    assert len(single["steps"]) == len(both["steps"]) == 21
    assert {step["samples"] for step in single["steps"]} == {1, 4}
    for one, two in zip(single["steps"], both["steps"], strict=True):
        assert two == pytest.approx(one | {"batches": two["batches"]}, abs=1e-5)
    for name, values in single["results"].items():
        assert both["results"][name] == pytest.approx(values, abs=1e-5), name
    assert single["results"]["train_loss"][-1] < single["results"]["train_loss"][0]
    for name, values in single["weights"].items():
        one, two = torch.tensor(values), torch.tensor(both["weights"][name])
        if name.endswith("qkv.bias"):
            # A key's bias adds the same to all scores of a query: its gradient is 0 but
            # for rounding, from which AdamW makes steps of full length.
            one.chunk(3)[1].zero_()
            two.chunk(3)[1].zero_()
        torch.testing.assert_close(two, one, rtol=0, atol=1e-4)


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_two_processes_stop_together_and_go_on_to_the_same_bits(sharding, double):
    stopped = double[f"{sharding} stopped"]
    assert (stopped["epoch"], stopped["batch"]) == (2, 2)  # in the middle of an epoch
    resumed, whole = double[f"{sharding} resumed"], double[sharding]
    assert resumed["results"] == whole["results"]
    assert resumed["steps"] == whole["steps"][5:]
    assert resumed["weights"] == whole["weights"]


def test_the_command_on_two_processes_writes_what_one_writes(food_folder):
    """With augmentation: what an image looks like does not depend on who reads it."""
    settings = ["--data", food_folder, "--image-size", 24, "--batch-size", 5, "--epochs"]
    settings += [2, "--warmup-steps", 1, "--stochastic-depth", 0]
    train.main([str(word) for word in (*settings, "--output", food_folder / "one")])
    finished = launch(
        *settings,
        "--output",
        food_folder / "two",
        "--sharding",
        "fsdp",
        what=("-m", "going_modular.train"),
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert finished.stdout.count("test accuracy") == 1  # one process prints
    one, two = (food_folder / name for name in ("one", "two"))
    for name in ("train_loss", "train_acc", "test_loss", "test_acc"):
        first, second = (
            [json.loads(line)[name] for line in (path / "log.jsonl").read_text().splitlines()]
            for path in (one, two)
        )
        assert second == pytest.approx(first, abs=1e-5)
    first, second = (load_file(path / "vit.safetensors") for path in (one, two))
    assert first.keys() == second.keys()
    torch.testing.assert_close(second["head.weight"], first["head.weight"])


def test_a_process_that_fails_stops_all_with_its_own_error(tmp_path):
    failed = launch(tmp_path, "fail")
    assert failed.returncode != 0
    assert "the image is broken, says process 1" in failed.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_shares_hold_each_sample_once(count):
    batches = BatchSampler(SequentialSampler(range(10)), 4, drop_last=False)
    shares = [list(BatchShards(batches, rank, count)) for rank in range(count)]
    assert {len(share) for share in shares} == {len(batches)} == {3}
    for number, batch in enumerate(batches):
        assert sorted(i for share in shares for i in share[number]) == batch


def test_an_unknown_sharding_is_named():
    with pytest.raises(ValueError, match="got 'zero'"):
        distribute(torch.nn.Linear(1, 1), "zero")
