"""The model that grows from notebook 02 to notebook 07."""

import math

import pytest
import torch
from torch import nn

from going_modular import data_setup
from going_modular.experiments import growth
from going_modular.experiments.growth import SMALL, SmallClassifier
from going_modular.utils import count_parameters, give_random_values


def test_small_classifier_reads_mean_or_class_token():
    images = torch.randn(2, 3, SMALL.image_size, SMALL.image_size)
    for readout in ("mean", "class_token"):
        model = give_random_values(SmallClassifier(readout=readout))
        patches = model.patch_embedding(images)
        z = torch.cat([model.class_token.expand(2, -1, -1), patches], dim=1)
        z = z + model.pos_embedding
        seen = z.mean(dim=1) if readout == "mean" else model.norm(z)[:, 0]
        torch.testing.assert_close(model(images), model.head(seen))


def test_growth_table_reports_what_was_measured(food_folder, monkeypatch, capsys):
    food = data_setup.FoodImages(food_folder / "train", food_folder / "test", None, "")
    monkeypatch.setattr(growth, "get_food_images", lambda: food)
    stages = {"embeddings": SmallClassifier}
    accuracies = growth.measure_growth(stages, epochs=1)
    table = capsys.readouterr().out
    row = next(line for line in table.splitlines() if line.startswith("embeddings"))
    assert f"{count_parameters(SmallClassifier()):,}" in row
    N, P2C, D = 64, 192, 64
    assert f"{(N * P2C * D + D * 3) / 1e6:.2f} M" in row
    assert row.endswith(f"{accuracies['embeddings']:.2f}")
    growth.measure_growth(stages, epochs=1)
    assert capsys.readouterr().out == table


def test_growth_table_measures_every_row_alike(food_folder, monkeypatch, capsys):
    food = data_setup.FoodImages(food_folder / "train", food_folder / "test", None, "")
    monkeypatch.setattr(growth, "get_food_images", lambda: food)
    names = ("first", "third", "fifth")
    growth.measure_growth(dict.fromkeys(names, growth.LinearOnPatches), epochs=2)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    steps = {row[-2] for row in rows if row and row[0] in names}
    assert len(steps) == 1 and 1 <= int(steps.pop()) <= 60
    assert len({tuple(row[1:]) for row in rows if row and row[0] in names}) == 1


class Constant(nn.Module):
    """Logits that are parameters of their own, whatever the image."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, images):
        return self.logits.expand(len(images), -1)


def test_steps_to_memorize_counts_the_steps_before_the_loss_is_small():
    batch = torch.zeros(4, 3, 64, 64), torch.zeros(4, dtype=torch.long)
    assert growth.steps_to_memorize(Constant([9.0, 0.0, 0.0]), batch, most_steps=2) == 0
    assert growth.steps_to_memorize(Constant([0.0, 0.0, 0.0]), batch, most_steps=2) is None
    # The loss is log(1 + 2 exp(-margin)). A step of AdamW moves each logit by the learning
    # rate, 0.001, and so adds 0.002 to the margin: 0.005 takes three steps.
    needed = math.log(2 / math.expm1(growth.MEMORIZED))
    model = Constant([needed - 0.005, 0.0, 0.0])
    assert growth.steps_to_memorize(model, batch, most_steps=9) == 3


@pytest.mark.parametrize("size", [64, 32])
def test_small_images_have_values_from_minus_one_to_one(picture, size):
    tensor = growth.small_transform(size)(picture)
    assert tensor.shape == (3, size, size)
    expected = torch.tensor([200, 30, 30]) / 127.5 - 1  # the first quarter of the picture
    torch.testing.assert_close(tensor[:, 0, 0], expected)


def test_one_linear_layer_reads_all_patches():
    model, images = growth.LinearOnPatches(), torch.randn(2, 3, 64, 64)
    patches = images.unfold(2, 8, 8).unfold(3, 8, 8)  # (B, C, rows, columns, P, P)
    patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(2, -1)
    torch.testing.assert_close(model(images), model.head(patches))
