import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_vit import TINY
from torch import nn

from going_modular.model_builder import (
    VIT_CONFIGS,
    MLPBlock,
    MultiheadSelfAttentionBlock,
    PatchEmbedding,
    TransformerEncoderBlock,
    ViT,
    ViTConfig,
    create_vit,
)
from going_modular.utils import autocast, count_parameters, give_random_values


def tiny(**overrides):
    return ViT(replace(TINY, **overrides))


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


# Sizes


@pytest.mark.parametrize(
    ("name", "with_1000", "with_3", "headless", "block"),
    [
        ("ViT-Ti/16", 5_717_416, 5_524_995, 5_524_416, 444_864),
        ("ViT-S/16", 22_050_664, 21_666_819, 21_665_664, 1_774_464),
        ("ViT-B/16", 86_567_656, 85_800_963, 85_798_656, 7_087_872),
        ("ViT-B/32", 88_224_232, 87_457_539, 87_455_232, 7_087_872),
        ("ViT-L/16", 304_326_632, 303_304_707, 303_301_632, 12_596_224),
        ("ViT-L/32", 306_535_400, 305_513_475, 305_510_400, 12_596_224),
        ("ViT-H/14", 632_045_800, 630_768_643, 630_764_800, 19_677_440),
    ],
)
def test_parameter_counts(name, with_1000, with_3, headless, block):
    with torch.device("meta"):
        counts = [count_parameters(create_vit(name, num_classes=k)) for k in (1000, 3, 0)]
        one_block = count_parameters(create_vit(name, num_layers=1).encoder[0])
    assert counts == [with_1000, with_3, headless]
    assert one_block == block


def test_parameter_counts_of_parts_of_vit_b():
    with torch.device("meta"):
        assert count_parameters(MultiheadSelfAttentionBlock()) == 2_362_368
        assert count_parameters(MLPBlock()) == 4_722_432
        assert count_parameters(PatchEmbedding()) == 590_592
        at_384 = create_vit("ViT-B/16", image_size=384)
    assert count_parameters(at_384) == 86_859_496
    assert at_384.pos_embedding.numel() == 443_136


def test_seven_variants():
    assert list(VIT_CONFIGS) == (
        "ViT-Ti/16 ViT-S/16 ViT-B/32 ViT-B/16 ViT-L/32 ViT-L/16 ViT-H/14".split()
    )
    assert VIT_CONFIGS["ViT-B/16"] == ViTConfig()
    assert VIT_CONFIGS["ViT-H/14"].num_patches == 256


def test_an_image_that_is_not_square():
    config = ViTConfig(image_size=[224, 320])  # a list, as JSON has it
    assert config.image_size == config.image_hw == (224, 320)
    assert config.grid == (14, 20) and config.num_patches == 280
    assert ViTConfig().image_hw == (224, 224) and ViTConfig().grid == (14, 14)
    assert config == ViTConfig(image_size=(224, 320)) and hash(config)
    assert ViTConfig(image_size=(224, 224)) == ViTConfig(image_size=224)
    assert tiny(image_size=(32, 48))(torch.randn(2, 3, 32, 48)).shape == (2, 5)


def test_the_representation_layer_is_a_tanh_layer_before_the_head():
    vit = give_random_values(tiny(representation_size=10)).double().eval()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    token = vit.forward_features(images)[:, 0]
    dense = vit.representation[0]
    y = torch.tanh(token @ dense.weight.T + dense.bias)
    close(vit(images), y @ vit.head.weight.T + vit.head.bias)
    assert tiny(representation_size=10, num_classes=0)(images.float()).shape == (2, 10)


def test_mean_pooling_has_no_class_token():
    for pool, count in (("class_token", 1), ("mean", 0)):
        vit = tiny(pool=pool)
        assert vit.config.num_class_tokens == count
        assert vit.positions((4, 4)).shape[1] == 16 + count
        assert hasattr(vit, "class_token") == bool(count)


def test_number_of_heads_costs_no_parameters():
    counts = {count_parameters(tiny(num_heads=h)) for h in (1, 2, 3, 8)}
    assert len(counts) == 1


def test_shapes():
    images = torch.randn(4, 3, 32, 32)
    assert PatchEmbedding(3, 8, 24)(images).shape == (4, 16, 24)
    assert tiny()(images).shape == (4, 5)
    assert tiny().forward_features(images).shape == (4, 17, 24)
    assert tiny(num_classes=0)(images).shape == (4, 24)
    assert tiny(in_channels=1)(images[:, :1]).shape == (4, 5)
    for part in (
        MultiheadSelfAttentionBlock(24, 3),
        MLPBlock(24, 40),
        TransformerEncoderBlock(24, 3, 40),
    ):
        assert part(torch.randn(2, 7, 24)).shape == (2, 7, 24)


# Errors


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"image_size": 225}, ["image_size=225", "patch_size=16", "224 or 240"]),
        ({"image_size": 8}, ["image_size=8", "patch_size=16"]),
        ({"num_heads": 5}, ["embedding_dim=768", "num_heads=5", "765 or 770", "4 or 6"]),
        ({"patch_size": 0}, ["patch_size", "0"]),
        ({"num_layers": -1}, ["num_layers", "-1"]),
        ({"num_classes": -1}, ["num_classes", "-1"]),
        ({"embedding_dim": 76.8}, ["embedding_dim", "76.8"]),
        ({"dropout": 1.0}, ["dropout", "1.0"]),
        ({"attention_dropout": -0.1}, ["attention_dropout", "-0.1"]),
        ({"stochastic_depth": 1.0}, ["stochastic_depth", "1.0"]),
        ({"layer_norm_eps": 0.0}, ["layer_norm_eps"]),
        ({"gelu": "relu"}, ["gelu", "relu", "exact", "tanh"]),
        ({"pool": "max"}, ["pool", "max", "class_token", "mean"]),
        ({"pos_embedding": "1d"}, ["pos_embedding", "1d", "learned_1d", "none"]),
        (
            {"pos_embedding": "sincos_2d", "embedding_dim": 6, "num_heads": 3},
            ["sincos_2d", "divisible by 4", "6"],
        ),
        ({"representation_size": -1}, ["representation_size", "-1"]),
        ({"image_size": (224, 230)}, ["image_size=230", "224 or 240"]),
        ({"image_size": (224, 224, 3)}, ["image_size", "(H, W)", "(224, 224, 3)"]),
        ({"image_size": 224.0}, ["image_size", "224.0"]),
        ({"num_layers": True}, ["num_layers", "True"]),
        # As a damaged file may hold them
        ({"dropout": "0.1"}, ["dropout", "'0.1'"]),
        ({"stochastic_depth": None}, ["stochastic_depth", "None"]),
        ({"attention_dropout": float("nan")}, ["attention_dropout", "nan"]),
        ({"layer_norm_eps": "1e-6"}, ["layer_norm_eps", "'1e-6'"]),
        ({"layer_norm_eps": float("inf")}, ["layer_norm_eps", "inf"]),
        ({"gelu": ["exact"]}, ["gelu", "['exact']"]),
        ({"image_size": [[224], [224]]}, ["image_size", "[224]"]),
        ({"image_size": {"height": 224}}, ["image_size", "{'height': 224}"]),
        ({"image_size": []}, ["image_size", "(H, W)"]),
        ({"embedding_dim": None}, ["embedding_dim", "None"]),
    ],
)
def test_impossible_configurations_say_what_clashes(overrides, words):
    with pytest.raises(ValueError) as error:
        ViTConfig(**overrides)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(
    "shape", [(3, 32, 32), (1, 1, 32, 32), (1, 3, 40, 40), (1, 3, 32, 40), (1, 3, 30, 30)]
)
def test_wrong_images_name_both_shapes(shape):
    with pytest.raises(ValueError, match="expected") as error:
        tiny()(torch.zeros(shape))
    assert "(B, 3, 32, 32)" in str(error.value) and str(shape) in str(error.value)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 1, 32, 32), (1, 3, 32, 30)])
def test_wrong_patches_name_both_shapes(shape):
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)") as error:
        PatchEmbedding(3, 8, 24)(torch.zeros(shape))
    assert str(shape) in str(error.value)


def test_impossible_parts_say_what_is_wrong():
    for build, words in (
        (lambda: MultiheadSelfAttentionBlock(24, 5), "num_heads=4 or 6"),
        (lambda: MultiheadSelfAttentionBlock(24, 0), "num_heads must be"),
        (lambda: TransformerEncoderBlock(24, -1, 40), "num_heads must be"),
        (lambda: PatchEmbedding(3, 0, 24), "patch_size must be"),
        (lambda: PatchEmbedding(0, 8, 24), "in_channels must be"),
        (lambda: MLPBlock(24, 40, gelu="relu"), "'relu'"),
        (lambda: PatchEmbedding(3, 8, 24)(torch.zeros(1, 3, 0, 0)), "expected images"),
    ):
        with pytest.raises(ValueError, match=words):
            build()


def test_unknown_variant_lists_the_known():
    with pytest.raises(ValueError, match="ViT-B/16"):
        create_vit("ViT-B/17")


# Equations


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def layer_norm(x, weight, bias, eps=1e-6):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + eps) * weight + bias


def gelu(x):
    return x / 2 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def test_the_whole_model_is_equations_1_to_4_as_printed():
    """In NumPy, one image, one head and one line of the paper at a time."""
    vit = give_random_values(tiny()).double().eval()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    w = {name: tensor.numpy() for name, tensor in vit.state_dict().items()}
    P, C, D, L, h = 8, 3, 24, 2, 3
    D_h = D // h
    E = w["patch_embedding.projection.weight"].reshape(D, C * P * P).T  # (P²C, D)
    x_class, E_pos = w["class_token"][0], w["pos_embedding"][0]

    def MSA(z, layer):
        U_qkv = w[f"encoder.{layer}.attention.qkv.weight"].T  # (D, 3D)
        bias = w[f"encoder.{layer}.attention.qkv.bias"]
        heads = []
        for i in range(h):
            own = np.arange(i * D_h, (i + 1) * D_h)  # of the D columns, those of head i
            columns = np.concatenate([own, D + own, 2 * D + own])
            q, k, v = np.split(z @ U_qkv[:, columns] + bias[columns], 3, axis=-1)  # 5
            A = softmax(q @ k.T / np.sqrt(D_h))  # equation 6
            heads.append(A @ v)  # equation 7
        U_msa = w[f"encoder.{layer}.attention.projection.weight"].T  # (h · D_h, D)
        bias = w[f"encoder.{layer}.attention.projection.bias"]
        return np.concatenate(heads, axis=-1) @ U_msa + bias  # equation 8

    def MLP(z, layer):
        name = f"encoder.{layer}.mlp."
        z = gelu(z @ w[name + "expand.weight"].T + w[name + "expand.bias"])
        return z @ w[name + "contract.weight"].T + w[name + "contract.bias"]

    def LN(z, name):
        return layer_norm(z, w[name + ".weight"], w[name + ".bias"])

    logits = []
    for image in images.numpy():
        x_p = [
            image[:, row : row + P, column : column + P].reshape(C * P * P)
            for row in range(0, 32, P)
            for column in range(0, 32, P)
        ]
        projected = [x @ E + w["patch_embedding.projection.bias"] for x in x_p]
        z = np.stack([x_class[0], *projected]) + E_pos  # equation 1
        for layer in range(L):
            z_prime = MSA(LN(z, f"encoder.{layer}.attention_norm"), layer) + z  # 2
            z = MLP(LN(z_prime, f"encoder.{layer}.mlp_norm"), layer) + z_prime  # 3
        y = LN(z[0], "norm")  # equation 4
        logits.append(y @ w["head.weight"].T + w["head.bias"])
    with torch.no_grad():
        difference = np.abs(vit(images).numpy() - np.stack(logits)).max()
    assert difference <= 1e-10 and np.abs(logits).max() > 0.1


@pytest.mark.parametrize("pool", ["class_token", "mean"])
def test_an_exported_program_takes_any_number_of_images(pool):
    """`len(images)` would make the number of images in the example a constant."""
    vit = give_random_values(tiny(pool=pool)).eval()
    images = torch.randn(5, 3, 32, 32)
    batch = {0: torch.export.Dim("B")}
    program = torch.export.export(vit, (images[:2],), dynamic_shapes=(batch,)).module()
    with torch.no_grad():
        for count in (1, 2, 5):
            assert torch.equal(program(images[:count]), vit(images[:count]))


def test_equation_1_is_a_linear_layer_on_unfolded_patches():
    vit = give_random_values(tiny()).double().eval()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    x_p = F.unfold(images, kernel_size=8, stride=8).transpose(1, 2)  # (B, N, P²C)
    E = vit.patch_embedding.projection.weight.flatten(1).T  # (P²C, D): 192 × 24
    patches = x_p @ E + vit.patch_embedding.projection.bias
    close(vit.patch_embedding(images), patches)
    z_0 = torch.cat([vit.class_token.expand(2, -1, -1), patches], 1) + vit.pos_embedding
    vit.encoder = vit.norm = nn.Identity()
    close(vit.forward_features(images), z_0)


def test_equation_2_one_head_at_a_time():
    D, h, tokens = 24, 3, 7
    attention = give_random_values(MultiheadSelfAttentionBlock(D, h)).double().eval()
    z = torch.randn(2, tokens, D, dtype=torch.float64)
    U_q, U_k, U_v = attention.qkv.weight.chunk(3)
    b_q, b_k, b_v = attention.qkv.bias.chunk(3)
    heads = []
    for i in range(h):
        rows = slice(i * D // h, (i + 1) * D // h)
        q, k, v = (z @ U[rows].T + b[rows] for U, b in ((U_q, b_q), (U_k, b_k), (U_v, b_v)))
        A = (q @ k.transpose(1, 2) / math.sqrt(D / h)).softmax(dim=-1)
        heads.append(A @ v)
    U_msa, b_msa = attention.projection.weight, attention.projection.bias
    close(attention(z), torch.cat(heads, dim=-1) @ U_msa.T + b_msa)


def test_attention_equals_pytorchs():
    ours = give_random_values(MultiheadSelfAttentionBlock(24, 3)).double().eval()
    theirs = nn.MultiheadAttention(24, 3, batch_first=True).double().eval()
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.qkv.weight,
            "in_proj_bias": ours.qkv.bias,
            "out_proj.weight": ours.projection.weight,
            "out_proj.bias": ours.projection.bias,
        }
    )
    z = torch.randn(2, 7, 24, dtype=torch.float64)
    close(ours(z), theirs(z, z, z)[0])


@pytest.mark.parametrize("gelu", ["exact", "tanh"])
def test_equation_3(gelu):
    mlp = give_random_values(MLPBlock(24, 40, gelu=gelu)).double().eval()
    z = torch.randn(2, 7, 24, dtype=torch.float64)
    x = z @ mlp.expand.weight.T + mlp.expand.bias
    if gelu == "exact":
        x = x / 2 * (1 + torch.erf(x / math.sqrt(2)))
    else:
        x = x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    close(mlp(z), x @ mlp.contract.weight.T + mlp.contract.bias)


def test_block_is_equations_2_and_3_and_equals_pytorchs():
    ours = give_random_values(TransformerEncoderBlock(24, 3, 40)).double().eval()
    z = torch.randn(2, 7, 24, dtype=torch.float64)
    z_prime = ours.attention(ours.attention_norm(z)) + z
    close(ours(z), ours.mlp(ours.mlp_norm(z_prime)) + z_prime)

    theirs = nn.TransformerEncoderLayer(
        24, 3, 40, activation="gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
    ).double()
    names = {
        "self_attn.in_proj_": "attention.qkv.",
        "self_attn.out_proj.": "attention.projection.",
        "linear1.": "mlp.expand.",
        "linear2.": "mlp.contract.",
        "norm1.": "attention_norm.",
        "norm2.": "mlp_norm.",
    }
    state = ours.state_dict()
    theirs.load_state_dict(
        {a + w: state[b + w] for a, b in names.items() for w in ("weight", "bias")}
    )
    close(ours(z), theirs.eval()(z))


def test_equation_4_reads_the_class_token_after_layer_norm():
    vit = give_random_values(tiny()).double().eval()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    token = vit.forward_features(images)[:, 0]
    close(vit(images), token @ vit.head.weight.T + vit.head.bias)
    before = []
    vit.norm.register_forward_pre_hook(lambda _, inputs: before.append(inputs[0]))
    vit(images)
    z = before[0][:, 0]
    variance = z.var(dim=-1, unbiased=False, keepdim=True)
    normed = (z - z.mean(dim=-1, keepdim=True)) / (variance + 1e-6).sqrt()
    close(token, normed * vit.norm.weight + vit.norm.bias)


def test_order_of_patches_matters_only_through_positions():
    vit = give_random_values(tiny()).double().eval()
    images = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    shuffled = torch.cat([images[:, :, 8:], images[:, :, :8]], dim=2)  # whole patches
    assert (vit(images) - vit(shuffled)).abs().max() > 1e-3
    nn.init.zeros_(vit.pos_embedding)
    close(vit(images), vit(shuffled))


# Numerics


def test_layer_norm_eps_and_gelu_reach_every_layer():
    vit = tiny(layer_norm_eps=1e-3, gelu="tanh")
    norms = [m for m in vit.modules() if isinstance(m, nn.LayerNorm)]
    assert len(norms) == 5 and all(m.eps == 1e-3 for m in norms)
    assert all(b.mlp.gelu.approximate == "tanh" for b in vit.encoder)
    assert all(m.eps == 1e-6 for m in tiny().modules() if isinstance(m, nn.LayerNorm))


def test_dropout_is_where_appendix_b1_puts_it():
    """Zeros appear after each dense layer except qkv, and after adding positions."""
    torch.manual_seed(0)
    vit = give_random_values(tiny(dropout=0.5)).train()
    zeros = {}

    def record(name):
        def hook(module, inputs, output):
            zeros[name] = (output == 0).float().mean().item()

        return hook

    block = vit.encoder[0]
    for name, module in {
        "positions": vit.dropout,
        "qkv": block.attention.qkv,
        "attention": block.attention,
        "mlp": block.mlp,
    }.items():
        module.register_forward_hook(record(name))
    hidden = []
    block.mlp.contract.register_forward_pre_hook(lambda _, x: hidden.append(x[0]))
    vit(torch.randn(16, 3, 32, 32))
    assert set(zeros) == {"positions", "qkv", "attention", "mlp"}
    assert zeros.pop("qkv") == 0
    zeros["mlp, inside"] = (hidden[0] == 0).float().mean().item()
    assert all(abs(share - 0.5) < 0.05 for share in zeros.values()), zeros


def test_attention_dropout_is_passed_on():
    images = torch.randn(1, 3, 32, 32)
    without = give_random_values(tiny(dropout=0.0)).train()
    assert torch.equal(without(images), without(images))
    with_it = give_random_values(tiny(dropout=0.0, attention_dropout=0.5)).train()
    assert not torch.equal(with_it(images), with_it(images))
    assert torch.equal(with_it.eval()(images), with_it(images))
    assert torch.equal(with_it(images), without.eval()(images))


def test_stochastic_depth_leaves_a_part_out_or_scales_it_up():
    """While training, each part of each image is gone, or divided by 1 - 0.4."""
    block = give_random_values(TransformerEncoderBlock(24, 3, 40, dropout=0.0)).eval()
    dropping = TransformerEncoderBlock(24, 3, 40, dropout=0.0, stochastic_depth=0.4)
    dropping.load_state_dict(block.state_dict())
    z = torch.randn(64, 5, 24)
    torch.testing.assert_close(dropping.eval()(z), block(z))

    def with_parts(attention, mlp):
        y = z + attention * block.attention(block.attention_norm(z)) / 0.6
        return y + mlp * block.mlp(block.mlp_norm(y)) / 0.6

    torch.manual_seed(0)
    seen = dropping.train()(z)
    choices = {(a, m): with_parts(a, m) for a in (0, 1) for m in (0, 1)}
    counts = {
        choice: sum(
            torch.allclose(one, other, atol=1e-5) for one, other in zip(seen, expected, strict=True)
        )
        for choice, expected in choices.items()
    }
    assert sum(counts.values()) == 64
    for (a, m), count in counts.items():
        chance = (0.6 if a else 0.4) * (0.6 if m else 0.4)
        assert abs(count - 64 * chance) < 4 * (64 * chance * (1 - chance)) ** 0.5


def test_stochastic_depth_grows_linearly_with_depth():
    vit = tiny(num_layers=5, stochastic_depth=0.2)
    assert [block.drop_path.p for block in vit.encoder] == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    assert tiny(num_layers=1, stochastic_depth=0.2).encoder[0].drop_path.p == 0


def test_start_values():
    torch.manual_seed(0)
    D, mlp_dim, P = 192, 768, 16
    vit = create_vit("ViT-Ti/16", num_layers=2, num_classes=3)
    assert abs(vit.pos_embedding.std() - 0.02) < 5e-4
    assert abs(vit.pos_embedding.mean()) < 5e-4
    for zero in (vit.class_token, vit.head.weight, vit.head.bias):
        assert not zero.any()

    block = vit.encoder[0]
    bound = math.sqrt(6 / (D + D))  # Xavier-uniform of a D×D matrix
    for matrix in (*block.attention.qkv.weight.chunk(3), block.attention.projection.weight):
        assert 0.99 * bound < matrix.abs().max() <= bound
        assert abs(matrix.std() - bound / math.sqrt(3)) < 0.01 * bound
    assert not block.attention.qkv.bias.any()
    assert not block.attention.projection.bias.any()

    bound = math.sqrt(6 / (D + mlp_dim))
    for layer in (block.mlp.expand, block.mlp.contract):
        assert 0.99 * bound < layer.weight.abs().max() <= bound
        assert 0.8e-6 < layer.bias.std() < 1.2e-6

    weight = vit.patch_embedding.projection.weight
    std = math.sqrt(1 / (3 * P * P))
    assert abs(weight.std() / std - 1) < 0.01
    assert weight.abs().max() <= 2 * std / 0.8796 and not (
        vit.patch_embedding.projection.bias.any()
    )


def test_the_representation_layer_starts_as_in_jax_and_has_no_dropout():
    torch.manual_seed(0)
    layer = create_vit("ViT-Ti/16", num_layers=1, representation_size=192).representation
    assert [type(part) for part in layer] == [nn.Linear, nn.Tanh]
    weight, std = layer[0].weight, math.sqrt(1 / 192)  # LeCun normal, truncated
    assert abs(weight.std() / std - 1) < 0.01
    assert weight.abs().max() <= 2 * std / 0.8796 and not layer[0].bias.any()


def test_layers_do_not_start_equal():
    first, second = tiny().encoder
    assert not torch.equal(first.mlp.expand.weight, second.mlp.expand.weight)


def test_every_parameter_gets_a_gradient():
    vit = give_random_values(tiny())
    vit(torch.randn(2, 3, 32, 32)).sum().backward()
    without = [n for n, p in vit.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_to_import_it_takes_little_more_than_to_import_PyTorch():
    """torchvision takes as long again, and torch._dynamo most of that."""
    program = (
        "import sys, going_modular.model_builder\n"
        "print([name for name in ('torchvision', 'torch._dynamo') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_the_first_layer_keeps_full_precision_in_autocast():
    """Rounded to 16 bits, it changed the features of some photos by more than all others."""
    vit = tiny().eval()
    images = torch.randn(2, 3, *vit.config.image_hw)
    patches = vit.patch_embedding(images)
    with autocast("cpu", "bfloat16"):
        assert torch.equal(vit.patch_embedding(images), patches)
        assert vit.patch_embedding(images.bfloat16()).dtype == torch.float32  # as a stem's
        assert vit.encoder[0].mlp(torch.ones(1, 1, 24)).dtype == torch.bfloat16
    half = tiny().bfloat16()
    assert half.patch_embedding(images.bfloat16()).dtype == torch.bfloat16
