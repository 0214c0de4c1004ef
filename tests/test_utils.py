"""Paths, seeds, device, precision, counting, and files that are written safely."""

import json
import multiprocessing
import os
import random
import shutil
import stat
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_vit import TINY
from torch import nn

from going_modular import utils
from going_modular.images.downloads import DownloadError
from going_modular.model_builder import ViT, create_vit
from going_modular.utils import give_random_values


def test_in_a_checkout_paths_start_at_it(tmp_path, monkeypatch):
    """Wherever Python runs: notebooks run in their folder, tests elsewhere."""
    monkeypatch.delenv("FOODVISION_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    assert (utils.project_path("going_modular") / "utils.py").is_file()
    assert utils.project_path(tmp_path / "x") == tmp_path / "x"
    assert utils.project_path("~/x") == Path.home() / "x"
    assert utils.data_dir() == utils.CHECKOUT / "data"


def test_without_a_checkout_paths_start_at_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.delenv("FOODVISION_DATA", raising=False)
    monkeypatch.setattr(utils, "CHECKOUT", None)
    monkeypatch.chdir(tmp_path)
    assert utils.project_path("build/x") == tmp_path / "build/x"
    assert utils.project_path(tmp_path / "x") == tmp_path / "x"
    monkeypatch.setattr(utils, "user_cache_path", lambda name: tmp_path / "cache" / name)
    assert utils.data_dir() == tmp_path / "cache/vit-paper-replicating/data"


@pytest.mark.parametrize("checkout", [True, False])
def test_the_data_folder_can_be_chosen(tmp_path, monkeypatch, checkout):
    root = tmp_path / "checkout" if checkout else None
    monkeypatch.setattr(utils, "CHECKOUT", root)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FOODVISION_DATA", str(tmp_path / "images"))
    assert utils.data_dir() == tmp_path / "images"
    monkeypatch.setenv("FOODVISION_DATA", "images")
    assert utils.data_dir() == (root or tmp_path) / "images"
    monkeypatch.setenv("FOODVISION_DATA", "~/images")
    assert utils.data_dir() == Path.home() / "images"


def test_an_installed_package_writes_nothing_to_site_packages(tmp_path, monkeypatch):
    """As after a plain pip install: the package lies in a folder without pyproject.toml."""
    monkeypatch.delenv("FOODVISION_DATA", raising=False)
    site, work = tmp_path / "site-packages", tmp_path / "work"
    (site / "going_modular").mkdir(parents=True)
    work.mkdir()
    for name in ("__init__.py", "utils.py"):
        shutil.copy(utils.PACKAGE / name, site / "going_modular" / name)
    code = (
        "from going_modular import utils\n"
        "print(utils.CHECKOUT, utils.project_path('x'), utils.data_dir(), sep='\\n')"
    )
    environment = {**os.environ, "PYTHONPATH": str(site), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    child = subprocess.run(
        [sys.executable, "-c", code], cwd=work, env=environment, capture_output=True, text=True
    )
    checkout, path, data = child.stdout.splitlines()
    assert checkout == "None" and Path(path) == work / "x"
    assert not Path(data).is_relative_to(site) and "vit-paper-replicating" in data


def test_set_seeds_covers_python_numpy_and_torch():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    utils.set_seeds(1)
    first = draw()
    utils.set_seeds(1)
    assert draw() == first
    utils.set_seeds(2)
    assert all(a != b for a, b in zip(draw(), first, strict=True))


def test_size_follows_the_variable_then_the_device(monkeypatch):
    monkeypatch.setenv("FOODVISION_SIZE", "smoke")
    assert utils.get_size() == "smoke"
    monkeypatch.setenv("FOODVISION_SIZE", "huge")
    with pytest.raises(ValueError, match="smoke, cpu, paper"):
        utils.get_size()
    monkeypatch.delenv("FOODVISION_SIZE")
    for device, size in (("cpu", "cpu"), ("cuda", "paper"), ("mps", "paper")):
        monkeypatch.setattr(utils, "get_device", lambda d=device: torch.device(d))
        assert utils.get_size() == size


def test_device_prefers_cuda_then_mps(monkeypatch):
    monkeypatch.delenv("FOODVISION_DEVICE", raising=False)
    for cuda, mps, expected in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda x=cuda: x)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda x=mps: x)
        assert utils.get_device().type == expected


def test_the_device_can_be_chosen(monkeypatch):
    monkeypatch.setenv("FOODVISION_DEVICE", "meta")
    assert utils.get_device() == torch.device("meta")


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ("gpu", "FOODVISION_DEVICE='gpu': expected cpu, cuda or mps"),
        ("cuda", "FOODVISION_DEVICE='cuda': this machine has no such device"),
        ("cuda:1", "FOODVISION_DEVICE='cuda:1': this machine has no such device"),
        ("mps", "FOODVISION_DEVICE='mps': this machine has no such device"),
    ],
)
def test_a_device_that_is_not_there_is_named(chosen, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(chosen == "cuda:1"))
    monkeypatch.setattr(torch.mps, "device_count", lambda: 0)
    monkeypatch.setenv("FOODVISION_DEVICE", chosen)
    with pytest.raises(ValueError, match=message):
        utils.get_device()


# How a command ends


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("no"), "no"),
        (FileNotFoundError("no"), "no"),
        (ImportError("no"), "no"),
        (FloatingPointError("no"), "no"),
        (KeyError("no"), "'no'"),  # an error of this command alone
        (ValueError("two\nlines"), "two lines"),
        (MemoryError(), "MemoryError. Take less"),
        (torch.OutOfMemoryError("full"), "full. Take less"),
        (RuntimeError("DefaultCPUAllocator: no"), "DefaultCPUAllocator: no. Take less"),
    ],
)
def test_a_users_error_is_one_line_with_status_2(error, line, capsys):
    with pytest.raises(SystemExit) as end:
        with utils.errors_in_one_line("program", KeyError, memory_advice="Take less"):
            raise error
    assert end.value.code == 2
    assert capsys.readouterr().err == f"program: error: {line}\n"


def test_an_error_that_lists_keeps_its_lines(capsys):
    with pytest.raises(SystemExit), utils.errors_in_one_line("program"):
        raise utils.ErrorInLines("these differ:\n  a\n  b")
    assert capsys.readouterr().err == "program: error: these differ:\n  a\n  b\n"


@contextmanager
def largest_file(size):
    """No file of this process may grow beyond a size, as on a full disk."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_text("x" * 100_000),
        lambda path: torch.save(torch.zeros(100_000), path),
        lambda path: save_file({"x": torch.zeros(100_000)}, path),
    ],
    ids=["text", "torch", "safetensors"],
)
def test_a_full_disk_is_said_and_keeps_the_old_file(write, tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(OSError, match=r"file cannot be written completely; [\d,]+ MB are free"):
        with largest_file(10_000), utils.atomic_write(path) as unfinished:
            write(unfinished)
    assert path.read_text() == "old" and [*tmp_path.iterdir()] == [path]
    with utils.atomic_write(path) as unfinished:
        write(unfinished)
    assert path.stat().st_size >= 100_000


@pytest.mark.parametrize("error", [RuntimeError("a bug"), DownloadError("the server says no")])
def test_other_errors_while_writing_stay_themselves(error, tmp_path):
    with pytest.raises(type(error), match=str(error)), utils.atomic_write(tmp_path / "file"):
        raise error


@pytest.mark.parametrize("error", [KeyError("a bug"), RuntimeError("a bug"), TypeError("a bug")])
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(type(error)), utils.errors_in_one_line("program"):
        raise error


def test_environment_in_two_lines():
    versions, machine = utils.describe_environment().split("\n")
    assert torch.__version__ in versions and "/" not in versions + machine


def test_multiply_adds_equal_the_formula_and_mode_is_kept():
    vit = ViT(TINY)
    T, D = 17, 24
    per_block = 4 * T * D * D + 2 * T * T * D + 2 * T * D * 40
    expected = 16 * 192 * D + 2 * per_block + D * 5
    vit.train()
    vit.encoder.eval()  # as a frozen part would be
    assert utils.count_multiply_adds(vit, torch.zeros(1, 3, 32, 32)) == expected
    assert vit.training and vit.head.training and not vit.encoder.training


def test_multiply_adds_of_built_in_layers_do_not_depend_on_the_callers_mode():
    """Without gradients PyTorch's own layers take a fused path that hides attention."""
    layer = nn.TransformerEncoderLayer(24, 4, 40, batch_first=True, norm_first=True)
    tokens = torch.zeros(1, 17, 24)
    expected = 4 * 17 * 24 * 24 + 2 * 17 * 17 * 24 + 2 * 17 * 24 * 40
    assert utils.count_multiply_adds(layer, tokens) == expected
    with torch.no_grad():
        assert utils.count_multiply_adds(layer, tokens) == expected


@pytest.mark.parametrize(("size", "giga"), [(224, 17.56), (384, 55.48)])
def test_multiply_adds_of_vit_b(size, giga):
    with torch.device("meta"):
        vit, image = (create_vit("ViT-B/16", image_size=size), torch.zeros(1, 3, size, size))
    assert round(utils.count_multiply_adds(vit, image) / 1e9, 2) == giga


def test_save_and_load_round_trip(tmp_path):
    model = give_random_values(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))
    path = utils.save_model(model, tmp_path / "new" / "folder", "model.pth")
    assert [p.name for p in path.parent.iterdir()] == ["model.pth"]
    fresh = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    assert utils.load_model(fresh, path) is fresh and not fresh.training
    x = torch.randn(2, 3)
    assert torch.equal(fresh(x), model.eval()(x))


def test_save_and_load_say_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match=r"\.pth or \.pt, got 'model'"):
        utils.save_model(nn.Linear(1, 1), tmp_path / "new", "model")
    assert not (tmp_path / "new").exists()
    with pytest.raises(FileNotFoundError, match="save_model"):
        utils.load_model(nn.Linear(1, 1), tmp_path / "absent.pth")
    path = utils.save_model(nn.Linear(1, 1), tmp_path, "model.pth")
    with pytest.raises(RuntimeError, match="weight"):
        utils.load_model(nn.Linear(2, 1), path)


def test_loading_does_not_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("code ran",))

    torch.save({"weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(Exception, match="[Ww]eights.only"):
        utils.load_model(nn.Linear(1, 1), tmp_path / "evil.pth")


# Writers


def start_writers(write, path, number):
    """Run `write(path, i)` in several processes that begin at the same moment."""
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("fork" if "fork" in methods else "spawn")
    barrier = context.Barrier(number)
    writers = [
        context.Process(target=write_together, args=(write, path, i, barrier))
        for i in range(number)
    ]
    for writer in writers:
        writer.start()
    return writers


def write_together(write, path, writer, barrier):
    barrier.wait()
    write(path, writer)


def append_200_lines(path, writer):
    for i in range(200):
        utils.append_line(path, {"writer": writer, "i": i, "pad": "x" * 999})


def test_processes_that_append_at_once_lose_no_line(tmp_path):
    """The old code read, changed and wrote the file again: 103 of 200 lines were left."""
    path = tmp_path / "lines.jsonl"
    for process in start_writers(append_200_lines, path, 4):
        process.join()
        assert process.exitcode == 0
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 4 * 200
    for writer in range(4):  # each in its own order
        assert [line["i"] for line in lines if line["writer"] == writer] == list(range(200))


def test_a_line_starts_anew_after_half_a_line_of_a_killed_writer(tmp_path):
    path = tmp_path / "new" / "lines.jsonl"
    utils.append_line(path, {"a": "é\n"})
    utils.append_line(path, {"a": 2})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"a": "é\n"}, {"a": 2}]
    with path.open("a") as file:
        file.write('{"a": 3, "b"')
    utils.append_line(path, {"a": 4})
    utils.append_line(path, {"a": 5})
    half, *others = path.read_text().splitlines()[2:]
    assert half == '{"a": 3, "b"'
    assert [json.loads(line) for line in others] == [{"a": 4}, {"a": 5}]


def write_100_versions(path, writer):
    for i in range(100):
        with utils.atomic_write(path) as unfinished, unfinished.open("w") as file:
            for _ in range(50):
                file.write(f"{writer}{i:02}" * 100)
                file.flush()


def test_processes_that_write_one_file_at_once_leave_one_version(tmp_path):
    """Whenever you read the file, it is one complete version of one writer."""
    path, seen = tmp_path / "file", set()
    writers = start_writers(write_100_versions, path, 2)
    while any(process.is_alive() for process in writers):
        if path.is_file():
            text = path.read_text()
            assert text == text[:3] * 5000
            seen.add(text[:3])
    assert [process.exitcode for process in writers] == [0, 0]
    assert path.read_text() in ("099" * 5000, "199" * 5000) and len(seen) > 2
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "new" / "model.pt"
    with utils.atomic_write(path) as unfinished:
        assert not path.exists()
        unfinished.write_text("old")
    with pytest.raises(KeyboardInterrupt), utils.atomic_write(path) as unfinished:
        unfinished.write_text("half of the n")
        assert path.read_text() == "old"
        raise KeyboardInterrupt
    assert [(p.name, p.read_text()) for p in path.parent.iterdir()] == [("model.pt", "old")]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_file_has_the_permissions_that_open_would_give(tmp_path, mask):
    before = os.umask(mask)
    try:
        with open(tmp_path / "plain", "w"), utils.atomic_write(tmp_path / "ours") as unfinished:
            unfinished.touch()
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "ours")]
    assert modes[0] == modes[1]
    (tmp_path / "ours").chmod(0o640)  # open("w") keeps the permissions of an old file
    with utils.atomic_write(tmp_path / "ours") as unfinished:
        unfinished.touch()
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == 0o640


def test_a_file_is_on_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    path, synced = tmp_path / "model.pt", []

    def sync(descriptor):
        assert not path.exists()
        synced.append(os.fstat(descriptor).st_size)

    monkeypatch.setattr(os, "fsync", sync)
    with utils.atomic_write(path) as unfinished:
        unfinished.write_bytes(b"12345")
    assert synced == [5] and path.read_bytes() == b"12345"


# Precision


@pytest.mark.parametrize(
    ("device", "real", "precision"),
    [
        ("cuda", True, "bfloat16"),
        ("cuda", False, "float16"),  # an older GPU would only emulate bfloat16
        ("mps", True, "float32"),
    ],
)
def test_the_best_precision_is_one_that_the_device_has(monkeypatch, device, real, precision):
    def supported(including_emulation=True):
        return True if including_emulation else real

    monkeypatch.delenv("FOODVISION_PRECISION")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert utils.best_precision(torch.device(device)) == precision


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [
        ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, "float32"),
        ({"avx512_f": True, "avx512_bf16": True, "amx_bf16": False}, "bfloat16"),
        ({"avx512_f": True, "avx512_bf16": True, "amx_bf16": True}, "bfloat16"),
        ({"neon": True}, "float32"),
    ],
)
@pytest.mark.parametrize("public", [True, False])
def test_the_best_precision_of_a_CPU_is_what_it_multiplies_in(
    monkeypatch, capabilities, precision, public
):
    monkeypatch.delenv("FOODVISION_PRECISION")
    if public:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    else:  # PyTorch before 2.10
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
        for name, key in (("amx_tile", "amx_bf16"), ("avx512_bf16", "avx512_bf16")):
            found = capabilities.get(key, False)
            monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda found=found: found)
    assert utils.best_precision(torch.device("cpu")) == precision
    found = utils.bfloat16_instructions(torch.device("cpu"))
    assert capabilities.get(found, False) or not found


def test_a_variable_chooses_the_precision(monkeypatch):
    for precision in utils.PRECISIONS:
        monkeypatch.setenv("FOODVISION_PRECISION", precision)
        assert utils.best_precision(torch.device("cpu")) == precision
    monkeypatch.setenv("FOODVISION_PRECISION", "half")
    with pytest.raises(ValueError, match="'half': expected one of float32, bfloat16, float16"):
        utils.best_precision(torch.device("cpu"))


def test_the_environment_is_described_with_the_precision_if_it_is_given():
    assert utils.describe_environment("bfloat16").endswith(") · bfloat16")
    assert utils.describe_environment().endswith(")")


def test_autocast_computes_in_the_precision_asked_for():
    ones = torch.ones(2, 2)
    for precision in utils.PRECISIONS:
        with utils.autocast("cpu", precision):
            assert (ones @ ones).dtype == getattr(torch, precision)
    with pytest.raises(ValueError, match="'half'"), utils.autocast("cpu", "half"):
        pass


def test_float32_leaves_an_outer_autocast():
    ones = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16), utils.autocast("cpu", "float32"):
        assert (ones @ ones).dtype == torch.float32
