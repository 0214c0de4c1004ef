"""What the figures show, number by number."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from going_modular.images import transforms
from going_modular.images.transforms import IMAGENET_MEAN, IMAGENET_STD
from going_modular.vit import plots


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def shown_by(axis):
    return np.asarray(axis.images[0].get_array())


def normalized(colors):
    mean, std = (torch.tensor(t).view(3, 1, 1) for t in (IMAGENET_MEAN, IMAGENET_STD))
    return (colors - mean) / std


def test_images_are_drawn_in_their_own_colors():
    colors = torch.rand(2, 3, 4, 6)
    seen = transforms.denormalize(normalized(colors))
    np.testing.assert_allclose(seen, colors.permute(0, 2, 3, 1), atol=1e-6)
    seen = transforms.denormalize((colors - 0.5) / 0.5, mean=[0.5] * 3, std=[0.5] * 3)
    np.testing.assert_allclose(seen, colors.permute(0, 2, 3, 1), atol=1e-6)


def test_attention_is_light():
    """The patch with the most attention in an image keeps its color; 0 is black."""
    colors = torch.rand(2, 3, 8, 12)
    attention = torch.zeros(2, 2, 3)
    attention[0, 0, 0], attention[1] = 0.02, 0.3
    figure = plots.plot_attention(normalized(colors), attention, ["one", "two"])
    top, bottom = np.array(figure.axes).reshape(2, 2)
    for axis, image in zip(top, colors, strict=True):
        np.testing.assert_allclose(shown_by(axis), image.permute(1, 2, 0), atol=1e-6)
    first, second = map(shown_by, bottom)
    np.testing.assert_allclose(first[0, 0], colors[0, :, 0, 0], atol=1e-6)
    assert first[6:, 8:].max() == 0
    np.testing.assert_allclose(second, colors[1].permute(1, 2, 0), atol=1e-6)
    assert [axis.get_title() for axis in top] == ["one", "two"]


def test_heads_are_rows_and_layers_columns():
    attention = torch.rand(4, 2, 3, 5)
    figure = plots.plot_heads(torch.zeros(3, 6, 10), attention, layers=[1, 4])
    axes = np.array(figure.axes).reshape(2, 3)
    for head in range(2):
        for column, layer in ((1, 1), (2, 4)):
            np.testing.assert_array_equal(shown_by(axes[head, column]), attention[layer - 1, head])
    assert [axis.get_title() for axis in axes[0, 1:]] == ["layer 1", "layer 4"]
    assert [axis.get_ylabel() for axis in axes[:, 1]] == ["head 1", "head 2"]


def test_a_dot_for_each_head():
    distances = torch.tensor([[10.0, 20.0], [30.0, 40.0], [50.0, 60.0]])
    _, axis = plt.subplots()
    plots.draw_attention_distance(axis, distances, 55.0)
    dots = [line for line in axis.lines if line.get_marker() == "o"]
    for line, of_head in zip(dots, distances.T, strict=True):
        np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3])
        np.testing.assert_array_equal(line.get_ydata(), of_head)


def test_each_tile_compares_its_own_patch():
    similarity = torch.rand(2, 3, 2, 3)
    figure = plots.plot_position_similarity(similarity)
    tiles = np.array(figure.axes[:-1]).reshape(2, 3)  # the last is the color bar
    for row in range(2):
        for column in range(3):
            image = tiles[row, column].images[0]
            np.testing.assert_array_equal(image.get_array(), similarity[row, column])
            assert image.get_clim() == (-1, 1)
    assert figure.axes[-1].get_ylabel() == "cosine similarity"


def test_filters_are_gray_where_they_are_zero():
    filters = torch.zeros(3, 3, 2, 2)
    filters[0, 0, 0, 0], filters[1, 2, 1, 1] = 0.2, -4.0
    figure = plots.plot_filters(filters, columns=2)
    first, second, _ = (shown_by(axis) for axis in figure.axes[:3])
    np.testing.assert_allclose(first[0, 0], [1, 0.5, 0.5])
    np.testing.assert_allclose(second[1, 1], [0.5, 0.5, 0])
    assert (first == 0.5).sum() == (second == 0.5).sum() == 11
    assert not figure.axes[3].images


def test_pictures_have_one_scale_with_a_label_and_their_own_without():
    images = torch.zeros(2, 3, 8, 8)
    pictures = {
        "one": torch.tensor([[[0.1, 0.2]], [[-0.3, 0.0]]]),
        "two": torch.tensor([[[0.5, 0.2]], [[0.1, 0.0]]]),
    }
    figure = plots.plot_beside_images(images, pictures, "unit", marked=1)
    below = figure.axes[2:6]
    expected = [picture for of_images in pictures.values() for picture in of_images]
    for axis, picture in zip(below, expected, strict=True):
        np.testing.assert_array_equal(shown_by(axis), picture)
        assert axis.images[0].get_clim() == pytest.approx((-0.3, 0.5))
        assert axis.patches[0].get_bbox().bounds == (0.5, -0.5, 1, 1)
    assert figure.axes[0].patches[0].get_bbox().bounds == (3.5, -0.5, 4, 8)
    assert figure.axes[-1].get_ylabel() == "unit"

    figure = plots.plot_beside_images(images, pictures)
    for axis, picture in zip(figure.axes[2:6], expected, strict=True):
        high = picture.abs().max().item()
        assert axis.images[0].get_clim() == pytest.approx((-high, high))
        assert axis.get_title() == f"±{high:.3f}"
    assert len(figure.axes) == 6
