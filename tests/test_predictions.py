import matplotlib.pyplot as plt
import pytest
import torch
from PIL import Image
from torch import nn

from going_modular.predictions import pred_and_plot_image, predict_image

NAMES = ["red", "green", "blue"]


class MeanColour(nn.Module):
    """Logits are ten times the mean of each colour channel."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.9)  # would show if the model were not in eval mode

    def forward(self, images):
        return self.dropout(10 * images.mean(dim=(2, 3)))


@pytest.fixture
def greenish():
    return Image.new("RGB", (20, 10), (51, 204, 102))  # 0.2, 0.8, 0.4


def test_prediction_is_the_softmax_of_the_logits(greenish, to_tensor):
    prediction = predict_image(MeanColour(), greenish, NAMES, to_tensor, "cpu")
    expected = torch.tensor([2.0, 8.0, 4.0]).softmax(0).tolist()
    assert prediction.label == "green"
    assert prediction.probability == pytest.approx(expected[1], abs=1e-5)
    assert list(prediction.probabilities) == NAMES
    assert list(prediction.probabilities.values()) == pytest.approx(expected, abs=1e-5)


def test_the_transform_given_is_the_one_used(greenish, to_tensor):
    def turned(image):
        return to_tensor(image).flip(0)  # blue, green, red

    probabilities = predict_image(
        MeanColour(), greenish, NAMES, turned, "cpu"
    ).probabilities
    assert probabilities["red"] > probabilities["blue"]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "CMYK", "I;16", "1"])
def test_every_mode_of_a_photo_gives_its_prediction(mode, tmp_path, to_tensor):
    """A white picture is white in every mode, and equally red, green and blue."""
    path = tmp_path / ("photo.tif" if mode == "CMYK" else "photo.png")
    if mode == "I;16":
        Image.new("I;16", (8, 8), 65535).save(path)
    else:
        Image.new("RGB", (8, 8), "white").convert(mode).save(path)
    prediction = predict_image(MeanColour(), path, NAMES, to_tensor, "cpu")
    assert list(prediction.probabilities.values()) == pytest.approx([1 / 3] * 3)


def test_wrong_number_of_class_names(greenish, to_tensor):
    with pytest.raises(ValueError, match="3 outputs, but there are 2 class names"):
        predict_image(MeanColour(), greenish, NAMES[:2], to_tensor, "cpu")


def test_the_plot_shows_picture_label_and_all_probabilities(
    greenish, to_tensor, tmp_path, monkeypatch
):
    monkeypatch.setattr(plt, "show", lambda: None)
    greenish.save(tmp_path / "photo.png")
    arguments = (tmp_path / "photo.png", NAMES, to_tensor, "cpu")
    prediction = pred_and_plot_image(MeanColour(), *arguments)
    assert prediction == predict_image(MeanColour(), *arguments)
    photo, bars = plt.gcf().axes
    assert photo.images[0].get_array().shape == (10, 20, 3)
    assert photo.get_title().startswith("green, 9")
    widths = {
        label.get_text(): bar.get_width()
        for label, bar in zip(bars.get_yticklabels(), bars.patches, strict=True)
    }
    assert widths == pytest.approx(prediction.probabilities)
    plt.close()
