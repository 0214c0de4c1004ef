"""The harness of folds that `folds` and `transfer` share."""

import numpy as np
import pytest
import torch
from sklearn.model_selection import StratifiedKFold

from going_modular.data_setup import FoodImages
from going_modular.experiments import cross_validation
from going_modular.experiments.cross_validation import (
    Images,
    Split,
    accuracy_over,
    five_folds,
    published_split,
    read_images,
)


def test_the_images_are_those_of_both_folders_in_order(food_folder, to_tensor):
    food = FoodImages(food_folder / "train", food_folder / "test", None, "random")
    images, labels, train_count = read_images(food, to_tensor)
    assert images.shape == (31, 3, 16, 16) and train_count == 24
    assert labels.tolist() == [0] * 10 + [1] * 8 + [2] * 6 + [0] * 3 + [1] * 2 + [2] * 2


def test_five_folds_test_each_image_once_and_hold_all_classes():
    labels = torch.tensor([0] * 10 + [1] * 15 + [2] * 5)
    splits = five_folds(labels, seed=3)
    assert sorted(i for _, held_out in splits for i in held_out) == list(range(30))
    for train, held_out in splits:
        assert sorted(train + held_out) == list(range(30))
        assert labels[held_out].bincount().tolist() == [2, 3, 1]
    assert five_folds(labels, seed=3) == splits != five_folds(labels, seed=4)


def test_the_folds_are_those_of_scikit_learn():
    labels = torch.arange(40) % 3
    theirs = StratifiedKFold(5, shuffle=True, random_state=7).split(np.zeros(40), labels)
    for ours, (train, held_out) in zip(five_folds(labels, 7), theirs, strict=True):
        assert ours == Split(train.tolist(), held_out.tolist())


def test_the_published_split_trains_on_the_training_images():
    images = Images(torch.zeros(5, 1), torch.zeros(5), train_count=3)
    assert published_split(images) == [Split([0, 1, 2], [3, 4])]


def test_accuracy_counts_each_held_out_image_once():
    labels = torch.tensor([0, 1, 2, 2])
    splits = [Split([1, 2, 3], [0]), Split([0], [1, 2, 3])]
    answers = {0: 0, 1: 1, 2: 0, 3: 0}  # the means of the two splits would give 2/3

    def predict(train, held_out):
        assert not set(train) & set(held_out)
        return np.array([answers[i] for i in held_out])

    assert accuracy_over(splits, labels, predict) == 2 / 4


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(cross_validation, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install scikit-learn"):
        five_folds(torch.zeros(10), seed=0)
