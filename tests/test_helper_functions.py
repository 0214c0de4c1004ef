"""Plots for the notebooks, and what is passed on from the package."""

import matplotlib.pyplot as plt
import pytest
import torch
from torch import nn

import helper_functions
from going_modular import utils
from going_modular.experiments.growth import SmallClassifier
from going_modular.images import downloads
from going_modular.utils import give_random_values


@pytest.fixture(autouse=True)
def keep_figures_open(monkeypatch):
    monkeypatch.setattr(plt, "show", lambda: None)
    yield
    plt.close("all")


def test_what_the_package_has_is_only_passed_on():
    assert helper_functions.set_seeds is utils.set_seeds
    assert helper_functions.print_table is utils.print_table
    assert helper_functions.give_random_values is utils.give_random_values
    assert helper_functions.download_data is downloads.download_data


def test_random_values_reach_every_parameter():
    model = SmallClassifier([nn.Linear(64, 64)], readout="class_token")
    nn.init.zeros_(model.head.weight)
    for name, parameter in give_random_values(model).named_parameters():
        assert parameter.std() > 0.01, name
    norms = torch.cat([model.norm.weight, model.norms[0].weight])
    assert abs(norms.mean() - 1) < 0.05
    first, again = model.head.weight.clone(), give_random_values(model).head.weight
    assert torch.equal(first, again)
    assert not torch.equal(first, give_random_values(model, seed=1).head.weight)


def test_loss_curves_show_both_figures_of_both_sets():
    results = {
        "train_loss": [1.0, 0.5],
        "test_loss": [1.1, 0.9],
        "train_acc": [0.3, 0.8],
        "test_acc": [0.4, 0.6],
    }
    helper_functions.plot_loss_curves(results, test_name="validation")
    for axis, figure in zip(plt.gcf().axes, ("loss", "acc"), strict=True):
        train, test = axis.lines
        assert list(train.get_ydata()) == results[f"train_{figure}"]
        assert list(test.get_ydata()) == results[f"test_{figure}"]
        assert list(train.get_xdata()) == [1, 2] and test.get_label() == "validation"


def test_live_curves_redraw_one_picture(monkeypatch):
    shown = []
    handle = helper_functions.DisplayHandle
    monkeypatch.setattr(handle, "display", lambda self, obj: shown.append(("new", obj)))
    monkeypatch.setattr(handle, "update", lambda self, obj: shown.append(("same", obj)))
    redraw = helper_functions.live_curves("validation")
    names = ("train_loss", "train_acc", "test_loss", "test_acc")
    for epochs in (1, 2, 3):
        redraw({name: [0.5] * epochs for name in names})
    assert [kind for kind, _ in shown] == ["new", "same", "same"]
    lengths = [len(figure.axes[0].lines[1].get_xdata()) for _, figure in shown]
    assert lengths == [1, 2, 3]
    assert not plt.get_fignums()  # nothing is left to be drawn a second time


def test_confusion_matrix_shows_every_count():
    counts = torch.tensor([[5, 1], [2, 7]])
    helper_functions.plot_confusion_matrix(counts, ["a", "b"], "title")
    axis = plt.gca()
    shown = {t.get_position(): t.get_text() for t in axis.texts}
    assert shown == {(0, 0): "5", (1, 0): "1", (0, 1): "2", (1, 1): "7"}
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("predicted", "true")


def test_table_columns_line_up(capsys):
    helper_functions.print_table(["name", "n"], [["a", 1], ["long name", 1000]])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "name          n" and lines[3] == "long name  1000"
    assert len({len(line) for line in lines}) == 1
