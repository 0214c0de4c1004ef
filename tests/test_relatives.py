"""Later ViTs under the names of transformers, open_clip and facebookresearch, read and written."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file
from tiny_vit import tiny_vit

from going_modular.utils import CHECKOUT, give_random_values
from going_modular.vit.descendants import Descendant
from going_modular.vit.export import KINDS, kind_of, to_huggingface, to_jax, to_timm, to_torchvision
from going_modular.vit.files import read_weights
from going_modular.vit.weights import load_vit, normalization_of

WHERE = "install it with `pip install -r requirements/peers.txt`"
SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 32,
    "patch_size": 8,
}
MLP = {"intermediate_size": 48}
# Class of transformers, its configuration, and options beside the sizes
CLASSES = {
    "vit": ("ViTModel", "ViTConfig", MLP),
    "vit with a head": ("ViTForImageClassification", "ViTConfig", MLP | {"num_labels": 5}),
    "deit": ("DeiTModel", "DeiTConfig", MLP),
    "deit with two heads": (
        "DeiTForImageClassificationWithTeacher",
        "DeiTConfig",
        MLP | {"num_labels": 5},
    ),
    "deit with a head": ("DeiTForImageClassification", "DeiTConfig", MLP | {"num_labels": 5}),
    "dinov2": ("Dinov2Model", "Dinov2Config", {}),
    "dinov2 with gates": ("Dinov2Model", "Dinov2Config", {"use_swiglu_ffn": True}),
    "dinov2 with a head": ("Dinov2ForImageClassification", "Dinov2Config", {"num_labels": 5}),
    "dinov2 with registers": ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", {}),
    "dinov2 with registers and a head": (
        "Dinov2WithRegistersForImageClassification",
        "Dinov2WithRegistersConfig",
        {"num_labels": 5, "num_register_tokens": 2},
    ),
    "dinov3": ("DINOv3ViTModel", "DINOv3ViTConfig", MLP | {"num_register_tokens": 4}),
    "dinov3 with gates": (
        "DINOv3ViTModel",
        "DINOv3ViTConfig",
        MLP | {"num_register_tokens": 4, "use_gated_mlp": True, "hidden_act": "silu"},
    ),
    "clip": ("CLIPVisionModel", "CLIPVisionConfig", MLP),
    "clip with a projection": (
        "CLIPVisionModelWithProjection",
        "CLIPVisionConfig",
        MLP | {"projection_dim": 10},
    ),
    "siglip": ("SiglipVisionModel", "SiglipVisionConfig", MLP),
}


def theirs_of(kind):
    """A small model of transformers with random numbers in every tensor."""
    transformers = pytest.importorskip("transformers", reason=WHERE)
    model, config, options = CLASSES[kind]
    built = getattr(transformers, model)(getattr(transformers, config)(**SIZES | options))
    return give_random_values(built).eval()


def random_images(count=2):
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def features_of(theirs, images):
    """What a head reads, or its answer."""
    outputs = theirs(pixel_values=images)
    for name in ("logits", "image_embeds"):
        if hasattr(outputs, name):
            return getattr(outputs, name)
    return outputs.pooler_output


def assert_same(ours, theirs):
    images = random_images()
    with torch.inference_mode():
        features = ours(images)
    expected = features_of(theirs, images)
    assert expected.std() > 0.01
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", CLASSES)
def test_the_features_of_transformers_classes(kind):
    theirs = theirs_of(kind)
    assert_same(load_vit(theirs.state_dict(), num_heads=3, image_size=32), theirs)


@pytest.mark.parametrize("kind", CLASSES)
def test_the_files_on_the_hub_have_older_names(kind, tmp_path):
    """`save_pretrained` writes them."""
    theirs = theirs_of(kind)
    theirs.save_pretrained(tmp_path)
    ours = load_vit(tmp_path)
    assert_same(ours, theirs)
    assert ours.config.num_heads == 3  # from its config.json


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("generation", [4, 5])
def test_written_back_transformers_reads_it(kind, generation, tmp_path):
    theirs = theirs_of(kind)
    ours = load_vit(theirs.state_dict(), num_heads=3, image_size=32)
    other = give_random_values(theirs_of(kind), seed=5)
    told = kind.split()[0] if "registers" not in kind else ""
    written = to_huggingface(ours, generation, kind=told)
    if generation == 5:
        missing, unexpected = other.load_state_dict(written, strict=False)
        assert not unexpected and not [name for name in missing if "pooler" not in name]
    else:
        other.config.save_pretrained(tmp_path)
        save_file(written, tmp_path / "model.safetensors", {"format": "pt"})
        other = type(other).from_pretrained(tmp_path)
    assert_same(ours, other.eval())


# Files of facebookresearch: timm's tensors under the names of dinov2, dinov3 and mae


def timms(name, **changes):
    """timm's architecture, small, with random numbers in every tensor."""
    timm = pytest.importorskip("timm", reason=WHERE)
    sizes = dict(img_size=64, patch_size=16, embed_dim=96, depth=2, num_heads=2, num_classes=0)
    return give_random_values(timm.create_model(name, **sizes | changes)).eval()


def renamed(tensors, *pairs):
    """Tensors with words of their names replaced."""
    result = {}
    for name, tensor in tensors.items():
        for theirs, other in pairs:
            name = name.replace(theirs, other)
        result[name] = tensor
    return result


def assert_same_as_timms(tensors, vit, **options):
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    ours = load_vit(tensors, image_size=64, **options)
    with torch.inference_mode():
        expected, features = vit(images), ours(images)
    assert expected.std() > 0.01
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-4)
    return ours


@pytest.mark.parametrize("chunks", [False, True])
def test_dinov2s_own_names(chunks, capsys):
    vit = timms("vit_giant_patch14_reg4_dinov2")
    tensors = renamed(
        vit.state_dict(), ("reg_token", "register_tokens"), ("fc1", "w12"), ("fc2", "w3")
    )
    if chunks:
        tensors = renamed(tensors, ("blocks.", "blocks.0."))
    # Their class token has a position, and timm adds it to the token
    position = torch.randn(1, 1, 96)
    tensors["pos_embed"] = torch.cat([position, tensors["pos_embed"]], dim=1)
    tensors["cls_token"] = tensors["cls_token"] - position
    tensors["mask_token"] = torch.randn(1, 96)
    assert_same_as_timms(tensors, vit, num_heads=2)
    assert "mask_token (for masked patches)" in capsys.readouterr().out


def dinov3s_own_tensors(vit):
    """timm's DINOv3 with the names, the mask of biases and the periods of Meta's."""
    tensors = renamed(
        vit.state_dict(),
        ("reg_token", "storage_tokens"),
        ("gamma_1", "ls1.gamma"),
        ("gamma_2", "ls2.gamma"),
        ("fc1_g", "w1"),
        ("fc1_x", "w2"),
        ("fc2", "w3" if any("fc1_g" in name for name in vit.state_dict()) else "fc2"),
    )
    for layer in range(2):
        q, v = (tensors.pop(f"blocks.{layer}.attn.{letter}_bias") for letter in "qv")
        tensors[f"blocks.{layer}.attn.qkv.bias"] = torch.cat([q, torch.randn(96), v])
        mask = torch.ones(3, 96)
        mask[1] = 0
        tensors[f"blocks.{layer}.attn.qkv.bias_mask"] = mask.flatten()
    tensors["rope_embed.periods"] = 100.0 ** (torch.arange(12) / 12)
    return tensors


@pytest.mark.parametrize(
    "name", ["vit_small_patch16_dinov3_qkvb", "vit_small_plus_patch16_dinov3_qkvb"]
)
def test_dinov3s_own_names(name, capsys):
    vit = timms(name, global_pool="token")
    tensors = dinov3s_own_tensors(vit) | {"mask_token": torch.randn(1, 96)}
    ours = assert_same_as_timms(tensors, vit)
    assert ours.config.num_heads == 2  # from the periods
    assert "heads" not in capsys.readouterr().out
    tensors["rope_embed.periods"] = 50.0 ** (torch.arange(12) / 12)
    with pytest.raises(ValueError, match="periods from 1 to 36"):
        load_vit(tensors)


def test_mae_leaves_its_decoder_behind(capsys):
    vit = timms("vit_base_patch16_224", num_heads=2)
    decoder = [
        "decoder_pos_embed",
        "decoder_embed.weight",
        "decoder_blocks.0.norm1.weight",
        "mask_token",
    ]
    tensors = vit.state_dict() | {name: torch.randn(3) for name in decoder}
    assert_same_as_timms(tensors, vit, num_heads=2)
    printed = capsys.readouterr().out
    assert "3 of a decoder, mask_token (for masked patches)" in printed


# open_clip


def open_clips(**options):
    """A small model of open_clip's, images and text, with random numbers in every tensor."""
    open_clip = pytest.importorskip("open_clip", reason=WHERE)
    vision = dict(image_size=32, patch_size=8, width=24, layers=2, head_width=8, mlp_ratio=2)
    text = dict(context_length=7, vocab_size=11, width=16, heads=2, layers=1)
    model = open_clip.CLIP(10, vision | options.pop("vision", {}), text, **options)
    return give_random_values(model).eval()


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("whole", [False, True], ids=["tower", "whole"])
def test_the_visual_tower_of_open_clip(quick, whole, tmp_path, capsys):
    model = open_clips(quick_gelu=quick, vision={"ls_init_value": 0.1})
    tensors = (model if whole else model.visual).state_dict()
    save_file(tensors, tmp_path / "open_clip_model.safetensors")
    vision = {"image_size": 32, "width": 24, "head_width": 8, "layers": 2, "patch_size": 8}
    told = {"model_cfg": {"vision_cfg": vision, "quick_gelu": quick}}
    told["preprocess_cfg"] = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5]}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(told), encoding="utf-8")
    ours = load_vit(tmp_path)
    images = random_images()
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), model.visual(images), atol=1e-5, rtol=1e-4)
    assert ("of the text tower" in capsys.readouterr().out) == whole
    assert normalization_of(tmp_path).mean == (0.1, 0.2, 0.3)
    assert normalization_of(tensors).mean[0] == 0.48145466  # CLIP's, if nobody tells
    vision["pool_type"] = "avg"
    (tmp_path / "open_clip_config.json").write_text(json.dumps(told), encoding="utf-8")
    with pytest.raises(ValueError, match="tells of pool_type='avg', which is no part here"):
        load_vit(tmp_path)


def test_a_vit_of_timms_in_open_clip(tmp_path, capsys):
    vit = timms("vit_base_patch16_siglip_224", num_heads=2)
    tensors = {f"visual.trunk.{name}": tensor for name, tensor in vit.state_dict().items()}
    tensors |= {"text.ln_final.weight": torch.randn(3), "logit_bias": torch.randn(1)}
    assert_same_as_timms(tensors, vit, num_heads=2)
    assert "2 of the text tower" in capsys.readouterr().out


# Written for timm


def written_for_timm(name, **options):
    """Features of a model of timm's with what `to_timm` writes, and of ours."""
    changes = options.pop("changes", {})
    ours = load_vit(
        timms(name, num_classes=5, **changes).state_dict(),
        architecture=name,
        num_heads=2,
        image_size=64,
    )
    other = timms(name, num_classes=5, **changes)
    give_random_values(other, seed=7).load_state_dict(to_timm(ours, **options), strict=True)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return other.eval()(images), ours(images)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("deit_tiny_distilled_patch16_224", {}),
        ("vit_small_patch14_dinov2", {"layer_scale": True}),
        ("vit_small_patch14_reg4_dinov2", {"layer_scale": True}),
        ("vit_giant_patch14_reg4_dinov2", {"layer_scale": True}),
        ("vit_small_patch16_dinov3_qkvb", {}),
        ("vit_small_plus_patch16_dinov3_qkvb", {}),
        ("vit_base_patch16_clip_224", {}),
        ("vit_base_patch16_clip_quickgelu_224", {}),
        ("vit_base_patch16_siglip_224", {}),
    ],
)
def test_written_back_timm_reads_it(name, options):
    expected, features = written_for_timm(name, **options)
    assert expected.std() > 0.01
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-4)


def test_one_implementations_weights_for_another():
    """transformers' CLIP for timm, with a bias of patches that moves into the positions."""
    ours = load_vit(theirs_of("clip").state_dict(), num_heads=3)
    with torch.no_grad():
        ours.patch_embedding.projection.bias.normal_()
    again = load_vit(to_timm(ours), num_heads=3, gelu="quick")
    images = random_images()
    with torch.inference_mode():
        torch.testing.assert_close(again(images), ours(images), atol=1e-5, rtol=1e-4)


def test_kinds_tell_what_others_have_a_place_for():
    assert kind_of(tiny_vit().config) == "vit"
    for kind in ("deit with two heads", "dinov2 with registers", "dinov3", "clip", "siglip"):
        assert kind_of(load_vit(theirs_of(kind).state_dict(), image_size=32).config) in KINDS


@pytest.mark.parametrize(
    ("name", "write", "words"),
    [
        ("eva02_base_patch16_clip_224", to_timm, "no other implementation here has a place"),
        ("vit_wee_patch16_reg1_gap_256", to_timm, "no other implementation here has a place"),
        ("vit_base_patch16_siglip_224", to_huggingface, "no siglip with a head"),
        ("vit_base_patch16_clip_224", to_huggingface, "the head's bias has numbers"),
        ("vit_small_patch16_dinov3_qkvb", to_torchvision, "has no place for the parts of"),
        ("vit_small_patch14_reg4_dinov2", to_jax, "has no place for the parts of"),
    ],
)
def test_what_others_have_no_place_for_is_refused(name, write, words):
    vit = timms(name, num_classes=5)
    ours = load_vit(vit.state_dict(), architecture=name, num_heads=2, image_size=64)
    with pytest.raises(ValueError, match=words):
        write(ours)


def test_biases_of_keys_that_timm_has_no_place_for():
    theirs = theirs_of("dinov3")
    ours = load_vit(theirs.state_dict(), num_heads=3, image_size=32)
    with torch.no_grad():
        ours.encoder[1].attention.qkv.bias.normal_()
    with pytest.raises(ValueError, match=r"encoder\.1.*numbers for keys"):
        to_timm(ours)
    assert "model.layer.1.attention.k_proj.bias" in to_huggingface(ours)


def test_a_state_dict_of_ours_does_not_show_every_part():
    vit = load_vit(theirs_of("dinov2 with registers").state_dict(), num_heads=3)
    assert isinstance(vit, Descendant)
    with pytest.raises(ValueError, match="parts that not all show .*write_vit"):
        load_vit(vit.state_dict())


def test_positions_are_made_where_they_are_wanted_after_transformers_has_loaded(tmp_path):
    """`torch.device` may not reach linspace then, see findings/."""
    theirs_of("vit").save_pretrained(tmp_path)
    pytest.importorskip("transformers").ViTModel.from_pretrained(tmp_path)
    with torch.device("meta"):
        assert tiny_vit(pos_embedding="sincos_2d").class_token.is_meta


# What breaking it found


def small_vit(**options):
    """timm's class itself, with other options."""
    timm = pytest.importorskip("timm", reason=WHERE)
    sizes = dict(img_size=64, patch_size=16, embed_dim=96, depth=2, num_heads=2, num_classes=5)
    vit = timm.models.VisionTransformer(**sizes | options)
    return give_random_values(vit).eval()


def same_as(vit, tensors, size, **told):
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    ours = load_vit(tensors, num_heads=2, **told)
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), vit(images), atol=1e-5, rtol=1e-4)
    return ours


@pytest.mark.parametrize("size", [(64, 96), [64, 96]])
def test_a_size_that_is_told_decides_which_tokens_have_positions(size):
    """25 positions are those of 24 patches and a class token, not of 5 × 5 patches."""
    vit = small_vit(img_size=(64, 96))
    same_as(vit, vit.state_dict(), (64, 96), image_size=size)


def test_registers_whose_number_fits_two_squares():
    vit = small_vit(img_size=112, reg_tokens=12, no_embed_class=True)
    same_as(vit, vit.state_dict(), (112, 112), image_size=112)
    with pytest.raises(ValueError, match="6 or 7 in a row and a column: give image_size"):
        load_vit(vit.state_dict(), num_heads=2)


def folder_of_timms(path, vit, **config):
    save_file(vit.state_dict(), path / "model.safetensors")
    config = {"architecture": "vit_base_patch16_224", "num_features": 96} | config
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


def test_the_size_in_a_folder_is_that_of_its_weights(tmp_path):
    """16 patches in 2 rows are no square of 4."""
    vit = small_vit(img_size=(32, 128))
    sizes = {"pretrained_cfg": {"input_size": [3, 32, 128]}, "model_args": {"num_heads": 2}}
    same_as(vit, folder_of_timms(tmp_path, vit, **sizes), (32, 128))


def test_heads_in_a_folder_of_timms(tmp_path, capsys):
    vit = small_vit(num_heads=3)
    ours = load_vit(folder_of_timms(tmp_path, vit, model_args={"num_heads": 3}), image_size=64)
    assert ours.config.num_heads == 3 and "guess" not in capsys.readouterr().out
    load_vit(folder_of_timms(tmp_path, vit), image_size=64)
    assert "1 heads are a guess" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_args": {"act_layer": "relu"}}, "tells of act_layer, which is no part here"),
        ({"global_pool": "max"}, "timm's pooling 'max' is no part here"),
        ({"model_args": 3}, "no model_args but 3"),
        ({"pretrained_cfg": {"input_size": [3, "a", "b"]}}, "image_size must be"),
    ],
)
def test_a_folder_of_timms_with_other_parts_is_refused(tmp_path, config, words):
    with pytest.raises(ValueError, match=words):
        load_vit(folder_of_timms(tmp_path, small_vit(), **config), num_heads=2)


@pytest.mark.parametrize("reads", ["patches", "all"])
def test_attention_pooling_asks_the_patches_or_all_tokens(reads):
    """timm's ViT leaves out class token and registers, its Eva does not."""
    vit = small_vit(global_pool="map", reg_tokens=4, pool_include_prefix=reads == "all")
    same_as(vit, vit.state_dict(), (64, 64), image_size=64, pools_patches=reads == "patches")


def test_a_siglip_without_its_pooling_is_no_clip():
    transformers = pytest.importorskip("transformers", reason=WHERE)
    config = transformers.SiglipVisionConfig(**SIZES | MLP, vision_use_head=False)
    vit = give_random_values(transformers.SiglipVisionModel(config)).eval()
    ours = load_vit(vit.state_dict(), num_heads=3)
    assert ours.config.gelu == "tanh" and ours.config.layer_norm_eps == 1e-6
    with torch.inference_mode():
        tokens = vit(pixel_values=random_images()).last_hidden_state
        torch.testing.assert_close(ours.forward_features(random_images()), tokens)


def test_a_training_checkpoint_of_dino(capsys):
    vit = timms("vit_small_patch14_dinov2")
    teacher = {f"backbone.{name}": tensor for name, tensor in vit.state_dict().items()}
    teacher |= {"dino_head.mlp.0.weight": torch.randn(3, 3), "backbone.mask_token": torch.randn(9)}
    assert_same_as_timms(teacher, vit, num_heads=2)
    assert "of a head for training" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t | {"vit.cls_token": t["cls_token"]}, "cls_token and vit.cls_token are the"),
        (lambda t: t | {"blocks.0.ls1.gamma": torch.ones(96)}, "missing: the layer scale of"),
        (lambda t: t | {"reg_token": torch.ones(1, 2, 96).to(torch.int8)}, "reg_token holds"),
        (
            lambda t: t | {f"fc_norm.{kind}": torch.ones(96) for kind in ("weight", "bias")},
            "a LayerNorm before and one after the pooling",
        ),
    ],
)
def test_tensors_that_do_not_go_together_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        load_vit(change(small_vit().state_dict()), num_heads=2)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"image_size": ("a", "b")}, "image_size must be"),
        ({"architecture": 5}, "architecture must be the name of one of timm's"),
        ({"speed": 3}, "a ViT has no speed"),
        ({"qk_norm": True}, "those of a plain ViT, without qk_norm"),
    ],
)
def test_what_cannot_be_told_is_refused(told, words):
    with pytest.raises(ValueError, match=words):
        load_vit(small_vit().state_dict(), num_heads=2, **told)


def test_what_is_told_of_dinov3_has_to_fit_its_periods():
    tensors = dinov3s_own_tensors(timms("vit_small_patch16_dinov3_qkvb"))
    with pytest.raises(ValueError, match="periods are those of 2 heads"):
        load_vit(tensors, num_heads=3)
    with pytest.raises(ValueError, match=r"\(7,\) periods .* do not fit D = 96"):
        load_vit(tensors | {"rope_embed.periods": torch.ones(7)})
    tensors["blocks.0.attn.qkv.bias_mask"][3] = torch.nan
    with pytest.raises(ValueError, match="other numbers than 0 and 1"):
        load_vit(tensors)


def test_a_classifier_on_clip_says_what_it_does_not_read(capsys):
    transformers = pytest.importorskip("transformers", reason=WHERE)
    text = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    for name, words in (
        ("CLIP", "2 tensors of post_layernorm."),
        ("Siglip", "11 tensors of head."),
    ):
        config = getattr(transformers, f"{name}Config")(vision_config=SIZES | MLP, text_config=text)
        config.num_labels = 5
        theirs = getattr(transformers, f"{name}ForImageClassification")(config)
        theirs = give_random_values(theirs).eval()
        assert_same(load_vit(theirs.state_dict(), num_heads=3), theirs)
        assert words in capsys.readouterr().out


def test_that_timms_eva_may_have_rotary_positions_is_said(capsys):
    load_vit(timms("vit_small_patch16_rope_ape_224").state_dict(), num_heads=2)
    assert "no rotary positions is a guess" in capsys.readouterr().out


def test_what_is_guessed_of_the_pooling_is_said(capsys):
    load_vit(timms("vit_small_patch16_dinov3").state_dict(), num_heads=2)
    assert 'pool="class_token" is a guess' in capsys.readouterr().out


def test_halves_are_folded_in_single_precision():
    vit = timms("vit_small_patch14_dinov2", init_values=0.1)
    half = {name: tensor.half() for name, tensor in vit.state_dict().items()}
    single = {name: tensor.float() for name, tensor in half.items()}
    ours, same = (load_vit(t, num_heads=2, image_size=64) for t in (half, single))
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(ours(images), same(images))


@pytest.mark.parametrize(
    ("kind", "generation", "words"),
    [
        ("clip", 5, "a clip has no place for all parts"),
        ("deit", 5, "a deit has no place for all parts"),
        ("vit", 3, "generation must be 4 or 5, got 3"),
    ],
)
def test_a_kind_that_has_no_place_for_the_parts_is_refused(kind, generation, words):
    with pytest.raises(ValueError, match=words):
        to_huggingface(tiny_vit(), generation, kind=kind)


def test_a_dinov3_without_registers():
    """The default of transformers, which stores an empty tensor for them."""
    transformers = pytest.importorskip("transformers", reason=WHERE)
    config = transformers.DINOv3ViTConfig(**SIZES | MLP)
    theirs = give_random_values(transformers.DINOv3ViTModel(config)).eval()
    ours = load_vit(theirs.state_dict(), num_heads=3, image_size=32)
    assert_same(ours, theirs)
    other = transformers.DINOv3ViTModel(config)
    other.load_state_dict(to_huggingface(ours), strict=True)
    assert_same(ours, other.eval())


# Real weights

SHARED = (CHECKOUT / os.environ.get("SHARED", "../shared")).resolve()
VIT_S_14 = SHARED / "weights/vit_small_patch14_224.timm.safetensors"


@pytest.mark.skipif(
    not VIT_S_14.is_file(), reason="the real checkpoint is not beside the repository"
)
def test_real_weights_with_their_layer_scale_unfolded_have_the_same_features():
    """For timm, for transformers' DINOv2 and for dinov2's own names."""
    tensors = read_weights(VIT_S_14).tensors
    vit = load_vit(VIT_S_14, num_classes=0)
    scaled = dict(tensors)
    for layer in range(12):
        for number, part in ((1, "attn.proj"), (2, "mlp.fc2")):
            generator = torch.Generator().manual_seed(2 * layer + number)
            scale = torch.rand(384, generator=generator) + 0.5
            scaled[f"blocks.{layer}.ls{number}.gamma"] = scale
            name = f"blocks.{layer}.{part}"
            scaled[f"{name}.weight"] = scaled[f"{name}.weight"] / scale[:, None]
            scaled[f"{name}.bias"] = scaled[f"{name}.bias"] / scale
    images = torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        features = vit(images)
        for given in (
            scaled,
            to_huggingface(vit, 4, kind="dinov2"),
            to_timm(vit, layer_scale=True),
        ):
            again = load_vit(given, num_classes=0)
            assert type(again) is type(vit)
            torch.testing.assert_close(again(images), features, atol=1e-4, rtol=1e-4)
