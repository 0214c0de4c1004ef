import re
from itertools import pairwise
from statistics import mean, stdev

import nbformat
import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from going_modular.experiments import claims, sweeps
from going_modular.experiments.claims import AMOUNTS, LR, MODELS, ridge_probe
from going_modular.publishing import notebooks
from going_modular.utils import append_line


@pytest.fixture
def few_drawings(tmp_path, monkeypatch):
    """Blocks of 6 instead of 600, of which two are for training."""
    monkeypatch.setenv("FOODVISION_DATA", str(tmp_path))
    monkeypatch.setattr(claims, "BLOCK", 6)
    monkeypatch.setattr(claims, "AMOUNTS", (3, 6, 12))
    monkeypatch.setattr(claims, "HELD_OUT", 2)
    cached = claims.drawings, claims.held_out_images
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


def test_accuracies_are_shares_of_600_in_the_order_of_the_seeds():
    accuracies = claims.accuracies()
    assert {len(of_seeds) for of_seeds in accuracies.values()} == {3}
    line = next(line for line in sweeps.read_results("claims") if line["seed"] == 2)
    point = line["model"], line["images"], line["lr"]
    assert accuracies[point][2] == line["right"] / 600


def test_lines_of_other_settings_do_not_count(tmp_path, monkeypatch):
    monkeypatch.setattr(sweeps, "RESULTS", tmp_path)
    line = claims.points_of(["data"], seeds=1)[0] | {"right": 300}
    for each in (line, line | {"settings": "others"}, line | {"model": "VGG"}):
        append_line(tmp_path / "claims.jsonl", each)
    assert claims.accuracies() == {("ViT", 150, LR): [0.5]}


def test_what_is_compared_at_equal_compute_has_equal_compute():
    costs = {name: claims.multiply_adds_of(name) for name in MODELS}
    assert costs["CNN"] == pytest.approx(costs["larger ViT"], rel=0.02)
    scaled = [costs[name] for name in ("deeper", "wider", "smaller patches")]
    assert max(scaled) == pytest.approx(min(scaled), rel=0.03)
    for name in ("no positions", "2-D positions", "sines and cosines"):
        assert costs[name] == costs["ViT"]


@pytest.mark.parametrize("name", MODELS)
def test_each_network_maps_drawings_to_scores(name):
    assert claims.build_model(name)(torch.rand(2, 3, 48, 48)).shape == (2, 3)


def test_settings_that_differ_have_other_fingerprints(monkeypatch):
    before = {name: claims.settings_of(name) for name in MODELS}
    assert len(set(before.values())) == len(MODELS)
    monkeypatch.setattr(claims, "STEPS", claims.STEPS + 1)
    assert not set(before.values()) & {claims.settings_of(name) for name in MODELS}


def test_drawings_are_those_of_their_numbers(few_drawings):
    drawn = claims.drawings(1)
    assert drawn.shape == (6, 3, 48, 48) and drawn.dtype == torch.uint8
    again = claims.draw_numbered(6 + 4)
    assert np.array_equal(drawn[4].permute(1, 2, 0), again)


def test_seeds_learn_from_other_drawings_while_there_are_enough(few_drawings):
    by_seed = [claims.training_images(3, seed).tensors for seed in range(5)]
    for images, labels in by_seed:
        assert labels.tolist() == [0, 1, 2] and len(images) == 3
    images = torch.cat([images for images, _ in by_seed])
    assert len(images[:12].unique(dim=0)) == 12  # four seeds, twelve drawings
    assert torch.equal(by_seed[4][0], by_seed[0][0])
    everything, labels = claims.training_images(12, seed=1).tensors
    assert torch.equal(everything, images[:12]) and labels.bincount().tolist() == [4] * 3
    held_out = claims.drawings(2).flatten(1)
    assert not (held_out[:, None] == everything.flatten(1)).all(dim=2).any()


def test_a_point_can_be_repeated(few_drawings):
    first, again, other = (claims.run_point("ViT", 6, LR, seed, steps=4) for seed in (0, 0, 1))
    for results in (first, again, other):
        assert results.pop("seconds") >= 0
    assert first == again != other
    assert 0 <= first["right"] <= 6
    with pytest.raises(ValueError, match=r"images must be one of \(3, 6, 12\), got 7"):
        claims.run_point("ViT", 7, LR, 0)
    with pytest.raises(ValueError, match='model must be "ViT" or'):
        claims.run_point("VGG", 6, LR, 0)


def test_every_amount_divides_the_next():
    assert all(large % small == 0 for small, large in pairwise(AMOUNTS))
    assert AMOUNTS[-1] % claims.BLOCK == 0


@pytest.mark.parametrize("ridge", [0.1, 10.0])
@pytest.mark.parametrize("shape", [(12, 40), (60, 5)])
def test_the_probe_is_ridge_regression(shape, ridge):
    generator = torch.Generator().manual_seed(0)
    X = 3 * torch.randn(shape, generator=generator) + 1
    labels = torch.arange(shape[0]) % 3
    new = torch.randn(7, shape[1], generator=generator)
    mean, std = X.mean(0), X.std(0, correction=0)
    targets = np.eye(3)[labels] * 2 - 1
    theirs = Ridge(alpha=ridge).fit((X - mean) / std, targets)
    expected = torch.tensor(theirs.predict((new - mean) / std)).float()
    torch.testing.assert_close(ridge_probe(X, labels, ridge)(new), expected, rtol=1e-3, atol=1e-4)


def test_the_probe_ignores_a_feature_that_says_nothing():
    X, labels = torch.randn(9, 4), torch.arange(9) % 3
    nearly = 0.1 + torch.tensor([0.0, 1e-8] * 4 + [0.0])[:, None]  # by rounding
    same = torch.cat([X, nearly], dim=1)
    other = torch.cat([X, torch.full((9, 1), 7.0)], dim=1)
    torch.testing.assert_close(ridge_probe(same, labels)(other), ridge_probe(X, labels)(X))


def test_notebook_13_says_what_the_results_say():
    by_point = claims.accuracies()

    def accuracy(model, images=claims.USUAL, lr=LR):
        return mean(by_point[model, images, lr])

    gains = [accuracy("CNN", n) - accuracy("larger ViT", n) for n in AMOUNTS]
    assert 0.095 < min(gains) and max(gains) < 0.155  # "by 0.10 to 0.15"
    assert gains[-1] > gains[0]  # "do not approach each other"
    for name in ("ViT", "larger ViT", "CNN"):
        curve = [accuracy(name, n) for n in AMOUNTS]
        assert curve[0] < curve[1] < curve[2]
        assert abs(curve[3] - curve[2]) < 0.01  # "flat within their errors"
    learnt = [accuracy(k) - accuracy("no positions") for k in ("ViT", "2-D positions")]
    assert 0.01 <= min(learnt) and max(learnt) <= 0.0255  # "0.01 to 0.025"
    sines, ours = (by_point[name, claims.USUAL, LR] for name in ("sines and cosines", "ViT"))
    gain, error = 0.033, ((stdev(sines) ** 2 + stdev(ours) ** 2) / 3) ** 0.5
    assert round(mean(sines) - mean(ours), 3) == gain < 2 * error
    best_vit = max(accuracy(name) for name in (*claims.SCALED, "larger ViT"))
    assert best_vit < accuracy("hybrid") < accuracy("CNN")
    closed = accuracy("hybrid") - accuracy("ViT")
    assert 0.4 < closed / (accuracy("CNN") - accuracy("ViT")) < 0.6  # "about half"
    assert max(accuracy("deeper"), accuracy("wider")) < accuracy("ViT")
    assert accuracy("smaller patches") == best_vit
    behind = [
        accuracy("ViT", lr=lr) - accuracy("mean of patches", lr=lr) for lr in (3e-4, 1e-3, 3e-3)
    ]
    assert 0 < behind[0] < behind[1] < behind[2]
    for name in ("ViT", "mean of patches"):
        rates = {lr: accuracy(name, lr=lr) for lr in (3e-4, 1e-3, 3e-3)}
        assert max(rates, key=rates.get) == 1e-3
    steps = claims.STEPS * claims.RECIPE.batch_size
    assert steps // AMOUNTS[0] == 213 and steps // AMOUNTS[-1] == 3


def compared_points():
    """The pairs of points that notebook 13 compares, in its order."""
    usual = claims.USUAL
    pairs = [(("larger ViT", n, LR), ("ViT", n, LR)) for n in AMOUNTS]
    pairs += [(("CNN", n, LR), ("larger ViT", n, LR)) for n in AMOUNTS]
    pairs += [
        ((one, usual, LR), (other, usual, LR))
        for one, other in [
            ("ViT", "no positions"),
            ("2-D positions", "no positions"),
            ("sines and cosines", "no positions"),
            ("deeper", "ViT"),
            ("wider", "ViT"),
            ("smaller patches", "ViT"),
            ("hybrid", "ViT"),
            ("CNN", "hybrid"),
        ]
    ]
    rates = (3e-4, LR, 3e-3)
    return pairs + [(("mean of patches", usual, lr), ("ViT", usual, lr)) for lr in rates]


def test_notebook_13_shows_the_differences_of_the_results_and_names_the_effects():
    """Lines "...: +0.123 ± 0.012", with an addition where no effect is seen."""
    (path,) = notebooks.NOTEBOOKS[13:14]
    shown = [
        output.get("text", "")
        for cell in nbformat.read(path, as_version=4).cells
        for output in cell.get("outputs", [])
    ]
    lines = re.findall(r"^.+: ([+-]0\.\d+) ± (0\.\d+)(.*)$", "".join(shown), re.M)
    by_point = claims.accuracies()
    effects = 0
    for (gain, error, no_effect), points in zip(lines, compared_points(), strict=True):
        one, other = (by_point[point] for point in points)
        expected_error = ((stdev(one) ** 2 + stdev(other) ** 2) / 3) ** 0.5
        expected_gain = mean(one) - mean(other)
        assert (gain, error) == (f"{expected_gain:+.3f}", f"{expected_error:.3f}"), points
        assert bool(no_effect) == (abs(expected_gain) < 3 * expected_error), points
        effects += not no_effect
    assert (len(lines), effects) == (19, 6)
