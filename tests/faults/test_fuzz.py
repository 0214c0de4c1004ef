"""Damaged images, weights and checkpoints by the thousand: each is read, or refused in words.

All of an input follows from its number: even numbers are pictures, odd ones are weights or
checkpoints. FUZZ_INPUTS is how many there are, and FUZZ_ONLY=1234 repeats one alone. Inputs
are loaded in processes of their own, with little memory, under Python's audit hook.
"""

import argparse
import contextlib
import faulthandler
import io
import json
import multiprocessing
import os
import re
import signal
import struct
import sys
import time
import traceback
import warnings
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_vit import tiny_vit
from torch import nn

from going_modular import engine
from going_modular.images.reading import load_image
from going_modular.training.checkpoints import Checkpoint
from going_modular.training.progress import Progress, Totals
from going_modular.utils import is_out_of_memory
from going_modular.vit.export import to_huggingface, to_jax, to_timm, to_torchvision
from going_modular.vit.files import read_weights, write_vit
from going_modular.vit.weights import load_vit

INPUTS = int(os.environ.get("FUZZ_INPUTS", 10_000))
ONLY = os.environ.get("FUZZ_ONLY")
PROCESSES = min(4, os.cpu_count() or 1)
LONGEST = 20  # seconds that one input may take
START = 300  # seconds for imports and for loading every seed, on a busy machine
MEMORY = 2 * 2**30  # bytes that a process may take beyond what it has at its start

Generator = np.random.Generator

# Seeds: what is valid before it is damaged


def write_pictures(folder: Path) -> None:
    """One picture of each kind: formats, modes, compressions, several frames."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (14, 20, 3), dtype=np.uint8)).resize((24, 17))
    deep = Image.fromarray(rng.integers(0, 65536, (17, 24), dtype=np.uint16))
    palette = rgb.convert("P", palette=Image.Palette.ADAPTIVE, colors=20)
    clear = rgb.copy()
    clear.putalpha(rgb.convert("L"))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a picture"
    frames = {"save_all": True, "append_images": [rgb.rotate(90), rgb.rotate(180)]}
    for name, picture, options in (
        ("plain.jpg", rgb, {"exif": exif}),
        ("progressive.jpg", rgb, {"progressive": True, "subsampling": 0}),
        ("print.jpg", rgb.convert("CMYK"), {}),
        ("rgb.png", rgb, {"exif": exif, "pnginfo": None}),
        ("palette.png", palette, {"transparency": 3}),
        ("deep.png", deep, {}),
        ("clear.png", clear, {}),
        ("frames.png", rgb, frames),
        ("bits.png", rgb.convert("1"), {}),
        ("plain.gif", palette, {}),
        ("frames.gif", rgb, {**frames, "loop": 0}),
        ("lossy.webp", rgb, {"exif": exif}),
        ("lossless.webp", clear, {"lossless": True}),
        ("raw.tiff", rgb, {"exif": exif}),
        ("deep.tiff", deep, {"compression": "tiff_lzw"}),
        ("jpeg.tiff", rgb, {"compression": "jpeg"}),
        ("fax.tiff", rgb.convert("1"), {"compression": "group4"}),
        ("deflate.tiff", clear, {"compression": "tiff_adobe_deflate"}),
        ("float.tiff", Image.fromarray(rng.random((17, 24), dtype=np.float32)), {}),
        ("plain.bmp", rgb, {}),
        ("palette.bmp", palette, {}),
        ("plain.ppm", rgb, {}),
        ("deep.pgm", deep.convert("I"), {}),
        ("plain.ico", clear, {"sizes": [(16, 16), (24, 17)]}),
        ("plain.tga", rgb, {"compression": "tga_rle"}),
        ("plain.pcx", palette, {}),
        ("plain.dds", clear, {}),
        ("plain.sgi", rgb, {}),
        ("program.eps", rgb, {}),
    ):
        path = folder / "picture" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, **options)


def write_weights(folder: Path) -> None:
    """Weights of every format and naming; each has a folder of its own."""
    sizes = dict(image_size=8, patch_size=4, embedding_dim=8, num_heads=2, mlp_dim=8, num_layers=1)
    vit = tiny_vit(**sizes, num_classes=3)
    exact = tiny_vit(**sizes, num_classes=3, pos_embedding="sincos_2d", pool="mean")

    def place(name: str) -> Path:
        path = folder / "weights" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    write_vit(vit, place("own/vit.safetensors"), class_names=["a", "b", "c"], log=[1, {"x": 0.5}])
    write_vit(exact, place("mean/vit.safetensors"))
    half = {name: tensor.to(torch.bfloat16) for name, tensor in to_timm(vit).items()}
    save_file(half, place("half/vit.safetensors"), {"format": "pt"})
    torch.save(to_torchvision(vit), place("zip/vit.pth"))
    wrapped = {"model": to_timm(vit), "args": argparse.Namespace(lr=0.1), "best": np.float64(0.5)}
    torch.save({**wrapped, "epoch": 3, "history": {"loss": [1.0]}}, place("wrapped/vit.ckpt"))
    torch.save(to_timm(vit), place("old/vit.pth"), _use_new_zipfile_serialization=False)
    torch.save(
        {"state_dict": {f"module.{name}": tensor for name, tensor in half.items()}},
        place("old_wrapped/vit.pth"),
        _use_new_zipfile_serialization=False,
    )
    np.savez(place("jax/vit.npz"), **to_jax(vit))
    np.savez_compressed(place("packed/vit.npz"), **to_jax(vit))
    hub = to_huggingface(vit, generation=4)
    save_file(hub, place("hub/model.safetensors"))
    config = {"model_type": "vit", "hidden_size": 8, "num_attention_heads": 2, "image_size": 8}
    config |= {"layer_norm_eps": 1e-12, "hidden_act": "gelu"}
    place("hub/config.json").write_text(json.dumps(config))
    colors = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "do_normalize": True}
    place("hub/preprocessor_config.json").write_text(json.dumps(colors))
    save_file(to_timm(vit), place("timm/model.safetensors"))
    colors = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    config = {"architecture": "vit", "num_features": 8, "pretrained_cfg": colors}
    place("timm/config.json").write_text(json.dumps(config))
    names = sorted(hub)
    parts = {f"model-0000{i}-of-00002.safetensors": names[i - 1 :: 2] for i in (1, 2)}
    for part, its in parts.items():
        save_file({name: hub[name] for name in its}, place(f"parts/{part}"))
    listed = {"weight_map": {name: part for part, its in parts.items() for name in its}}
    place("parts/model.safetensors.index.json").write_text(json.dumps(listed))


def write_checkpoints(folder: Path) -> None:
    """Checkpoints of two optimizers."""
    for name, make in (("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)):
        layer = nn.Linear(3, 2)
        optimizer = make(layer.parameters(), lr=0.1)
        layer(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        run = {"lr": 0.1, "seed": 1, "classes": ["a", "b"]}
        checkpoint = Checkpoint(folder / "checkpoint" / f"{name}.pt", run)
        progress = Progress(Totals.zeros("cpu"), epoch=2, results={"loss": [0.5]})
        checkpoint.save(layer, optimizer, engine.Method(), progress)


# Damage


def place_in(data: bytes, rng: Generator) -> int:
    """A place, in the first or the last 256 bytes more often than elsewhere."""
    ends = [(0, len(data)), (0, min(256, len(data))), (max(0, len(data) - 256), len(data))]
    low, high = ends[rng.choice(3, p=[0.3, 0.5, 0.2])]
    return int(rng.integers(low, high + 1))


def run_of(data: bytes, rng: Generator) -> tuple[int, int]:
    """Where a run of bytes begins and ends; most are short."""
    start = place_in(data, rng)
    return start, min(len(data), start + int(2 ** rng.uniform(0, 8)))


def flip_bits(data: bytes, other: bytes, rng: Generator) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.integers(1, 9)):
        place = min(place_in(data, rng), len(data) - 1)
        changed[place] ^= 1 << rng.integers(8)
    return bytes(changed)


def overwrite(data: bytes, other: bytes, rng: Generator) -> bytes:
    start, end = run_of(data, rng)
    fill = rng.bytes(end - start), bytes(end - start), b"\xff" * (end - start)
    return data[:start] + fill[rng.integers(3)] + data[end:]


def cut(data: bytes, other: bytes, rng: Generator) -> bytes:
    start, end = run_of(data, rng)
    return data[:start] + (data[end:] if rng.random() < 0.7 else b"")


def insert(data: bytes, other: bytes, rng: Generator) -> bytes:
    start, end = run_of(data, rng)
    return data[:start] + rng.bytes(end - start) + data[start:]


def duplicate(data: bytes, other: bytes, rng: Generator) -> bytes:
    start, end = run_of(data, rng)
    return data[:end] + data[start:end] * int(rng.integers(1, 4)) + data[end:]


def splice(data: bytes, other: bytes, rng: Generator) -> bytes:
    """The beginning of one file and the end of another."""
    return data[: place_in(data, rng)] + other[place_in(other, rng) :]


def set_integer(data: bytes, other: bytes, rng: Generator) -> bytes:
    """An integer of 2, 4 or 8 bytes at an extreme: a size, an offset, a count."""
    width, order = int(rng.choice([2, 4, 8])), ("little", "big")[rng.integers(2)]
    top = 1 << (8 * width)
    values = (0, 1, top // 2 - 1, top // 2, top - 1, 2 ** int(rng.integers(8 * width)))
    value = values[rng.integers(len(values))]
    start = place_in(data, rng)
    return data[:start] + value.to_bytes(width, order) + data[start + width :]


def set_number(data: bytes, other: bytes, rng: Generator) -> bytes:
    """A number in text at an extreme, as in headers of PPM, NumPy and JSON."""
    numbers = list(re.finditer(rb"\d+", data[:4096]))
    if not numbers:
        return flip_bits(data, other, rng)
    values = (b"0", b"-1", b"3", b"65536", b"2147483648", b"1" + b"0" * 19, b"9" * 400, b"1e999")
    found = numbers[rng.integers(len(numbers))]
    return data[: found.start()] + values[rng.integers(len(values))] + data[found.end() :]


# Words of which one may stand in the place of another: kinds of numbers, classes, functions
WORDS = (
    (b"<f4", b">f4", b"<i4", b"<U1", b"|S4", b"|V4", b"|O4", b"<M4", b"<f2", b"<c8"),
    (b"F32", b"I32", b"U32", b"F16", b"BF16", b"F64", b"F4", b"F8_E4M3", b"BOOL", b"C64"),
    (
        *(b"torch\nFloatStorage", b"torch\nHalfStorage", b"torch\nLongStorage"),
        *(b"torch\nBoolStorage", b"torch\nComplexFloatStorage", b"torch.storage\nUntypedStorage"),
    ),
    (
        *(b"torch._utils\n_rebuild_tensor_v2", b"torch._utils\n_rebuild_parameter"),
        *(b"torch._utils\n_rebuild_sparse_tensor", b"torch._utils\n_rebuild_nested_tensor"),
        *(b"torch._utils\n_rebuild_qtensor", b"torch._utils\n_rebuild_meta_tensor_no_storage"),
        *(b"torch._utils\n_rebuild_wrapper_subclass", b"os\nsystem", b"builtins\neval"),
    ),
    (
        *(b"collections\nOrderedDict", b"argparse\nNamespace", b"collections\nCounter"),
        *(b"os\nsystem", b"posix\nsystem", b"builtins\neval", b"builtins\nexec"),
        *(b"subprocess\nPopen", b"torch\nload", b"torch.hub\nload", b"torch\nSize"),
    ),
    (b"cpu", b"xpu", b"mps", b"hpu", b"maia:0", b"cuda", b"meta"),
    (b"False", b"True"),
)


def set_word(data: bytes, other: bytes, rng: Generator) -> bytes:
    """Another word of the same group, once or everywhere."""
    groups = [[word for word in group if word in data] for group in WORDS]
    there = [i for i, words in enumerate(groups) if words]
    if not there:
        return set_number(data, other, rng)
    i = there[rng.integers(len(there))]
    old = groups[i][rng.integers(len(groups[i]))]
    new = WORDS[i][rng.integers(len(WORDS[i]))]
    if rng.random() < 0.3:
        return data.replace(old, new)
    places = [found.start() for found in re.finditer(re.escape(old), data)]
    place = places[rng.integers(len(places))]
    return data[:place] + new + data[place + len(old) :]


DAMAGES = (
    *(flip_bits, overwrite, cut, insert, duplicate, splice),
    *(set_integer, set_number, set_word, set_word),
)

# Values in the place of others in JSON, as text: some of them json.dumps cannot write
JSON_VALUES = (
    *("null", "true", "0", "-1", "3", "0.5", "2147483648", "9223372036854775807", "1e999"),
    *("NaN", "-Infinity", "1" + "0" * 400, "1" + "0" * 5000, '""', '"x"', '"../x"', '".."'),
    *('"\\ud800"', '"a\\u0000b"', f'"{"x" * 300}"', "[]", "[1]", "[[1], 2]", "{}", "[" * 9999),
    *('{"a":' * 9999, '"F64"', '"BF16"', '"gelu_new"', '"none"', "2305843009213693951"),
)


def damaged_json(data: bytes, rng: Generator) -> bytes:
    """JSON in which one value is another, elsewhere or not there.

    Text in it that is JSON as well may change inside.
    """
    tree = json.loads(data)
    places = [
        (container, key)
        for container in containers(tree)
        for key in (container if isinstance(container, dict) else range(len(container)))
    ]
    if not places:
        return data
    container, key = places[rng.integers(len(places))]
    inner, chance = container[key], rng.random()
    if isinstance(inner, str) and inner.startswith("{") and rng.random() < 0.8:
        container[key] = damaged_json(inner.encode(), rng).decode()
        return json.dumps(tree).encode()
    if chance < 0.3:  # two values change places
        second, its_key = places[rng.integers(len(places))]
        container[key], second[its_key] = second[its_key], inner
        with contextlib.suppress(ValueError):  # one of them was inside the other
            return json.dumps(tree).encode()
    if chance < 0.5 and isinstance(container, dict):
        del container[key]
        if chance < 0.4:
            container[f"{key}x"] = inner
        return json.dumps(tree).encode()
    container[key] = "the new value"
    value = JSON_VALUES[rng.integers(len(JSON_VALUES))]
    return json.dumps(tree).replace('"the new value"', value).encode()


def containers(tree: object) -> list:
    """All objects and arrays in what JSON has made, the outermost first."""
    inner = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else None
    if inner is None:
        return []
    return [tree, *(each for value in inner for each in containers(value))]


def damaged_zip(data: bytes, other: bytes, rng: Generator) -> bytes:
    """One file in an archive is damaged. The archive is not: its checksums are right."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(buffer, "w") as new:
        names = archive.namelist()
        pickles = [name for name in names if name.endswith(".pkl")]
        among = pickles if pickles and rng.random() < 0.6 else names
        chosen = among[rng.integers(len(among))]
        for name in names:
            content = archive.read(name)
            if name != chosen:
                new.writestr(name, content)
            elif rng.random() < 0.9:  # or it is not there
                new.writestr(name, damaged_bytes(content, other, rng))
    return buffer.getvalue()


def damaged_png(data: bytes, other: bytes, rng: Generator) -> bytes:
    """One chunk of a PNG file is damaged, and its length and checksum are right."""
    chunks, place = [], 8
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    chosen = rng.integers(len(chunks))
    written = [data[:8]]
    for i, (kind, content) in enumerate(chunks):
        if i == chosen:
            if kind == b"IDAT" and rng.random() < 0.5:
                content = zlib.compress(damaged_bytes(zlib.decompress(content), other, rng))
            else:
                content = damaged_bytes(content, other, rng)
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        written.append(struct.pack(">I", len(content)) + kind + content + checksum)
    return b"".join(written)


def damaged_header(data: bytes, rng: Generator) -> bytes:
    """The header of a .safetensors file is damaged, and its length is right."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = data[8:end]
    header = damaged_json(header, rng) if rng.random() < 0.7 else set_word(header, b"", rng)
    return len(header).to_bytes(8, "little") + header + data[end:]


def damaged_bytes(data: bytes, other: bytes, rng: Generator) -> bytes:
    """Any bytes, damaged in one way."""
    return DAMAGES[rng.integers(len(DAMAGES))](data, other, rng) if data else rng.bytes(8)


def damaged_inside(data: bytes, other: bytes, rng: Generator) -> bytes:
    """Damaged in a part that the format's own checks do not find, so that it is read."""
    if data.startswith(b"PK"):
        return damaged_zip(data, other, rng)
    if data.startswith(b"\x89PNG"):
        return damaged_png(data, other, rng)
    if data[:1] == b"{":
        return damaged_json(data, rng)
    if data[8:9] == b"{":
        return damaged_header(data, rng)
    return damaged_bytes(data, other, rng)


def damaged(data: bytes, other: bytes, rng: Generator) -> bytes:
    """A file that is damaged once to three times."""
    if rng.random() < 0.6:
        with contextlib.suppress(Exception):  # its parts are not found once it is damaged
            data = damaged_inside(data, other, rng)
            if rng.random() < 0.7:
                return data
    for _ in range(rng.integers(1, 3)):
        data = damaged_bytes(data, other, rng)
    return data


# Loading


def load(path: Path) -> str:
    """Load a picture, weights or a checkpoint: "read" or "refused". Any other error is raised."""
    kind = next(kind for kind in ("picture", "weights", "checkpoint") if kind in path.parts)
    if kind == "picture":
        try:
            picture = load_image(path)
        except ValueError as error:
            assert str(path) in str(error), f"an error without the file: {error}"
            return "refused"
        assert picture.mode == "RGB" and min(picture.size) > 0
    elif kind == "checkpoint":
        try:
            Checkpoint(path).read()
        except ValueError as error:
            assert str(path) in str(error), f"an error without the file: {error}"
            return "refused"
        except Exception as error:
            if not is_out_of_memory(error):  # which does not mean that a file is damaged
                raise
            return "refused"
    else:
        is_folder = len(list(path.parent.iterdir())) > 1
        try:
            load_vit(read_weights(path.parent if is_folder else path))
        except (ValueError, FileNotFoundError):
            return "refused"
    return "read"


def load_damaged(number: int, folder: Path) -> str:
    """Make the input of a number from the seeds in a folder, and load it."""
    rng = np.random.default_rng(number)
    pictures, others = seeds_in(folder)
    paths = others if number % 2 else pictures
    path, second = (paths[i] for i in rng.integers(len(paths), size=2))
    whole = path.read_bytes()
    path.write_bytes(damaged(whole, second.read_bytes(), rng))
    try:
        with watched():
            return load(path)
    finally:
        path.write_bytes(whole)


def seeds_in(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files of pictures, and those of weights and checkpoints, always in the same order."""
    pictures, weights, checkpoints = (
        sorted((folder / kind).rglob("*.*")) for kind in ("picture", "weights", "checkpoint")
    )
    return pictures, weights + checkpoints


def load_seeds(folder: Path) -> None:
    """Load all seeds whole and damaged, so that all modules are there which that needs."""
    with watched(learn=True):
        for path in (path for paths in seeds_in(folder) for path in paths):
            whole = path.read_bytes()
            expected = "refused" if path.suffix == ".eps" else "read"
            assert load(path) == expected, path
            for data in (whole[: len(whole) // 2], b"", b"PK\x03\x04", b"\x80\x02N.", b"{" * 16):
                path.write_bytes(data)
                with contextlib.suppress(Exception):
                    load(path)
            path.write_bytes(whole)
    assert not seen, seen


# The watch

# What no load may do, and what importing a module does as well
FORBIDDEN = re.compile(
    r"os\.(system|exec|fork|forkpty|posix_spawn|spawn|startfile|remove|rename|mkdir|rmdir|link"
    r"|symlink|truncate|chmod|chown|putenv)|(subprocess|socket|shutil|tempfile|urllib|pty)\..*"
)
OF_IMPORTS = ("exec", "ctypes.dlopen", "open")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
state = {"watching": False, "learning": False}
seen: list[str] = []  # what was done that must not be, since somebody looked
known: set[str] = set()  # modules that loading the seeds has tried to import


def hook(event: str, arguments: tuple) -> None:
    """An audit hook. It stays in its process for good, and raises to stop what is forbidden."""
    if not state["watching"]:
        return
    if event == "import":
        if state["learning"]:
            known.add(arguments[0])
        elif arguments[0] not in known:
            seen.append(f"import {arguments[0]}")
        return
    is_wrong = FORBIDDEN.fullmatch(event)
    if event in OF_IMPORTS and not state["learning"]:
        is_wrong = event != "open" or (arguments[2] or 0) & WRITING
    if is_wrong:
        seen.append(f"{event} {arguments}"[:300])
        raise PermissionError(f"{event} in a load")


@contextlib.contextmanager
def watched(learn: bool = False):
    """In this block the audit hook watches. It may learn which modules loading imports."""
    state.update(watching=True, learning=learn)
    try:
        yield
    finally:
        state["watching"] = False


# Processes


def work(numbers: list[int], folder: Path, load_one, sender: Connection) -> None:
    """The life of a process that loads inputs and tells of each: number, outcome, seconds."""
    import resource  # not on Windows

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # Pillow's, on damaged files
    with (folder / "log").open("w") as log, contextlib.redirect_stdout(io.StringIO()):
        faulthandler.enable(log)
        sys.addaudithook(hook)
        try:
            load_seeds(folder)
        except Exception:
            sender.send(traceback.format_exc())
            return
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        sender.send("")  # it is ready
        for number in numbers:
            start = time.monotonic()
            try:
                outcome = load_one(number, folder)
            except BaseException as error:  # Rust's panics are no Exception
                frame = traceback.extract_tb(error.__traceback__)[-1]
                place = f"{Path(frame.filename).name}:{frame.lineno}"
                outcome = f"{type(error).__name__} at {place}: {str(error)[:300]}"
            if seen:
                outcome = f"{outcome}, after {'; '.join(seen)}"
                seen.clear()
            sender.send((number, outcome, time.monotonic() - start))
        sender.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def outcomes(numbers: list[int], make_folder, load_one=load_damaged, longest=LONGEST):
    """What became of each input, as (number, outcome, seconds), and the peaks of memory.

    An input that ends its process, or takes longer than `longest` seconds, is an outcome
    too. A new process goes on with the numbers after it.
    """
    context = multiprocessing.get_context("spawn")
    done, peaks = [], []
    while len(done) < len(numbers):
        folder, rest = make_folder(), numbers[len(done) :]
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(rest, folder, load_one, sender))
        process.start()
        sender.close()
        assert receiver.poll(START), f"the seeds took longer than {START} seconds"
        problem = receiver.recv()
        assert not problem, problem
        what = f"took longer than {longest} seconds"
        try:
            while receiver.poll(longest):
                message = receiver.recv()
                if isinstance(message, int):
                    peaks.append(message)
                    break
                done.append(message)
            else:
                os.kill(process.pid, signal.SIGABRT)  # its log then says where it was
                process.join(5)
        except EOFError:
            process.join(5)
            what = f"ended its process with {process.exitcode}"
        process.kill()
        process.join()
        receiver.close()
        if len(done) < len(numbers):
            where = " < ".join(re.findall(r'File "(.*)", line', (folder / "log").read_text())[:3])
            done.append((numbers[len(done)], f"{what}, in {where}", longest))
    return done, peaks


# Tests


def counts(done: list[tuple[int, str, float]], what: str) -> str:
    """In words, how many were read and refused, and the slowest."""
    read = sum(outcome == "read" for _, outcome, _ in done)
    slowest = max(seconds for *_, seconds in done)
    return (
        f"{len(done):,} {what}: {read:,} read, {len(done) - read:,} refused; "
        f"slowest {slowest:.1f} s"
    )


def test_damaged_files(tmp_path, record):
    write_pictures(tmp_path / "seeds")
    write_weights(tmp_path / "seeds")
    write_checkpoints(tmp_path / "seeds")
    copies = iter(range(10**6))

    def copy_of_seeds() -> Path:
        folder = tmp_path / f"process {next(copies)}"
        for path in (tmp_path / "seeds").rglob("*.*"):
            copy = folder / path.relative_to(tmp_path / "seeds")
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
        return folder

    numbers = [int(ONLY)] if ONLY else list(range(INPUTS))
    shares = [numbers[i::PROCESSES] for i in range(PROCESSES)]
    with ThreadPoolExecutor(PROCESSES) as pool:
        results = list(pool.map(lambda share: outcomes(share, copy_of_seeds), shares))
    done = sorted(each for share, _ in results for each in share)
    wrong = [f"{n}: {outcome}" for n, outcome, _ in done if outcome not in ("read", "refused")]
    assert not wrong, f"{len(wrong)} of {len(done)} inputs:\n" + "\n".join(wrong[:20])
    assert [number for number, *_ in done] == numbers
    if not ONLY:
        parts = {"pictures": done[::2], "weights and checkpoints": done[1::2]}
        assert all({o for _, o, _ in part} == {"read", "refused"} for part in parts.values())
        peak = max(peak for _, peaks in results for peak in peaks) / 2**20
        record(
            ". ".join(counts(part, what) for what, part in parts.items())
            + f". No process took more than {peak:.1f} GiB, and nothing was run or written"
        )


def misbehave(number: int, folder: Path) -> str:
    """What no input may do, by number."""
    with watched():
        if number == 1:
            raise KeyError("x")
        if number == 2:
            with contextlib.suppress(PermissionError):
                os.system("touch executed")
        if number == 3:
            os.abort()
        if number == 4:
            time.sleep(60)
        if number == 5:
            (folder / "new").write_text("x")
        if number == 6:
            __import__("this")
        if number == 7:
            bytearray(2 * MEMORY)
        if number == 8:
            eval("0")
    return "read"


def test_what_an_input_must_not_do_is_noticed(tmp_path, record):
    done, _ = outcomes(list(range(10)), lambda: tmp_path, misbehave, longest=10)
    expected = [
        *("read", "KeyError at .*: 'x'", "read, after os.system .*touch executed"),
        *("ended its process with -6, in .*test_fuzz", "took longer than 10 seconds, in .*fuzz"),
        *("PermissionError .*, after open .*new", "PermissionError .*, after import this"),
        *("MemoryError at .*", "PermissionError .*, after exec .*", "read"),
    ]
    for (number, outcome, _), words in zip(done, expected, strict=True):
        assert re.match(words, outcome), (number, outcome)
    assert not Path("executed").exists() and not (tmp_path / "new").exists()
    record("a crash, a hang, too much memory, a started program, a written file: each is noticed")
