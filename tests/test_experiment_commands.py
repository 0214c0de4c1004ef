"""The commands of the experiments: what goes wrong is said in one line."""

import pytest
import torch

from going_modular import utils
from going_modular.experiments import (
    architectures,
    claims,
    command_line,
    costs,
    cross_validation,
    folds,
    precision,
    pretrain,
    recipe_parts,
    sweeps,
    transfer,
)

COMMANDS = {
    "architectures": architectures,
    "claims": claims,
    "costs": costs,
    "folds": folds,
    "precision": precision,
    "pretrain": pretrain,
    "recipe_parts": recipe_parts,
    "transfer": transfer,
}


def ending(module, arguments, capsys):
    """How a command ends that fails: its exit status and its last line."""
    with pytest.raises(SystemExit) as end:
        module.main(arguments)
    return end.value.code, capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "name, arguments, expected",
    [
        ("architectures", ["--million", "many"], "argument --million: invalid float value: 'many'"),
        ("claims", ["figure 3"], "no group figure 3: choose from data, positions"),
        ("claims", ["--seeds", "0"], "argument --seeds: expected a whole number >= 1, got '0'"),
        ("claims", ["--jobs", "two"], "argument --jobs: expected a whole number >= 1, got 'two'"),
        ("costs", ["hours"], "invalid choice: 'hours'"),
        ("folds", [], "required: sweep"),
        ("folds", ["folds", "--seeds", "-1"], "expected a whole number >= 1, got '-1'"),
        ("folds", ["choose", "--methods", "luck"], "invalid choice: 'luck'"),
        ("precision", ["--seeds", "0"], "expected a whole number >= 1, got '0'"),
        ("precision", ["--seeds", "1"], "a standard deviation needs two or more"),
        ("pretrain", ["--drawings", "0"], "argument --drawings: expected a whole number >= 1"),
        ("pretrain", ["--lr", "fast"], "argument --lr: invalid float value: 'fast'"),
        ("recipe_parts", ["--jobs", "0"], "expected a whole number >= 1, got '0'"),
        ("transfer", ["everything"], "invalid choice: 'everything'"),
    ],
)
def test_wrong_arguments_are_named(name, arguments, expected, capsys):
    status, line = ending(COMMANDS[name], arguments, capsys)
    assert status == 2 and expected in line


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as end:
        COMMANDS[name].main(["--help"])
    assert end.value.code == 0
    usage = capsys.readouterr().out
    assert usage.startswith(f"usage: python -m {COMMANDS[name].__name__} ")


@pytest.mark.parametrize("name, arguments", [("folds", ["folds"]), ("transfer", ["probe"])])
def test_photos_that_are_not_there_are_named(name, arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("FOODVISION_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("FOODVISION_SOURCE", str(tmp_path / "nowhere"))
    status, line = ending(COMMANDS[name], arguments, capsys)
    assert status == 2 and line.startswith(f"python -m {COMMANDS[name].__name__}: error: ")
    assert "nowhere" in line and "FOODVISION_SOURCE" in line


def test_without_scikit_learn_a_command_says_what_to_install(
    capsys, food_folder, monkeypatch, tmp_path
):
    food = transfer.FoodImages(food_folder / "train", food_folder / "test", None, "random")
    monkeypatch.setattr(transfer.data_setup, "get_food_images", lambda: food)
    monkeypatch.setattr(cross_validation, "find_spec", lambda name: None)
    status, line = ending(transfer, ["finetune"], capsys)
    assert status == 2 and ": error: " in line and "pip install scikit-learn" in line


@pytest.mark.parametrize(
    "name, arguments", [("claims", []), ("folds", ["folds"]), ("recipe_parts", [])]
)
def test_no_sweep_starts_outside_a_checkout(name, arguments, capsys, data_dir, monkeypatch):
    monkeypatch.setattr(utils, "CHECKOUT", None)
    monkeypatch.setattr(sweeps, "RESULTS", data_dir)
    status, line = ending(COMMANDS[name], arguments, capsys)
    assert status == 2 and line.startswith(f"python -m {COMMANDS[name].__name__}: error: ")
    assert "in a checkout of the repository" in line
    assert not list(data_dir.iterdir())  # nothing was drawn or stored before


def test_a_stopped_command_says_how_to_go_on():
    with pytest.raises(SystemExit) as end, command_line.endings_in_one_line("program"):
        raise KeyboardInterrupt
    assert "the same command goes on" in end.value.code


def test_the_page_on_precision_has_what_was_measured(capsys, monkeypatch):
    found = {("float32", 0): 0.5, ("float32", 1): 0.7, ("bfloat16", 0): 0.6, ("bfloat16", 1): 0.4}

    def run_part(part, seed, epochs, precision):
        return {"test_acc": [0.0, found[precision, seed]]}

    cosines = {"ours": torch.tensor([1.0, 0.75, 0.5]), "theirs": torch.tensor([0.25])}
    monkeypatch.setattr(precision, "run_part", run_part)
    monkeypatch.setattr(precision, "cosines", lambda name: cosines.popitem())
    precision.main(["--seeds", "2"])
    page = capsys.readouterr().out
    assert "| float32 | 0.500 | 0.700 | 0.600 ± 0.141 |" in page
    assert "| bfloat16 | 0.600 | 0.400 | 0.500 ± 0.141 |" in page
    assert "seed by seed: -0.100 ± 0.283" in page
    assert "| ours | 0.500000 | 0.750000 |" in page
