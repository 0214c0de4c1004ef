"""Files of our own: what is stored comes back, and damage is an error that says so."""

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_vit import TINY, tiny_vit
from torch import nn

from going_modular import train
from going_modular.experiments import cross_validation
from going_modular.images.transforms import HALF, IMAGENET, Normalization
from going_modular.model_builder import ViT
from going_modular.training.recipes import RECIPES
from going_modular.vit import backbones
from going_modular.vit.export import to_huggingface, to_jax, to_timm, to_torchvision
from going_modular.vit.files import read_classifier, read_vit, stored_class_names, write_vit
from going_modular.vit.weights import load_vit, normalization_of

NAMES = ["a", "b", "c", "d", "e"]


@pytest.fixture
def path(tmp_path):
    """A classifier of five classes."""
    return write_vit(tiny_vit(), tmp_path / "vit.safetensors", class_names=NAMES)


def metadata_of(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def rewrite(path, tensors=None, **entries):
    """The same file with other tensors, or other entries in its metadata."""
    metadata = metadata_of(path) | entries
    tensors = read_vit(path)[0].state_dict() if tensors is None else tensors
    save_file(tensors, path, {k: v for k, v in metadata.items() if v is not None})


def rewrite_config(path, **fields):
    config = json.loads(metadata_of(path)["config"])
    rewrite(path, config=json.dumps(config | fields))


# What is stored


@pytest.mark.parametrize(
    "options",
    [
        {"image_size": (24, 40), "gelu": "tanh", "layer_norm_eps": 1e-5},
        {"image_size": (16, 64), "pool": "mean"},  # 2 × 8 patches, as many as 4 × 4
        {"pos_embedding": "learned_2d", "representation_size": 16},
        {"pos_embedding": "sincos_2d", "num_classes": 0, "embedding_dim": 24, "num_heads": 2},
    ],
)
def test_the_model_comes_back_with_its_configuration_and_notes(tmp_path, options):
    vit = tiny_vit(**options)
    path = write_vit(vit, tmp_path / "vit.safetensors", log=[1, None], note="寿司")
    again, notes = read_vit(path)
    assert again.config == vit.config and notes == {"log": [1, None], "note": "寿司"}
    images = torch.randn(2, 3, *vit.config.image_hw)
    for other in (again, load_vit(path)):
        assert not other.training
        assert other.config == vit.config and torch.equal(other(images), vit(images))


def test_the_normalization_is_stored_and_older_files_have_imagenets(path, tmp_path):
    assert normalization_of(path) == IMAGENET == Normalization()
    assert read_classifier(path).transform.mean == list(IMAGENET.mean)
    other = Normalization((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    second = tmp_path / "second.safetensors"
    write_vit(tiny_vit(), second, normalization=other, class_names=NAMES)
    assert normalization_of(second) == other and read_vit(second)[1] == {"class_names": NAMES}
    transform = read_classifier(second).transform
    assert transform.mean == [0.1, 0.2, 0.3] and transform.std == [0.4, 0.5, 0.6]
    rewrite(second, normalization=None)  # as it was written before
    assert normalization_of(second) == IMAGENET


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (ViT.state_dict, IMAGENET),
        (to_torchvision, IMAGENET),
        (to_timm, IMAGENET),
        (to_huggingface, HALF),
        (to_jax, HALF),
    ],
)
def test_colors_are_the_same_from_the_weights_to_the_prediction(tmp_path, write, expected):
    """Weights of others -> our model -> our file -> the transform of the classifier."""
    weights = {name: torch.as_tensor(values) for name, values in write(tiny_vit()).items()}
    save_file(weights, tmp_path / "theirs.safetensors")
    assert normalization_of(weights) == expected
    source = tmp_path / "theirs.safetensors"
    vit, normalization = load_vit(source, num_heads=3), normalization_of(source)
    ours = tmp_path / "ours.safetensors"
    write_vit(vit, ours, normalization=normalization, class_names=NAMES)
    classifier = read_classifier(ours)
    assert classifier.transform.mean == list(expected.mean)
    assert classifier.transform.std == list(expected.std)
    gray = classifier.transform(Image.new("RGB", (50, 40), (51, 51, 51)))[:, 0, 0]  # 0.2
    by_hand = [(0.2 - mean) / std for mean, std in zip(*expected, strict=True)]
    torch.testing.assert_close(gray, torch.tensor(by_hand))


def test_files_of_numpy_and_pickle_have_the_normalization_of_their_names(tmp_path):
    np.savez(tmp_path / "vit.npz", **to_jax(tiny_vit()))
    torch.save(to_timm(tiny_vit()), tmp_path / "vit.pth")
    assert normalization_of(tmp_path / "vit.npz") == HALF
    assert normalization_of(tmp_path / "vit.pth") == IMAGENET
    with pytest.raises(ValueError, match="not the names of a ViT"):
        normalization_of({"layer1.conv": torch.zeros(3)})


def test_class_names_are_those_of_the_notes(path, tmp_path):
    assert stored_class_names(path) == NAMES
    bare = write_vit(tiny_vit(), tmp_path / "bare.safetensors")
    save_file(to_timm(tiny_vit()), tmp_path / "timm.safetensors")
    torch.save(to_timm(tiny_vit()), tmp_path / "timm.pth")
    for other in (bare, tmp_path / "timm.safetensors", tmp_path / "timm.pth"):
        assert stored_class_names(other) is None
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        stored_class_names(tmp_path / "none.safetensors")


def test_a_classifier_has_what_a_prediction_needs(tmp_path):
    vit = tiny_vit(image_size=(24, 40))
    path = write_vit(vit, tmp_path / "wide.safetensors", class_names=NAMES, normalization=HALF)
    model, transform, class_names = read_classifier(path)
    assert class_names == NAMES
    images = transform(Image.new("RGB", (70, 50))).unsqueeze(0)
    assert images.shape == (1, 3, 24, 40) and torch.equal(model(images), vit(images))


def test_what_a_file_could_not_give_back_is_not_written(tmp_path):
    for write, words in (
        (lambda: write_vit(tiny_vit(), tmp_path / "vit.pth"), r"ends in \.safetensors.*vit\.pth"),
        (lambda: write_vit(ViT(TINY, nn.AvgPool2d(1)), tmp_path / "a.safetensors"), "a stem"),
        (lambda: write_vit(tiny_vit(), tmp_path / "a.safetensors", config=1), '"config"'),
        (
            lambda: write_vit(
                tiny_vit(), tmp_path / "a.safetensors", normalization=Normalization([0.5], [0.5])
            ),
            "three numbers",
        ),
        (
            lambda: write_vit(tiny_vit(), tmp_path / "a.safetensors", class_names=["a", "a"]),
            "different class names",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            write()
    assert list(tmp_path.iterdir()) == []


# Read once


@pytest.fixture
def opened(monkeypatch):
    """The names of the files of weights that are opened, one entry for each time."""
    names = []

    def count(owner, name):
        original = getattr(owner, name)

        def counting(file, *rest, **options):
            names.append(Path(getattr(file, "name", file)).name)
            return original(file, *rest, **options)

        monkeypatch.setattr(owner, name, counting)

    count(torch, "load")
    count(np, "load")
    for name, module in list(sys.modules.items()):
        for function in ("safe_open", "load_file"):  # wherever they are imported
            if name.startswith("going_modular.") and hasattr(module, function):
                count(module, function)
    return names


@pytest.mark.parametrize("name", ["vit.safetensors", "timm.safetensors", "jax.npz", "timm.pth"])
def test_a_command_reads_its_file_of_weights_once(path, tmp_path, opened, name):
    """For its tensors, names, colors and classes; a ViT-L has more than a gigabyte."""
    save_file(to_timm(tiny_vit()), tmp_path / "timm.safetensors")
    np.savez(tmp_path / "jax.npz", **to_jax(tiny_vit()))
    torch.save(to_timm(tiny_vit()), tmp_path / "timm.pth")
    backbones.load_vit_file(tmp_path / name)
    assert opened == [name]
    sizes = dict.fromkeys(("image_size", "patch_size", "num_heads", "pool", "architecture"))
    options = SimpleNamespace(weights=tmp_path / name, seed=0, **sizes)
    train.choose_vit(options, RECIPES["chapter"], NAMES)
    assert opened == [name] * 2
    if name == path.name:
        read_classifier(path)
        assert opened == [name] * 3


@pytest.mark.parametrize("load", [backbones.load_drawn_dishes, cross_validation.our_backbone])
def test_our_backbone_is_read_once(opened, load):
    load()
    assert opened == [backbones.DRAWN_DISHES.name]


# What is damaged


def is_refused(path, *words, read=(read_vit, load_vit, normalization_of, stored_class_names)):
    for function in read:
        with pytest.raises(ValueError) as error:
            function(path)
        assert all(word in str(error.value) for word in (path.name, *words)), error.value


def test_a_missing_file_is_named(tmp_path):
    for path, words in (
        (tmp_path / "none.safetensors", "no file of weights at"),
        (tmp_path, "no weights in the folder"),
    ):
        for read in (read_vit, read_classifier, load_vit, normalization_of, stored_class_names):
            with pytest.raises(FileNotFoundError, match=words):
                read(path)


@pytest.mark.parametrize("kept", [0, 7, 8, 100, 0.5, 0.9, 1.1])
def test_a_file_that_is_cut_short_or_too_long(path, kept):
    data = path.read_bytes()
    size = kept if isinstance(kept, int) else round(kept * len(data))
    path.write_bytes((data + bytes(len(data)))[:size])
    is_refused(path, f"({size} bytes) cannot be read as weights")


def test_a_file_of_another_kind(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("these are no weights")
    is_refused(text, "begins with b'these ar'; expected what .safetensors")
    torch.save(to_timm(tiny_vit()), tmp_path / "vit.pth")
    is_refused(tmp_path / "vit.pth", "was not written by", "load_vit", read=[read_vit])
    save_file({"layer1.conv": torch.zeros(3)}, tmp_path / "resnet.safetensors")
    is_refused(tmp_path / "resnet.safetensors", "no tensors of a ViT")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"config": "{'hidden_size': 24}"}])
def test_weights_of_others_say_how_they_are_read(tmp_path, metadata):
    path = tmp_path / "model.safetensors"
    save_file(to_huggingface(tiny_vit()), path, metadata)
    is_refused(path, "was not written by", "load_vit", read=[read_vit, read_classifier])
    assert load_vit(path, num_heads=3).config.embedding_dim == 24
    assert normalization_of(path) == HALF and stored_class_names(path) is None


FIELDS = {
    "unknown": {"flash_attention": True},
    "missing layers": {"num_layers": 3},
    "too many layers": {"num_layers": 1},
    "absurd layers": {"num_layers": 10**9},
    "absurd width": {"embedding_dim": 3 * 2**60, "num_heads": 3},
    "other width": {"embedding_dim": 48},
    "other MLP": {"mlp_dim": 48},
    "other image": {"image_size": 64},
    "other patches": {"patch_size": 4},
    "no head": {"num_classes": 0},
    "other pool": {"pool": "mean"},
    "other positions": {"pos_embedding": "learned_2d"},
    "more layers before the head": {"representation_size": 8},
    "heads that do not fit": {"num_heads": 5},
    "a text": {"mlp_dim": "40"},
    "a fraction": {"mlp_dim": 40.5},
    "a list": {"num_heads": [3]},
    "a wrong pair": {"image_size": [[32], [32]]},
    "nothing": {"dropout": None},
    "text for a number": {"dropout": "0.1"},
    "not a number": {"layer_norm_eps": math.nan},
    "unknown choice": {"gelu": "relu"},
    "choice of another kind": {"pool": ["mean"]},
}


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
def test_a_configuration_that_is_not_that_of_the_tensors(path, fields):
    rewrite_config(path, **fields)
    is_refused(path, "damaged", "intact copy")


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        *(("config", text) for text in ("", "pt", "[]", "null", "1", '"ViT"', "[" * 9999)),
        *(("normalization", text) for text in ("{}", "[]", "1", "null5", '{"mean": [0, 0, 0]}')),
        ("normalization", '{"mean": [0, 0], "std": [1, 1]}'),
        ("normalization", '{"mean": [0, 0, 0], "std": [1, 1, 0]}'),
        ("normalization", '{"mean": [0, 0, NaN], "std": [1, 1, 1]}'),
        ("normalization", '{"mean": "abc", "std": "abc"}'),
        ("log", "not JSON"),
    ],
)
def test_metadata_of_the_wrong_kind(path, entry, text):
    rewrite(path, **{entry: text})
    is_refused(path, "damaged", "intact copy")


@pytest.mark.parametrize("names", ['"abcde"', "[1, 2, 3, 4, 5]", '["a", "a", "c", "d", "e"]', "{}"])
def test_class_names_of_the_wrong_kind(path, names):
    rewrite(path, class_names=names)
    is_refused(path, "class names", read=[read_classifier, stored_class_names])


def test_a_classifier_without_its_class_names(path):
    rewrite(path, class_names='["a", "b"]')
    is_refused(path, "2 classes for 5 outputs", read=[read_classifier])
    rewrite(path, class_names=None)
    is_refused(path, "does not name its classes", "--weights", read=[read_classifier])


def test_tensors_that_are_not_those_of_the_configuration(path):
    good = tiny_vit().state_dict()
    first = "patch_embedding.projection.weight"
    for tensors, words in (
        ({n: t for n, t in good.items() if n != "norm.bias"}, ["missing: norm.bias"]),
        (good | {"extra": torch.zeros(1)}, ["unknown: extra"]),
        (good | {"class_token": torch.zeros(24)}, ["class_token has shape (24,), not (1, 1, 24)"]),
        ({n: t.to(torch.int8) for n, t in good.items()}, [f"{first} holds torch.int8", " more"]),
        ({first: good[first]}, ["0 layers"]),
    ):
        rewrite(path, tensors)
        is_refused(path, *words)
        rewrite(path, good)
    read_vit(path)  # intact again


def test_random_bytes_never_end_in_another_error(path):
    """Also where a change hits the header, which PyTorch and safetensors read."""
    good, rng = path.read_bytes(), np.random.default_rng(0)
    header = 8 + int.from_bytes(good[:8], "little")
    refused = 0
    for place, byte in zip(rng.integers(0, header, 300), rng.integers(0, 256, 300), strict=True):
        path.write_bytes(good[:place] + bytes([byte]) + good[place + 1 :])
        try:
            read_classifier(path)
        except ValueError as error:
            assert path.name in str(error)
            refused += 1
    assert refused > 150


def test_too_large_for_memory_is_a_word_not_a_traceback(path):
    vit = tiny_vit(pos_embedding="none")
    write_vit(vit, path)
    rewrite_config(path, image_size=10**6)  # 10^14 positions, which are not stored
    is_refused(path, "not enough memory", read=[read_vit])


@pytest.mark.parametrize(
    "fields",
    [
        {"embedding_dim": 2**61 - 1},  # a prime number: to look for its divisors takes years
        {"image_size": 10**18, "patch_size": 10**18 - 1},
        {"layer_norm_eps": 10**400},
        {"dropout": -(10**400)},
    ],
)
def test_a_configuration_of_absurd_numbers_is_refused_at_once(path, fields):
    rewrite_config(path, **fields)
    is_refused(path, "damaged", "intact copy")


@pytest.mark.parametrize("numbers", ["1" + "0" * 400, "Infinity", "-1e999"])
def test_colors_that_no_float_holds(path, numbers):
    rewrite(path, normalization=f'{{"mean": [0, 0, {numbers}], "std": [1, 1, 1]}}')
    is_refused(path, "damaged", "three numbers")


def test_weights_that_are_too_large_for_memory_are_refused_by_load_vit_too(path):
    write_vit(tiny_vit(pos_embedding="none"), path)
    rewrite_config(path, image_size=10**6)  # a terabyte of positions, which are not stored
    is_refused(path, "not enough memory", read=[load_vit])
