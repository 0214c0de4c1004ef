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

    probabilities = predict_image(MeanColour(), greenish, NAMES, turned, "cpu").probabilities
    assert probabilities["red"] > probabilities["blue"]


@pytest.mark.parametrize(
    ("mode", "stored", "seen"),
    [
        ("RGB", (51, 204, 102), (0.2, 0.8, 0.4)),
        ("RGBA", (51, 204, 102, 255), (0.2, 0.8, 0.4)),
        ("RGBA", (0, 255, 0, 51), (0.8, 1.0, 0.8)),  # a fifth of green, on white
        ("L", 153, (0.6, 0.6, 0.6)),
        ("LA", (153, 0), (1.0, 1.0, 1.0)),
        ("I;16", 0x9999, (0.6, 0.6, 0.6)),
        ("1", 1, (1.0, 1.0, 1.0)),
        ("CMYK", (204, 51, 153, 0), (0.2, 0.8, 0.4)),
    ],
)
def test_every_mode_of_a_photo_gives_its_prediction(mode, stored, seen, tmp_path, to_tensor):
    path = tmp_path / ("photo.tif" if mode == "CMYK" else "photo.png")
    Image.new(mode, (8, 8), stored).save(path)
    prediction = predict_image(MeanColour(), path, NAMES, to_tensor, "cpu")
    expected = (10 * torch.tensor(seen)).softmax(0).tolist()
    assert list(prediction.probabilities.values()) == pytest.approx(expected, abs=0.02)


def test_a_photo_lying_on_its_side_is_turned_before_the_transform(tmp_path, to_tensor):
    def top_half(image):
        return to_tensor(image)[:, : image.height // 2]

    upright = Image.new("RGB", (20, 40), "blue")
    upright.paste("red", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees to the right
    lying = upright.transpose(Image.Transpose.ROTATE_90)
    lying.save(tmp_path / "phone.jpg", exif=exif, quality=95)
    arguments = (MeanColour(), tmp_path / "phone.jpg", NAMES, top_half, "cpu")
    assert predict_image(*arguments).label == "red"


def test_what_is_no_probability_is_refused(greenish, to_tensor):
    def broken(image):
        return to_tensor(image) * float("nan")

    with pytest.raises(ValueError, match="NaN"):
        predict_image(MeanColour(), greenish, NAMES, broken, "cpu")
    with pytest.raises(ValueError, match="twice"):
        predict_image(MeanColour(), greenish, ["a", "b", "a"], to_tensor, "cpu")


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
