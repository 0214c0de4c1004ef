"""What holds for every valid input, tried on inputs that hypothesis makes up.

They are the same in every run.
"""

import math
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, configuration, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from torch import nn

from going_modular.engine import Method
from going_modular.images.reading import load_image
from going_modular.images.transforms import IMAGENET, denormalize, evaluation_transform
from going_modular.model_builder import ViT, ViTConfig
from going_modular.training.checkpoints import Checkpoint, set_random_state
from going_modular.training.progress import Progress, Totals
from going_modular.utils import project_path
from going_modular.vit.config import CHOICES, LARGEST, OPTIONAL_SIZES, PROBABILITIES, SIZES
from going_modular.vit.files import read_vit, read_weights, write_vit
from going_modular.vit.inspect import attention_maps
from going_modular.vit.positions import interpolate_pos_embedding
from going_modular.vit.weights import load_vit

configuration.set_hypothesis_home_dir(project_path("build/hypothesis"))
settings.register_profile(
    "the same in every run",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("the same in every run")

# Configurations


@st.composite
def fields_of_configs(draw, most=4):
    """Fields of a `ViTConfig` that go together; `most` bounds each factor of a width."""
    some = st.integers(1, most)
    patch, heads, rows, columns = (draw(some) for _ in range(4))
    kind = draw(st.sampled_from(CHOICES["pos_embedding"]))
    parts = {"sincos_2d": 4, "learned_2d": 2}.get(kind, 1)
    height, width = rows * patch, columns * patch
    below_1 = st.floats(0, 1, exclude_max=True)
    return dict(
        image_size=height if height == width and draw(st.booleans()) else (height, width),
        patch_size=patch,
        in_channels=draw(some),
        embedding_dim=heads * parts * draw(some),
        num_layers=draw(st.integers(1, 3)),
        num_heads=heads,
        mlp_dim=draw(some),
        num_classes=draw(st.integers(0, most)),
        dropout=draw(below_1),
        attention_dropout=draw(below_1),
        stochastic_depth=draw(below_1),
        layer_norm_eps=draw(st.floats(1e-12, 1.0)),
        gelu=draw(st.sampled_from(CHOICES["gelu"])),
        pool=draw(st.sampled_from(CHOICES["pool"])),
        representation_size=draw(st.integers(0, most)),
        pos_embedding=kind,
    )


def configs(most=4):
    return fields_of_configs(most).map(lambda fields: ViTConfig(**fields))


def parameters_in_the_paper(config):
    """How many numbers a ViT learns, from equations 1 to 4 and Table 1."""
    (H, W), P, C = config.image_hw, config.patch_size, config.in_channels
    D, M = config.embedding_dim, config.mlp_dim
    R, K = config.representation_size, config.num_classes
    tokens = H * W // P**2 + (config.pool == "class_token")
    positions = {"learned_1d": tokens * D, "learned_2d": (H // P + W // P) * D // 2}
    embedding = (P * P * C + 1) * D + D * (config.pool == "class_token")
    norm = 2 * D
    attention = 3 * (D + 1) * D + (D + 1) * D
    mlp = (D + 1) * M + (M + 1) * D
    head = R * (D + 1) + K * ((R or D) + 1)
    blocks = config.num_layers * (2 * norm + attention + mlp)
    return embedding + positions.get(config.pos_embedding, 0) + blocks + norm + head


@settings(max_examples=25)
@given(configs(most=24), st.integers(1, 5))
def test_each_stage_has_the_shape_that_the_sizes_give(config, B):
    """Without memory, so that the sizes can be those of real models."""
    with torch.device("meta"):
        vit = ViT(config).eval()
        images = torch.empty(B, config.in_channels, *config.image_hw)
    (H, W), P, D, K = config.image_hw, config.patch_size, config.embedding_dim, config.num_classes
    N = H * W // P**2
    T = N + 1 if config.pool == "class_token" else N
    assert config.num_patches == N and config.grid == (H // P, W // P)
    assert vit.patch_embedding(images).shape == (B, N, D)
    z = vit.embed(images)
    assert z.shape == vit.positions(config.grid).expand(B, -1, -1).shape == (B, T, D)
    for block in vit.encoder:
        qkv = block.attention.queries_keys_values(z)
        assert qkv.shape == (3, B, config.num_heads, T, D // config.num_heads)
        assert block.mlp.expand(z).shape == (B, T, config.mlp_dim)
        z = block(z)
        assert z.shape == (B, T, D)
    assert len(vit.encoder) == config.num_layers
    assert vit.forward_features(images).shape == (B, T, D)
    assert vit(images).shape == (B, K or config.representation_size or D)
    assert sum(p.numel() for p in vit.parameters()) == parameters_in_the_paper(config)


@given(configs(), st.integers(1, 3), st.integers(0, 99))
def test_attention_is_shared_out_and_logits_are_finite(config, B, seed):
    vit = with_random_values(ViT(config), seed)
    images = torch.randn(B, config.in_channels, *config.image_hw)
    with torch.no_grad():
        maps, logits = attention_maps(vit, images), vit(images)
    T = config.num_patches + config.num_class_tokens
    assert maps.shape == (B, config.num_layers, config.num_heads, T, T)
    assert (maps >= 0).all() and torch.isfinite(logits).all()
    torch.testing.assert_close(maps.sum(dim=-1), torch.ones(maps.shape[:-1]))


def with_random_values(vit, seed):
    """In evaluation mode, and with numbers of usual sizes in all parameters."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.normal_()
    return vit.eval()


NO_NUMBERS = st.none() | st.booleans() | st.text(max_size=5) | st.just([1]) | st.just({})
NO_SIZES = (
    NO_NUMBERS
    | st.floats()
    | st.integers(-(10**30), -1)
    | st.integers(LARGEST + 1, 10**30)
    | st.sampled_from([1.0, 1 + 0j, b"1"])
)
NO_PROBABILITIES = (
    NO_NUMBERS
    | st.floats(max_value=0, exclude_max=True)
    | st.floats(min_value=1)
    | st.integers(max_value=-1)
    | st.integers(min_value=1)
    | st.sampled_from([math.nan, 10**400])
)
NO_EPSILONS = (
    NO_NUMBERS
    | st.floats(max_value=0)
    | st.integers(max_value=0)
    | st.sampled_from([math.nan, math.inf, 10**400])
)
ALL_CHOICES = [choice for choices in CHOICES.values() for choice in choices]
NO_CHOICES = (NO_NUMBERS | st.floats() | st.integers()).filter(lambda v: v not in ALL_CHOICES)
NO_IMAGE_SIZES = NO_SIZES | st.just(0) | st.lists(NO_SIZES, min_size=1, max_size=3)
WRONG = {
    **dict.fromkeys(SIZES, NO_SIZES | st.just(0)),
    **dict.fromkeys(OPTIONAL_SIZES, NO_SIZES),
    **dict.fromkeys(PROBABILITIES, NO_PROBABILITIES),
    **dict.fromkeys(CHOICES, NO_CHOICES),
    "layer_norm_eps": NO_EPSILONS,
    "image_size": NO_IMAGE_SIZES,
}
wrong_fields = st.sampled_from(sorted(WRONG)).flatmap(
    lambda name: st.tuples(st.just(name), WRONG[name])
)


def refusal_of(fields):
    """The message of the `ValueError` that these fields raise; no other error may come."""
    with pytest.raises(ValueError) as error:
        ViTConfig(**fields)
    assert type(error.value) is ValueError
    return str(error.value)


@settings(max_examples=300)
@given(fields_of_configs(), wrong_fields)
@example({}, ("layer_norm_eps", 10**400))  # larger than any float
def test_a_wrong_field_is_named_with_its_value(fields, wrong):
    name, value = wrong
    message = refusal_of(fields | {name: value})
    values = [value, *value] if isinstance(value, list) and len(value) == 2 else [value]
    said = [repr(each) for each in values]
    said += [f"{each:,}" for each in values if isinstance(each, int)]
    assert name in message and any(text in message for text in said), message


def sizes_in(text):
    """What an error says to use: the numbers in "name=1 or 2"."""
    return [int(number) for number in re.findall(r"\d+", text.split("=")[1])]


@settings(max_examples=100)
@given(
    fields_of_configs(),
    st.integers(1, LARGEST // 2),
    st.integers(1, LARGEST // 2),
    st.sampled_from([("image_size", "patch_size"), ("embedding_dim", "num_heads")]),
)
@example({}, 499_979, 12, ("embedding_dim", "num_heads"))  # a prime number
def test_sizes_that_do_not_divide_say_what_would_fit(fields, size, part, names):
    fields = {**fields, "image_size": 12, "patch_size": 1, "pos_embedding": "none"}
    fields |= {names[0]: size, names[1]: part}
    if size % part == 0:
        assert ViTConfig(**fields).embedding_dim
        return
    message = refusal_of(fields)
    assert f"{names[0]}={size} is not divisible by {names[1]}={part}" in message
    for name, advice in zip(names, message.split(": use ")[1].split(", or "), strict=True):
        for better in sizes_in(advice):
            assert ViTConfig(**{**fields, name: better})


@given(fields_of_configs(), st.sampled_from(["learned_2d", "sincos_2d"]), st.integers(1, 99))
def test_a_width_that_positions_cannot_have_is_named(fields, kind, D):
    fields |= {"pos_embedding": kind, "embedding_dim": D, "num_heads": 1}
    if D % {"learned_2d": 2, "sincos_2d": 4}[kind]:
        message = refusal_of(fields)
        assert f'pos_embedding="{kind}"' in message and "embedding_dim" in message
        assert message.endswith(f"got {D}")
    else:
        assert ViTConfig(**fields).embedding_dim == D


# Files


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("properties")


def with_random_bits(module, seed):
    """Any bits in all parameters: also infinities, numbers close to 0 and NaN of all kinds."""
    numbers = np.random.default_rng(seed)
    for parameter in module.parameters():
        bits = numbers.integers(0, 2**32, parameter.shape, dtype=np.uint32)
        parameter.data = torch.from_numpy(bits.view(np.float32))
    return module


def bits_of(tensors):
    """Tensors by name as bytes, so that NaN equals NaN and 0 does not equal -0."""
    return {name: (t.dtype, t.shape, t.numpy().tobytes()) for name, t in tensors.items()}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
TAKEN = ("config", "normalization", "class_names", "vit", "path")
notes_of_models = st.dictionaries(st.text(max_size=8).filter(lambda n: n not in TAKEN), JSON)
names_of_classes = st.none() | st.lists(st.text(max_size=8), unique=True, max_size=4)


@settings(max_examples=25)
@given(configs(), notes_of_models, names_of_classes, st.integers(0, 99))
def test_a_written_vit_comes_back_bit_by_bit(folder, config, notes, class_names, seed):
    vit = with_random_bits(ViT(config), seed)
    if class_names is not None:
        notes = {**notes, "class_names": class_names}
    path = write_vit(vit, folder / "vit.safetensors", **notes)
    again, its_notes = read_vit(path)
    assert again.config == config and its_notes == notes
    assert bits_of(again.state_dict()) == bits_of(vit.state_dict())
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == set(vit.state_dict())


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
}


def training(widths, kind, frozen, steps, seed):
    """A model, its optimizer, a method and a progress, after some steps."""
    torch.manual_seed(seed)
    layers = [nn.Linear(a, b, bias=bool(b % 2)) for a, b in pairwise(widths)]
    model = nn.Sequential(*layers, nn.LayerNorm(widths[-1]))
    if frozen:
        layers[0].requires_grad_(False)
    optimizer = OPTIMIZERS[kind]([p for p in model.parameters() if p.requires_grad])
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    average = torch.optim.swa_utils.AveragedModel(model) if steps % 2 else None
    progress = Progress(
        Totals.zeros("cpu"), epoch=steps + 1, lr=0.1, results={"loss": [0.5] * steps}
    )
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(3, widths[0])).square().sum().backward()
        optimizer.step()
        scheduler.step()
        if average:
            average.update_parameters(model)
        progress.totals.loss_sum += torch.rand(())
    return model, optimizer, Method(scheduler=scheduler, average=average), progress


def flat(state, prefix=""):
    """All that is inside a state, by the path to it; tensors as bits."""
    if isinstance(state, dict):
        pairs = state.items()
    elif isinstance(state, list | tuple):
        pairs = enumerate(state)
    else:
        return {prefix: bits_of({"": state}) if isinstance(state, torch.Tensor) else state}
    return {k: v for key, value in pairs for k, v in flat(value, f"{prefix}.{key}").items()}


def state_of(model, optimizer, method, progress):
    parts = {name: part.state_dict() for name, part in method.stateful_parts().items()}
    return flat([model.state_dict(), optimizer.state_dict(), parts, progress.state_dict()])


@settings(max_examples=30)
@given(
    st.lists(st.integers(1, 5), min_size=2, max_size=4),
    st.sampled_from(sorted(OPTIMIZERS)),
    st.booleans(),
    st.integers(0, 3),
)
def test_a_checkpoint_restores_a_training_bit_by_bit(folder, widths, kind, frozen, steps):
    path = folder / "checkpoint.pt"
    path.unlink(missing_ok=True)
    saved = training(widths, kind, frozen, steps, seed=0)
    Checkpoint(path, {"widths": widths}).save(*saved)
    before, drawn = state_of(*saved), torch.rand(3)
    fresh = training(widths, kind, frozen, steps if steps % 2 else 0, seed=1)
    random_state = Checkpoint(path, {"widths": widths}).load(*fresh)
    after = state_of(*fresh)
    assert {k: v for k, v in after.items() if v != before.get(k)} == {}
    assert after.keys() == before.keys()
    set_random_state(random_state)
    assert torch.equal(torch.rand(3), drawn)


# Positions


grids = st.tuples(st.integers(1, 6), st.integers(1, 6))


@given(grids, grids, st.integers(1, 5), st.integers(0, 1), st.integers(0, 99))
def test_positions_of_another_grid(grid, new_grid, D, class_tokens, seed):
    N, new_N = math.prod(grid), math.prod(new_grid)
    torch.manual_seed(seed)
    positions = torch.randn(1, class_tokens + N, D)
    assert interpolate_pos_embedding(positions, grid, grid) is positions
    new = interpolate_pos_embedding(positions, grid, new_grid)
    assert new.shape == (1, class_tokens + new_N, D) and torch.isfinite(new).all()
    assert torch.equal(new[:, :class_tokens], positions[:, :class_tokens])
    first = class_tokens
    torch.testing.assert_close(new[:, first], positions[:, first])  # a corner
    constant = torch.full_like(positions, 3.0)
    torch.testing.assert_close(
        interpolate_pos_embedding(constant, grid, new_grid), torch.full_like(new, 3.0)
    )


# "learned_2d" has a vector for each row and each column, and these are not interpolated
interpolated = configs().filter(lambda config: config.pos_embedding != "learned_2d")


@settings(max_examples=25)
@given(interpolated, grids, st.integers(0, 99))
def test_a_file_at_another_size_is_the_vit_interpolated(folder, config, grid, seed):
    vit = with_random_values(ViT(config), seed)
    path = write_vit(vit, folder / "vit.safetensors")
    H, W = (n * config.patch_size for n in grid)
    images = torch.randn(2, config.in_channels, H, W)
    same = load_vit(read_weights(path))
    larger = load_vit(read_weights(path), image_size=(H, W))
    assert same.config == config and larger.config.image_hw == (H, W)
    assert bits_of(same.state_dict()) == bits_of(vit.state_dict())
    if config.pos_embedding != "sincos_2d" or grid == config.grid:  # it is made for each grid
        with torch.no_grad():
            torch.testing.assert_close(larger(images), vit(images, interpolate=True))


# Images

OPAQUE = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
CLEAR = ("LA", "PA", "RGBA", "La", "RGBa")
DEEP = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
WRITABLE = {
    "png": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "tiff": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "LAB", "I;16", "I", "F"),
    "jpg": ("L", "RGB", "CMYK"),
    "webp": ("RGB", "RGBA"),
}
sides = st.integers(1, 200)


def random_picture(mode, width, height, seed=0):
    """A picture of random bytes, in any of Pillow's modes."""
    numbers = np.random.default_rng(seed)
    if mode in ("I", "F"):
        kind = {"I": np.int32, "F": np.float32}[mode]
        return Image.fromarray((numbers.random((height, width)) * 1000).astype(kind))
    length = len(Image.new(mode, (width, height)).tobytes())
    picture = Image.frombytes(mode, (width, height), numbers.bytes(length))
    if mode in ("P", "PA"):
        picture.putpalette(numbers.bytes(768))
    return picture


def pixels_of(picture):
    """Its colors as whole numbers, (H, W, 3)."""
    assert picture.mode == "RGB"
    return np.asarray(picture).astype(int)


@given(st.sampled_from(OPAQUE), sides, sides)
def test_a_picture_without_transparency_keeps_its_colors(mode, width, height):
    picture = random_picture(mode, width, height)
    assert (pixels_of(load_image(picture)) == pixels_of(picture.convert("RGB"))).all()


@given(st.sampled_from(CLEAR), sides, sides)
def test_a_picture_with_transparency_is_laid_on_white(mode, width, height):
    picture = random_picture(mode, width, height)
    straight = picture.convert({"La": "LA", "RGBa": "RGBA"}.get(mode, mode)).convert("RGBA")
    *colors, opacity = np.moveaxis(np.asarray(straight) / 255, -1, 0)
    expected = np.stack([1 - opacity * (1 - color) for color in colors], axis=-1) * 255
    assert np.abs(pixels_of(load_image(picture)) - expected).max() <= 1.5


@given(st.sampled_from(DEEP), sides, sides)
def test_deep_grayscale_becomes_gray_with_its_brightest_value_visible(mode, width, height):
    pixels = pixels_of(load_image(random_picture(mode, width, height)))
    assert pixels.shape == (height, width, 3)
    assert (pixels == pixels[:, :, :1]).all()


UPRIGHT = {  # what turns a stored picture upright, by its EXIF orientation
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels[::-1].swapaxes(0, 1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: pixels[:, ::-1].swapaxes(0, 1),
}
files_of_pictures = st.sampled_from(
    [(mode, ending) for ending, modes in WRITABLE.items() for mode in modes]
)


@given(files_of_pictures, sides, sides, st.integers(0, 9))
def test_a_file_is_upright_and_rgb(folder, kind, width, height, orientation):
    mode, ending = kind
    path = folder / f"picture.{ending}"
    picture, exif = random_picture(mode, width, height), Image.Exif()
    exif[0x0112] = orientation
    picture.save(path)
    stored = load_image(path)
    picture.save(path, exif=exif)
    upright = load_image(path)
    assert stored.size == (width, height)
    assert upright.size == ((height, width) if 5 <= orientation <= 8 else (width, height))
    turned = UPRIGHT.get(orientation, np.asarray)(pixels_of(stored))
    assert (pixels_of(upright) == turned).all()


sizes = st.integers(1, 64) | st.tuples(st.integers(1, 64), st.integers(1, 64))


@given(sides, sides, sizes)
def test_the_middle_of_any_picture_is_seen(width, height, size):
    """Red grows by 1 a column and green by 1 a row, so a color says where it was."""
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    pixels = np.stack([columns, rows, np.zeros_like(rows)], axis=-1).astype(np.uint8)
    seen = evaluation_transform(size)(Image.fromarray(pixels))
    H, W = size if isinstance(size, tuple) else (size, size)
    assert seen.shape == (3, H, W) and torch.isfinite(seen).all()
    colors = denormalize(seen, *IMAGENET) * 255
    scale = max((H * 8 // 7) / height, (W * 8 // 7) / width)  # covers 8/7 of the size
    for axis, (length, count) in enumerate(((width, W), (height, H))):
        places = (np.arange(count) - (count - 1) / 2) / scale + (length - 1) / 2
        places = places.clip(0, length - 1)
        where = colors[:, :, axis] if axis == 0 else colors[:, :, axis].T
        assert np.abs(where - places).max() <= 1 + 2 / scale


@given(st.sampled_from(OPAQUE + CLEAR + DEEP), sides, sides, sizes)
def test_every_mode_and_shape_becomes_numbers_of_one_shape(mode, width, height, size):
    seen = evaluation_transform(size)(load_image(random_picture(mode, width, height)))
    assert seen.shape == (3, *(size if isinstance(size, tuple) else (size, size)))
    assert seen.dtype == torch.float32 and torch.isfinite(seen).all()
