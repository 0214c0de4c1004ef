"""Weights of other implementations, without those implementations (see test_peers)."""

import os
import re
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_vit import TINY, tiny_vit
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import VisionTransformer

from going_modular import data_setup, engine, utils
from going_modular.experiments.cross_validation import published_split, read_images
from going_modular.experiments.transfer import probe
from going_modular.images import downloads, transforms
from going_modular.images.reading import load_image
from going_modular.model_builder import ViT, create_vit
from going_modular.utils import CHECKOUT, bfloat16_instructions, give_random_values
from going_modular.vit import backbones, inspect
from going_modular.vit.backbones import load_pretrained_backbone
from going_modular.vit.export import to_huggingface, to_jax, to_timm, to_torchvision
from going_modular.vit.files import read_weights, write_vit
from going_modular.vit.weights import config_from_state_dict, load_vit, load_weights

SHARED = (CHECKOUT / os.environ.get("SHARED", "../shared")).resolve()
VIT_S_14 = SHARED / "weights/vit_small_patch14_224.timm.safetensors"

WRITERS = {
    "ours": ViT.state_dict,
    "torchvision": to_torchvision,
    "timm": to_timm,
    "hugging face": to_huggingface,
    "hugging face, files": lambda vit: to_huggingface(vit, generation=4),
    "jax": to_jax,
}
each_naming = pytest.mark.parametrize("naming", WRITERS)


def images_for(vit, count=2):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, *vit.config.image_hw, generator=generator)


def same_logits(vit, other):
    images = images_for(vit)
    with torch.inference_mode():
        return torch.equal(vit(images), other(images))


# There and back


@each_naming
@pytest.mark.parametrize("options", [{}, {"num_classes": 0}, {"image_size": (32, 40)}])
def test_written_and_loaded_again_it_is_the_same(naming, options):
    vit, other = tiny_vit(seed=1, **options), tiny_vit(seed=2, **options)
    eps = 1e-12 if naming.startswith("hugging") else 1e-6
    for module in vit.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = eps
    assert load_weights(other, WRITERS[naming](vit)) == []
    assert other.config.layer_norm_eps == other.norm.eps == eps
    assert same_logits(vit, other)


@pytest.mark.parametrize("naming", ["ours", "torchvision", "jax"])
def test_the_same_with_a_representation_layer(naming):
    vit, other = (tiny_vit(seed, representation_size=16) for seed in (1, 2))
    assert load_weights(other, WRITERS[naming](vit)) == []
    assert same_logits(vit, other)


@pytest.mark.parametrize("naming", ["ours", "timm", "jax"])
def test_the_same_with_mean_pooling(naming):
    vit, other = (tiny_vit(seed, pool="mean") for seed in (1, 2))
    written = WRITERS[naming](vit)
    assert load_weights(other, written) == []
    assert same_logits(vit, other)
    gelu = {"gelu": "exact"} if naming == "jax" else {}
    assert config_from_state_dict(written, num_heads=3, **gelu) == vit.config


@pytest.mark.parametrize("kind", ["learned_2d", "sincos_2d", "none"])
def test_positions_of_other_kinds_are_written_as_a_table(kind):
    vit, other = tiny_vit(1, pos_embedding=kind), tiny_vit(2)
    load_weights(other, to_timm(vit))
    assert same_logits(vit, other)
    with pytest.raises(ValueError, match="pos_embed"):
        load_weights(vit, to_timm(other))


def test_parts_that_others_lack_cannot_be_written():
    stem = nn.Conv2d(3, 3, 3, padding=1)
    for vit, write, words in (
        (tiny_vit(pool="mean"), to_torchvision, "torchvision has no ViT without a class"),
        (tiny_vit(pool="mean"), to_huggingface, "transformers has no ViT without a class"),
        (tiny_vit(representation_size=16), to_timm, "timm has no name for representation"),
        (tiny_vit(representation_size=16), to_huggingface, "representation_size=16"),
        (ViT(TINY, stem), to_timm, "timm has no place for a stem"),
    ):
        with pytest.raises(ValueError, match=words):
            write(vit)


def test_what_is_written_is_a_copy_that_can_be_saved(tmp_path):
    vit = tiny_vit()
    for write in (to_torchvision, to_timm, to_huggingface):
        written = write(vit)
        save_file(written, tmp_path / "vit.safetensors")
        before = vit(images_for(vit))
        for tensor in written.values():
            tensor.zero_()
        assert torch.equal(vit(images_for(vit)), before)


# The official layout


def test_the_official_layout_is_flaxs():
    """Names and shapes as in the paper's checkpoints, here with D = 24 and 3 heads."""
    written = to_jax(tiny_vit(num_layers=1, representation_size=16))
    block = "Transformer/encoderblock_0/"
    attention = block + "MultiHeadDotProductAttention_1/"
    assert {name: values.shape for name, values in written.items()} == {
        "cls": (1, 1, 24),
        "embedding/kernel": (8, 8, 3, 24),
        "embedding/bias": (24,),
        "Transformer/posembed_input/pos_embedding": (1, 17, 24),
        block + "LayerNorm_0/scale": (24,),
        block + "LayerNorm_0/bias": (24,),
        attention + "query/kernel": (24, 3, 8),
        attention + "query/bias": (3, 8),
        attention + "key/kernel": (24, 3, 8),
        attention + "key/bias": (3, 8),
        attention + "value/kernel": (24, 3, 8),
        attention + "value/bias": (3, 8),
        attention + "out/kernel": (3, 8, 24),
        attention + "out/bias": (24,),
        block + "LayerNorm_2/scale": (24,),
        block + "LayerNorm_2/bias": (24,),
        block + "MlpBlock_3/Dense_0/kernel": (24, 40),
        block + "MlpBlock_3/Dense_0/bias": (40,),
        block + "MlpBlock_3/Dense_1/kernel": (40, 24),
        block + "MlpBlock_3/Dense_1/bias": (24,),
        "Transformer/encoder_norm/scale": (24,),
        "Transformer/encoder_norm/bias": (24,),
        "pre_logits/kernel": (24, 16),
        "pre_logits/bias": (16,),
        "head/kernel": (16, 5),
        "head/bias": (5,),
    }


@pytest.mark.parametrize("representation_size", [0, 16])
def test_an_official_checkpoint_becomes_the_same_vit(tmp_path, representation_size):
    vit = tiny_vit(representation_size=representation_size, gelu="tanh")
    np.savez(tmp_path / "vit.npz", **to_jax(vit))
    loaded = load_vit(tmp_path / "vit.npz", num_heads=3)
    assert loaded.config == vit.config and same_logits(vit, loaded)


def test_another_number_of_heads_in_the_official_layout_is_noticed():
    with pytest.raises(ValueError, match=r"query/kernel has shape \(24, 3, 8\), not"):
        load_weights(tiny_vit(num_heads=4), to_jax(tiny_vit()))


def test_a_query_that_is_missing_in_the_official_layout_is_named():
    given = to_jax(tiny_vit())
    attention = "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/"
    del given[attention + "query/kernel"]
    with pytest.raises(ValueError, match=f"missing: {attention}query/kernel"):
        load_vit(given)


def test_files_that_torchvision_published_have_older_names():
    vit, other = tiny_vit(1), tiny_vit(2)
    published = {
        name.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): t
        for name, t in to_torchvision(vit).items()
    }
    assert load_weights(other, published) == [] and same_logits(vit, other)


# What does not fit


@each_naming
def test_one_error_lists_all_that_is_unknown_missing_or_wrong(naming):
    vit = tiny_vit(seed=1)
    before = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    given = dict(WRITERS[naming](tiny_vit(seed=2)))
    missing, wrong = list(given)[3], list(given)[-2]
    del given[missing]
    given[wrong] = given[wrong][1:]
    given["temperature"] = torch.zeros(1)
    with pytest.raises(ValueError) as error:
        load_weights(vit, given)
    lines = str(error.value).splitlines()
    assert "  unknown: temperature" in lines
    assert f"  missing: {missing.removeprefix('vit.')}" in lines
    shape = tuple(given[wrong].shape)
    assert any(f"  {wrong} has shape {shape}, not" in line for line in lines)
    assert len(lines) == 5
    assert all(torch.equal(before[n], t) for n, t in vit.state_dict().items())


def test_unknown_names_are_an_error():
    for load in (lambda w: load_weights(tiny_vit(), w), config_from_state_dict):
        with pytest.raises(ValueError, match=r"torchvision, .*timm.*JAX.*layer1\.conv"):
            load({"layer1.conv": torch.zeros(3)})


@each_naming
def test_a_head_is_left_out_on_request(naming):
    vit, other = tiny_vit(seed=1), tiny_vit(seed=2, num_classes=3)
    given = WRITERS[naming](vit)
    with pytest.raises(ValueError, match="head=False"):
        load_weights(other, given)
    head = other.head.weight.clone()
    left_out = load_weights(other, given, head=False)
    assert [name for name in given if name not in left_out] == list(given)[:-2]
    assert torch.equal(other.head.weight, head)
    assert torch.equal(other.encoder[1].mlp.expand.bias, vit.encoder[1].mlp.expand.bias)
    backbone = tiny_vit(seed=3, num_classes=0)
    assert load_weights(backbone, given, head=False) == left_out
    assert load_weights(other, WRITERS[naming](backbone), head=False) == []
    with pytest.raises(ValueError, match="missing"):
        load_weights(other, WRITERS[naming](backbone))


def test_a_representation_layer_goes_with_the_head():
    vit = tiny_vit(representation_size=16)
    names = ["representation.0.weight", "representation.0.bias"]
    head = ["head.weight", "head.bias"]
    plain = tiny_vit(num_classes=3)
    assert load_weights(plain, vit.state_dict(), head=False) == names + head
    with pytest.raises(ValueError, match=r"unknown: representation\.0\.weight"):
        load_weights(tiny_vit(), vit.state_dict())  # the head would see something else
    other = tiny_vit(seed=1, representation_size=16, num_classes=3)
    assert load_weights(other, vit.state_dict(), head=False) == head
    layer = other.representation[0].weight
    assert torch.equal(layer, vit.representation[0].weight)


@each_naming
def test_the_configuration_is_read_from_the_shapes(naming):
    for options in ({}, {"num_classes": 0}, {"image_size": 48, "mlp_dim": 32}):
        vit = tiny_vit(**options)
        found = config_from_state_dict(WRITERS[naming](vit), num_heads=3)
        eps = 1e-12 if naming.startswith("hugging") else 1e-6
        gelu = "tanh" if naming == "jax" else "exact"
        assert found == replace(TINY, layer_norm_eps=eps, gelu=gelu, **options)


def test_a_representation_layer_without_a_head_is_left_out_or_loaded():
    """As in Hugging Face's ViTModel, where it is the "pooler"."""
    sizes = {"num_classes": 0, "representation_size": 24}
    vit, without = tiny_vit(seed=1, **sizes), tiny_vit(seed=2, num_classes=0)
    for generation in (4, 5):
        given = to_huggingface(vit, generation)
        assert "embeddings.cls_token" in given  # no prefix: it has no classifier
        pooler = ["pooler.dense.weight", "pooler.dense.bias"]
        assert load_weights(without, given) == pooler
        other = tiny_vit(seed=3, **sizes)
        assert load_weights(other, given) == []
        assert torch.equal(other.representation[0].bias, vit.representation[0].bias)
        with pytest.raises(ValueError, match=r"missing: pooler\.dense\.weight"):
            load_weights(other, to_huggingface(without, generation))
    kept = tiny_vit(seed=4, representation_size=24)
    start = kept.representation[0].weight.clone()
    assert load_weights(kept, without.state_dict(), head=False) == []
    assert torch.equal(kept.representation[0].weight, start)


def test_interpolation_leaves_positions_that_make_no_square():
    wide = {"image_size": (16, 64)}  # 2 × 8 = 16 patches, as many as 4 × 4
    vit, other = tiny_vit(seed=1, **wide), tiny_vit(seed=2, **wide)
    load_weights(other, to_timm(vit), interpolate=True)
    assert same_logits(vit, other)
    for given, words in (
        (to_timm(tiny_vit(image_size=(24, 32))), r"pos_embed has shape \(1, 13, 24\)"),
        (to_timm(vit) | {"pos_embed": torch.zeros(5, 24)}, "pos_embed has shape"),
        ({k: v for k, v in to_timm(vit).items() if k != "pos_embed"}, "missing: pos"),
    ):
        with pytest.raises(ValueError, match=words):
            load_weights(other, given, interpolate=True)
    axes = tiny_vit(pos_embedding="learned_2d")
    larger = tiny_vit(pos_embedding="learned_2d", image_size=80)
    with pytest.raises(ValueError, match=r"pos_embedding has shape \(1, 8, 12\)"):
        load_weights(larger, axes.state_dict(), interpolate=True)


def test_a_hybrid_loads_its_own_weights_and_keeps_its_stems_eps():
    def hybrid(seed):
        stem = nn.Sequential(nn.Conv2d(3, 3, 1), nn.LayerNorm(32, eps=1e-3))
        return give_random_values(ViT(TINY, stem), seed).eval()

    vit, other = hybrid(1), hybrid(2)
    load_weights(other, vit.state_dict(), layer_norm_eps=1e-4)
    assert other.norm.eps == 1e-4 and other.stem[1].eps == 1e-3
    load_weights(other, vit.state_dict(), layer_norm_eps=1e-6)
    assert same_logits(vit, other)
    with pytest.raises(ValueError, match=r"missing: stem\.0\.weight"):
        load_weights(other, to_timm(tiny_vit()))
    with pytest.raises(ValueError, match="no place for a stem"):
        to_timm(ViT(TINY, nn.AvgPool2d(1)))


def test_load_vit_takes_options_that_no_shape_shows():
    vit = tiny_vit(seed=1)
    assert load_vit(to_jax(vit)).config.num_heads == 3  # JAX's matrices show it
    changed = load_vit(to_timm(vit), num_heads=3, layer_norm_eps=1e-3)
    assert changed.norm.eps == changed.config.layer_norm_eps == 1e-3
    wide = load_vit(to_timm(vit), num_heads=3, image_size=(16, 64))  # as many patches
    images = images_for(wide)
    with torch.inference_mode():
        assert torch.equal(wide(images), vit(images, interpolate=True))
    for options in (
        {"image_size": (32, 40)},
        {"pos_embedding": "learned_2d", "image_size": 40},
        {"pos_embedding": "sincos_2d", "image_size": 32},
        {"pos_embedding": "none", "image_size": 32, "pool": "mean"},
    ):
        own = tiny_vit(**options)
        assert same_logits(load_vit(own.state_dict(), num_heads=3, **options), own)


def test_half_a_representation_layer_is_an_error_with_or_without_a_head():
    vit, other = (tiny_vit(seed, representation_size=16) for seed in (1, 2))
    half = dict(vit.state_dict())
    del half["representation.0.bias"]
    for head in (True, False):
        with pytest.raises(ValueError, match=r"missing: representation\.0\.bias"):
            load_weights(other, half, head=head)
    head = ["head.weight", "head.bias"]
    assert load_weights(other, to_timm(tiny_vit()), head=False) == head


def test_integers_are_not_weights():
    quantized = {name: t.to(torch.int8) for name, t in to_timm(tiny_vit()).items()}
    with pytest.raises(ValueError, match=r"norm\.weight holds torch\.int8"):
        load_weights(tiny_vit(), quantized)


def test_parts_of_other_kinds_of_vit_are_listed():
    table = "blocks.0.attn.relative_position_bias_table"
    given = to_timm(tiny_vit()) | {table: torch.zeros(9, 3)}
    with pytest.raises(ValueError, match=f"unknown: {table}"):
        load_vit(given)


def test_half_precision_is_read_exactly():
    vit = tiny_vit(seed=1)
    half = {name: tensor.half() for name, tensor in to_timm(vit).items()}
    full = {name: tensor.float() for name, tensor in half.items()}
    loaded = [load_vit(w, num_heads=3, image_size=64) for w in (half, full)]
    assert same_logits(*loaded) and loaded[0].norm.weight.dtype == torch.float32


def test_heads_are_those_of_the_published_variant_by_default():
    for name, heads in (("ViT-H/14", 16), ("ViT-L/16", 16), ("ViT-Ti/16", 3)):
        with torch.device("meta"):
            state_dict = create_vit(name, num_layers=1).state_dict()
        assert config_from_state_dict(state_dict).num_heads == heads
    wide = tiny_vit(embedding_dim=128, num_heads=4).state_dict()
    assert config_from_state_dict(wide).num_heads == 2  # D / 64
    assert config_from_state_dict(wide, num_heads=4).num_heads == 4
    assert config_from_state_dict(tiny_vit().state_dict()).num_heads == 1


def test_patches_that_make_no_square():
    with pytest.raises(ValueError, match="20 patches are no square"):
        config_from_state_dict(to_timm(tiny_vit(image_size=(32, 40))))


def test_a_missing_tensor_is_named():
    complete = to_timm(tiny_vit())
    for name in ("pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight"):
        without = {key: tensor for key, tensor in complete.items() if key != name}
        flat = complete | {name: torch.zeros(5)}
        for given in (without, flat):
            with pytest.raises(ValueError, match=rf"those of timm.*no {name} with"):
                config_from_state_dict(given)


def test_a_key_without_its_query_and_value_is_missing():
    given = to_huggingface(tiny_vit())
    query = "vit.layers.0.attention.q_proj.weight"
    del given[query]
    with pytest.raises(ValueError, match=f"missing: {query.removeprefix('vit.')}"):
        load_vit(given, num_heads=3)


# Files


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pth", ".pt", ".bin"])
def test_files_of_every_kind(tmp_path, suffix):
    gelu = "tanh" if suffix == ".npz" else "exact"
    vit, path = tiny_vit(gelu=gelu), tmp_path / f"vit{suffix}"
    if suffix == ".npz":
        np.savez(path, **to_jax(vit))
    elif suffix == ".safetensors":
        save_file(to_timm(vit), path)
    else:
        wrapper = {".pth": "model", ".pt": "state_dict"}.get(suffix)  # DeiT, Lightning
        content = to_timm(vit)
        torch.save({wrapper: content} if wrapper else content, path)
    assert same_logits(load_vit(path, num_heads=3), vit)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=rf"vit{suffix} \(\d+ bytes\) cannot be read as weights"):
        read_weights(path)


def test_files_without_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"vit\.pth"):
        read_weights(tmp_path / "vit.pth")
    (tmp_path / "vit.onnx").write_bytes(b"")
    with pytest.raises(ValueError, match=r"vit\.onnx.*empty; expected .*\.safetensors, \.npz"):
        read_weights(tmp_path / "vit.onnx")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"list\.pth holds a list, not tensors by name"):
        read_weights(tmp_path / "list.pth")


def test_a_file_cannot_run_code(tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "it ran",)

    torch.save({"state_dict": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(ValueError, match=r"trap\.pth .*cannot be read"):
        read_weights(tmp_path / "trap.pth")
    assert not (tmp_path / "it ran").exists()


def test_a_file_at_another_resolution_with_other_classes(tmp_path):
    vit = tiny_vit()
    save_file(to_timm(vit), tmp_path / "vit.safetensors")
    larger = load_vit(tmp_path / "vit.safetensors", num_heads=3, image_size=(48, 64), num_classes=2)
    images = images_for(larger)
    features = vit.forward_features(images, interpolate=True)
    assert torch.equal(larger.forward_features(images), features)
    assert not larger.head.weight.any() and larger(images).shape == (2, 2)


def readme_code(word):
    readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    (code,) = (c for c in re.findall(r"```python\n(.*?)```", readme, re.S) if word in c)
    return code


def test_the_three_lines_of_the_readme(tmp_path, monkeypatch, capsys, picture):
    """From a checkpoint of timm's to a prediction."""
    vit = give_random_values(create_vit("ViT-Ti/16"))
    save_file(to_timm(vit), tmp_path / "vit_tiny_patch16_224.safetensors")
    picture.save(tmp_path / "photo.jpg")
    monkeypatch.setattr(utils, "CHECKOUT", tmp_path)
    monkeypatch.chdir(tmp_path)
    code = readme_code("load_vit")
    statements = [
        line for line in code.splitlines() if line and not line.startswith(("from ", "import "))
    ]
    assert len(statements) == 3
    exec(code, {})
    image = transforms.evaluation_transform(224)(Image.open("photo.jpg")).unsqueeze(0)
    best = vit.eval()(image).argmax().item()
    names = backbones.ViT_B_16_Weights.DEFAULT.meta["categories"]
    assert names[best] in capsys.readouterr().out


def test_the_four_lines_of_the_readme_that_look_inside(tmp_path, monkeypatch, picture):
    vit = give_random_values(create_vit("ViT-Ti/16"))
    picture.save(tmp_path / "photo.jpg")
    monkeypatch.setattr(utils, "CHECKOUT", tmp_path)
    monkeypatch.chdir(tmp_path)
    code = readme_code("plot_attention")
    assert len(code.split("\n\n")[1].splitlines()) == 4
    names = {"vit": vit, "evaluation_transform": transforms.evaluation_transform}
    exec(code, names)
    with Image.open(tmp_path / "seen.png") as picture:
        assert min(picture.size) > 150
    rollout = names["rollout"][0]
    assert rollout.shape == (197, 197)
    torch.testing.assert_close(rollout.sum(dim=1), torch.ones(197))
    plt.close("all")


# As the backbone of notebook 09


def test_vit_weights_names_the_backbone(tmp_path, monkeypatch):
    vit = tiny_vit(seed=1, embedding_dim=192)
    save_file(to_huggingface(vit), tmp_path / "mine.safetensors")
    monkeypatch.setenv("VIT_WEIGHTS", str(tmp_path / "mine.safetensors"))
    monkeypatch.setenv("FOODVISION_SOURCE", "synthetic")
    backbone, transform, description = load_pretrained_backbone()
    assert "mine.safetensors" in description and str(tmp_path) not in description
    assert "Hugging Face" in description and "32 pixels" in description
    assert transform.crop_size == [32] and transform.resize_size == [36]
    assert transform.mean == transform.std == [0.5] * 3
    assert backbone.embedding_dim == 192 and not backbone.training
    images = images_for(vit)
    features = vit.forward_features(images)[:, 0]
    torch.testing.assert_close(backbone(images), features, rtol=1e-4, atol=1e-4)
    # A file of the paper's own, with its pre-training layer and head
    official = tiny_vit(seed=2, embedding_dim=192, representation_size=16)
    np.savez(tmp_path / "official.npz", **to_jax(official))
    monkeypatch.setenv("VIT_WEIGHTS", str(tmp_path / "official.npz"))
    backbone, transform, _ = load_pretrained_backbone()
    assert backbone(images).shape == (2, 192) and transform.mean == [0.5] * 3
    monkeypatch.setenv("VIT_WEIGHTS", str(tmp_path / "mine.safetensors"))
    # By name one gets what one asked for
    assert "drawn dishes" in load_pretrained_backbone("drawn_dishes")[2]
    monkeypatch.setenv("VIT_WEIGHTS", "")
    assert "drawn dishes" in load_pretrained_backbone()[2]
    monkeypatch.setenv("VIT_WEIGHTS", "no/such/file.pth")
    with pytest.raises(FileNotFoundError, match=r"no/such/file\.pth"):
        load_pretrained_backbone()


@pytest.mark.parametrize(
    "options",
    [
        {"gelu": "tanh"},
        {"layer_norm_eps": 1e-3, "representation_size": 16},
        {"pos_embedding": "sincos_2d"},
        {"pos_embedding": "learned_2d", "image_size": (24, 40)},
        {"image_size": (16, 64)},  # 2 × 8 patches, as many as 4 × 4
        {"image_size": (24, 40), "pool": "mean"},
    ],
)
def test_vit_weights_keeps_the_configuration_of_a_file_of_ours(tmp_path, monkeypatch, options):
    """No shape shows 4 heads, the GELU or the positions; D / 64 would be 2 heads."""
    vit = tiny_vit(embedding_dim=128, num_heads=4, **options)
    normalization = transforms.Normalization((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    path = write_vit(vit, tmp_path / "vit.safetensors", normalization=normalization)
    monkeypatch.setenv("VIT_WEIGHTS", str(path))
    backbone, transform, description = load_pretrained_backbone()
    assert backbones.vit_of(backbone).config == replace(
        vit.config, num_classes=0, representation_size=0
    )
    images = images_for(vit)
    loaded = load_vit(path).forward_features(images)
    assert torch.equal(loaded, vit.forward_features(images))
    expected = loaded.mean(dim=1) if vit.config.pool == "mean" else loaded[:, 0]
    assert torch.equal(backbone(images), expected)
    assert (backbone.name, backbone.embedding_dim) == ("vit", 128) and "this project" in description
    # As are the colors and the height and width that it was trained with
    assert transform.mean == [0.1, 0.2, 0.3] and transform.std == [0.4, 0.5, 0.6]
    assert transform(Image.new("RGB", (70, 50))).shape == (3, *vit.config.image_hw)


def test_vit_weights_that_are_not_square(tmp_path, monkeypatch):
    vit = tiny_vit(image_size=(24, 40))
    monkeypatch.setenv("VIT_WEIGHTS", str(write_vit(vit, tmp_path / "wide.safetensors")))
    _, transform, description = load_pretrained_backbone()
    assert "24 × 40 pixels" in description
    assert transform.crop_size == [24, 40] and transform.resize_size == [27, 45]


def test_a_new_task_gets_a_new_head(tmp_path):
    """Also where it has as many classes as the task before."""
    vit = tiny_vit(representation_size=16)
    path = write_vit(vit, tmp_path / "vit.safetensors", class_names=list("abcde"))
    images = images_for(vit)
    for weights in (path, vit.state_dict(), to_jax(vit)):
        options = {} if weights is path else {"num_heads": 3, "gelu": "exact"}
        assert load_vit(weights, **options).head.weight.equal(vit.head.weight)
        for K in (5, 4):
            new = load_vit(weights, head=False, num_classes=K, **options)
            assert new(images).shape == (2, K) and not any(p.any() for p in new.head.parameters())
            assert torch.equal(new.forward_features(images), vit.forward_features(images))
            assert torch.equal(new.representation[0].weight, vit.representation[0].weight)


def test_a_grid_without_interpolation_is_an_error():
    vit = tiny_vit()
    with pytest.raises(ValueError, match=r"grid=\(2, 8\) .*interpolate=True"):
        load_weights(vit, vit.state_dict(), grid=(2, 8))
    wide, axes = tiny_vit(seed=1, image_size=(16, 64)), {"interpolate": True, "grid": (2, 8)}
    load_weights(vit, wide.state_dict(), **axes)  # 2 × 8 -> 4 × 4
    images = images_for(vit)
    assert torch.equal(vit(images), wide(images, interpolate=True))


def test_the_vit_in_each_kind_of_backbone():
    vit = tiny_vit(embedding_dim=192, num_classes=0)
    assert backbones.vit_of(vit) is vit
    assert backbones.vit_of(backbones.TokenStatistics(vit)) is vit
    assert backbones.vit_of(backbones.Backbone(vit, "tiny")) is vit
    with pytest.raises(TypeError, match="no ViT in a Sequential"):
        backbones.vit_of(nn.Sequential(vit))
    c = vit.config
    sizes = c.num_layers, c.num_heads, c.embedding_dim, c.mlp_dim
    theirs = VisionTransformer(c.image_size, c.patch_size, *sizes)
    theirs.heads = nn.Identity()
    give_random_values(theirs).eval()
    images = images_for(vit)
    ours = backbones.vit_of(theirs)
    assert not ours.training
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(
    not VIT_S_14.is_file(), reason="the real checkpoint is not beside the repository"
)
def test_a_really_pretrained_checkpoint_separates_the_photos(tmp_path, monkeypatch):
    """By standardised logistic regression on its class token; 75 test photos."""
    monkeypatch.setenv("VIT_WEIGHTS", str(VIT_S_14))
    backbone, transform, _ = load_pretrained_backbone()
    assert backbone.vit.config.patch_size == 14 and backbone.vit.config.num_heads == 6
    zip_file = SHARED / "data/pizza_steak_sushi.zip"
    folder = downloads.download_data(zip_file, tmp_path / "photos")
    photos = data_setup.FoodImages(folder / "train", folder / "test", None, "photos")
    everything = read_images(photos, transform)
    images, labels, train_count = everything
    assert len(labels) - train_count == 75
    batches = DataLoader(TensorDataset(images, labels), 50)
    quick = "bfloat16" if bfloat16_instructions(torch.device("cpu")) else "float32"
    features = engine.extract_features(backbone, batches, "cpu", precision=quick).tensors[0]
    assert probe(features.numpy(), labels, published_split(everything), C=0.01) >= 0.85


@pytest.mark.skipif(
    not VIT_S_14.is_file(), reason="the real checkpoint is not beside the repository"
)
def test_figure_7_of_a_really_pretrained_checkpoint():
    """What the paper saw, and notebook 12 does not see in our small backbone."""
    vit = load_vit(read_weights(VIT_S_14)).eval()
    transform = transforms.evaluation_transform(224)
    folder = data_setup.get_drawn_images().test_dir
    images = [load_image(path) for path in sorted(folder.glob("*/*.jpg"))[::25]]
    images = torch.stack([transform(image) for image in images])
    maps = inspect.attention_maps(vit, images)
    distances = inspect.mean_attention_distance(maps, (16, 16), 14).mean(dim=0)
    everywhere = inspect.patch_distances((16, 16), 14).mean().item()
    assert distances[:4].min() < 0.25 * everywhere  # some heads look nearby at once
    assert distances[:4].max() > 0.9 * everywhere  # others everywhere
    assert distances[-3:].min() > 2 * distances[:4].min()  # later none looks nearby
    similarity = inspect.position_embedding_similarity(vit)
    places = torch.arange(16)
    for row in range(16):
        for column in range(16):
            tile = similarity[row, column].clone()
            assert tile.argmax() == row * 16 + column
            same_line = (places[:, None] == row) | (places == column)
            assert tile[same_line].mean() > tile[~same_line].mean() + 0.1
            tile[row, column] = -1  # the most similar other place is a neighbor
            r, c = divmod(tile.argmax().item(), 16)
            assert abs(r - row) + abs(c - column) == 1
