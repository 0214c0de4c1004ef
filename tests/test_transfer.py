"""What our pretrained ViT is worth: the methods, on made-up images."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from going_modular.data_setup import FoodImages
from going_modular.experiments import cross_validation, transfer
from going_modular.experiments.cross_validation import Images, Split, five_folds, published_split
from going_modular.experiments.transfer import fit_probe, probe

GENERATOR = torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def images():
    """18 squares of 128 pixels, dark, gray and light, the last six for testing."""
    labels = torch.arange(18) % 3
    noise = torch.randint(0, 80, (18, 3, 128, 128), generator=GENERATOR)
    return Images((noise + 80 * labels.view(-1, 1, 1, 1)).to(torch.uint8), labels, 12)


def test_the_probe_is_logistic_regression_on_standardized_features():
    features = torch.randn(40, 6, generator=GENERATOR).numpy() * 5 + 2
    labels = torch.arange(40) % 3
    train, held_out = five_folds(labels, seed=0)[0]
    mean, std = features[train].mean(0), features[train].std(0)
    theirs = LogisticRegression(C=0.3, max_iter=2000)
    theirs.fit((features[train] - mean) / std, labels[train])
    expected = theirs.score((features[held_out] - mean) / std, labels[held_out])
    assert probe(features, labels, [Split(train, held_out)], C=0.3) == expected


def test_a_probe_is_fitted_to_training_features_alone():
    labels = torch.arange(12) % 2
    features = labels.float().view(-1, 1).numpy() * 2 - 1
    lying = features.copy()
    lying[8:] *= -1  # the held-out ones say the opposite
    split = [Split(list(range(8)), list(range(8, 12)))]
    assert probe(features, labels, split, C=10) == 1
    assert probe(lying, labels, split, C=10) == 0


def test_few_images_of_each_class_are_drawn_anew_and_all_others_test():
    labels = torch.arange(24) % 3
    draws = [transfer.few_of_each(labels, draw) for draw in (0, 1, 0)]
    for train, held_out in draws:
        assert labels[train].bincount().tolist() == [5, 5, 5]
        assert sorted(train + held_out) == list(range(24))
    assert draws[0] == draws[2] != draws[1]


def test_finetuning_starts_at_the_probe(images, monkeypatch):
    """Without any training, the model answers as the probe on its features does."""
    monkeypatch.setattr(transfer, "train_all", lambda *arguments: None)
    (split,) = published_split(images)
    middle = images.images[..., 8:-8, 8:-8]
    backbone, _, normalization = cross_validation.our_backbone()
    normalized = transfer.to_normalized(*normalization)(middle)
    with torch.no_grad():
        features = backbone(normalized).numpy()
    fitted = fit_probe(features[split.train], images.labels[split.train])
    expected = fitted.score(features[split.held_out], images.labels[split.held_out])
    assert transfer.finetune(images, [split], seed=0) == expected


def test_finetuning_trains_all_weights_and_can_be_repeated(images, monkeypatch):
    changed = []

    def spied_train_all(model, *rest):
        before = [parameter.clone() for parameter in model.parameters()]
        train_all(model, *rest)
        pairs = zip(before, model.named_parameters(), strict=True)
        changed.append({name: not torch.equal(old, new) for old, (name, new) in pairs})

    train_all = transfer.train_all
    monkeypatch.setattr(transfer, "train_all", spied_train_all)
    splits = published_split(images)
    accuracies = [transfer.finetune(images, splits, seed, lr=1e-3, epochs=3) for seed in (0, 0)]
    assert accuracies[0] == accuracies[1]
    assert all(changed[0].values()) and len(changed) == 2


def test_from_scratch_all_test_images_count(images):
    small = images._replace(images=images.images[..., :64, :64])
    accuracy = transfer.scratch(small, seed=0)
    assert accuracy * 6 == pytest.approx(round(accuracy * 6))


def test_settings_are_chosen_on_training_images_alone(images):
    chosen_on = transfer.only_training(images)
    assert len(chosen_on.images) == len(chosen_on.labels) == chosen_on.train_count == 12
    assert torch.equal(chosen_on.images, images.images[:12])


def test_the_command_prints_five_seeds_and_the_published_split(
    food_folder, monkeypatch, capsys, tmp_path
):
    food = FoodImages(food_folder / "train", food_folder / "test", None, "random pictures")
    monkeypatch.setattr(transfer.data_setup, "get_food_images", lambda: food)
    monkeypatch.setattr(transfer, "probe", lambda features, labels, splits: len(splits) / 10)
    transfer.main(["probe"])
    printed = capsys.readouterr().out
    assert "random pictures" in printed
    assert "0.500 ± 0.000 (seeds 0-4: 0.500 0.500 0.500 0.500 0.500)" in printed
    assert printed.splitlines()[-1] == "published split: 0.100"


def test_the_command_prints_mean_and_spread_of_all_draws(images, monkeypatch, capsys, tmp_path):
    food = FoodImages(tmp_path, tmp_path, None, "made up")
    monkeypatch.setattr(transfer.data_setup, "get_food_images", lambda: food)
    monkeypatch.setattr(transfer, "read_in_backbones_transform", lambda food: images)
    features = images.labels.numpy()[:, None] + 0.0
    monkeypatch.setattr(transfer, "backbone_features", lambda images: features)
    transfer.main(["few"])
    assert "5 images of each class, 10 draws: 1.000 ± 0.000" in capsys.readouterr().out
