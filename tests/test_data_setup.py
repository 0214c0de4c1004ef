"""Folders, batches, splits, and augmentation that can be repeated."""

import pytest
import torch
from torch.utils.data import TensorDataset

from going_modular import data_setup, engine
from going_modular.training.recipes import RECIPES, training_transform


def test_dataloaders(food_folder, to_tensor):
    train, test, names = data_setup.create_dataloaders(
        food_folder / "train", food_folder / "test", to_tensor, batch_size=5
    )
    assert names == ["pizza", "steak", "sushi"]
    assert [len(labels) for _, labels in train] == [5, 5, 5, 5, 4]
    images, labels = next(iter(test))
    assert images.shape == (5, 3, 16, 16) and labels.tolist() == [0, 0, 0, 1, 1]


def test_order_is_a_function_of_seed_and_epoch(food_folder, to_tensor):
    def labels(seed, epoch, workers=0):
        loader, _, _ = data_setup.create_dataloaders(
            food_folder / "train", food_folder / "test", to_tensor, 4, workers, seed=seed
        )
        loader.sampler.set_epoch(epoch)
        return torch.cat([images.sum(dim=(1, 2, 3)) for images, _ in loader]).tolist()

    torch.manual_seed(0)
    first = labels(1, 0)
    torch.rand(5)  # draws from the global generator change nothing
    assert labels(1, 0) == first == labels(1, 0, workers=2)
    assert labels(1, 1) != first != labels(2, 0)
    assert sorted(labels(1, 1)) == sorted(first)


def test_training_images_may_have_a_transform_of_their_own(food_folder, to_tensor):
    train, test, _ = data_setup.create_dataloaders(
        food_folder / "train",
        food_folder / "test",
        to_tensor,
        4,
        train_transform=lambda image: to_tensor(image) + 10,
    )
    assert next(iter(train))[0].min() >= 10 and next(iter(test))[0].max() <= 1


def test_folders_with_other_classes_are_refused(food_folder, to_tensor):
    (food_folder / "test" / "steak").rename(food_folder / "test" / "soup")
    with pytest.raises(ValueError, match="soup"):
        data_setup.create_dataloaders(food_folder / "train", food_folder / "test", to_tensor, 4)


def test_split_keeps_proportions_and_shares_no_image(food_folder, to_tensor):
    def split(seed):
        return data_setup.split_train_validation(
            food_folder / "train", 0.5, seed, to_tensor, lambda x: to_tensor(x) + 10
        )

    train, validation = split(seed=1)
    assert sorted(train.indices + validation.indices) == list(range(24))
    for part in (train, validation):
        targets = torch.tensor(part.dataset.targets)[part.indices]
        assert targets.bincount().tolist() == [5, 4, 3]
    assert train[0][0].min() >= 10 and validation[0][0].max() <= 1
    assert split(seed=1)[0].indices == train.indices != split(seed=2)[0].indices


def test_small_classes_get_an_image_on_both_sides(food_folder, to_tensor):
    for name in ("pizza", "steak", "sushi"):
        for path in sorted((food_folder / "train" / name).iterdir())[2:]:
            path.unlink()
    train, validation = data_setup.split_train_validation(food_folder / "train", 0.2, 1, to_tensor)
    assert len(train) == len(validation) == 3
    next((food_folder / "train" / "steak").iterdir()).unlink()
    with pytest.raises(ValueError, match="'steak' of .* has only one image"):
        data_setup.split_train_validation(food_folder / "train", 0.2)


def test_hidden_folders_are_no_classes(food_folder):
    (food_folder / "train" / ".ipynb_checkpoints").mkdir()
    train, _ = data_setup.split_train_validation(food_folder / "train", 0.2)
    assert train.dataset.classes == ["pizza", "steak", "sushi"]


@pytest.mark.parametrize("fraction", [0, 1, -0.5, 1.5])
def test_split_refuses_impossible_fractions(food_folder, fraction):
    with pytest.raises(ValueError, match="between 0 and 1"):
        data_setup.split_train_validation(food_folder / "train", fraction)


def test_load_into_memory(food_folder, to_tensor):
    _, validation = data_setup.split_train_validation(food_folder / "train", 0.5, 1, to_tensor)
    data = data_setup.load_into_memory(validation)
    assert data.tensors[0].shape == (12, 3, 16, 16)
    assert torch.equal(data[3][0], validation[3][0])
    assert data[3][1] == validation[3][1]


# Changes of images that can be repeated


def test_seed_epoch_and_index_decide_how_an_image_is_changed():
    data = TensorDataset(torch.zeros(3, 1), torch.arange(3))

    def images(seed=42, epoch=0, order=(0, 1, 2)):
        augmented = data_setup.Augmented(data, lambda image: image + torch.rand(1), seed)
        augmented.set_epoch(epoch)
        changed = {i: augmented[i][0].item() for i in order}
        return [changed[i] for i in range(3)]

    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = images()
    assert torch.equal(torch.get_rng_state(), before)  # nobody else's numbers are taken
    torch.rand(7)
    assert images(order=(2, 0, 1)) == first and len(set(first)) == 3
    others = [*images(seed=1), *images(epoch=1)]
    assert len({*first, *others}) == 9


def test_each_image_of_a_batch_draws_its_own_changes():
    """A v2 transform of a whole batch would draw once, and change all images alike."""
    images = torch.randint(0, 256, (1, 3, 24, 24), dtype=torch.uint8).expand(16, -1, -1, -1)
    transform = training_transform(RECIPES["mini"], 16)
    torch.manual_seed(0)
    at_once = transform(images)
    assert all(torch.equal(image, at_once[0]) for image in at_once)
    data = data_setup.Augmented(TensorDataset(images, torch.arange(16)), transform)
    batch, _ = next(iter(data_setup.create_dataloader(data, 16)))
    assert len({image.numpy().tobytes() for image in batch}) == 16


def test_the_engine_tells_sampler_and_images_the_epoch():
    data = data_setup.Augmented(TensorDataset(torch.zeros(3, 1), torch.arange(3)), abs)
    dataloader = data_setup.create_dataloader(data, 2, shuffle=True)
    engine.set_epoch(dataloader, 5)
    assert (dataloader.sampler.epoch, data.epoch) == (5, 5)
    engine.set_epoch([("images", "labels")], 5)  # anything else has no epochs
