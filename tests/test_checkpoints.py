import copy
import os
import random
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_training import loader, untrained_vit
from torch import nn
from torch.utils.data import TensorDataset

from going_modular import engine
from going_modular.data_setup import Augmented
from going_modular.training import checkpoints, recipes
from going_modular.training.checkpoints import Checkpoint
from going_modular.training.interrupts import delayed_interrupts
from going_modular.training.progress import Progress, Totals
from going_modular.training.recipes import Recipe

RECIPE = Recipe(
    epochs=3,
    batch_size=4,
    lr=1e-2,
    weight_decay=0.1,
    schedule="cosine",
    warmup_steps=2,
    clip_norm=1.0,
    dropout=0.2,
    stochastic_depth=0.2,
    crop_scale=0.3,
    flip=True,
    color_jitter=0.3,
    mixup=0.5,
    cutmix=0.5,
    average_decay=0.9,
)
STEPS = 9  # 3 epochs of 11 images in batches of 4, 4 and 3


def pictures():
    torch.manual_seed(0)
    return TensorDataset((255 * torch.rand(11, 3, 20, 20)).to(torch.uint8), torch.arange(11) % 3)


def images_of(kind):
    """Changed by `Augmented`, or by a transform that draws from the global numbers."""
    transform = recipes.training_transform(RECIPE, 16)
    if kind == "augmented":
        return Augmented(pictures(), transform)
    return Changing(pictures(), transform)


class Changing(torch.utils.data.Dataset):
    def __init__(self, dataset, transform):
        self.dataset, self.transform = dataset, transform

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        image, label = self.dataset[index]
        return self.transform(image), label


class Stopped(Exception):
    pass


def run(path=None, stop_after=None, how=None, kind="augmented", recipe=RECIPE):
    """Train from the start, or from the checkpoint; return all that may differ."""
    unchanged = recipes.training_transform(Recipe(epochs=1), 16)
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    vit = untrained_vit(dropout=recipe.dropout, stochastic_depth=recipe.stochastic_depth)
    optimizer = recipes.build_optimizer(vit, recipe)
    method = engine.Method(
        scheduler=recipes.build_scheduler(optimizer, recipe, STEPS),
        clip_norm=recipe.clip_norm,
        mix=recipes.build_mix(recipe, 3),
        average=recipes.build_average(vit, recipe),
    )
    steps = []

    def on_step(epoch, step):
        steps.append(step)
        if len(steps) == stop_after:
            how()

    checkpoint = Checkpoint(path) if path else None
    try:
        results = engine.train(
            vit,
            loader(images_of(kind), 4, shuffle=True),
            loader(Augmented(pictures(), unchanged), 4),
            optimizer,
            nn.CrossEntropyLoss(),
            recipe.epochs,
            "cpu",
            progress=False,
            method=method,
            checkpoint=checkpoint,
            on_step=on_step,
        )
    except (KeyboardInterrupt, Stopped):
        return None
    return results, {
        **{f"model.{name}": t for name, t in vit.state_dict().items()},
        **{f"average.{n}": t for n, t in method.average.state_dict().items()},
        "random": torch.get_rng_state(),
        "rate": torch.tensor(method.scheduler.get_last_lr()),
    }


def assert_same_bits(first, second):
    assert first[0] == second[0]
    assert first[1].keys() == second[1].keys()
    for name, tensor in first[1].items():
        assert torch.equal(tensor, second[1][name]), name


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def fall_over():
    raise Stopped


@pytest.mark.parametrize("kind", ["augmented", "global random numbers"])
@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path, step, kind):
    whole = run(kind=kind)
    path = tmp_path / "checkpoint.pt"
    assert run(path, stop_after=step, how=interrupt, kind=kind) is None
    progress = torch.load(path, weights_only=True)["progress"]
    assert (progress["epoch"] - 1) * 3 + progress["batch"] == step
    assert_same_bits(run(path, kind=kind), whole)


@pytest.mark.parametrize("step", [1, 4, 8])
def test_a_run_that_fell_over_goes_on_from_its_last_epoch(tmp_path, step):
    path = tmp_path / "checkpoint.pt"
    run(path, stop_after=step, how=fall_over)
    assert path.is_file() == (step > 3)
    assert_same_bits(run(path), run())


def test_an_optimizer_without_state_goes_on_too(tmp_path):
    recipe = replace(RECIPE, optimizer="sgd", momentum=0.0)
    run(tmp_path / "c.pt", stop_after=5, how=interrupt, recipe=recipe)
    assert_same_bits(run(tmp_path / "c.pt", recipe=recipe), run(recipe=recipe))


def test_a_finished_run_is_not_run_again(tmp_path):
    whole = run(tmp_path / "c.pt")
    steps = []
    again = run(tmp_path / "c.pt", stop_after=1, how=lambda: steps.append(1))
    assert steps == []
    assert again[0] == whole[0]
    assert torch.equal(again[1]["model.head.weight"], whole[1]["model.head.weight"])


def test_saving_without_a_stop_changes_nothing(tmp_path):
    assert_same_bits(run(tmp_path / "c.pt"), run())


@pytest.fixture
def heeded():
    """Interrupts are heeded; a process that was started in the background has none."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def test_a_second_interrupt_is_obeyed_at_once(heeded):
    with pytest.raises(KeyboardInterrupt):
        with delayed_interrupts() as asked:
            assert not asked()
            interrupt()
            assert asked()
            interrupt()
    assert signal.getsignal(signal.SIGINT) is heeded


def test_a_file_cut_short_while_writing_does_not_harm_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "c.pt"
    run(path, stop_after=4, how=fall_over)
    before = path.read_bytes()

    def half(state, file):
        file.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="no space"):
        run(path)
    assert path.read_bytes() == before


def test_another_runs_checkpoint_is_refused_and_says_what_differs(tmp_path):
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    arguments = (layer, optimizer, engine.Method())
    arguments += (Progress(Totals.zeros("cpu")),)
    Checkpoint(tmp_path / "c.pt", {"lr": 0.1, "seed": 1}).save(*arguments)
    Checkpoint(tmp_path / "c.pt", {"lr": 0.1, "seed": 1}).load(*arguments)
    with pytest.raises(ValueError, match=r"\(lr: 0.1 there, 0.3 here\)"):
        Checkpoint(tmp_path / "c.pt", {"lr": 0.3, "seed": 1}).load(*arguments)


@pytest.mark.parametrize("content", [b"", b"half a checkpoint", {"weight": torch.zeros(1)}, [1]])
def test_a_file_that_is_no_checkpoint_is_named(tmp_path, content):
    path = tmp_path / "c.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=r"c\.pt \(\d+ bytes\) cannot be read as a checkpoint"):
        run(path)


def test_random_states_are_restored_for_all_generators():
    def numbers():
        return random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(2)

    random.gauss(0, 1)  # leaves a second number behind, as NumPy's randn does
    np.random.randn()
    state = copy.deepcopy(checkpoints.random_state())
    first = numbers()
    numbers()
    checkpoints.set_random_state(state)
    second = numbers()
    assert first[:3] == second[:3] and torch.equal(first[3], second[3])
