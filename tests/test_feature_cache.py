"""Features that are kept: found again, and never of another image, transform or model."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_training import untrained_vit
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    SequentialSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)
from torchvision.transforms import InterpolationMode, v2

from going_modular import data_setup, engine
from going_modular.data_setup import Augmented, PhotoFolder, create_dataloader
from going_modular.images.reading import to_upright_rgb
from going_modular.images.transforms import ResizeAndCrop, evaluation_transform
from going_modular.model_builder import MLPBlock, ViT
from going_modular.training import feature_cache, feature_key
from going_modular.utils import CHECKOUT, give_random_values
from going_modular.vit.config import ViTConfig
from going_modular.vit.descendant_config import DescendantConfig, Rotary
from going_modular.vit.descendants import build_vit


def backbone_of(seed=0, **overrides):
    """A small ViT without a head; images (B, 3, 16, 16) -> (B, 8)."""
    vit = give_random_values(untrained_vit(**overrides), seed)
    vit.head = nn.Identity()
    return vit


@pytest.fixture
def backbone():
    return backbone_of()


@pytest.fixture
def photos(food_folder):
    """24 images in three classes."""
    return PhotoFolder(food_folder / "train", evaluation_transform(16))


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "features"


class Work(Counter):
    """How many files were opened, how many images a backbone saw, and the lines."""


@pytest.fixture
def extract(cache, monkeypatch, capsys, caplog):
    """`extract_features` with the cache, and the work that it did."""
    caplog.set_level(logging.INFO, "going_modular.training.feature_cache")

    def extract(backbone, dataset, batch_size=5, shuffle=False, **settings):
        work = Work()
        opened = Image.open
        with monkeypatch.context() as patch:
            patch.setattr(Image, "open", lambda *a, **k: work.update(opened=1) or opened(*a, **k))
            forward = ViT.forward  # of the class, because the key looks at all of the object

            def counted(vit, x):
                work.update(seen=len(x))
                return forward(vit, x)

            counted.__module__ = ViT.__module__  # else the key would refuse another method
            counted.__qualname__ = "ViT.forward"
            patch.setattr(ViT, "forward", counted)
            loader = create_dataloader(dataset, batch_size, shuffle)
            settings = {"cache": cache} | settings
            capsys.readouterr()
            caplog.clear()
            features = engine.extract_features(backbone, loader, "cpu", **settings)
        printed = capsys.readouterr().out.splitlines()
        used = f"features of {len(dataset)} images, found in the cache or added to it"
        assert (used in printed) == any("computed" in line for line in caplog.messages)
        work.lines = [line for line in printed if line != used] + caplog.messages
        return features.tensors, work

    return extract


def lines(read, computed):
    return [f"features: {read} read from the cache, {computed} computed"]


def assert_same(one, other):
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# A hit


def test_the_second_time_nothing_is_decoded_or_computed(backbone, photos, extract):
    plain = engine.extract_features(backbone, create_dataloader(photos, 5), "cpu").tensors
    first, work = extract(backbone, photos)
    assert work["seen"] == 24 and work.lines == lines(0, 24)
    second, work = extract(backbone, photos)
    assert work == {} and work.lines == lines(24, 0)
    assert_same(first, plain)
    assert_same(second, plain)
    assert second[0].dtype == torch.float32 and second[1].dtype == plain[1].dtype
    assert second[1].tolist() == photos.targets


def test_another_program_finds_them(backbone, photos, cache, extract):
    features, _ = extract(backbone, photos)
    output = run_program(cache, photos.root)
    assert output.splitlines()[1:] == [*lines(24, 0), str(features[0].double().sum().item())]


def test_a_hit_takes_a_fraction_of_the_time(photos, cache):
    """No seconds, which differ between machines."""
    backbone = ViT(ViTConfig(image_size=96, patch_size=8, embedding_dim=192, num_heads=3))
    photos = photos.with_transform(evaluation_transform(96))
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        engine.extract_features(backbone, create_dataloader(photos, 8), "cpu", cache=cache)
        seconds.append(time.perf_counter() - start)
    assert seconds[1] < seconds[0] / 2, seconds


@pytest.mark.parametrize("part", ["later", "earlier"])
def test_parts_in_any_order_have_the_features_of_their_images(part, backbone, photos, extract):
    order = [20, 3, 3, 11]
    if part == "earlier":
        few, work = extract(backbone, Subset(photos, order))
        assert work.lines == lines(0, 4) and work["seen"] == 3  # one of them is there twice
    whole, work = extract(backbone, photos)
    assert work.lines == (lines(3, 21) if part == "earlier" else lines(0, 24))
    if part == "later":
        few, work = extract(backbone, Subset(photos, order))
        assert work.lines == lines(4, 0)
    assert_same(few, [tensor[order] for tensor in whole])


def test_splits_share_the_features_of_the_folder(backbone, photos, extract):
    whole, _ = extract(backbone, photos)
    for seed in (1, 2):
        parts = data_setup.split_train_validation(photos, 0.25, seed, photos.transform)
        for part in (*parts, Subset(parts[0], [5, 1])):
            indices = part.indices
            if isinstance(part.dataset, Subset):
                indices = [part.dataset.indices[index] for index in indices]
            found, work = extract(backbone, part)
            assert work == {}
            assert_same(found, [tensor[indices] for tensor in whole])


def test_names_times_and_folders_do_not_count(backbone, photos, extract, tmp_path):
    before, _ = extract(backbone, photos)
    moved = tmp_path / "elsewhere"
    for number, (path, label) in enumerate(photos.samples):
        target = moved / f"class {label}" / f"{99 - number}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        os.utime(target, (0, 0))
    after, work = extract(backbone, PhotoFolder(moved, photos.transform))
    assert work == {} and work.lines == lines(24, 0)
    assert not torch.equal(after[0], before[0])  # in the order of the new names
    assert {tuple(row) for row in after[0].tolist()} == {tuple(row) for row in before[0].tolist()}


def test_an_equal_model_on_another_day_finds_them(photos, extract):
    extract(backbone_of(), photos)
    trained = backbone_of().train()
    for parameter in trained.parameters():
        parameter.requires_grad = False
    _, work = extract(trained, photos.with_transform(evaluation_transform(16)), batch_size=24)
    assert work == {}


def test_rotary_positions_of_the_last_images_do_not_count(photos):
    config = DescendantConfig(
        image_size=16, patch_size=8, embedding_dim=8, num_heads=2, mlp_dim=16, rotary=Rotary()
    )
    vit = build_vit(config).eval()
    before = feature_key.key_of(vit, photos, [])
    vit(torch.rand(1, 3, 16, 16))
    assert feature_key.key_of(vit, photos, []) == before


# What makes features new


def test_a_photo_that_changed_is_computed_alone(backbone, photos, extract):
    before, _ = extract(backbone, photos)
    path = Path(photos.samples[7][0])
    times = path.stat()
    pixels = np.array(Image.open(path))
    pixels[0, 0] ^= 128  # as many bytes, or nearly
    Image.fromarray(pixels).save(path)
    os.utime(path, (times.st_atime, times.st_mtime))
    after, work = extract(backbone, photos)
    assert work["seen"] == 1 and work.lines == lines(23, 1)
    same = (after[0] == before[0]).all(dim=1)
    assert same.tolist() == [index != 7 for index in range(24)]


def preset(**attributes):
    """The evaluation transform with other attributes."""
    transform = evaluation_transform(16)
    for name, value in attributes.items():
        setattr(transform, name, value)
    return transform


@pytest.mark.parametrize(
    "other",
    [
        evaluation_transform(16, mean=(0.5, 0.5, 0.5)),
        evaluation_transform(16, std=(0.5, 0.5, 0.5)),
        ResizeAndCrop((16, 16), (18, 18)),
        preset(resize_size=[17]),
        preset(interpolation=InterpolationMode.BICUBIC),
    ],
)
def test_another_transform_computes_all(other, backbone, photos, extract):
    extract(backbone, photos)
    _, work = extract(backbone, photos.with_transform(other))
    assert work["seen"] == 24 and work.lines == lines(0, 24)
    _, work = extract(backbone, photos)
    assert work == {}


@pytest.mark.parametrize(
    "one, other",
    [
        (v2.ToDtype(torch.half), v2.ToDtype(torch.float)),
        (preset(), preset(antialias=False)),
        ([v2.Resize(16), v2.Normalize([0], [1])], [v2.Normalize([0], [1]), v2.Resize(16)]),
        (nn.Sequential(nn.ReLU(), nn.Tanh()), nn.Sequential(nn.Tanh(), nn.ReLU())),
    ],
)
def test_more_counts_than_a_repr_shows(one, other, photos, backbone):
    transforms = [v2.Compose([step, v2.ToImage()]) for step in (one, other)]
    keys = {feature_key.key_of(backbone, photos.with_transform(each), []) for each in transforms}
    assert len(keys) == 2


@pytest.mark.parametrize(
    "one, other",
    [
        (torch.zeros(6, dtype=torch.half), torch.zeros(6, dtype=torch.bfloat16)),
        (torch.zeros(2, 3), torch.zeros(3, 2)),
        (torch.zeros(()), torch.zeros(1)),
        (torch.zeros(0), torch.zeros(0, 3)),
    ],
)
def test_dtypes_and_shapes_count(one, other, photos):
    models = [nn.Sequential(), nn.Sequential()]
    for model, tensor in zip(models, (one, other), strict=True):
        model.register_buffer("numbers", tensor)
    assert len({feature_key.key_of(model, photos, []) for model in models}) == 2


def test_the_function_that_opens_images_counts(backbone, photos):
    other = photos.with_transform(photos.transform)
    other.loader = to_upright_rgb
    assert len({feature_key.key_of(backbone, each, []) for each in (photos, other)}) == 2


def change_weight(vit):
    with torch.no_grad():
        next(vit.parameters()).view(-1)[0] += 1e-6


def change_buffer(vit):
    vit.register_buffer("shift", torch.zeros(1))


def change_heads(vit):
    vit.encoder[0].attention.num_heads = 4


def change_activation(vit):
    for module in list(vit.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.GELU):
                setattr(module, name, nn.GELU("tanh"))


@pytest.mark.parametrize("change", [change_weight, change_buffer, change_heads, change_activation])
def test_another_model_computes_all(change, photos, extract):
    extract(backbone_of(), photos)
    other = backbone_of()
    change(other)
    _, work = extract(other, photos)
    assert work["seen"] == 24 and work.lines == lines(0, 24)


def test_a_precision_has_features_of_its_own(backbone, photos, extract):
    exact, _ = extract(backbone, photos)
    rounded, work = extract(backbone, photos, precision="bfloat16")
    assert work["seen"] == 24
    again, work = extract(backbone, photos, precision="bfloat16")
    assert work == {}
    assert_same(rounded, again)
    assert rounded[0].dtype == torch.float32 and not torch.equal(rounded[0], exact[0])
    plain = engine.extract_features(
        backbone, create_dataloader(photos, 5), "cpu", precision="bfloat16"
    )
    assert_same(plain.tensors, rounded)
    with pytest.raises(ValueError, match="precision must be"):
        extract(backbone, photos, precision="int8")


def test_the_precision_of_products_in_float32_counts(backbone, photos, cache, extract):
    extract(backbone, photos)
    try:
        torch.set_float32_matmul_precision("medium")
        _, work = extract(backbone, photos)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert work["seen"] == len(photos) and len(list(cache.glob("*.features"))) == 2


def test_features_of_16_bits_become_float32(photos, extract):
    """A ViT ends in a LayerNorm, which gives float32 in any case."""
    layers = nn.Sequential(nn.Flatten(), nn.Linear(768, 4))
    for settings in ({}, {"cache": None}):
        features, _ = extract(layers, photos, precision="bfloat16", **settings)
        assert features[0].dtype == torch.float32
        assert torch.equal(features[0], features[0].bfloat16().float())


def test_versions_count(backbone, photos, monkeypatch):
    keys = {feature_key.key_of(backbone, photos, [])}
    for name in ("torch", "torchvision", "PIL"):
        with monkeypatch.context() as patch:
            patch.setattr(getattr(feature_key, name), "__version__", "0.1")
            keys.add(feature_key.key_of(backbone, photos, []))
    keys.add(feature_key.key_of(backbone, photos, ["cuda"]))
    assert len(keys) == 5


# Where features are not kept


def test_images_in_memory_are_computed_and_a_line_says_so(backbone, photos, cache, extract):
    data = TensorDataset(torch.rand(6, 3, 16, 16), torch.arange(6))
    for dataset in (data, Subset(data, [1, 2]), Augmented(photos, lambda image: image)):
        _, work = extract(backbone, dataset)
        assert work["seen"] == len(dataset)
        assert work.lines == [
            "the feature cache is not used: it knows images by their files, and needs a loader "
            "of a PhotoFolder"
        ]
    engine.extract_features(backbone, [data[:4], data[4:]], "cpu", cache=cache)
    assert not cache.exists()


class Foreign(nn.Module):
    def forward(self, images):
        return images.flatten(1)


@pytest.mark.parametrize("backbone", [Foreign(), nn.Sequential(nn.ReLU(), Foreign())])
def test_code_that_may_change_unnoticed_is_not_kept(backbone, photos, cache, extract):
    _, work = extract(backbone, photos)
    assert "Foreign is not code of torch" in work.lines[0] and not cache.exists()


def test_hooks_and_functions_of_a_notebook_are_not_kept(backbone, photos, cache, extract):
    backbone.register_forward_hook(lambda module, images, outputs: 2 * outputs)
    _, work = extract(backbone, photos)
    assert "<lambda> is not code of" in work.lines[0]
    nothing = lambda image: image  # noqa: E731
    nothing.__module__ = "torchvision.transforms"  # its name says nothing about its code
    transform = v2.Compose([v2.Lambda(nothing), photos.transform])
    _, work = extract(backbone_of(), photos.with_transform(transform))
    assert "<lambda> is not code of" in work.lines[0]
    assert not cache.exists()


def test_a_class_with_another_method_is_not_kept(backbone, photos, cache, extract, monkeypatch):
    monkeypatch.setattr(MLPBlock, "forward", lambda block, x: 0 * x)
    _, work = extract(backbone, photos)
    assert "<lambda> is not code of" in work.lines[0] and not cache.exists()


def test_labels_of_a_target_transform_are_computed(backbone, photos, cache, extract):
    photos.target_transform = {0: 2, 1: 1, 2: 0}.get
    (_, labels), work = extract(backbone, photos)
    assert labels.tolist() == [2 - label for _, label in photos.samples]
    assert "without a target_transform" in work.lines[0] and not cache.exists()


def test_what_comes_after_draws_the_same_numbers(backbone, photos, extract, monkeypatch):
    """Whether features were computed in one loader or several, found, or not kept."""
    monkeypatch.setattr(feature_cache, "BATCHES", 1)
    drawn = []
    for settings in ({}, {}, {"cache": None}):
        torch.manual_seed(0)
        extract(backbone, photos, **settings)
        drawn.append(torch.rand(3).tolist())
    assert drawn[0] == drawn[1] == drawn[2]
    torch.manual_seed(0)
    assert torch.rand(3).tolist() != drawn[0]  # one number is drawn, so two calls differ


def test_a_photo_that_changes_meanwhile_is_not_kept(backbone, photos, cache):
    path = Path(photos.samples[3][0])
    content = path.read_bytes()
    other = Path(photos.samples[20][0]).read_bytes()
    opened = photos.loader

    def swapped(name):
        path.write_bytes(other)
        return opened(name)

    swapped.__module__, swapped.__qualname__ = opened.__module__, "swapped"
    photos.loader = swapped
    first = engine.extract_features(backbone, create_dataloader(photos, 5), "cpu", cache=cache)
    path.write_bytes(content)
    photos.loader = opened
    kept = [feature_cache.read_rows(file) for file in cache.glob("*.features")]
    assert [len(rows) for rows in kept] == [len(photos) - 1]
    expected = engine.extract_features(backbone, create_dataloader(photos, 5), "cpu")
    assert not torch.equal(first.tensors[0][3], expected.tensors[0][3])


def test_an_outer_autocast_does_not_reach_features_in_float32(backbone, photos, cache):
    loader = create_dataloader(photos, 5)
    expected = engine.extract_features(backbone, loader, "cpu").tensors[0]
    with torch.autocast("cpu", torch.bfloat16):
        features = engine.extract_features(backbone, loader, "cpu", cache=cache).tensors[0]
    assert torch.equal(features, expected)


def test_code_that_changed_since_it_was_imported_is_not_kept(
    backbone, photos, cache, extract, monkeypatch
):
    monkeypatch.setattr(feature_key, "IMPORTED", "0" * 64)
    _, work = extract(backbone, photos)
    assert "have changed since" in work.lines[0] and not cache.exists()


@pytest.mark.parametrize(
    "step",
    [
        v2.RandomHorizontalFlip(p=1e-9),  # never turns an image, and draws a number
        v2.ColorJitter(0.5),
        v2.TrivialAugmentWide(),
        v2.RandomErasing(p=1e-9),
        v2.RandomCrop(16),  # draws nothing: these images have 16 pixels
    ],
)
def test_a_random_transform_is_refused(step, backbone, photos, cache, extract):
    transform = v2.Compose([v2.ToImage(), step, v2.ToDtype(torch.float32, scale=True)])
    for dataset in (
        photos.with_transform(transform),
        Subset(photos.with_transform(transform), [0]),
    ):
        with pytest.raises(ValueError, match="the transform is random"):
            extract(backbone, dataset)
    assert not cache.exists()


def test_to_ask_whether_a_transform_is_random_draws_nothing(photos):
    state = torch.get_rng_state()
    assert feature_key.is_random(photos.with_transform(v2.ColorJitter(0.5)), 0)
    assert torch.equal(torch.get_rng_state(), state)


def loaders_out_of_order(photos):
    yield create_dataloader(photos, 5, shuffle=True)
    yield DataLoader(photos, 5, shuffle=True)
    yield DataLoader(photos, 5, drop_last=True)
    yield DataLoader(photos, 5, sampler=WeightedRandomSampler([1.0] * 24, 24))
    yield DataLoader(photos, None)
    yield DataLoader(photos, batch_sampler=BatchSampler(SequentialSampler(photos), 5, True))
    yield DataLoader(photos, 5, collate_fn=lambda samples: samples)


def test_a_loader_out_of_order_is_refused(backbone, photos, cache):
    for loader in loaders_out_of_order(photos):
        with pytest.raises(ValueError, match="in the order of its data set"):
            engine.extract_features(backbone, loader, "cpu", cache=cache)


# Files


def files(cache):
    """The names in the folder, but that of the lock."""
    return sorted(path.name for path in cache.iterdir() if path.name != ".features.lock")


DAMAGE = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "one bit": lambda content: content[:-200] + bytes([content[-200] ^ 1]) + content[-199:],
    "a bit of its hash": lambda content: bytes([content[0] ^ 1]) + content[1:],
    "other content": lambda content: b"no features" * 9,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_said_and_made_again(damage, backbone, photos, cache, extract):
    before, _ = extract(backbone, photos)
    (name,) = files(cache)
    content = (cache / name).read_bytes()
    (cache / name).write_bytes(DAMAGE[damage](content))
    after, work = extract(backbone, photos)
    assert work.lines == [
        f"{name} in the feature cache is damaged: its features are computed again",
        *lines(0, 24),
    ]
    assert_same(before, after)
    assert (cache / name).read_bytes() == content
    _, work = extract(backbone, photos)
    assert work.lines == lines(24, 0)


PROGRAM = """
import logging, os, signal, sys, time
from pathlib import Path
from torch.utils.data import Subset
from test_feature_cache import *
root, cache, start, stop, before = sys.argv[1:]
logging.basicConfig(stream=sys.stdout, format="%(message)s")
logging.getLogger("going_modular").setLevel(logging.INFO)
fsync = os.fsync
def fsync_and_more(file):  # between the writing of a file and its new name
    fsync(file)
    if before == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(1.0 * (before == "wait"))
os.fsync = fsync_and_more
photos = PhotoFolder(root, evaluation_transform(16))
part = Subset(photos, range(int(start), int(stop)))
loader = create_dataloader(part, 5)
if before == "wait":  # until both programs are here
    Path(cache).mkdir(exist_ok=True)
    Path(cache, f"ready-{start}").touch()
    while len(list(Path(cache).glob("ready-*"))) < 2:
        time.sleep(0.01)
features = engine.extract_features(backbone_of(), loader, "cpu", cache=cache)
print(features.tensors[0].double().sum().item())
"""


def start_program(cache, root, start=0, stop=24, before="nothing"):
    """Another process that extracts features of some of the images."""
    places = os.pathsep.join(map(str, (Path(__file__).parent, CHECKOUT)))
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *map(str, (root, cache, start, stop, before))],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": places},
    )


def run_program(*args, **options):
    """What it prints."""
    process = start_program(*args, **options)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    return output


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
def test_a_program_that_is_killed_while_it_writes_loses_only_its_own(
    backbone, photos, cache, extract
):
    extract(backbone, Subset(photos, range(10)))
    (name,) = files(cache)
    content = (cache / name).read_bytes()
    process = start_program(cache, photos.root, before="kill")
    process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL
    assert (cache / name).read_bytes() == content
    assert len(files(cache)) == 2  # and what was not finished
    _, work = extract(backbone, photos)
    assert work.lines == lines(10, 14)
    assert files(cache) == [name]
    _, work = extract(backbone, photos)
    assert work.lines == lines(24, 0)


def test_two_programs_at_once_keep_the_features_of_both(backbone, photos, cache, extract):
    spans = ((0, 15), (9, 24))
    programs = [start_program(cache, photos.root, *span, before="wait") for span in spans]
    for program in programs:
        output, _ = program.communicate(timeout=300)
        assert program.returncode == 0 and "15 computed" in output
    found, work = extract(backbone, photos)
    assert work.lines == lines(24, 0)
    plain = engine.extract_features(backbone, create_dataloader(photos, 5), "cpu").tensors
    torch.testing.assert_close(found[0], plain[0])


def test_features_are_written_as_they_come(backbone, photos, cache, extract, monkeypatch):
    monkeypatch.setattr(feature_cache, "BATCHES", 2)
    content = Path(photos.samples[20][0]).read_bytes()
    Path(photos.samples[20][0]).write_bytes(content[:40])
    with pytest.raises(ValueError, match="cannot be read as a picture"):
        extract(backbone, photos)
    Path(photos.samples[20][0]).write_bytes(content)
    found, work = extract(backbone, photos)
    assert work.lines == lines(20, 4)
    plain = engine.extract_features(backbone, create_dataloader(photos, 5), "cpu").tensors
    torch.testing.assert_close(found[0], plain[0])


def test_what_was_not_used_for_longest_goes_first(photos, cache, extract, monkeypatch):
    names = []
    for seed in (0, 1, 2):
        extract(backbone_of(seed), photos)
        (new,) = set(files(cache)) - set(names)
        names.append(new)
        os.utime(cache / new, (seed, seed))
    extract(backbone_of(0), photos)  # now the one that was used last
    size = (cache / names[0]).stat().st_size
    monkeypatch.setattr(feature_cache, "LIMIT", 2.5 * size)
    extract(backbone_of(3), photos)
    assert names[0] in files(cache) and len(files(cache)) == 2
    monkeypatch.setattr(feature_cache, "LIMIT", 0)
    extract(backbone_of(4), photos)
    assert len(files(cache)) == 1  # the newest stays, however large


def test_a_folder_that_cannot_be_written_costs_the_cache_only(backbone, photos, cache, extract):
    cache.write_text("a file where the folder should be")
    features, work = extract(backbone, photos)
    assert work["seen"] == 24 and work.lines[1:] == lines(0, 24)
    assert work.lines[0].startswith("the features are not kept: ")
    plain = engine.extract_features(backbone, create_dataloader(photos, 5), "cpu").tensors
    assert_same(features, plain)


def test_the_usual_folder_lies_beside_the_images(data_dir):
    assert feature_cache.feature_cache() == data_dir / "features"
    assert not feature_cache.feature_cache().exists()
