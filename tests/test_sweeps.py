"""Sweeps: what is done, what is stored, and how settings are told apart."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, fields

import pytest

from going_modular.experiments import claims, folds, recipe_parts, sweeps
from going_modular.experiments.sweeps import fingerprint, read_results, sweep
from going_modular.model_builder import ViTConfig
from going_modular.training.recipes import MINI, Recipe
from going_modular.utils import PACKAGE


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(sweeps, "RESULTS", tmp_path)
    return tmp_path


def squared(number, seed):
    if number < 0:
        raise ValueError("no such number")
    return {"square": number**2}


def test_a_sweep_does_what_is_missing_and_nothing_twice(results):
    points = [{"number": n, "seed": s, "settings": "a"} for n in (1, 2, 3) for s in (0, 1)]
    sweep("squares", points[:2], squared)
    with pytest.raises(ValueError, match="no such number"):  # in the middle
        sweep("squares", [*points[:4], points[0] | {"number": -1}], squared)
    before = (results / "squares.jsonl").read_text()
    assert len(read_results("squares")) >= 2
    sweep("squares", points, squared)
    after = (results / "squares.jsonl").read_text()
    assert after.startswith(before)
    lines = [json.loads(line) for line in after.splitlines()]
    assert sorted(lines, key=str) == sorted(
        ({**point, "square": point["number"] ** 2} for point in points), key=str
    )
    sweep("squares", [points[0] | {"settings": "b"}], squared)  # other settings
    assert len(read_results("squares")) == 7


SLOW_SWEEP = """
import time
from pathlib import Path

from going_modular.experiments import sweeps
from going_modular.experiments.command_line import endings_in_one_line


def slow(number):
    time.sleep(1)
    return {}


if __name__ == "__main__":
    sweeps.RESULTS = Path("results")
    points = [{"number": number, "settings": "a"} for number in range(100)]
    with endings_in_one_line("slow_sweep.py"):
        sweeps.sweep("slow", points, slow, jobs=2)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals for a group of processes")
def test_ctrl_c_ends_a_sweep_without_a_traceback(tmp_path):
    """A terminal sends the signal to all processes of the command."""
    (tmp_path / "slow_sweep.py").write_text(SLOW_SWEEP)
    process = subprocess.Popen(
        [sys.executable, "slow_sweep.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    stored = tmp_path / "results" / "slow.jsonl"
    deadline = time.monotonic() + 120
    while not stored.is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 1
    assert printed.splitlines()[-1].startswith("stopped: ") and "Traceback" not in printed
    assert all("number" in json.loads(line) for line in stored.read_text().splitlines())


# Fingerprints


@dataclass
class Before:
    epochs: int
    lr: float = 0.1
    init: str = "paper"


@dataclass
class After:
    """`Before` with a new field, in another order."""

    init: str = "paper"
    flip: bool = False
    lr: float = 0.1
    epochs: int = 0


@dataclass
class Renamed:
    epochs: int
    rate: float = 0.1


def test_a_new_field_with_a_default_changes_no_fingerprint():
    assert fingerprint(Before(5), 3) == fingerprint(After(epochs=5), 3)
    assert fingerprint(Before(5, lr=0.2)) == fingerprint(After(lr=0.2, epochs=5))
    nested = fingerprint({"recipe": Before(5, lr=0.2), "first": None})
    assert nested == fingerprint({"first": None, "recipe": After(lr=0.2, epochs=5)})


def test_every_changed_setting_changes_the_fingerprint():
    settings = [
        (Before(5), 3),
        (Before(5), 4),
        (Before(6), 3),
        (Before(5, lr=0.2), 3),
        (Before(5, init="chapter"), 3),
        (After(epochs=5, flip=True), 3),
        (Renamed(5, rate=0.2), 3),
        ({"recipe": Before(5)}, 3),
        ({"first": Before(5)}, 3),
        (None, 3),
        ("a network in words", 3),
        (3, Before(5)),
    ]
    assert len({fingerprint(*each) for each in settings}) == len(settings)


def test_settings_without_a_rule_are_an_error():
    with pytest.raises(TypeError):
        fingerprint(object())


def test_the_defaults_that_stored_lines_rely_on_have_not_changed():
    """A fingerprint leaves out fields with their defaults, so these must stay.

    If you change a default, all lines of the sweeps whose settings had it are wrong: give
    the old value in those settings, and only then change the number here. A new field is
    to be added here with a default that leaves trainings as they were.
    """
    defaults = {
        Recipe: {
            "epochs": 0,
            "steps": 0,
            "batch_size": 32,
            "lr": 1e-3,
            "init": "paper",
            "optimizer": "adamw",
            "weight_decay": 0.0,
            "decay_everything": False,
            "betas": (0.9, 0.999),
            "momentum": 0.9,
            "schedule": "constant",
            "warmup_steps": 0,
            "clip_norm": 0.0,
            "dropout": 0.0,
            "stochastic_depth": 0.0,
            "label_smoothing": 0.0,
            "crop_scale": 0.0,
            "flip": False,
            "color_jitter": 0.0,
            "randaugment": 0,
            "mixup": 0.0,
            "cutmix": 0.0,
            "average_decay": 0.0,
        },
        ViTConfig: {
            "image_size": 224,
            "patch_size": 16,
            "in_channels": 3,
            "embedding_dim": 768,
            "num_layers": 12,
            "num_heads": 12,
            "mlp_dim": 3072,
            "num_classes": 1000,
            "dropout": 0.1,
            "attention_dropout": 0.0,
            "stochastic_depth": 0.0,
            "layer_norm_eps": 1e-6,
            "gelu": "exact",
            "pool": "class_token",
            "representation_size": 0,
            "pos_embedding": "learned_1d",
        },
    }
    for settings, expected in defaults.items():
        assert {field.name: field.default for field in fields(settings)} == expected


# The stored lines


def test_the_stored_parts_are_complete_and_of_these_settings():
    for part, recipe in recipe_parts.PARTS.items():
        runs = [run for run in read_results("parts") if run["part"] == part]
        settings = fingerprint(recipe_parts.PARTS_MODEL, recipe)
        runs.sort(key=lambda run: run["seed"])
        assert [(run["seed"], run["settings"]) for run in runs] == [
            (seed, settings) for seed in (0, 1, 2)
        ]
        assert {len(run["test_acc"]) for run in runs} == {recipe.epochs}


@pytest.mark.parametrize(
    "name, methods, images", [("folds", folds.METHODS, 300), ("choose", folds.CANDIDATES, 225)]
)
def test_the_stored_folds_are_complete_and_of_these_settings(name, methods, images):
    stored = {}
    for run in read_results(name):
        key = run["images"], run["method"], run["seed"]
        stored.setdefault(key, []).append(run)
        keywords = methods[run["method"]].keywords
        assert run["settings"] == fingerprint(MINI, keywords), key
    for key, runs in stored.items():
        assert sorted(run["fold"] for run in runs) == [0, 1, 2, 3, 4], key
        assert sum(run["of"] for run in runs) == images
    for method in methods:
        seeds = (0, 1, 2) if name == "folds" and "second" not in method else (0,)
        for seed in seeds:
            assert ("FoodVision Mini (300 photos)", method, seed) in stored


def test_the_stored_claims_are_complete_and_of_these_settings():
    points = claims.points_of(list(claims.POINTS), seeds=3)
    assert len(points) == 72
    lines = read_results("claims")
    stored = [{name: line[name] for name in points[0]} for line in lines]
    assert sorted(stored, key=str) == sorted(points, key=str)
    assert all(0 < line["right"] < claims.BLOCK for line in lines)


# Where pip installed the package


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder that holds the package alone, as site-packages does."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def run_installed(folder, *arguments):
    """The finished process of `python ...` that sees the installed package only."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "FOODVISION_DATA": str(folder / "data")},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_an_installed_package_reads_the_results(installed):
    count = "from going_modular.experiments import sweeps; print(len(sweeps.read_results('folds')))"
    process = run_installed(installed, "-c", count)
    assert process.stdout.strip() == str(len(read_results("folds"))), process.stderr


def test_an_installed_package_refuses_to_sweep_in_one_line(installed):
    process = run_installed(installed, "-m", "going_modular.experiments.recipe_parts")
    assert process.returncode == 2 and process.stdout == ""
    assert "in a checkout of the repository" in process.stderr
    assert len(process.stderr.splitlines()) == 1
    assert not (installed / "data").exists()  # nothing was drawn before
