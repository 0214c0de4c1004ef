"""The commands of the experiments: what goes wrong is said in one line."""

import pytest

from going_modular.experiments import (
    claims,
    command_line,
    costs,
    cross_validation,
    folds,
    pretrain,
    recipe_parts,
    transfer,
)

COMMANDS = {
    "claims": claims,
    "costs": costs,
    "folds": folds,
    "pretrain": pretrain,
    "recipe_parts": recipe_parts,
    "transfer": transfer,
}


def ending(module, arguments, capsys):
    """How a command ends that fails: its exit status and its last line."""
    with pytest.raises(SystemExit) as end:
        module.main(arguments)
    if isinstance(end.value.code, str):  # Python prints it and exits with 1
        return 1, end.value.code
    return end.value.code, capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "name, arguments, expected",
    [
        ("claims", ["figure 3"], "no group figure 3: choose from data, positions"),
        ("claims", ["--seeds", "0"], "argument --seeds: expected a whole number >= 1, got '0'"),
        ("claims", ["--jobs", "two"], "argument --jobs: expected a whole number >= 1, got 'two'"),
        ("costs", ["hours"], "invalid choice: 'hours'"),
        ("folds", [], "required: sweep"),
        ("folds", ["folds", "--seeds", "-1"], "expected a whole number >= 1, got '-1'"),
        ("folds", ["choose", "--methods", "luck"], "invalid choice: 'luck'"),
        ("pretrain", ["--dishes", "0"], "argument --dishes: expected a whole number >= 1"),
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
    assert status == 1 and line.startswith("error: ")
    assert "nowhere" in line and "FOODVISION_SOURCE" in line


def test_without_scikit_learn_a_command_says_what_to_install(
    capsys, food_folder, monkeypatch, tmp_path
):
    food = transfer.FoodImages(food_folder / "train", food_folder / "test", None, "random")
    monkeypatch.setattr(transfer.data_setup, "get_food_images", lambda: food)
    monkeypatch.setattr(cross_validation, "find_spec", lambda name: None)
    status, line = ending(transfer, ["finetune"], capsys)
    assert status == 1 and line.startswith("error: ") and "pip install scikit-learn" in line
    assert len(line.splitlines()) == 1


@pytest.mark.parametrize(
    "error",
    [ValueError("no"), FileNotFoundError("no"), MemoryError("no"), FloatingPointError("no")],
)
def test_errors_that_tell_what_to_do_are_one_line(error):
    with pytest.raises(SystemExit) as end, command_line.errors_in_one_line():
        raise error
    assert end.value.code == "error: no"


def test_bugs_keep_their_traceback():
    with pytest.raises(KeyError), command_line.errors_in_one_line():
        raise KeyError("a bug")


def test_a_stopped_command_says_how_to_go_on():
    with pytest.raises(SystemExit) as end, command_line.errors_in_one_line():
        raise KeyboardInterrupt
    assert "the same command goes on" in end.value.code
