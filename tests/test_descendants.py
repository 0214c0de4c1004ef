"""Later ViTs: each part as timm has it, and what folds into plainer models."""

import json
import re
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import save_file
from tiny_vit import TINY, tiny_vit

from going_modular.experiments import architectures
from going_modular.utils import give_random_values
from going_modular.vit.descendant_config import DescendantConfig, Rotary
from going_modular.vit.descendants import Descendant
from going_modular.vit.export import to_timm
from going_modular.vit.files import read_vit, write_vit
from going_modular.vit.relatives import options_of
from going_modular.vit.weights import PUBLISHED_HEADS, load_vit

# timm's architectures, one for each kind, and what makes a small one of it
KINDS = {
    "beit3_base_patch16_224": {},
    "deit3_small_patch16_224": {},
    "deit_tiny_distilled_patch16_224": {},
    "eva02_tiny_patch14_224": {"mlp_ratio": 4 * 2 / 3},
    "eva02_base_patch14_224": {},
    "eva02_base_patch16_clip_224": {},
    "flexivit_small": {},
    "vit_base_patch16_clip_quickgelu_224": {},
    "vit_base_patch16_clip_224": {},
    "vit_base_patch16_siglip_224": {},
    "vit_base_patch32_siglip_gap_256": {},
    "vit_medium_patch16_gap_240": {},
    "vit_pe_core_tiny_patch16_384": {"attn_pool_num_heads": 8},
    "vit_pe_spatial_tiny_patch16_512": {},
    "vit_small_patch14_dinov2": {},
    "vit_small_patch14_reg4_dinov2": {},
    "vit_small_patch16_dinov3": {},
    "vit_small_plus_patch16_dinov3_qkvb": {},
    "vit_small_patch16_rope_224": {},
    "vit_small_patch16_rope_ape_224": {},
    "vit_small_patch16_rope_mixed_224": {},
    "vit_wee_patch16_reg1_gap_256": {},
    "vit_medium_patch16_rope_reg1_gap_256": {},
    "vit_base_patch16_gap_224": {},
}


def small(name, **changes):
    """timm's architecture with few and narrow layers, and random numbers everywhere."""
    timm = pytest.importorskip("timm")
    sizes = dict(img_size=64, patch_size=16, embed_dim=96, depth=2, num_heads=2, num_classes=5)
    return give_random_values(timm.create_model(name, **sizes | changes)).eval()


@pytest.mark.parametrize("name", KINDS)
def test_the_same_logits_as_timms(name):
    vit = small(name, **KINDS[name])
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    ours = load_vit(vit.state_dict(), architecture=name, num_heads=2, image_size=(64, 64))
    with torch.inference_mode():
        expected, logits = vit(images), ours(images)
    assert expected.std() > 0.01
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_norms_in_other_places_are_refused():
    with pytest.raises(ValueError, match="LayerNorms follow attention and MLP"):
        load_vit(small("vit_base_patch16_rpn_224").state_dict(), num_heads=2)


def random_descendant(**parts):
    config = DescendantConfig(**asdict(TINY) | parts)
    return give_random_values(Descendant(config)).eval()


PARTS = {
    "registers": {"num_registers": 2},
    "attention pooling": {"pool": "attention", "class_token": False, "pooling_heads": 4},
    "two tokens": {"pool": "class_and_register", "num_registers": 1},
    "class token and mean": {"pool": "class_and_mean", "pre_norm": True},
    "rotary": {"rotary": Rotary(100.0, centered=True), "pos_embedding": "none"},
    "learned rotary": {"rotary": Rotary(learned=True), "pooled_norm": True, "pool": "mean"},
    "gates and norms": {"swiglu": True, "mlp_norm": True, "attention_norm": True, "qk_norm": True},
    "quick": {"gelu": "quick", "last_norm": False},
}


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_a_file_of_ours_keeps_every_part(parts, tmp_path):
    vit = random_descendant(**parts)
    read, _ = read_vit(write_vit(vit, tmp_path / "vit.safetensors"))
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert read.config == vit.config and torch.equal(read(images), vit(images))
        assert not torch.equal(random_descendant()(images), vit(images))


def test_without_any_part_it_is_the_vit_of_the_paper():
    vit, descendant = tiny_vit(), random_descendant()
    descendant.load_state_dict(vit.state_dict())
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(descendant(images), vit(images))


def test_layer_scale_folds_into_the_projections():
    vit = tiny_vit()
    tensors, scales = to_timm(vit), {}
    for layer in range(2):
        for number, part in ((1, "attn.proj"), (2, "mlp.fc2")):
            scale = torch.rand(24, generator=torch.Generator().manual_seed(layer)) + 0.5
            scales[f"blocks.{layer}.ls{number}.gamma"] = scale
            tensors[f"blocks.{layer}.{part}.weight"] /= scale[:, None]
            tensors[f"blocks.{layer}.{part}.bias"] /= scale
    loaded = load_vit(tensors | scales, num_heads=3)
    assert type(loaded) is type(vit)
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(images), vit(images), atol=1e-6, rtol=1e-6)


def test_a_bias_that_one_layer_lacks_is_missing():
    tensors = to_timm(tiny_vit())
    del tensors["blocks.1.attn.qkv.bias"]
    with pytest.raises(ValueError, match=r"missing: blocks\.1\.attn\.qkv\.bias"):
        load_vit(tensors, num_heads=3)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"class_token": False}, 'pool="class_token" needs class_token=True'),
        ({"pool": "class_and_register"}, "needs num_registers of at least 1"),
        (
            {"pool": "class_and_mean", "representation_size": 8},
            'pool="class_and_mean" has no layer before the head',
        ),
        ({"pool": "max"}, "pool must be .*attention.*, got 'max'"),
        ({"rotary": Rotary(), "num_heads": 4}, "multiple of 4 · num_heads"),
        ({"swiglu": 1}, "swiglu must be True or False, got 1"),
        ({"rotary": {"speed": 3}}, "have no speed=3"),
    ],
)
def test_what_goes_together_is_checked(parts, words):
    with pytest.raises(ValueError, match=words):
        DescendantConfig(**asdict(TINY) | parts)


def test_only_how_far_patches_are_apart_counts_for_rotary_positions():
    """The same offset between query and key gives the same product, anywhere in the image."""
    vit = random_descendant(rotary=Rotary(), pos_embedding="none", num_layers=1)
    attention = vit.encoder[0].attention
    vit.embed(torch.zeros(1, 3, 32, 32))  # sets the coordinates of a 4 × 4 grid
    same = torch.randn(1, 1, 24).expand(1, 17, 24)
    q, k, _ = attention.queries_keys_values(same)
    products = (q @ k.transpose(-2, -1))[0, 0, 1:, 1:].unflatten(1, (4, 4)).unflatten(0, (4, 4))
    torch.testing.assert_close(products[0, 0, 1, 2], products[2, 1, 3, 3])
    assert not torch.allclose(products[0, 0, 1, 2], products[0, 0, 2, 1])


TOLD = {
    "vit_base_patch32_siglip_gap_256": {"embed_dim": 128},
    "vit_small_patch16_dinov3": {"embed_dim": 128},
    "vit_base_patch16_gap_224": {"embed_dim": 768, "num_heads": 16},
}


@pytest.mark.parametrize("name", TOLD)
def test_a_folder_of_timms_tells_what_no_tensor_shows(name, tmp_path, capsys):
    vit = small(name, **TOLD[name])
    config = {
        "architecture": name,
        "num_features": vit.num_features,
        "global_pool": vit.global_pool,
        "model_args": {"num_heads": TOLD[name].get("num_heads", 2), "embed_dim": 96},
        "pretrained_cfg": {"input_size": [3, 64, 64], "mean": [0.5] * 3, "std": [0.5] * 3},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(vit.state_dict(), tmp_path / "model.safetensors")
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours = load_vit(tmp_path)
        torch.testing.assert_close(ours(images), vit(images), atol=1e-5, rtol=1e-5)
    printed = capsys.readouterr().out
    assert f"config.json tells architecture={name}" in printed and "guess" not in printed


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("vit_small_patch16_dinov3", "Rotary(temperature=100.0, centered=True"),
        ("vit_base_patch16_clip_224", 'gelu="exact" is a guess'),
        ("vit_base_patch16_siglip_224", 'gelu="exact" is a guess'),
    ],
)
def test_what_is_guessed_is_said(name, words, capsys):
    load_vit(small(name).state_dict(), num_heads=2)
    assert words in capsys.readouterr().out


def test_the_table_of_timms_architectures(monkeypatch, tmp_path, capsys):
    pytest.importorskip("timm")
    monkeypatch.setattr(architectures, "project_path", lambda path: tmp_path / "page.md")
    with pytest.raises(SystemExit) as end:
        architectures.main(["--pattern", "vit_tiny_patch16_(384|dinov3)|dwee", "--write"])
    assert end.value.code == 0
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "2 of 3 have equal logits, 1 are refused, 0 differ" in page
    assert "| refused | unknown: blocks.0.attn.lambda_q1 |" in page
    assert "| vit_tiny_patch16_384 | 6 | equal | 0e+00 apart, largest 3.9 |" in page


def test_an_architecture_that_differs_is_counted(monkeypatch):
    pytest.importorskip("timm")
    monkeypatch.setattr(architectures, "load_vit", lambda *_, **__: tiny_vit(image_size=224))
    result = architectures.result_of("vit_tiny_patch16_224", 5.7)
    assert (result.kind, result.remark) == ("different", "(1, 5) logits")


@pytest.mark.parametrize("name", KINDS)
def test_a_tensor_that_is_missing_is_an_error(name):
    """But without these it is another ViT, and nothing shows that it was not meant."""
    other_vits = {"cls_token", "reg_token", "pos_embed", "head.bias"}
    complete = small(name, **KINDS[name]).state_dict()
    for missing in complete.keys() - other_vits:
        without = {key: tensor for key, tensor in complete.items() if key != missing}
        with pytest.raises(ValueError):
            load_vit(without, architecture=name, num_heads=2, image_size=(64, 64))


@pytest.mark.parametrize("name", ["vit_small_plus_patch16_dinov3", "vit_pe_core_tiny_patch16_384"])
def test_a_tensor_that_is_misshapen_is_an_error(name):
    complete = small(name, **KINDS.get(name, {})).state_dict()
    for misshapen in complete:
        with pytest.raises(ValueError):
            load_vit(complete | {misshapen: torch.zeros(7)}, num_heads=2)


def test_heads_and_gelu_of_timms_architectures_are_those_that_their_names_tell():
    """Of all sizes; no tensor shows them. The models are built without memory."""
    timm = pytest.importorskip("timm")
    wrong = []
    for name in timm.list_models():
        if not re.search(architectures.KINDS, name) or re.search(architectures.OTHERS, name):
            continue
        try:
            with torch.device("meta"):
                vit = timm.create_model(name, depth=1)
        except (AssertionError, TypeError):  # some cannot be that short
            continue
        attention = getattr(vit.blocks[0], "attn", None)
        mlp = getattr(vit.blocks[0], "mlp", None)
        if attention is None or not hasattr(mlp, "fc1"):
            continue  # parallel blocks, which are refused
        told, D = options_of(name), vit.embed_dim
        heads = told.get("num_heads") or PUBLISHED_HEADS.get(D) or max(D // 64, 1)
        gelus = {"GELU": "exact", "GELUTanh": "tanh", "QuickGELU": "quick"}
        gelu = gelus.get(type(mlp.act).__name__)  # None: the gate of a SwiGLU
        if heads != attention.num_heads or (gelu and gelu != told.get("gelu", "exact")):
            wrong.append((name, heads, attention.num_heads, gelu))
    assert not wrong
