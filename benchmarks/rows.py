"""What is measured, a function for each row. Its docstring is the page's heading and text."""

import contextlib
import importlib
import io
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from benchmarks import models
from benchmarks.measuring import LEAST_SECONDS, Group, Values, in_turns, memory_of, times_of
from benchmarks.models import OURS, SHIPPED, Work, build, config_of, logits_of
from going_modular import engine
from going_modular.data_setup import load_into_memory
from going_modular.images.folders import PhotoFolder
from going_modular.images.transforms import evaluation_transform
from going_modular.model_builder import ViT
from going_modular.training.recipes import HEAD, build_optimizer
from going_modular.utils import autocast, best_precision, bfloat16_instructions, count_multiply_adds
from going_modular.vit.weights import load_vit

AUTOMATIC, BASE = "ours, automatic precision", "base"


@dataclass(frozen=True)
class Run:
    """The options of a run."""

    device: torch.device
    rounds: int
    quick: bool = False

    @property
    def peers(self) -> list[str]:
        return models.peers_here(self.quick)

    @property
    def precisions(self) -> list[str]:
        """Those in which all libraries are compared here."""
        return ["float32"] + ["bfloat16"] * bool(bfloat16_instructions(self.device))

    def times(self, works: dict[str, Work]) -> Values:
        least = 0.0 if self.quick else LEAST_SECONDS[self.device.type]
        return times_of(works, self.rounds, self.device, least)

    def training_step(self, library: str, setting: str) -> Work:
        return models.training_step(
            library, setting, config_of("ViT-B/16", self.quick), self.device
        )


def step(run: Run) -> list[Group]:
    """A training step. We time a step of AdamW on ViT-B/16, with 8 images of 224 pixels."""
    equal = [f"{precision}, dropout 0.1" for precision in run.precisions]
    groups = []
    for setting in (SHIPPED, "float32, dropout 0", *equal):
        works = {each: run.training_step(each, setting) for each in (OURS, *run.peers)}
        groups.append(Group(setting, run.times(works), run.peers))
    return groups


def dropout(run: Run) -> list[Group]:
    """What dropout costs. We time the same training step of ours without dropout and with it."""
    groups = []
    for precision in run.precisions:
        rates = ("dropout 0", "dropout 0.1")
        works = {rate: run.training_step(OURS, f"{precision}, {rate}") for rate in rates}
        groups.append(Group(precision, run.times(works), ["dropout 0"], "share"))
    return groups


def forward_pass(library: str, vit: Callable, images: torch.Tensor, precision: str) -> Work:
    return torch.inference_mode()(lambda: logits_of(library, vit, images, precision))


def compiled(vit: nn.Module, images: torch.Tensor) -> Work:
    """Our ViT through torch.compile, in float32.

    Raises:
        ImportError: if there is no C++ compiler.
    """
    if not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++", "cl"))):
        raise ImportError("this machine has no C++ compiler")
    return forward_pass(OURS, torch.compile(vit), images, "float32")


def onnxruntime(vit: nn.Module, images: torch.Tensor) -> Work:
    """Our ViT in onnxruntime, in float32 on the CPU, with as many threads as PyTorch has.

    Raises:
        ImportError: if it, or what torch.onnx needs, is not installed.
    """
    if images.is_cuda:
        raise ImportError("we measure it on the CPU")
    runtime = importlib.import_module("onnxruntime")
    importlib.import_module("onnxscript")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "vit.onnx")
        torch.onnx.export(vit, (images,), path, input_names=["images"], verbose=False)
        session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    inputs = {"images": images.cpu().numpy()}
    return lambda: session.run(None, inputs)


def forward(run: Run) -> list[Group]:
    """A prediction. We time a forward pass without gradients, on images of 224 pixels. Where a line
    names no precision, it is float32, as for torch.compile and onnxruntime.
    """
    groups, best = [], best_precision(run.device)
    for name, patch in (("ViT-S/16", 14), ("ViT-B/16", 16)):
        config = config_of(name, run.quick, patch_size=patch)
        vits = {each: build(each, config).to(run.device).eval() for each in (*run.peers, OURS)}
        ours = vits[OURS]
        for batch in (1, 8):
            setting, skipped = f"{name[:5]}/{patch}, batch {batch}", {}
            images = torch.randn(batch, 3, 224, 224, device=run.device)
            works = {each: forward_pass(each, vits[each], images, "float32") for each in run.peers}
            works["ours, float32"] = forward_pass(OURS, ours, images, "float32")
            works[AUTOMATIC] = forward_pass(OURS, ours, images, best)
            for make in () if run.quick else (compiled, onnxruntime):
                try:
                    works[f"ours, {make.__name__}"] = make(ours, images)
                except ImportError as error:
                    skipped[f"ours, {make.__name__}"] = str(error)
            groups.append(Group(setting, run.times(works), run.peers, skipped=skipped))
            if "bfloat16" in run.precisions:
                works = {each: forward_pass(each, vits[each], images, "bfloat16") for each in vits}
                groups.append(Group(f"{setting}, all in bfloat16", run.times(works), run.peers))
            torch.compiler.reset()
    return groups


def memory(run: Run) -> list[Group]:
    """The memory of a training step. Each model takes two steps in a process of its own: ViT-B/16,
    8 images of 224 pixels. We read the largest memory of the process, and subtract what it had
    after importing the library.
    """
    rounds = 1 if run.quick or run.device.type == "cuda" else 3
    groups = []
    for setting in [SHIPPED] if run.quick else [SHIPPED, "float32, dropout 0.1"]:

        def measure(library: str, setting: str = setting) -> float:
            return memory_of(library, setting, run.device, run.quick)

        values = in_turns((OURS, *run.peers), rounds, measure)
        groups.append(Group(setting, values, run.peers, "size"))
    return groups


def make_photos(folder: Path, count: int) -> None:
    """Random pictures of 512 × 384 pixels in three classes, as JPEG."""
    for i in range(count):
        path = folder / str(i % 3) / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((512, 384)).save(path)


def transfer(run: Run) -> list[Group]:
    """Transfer with a frozen backbone. We train a new head on images that are in memory. The plain
    loop computes their features in every epoch, and `extract_features` computes them once. Its
    cache knows images by their files, and so it has JPEG files of the same images.
    """
    device, name, best = run.device, "ViT-S/16, random weights", best_precision(run.device)
    vit, count = ViT(config_of("ViT-S/16", run.quick, num_classes=0)), 3 if run.quick else 64
    if path := os.environ.get("VIT_WEIGHTS"):
        name, vit = Path(path).name, load_vit(path, num_classes=0, representation_size=0)
    vit = vit.to(device).eval().requires_grad_(False)

    def train_head(backbone: nn.Module, batches: DataLoader, precision: str = "float32") -> None:
        head = nn.Linear(vit.config.pooled_dim, 3).to(device)
        optimizer = build_optimizer(head, HEAD)
        for _ in range(HEAD.epochs):
            for inputs, labels in batches:
                optimizer.zero_grad()
                with autocast(device, precision):
                    logits = head(backbone(inputs.to(device)))
                nn.functional.cross_entropy(logits, labels.to(device)).backward()
                optimizer.step()

    def features_once(batches: DataLoader, cache: Path | None = None) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            features = engine.extract_features(vit, batches, device, cache=cache, precision=best)
        train_head(nn.Identity(), DataLoader(features, HEAD.batch_size))

    with tempfile.TemporaryDirectory() as folder:
        make_photos(Path(folder, "photos"), count)
        photos = PhotoFolder(Path(folder, "photos"), evaluation_transform(vit.config.image_size))
        files: DataLoader = DataLoader(photos, HEAD.batch_size)
        images: DataLoader = DataLoader(load_into_memory(photos), HEAD.batch_size)
        works: dict[str, Work] = {
            "plain loop": lambda: train_head(vit, images),
            "plain loop, automatic precision": lambda: train_head(vit, images, best),
            "features once": lambda: features_once(images),
            "from the cache": lambda: features_once(files, Path(folder, "cache")),
        }
        setting = f"{name}, {count} images, {HEAD.epochs} epochs"
        return [Group(setting, run.times(works), ["plain loop"])]


def growth(run: Run) -> list[Group]:
    """How time grows with size. We time a forward pass of ours, and `count_multiply_adds` says what
    it should cost. The base is ViT-S/16 on 4 images of 224 pixels. Every other point changes one
    size of the base. Above 1, a multiply-add takes longer than in the base.
    """
    small = "ViT-S/16"
    points: dict[str, tuple[str, int, dict[str, int]]] = {BASE: (small, 4, {})}
    points |= {f"batch: {each}": (small, each, {}) for each in (1, 2, 8, 16)}
    points |= {f"pixels: {each}": (small, 4, {"image_size": each}) for each in (96, 160, 288, 384)}
    points |= {f"patch: {each}": (small, 4, {"patch_size": each}) for each in (8, 14, 32)}
    points |= {f"model: {each}": (each, 4, {}) for each in ("ViT-Ti/16", "ViT-B/16")}
    works, costs = {}, {}
    for name, (model, batch, sizes) in points.items():
        vit = ViT(config_of(model, run.quick, **sizes)).to(run.device).eval()
        images = torch.randn(batch, 3, *vit.config.image_hw, device=run.device)
        costs[name] = float(batch * count_multiply_adds(vit, images[:1]))
        works[name] = forward_pass(OURS, vit, images, "float32")
    return [Group("float32", run.times(works), [BASE], "growth", costs)]


ROWS: dict[str, Callable[[Run], list[Group]]] = {
    row.__name__: row for row in (step, dropout, forward, memory, transfer, growth)
}
