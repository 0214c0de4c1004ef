"""Folders of images: what counts, what is passed over, classes, damage, memory, parts."""

import io
import os
import random
import subprocess
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image, features
from torch.utils.data import Subset, TensorDataset
from torchvision.datasets import ImageFolder

from going_modular import data_setup, predictions, train
from going_modular.data_setup import PhotoFolder
from going_modular.images import folders, reading
from going_modular.images.folders import find_damaged, find_parts
from going_modular.training import fit


def encoded(format="PNG", color="teal", size=(40, 40)):
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, format)
    return buffer.getvalue()


def put(path, content=None):
    """A file, with its folders; an image unless it is told what to hold."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded() if content is None else content)
    return path


def names(folder):
    return [str(Path(path).relative_to(folder.root)) for path, _ in folder.samples]


@pytest.fixture
def photos(tmp_path):
    """train/ and test/ with three images each of cats and dogs."""
    for part in ("train", "test"):
        for kind in ("cat", "dog"):
            for i in range(3):
                put(tmp_path / part / kind / f"{i}.jpg", encoded("JPEG"))
    return tmp_path


TRAINING = "--image-size 24 --epochs 1 --warmup-steps 0 --batch-size 4".split()


def run(folder, *more):
    train.main([f"--data={folder}", f"--output={folder}/run", *TRAINING, *more])


def error_of(folder, capsys, *more):
    with pytest.raises(SystemExit):
        run(folder, *more)
    assert not (folder / "run").exists()
    return capsys.readouterr().err.strip().splitlines()[-1]


# What counts


def test_clean_folders_are_listed_as_torchvision_lists_them(food_folder):
    for name in ("b/10.png", "b/9.png", "b-c/0.png", "B.png", "b/c/1.PNG", "b0.jpeg", "a b.webp"):
        put(food_folder / "train" / "steak" / name)
    for part in ("train", "test"):
        theirs, ours = ImageFolder(food_folder / part), PhotoFolder(food_folder / part)
        assert ours.samples == theirs.samples == ours.imgs and ours.targets == theirs.targets
        assert (ours.classes, ours.class_to_idx) == (theirs.classes, theirs.class_to_idx)
    assert ours.summary() == "7 images in 3 classes"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cat/._0.jpg", "1 hidden file"),
        ("cat/.DS_Store", "1 hidden file"),
        (".DS_Store", "1 hidden file"),
        ("cat/.ipynb_checkpoints/0-checkpoint.jpg", "1 hidden folder"),
        (".ipynb_checkpoints/cat/0.jpg", "1 hidden folder"),
        ("__MACOSX/cat/._0.jpg", "1 __MACOSX"),
        ("cat/__MACOSX/0.jpg", "1 __MACOSX"),
        ("cat/@eaDir/0.jpg/SYNOPHOTO_THUMB_M.jpg", "1 @eaDir"),
        ("0.jpg", "1 image beside the class folders"),
    ],
)
def test_images_that_are_nobodys_photos_are_passed_over(photos, name, said):
    before = PhotoFolder(photos / "train")
    put(photos / "train" / name)
    after = PhotoFolder(photos / "train")
    assert (after.samples, after.classes) == (before.samples, before.classes)
    assert before.summary() == "6 images in 2 classes"
    assert after.summary() == f"6 images in 2 classes; passed over: {said}"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Thumbs.db", "1 .db"),
        ("notes.txt", "1 .txt"),
        ("README", "1 file without an ending"),
        ("film.MOV", "1 .mov"),
        ("film.mpg", "1 .mpg"),  # Pillow opens MPEG, and cannot decode it
        ("data.h5", "1 .h5"),
    ],
)
def test_files_that_are_no_images_are_counted(photos, name, said):
    magic = {".mpg": b"\0\0\1\xb3" + bytes(99), ".h5": b"\x89HDF\r\n\x1a\n" + bytes(99)}
    put(photos / "train/dog" / name, magic.get(Path(name).suffix, b"no image"))
    put(photos / "train" / name, b"no image")
    folder = PhotoFolder(photos / "train")
    assert len(folder) == 6
    kind = said.removeprefix("1 ")
    assert folder.summary().endswith(f"passed over: 2 {folders.PLURALS.get(kind, kind)}")


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("a.jfif", "JPEG"),
        ("a.JPE", "JPEG"),
        ("a.avif", "AVIF"),
        ("a.gif", "GIF"),
        ("a.jp2", "JPEG2000"),
        ("photo", "JPEG"),
        ("photo.1", "PNG"),
        ("photo.jpg_large", "JPEG"),
        ("photo.heic", "JPEG"),  # as some programs name what they converted
        ("photo.txt", "PNG"),
    ],
)
def test_what_pillow_opens_is_an_image_whatever_its_name(photos, name, format):
    if format == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow was built without AVIF")
    put(photos / "train/cat" / name, encoded(format))
    folder = PhotoFolder(photos / "train")
    assert f"cat/{name}" in names(folder) and folder.summary() == "7 images in 2 classes"
    assert [image.size for image, _ in folder] == [(40, 40)] * 7


def test_usual_endings_are_not_opened(photos, monkeypatch):
    """A folder of millions of JPEGs is listed without a look into each."""
    monkeypatch.setattr(folders, "is_image", lambda path: pytest.fail(f"opened {path}"))
    put(photos / "train/cat/new.avif", b"damaged")
    assert len(PhotoFolder(photos / "train")) == 7


def test_all_that_is_passed_over_stands_in_one_line(photos):
    for name in ("._0.jpg", "._1.jpg", "a.heic", "notes.txt"):
        put(photos / "train/cat" / name, b"no image")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(reading.HOW_TO_READ, ".heic", "pip install pillow-heif")
        summary = PhotoFolder(photos / "train").summary()
    assert summary == (
        "6 images in 2 classes; passed over: 2 hidden files, "
        "1 .heic (pip install pillow-heif), 1 .txt"
    )
    many = Counter({f".{i}": 1 for i in range(folders.MAX_NAMES + 3)})
    assert folders.describe(many).endswith("1 .9 and 3 more")


def test_heic_is_read_where_pillow_heif_is_installed(tmp_path):
    """With a stand-in for it: a plugin that reads files that begin with HEIC."""
    put(tmp_path / "train/cat/a.heic", b"HEIC" + encoded())
    put(tmp_path / "pillow_heif.py").write_text(
        "import io\n"
        "from PIL import Image\n"
        "def factory(file, name):\n"
        "    return Image.open(io.BytesIO(file.read()[4:]))\n"
        "def register_heif_opener():\n"
        "    Image.register_open('HEIF', factory, lambda start: start[:4] == b'HEIC')\n"
        "    Image.register_extensions('HEIF', ['.heic', '.heif'])\n"
    )
    code = (
        "from going_modular.data_setup import PhotoFolder, load_image\n"
        f"folder = PhotoFolder({str(tmp_path / 'train')!r})\n"
        "print(folder.summary(), load_image(folder.samples[0][0]).size)\n"
    )
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    environment = os.environ | {"PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.stdout.decode().strip() == "1 image in 1 class (40, 40)", done.stderr.decode()


def test_a_heic_file_says_what_reads_it(tmp_path, monkeypatch):
    monkeypatch.setitem(reading.HOW_TO_READ, ".heic", "pip install pillow-heif")
    with pytest.raises(ValueError, match=r"a.HEIC .*: pip install pillow-heif and try again"):
        data_setup.load_image(put(tmp_path / "a.HEIC", b"\0\0\0\x18ftypheic"))


def test_a_folder_that_cannot_be_read_is_an_error(photos, monkeypatch):
    """`os.walk` is silent about it."""
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "dog":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match="dog"):
        PhotoFolder(photos / "train")


def test_another_transform_lists_nothing_again(photos, to_tensor, monkeypatch):
    folder = PhotoFolder(photos / "train")
    monkeypatch.setattr(folders, "list_images", None)
    other = folder.with_transform(to_tensor)
    assert isinstance(other[0][0], torch.Tensor) and isinstance(folder[0][0], Image.Image)
    part, _ = data_setup.split_train_validation(folder, 0.5, transform=to_tensor)
    assert part[0][0].shape == (3, 40, 40)


# Classes


@pytest.mark.parametrize("name", ["café", "が", "Å"])
def test_one_class_in_two_unicode_forms_is_one_class(photos, name):
    composed, taken_apart = (unicodedata.normalize(form, name) for form in ("NFC", "NFD"))
    put(photos / "train" / taken_apart / "0.png")
    put(photos / "test" / composed / "0.png")
    a, b = (PhotoFolder(photos / part) for part in ("train", "test"))
    data_setup.check_same_classes(a, b)
    assert a.classes == b.classes == sorted(["cat", "dog", composed])
    assert a[a.targets.index(a.class_to_idx[composed])][0].size == (40, 40)


def test_two_folders_of_one_name_are_an_error_with_both(photos):
    for form in ("NFC", "NFD"):
        put(photos / "train" / unicodedata.normalize(form, "café") / "0.png")
    if len(list((photos / "train").iterdir())) == 3:
        pytest.skip("this file system knows one form only")
    with pytest.raises(ValueError, match=r"'cafe\\u0301' and 'caf\\xe9'|'caf\\xe9' and 'cafe\\u03"):
        PhotoFolder(photos / "train")


def test_a_folder_without_images_or_classes_is_named(photos, tmp_path):
    put(photos / "train/emu/notes.txt", b"no image")
    with pytest.raises(FileNotFoundError, match=r"train: no image .* in emu; passed over: 1 .txt"):
        PhotoFolder(photos / "train")
    (photos / "test/axolotl").mkdir()
    with pytest.raises(FileNotFoundError, match=r"test: no image that can be read in axolotl; add"):
        PhotoFolder(photos / "test")
    put(tmp_path / "flat/0.jpg")
    with pytest.raises(FileNotFoundError, match=r"flat has no folders: .* each class; .* 1 image"):
        PhotoFolder(tmp_path / "flat")
    with pytest.raises(FileNotFoundError, match="there is no folder .*nowhere"):
        PhotoFolder(tmp_path / "nowhere")


def test_classes_that_differ_are_named_and_no_others(photos):
    put(photos / "train/emu/0.jpg")
    for i in range(12):
        put(photos / f"test/{i:02}/0.jpg")
    a, b = (PhotoFolder(photos / part) for part in ("train", "test"))
    with pytest.raises(ValueError) as error:
        data_setup.check_same_classes(a, b)
    assert "train lacks 00, 01, 02, 03, 04, 05, 06, 07, 08, 09 and 2 more, and" in str(error.value)
    assert "test lacks emu;" in str(error.value) and "cat" not in str(error.value)


def test_one_class_is_nothing_to_learn(tmp_path, to_tensor, capsys):
    for part in ("train", "test"):
        put(tmp_path / part / "images/a/0.jpg")
        put(tmp_path / part / "images/b/deep/0.jpg")
        put(tmp_path / "flat" / part / "images/0.jpg")
    deep = "has one class only, images, .* in images \\(a, b\\) .* look one folder below"
    flat = "one class only, images, .*: add a folder for each other class"
    for folder, words in ((tmp_path, deep), (tmp_path / "flat", flat)):
        with pytest.raises(ValueError, match=words):
            data_setup.create_dataloaders(folder / "train", folder / "test", to_tensor, 2)
        with pytest.raises(ValueError, match=words):
            data_setup.split_train_validation(folder / "train", 0.5)
    assert "look one folder below and move them up" in error_of(tmp_path, capsys)


def test_classes_may_have_folders_of_their_own(photos):
    put(photos / "train/cat/summer/9.jpg")
    folder = PhotoFolder(photos / "train")
    data_setup.check_several_classes(folder)
    assert "cat/summer/9.jpg" in names(folder)


# Damaged images


def damage(folder, count):
    """Images of which `count` are damaged in different ways."""
    whole = encoded("JPEG", size=(300, 200))
    damages = [whole[: len(whole) // 2], b"", b"text", whole[:40], whole[:-30]]
    return [put(folder / f"x{i}.jpg", damages[i % len(damages)]) for i in range(count)]


@pytest.mark.parametrize("memory", [fit.MAX_IN_MEMORY, 12_000, 0])  # bytes: all, some, none
@pytest.mark.parametrize("workers", ["0", "2"])
def test_all_damaged_images_are_named_before_training(photos, capsys, monkeypatch, workers, memory):
    monkeypatch.setattr(fit, "MAX_IN_MEMORY", memory)
    paths = damage(photos / "train/cat", 3) + damage(photos / "test/dog", 2)
    (photos / "train/dog/gone.png").symlink_to("nowhere")
    error = error_of(photos, capsys, "--workers", workers)
    assert "6 images cannot be read: " in error and error.endswith("Replace or delete them")
    assert all(f"{path} (" in error for path in paths) and "gone.png (" in error
    assert "0.jpg (" not in error.replace("x0.jpg (", "")


@pytest.mark.parametrize("workers", ["0", "2"])
def test_an_image_that_goes_during_the_training_is_one_line(photos, capsys, monkeypatch, workers):
    """The error of a worker brings its traceback along."""
    monkeypatch.setattr(fit, "MAX_IN_MEMORY", 0)
    monkeypatch.setattr(fit, "find_damaged", lambda *_, **__: [])
    path = photos / "train/cat/0.jpg"
    path.write_bytes(b"text")
    with pytest.raises(SystemExit):
        run(photos, "--workers", workers)
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "error: " in line)
    assert f"{path} cannot be read as a picture" in line and "Traceback" not in line


def test_the_reason_does_not_repeat_the_path(photos):
    text, gone = put(photos / "a.jpg", b"text"), photos / "gone.jpg"
    assert find_damaged([text, gone]) == [
        f"{text} (not an image)",
        f"{gone} (No such file or directory)",
    ]


def test_of_many_damaged_images_ten_are_named(photos, capsys):
    damage(photos / "train/cat", 12)
    error = error_of(photos, capsys, "--hold-out", "0.3")  # those held out are not named twice
    assert "12 images cannot be read" in error and error.count("jpg (") == 10
    assert " and 2 more. Replace" in error


def test_load_into_memory_names_all_damaged_images(photos, to_tensor):
    damage(photos / "train/cat", 2)
    folder = PhotoFolder(photos / "train", to_tensor)
    for dataset in (folder, Subset(folder, range(len(folder)))):
        with pytest.raises(ValueError, match=r"2 images .* x?.*x0.jpg \(.*x1.jpg \("):
            data_setup.load_into_memory(dataset)
    intact = [i for i, (path, _) in enumerate(folder.samples) if "x" not in Path(path).name]
    assert len(data_setup.load_into_memory(Subset(folder, intact))) == 6


def test_an_error_of_the_transform_stays_its_own(photos):
    def fail(image):
        raise ValueError("no such crop")

    with pytest.raises(ValueError, match="no such crop"):
        data_setup.load_into_memory(PhotoFolder(photos / "train", fail))


def test_the_quick_check_finds_what_reading_finds(tmp_path):
    """It decodes JPEGs at an eighth of their size."""
    rng = random.Random(0)
    noise = Image.effect_noise((200, 120), 80)
    for format in ("JPEG", "PNG", "GIF", "WEBP", "TIFF"):
        for mode in ("RGB", "L", *(["CMYK"] if format == "JPEG" else [])):
            buffer = io.BytesIO()
            noise.convert(mode).save(buffer, format, **{"progressive": mode == "L"})
            data = buffer.getvalue()
            for i in range(12):
                end = len(data) if i == 0 else rng.randrange(len(data))
                put(tmp_path / f"{format}-{mode}-{i}.{format}", data[:end])
    paths = sorted(map(str, tmp_path.iterdir()))
    unread = []
    for path in paths:
        try:
            data_setup.load_image(path)
        except ValueError:
            unread.append(path)
    assert 60 < len(unread) < len(paths)
    assert [found.split(" (")[0] for found in find_damaged(paths)] == unread


def test_images_that_fit_are_decoded_once(photos, monkeypatch):
    read = []

    def count(path, least=0):
        read.append(Path(path))
        return data_setup.load_image(path, least)

    monkeypatch.setattr(folders, "load_image", count)
    monkeypatch.setattr(fit, "find_damaged", lambda paths, **_: list(paths))  # names all it gets
    run(photos)
    assert sorted(read) == sorted(photos.glob("t*/*/*.jpg"))


def test_processes_share_the_check(photos, monkeypatch):
    monkeypatch.setattr(fit, "MAX_IN_MEMORY", 0)
    monkeypatch.setattr(fit, "process_rank", lambda: 1)
    monkeypatch.setattr(fit, "process_count", lambda: 4)
    monkeypatch.setattr(fit, "find_damaged", lambda paths, progress: paths)
    monkeypatch.setattr(fit, "gather_objects", lambda mine: [mine, ["of another process"]])
    with pytest.raises(ValueError, match=r"3 images .*cat/1.jpg, .*dog/2.jpg, of another process"):
        fit.load_resized(photos / "train", 24)


# Memory


def test_memory_is_counted_in_bytes_and_the_rest_is_read_again(photos, capsys, monkeypatch):
    """36 x 36 and 24 x 24 pixels: 3,888 bytes an image, and 6,912 in float32."""
    size, normalization = 24, train.Normalization()

    def kinds(room):
        monkeypatch.setattr(fit, "MAX_IN_MEMORY", room)
        folder = PhotoFolder(photos / "train")
        read = train.read_images(folder, PhotoFolder(photos / "test"), 0.0, 42, size, normalization)
        said = capsys.readouterr().out
        assert said.count("read from disk again in every epoch") == sum(
            not isinstance(part, TensorDataset) for part in read[:2]
        )
        return [isinstance(part, TensorDataset) for part in read[:2]], read

    train_bytes, test_bytes = 6 * 3888, 6 * 6912
    both, in_memory = kinds(train_bytes + test_bytes)
    assert both == [True, True]
    assert kinds(train_bytes + test_bytes - 1)[0] == [True, False]
    assert kinds(test_bytes - 1)[0] == [True, False]
    none, on_disk = kinds(train_bytes - 1)
    assert none == [False, False]
    for one, other in zip(in_memory[:2], on_disk[:2], strict=True):
        for (a, label), (b, same) in zip(one, other, strict=True):
            assert torch.equal(a, b) and a.dtype == b.dtype and label == same


def test_held_out_images_are_the_same_from_disk(photos, monkeypatch):
    def images(room):
        monkeypatch.setattr(fit, "MAX_IN_MEMORY", room)
        folder = PhotoFolder(photos / "train")
        return train.read_images(folder, None, 0.5, 1, 24, train.Normalization())

    for one, other in zip(images(10**9)[:2], images(0)[:2], strict=True):
        assert len(one) == len(other) > 0
        assert all(torch.equal(a[0], b[0]) for a, b in zip(one, other, strict=True))


def test_images_are_stacked_without_a_second_copy(monkeypatch):
    monkeypatch.setattr(torch, "stack", None)
    images = torch.rand(5, 3, 4, 6).to(torch.float16)
    held = data_setup.load_into_memory(TensorDataset(images, torch.arange(5)))
    assert torch.equal(held.tensors[0], images) and held.tensors[0].dtype == images.dtype


def test_images_of_different_shapes_are_refused():
    """One that is spread over the missing channels would go unnoticed."""
    images = [(torch.zeros(3, 4, 4), 0), (torch.zeros(1, 4, 4), 1)]
    with pytest.raises(ValueError, match=r"image 1 has the shape \(1, 4, 4\), .* one size"):
        data_setup.load_into_memory(images)


def test_processes_of_a_machine_share_its_memory(photos, monkeypatch):
    monkeypatch.setattr(fit, "MAX_IN_MEMORY", 6 * 3888)
    assert isinstance(fit.load_resized(photos / "train", 24), TensorDataset)
    monkeypatch.setattr(fit, "processes_here", lambda: 2)
    assert isinstance(fit.load_resized(photos / "train", 24), PhotoFolder)


# The parts of a data set


@pytest.mark.parametrize(
    ("there", "used", "said"),
    [
        (["train", "test"], ("train", "test"), ""),
        (["train", "val"], ("train", "val"), "; no test/, so val/ takes its place"),
        (["train", "validation"], ("train", "validation"), "; no test/, so validation/ takes"),
        (["train", "valid"], ("train", "valid"), "; no test/, so valid/ takes its place"),
        (["train", "val", "test"], ("train", "test"), "; val/ is not used"),
        (["Train", "TEST"], ("Train", "TEST"), ""),
        (["training", "testing", ".train"], ("training", "testing"), ""),
    ],
)
def test_parts_have_their_usual_names(tmp_path, there, used, said):
    for name in there:
        (tmp_path / name).mkdir()
    *found, words = find_parts(tmp_path)
    assert [path.name for path in found] == list(used)
    assert words.startswith(f"{tmp_path}{said}") and (said or words == str(tmp_path))
    assert find_parts(tmp_path, hold_out=0.2) == (tmp_path / used[0], None, str(tmp_path))


@pytest.mark.parametrize(
    ("there", "given", "words"),
    [
        (["train"], "", "holds train, but no test/, val/ or validation/: .* --hold-out 0.2"),
        (["cat", "dog"], "", "holds cat, dog, but no train/: .* move them into train/, and give"),
        (["pets/train", "pets/test"], "", "holds pets, but no train/: .* --data .*/pets$"),
        (["train/cat", "test/cat"], "train", "train holds cat, but no train/: .* folder above"),
        ([], "", "holds no folders, but no train/: expected train/ and test/"),
        ([], "nowhere", "there is no folder .*nowhere: expected one that holds train/"),
    ],
)
def test_parts_that_are_not_there_are_one_line(tmp_path, capsys, there, given, words):
    for name in there:
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=words):
        find_parts(tmp_path / given)
    assert "error: " in error_of(tmp_path / given, capsys)


def test_a_training_says_what_it_reads(photos, capsys):
    (photos / "test").rename(photos / "val")
    put(photos / "train/cat/._0.jpg", b"no image")
    put(photos / "val/Thumbs.db", b"no image")
    run(photos)
    said = capsys.readouterr().out
    assert f"Images: {photos}; no test/, so val/ takes its place" in said
    assert f"{photos}/train: 6 images in 2 classes; passed over: 1 hidden file\n" in said
    assert f"{photos}/val: 6 images in 2 classes; passed over: 1 .db\n" in said
    assert "6 to train on, 6 validation images" in said
    assert said.splitlines()[-1].startswith("validation accuracy ")


def test_without_test_images_some_can_be_held_out(photos, capsys):
    (photos / "test").rename(photos / "others")
    run(photos, "--hold-out", "0.3")
    assert "4 to train on, 2 held-out images" in capsys.readouterr().out


def test_a_tilde_is_the_home_folder(photos, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(photos))
    monkeypatch.setenv("USERPROFILE", str(photos))
    monkeypatch.chdir(photos)
    train.main(["--data=~/", "--output=~/out", *TRAINING])
    assert (photos / "out/vit.safetensors").is_file()
    train.main(["--data=~", "--weights=~/out/vit.safetensors", "--output=~/more", *TRAINING])
    options = ["~/test/cat/0.jpg", "--weights=~/out/vit.safetensors", "--output=~/seen.png"]
    predictions.main(options)
    assert (photos / "seen.png").is_file()
    with pytest.raises(SystemExit):
        train.main(["--data=~nobody-of-this-name/pets", *TRAINING])
    assert "there is no folder" in capsys.readouterr().err
