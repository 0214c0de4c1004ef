import json
import statistics
from dataclasses import asdict
from itertools import pairwise

import pytest

from going_modular.drawings import synthetic_food
from going_modular.experiments import folds, recipe_parts, sweeps
from going_modular.experiments.recipe_parts import PARTS
from going_modular.experiments.sweeps import read_results, sweep
from going_modular.training.recipes import MINI, RECIPES
from going_modular.utils import project_path

PHOTOS = "FoodVision Mini (300 photos)"


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(sweeps, "RESULTS", tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def few_drawings(tmp_path_factory):
    """Five drawings of each dish in each part instead of dozens."""
    five = dict.fromkeys(("pizza", "steak", "sushi"), 5)
    cached = [recipe_parts.held_out_drawings, folds.food_for_mini, folds.food_for_backbone]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic_food, "COUNTS", {"train": five, "test": five})
        folder = tmp_path_factory.mktemp("data")
        patch.setenv("FOODVISION_DATA", str(folder))
        patch.setenv("FOODVISION_SOURCE", "synthetic")
        yield
    for function in cached:
        function.cache_clear()


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


def test_each_part_adds_to_the_one_before():
    recipes = list(PARTS.values())
    for before, after in pairwise(recipes):
        changed = {k for k, v in asdict(after).items() if asdict(before)[k] != v}
        assert 1 <= len(changed) <= 3
    assert len({recipe.epochs for recipe in recipes}) == 1


def test_a_run_can_be_repeated(few_drawings):
    first, again = (recipe_parts.run_part("+ augmentation", seed=1, epochs=2) for _ in range(2))
    assert first == again
    assert len(first["test_acc"]) == 2 and len(first["grad_norm"]) == 2
    assert recipe_parts.run_part("+ augmentation", seed=2, epochs=2) != first


@pytest.mark.parametrize("method", [*folds.METHODS, "mini: after which-image"])
def test_a_fold_counts_right_answers_among_images_left_out(few_drawings, monkeypatch, method):
    trained = []

    def short_fit(model, recipe, train_images, test_images, *rest, **options):
        trained.append((len(train_images), len(test_images)))
        recipe = folds.replace(recipe, steps=0, epochs=1, warmup_steps=0)
        return fit(model, recipe, train_images, test_images, *rest, **options)

    fit = folds.fit
    monkeypatch.setattr(folds, "fit", short_fit)
    source = folds.data_setup.get_food_images().source
    result = folds.run_fold(method, seed=0, fold=1, images=source)
    assert result["of"] == 6 and 0 <= result["right"] <= 6  # 30 images in five folds
    assert trained[-1] == (24, 6)
    folds.run_fold(method, 0, 1, source, within="225")
    assert trained[-1] == (12, 3)  # training images alone
    with pytest.raises(ValueError, match="other images"):
        folds.run_fold(method, 0, 0, "photos of cats")


def test_fingerprints_change_with_any_setting():
    recipes = [*PARTS.values(), RECIPES["mini"]]
    prints = {sweeps.fingerprint(MINI, recipe) for recipe in recipes}
    assert len(prints) == len(recipes)
    assert sweeps.fingerprint(MINI, recipes[0]) in prints


def test_the_stored_parts_are_whole_and_of_these_settings():
    for part, recipe in PARTS.items():
        runs = [run for run in read_results("parts") if run["part"] == part]
        settings = sweeps.fingerprint(recipe_parts.PARTS_MODEL, recipe)
        assert [(run["seed"], run["settings"]) for run in sorted_by_seed(runs)] == [
            (seed, settings) for seed in (0, 1, 2)
        ]
        assert {len(run["test_acc"]) for run in runs} == {recipe.epochs}


@pytest.mark.parametrize(
    "name, methods, images", [("folds", folds.METHODS, 300), ("choose", folds.CANDIDATES, 225)]
)
def test_the_stored_folds_are_whole_and_of_these_settings(name, methods, images):
    folds = {}
    for run in read_results(name):
        key = run["images"], run["method"], run["seed"]
        folds.setdefault(key, []).append(run)
        keywords = methods[run["method"]].keywords
        assert run["settings"] == sweeps.fingerprint(MINI, keywords), key
    for key, runs in folds.items():
        assert sorted(run["fold"] for run in runs) == [0, 1, 2, 3, 4], key
        assert sum(run["of"] for run in runs) == images
    for method in methods:
        seeds = (0, 1, 2) if name == "folds" and "second" not in method else (0,)
        for seed in seeds:
            assert (PHOTOS, method, seed) in folds


def sorted_by_seed(runs):
    return sorted(runs, key=lambda run: run["seed"])


def test_accuracies_count_each_image_once(results):
    lines = [
        {"images": "i", "method": m, "seed": s, "fold": f, "right": right, "of": of}
        for m, s, f, right, of in [
            ("a", 1, 0, 1, 2),
            ("a", 0, 0, 3, 3),
            ("a", 0, 1, 0, 1),
            ("b", 0, 0, 1, 4),
        ]
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (results / "folds.jsonl").write_text(text)
    expected = {("i", "a"): [0.75, 0.5], ("i", "b"): [0.25]}
    assert folds.accuracies_of("folds") == expected


def test_the_readme_says_what_the_stored_folds_say():
    readme = project_path("README.md").read_text(encoding="utf-8")
    stored = folds.accuracies_of("folds")
    assert len(stored.pop((PHOTOS, "mini, second choice"))) == 1
    for key, of_seeds in stored.items():
        mean, spread = statistics.mean(of_seeds), statistics.stdev(of_seeds)
        assert f"{mean:.3f} ± {spread:.3f}" in readme, key


def test_the_page_of_results_says_what_is_stored():
    page = project_path("docs/results/README.md").read_text("utf-8")
    done, choose = (folds.accuracies_of(name) for name in ("folds", "choose"))
    first = choose[PHOTOS, "mini: as it is"][0]
    second = choose[PHOTOS, "mini: batches of 16, 100 epochs"][0]
    assert f"({second:.3f} against {first:.3f})" in page
    first = done[PHOTOS, "mini"]
    second = done[PHOTOS, "mini, second choice"]
    assert f"({second[0]:.3f} against {first[0]:.3f})" in page
    assert f"{statistics.mean(first):.3f}, less than the 0.70" in page
    assert sum(len(of_seeds) == 2 for of_seeds in choose.values()) == 2


def test_the_learning_rate_of_table_4_is_the_one_that_was_chosen():
    page = project_path("docs/results/README.md").read_text("utf-8")
    choose = folds.accuracies_of("choose")
    accuracy, loss = {}, {}
    for rate in folds.TABLE_4["Oxford-IIIT Pets"][1]:
        method = f"our backbone, Table 4, rate {rate}"
        runs = [run for run in read_results("choose") if run["method"] == method]
        accuracy[rate] = choose[PHOTOS, method][0]
        loss[rate] = statistics.mean(run["loss"] for run in runs)
    assert max(accuracy, key=accuracy.get) == folds.TABLE_4_SMALL.lr
    assert f"By loss it would have been {min(loss, key=loss.get)}." in page
