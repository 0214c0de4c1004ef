"""How commands end for what their user can cause: one line, status 2, no traceback."""

import io
import os
import subprocess
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


def console(monkeypatch, encoding="ascii"):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    return stream


def printed(stream):
    stream.flush()
    return stream.buffer.getvalue()


@pytest.mark.parametrize(
    ("encoding", "text", "seen"),
    [
        ("ascii", "寿司 · é", b"?? ? ?\n"),
        ("latin-1", "寿司 · é", b"?? \xb7 \xe9\n"),
        ("cp932", "寿司 é", "寿司 ?\n".encode("cp932")),
        ("utf-8", "寿司 · é", "寿司 · é\n".encode()),
        ("utf-8", "caf\udce9", b"caf?\n"),  # a file name that is not UTF-8
    ],
)
def test_a_command_prints_question_marks_for_what_its_console_lacks(
    encoding, text, seen, monkeypatch
):
    stream = console(monkeypatch, encoding)
    with utils.errors_in_one_line("program"):
        print(text)
    assert printed(stream).replace(os.linesep.encode(), b"\n") == seen


def test_output_that_is_no_text_file_stays_as_it_is(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    utils.replace_unprintable()
    print("寿司")
    assert sys.stdout.getvalue() == "寿司\n"


def test_the_help_prints_on_any_console(monkeypatch):
    stream = console(monkeypatch)
    train.main(["--help"])
    assert "? of MixUp" in printed(stream).decode()


def test_every_command_ends_in_one_line_and_prints_on_any_console():
    """Both come from one function, which each command uses."""
    sources = [path.read_text(encoding="utf-8") for path in utils.PACKAGE.rglob("*.py")]
    commands = [source for source in sources if '__name__ == "__main__"' in source]
    assert len(commands) > 10
    for source in commands:
        assert "errors_in_one_line(" in source or "endings_in_one_line(" in source


def test_a_training_prints_on_a_console_that_is_not_utf_8(food_folder, tmp_path):
    """In a process of its own: the progress bar, warnings and the last line as well."""
    for part in ("train", "test"):
        (food_folder / part / "sushi").rename(food_folder / part / "寿司")
    sizes = "--image-size 24 --patch-size 12 --epochs 1 --warmup-steps 0".split()
    words = ["--data", str(food_folder), "--output", str(tmp_path / "寿司"), *sizes]
    done = subprocess.run(
        [sys.executable, "-m", "going_modular.train", *words],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0, done.stderr
    assert b"weights: " in done.stdout and b"??" in done.stdout and done.stdout.isascii()
