"""Training by a recipe: images, memory, and what is handed to the engine."""

from dataclasses import replace

import pytest
import torch
from PIL import Image
from tiny_vit import TINY, tiny_vit
from torch.utils.data import TensorDataset

from going_modular.images.folders import PhotoFolder
from going_modular.images.transforms import Normalization
from going_modular.model_builder import ViT
from going_modular.training import fit, memory
from going_modular.training.recipes import Recipe, build_average
from going_modular.utils import count_parameters


@pytest.mark.parametrize("size", [24, (24, 36)])
def test_how_many_images_there_are_does_not_change_them(food_folder, monkeypatch, size):
    few = fit.load_resized(food_folder / "train", size)
    monkeypatch.setattr(fit, "MAX_IN_MEMORY", 5)
    many = fit.load_resized(food_folder / "train", size)
    assert isinstance(few, TensorDataset) and not isinstance(many, TensorDataset)
    assert len(few) == len(many) == 24
    for (one, label), (two, same) in zip(few, many, strict=True):
        assert torch.equal(one, two) and label == same
    H, W = (24, 24) if size == 24 else size
    assert one.shape == (3, H * 3 // 2, W * 3 // 2)


@pytest.mark.parametrize("crop_scale", [0.0, 0.5])
def test_training_images_have_the_size_and_the_colors_of_the_model(crop_scale):
    gray = TensorDataset(torch.full((1, 3, 36, 54), 128, dtype=torch.uint8), torch.zeros(1))
    recipe = Recipe(epochs=1, crop_scale=crop_scale)
    half = Normalization((0.5, 0.5, 0.5), (0.25, 0.5, 1.0))
    image, _ = fit.augment(gray, recipe, (24, 36), normalization=half)[0]
    assert image.shape == (3, 24, 36)
    expected = (128 / 255 - 0.5) / torch.tensor([0.25, 0.5, 1.0]).view(3, 1, 1)
    torch.testing.assert_close(image, expected.expand(3, 24, 36))


def test_the_memory_guard_counts_the_average_of_the_weights(monkeypatch):
    """With a made-up GPU, which nothing reaches."""
    average = build_average(ViT(TINY), Recipe(epochs=1, average_decay=0.9))
    counted = sum(p.numel() * p.element_size() for p in average.module.parameters())
    plain = memory.process_bytes(TINY, 16)
    assert memory.process_bytes(TINY, 16, averaged=True) - plain == counted
    assert counted == 4 * count_parameters(ViT(TINY))

    free = int(memory.HEADROOM * memory.process_bytes(TINY, 16, precision="float32"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, free))
    recipe = Recipe(epochs=1, batch_size=16, average_decay=0.9)
    with pytest.raises(MemoryError, match="on 16 images at once"):
        fit.fit(tiny_vit(), recipe, [], [], 5, device=torch.device("cuda"))
    memory.check_memory(TINY, 16, free, precision="float32")  # enough without an average


def test_only_the_training_images_are_shuffled(monkeypatch):
    """Also where they are the test images, as in a test for overfitting."""
    shuffled, plain = [], fit.data_setup.create_dataloader

    def remember(images, batch_size, shuffle, **options):
        shuffled.append(shuffle)
        return plain(images, batch_size, shuffle=shuffle, **options)

    monkeypatch.setattr(fit.data_setup, "create_dataloader", remember)
    images = TensorDataset(torch.rand(2, 3, 32, 32), torch.arange(2))
    recipe, device = Recipe(epochs=1, batch_size=2), torch.device("cpu")
    fit.fit(tiny_vit(), recipe, images, images, 5, device=device, progress=False)
    assert shuffled == [True, False]


def test_an_average_cannot_be_sharded():
    recipe = Recipe(epochs=1, average_decay=0.9)
    with pytest.raises(ValueError, match="average_decay to 0"):
        fit.fit(tiny_vit(), recipe, [], [], 5, device=torch.device("cpu"), sharding="fsdp")


def test_sgd_without_momentum_cannot_be_sharded():
    recipe = Recipe(epochs=1, optimizer="sgd", momentum=0.0)
    with pytest.raises(ValueError, match="set a momentum"):
        fit.fit(tiny_vit(), recipe, [], [], 5, device=torch.device("cpu"), sharding="fsdp")


def test_the_result_is_the_trained_average():
    torch.manual_seed(0)
    images = TensorDataset(torch.rand(8, 3, 32, 32), torch.arange(8) % 5)
    options = {"device": torch.device("cpu"), "progress": False}
    recipe = Recipe(epochs=2, batch_size=4, lr=0.01)
    vit = tiny_vit(dropout=0.0)
    last, _ = fit.fit(vit, recipe, images, images, 5, **options)
    assert all(torch.equal(last[name], t) for name, t in vit.state_dict().items())
    vit = tiny_vit(dropout=0.0)
    mean, _ = fit.fit(vit, replace(recipe, average_decay=0.5), images, images, 5, **options)
    assert mean.keys() == last.keys()
    assert not torch.equal(mean["head.weight"], vit.head.weight)


def test_a_large_jpeg_is_not_decoded_at_its_full_size_for_crops(tmp_path):
    for name in ("pizza", "sushi"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (1600, 1200), "red" if name == "sushi" else "green").save(
            tmp_path / name / "large.jpg"
        )
    photos = PhotoFolder(tmp_path)
    small = fit.for_crops(photos, (24, 20))
    assert small.loader(small.samples[0][0]).size == (200, 150)
    assert small[0][0].shape == (3, 36, 30) and small[0][0].dtype == torch.uint8
    assert photos[0][0].size == (1600, 1200)
