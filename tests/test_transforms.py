"""The transform of evaluation, for squares and for all other shapes."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import ViT_B_16_Weights

from going_modular.images.transforms import (
    HALF,
    IMAGENET,
    ResizeAndCrop,
    denormalize,
    evaluation_transform,
    to_normalized,
)

# width, height: square, wide, high, narrow, smaller and larger than the crop
SHAPES = [(40, 40), (300, 200), (201, 299), (50, 400), (13, 9), (1000, 37), (1, 3)]


def random_picture(width, height):
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [16, 24, 112])
@pytest.mark.parametrize("normalization", [IMAGENET, HALF])
def test_squares_are_torchvisions_preset_to_the_bit(shape, size, normalization):
    picture = random_picture(*shape)
    preset = ViT_B_16_Weights.DEFAULT.transforms(
        crop_size=size, resize_size=size * 8 // 7, **normalization._asdict()
    )
    expected = preset(picture)
    for transform in (
        evaluation_transform(size, *normalization),
        evaluation_transform((size, size), *normalization),
        ResizeAndCrop((size, size), (size * 8 // 7,) * 2, *normalization),
    ):
        assert torch.equal(transform(picture), expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [(16, 24), (24, 16), (8, 112)])
def test_other_shapes_cover_eight_sevenths_and_keep_the_aspect_ratio(shape, size):
    (width, height), (H, W) = shape, size
    picture = random_picture(width, height)
    # The smallest scale at which the picture covers 8/7 of the size
    scale = max((H * 8 // 7) / height, (W * 8 // 7) / width)
    resized = picture.resize(
        (int(scale * width + 1e-6), int(scale * height + 1e-6)), Image.Resampling.BILINEAR
    )
    left, top = round((resized.width - W) / 2), round((resized.height - H) / 2)
    middle = resized.crop((left, top, left + W, top + H))
    seen = evaluation_transform(size)(picture)
    assert seen.shape == (3, H, W)
    colors = denormalize(seen)
    np.testing.assert_allclose(colors, np.asarray(middle) / 255, atol=1e-6)


def test_the_middle_of_a_wide_picture_is_seen_by_a_wide_model():
    """Red, green and blue thirds: the model's shape decides how much of them it sees."""
    picture = Image.new("RGB", (300, 100), "red")
    picture.paste("lime", (100, 0, 200, 100))
    picture.paste("blue", (200, 0, 300, 100))
    wide = denormalize(evaluation_transform((56, 168))(picture))
    assert wide[28, 5].argmax() == 0 and wide[28, 84].argmax() == 1 and wide[28, 162].argmax() == 2
    square = denormalize(evaluation_transform(56)(picture))
    assert (square.argmax(axis=2) == 1).all()


def test_the_transform_says_what_it_does():
    transform = evaluation_transform((24, 40), *HALF)
    assert transform.crop_size == [24, 40] and transform.resize_size == [27, 45]
    assert transform.mean == transform.std == [0.5, 0.5, 0.5]
    for text in ("crop_size=[24, 40]", "resize_size=[27, 45]", "std=[0.5, 0.5, 0.5]"):
        assert text in str(transform)
    square = evaluation_transform((24, 24))
    assert square.crop_size == [24] and square.mean == list(IMAGENET.mean)


def test_pictures_and_tensors_are_normalized_and_back():
    picture = random_picture(6, 4)
    pixels = torch.from_numpy(np.asarray(picture).copy()).movedim(-1, 0)
    for normalization in (IMAGENET, HALF):
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in normalization)
        expected = (pixels / 255 - mean) / std
        for source in (picture, pixels):
            normalized = to_normalized(*normalization)(source)
            assert type(normalized) is torch.Tensor
            torch.testing.assert_close(normalized, expected)
        colors = denormalize(expected, *normalization)
        np.testing.assert_allclose(colors, np.asarray(picture) / 255, atol=1e-6)
    for size in (32, (24, 40)):
        image, tensor = (evaluation_transform(size)(source) for source in (picture, pixels))
        assert image.shape == tensor.shape and type(tensor) is torch.Tensor
