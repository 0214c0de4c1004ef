"""What each part of a recipe adds."""

from dataclasses import asdict
from itertools import pairwise

import pytest

from going_modular.drawings import synthetic_food
from going_modular.experiments import recipe_parts
from going_modular.experiments.recipe_parts import PARTS


@pytest.fixture
def few_drawings(tmp_path, monkeypatch):
    """Five drawings of each dish in each part instead of dozens."""
    five = dict.fromkeys(("pizza", "steak", "sushi"), 5)
    monkeypatch.setattr(synthetic_food, "COUNTS", {"train": five, "test": five})
    monkeypatch.setenv("FOODVISION_DATA", str(tmp_path))
    recipe_parts.held_out_drawings.cache_clear()
    yield
    recipe_parts.held_out_drawings.cache_clear()


def test_each_recipe_is_the_one_before_with_one_part_more():
    recipes = list(PARTS.values())
    for before, after in pairwise(recipes):
        changed = {k for k, v in asdict(after).items() if asdict(before)[k] != v}
        assert 1 <= len(changed) <= 3
    assert len({recipe.epochs for recipe in recipes}) == 1
    assert len({recipe_parts.settings_of(part) for part in PARTS}) == len(PARTS)


def test_a_run_can_be_repeated(few_drawings):
    first, again = (recipe_parts.run_part("+ augmentation", seed=1, epochs=2) for _ in range(2))
    assert first == again
    assert len(first["test_acc"]) == 2 and len(first["grad_norm"]) == 2
    assert recipe_parts.run_part("+ augmentation", seed=2, epochs=2) != first


def test_a_part_that_is_not_there_is_named():
    with pytest.raises(ValueError, match='part must be "chapter\'s recipe" or .*got .\\+ luck'):
        recipe_parts.run_part("+ luck", seed=0)
