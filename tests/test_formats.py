"""Weights as people have them: wrapped, with prefixes, in folders, under any name."""

import argparse
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_vit import tiny_vit
from torch import nn

from going_modular.images.transforms import IMAGENET
from going_modular.vit.export import to_huggingface, to_jax, to_timm, to_torchvision
from going_modular.vit.files import read_weights
from going_modular.vit.weights import load_vit, normalization_of

HEADS = {"num_heads": 3}


def same(vit, other):
    images = torch.randn(2, 3, *vit.config.image_hw, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return torch.equal(vit(images), other(images))


# Heads of another form


@pytest.mark.parametrize(
    ("write", "place"),
    [
        (to_torchvision, "heads."),  # model.heads = nn.Linear(...), as in the chapter
        (to_torchvision, "heads.0."),  # nn.Sequential(nn.Linear(...))
        (to_torchvision, "heads.1."),  # nn.Sequential(nn.Dropout(), nn.Linear(...))
        (to_torchvision, "heads.classifier."),
        (to_timm, "head.1."),
        (to_timm, "head.fc."),
        (to_huggingface, "classifier.0."),
    ],
)
def test_a_new_head_is_found_in_its_place(tmp_path, write, place):
    vit = tiny_vit()
    old = {"heads.": "heads.head.", "head.": "head.", "classif": "classifier."}
    published = next(name for start, name in old.items() if place.startswith(start))
    moved = {name.replace(published, place, 1): tensor for name, tensor in write(vit).items()}
    torch.save(moved, tmp_path / "mine.pth")
    loaded = load_vit(tmp_path / "mine.pth", layer_norm_eps=1e-6, **HEADS)
    assert same(vit, loaded)
    new = load_vit(tmp_path / "mine.pth", head=False, num_classes=2, **HEADS)
    assert new.head.weight.shape == (2, 24)


def test_a_head_of_several_layers_is_refused_or_left_out(tmp_path):
    tensors = to_torchvision(tiny_vit(num_classes=0))
    head = nn.Sequential(nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 5))
    tensors |= {f"heads.{name}": tensor for name, tensor in head.state_dict().items()}
    torch.save(tensors, tmp_path / "deep.pth")
    with pytest.raises(ValueError, match=r"unknown: heads\.0\.weight"):
        load_vit(tmp_path / "deep.pth", **HEADS)


# Wrappers, prefixes, endings


@pytest.mark.parametrize("key", ["model", "state_dict", "model_state_dict", "net", "teacher"])
@pytest.mark.parametrize("name", ["x.pth", "x.ckpt", "x.pth.tar", "x", "x.safetensors"])
def test_wrappers_and_endings_do_not_matter(tmp_path, capsys, key, name):
    vit = tiny_vit()
    content = {key: to_timm(vit), "epoch": 1, "args": argparse.Namespace(lr=1e-3, name="a")}
    content["best"], content["history"] = np.float64(0.9), {"loss": [1.0, 0.5]}
    torch.save(content, tmp_path / name)
    assert same(vit, load_vit(tmp_path / name, **HEADS))
    assert capsys.readouterr().out == f"{name}: the tensors are those under {key}\n"


@pytest.mark.parametrize("prefix", ["model.", "module.", "module.model.", "_orig_mod."])
@pytest.mark.parametrize("write", [to_timm, to_torchvision, to_huggingface])
def test_a_prefix_that_all_names_share_is_left_out(tmp_path, capsys, prefix, write):
    vit = tiny_vit(layer_norm_eps=1e-12 if write is to_huggingface else 1e-6)
    tensors = {prefix + name: tensor for name, tensor in write(vit).items()}
    torch.save({"state_dict": tensors}, tmp_path / "x.ckpt")
    assert same(vit, load_vit(tmp_path / "x.ckpt", **HEADS))
    assert f'"{prefix}" before each name was left out' in capsys.readouterr().out


def test_npz_and_safetensors_under_other_names(tmp_path):
    vit = tiny_vit(gelu="tanh")
    with (tmp_path / "paper.bin").open("wb") as file:
        np.savez(file, **to_jax(vit))
    assert same(vit, load_vit(tmp_path / "paper.bin"))
    vit = tiny_vit()
    save_file(to_timm(vit), tmp_path / "weights.pt")
    assert same(vit, load_vit(tmp_path / "weights.pt", **HEADS))
    torch.save(to_timm(vit), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert same(vit, load_vit(tmp_path / "old.pt", **HEADS))


def refused(content, path, *words):
    torch.save(content, path)
    with pytest.raises(ValueError) as error:
        read_weights(path)
    text = str(error.value)
    assert all(word in text for word in (path.name, *words)), text
    assert "weights_only" not in text and "\033" not in text


def test_what_is_no_single_vit_is_named(tmp_path):
    tensors, path = to_timm(tiny_vit()), tmp_path / "x.pth"
    refused({"student": tensors, "teacher": tensors}, path, "student and teacher", "alone")
    refused({"epoch": 1, "optimizer": {"state": {}}}, path, "epoch, optimizer")
    refused({"conv1.weight": torch.zeros(3)}, path, "no tensors of a ViT", "conv1.weight")
    refused({}, path, "nothing")
    refused(torch.zeros(3), path, "holds a Tensor", "state_dict()")


class Recorder:
    """An object of a class that only the trainer's program has."""

    def __init__(self):
        self.values = [1]


@pytest.mark.parametrize("new", [True, False])
def test_a_file_that_needs_code_is_refused_in_one_line(tmp_path, new):
    path = tmp_path / "x.pth"
    content = {"model": to_timm(tiny_vit()), "log": Recorder()}
    torch.save(content, path, _use_new_zipfile_serialization=new)
    with pytest.raises(ValueError) as error:
        read_weights(path)
    text = str(error.value)
    assert "Nothing was run" in text and "torch.save(model.state_dict(), ...)" in text
    assert ("test_formats.Recorder" in text) == new and "\n" not in text
    torch.save(nn.Linear(2, 2), path)
    with pytest.raises(ValueError, match=r"torch\.nn\.modules\.linear\.Linear"):
        read_weights(path)


@pytest.mark.parametrize("name", ["x.pth", "x.npz"])
def test_a_bit_that_has_changed_on_the_disk_is_noticed(tmp_path, name):
    path, tensors = tmp_path / name, to_timm(tiny_vit())
    weight = tensors["head.weight"].numpy()
    if name == "x.npz":
        np.savez(path, **{key: tensor.numpy() for key, tensor in tensors.items()})
    else:
        torch.save(tensors, path)
    content = bytearray(path.read_bytes())
    content[bytes(content).index(weight.tobytes()) + 1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} \(\d+ bytes\) .* part .* is damaged"):
        read_weights(path)


# Folders


def write_folder(folder, vit, **changes):
    """A folder as Hugging Face's `save_pretrained` writes it."""
    folder.mkdir()
    save_file(to_huggingface(vit, generation=4), folder / "model.safetensors")
    config = {"model_type": "vit", "hidden_size": 24, "num_attention_heads": 3}
    config |= {"layer_norm_eps": 1e-6, "hidden_act": "gelu", "image_size": 32}
    (folder / "config.json").write_text(json.dumps(config | changes))
    colors = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (folder / "preprocessor_config.json").write_text(json.dumps(colors))
    return folder


@pytest.mark.parametrize(("act", "gelu"), [("gelu", "exact"), ("gelu_new", "tanh")])
def test_a_folder_tells_heads_eps_gelu_and_colors(tmp_path, capsys, act, gelu):
    vit = tiny_vit(gelu=gelu, layer_norm_eps=1e-6)
    folder = write_folder(tmp_path / "hub", vit, hidden_act=act)
    for path in (folder, folder / "model.safetensors"):
        loaded = load_vit(path)
        assert loaded.config == vit.config and same(vit, loaded)
        assert normalization_of(path) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
        assert "config.json tells num_heads=3" in capsys.readouterr().out
    shutil.move(folder / "model.safetensors", folder / "pytorch_model.bin")  # told by content
    assert same(vit, load_vit(folder))


def test_a_folder_in_parts(tmp_path):
    vit = tiny_vit(layer_norm_eps=1e-6)
    folder = write_folder(tmp_path / "hub", vit)
    tensors = to_huggingface(vit)
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {f"model-0000{i}-of-00002.safetensors": names[i - 1 :: 2] for i in (1, 2)}
    for part, its in parts.items():
        save_file({name: tensors[name] for name in its}, folder / part)
    index = {"weight_map": {name: part for part, its in parts.items() for name in its}}
    listed = folder / "model.safetensors.index.json"
    listed.write_text(json.dumps(index))
    assert same(vit, load_vit(folder))
    (folder / part).rename(tmp_path / part)
    with pytest.raises(FileNotFoundError, match=part):
        load_vit(folder)
    for wrong in ({}, {"weight_map": {"a": f"../{part}"}}, {"weight_map": {"a": ""}}, []):
        listed.write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json"):
            load_vit(folder)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("config.json", "{", "config.json beside it is damaged"),
        ("config.json", "[1]", "config.json beside it holds a list"),
        ("config.json", '{"hidden_size": 24, "hidden_act": "relu"}', "'relu', not of a GELU"),
        ("preprocessor_config.json", '{"image_mean": 1, "image_std": 1}', "expected image_mean"),
    ],
)
def test_a_file_beside_the_weights_that_is_damaged_is_named(tmp_path, name, text, words):
    folder = write_folder(tmp_path / "hub", tiny_vit())
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=words):
        load_vit(folder)


def test_a_config_of_another_model_does_not_count_and_that_is_said(tmp_path, capsys):
    folder = write_folder(tmp_path / "hub", tiny_vit(), hidden_size=999)
    assert "config.json tells of another model, of width 999" in printed(load_vit, folder, capsys)
    assert load_vit(folder).config.layer_norm_eps == 1e-12  # as models under these names have
    assert normalization_of(folder) == ((0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize(
    ("changes", "colors"),
    [
        (
            {"pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]}},
            ((0.1, 0.2, 0.3), (1,) * 3),
        ),
        ({"pretrained_cfg": {"mean": [0.1] * 3}}, IMAGENET),
        ({"pretrained_cfg": [1]}, IMAGENET),
        ({}, IMAGENET),
    ],
)
def test_timms_config_tells_the_colors(tmp_path, changes, colors):
    save_file(to_timm(tiny_vit()), tmp_path / "model.safetensors")
    config = {"architecture": "vit_tiny_patch16_224", "num_features": 24, **changes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert normalization_of(tmp_path) == colors


def test_colors_that_are_not_normalized_stay_as_they_are(tmp_path):
    folder = write_folder(tmp_path / "hub", tiny_vit())
    (folder / "preprocessor_config.json").write_text('{"do_normalize": false}')
    assert normalization_of(folder) == ((0.0,) * 3, (1.0,) * 3)


# What is guessed is said


def printed(function, argument, capsys):
    """What a function prints when it is called."""
    capsys.readouterr()
    function(argument)
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("D", "write", "heads", "said"),
    [
        (192, to_timm, 3, False),
        (768, to_torchvision, 12, False),
        (768, to_timm, 12, True),  # timm has ViTs of this width with 16
        (256, to_torchvision, 4, True),  # 64 numbers a head
        (1408, to_timm, 16, False),
    ],
)
def test_a_guessed_number_of_heads_is_said(capsys, D, write, heads, said):
    vit = tiny_vit(embedding_dim=D, num_heads=heads, mlp_dim=8, num_layers=1)
    assert load_vit(write(vit)).config.num_heads == heads
    assert (f"{heads} heads are a guess" in capsys.readouterr().out) == said
    load_vit(write(vit), num_heads=heads)
    assert capsys.readouterr().out == ""


def test_a_head_that_knows_nothing_is_said(tmp_path, capsys):
    """As in the official checkpoints of ImageNet-21k."""
    vit = tiny_vit(gelu="tanh")
    for parameter in vit.head.parameters():
        nn.init.zeros_(parameter)
    np.savez(tmp_path / "21k.npz", **to_jax(vit))
    load_vit(tmp_path / "21k.npz")
    assert "21k.npz: the head is all zero, so it knows nothing yet" in capsys.readouterr().out
    load_vit(tmp_path / "21k.npz", head=False)
    load_vit(to_jax(tiny_vit()))
    assert capsys.readouterr().out == ""


# What no ViT holds


@pytest.mark.parametrize(
    "array",
    [np.array(["a", "b"]), np.array([b"ab"]), np.zeros(2, "V4"), np.zeros(2, "M8[s]")],
    ids=lambda array: str(array.dtype),
)
def test_arrays_of_no_numbers_are_named(tmp_path, array):
    np.savez(tmp_path / "x.npz", **to_jax(tiny_vit()), extra=array)
    with pytest.raises(ValueError, match=r"x\.npz is not a ViT .*: extra holds .*, not numbers"):
        read_weights(tmp_path / "x.npz")


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(5, 24).to_sparse(),
        lambda: torch.zeros(5, 24, device="meta"),
        lambda: torch.nested.nested_tensor([torch.zeros(3), torch.zeros(5)]),
    ],
    ids=["sparse", "meta", "nested"],
)
def test_tensors_without_all_their_numbers_are_named(tmp_path, make):
    refused({**to_timm(tiny_vit()), "head.weight": make()}, tmp_path / "x.pth", "head.weight")


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ('{"weight_map": {"a": 5}}', ValueError, "no file of its folder: 5"),
        ('{"weight_map": {"a": "../x"}}', ValueError, "no file of its folder: '../x'"),
        ("[" * 99_999, ValueError, "is damaged: expected JSON"),
        ('{"weight_map": {"a": "' + "x" * 300 + '"}}', FileNotFoundError, "no file of weights"),
        ('{"weight_map": {"a": "x\\u0000"}}', FileNotFoundError, "no file of weights"),
    ],
)
def test_a_list_of_parts_that_names_no_part(tmp_path, text, error, words):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(error, match=words):
        read_weights(tmp_path)
