import errno
import json
import os
import random
import re
import signal
import subprocess
import sys
import types
from contextlib import nullcontext
from dataclasses import fields, replace

import pytest
import torch
from faults.command import failing_in_second_save
from PIL import Image
from safetensors.torch import load_file, save_file
from test_descendants import small

from going_modular import data_setup, engine, predictions, train
from going_modular.model_builder import ViT, ViTConfig
from going_modular.training import fit, recipes
from going_modular.utils import give_random_values
from going_modular.vit import descendants
from going_modular.vit.descendant_config import Rotary
from going_modular.vit.export import to_huggingface
from going_modular.vit.files import read_classifier, read_vit, write_vit
from going_modular.vit.weights import load_vit


@pytest.fixture
def folder(tmp_path):
    """Red and blue images, 11 to train on (batches of 4, 4 and 3) and 5 to test on."""
    random.seed(0)
    for part, count in (("train", 11), ("test", 5)):
        for i in range(count):
            kind, color = (("red", (200, 30, 30)), ("sea", (30, 30, 200)))[i % 2]
            color = tuple(min(255, value + random.randrange(50)) for value in color)
            path = tmp_path / "images" / part / kind / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (30, 20), color).save(path)
    return tmp_path


def arguments(folder, output="run", **changes):
    settings = {
        "data": folder / "images",
        "output": folder / output,
        "image_size": 24,
        "batch_size": 4,
        "epochs": 4,
        "warmup_steps": 2,
        "average_decay": 0.5,
        "dropout": 0.1,
        "mixup": 0.2,
    } | changes
    words = []
    for name, value in settings.items():
        if value is not None:
            values = value if isinstance(value, list) else [value]
            words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return words


def log_of(path):
    """The lines of a log, but for what depends on the clock."""
    lines = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
    for line in lines:
        assert line.pop("seconds") > 0
    return lines


def test_a_folder_becomes_weights_that_name_a_photo(folder, capsys, monkeypatch):
    train.main(arguments(folder, epochs=12))
    last = capsys.readouterr().out.splitlines()[-1]
    found = re.fullmatch(r"test accuracy 1\.0000 \(5 of 5\), loss 0\.\d{4} · weights: (.*)", last)
    lines = log_of(folder / "run")
    assert [line["epoch"] for line in lines] == list(range(1, 13))
    assert lines[-1]["test_acc"] == 1 and lines[-1]["lr"] < lines[3]["lr"]

    monkeypatch.chdir(folder)
    photo = "images/test/sea/1.png"
    predictions.main([photo, "--weights", found[1]])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "sea"
    assert [line.split()[1] for line in printed[1:3]] == ["red", "sea"]
    assert sum(float(line.split("%")[0]) for line in printed[1:3]) == pytest.approx(100, abs=0.11)
    with Image.open(folder / "1_prediction.png") as picture:
        assert picture.size == (900, 400)


def test_the_same_command_gives_the_same_weights_with_any_number_of_workers(folder):
    for output, changes in (("a", {}), ("b", {}), ("c", {"workers": 2})):
        train.main(arguments(folder, output, **changes))
    assert log_of(folder / "a") == log_of(folder / "b") == log_of(folder / "c")
    first, *others = (load_file(folder / name / "vit.safetensors") for name in "abc")
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in first)
    train.main(arguments(folder, "d", seed=1))
    assert log_of(folder / "d") != log_of(folder / "a")


def test_held_out_images_are_training_images(folder, capsys):
    train.main(arguments(folder, hold_out=0.3, epochs=1, warmup_steps=0))
    printed = capsys.readouterr().out
    assert "7 to train on, 4 held-out images, 2 classes" in printed
    assert "held-out accuracy" in printed.splitlines()[-1]


def test_the_seed_decides_which_images_are_held_out(folder):
    photos = data_setup.PhotoFolder(folder / "images/train")

    def held_out(seed):
        _, images, _ = train.read_images(photos, None, 0.3, seed, 24, train.Normalization())
        return images.tensors[0]

    assert torch.equal(held_out(42), held_out(42))
    assert not all(torch.equal(held_out(42), held_out(seed)) for seed in range(3))


def test_accumulated_parts_of_a_batch_are_that_batch(folder):
    still = {"dropout": 0.0, "mixup": 0.0, "stochastic_depth": 0.0}
    train.main(arguments(folder, "whole", **still))
    train.main(arguments(folder, "parts", accumulate=2, **still))
    for one, two in zip(log_of(folder / "whole"), log_of(folder / "parts"), strict=True):
        assert two == pytest.approx(one, abs=1e-5)


def test_fine_tuning_starts_from_the_weights_given(folder):
    start = ViT(ViTConfig(48, 12, 3, 12, 2, num_heads=4, mlp_dim=24, num_classes=7))
    write_vit(start, folder / "start.safetensors")
    weights = folder / "start.safetensors"
    changes = {"weights": weights, "lr": 0.0, "epochs": 1, "warmup_steps": 0}
    train.main(arguments(folder, recipe="chapter", **changes))
    vit, notes = read_vit(folder / "run/vit.safetensors")
    assert notes["class_names"] == ["red", "sea"]
    assert vit.config.image_size == 24 and vit.config.num_classes == 2
    assert vit.config.num_heads == 4  # which no shape tells
    block = "encoder.1.mlp.expand.weight"
    assert torch.equal(vit.state_dict()[block], start.state_dict()[block])
    assert not vit.head.weight.any()


def cats_and_dogs(folder, class_names, **config):
    """A file of ours, with a head that has been trained for two other classes."""
    sizes = dict(image_size=24, patch_size=12, embedding_dim=12, num_layers=1, num_heads=2)
    vit = give_random_values(ViT(ViTConfig(**sizes | dict(mlp_dim=24, num_classes=2) | config)))
    path = write_vit(vit, folder / "start.safetensors", class_names=class_names)
    return vit, path


@pytest.mark.parametrize(("class_names", "kept"), [(["cat", "dog"], False), (["red", "sea"], True)])
def test_a_head_is_kept_for_the_same_classes_only(folder, capsys, class_names, kept):
    """Two classes are not the same task as two others."""
    start, path = cats_and_dogs(folder, class_names)
    changes = {"weights": path, "lr": 0.0, "epochs": 1, "warmup_steps": 0}
    train.main(arguments(folder, recipe="chapter", **changes))
    said = "with its head, for the same classes" if kept else "with a new head"
    assert said in capsys.readouterr().out
    vit, _ = read_vit(folder / "run/vit.safetensors")
    assert torch.equal(vit.norm.weight, start.norm.weight)
    assert torch.equal(vit.head.weight, start.head.weight) == kept
    assert kept or not vit.head.weight.any()


def test_the_colors_of_the_weights_stay_theirs_to_the_prediction(folder):
    """Hugging Face's names want 0.5; training, evaluation and our file have to as well."""
    start, _ = cats_and_dogs(folder, [])
    save_file(to_huggingface(start), folder / "theirs.safetensors")
    seen = []

    class Spy(ViT):
        def forward(self, images):
            seen.append((self.training, images.min().item(), images.max().item()))
            return super().forward(images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(descendants, "ViT", Spy)
        train.main(arguments(folder, weights=folder / "theirs.safetensors", mixup=0))
    assert {training for training, _, _ in seen} == {True, False}
    assert all(-1 <= low and high <= 1 for _, low, high in seen)  # ImageNet's reach 2.6
    classifier = read_classifier(folder / "run/vit.safetensors")
    assert [*classifier.transform.mean, *classifier.transform.std] == [0.5] * 6


def test_images_that_are_not_square_all_the_way(folder, capsys, monkeypatch):
    train.main(arguments(folder, "wide", image_size=[24, 36], epochs=1, warmup_steps=0))
    vit, _ = read_vit(folder / "wide/vit.safetensors")
    assert vit.config.image_size == (24, 36)
    again = {"weights": folder / "wide/vit.safetensors", "image_size": None}
    train.main(arguments(folder, "again", **again))
    assert read_vit(folder / "again/vit.safetensors")[0].config.grid == (2, 3)
    monkeypatch.chdir(folder)
    predictions.main(["images/test/sea/1.png", "--weights", "again/vit.safetensors"])
    assert "%" in capsys.readouterr().out


def test_runs_on_other_images_or_weights_write_elsewhere(tmp_path):
    def folder_of(*words, train_dir="a/food/train"):
        options = train.build_parser().parse_args(words)
        return train.output_folder(options, tmp_path / train_dir)

    folders = [
        folder_of(),
        folder_of(train_dir="a/others/train"),
        folder_of(train_dir="b/food/train"),  # another folder of the same name
        folder_of("--weights", "one/vit.safetensors"),
        folder_of("--weights", "two/vit.safetensors"),
        folder_of("--model", "ViT-B/16"),
        folder_of("--recipe", "chapter"),
        folder_of("--seed", "1"),
    ]
    assert len(set(folders)) == len(folders)
    assert folder_of() == folders[0] and folders[0].name.startswith("food-")
    assert folder_of("--output", str(tmp_path)) == tmp_path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 1e30}, "the loss is nan in epoch 1"),
        ({"image_size": [24, 24, 24]}, "image_size must be a number or (H, W)"),
        ({"image_size": [24, 30]}, "image_size=30 is not divisible by patch_size=12"),
        ({"hold_out": 2}, "fraction must lie between 0 and 1"),
        ({"weights": "nowhere.safetensors"}, "there is no file of weights"),
        ({"output": __file__}, "test_train.py"),
        ({"betas": [2, 3]}, "betas must be two numbers from 0 to below 1, got (2.0, 3.0)"),
        ({"image_size": 960_000}, "can't allocate memory"),
        ({"image_size": 12_000_000}, "image_size must be at most 1,000,000, got 12,000,000"),
    ],
)
def test_what_goes_wrong_is_one_line(folder, changes, message):
    done = subprocess.run(
        [sys.executable, "-m", "going_modular.train", *arguments(folder, **changes)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    error = done.stderr.strip().splitlines()[-1]
    assert error.startswith("python -m going_modular.train: error: ") and message in error


def test_weights_have_a_size_of_their_own(folder, capsys):
    with pytest.raises(SystemExit):
        train.main(arguments(folder, model="ViT-B/16", weights=folder / "start.safetensors"))
    assert "--weights: not allowed with argument --model" in capsys.readouterr().err


def test_too_little_memory_is_one_line_with_advice(folder, capsys, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(train, "fit", full)
    with pytest.raises(SystemExit):
        train.main(arguments(folder))
    assert "out of memory. Give --accumulate 2" in capsys.readouterr().err


@pytest.mark.parametrize("error", [ValueError, torch.OutOfMemoryError, MemoryError])
def test_torchrun_gets_the_errors_themselves(folder, error, monkeypatch):
    def fail(*_, **__):
        raise error("for torchrun")

    monkeypatch.setattr(train.dist, "is_torchelastic_launched", lambda: True)
    monkeypatch.setattr(train, "process_group", lambda: nullcontext(torch.device("cpu")))
    monkeypatch.setattr(train, "fit", fail)
    with pytest.raises(error, match="for torchrun"):
        train.main(arguments(folder))


def test_every_setting_of_a_recipe_is_an_option(folder):
    words = ["--betas", "0.8", "0.9", "--lr", "0.1", "--no-flip", "--steps", "7"]
    recipe = train.recipe_of(train.build_parser().parse_args(words))
    changed = {"betas": (0.8, 0.9), "lr": 0.1, "flip": False, "steps": 7, "epochs": 0}
    assert recipe == replace(recipes.RECIPES["mini"], **changed)
    text = train.build_parser().format_help()
    for each in fields(recipes.Recipe):
        assert f"--{each.name.replace('_', '-')}" in text


@pytest.mark.parametrize("step", range(1, 7))
def test_interrupted_at_any_step_the_same_command_goes_on(folder, step, monkeypatch):
    """Six steps in two epochs; the log is that of a run without a stop."""
    settings = {"epochs": 2, "warmup_steps": 0}
    train.main(arguments(folder, "whole", **settings))
    plain, taken = engine.take_step, []

    def counting(*arguments):
        taken.append(arguments)
        if len(taken) == step:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(*arguments)

    monkeypatch.setattr(engine, "take_step", counting)
    with pytest.raises(SystemExit, match="stopped, saved in .*checkpoint.pt"):
        train.main(arguments(folder, "stopped", **settings))
    assert len(taken) == step  # the step was finished, and no other begun
    monkeypatch.setattr(engine, "take_step", plain)
    train.main(arguments(folder, "stopped", **settings))
    assert log_of(folder / "stopped") == log_of(folder / "whole")
    whole, stopped = (load_file(folder / name / "vit.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)


def test_an_interrupt_while_evaluating_waits_for_the_epochs_end(folder, monkeypatch):
    plain = engine.evaluate

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return plain(*arguments)

    monkeypatch.setattr(engine, "evaluate", interrupted)
    with pytest.raises(SystemExit, match="stopped, saved in"):
        train.main(arguments(folder))
    saved = torch.load(folder / "run/checkpoint.pt", weights_only=True)["progress"]
    assert (saved["epoch"], saved["batch"]) == (2, 0)


def test_workers_leave_interrupts_to_the_main_process(folder):
    """A terminal sends Ctrl-C to all processes of a command."""
    dataset = fit.load_resized(folder / "images/train", 24)
    loader = data_setup.create_dataloader(dataset, 4, num_workers=1)
    batches = iter(loader)
    next(batches)
    os.kill(batches._workers[0].pid, signal.SIGINT)
    assert len(list(batches)) == 2


def test_the_help_explains_itself(capsys):
    train.main(["--help"])
    text = " ".join(capsys.readouterr().out.split()).replace("- ", "-")  # one line
    for name in (*train.MODELS, *train.RECIPES):
        assert name in text
    assert "goes on from its last epoch" in text
    assert "--label-smoothing N share of a label given to all classes" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accumulate": 3}, "batch_size=4 is not divisible by accumulate=3"),
        ({"sharding": "fsdp"}, "averaged weights cannot be sharded"),
        ({"warmup_steps": 50}, "50 steps of warm-up leave nothing"),
        ({"data": "nowhere"}, "nowhere"),
    ],
)
def test_what_cannot_be_is_said(folder, changes, message, capsys):
    with pytest.raises(SystemExit):
        train.main(arguments(folder, **changes))
    assert message in capsys.readouterr().err


def differences(error):
    """What differs from the run of a checkpoint: one thing in one line, or a line each."""
    match = re.search(
        r"run/checkpoint\.pt is another run's checkpoint:(.*)Move or delete it .*--output",
        error.strip().replace("longer/", "run/"),
        re.DOTALL,
    )
    first, *more = match[1].strip().split("\n  ")
    assert ("\n" in error.strip()) == bool(more)
    return [first, *more] if more else [first.removesuffix(".")]


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 0.5},
        {"precision": "bfloat16"},
        {"accumulate": 2},
        {"hold_out": 0.3},
        {"seed": 1},
        {"pool": "class_token"},
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(folder, change, capsys):
    settings = {"epochs": 1, "warmup_steps": 0}
    train.main(arguments(folder, **settings))
    with pytest.raises(SystemExit):
        train.main(arguments(folder, **settings, **change))
    lines = differences(capsys.readouterr().err)
    (name,) = change
    named = [line for line in lines if line.startswith(f"{name.replace('_', '-')}: ")]
    assert len(named) == 1 and f" there, {change[name]} here" in named[0]
    assert len(lines) == 1 + (name == "hold_out")  # it changes the test images, too


# The images and weights of a run


def add_images(folder, part, count, name="new"):
    for i in range(count):
        color = (40 * i, 90, 120)
        Image.new("RGB", (30, 20), color).save(folder / f"images/{part}/sea/{name}{i}.png")


def refusal(words, capsys):
    """What a training says that does not begin."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        train.main(words)
    printed = capsys.readouterr()
    assert end.value.code == 2 and "accuracy" not in printed.out
    return printed.err


SHORT = {"epochs": 1, "warmup_steps": 0}


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("change", ["more", "fewer", "renamed", "other bytes"])
def test_a_finished_run_notices_other_images(folder, part, change, capsys):
    train.main(arguments(folder, **SHORT))
    weights = (folder / "run/vit.safetensors").read_bytes()
    image = folder / "images" / part / "sea" / "1.png"
    if change == "more":
        add_images(folder, part, 6)
    elif change == "fewer":
        image.unlink()
    elif change == "renamed":
        image.rename(image.with_name("again.png"))
    else:
        Image.effect_noise((30, 20), 50).convert("RGB").save(image)
    error = refusal(arguments(folder, **SHORT), capsys)
    name = {"train": "training", "test": "test"}[part]
    (line,) = differences(error)
    count = {"more": 6, "fewer": -1}.get(change, 0) + {"train": 11, "test": 5}[part]
    assert line.startswith(f"{name} images: ") and f"there, {count} files" in line
    assert (folder / "run/vit.safetensors").read_bytes() == weights
    train.main(arguments(folder, "other", **SHORT))  # what the line advises


def test_a_run_stopped_in_an_epoch_notices_other_images(folder, capsys, monkeypatch):
    plain, taken = engine.take_step, []

    def stop_in_the_third_step(*arguments):
        taken.append(arguments)
        if len(taken) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(*arguments)

    monkeypatch.setattr(engine, "take_step", stop_in_the_third_step)
    add_images(folder, "train", 6)
    with pytest.raises(SystemExit, match="stopped, saved in"):
        train.main(arguments(folder))
    for path in (folder / "images/train/sea").glob("*.png"):  # a shrunk folder
        if path.name != "1.png":
            path.unlink()
    error = refusal(arguments(folder), capsys)
    assert "training images: 17 files" in error and "there, 7 files" in error


def test_the_same_images_elsewhere_are_the_same_run(folder, capsys):
    train.main(arguments(folder, **SHORT))
    before = log_of(folder / "run")
    (folder / "images").rename(folder / "moved")
    (folder / "moved/train/.DS_Store").touch()
    train.main(arguments(folder, data=folder / "moved", **SHORT))
    assert "1 of 1 epochs are done" in capsys.readouterr().out
    assert log_of(folder / "run") == before


def test_held_out_images_leave_the_test_folder_alone(folder):
    settings = SHORT | {"hold_out": 0.3}
    train.main(arguments(folder, **settings))
    add_images(folder, "test", 2)
    train.main(arguments(folder, **settings))


def test_a_new_class_is_named(folder, capsys):
    train.main(arguments(folder, **SHORT))
    for part in ("train", "test"):
        (folder / "images" / part / "tree").mkdir()
        Image.new("RGB", (30, 20), "green").save(folder / "images" / part / "tree/1.png")
    assert "class names: only there: none; only here: tree" in refusal(
        arguments(folder, **SHORT), capsys
    )


def test_weights_are_compared_by_content(folder, capsys):
    _, path = cats_and_dogs(folder, ["cat", "dog"])
    settings = SHORT | {"recipe": "chapter", "weights": path}
    train.main(arguments(folder, **settings))
    copy = path.rename(folder / "renamed.safetensors")
    train.main(arguments(folder, **settings | {"weights": copy}))
    cats_and_dogs(folder, ["cat", "cow"])
    error = refusal(arguments(folder, **settings), capsys)
    assert re.search(r"weights: [0-9a-f]{64} there, [0-9a-f]{64} here", error)
    assert len(differences(error)) == 1


# More epochs


@pytest.mark.parametrize("length", ["epochs", "steps"])
def test_a_constant_rate_goes_on_to_more_epochs_with_the_same_bits(folder, length, capsys):
    factor = {"epochs": 1, "steps": 3}[length]
    settings = {"recipe": "chapter", "epochs": None}
    train.main(arguments(folder, "whole", **settings | {length: 3 * factor}))
    for epochs in (1, 3):
        train.main(arguments(folder, "longer", **settings | {length: epochs * factor}))
    assert "1 of 3 epochs are done" in capsys.readouterr().out
    assert log_of(folder / "longer") == log_of(folder / "whole")
    first, second = (load_file(folder / name / "vit.safetensors") for name in ("whole", "longer"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    error = refusal(arguments(folder, "longer", **settings | {length: 2 * factor}), capsys)
    line = f"{length}: {3 * factor} there, {2 * factor} here (only a longer training"
    (said,) = differences(error)
    assert said.startswith(line)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_rate_that_falls_over_the_run_has_its_length(folder, schedule, capsys):
    settings = {"schedule": schedule, "warmup_steps": 0}
    train.main(arguments(folder, **settings, epochs=1))
    (line,) = differences(refusal(arguments(folder, **settings, epochs=3), capsys))
    assert line.startswith(f"epochs: 1 there, 3 here (schedule {schedule}: ")


# Saving that fails


def test_a_save_that_fails_keeps_the_old_checkpoint(folder, capsys, monkeypatch):
    """On a disk that gets full; tests/faults has a real one, and a process that is killed."""
    words, checkpoint = arguments(folder, "full", epochs=3), folder / "full/checkpoint.pt"

    def fail():
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", failing_in_second_save(fail))
    with pytest.raises(SystemExit):
        train.main(words)
    (line,) = capsys.readouterr().err.splitlines()
    assert f"error: {checkpoint} cannot be written completely; " in line
    assert torch.load(checkpoint, weights_only=True)["progress"]["epoch"] == 2
    train.main(words)
    train.main(arguments(folder, "whole", epochs=3))
    assert log_of(folder / "full") == log_of(folder / "whole")
    first, second = (load_file(folder / name / "vit.safetensors") for name in ("whole", "full"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not [*(folder / "full").glob(".checkpoint.pt-*")]


@pytest.mark.parametrize("content", [b"", b"no checkpoint"])
def test_a_damaged_checkpoint_is_one_line_and_moving_it_helps(folder, content, capsys):
    path = folder / "run/checkpoint.pt"
    path.parent.mkdir()
    path.write_bytes(content)
    (line,) = refusal(arguments(folder, **SHORT), capsys).splitlines()
    assert f"error: {path} cannot be read as a checkpoint: " in line
    assert "Move or delete it to start again, or choose another folder (--output" in line
    path.rename(folder / "moved.pt")
    train.main(arguments(folder, **SHORT))


def test_predictions_say_what_is_wrong_with_a_file(folder, capsys):
    bare = write_vit(ViT(ViTConfig(16, 8, 3, 12, 1, 2, 24, 2)), folder / "bare.safetensors")
    photo, text = str(folder / "images/test/red/0.png"), str(folder / "text.txt")
    (folder / "text.txt").write_text("no picture")
    for arguments, message in (
        ([photo, "--weights", "nowhere.safetensors"], "there is no file of weights"),
        ([photo, "--weights", text], "text.txt .10 bytes. cannot be read as weights"),
        ([photo, "--weights", str(bare)], "not name its classes"),
        ([text, "--weights", "x"], "cannot be read as a picture"),
    ):
        with pytest.raises(SystemExit):
            predictions.main(arguments)
        assert re.search(message, capsys.readouterr().err)


def test_tensorboard_gets_the_same_figures_where_it_is_installed(folder, monkeypatch):
    written = {}

    class Writer:
        def __init__(self, path, purge_step):
            assert path == folder / "run"
            written[purge_step] = {}

        def add_scalar(self, name, value, epoch):
            written.setdefault(epoch, {})[name] = value

        def flush(self):
            pass

    stand_in = types.ModuleType("torch.utils.tensorboard")
    stand_in.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stand_in)
    train.main(arguments(folder, epochs=2, warmup_steps=0))
    lines = [json.loads(line) for line in (folder / "run/log.jsonl").read_text().splitlines()]
    assert written == {line["epoch"]: line for line in lines}
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # not installed
    train.main(arguments(folder, "other", epochs=1, warmup_steps=0))
    assert len(written) == 2


def test_a_file_of_weights_says_what_else_it_was_given(tmp_path):
    vit = ViT(ViTConfig(16, 8, 3, 12, 1, 2, 24, 2)).half()
    path = write_vit(vit, tmp_path / "vit.safetensors", class_names=["a", "b"], log=[1])
    again, notes = read_vit(path)
    assert notes == {"class_names": ["a", "b"], "log": [1]}
    assert again.config == vit.config and not again.training
    for name, tensor in vit.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor.float())


# Later ViTs

LATER = {
    "deit_tiny_distilled_patch16_224": {"pool": "class_and_register", "num_registers": 1},
    "eva02_base_patch14_224": {"swiglu": True, "rotary": Rotary(reference=16)},
    "vit_base_patch16_clip_quickgelu_224": {"pre_norm": True, "gelu": "quick"},
    "vit_base_patch16_siglip_224": {"pool": "attention", "class_token": False},
    "vit_small_patch14_reg4_dinov2": {"num_registers": 4, "pool": "class_token"},
    "vit_small_patch16_dinov3": {"num_registers": 4, "pool": "mean", "pos_embedding": "none"},
}


@pytest.mark.parametrize("name", LATER)
def test_later_vits_are_fine_tuned_with_all_their_parts(folder, name, capsys, monkeypatch):
    start = folder / "start.safetensors"
    save_file(small(name).state_dict(), start)
    changes = {"architecture": name, "num_heads": 2, "image_size": 32, "stochastic_depth": 0.2}
    train.main(arguments(folder, weights=start, **changes | SHORT))
    assert "with a new head" in capsys.readouterr().out
    (line,) = log_of(folder / "run")
    assert line["epoch"] == 1 and line["train_loss"] < 1  # log 2 = 0.69 with a head of zeros
    vit, notes = read_vit(folder / "run/vit.safetensors")
    assert notes["class_names"] == ["red", "sea"] and vit.config.num_classes == 2
    assert vit.config.stochastic_depth == 0.2 and vit.config.dropout == 0.1
    for part, value in LATER[name].items():
        assert getattr(vit.config, part) == value
    before = load_vit(start, num_classes=2, architecture=name, num_heads=2, image_size=32)
    assert not before.head.weight.any() and vit.head.weight.any()
    moved = before.state_dict().keys() - {
        n for n, tensor in vit.state_dict().items() if torch.equal(tensor, before.state_dict()[n])
    }
    assert moved == before.state_dict().keys()

    train.main(arguments(folder, weights=start, **changes | SHORT))  # reads its checkpoint
    assert "1 of 1 epochs are done" in capsys.readouterr().out
    monkeypatch.chdir(folder)
    predictions.main(["images/test/sea/1.png", "--weights", "run/vit.safetensors"])
    assert "%" in capsys.readouterr().out


def test_an_architecture_without_weights_is_refused(folder, capsys):
    with pytest.raises(SystemExit):
        train.main(arguments(folder, architecture="vit_base_patch16_clip_224"))
    assert "give --weights as well" in capsys.readouterr().err
