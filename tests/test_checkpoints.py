import copy
import os
import pickle
import random
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_training import loader, samples, untrained_vit
from torch import nn
from torch.utils.data import TensorDataset

from going_modular import engine
from going_modular.data_setup import Augmented
from going_modular.training import checkpoints, recipes
from going_modular.training.checkpoints import Checkpoint
from going_modular.training.interrupts import delayed_interrupts
from going_modular.training.progress import Progress, Totals
from going_modular.training.recipes import Recipe
from going_modular.utils import ErrorInLines

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
    with pytest.raises(ErrorInLines) as error:
        Checkpoint(tmp_path / "c.pt", {"lr": 0.3, "batch_size": 2}).load(*arguments)
    first, *differences, last = str(error.value).splitlines()
    assert "c.pt is another run's checkpoint" in first and "--output" in last
    assert differences == [
        "  lr: 0.1 there, 0.3 here",
        "  seed: 1 there, none here",
        "  batch-size: none there, 2 here",
    ]


@pytest.mark.parametrize(
    ("there", "here", "line"),
    [
        (["a", "b"], ["b", "c", "d"], "x-y: only there: a; only here: c, d"),
        (["a"], ["a", "b"], "x-y: only there: none; only here: b"),
        (["a", "b"], ["b", "a"], "x-y: ['a', 'b'] there, ['b', 'a'] here"),
        ((24, 36), 24, "x-y: (24, 36) there, 24 here"),
    ],
)
def test_a_difference_is_one_line(there, here, line):
    assert checkpoints.difference("x_y", there, here) == line


def test_only_a_setting_that_may_grow_can_grow(tmp_path):
    layer = nn.Linear(2, 2)
    arguments = (layer, torch.optim.SGD(layer.parameters(), lr=0.1), engine.Method())
    arguments += (Progress(Totals.zeros("cpu")),)
    Checkpoint(tmp_path / "c.pt", {"epochs": 2, "seed": 1}).save(*arguments)

    def load(**run):
        path, remarks = tmp_path / "c.pt", {"epochs": " (why)"}
        return Checkpoint(path, run, ["epochs"], remarks).load(*arguments)

    assert load(epochs=3, seed=1)
    with pytest.raises(ErrorInLines, match=r"epochs: 2 there, 1 here \(why\)"):
        load(epochs=1, seed=1)
    with pytest.raises(
        ErrorInLines, match=r"c\.pt is another run's checkpoint: seed: 1 there, 2 here\. Move"
    ):
        load(epochs=3, seed=2)


class RunsCode:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def damaged(kind, path):
    """Make a file that is no checkpoint to go on from."""
    run(path, stop_after=4, how=fall_over)
    whole, state = path.read_bytes(), torch.load(path, weights_only=True)
    if kind == "empty":
        path.write_bytes(b"")
    elif kind.startswith("cut"):
        path.write_bytes(whole[: int(kind.split()[1])])
    elif kind == "one bit":
        place = whole.index(state["model"]["head.weight"].numpy().tobytes())
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    elif kind == "text":
        path.write_text("no checkpoint")
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(RunsCode()))
    else:
        changed = {
            "weights": {"weight": torch.zeros(1)},
            "list": [1],
            "code": {**state, "run": RunsCode()},
            "newer": {**state, "format": checkpoints.FORMAT + 1},
            "no format": {name: value for name, value in state.items() if name != "format"},
            "other model": {**state, "model": {"weight": torch.zeros(1)}},
            "no run": {**state, "run": "x"},
        }
        torch.save(changed[kind], path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("empty", "it is empty"),
        ("cut 1", "cut off, damaged"),
        ("cut 1000", "cut off, damaged"),
        ("cut -1", "cut off, damaged"),
        ("one bit", r"its part \S+ is damaged"),
        ("text", "of another kind"),
        ("folder", "of another kind"),
        ("pickle", "of another kind"),
        ("code", "none of it was run"),
        ("weights", "has no entry format, method, model"),
        ("list", "it holds a list"),
        ("newer", "a newer version .* Update the package"),
        ("no format", "has no entry format"),
        ("other model", "is of another model"),
        ("no run", "is of another model"),
    ],
)
def test_a_file_to_go_on_from_that_is_damaged_is_named(tmp_path, kind, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "c.pt"
    damaged(kind, path)
    before = None if kind == "folder" else path.read_bytes()
    with pytest.raises(ValueError, match=message) as error:
        run(path)
    assert str(error.value).startswith(f"{path} ") and "Move or delete it" in str(error.value)
    assert not (tmp_path / "executed").exists()
    assert before is None or path.read_bytes() == before


def test_what_a_killed_save_left_is_removed(tmp_path):
    left, other = tmp_path / ".c.pt-x1", tmp_path / ".other.pt-x1"
    for folder in (left, other):
        folder.mkdir()
        (folder / "c.pt").write_bytes(b"half")
    run(tmp_path / "c.pt", stop_after=4, how=fall_over)
    assert not left.exists() and other.exists()


def test_going_on_is_said(tmp_path, capsys):
    layer = nn.Linear(4, 3)
    data, optimizer = loader(samples()), torch.optim.SGD(layer.parameters(), lr=0.1)
    for epochs in (1, 1, 2):
        checkpoint = Checkpoint(tmp_path / "c.pt")
        settings = (nn.CrossEntropyLoss(), epochs, "cpu")
        engine.train(layer, data, data, optimizer, *settings, checkpoint=checkpoint)
    said = [line for line in capsys.readouterr().out.splitlines() if "going on" in line]
    start = f"going on from {tmp_path / 'c.pt'}: "
    assert said == [f"{start}1 of 1 epochs are done", f"{start}1 of 2 epochs are done"]


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
