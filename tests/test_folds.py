"""From scratch or fine-tuned, by 5 folds: the runs, and what the pages say of them."""

import json
import re
import statistics

import pytest

from going_modular.drawings import synthetic_food
from going_modular.experiments import folds, recipe_parts, sweeps
from going_modular.experiments.sweeps import read_results
from going_modular.utils import project_path

PHOTOS = "FoodVision Mini (300 photos)"
DRAWINGS = "drawn food (300 pictures)"


@pytest.fixture(scope="module")
def few_drawings(tmp_path_factory):
    """Five drawings of each dish in each part instead of dozens."""
    five = dict.fromkeys(("pizza", "steak", "sushi"), 5)
    cached = [recipe_parts.held_out_drawings, folds.food_for_mini, folds.food_for_backbone]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic_food, "COUNTS", {"train": five, "test": five})
        patch.setenv("FOODVISION_DATA", str(tmp_path_factory.mktemp("data")))
        patch.setenv("FOODVISION_SOURCE", "synthetic")
        yield
    for function in cached:
        function.cache_clear()


@pytest.mark.parametrize("method", [*folds.METHODS, "mini: after which-image"])
def test_a_fold_counts_right_answers_among_held_out_images(few_drawings, monkeypatch, method):
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
    with pytest.raises(ValueError, match="asked for 'photos of cats', but"):
        folds.run_fold(method, 0, 0, "photos of cats")


def test_accuracies_count_each_image_once_and_lines_of_these_settings(tmp_path, monkeypatch):
    monkeypatch.setattr(sweeps, "RESULTS", tmp_path)
    lines = [
        {"images": "i", "method": method, "seed": s, "fold": f, "right": right, "of": of}
        for method, s, f, right, of in [
            ("mini", 1, 0, 1, 2),
            ("mini", 0, 0, 3, 3),
            ("mini", 0, 1, 0, 1),
            ("head on our backbone", 0, 0, 1, 4),
        ]
    ]
    current = [line | {"settings": folds.settings_of(line["method"])} for line in lines]
    stale = [current[0] | {"settings": "others"}, current[0] | {"method": "no such method"}]
    text = "".join(json.dumps(line) + "\n" for line in current + stale)
    (tmp_path / "folds.jsonl").write_text(text)
    expected = {("i", "mini"): [0.75, 0.5], ("i", "head on our backbone"): [0.25]}
    assert folds.accuracies_of("folds") == expected


# What the pages say


def rows_of(page):
    """The cells of each row of each Markdown table."""
    rows = re.findall(r"^\|(.*)\|$", project_path(page).read_text(encoding="utf-8"), re.M)
    return [[cell.strip() for cell in row.split("|")] for row in rows]


def test_the_readme_says_what_the_stored_folds_say():
    """A row for each method: two means ± deviations, of drawings and of photos."""
    stored = folds.accuracies_of("folds")
    assert len(stored.pop((PHOTOS, "mini, second choice"))) == 1
    topics = {
        "chapter's recipe": "chapter",
        "mini": "scratch",
        "head on our backbone": "head",
        "our backbone, Table 4": "Table 4",
    }
    assert set(stored) == {(images, method) for images in (DRAWINGS, PHOTOS) for method in topics}
    rows = rows_of("README.md")
    for method, topic in topics.items():
        expected = [
            f"{statistics.mean(of_seeds):.3f} ± {statistics.stdev(of_seeds):.3f}"
            for of_seeds in (stored[images, method] for images in (DRAWINGS, PHOTOS))
        ]
        (row,) = [row for row in rows if row[1:] == expected]
        assert topic in row[0]


def test_the_page_of_results_says_how_mini_was_chosen():
    done, tried = folds.accuracies_of("folds"), folds.accuracies_of("choose")
    second = tried[PHOTOS, "mini: batches of 16, 100 epochs"]
    expected = [
        (tried[PHOTOS, "mini: as it is"][0], second[0]),
        (done[PHOTOS, "mini"][0], done[PHOTOS, "mini, second choice"][0]),
    ]
    rows = rows_of("docs/results/README.md")
    for numbers in expected:
        assert [f"{number:.3f}" for number in numbers] in [row[1:] for row in rows]
    page = project_path("docs/results/README.md").read_text(encoding="utf-8")
    assert f"{statistics.mean(done[PHOTOS, 'mini']):.3f}" in page
    assert sum(len(of_seeds) == 2 for of_seeds in tried.values()) == 2


def test_the_learning_rate_of_table_4_is_the_one_that_was_chosen():
    tried, rates = folds.accuracies_of("choose"), folds.TABLE_4["Oxford-IIIT Pets"][1]
    accuracy, loss = {}, {}
    for rate in rates:
        method = f"our backbone, Table 4, rate {rate}"
        runs = [run for run in read_results("choose") if run["method"] == method]
        (accuracy[rate],) = tried[PHOTOS, method]
        loss[rate] = statistics.mean(run["loss"] for run in runs)
    assert max(accuracy, key=accuracy.get) == folds.TABLE_4_SMALL.lr
    assert min(loss, key=loss.get) != folds.TABLE_4_SMALL.lr  # as the page says
    rows = [row for row in rows_of("docs/results/README.md") if re.match(r"0\.0\d", row[0])]
    assert [(float(row[0].split()[0]), *row[1:]) for row in rows] == [
        (rate, f"{accuracy[rate]:.3f}", f"{loss[rate]:.3f}") for rate in rates
    ]
    (chosen,) = [row for row in rows if "chosen" in row[0]]
    assert float(chosen[0].split()[0]) == folds.TABLE_4_SMALL.lr
