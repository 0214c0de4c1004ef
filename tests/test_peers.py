"""Our ViT against the published implementations, with random numbers in every tensor.

transformers and vit-pytorch are in requirements/peers.txt; without them their
tests are skipped.
"""

import itertools
from dataclasses import replace

import nbformat
import numpy as np
import pytest
import torch
import torchvision.models
from safetensors.torch import save_file
from tiny_vit import TINY
from torch import nn

from going_modular.model_builder import VIT_CONFIGS, ViT, ViTConfig, create_vit
from going_modular.publishing import notebooks
from going_modular.utils import count_parameters
from going_modular.vit.export import to_huggingface, to_jax, to_timm, to_torchvision
from going_modular.vit.inspect import attention_maps
from going_modular.vit.positions import sincos_2d
from going_modular.vit.published_names import naming_of, spelling_of
from going_modular.vit.weights import config_from_state_dict, load_vit, load_weights

WHERE = "install it with `pip install -r requirements/peers.txt`"


def peer_module(name):
    return pytest.importorskip(name, reason=f"{name} is not installed: {WHERE}")


@torch.no_grad()
def randomize(model, seed):
    """Random numbers everywhere, so that two tensors that change places are noticed."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            values = torch.randn(parameter.shape, generator=generator)
            if isinstance(module, nn.LayerNorm) and name == "weight":
                parameter.copy_(1 + 0.2 * values)
            else:  # matrices and kernels; biases, class token and positions
                parameter.copy_(values * (0.02 if name.endswith("weight") else 0.1))
    return model.eval()


def random_images(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def logits_of(model, images):
    with torch.inference_mode():
        outputs = model.eval()(images)
    return getattr(outputs, "logits", outputs)


def largest_difference(model, other, images):
    difference = logits_of(model, images) - logits_of(other, images)
    return difference.abs().max().item()


# The implementations, at the sizes of the paper


def torchvision_peer(name):
    size, patch = name.removeprefix("ViT-").lower().split("/")
    return getattr(torchvision.models, f"vit_{size}_{patch}")()


def timm_peer(name):
    timm = peer_module("timm")
    size, patch = name.removeprefix("ViT-").split("/")
    words = {"Ti": "tiny", "S": "small", "B": "base", "L": "large"}
    return timm.create_model(f"vit_{words[size]}_patch{patch}_224")


def huggingface_config(c, **settings):
    return peer_module("transformers").ViTConfig(
        image_size=c.image_size,
        patch_size=c.patch_size,
        num_channels=c.in_channels,
        hidden_size=c.embedding_dim,
        num_hidden_layers=c.num_layers,
        num_attention_heads=c.num_heads,
        intermediate_size=c.mlp_dim,
        num_labels=c.num_classes,
        **settings,
    )


def huggingface_peer(name):
    transformers = peer_module("transformers")
    return transformers.ViTForImageClassification(huggingface_config(VIT_CONFIGS[name]))


def torchvision_vit(c, **options):
    sizes = c.num_layers, c.num_heads, c.embedding_dim, c.mlp_dim
    return torchvision.models.VisionTransformer(
        c.image_size, c.patch_size, *sizes, num_classes=c.num_classes, **options
    )


def timm_vit(c, **options):
    return peer_module("timm").models.VisionTransformer(
        img_size=c.image_size,
        patch_size=c.patch_size,
        embed_dim=c.embedding_dim,
        depth=c.num_layers,
        num_heads=c.num_heads,
        mlp_ratio=c.mlp_dim / c.embedding_dim,
        num_classes=c.num_classes,
        **options,
    )


def vit_pytorch_vit(c, **options):
    return peer_module("vit_pytorch").ViT(
        image_size=c.image_size,
        patch_size=c.patch_size,
        num_classes=c.num_classes,
        dim=c.embedding_dim,
        depth=c.num_layers,
        heads=c.num_heads,
        mlp_dim=c.mlp_dim,
        **options,
    )


PEERS = {
    "torchvision": (torchvision_peer, to_torchvision, ("B/32", "B/16", "L/16")),
    "timm": (timm_peer, to_timm, ("Ti/16", "S/16", "B/32", "B/16", "L/16")),
    "transformers": (huggingface_peer, to_huggingface, ("Ti/16", "S/16", "B/32", "B/16", "L/16")),
}
# `make test` compares B/16 with torchvision only; the slow suite has these
LARGE = {*itertools.product(PEERS, ["L/16"]), ("timm", "B/16"), ("transformers", "B/16")}


@pytest.mark.parametrize(
    ("peer", "variant"),
    [
        pytest.param(peer, variant, marks=[pytest.mark.slow] if (peer, variant) in LARGE else [])
        for peer, (_, _, variants) in PEERS.items()
        for variant in variants
    ],
)
def test_same_logits_and_gradients_as_the_published_implementation(peer, variant):
    build, write, _ = PEERS[peer]
    theirs = randomize(build(f"ViT-{variant}"), seed=1)
    ours = randomize(create_vit(f"ViT-{variant}"), seed=2)
    images = random_images(2, 3, 224, 224)

    assert load_weights(ours, theirs.state_dict()) == []
    assert config_from_state_dict(theirs.state_dict()) == ours.config
    assert largest_difference(ours, theirs, images) <= 1e-5

    for model in (ours, theirs):
        outputs = model(images)
        getattr(outputs, "logits", outputs).square().sum().backward()
    naming = naming_of(theirs.state_dict())
    gradients = naming.translate({spelling_of(n): p.grad for n, p in theirs.named_parameters()})
    largest = max(g.abs().max().item() for g in gradients.values())
    for name, parameter in ours.named_parameters():
        gradient = gradients.pop(name)
        difference = (gradient - parameter.grad).abs().max().item()
        bound = 1e-4 * gradient.abs().max().item() + 1e-6 * largest
        assert difference <= bound, (name, difference, bound)
    assert not gradients
    del gradients
    for model in (ours, theirs):
        model.zero_grad(set_to_none=True)

    randomize(ours, seed=3)
    theirs.load_state_dict(write(ours), strict=True)
    assert largest_difference(ours, theirs, images) <= 1e-5


# Files


def test_a_file_of_timms_becomes_a_vit(tmp_path):
    timm = peer_module("timm")
    theirs = randomize(timm.create_model("vit_tiny_patch16_224", num_classes=7), 1)
    save_file(theirs.state_dict(), tmp_path / "vit.safetensors")
    ours = load_vit(tmp_path / "vit.safetensors")
    assert ours.config == ViTConfig(embedding_dim=192, num_heads=3, mlp_dim=768, num_classes=7)
    assert largest_difference(ours, theirs, random_images(2, 3, 224, 224)) <= 1e-5


def test_both_generations_of_hugging_faces_names(tmp_path):
    """`save_pretrained` writes the names of the Hub's files, a model has others."""
    transformers = peer_module("transformers")
    theirs = randomize(transformers.ViTForImageClassification(huggingface_config(TINY)), 1)
    theirs.save_pretrained(tmp_path)
    images = random_images(2, 3, 32, 32)
    ours = load_vit(tmp_path / "model.safetensors", num_heads=3)
    assert "vit.encoder.layer.0.attention.attention.query.weight" in (
        to_huggingface(ours, generation=4)
    )
    assert ours.config.layer_norm_eps == ours.norm.eps == 1e-12
    assert ours.encoder[0].mlp_norm.eps == 1e-12
    assert largest_difference(ours, theirs, images) <= 1e-5

    save_file(to_huggingface(ours, generation=4), tmp_path / "model.safetensors")
    again = transformers.ViTForImageClassification.from_pretrained(tmp_path).eval()
    assert largest_difference(again, theirs, images) == 0


@pytest.mark.parametrize("generation", [4, 5])
def test_hugging_faces_model_without_a_head_and_its_pooler(generation):
    transformers = peer_module("transformers")
    theirs = randomize(transformers.ViTModel(huggingface_config(TINY)), 1)
    images = random_images(2, 3, 32, 32)
    with torch.inference_mode():
        outputs = theirs(images)

    with_layer = ViT(replace(TINY, num_classes=0, representation_size=24)).eval()
    assert load_weights(with_layer, theirs.state_dict()) == []
    written = to_huggingface(with_layer, generation)
    for state_dict in (theirs.state_dict(), written):
        assert load_weights(with_layer, state_dict) == []
        difference = logits_of(with_layer, images) - outputs.pooler_output
        assert difference.abs().max() <= 1e-5

        without = ViT(replace(TINY, num_classes=0)).eval()
        assert load_weights(without, state_dict) == ["pooler.dense.weight", "pooler.dense.bias"]
        difference = logits_of(without, images) - outputs.last_hidden_state[:, 0]
        assert difference.abs().max() <= 1e-5


def test_hugging_faces_eps_matters():
    """At ViT-B/16's size the other eps moves the logits by more than the tolerance."""
    theirs = randomize(huggingface_peer("ViT-B/16"), 1)
    ours = create_vit("ViT-B/16").eval()
    load_weights(ours, theirs.state_dict())
    images = random_images(2, 3, 224, 224)
    right = largest_difference(ours, theirs, images)
    for module in ours.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6
    assert largest_difference(ours, theirs, images) > 1e-5 >= right


@pytest.mark.parametrize("gelu", ["exact", "tanh"])
def test_timms_own_loader_reads_the_official_layout_that_we_write(tmp_path, gelu):
    timm = peer_module("timm")
    ours = randomize(create_vit("ViT-S/16", num_classes=7, gelu=gelu), 1)
    np.savez(tmp_path / "vit.npz", **to_jax(ours))
    names = {"exact": "gelu", "tanh": "gelu_tanh"}
    theirs = timm.create_model("vit_small_patch16_224", num_classes=7, act_layer=names[gelu]).eval()
    timm.models.vision_transformer._load_weights(theirs, str(tmp_path / "vit.npz"))
    images = random_images(2, 3, 224, 224)
    assert logits_of(ours, images).std() > 0.1
    assert largest_difference(ours, theirs, images) <= 1e-5
    again = load_vit(tmp_path / "vit.npz", gelu=gelu)
    assert largest_difference(ours, again, images) == 0
    other = load_vit(tmp_path / "vit.npz", gelu="exact" if gelu == "tanh" else "tanh")
    assert largest_difference(ours, other, images) > 1e-5


# Options


def test_mean_pooling_and_images_that_are_not_square_as_in_timm():
    ours = randomize(ViT(replace(TINY, image_size=(32, 48), pool="mean")), 1)
    theirs = timm_vit(ours.config, class_token=False, global_pool="avg", fc_norm=False)
    theirs.load_state_dict(to_timm(ours), strict=True)
    assert largest_difference(ours, theirs, random_images(2, 3, 32, 48)) <= 1e-5


def test_representation_layer_as_in_torchvision():
    theirs = randomize(torchvision_vit(TINY, representation_size=16), 1)
    config = replace(TINY, representation_size=16)
    assert config_from_state_dict(theirs.state_dict(), num_heads=3) == config
    ours = ViT(config).eval()
    load_weights(ours, theirs.state_dict())
    assert largest_difference(ours, theirs, random_images(2, 3, 32, 32)) <= 1e-5
    assert to_torchvision(ours).keys() == theirs.state_dict().keys()


# Attention maps, each peer by its own way of showing them


def maps_of_torchvision(theirs, images):
    maps = []

    def look(attention, inputs):
        z = inputs[0]
        maps.append(
            nn.MultiheadAttention.forward(attention, z, z, z, average_attn_weights=False)[1]
        )

    for block in theirs.encoder.layers:
        block.self_attention.register_forward_pre_hook(look)
    logits_of(theirs, images)
    return torch.stack(maps, dim=1)


def maps_of_timm(theirs, images):
    maps = []
    for block in theirs.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda *call: maps.append(call[2]))
    logits_of(theirs, images)
    return torch.stack(maps, dim=1)


def maps_of_transformers(theirs, images):
    theirs.set_attn_implementation("eager")
    with torch.inference_mode():
        return torch.stack(theirs(images, output_attentions=True).attentions, dim=1)


@pytest.mark.parametrize("peer", PEERS)
def test_the_attention_maps_are_those_of_the_published_implementation(peer):
    build, _, _ = PEERS[peer]
    theirs = randomize(build("ViT-B/32"), seed=1)
    with torch.no_grad():  # sharper attention, which shows mistakes better
        for name, parameter in theirs.named_parameters():
            if "attn" in name or "attention" in name:
                parameter *= 3
    ours, images = load_vit(theirs.state_dict()), random_images(2, 3, 224, 224)
    show = {
        "torchvision": maps_of_torchvision,
        "timm": maps_of_timm,
        "transformers": maps_of_transformers,
    }
    expected = show[peer](theirs, images)
    maps = attention_maps(ours, images)
    assert maps.shape == expected.shape == (2, 12, 12, 50, 50)
    assert maps.max() > 0.2  # far from uniform
    torch.testing.assert_close(maps, expected, rtol=1e-3, atol=1e-5)


def test_sines_and_cosines_as_in_vit_pytorch():
    simple_vit = peer_module("vit_pytorch.simple_vit")
    theirs = simple_vit.posemb_sincos_2d(h=4, w=6, dim=24)
    torch.testing.assert_close(sincos_2d((4, 6), 24)[0], theirs)


# What notebook 07 says about them: its table, measured on small models with dropout


def torchvision_with_dropout(c, rate):
    vit = torchvision_vit(c, dropout=rate)
    return vit, vit.encoder.layers[0].self_attention.dropout


def timm_with_dropout(c, rate):
    vit = timm_vit(c, pos_drop_rate=rate, proj_drop_rate=rate)
    return vit, vit.blocks[0].attn.attn_drop.p


def huggingface_with_dropout(c, rate):
    transformers = peer_module("transformers")
    config = huggingface_config(c, hidden_dropout_prob=rate)
    vit = transformers.ViTForImageClassification(config)
    return vit, vit.vit.layers[0].attention.attention_dropout


def vit_pytorch_with_dropout(c, rate):
    vit = vit_pytorch_vit(c, dropout=rate, emb_dropout=rate)
    return vit, vit.transformer.layers[0][0].dropout.p


def ours_with_dropout(c, rate):
    vit = ViT(replace(c, dropout=rate))
    return vit, vit.encoder[0].attention.attention_dropout


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("this series", ours_with_dropout),
        ("torchvision", torchvision_with_dropout),
        ("timm", timm_with_dropout),
        ("transformers", huggingface_with_dropout),
        ("vit-pytorch", vit_pytorch_with_dropout),
    ],
)
def test_the_table_of_notebook_07_is_true(name, build):
    model, attention_rate = build(TINY, 0.5)
    norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm)]
    (eps,) = {m.eps for m in norms}
    gelu = next(m for m in model.modules() if "GELU" in type(m).__name__)
    x = torch.linspace(-3, 3, 100)
    biases = [n for n in model.state_dict() if n.endswith("bias")]

    # What reaches the second layer of an MLP in training: zeros, where dropout was
    inputs = []
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.in_features == TINY.mlp_dim:
            module.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    with torch.no_grad():
        model.train()(random_images(2, 3, 32, 32))
    zeros = (inputs[0] == 0).float().mean()

    row = [
        f"{eps:.0e}".replace("e-0", "e-"),
        "exact" if torch.equal(gelu(x), nn.functional.gelu(x)) else "tanh",
        "yes" if any("qkv" in n or "q_proj" in n or "in_proj" in n for n in biases) else "no",
        str(len(norms) + 2 * (12 - TINY.num_layers)),  # with B/16's twelve blocks
        "yes" if zeros > 0.4 else "no",
        "shares the MLP's" if attention_rate == 0.5 else "set separately",
    ]
    path = notebooks.NOTEBOOKS[7]
    text = "\n".join(c.source for c in nbformat.read(path, as_version=4).cells)
    assert f"| {name} | {' | '.join(row)} |" in text


def test_vit_pytorchs_default_is_another_model():
    theirs = vit_pytorch_vit(VIT_CONFIGS["ViT-B/16"])
    assert count_parameters(theirs) == 86_543_080
    with pytest.raises(ValueError, match="not the names of a ViT that is known here.*mlp_head"):
        load_weights(create_vit("ViT-B/16"), theirs.state_dict())
