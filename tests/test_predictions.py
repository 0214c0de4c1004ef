import io
import re
import sys

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib import font_manager
from PIL import Image
from safetensors.torch import save_file
from tiny_vit import tiny_vit
from torch import nn

from going_modular import predictions
from going_modular.images.transforms import HALF, IMAGENET, evaluation_transform
from going_modular.predictions import (
    Prediction,
    plot_prediction,
    pred_and_plot_image,
    predict_image,
)
from going_modular.vit.export import to_timm
from going_modular.vit.files import write_vit

NAMES = ["red", "green", "blue"]


class MeanColor(nn.Module):
    """Logits are ten times the mean of each color channel."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.9)  # would show if the model were not in eval mode

    def forward(self, images):
        return self.dropout(10 * images.mean(dim=(2, 3)))


@pytest.fixture
def greenish():
    return Image.new("RGB", (20, 10), (51, 204, 102))  # 0.2, 0.8, 0.4


def test_prediction_is_the_softmax_of_the_logits(greenish, to_tensor):
    prediction = predict_image(MeanColor(), greenish, NAMES, to_tensor, "cpu")
    expected = torch.tensor([2.0, 8.0, 4.0]).softmax(0).tolist()
    assert prediction.label == "green"
    assert prediction.probability == pytest.approx(expected[1], abs=1e-5)
    assert list(prediction.probabilities) == NAMES
    assert list(prediction.probabilities.values()) == pytest.approx(expected, abs=1e-5)


def test_the_transform_given_is_the_one_used(greenish, to_tensor):
    def turned(image):
        return to_tensor(image).flip(0)  # blue, green, red

    probabilities = predict_image(MeanColor(), greenish, NAMES, turned, "cpu").probabilities
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
    prediction = predict_image(MeanColor(), path, NAMES, to_tensor, "cpu")
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
    arguments = (MeanColor(), tmp_path / "phone.jpg", NAMES, top_half, "cpu")
    assert predict_image(*arguments).label == "red"


def test_what_is_no_probability_is_refused(greenish, to_tensor):
    def broken(image):
        return to_tensor(image) * float("nan")

    with pytest.raises(ValueError, match="NaN"):
        predict_image(MeanColor(), greenish, NAMES, broken, "cpu")
    with pytest.raises(ValueError, match="twice"):
        predict_image(MeanColor(), greenish, ["a", "b", "a"], to_tensor, "cpu")


def test_wrong_number_of_class_names(greenish, to_tensor):
    with pytest.raises(ValueError, match="3 outputs, but there are 2 class names"):
        predict_image(MeanColor(), greenish, NAMES[:2], to_tensor, "cpu")


def test_the_plot_shows_picture_label_and_all_probabilities(
    greenish, to_tensor, tmp_path, monkeypatch
):
    monkeypatch.setattr(plt, "show", lambda: None)
    greenish.save(tmp_path / "photo.png")
    arguments = (tmp_path / "photo.png", NAMES, to_tensor, "cpu")
    prediction = pred_and_plot_image(MeanColor(), *arguments)
    assert prediction == predict_image(MeanColor(), *arguments)
    photo, bars = plt.gcf().axes
    assert photo.images[0].get_array().shape == (10, 20, 3)
    assert photo.get_title().startswith("green, 9")
    widths = {
        label.get_text(): bar.get_width()
        for label, bar in zip(bars.get_yticklabels(), bars.patches, strict=True)
    }
    assert widths == pytest.approx(prediction.probabilities)
    plt.close()


def test_names_with_dollar_signs_are_no_formulas(greenish):
    """matplotlib would read $...$ as mathematics, and stop at what it cannot read."""
    names = ["$\\frac$", "5$", "a$b$c"]
    prediction = Prediction(names[0], 0.5, dict.fromkeys(names, 0.25) | {names[0]: 0.5})
    figure = plot_prediction(greenish, prediction)
    figure.draw_without_rendering()
    photo, bars = figure.axes
    assert photo.get_title().startswith("$\\frac$, 50")
    assert [label.get_text() for label in bars.get_yticklabels()] == names[::-1]
    plt.close()


# The command


@pytest.fixture
def photo(tmp_path, picture):
    picture.save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def weights(tmp_path):
    """A file of `python -m going_modular.train`, as far as a prediction can tell."""
    names = ["a", "b", "c", "d", "e"]
    return write_vit(tiny_vit(), tmp_path / "vit.safetensors", class_names=names)


@pytest.mark.parametrize("size", [32, (24, 40), (40, 24)])
@pytest.mark.parametrize("normalization", [IMAGENET, HALF])
def test_the_command_predicts_as_the_model_was_evaluated(
    size, normalization, photo, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    vit, names = tiny_vit(image_size=size), ["a", "b", "c", "d", "e"]
    path = tmp_path / "vit.safetensors"
    write_vit(vit, path, class_names=names, normalization=normalization)
    predictions.main([str(photo), "--weights", str(path)])
    transform = evaluation_transform(size, *normalization)
    images = transform(Image.open(photo)).unsqueeze(0)
    expected = vit(images).softmax(dim=1)[0].tolist()
    first, *lines, last = capsys.readouterr().out.splitlines()
    assert first == names[expected.index(max(expected))]
    assert lines == [f"  {p:6.1%}  {name}" for p, name in zip(expected, names, strict=True)]
    assert last == "picture: photo_prediction.png"
    with Image.open(tmp_path / "photo_prediction.png") as drawn:
        assert drawn.width > 500


def test_the_picture_is_written_where_it_says(photo, weights, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for output, written in (("a.pdf", "a.pdf"), ("b", "b.png")):
        predictions.main([str(photo), "--weights", str(weights), "--output", output])
        assert capsys.readouterr().out.splitlines()[-1] == f"picture: {written}"
        assert (tmp_path / written).stat().st_size > 1000


def damaged_weights(kind, tmp_path):
    names = {"class_names": ["a", "b", "c", "d", "e"]}
    path = tmp_path / "damaged.safetensors"
    if kind == "nan":
        vit = tiny_vit()
        torch.nn.init.constant_(vit.head.weight, float("nan"))
        write_vit(vit, path, **names)
    elif kind == "gray":
        write_vit(tiny_vit(in_channels=1), path, **names)
    elif kind == "nameless":
        write_vit(tiny_vit(), path)
    elif kind == "other project":
        save_file(to_timm(tiny_vit()), path)
    elif kind == "half":
        write_vit(tiny_vit(), path, **names)
        path.write_bytes(path.read_bytes()[:1000])
    elif kind == "config":
        save_file(tiny_vit().state_dict(), path, {"config": '{"image_size": 48}'})
    elif kind == "folder":
        path.mkdir()
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nan", "not numbers .NaN.*lower learning rate"),
        ("gray", "expected images of shape .B, 1, 32, 32."),
        ("nameless", "does not name its classes"),
        ("other project", "was not written by"),
        ("half", "1000 bytes. cannot be read"),
        ("config", "is damaged"),
        ("folder", "no weights in the folder"),
        ("missing", "no file of weights"),
    ],
)
def test_weights_that_cannot_be_used_are_one_error(kind, message, photo, tmp_path, capsys):
    path = damaged_weights(kind, tmp_path)
    with pytest.raises(SystemExit) as stop:
        predictions.main([str(photo), "--weights", str(path), "--output", str(tmp_path / "p.png")])
    printed = capsys.readouterr()
    assert stop.value.code == 2 and re.search(message, printed.err) and not printed.out
    (line,) = printed.err.splitlines()
    assert line.startswith("python -m going_modular.predictions: error: ")
    assert not (tmp_path / "p.png").exists()


def test_photos_that_cannot_be_read_are_one_error(weights, tmp_path, capsys):
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    for name, message in (
        ("text.jpg", r"text\.jpg cannot be read as a picture"),
        ("empty.png", r"empty\.png cannot be read as a picture"),
        ("folder.png", r"folder\.png cannot be read as a picture"),
        ("none.png", "there is no picture at"),
    ):
        with pytest.raises(SystemExit) as stop:
            predictions.main([str(tmp_path / name), "--weights", str(weights)])
        assert stop.value.code == 2 and re.search(message, capsys.readouterr().err)


def test_outputs_that_cannot_be_written_are_one_error(photo, weights, tmp_path, capsys):
    (tmp_path / "folder.png").mkdir()
    for output, message in (
        ("nowhere/p.png", "there is no folder .*nowhere"),
        ("photo.png/p.png", r"there is no folder .*photo\.png"),
        ("p.xyz", "xyz.* is not supported"),
        ("folder.png", "folder.png"),
    ):
        with pytest.raises(SystemExit) as stop:
            arguments = [str(photo), "--weights", str(weights)]
            predictions.main([*arguments, "--output", str(tmp_path / output)])
        assert stop.value.code == 2 and re.search(message, capsys.readouterr().err)
        plt.close("all")


def test_a_figure_and_its_command_name_what_they_can(photo, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [])
    names = ["寿司", "b", "c", "d", "e"]
    path = write_vit(tiny_vit(), tmp_path / "vit.safetensors", class_names=names)
    predictions.main([str(photo), "--weights", str(path), "--output", str(tmp_path / "p.png")])
    printed = capsys.readouterr()
    assert "  寿司\n" in printed.out
    (line,) = printed.err.splitlines()
    assert "in the figure class 1 is 寿司" in line


def test_a_console_that_cannot_print_a_name_shows_question_marks(photo, tmp_path, monkeypatch):
    names = ["寿司", "b", "c", "d", "e"]
    path = write_vit(tiny_vit(), tmp_path / "vit.safetensors", class_names=names)
    console = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", console)
    predictions.main([str(photo), "--weights", str(path), "--output", str(tmp_path / "p.png")])
    console.flush()
    assert b"%  ??\n" in console.buffer.getvalue()
