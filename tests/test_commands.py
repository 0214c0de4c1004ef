"""How commands end for what their user can cause: one line, status 2, no traceback."""

import sys

import pytest
from tiny_vit import tiny_vit

from going_modular import predictions, train, utils
from going_modular.experiments import costs
from going_modular.publishing import all_suites, demo, diagrams
from going_modular.vit.files import write_vit


def ending(command, arguments, capsys):
    """What a command of this module says that fails, without its name."""
    with pytest.raises(SystemExit) as end:
        command.main(*arguments)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    name = f"python -m {command.__name__}: error: "
    assert line.startswith(name)
    return line.removeprefix(name)


@pytest.mark.parametrize("command", [train, predictions, demo, costs])
def test_a_device_that_is_not_there_is_named(command, picture, tmp_path, monkeypatch, capsys):
    weights = write_vit(tiny_vit(), tmp_path / "vit.safetensors", class_names=list("abcde"))
    picture.save(tmp_path / "photo.png")
    photo = [str(tmp_path / "photo.png"), "--weights", str(weights)]
    words = {train: [], predictions: photo, demo: [], costs: ["measure"]}[command]
    monkeypatch.setattr(demo, "find_spec", lambda name: True)
    monkeypatch.setattr(costs, "measure", utils.get_device)
    monkeypatch.setenv("FOODVISION_DEVICE", "gpu")
    message = ending(command, [words], capsys)
    assert message == "FOODVISION_DEVICE='gpu': expected cpu, cuda or mps"


@pytest.mark.parametrize(("command", "arguments"), [(all_suites, [[]]), (diagrams, [])])
def test_what_needs_a_checkout_says_so(command, arguments, monkeypatch, capsys):
    monkeypatch.setattr(utils, "CHECKOUT", None)
    assert "run it in a checkout" in ending(command, arguments, capsys)


def test_the_demo_says_how_to_install_gradio(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)  # as if it were not installed
    message = ending(demo, [[]], capsys)
    assert "`pip install gradio`" in message and "`make demo`" in message
