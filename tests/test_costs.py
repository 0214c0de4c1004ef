"""The tables of `docs/scaling_out.md`, and the code on that page."""

from dataclasses import replace

import pytest
import torch
from PIL import Image
from tiny_vit import TINY

from going_modular import engine
from going_modular.experiments import costs
from going_modular.model_builder import VIT_CONFIGS, ViT
from going_modular.utils import project_path

PAGE = project_path("docs/scaling_out.md").read_text(encoding="utf-8")


def test_flops_are_six_a_multiply_add():
    assert costs.training_flops(VIT_CONFIGS["ViT-B/16"]) / 6e9 == pytest.approx(17.56, abs=0.01)


def test_the_command_prints_the_tables_of_the_page(capsys):
    costs.main([])
    memory, hours = capsys.readouterr().out.strip().split("\n\n")
    assert len(memory.splitlines()) == 2 + len(VIT_CONFIGS) and memory in PAGE
    assert len(hours.splitlines()) == 2 + 8 and hours in PAGE


def test_the_page_says_how_many_images_a_gpu_takes():
    flops = costs.training_flops(VIT_CONFIGS["ViT-B/16"])
    assert f"{costs.PEAK * costs.UTILIZATION / flops:,.0f} images a second" in PAGE


def test_the_measurement_divides_by_the_peak_of_the_machine(monkeypatch, capsys):
    """With a clock by which a product takes 1 s and a step of 16 images takes 4 s."""
    monkeypatch.setattr(costs, "VIT_CONFIGS", {"ViT-S/16": VIT_CONFIGS["ViT-Ti/16"]})
    durations = {"product": 1.0, "step": 4.0}
    monkeypatch.setattr(costs, "seconds", lambda work: durations[work.__name__])
    costs.main(["measure"])
    peak, rate = 2 * 2048**3, 16 / 4
    share = rate * costs.training_flops(VIT_CONFIGS["ViT-Ti/16"]) / peak
    printed = capsys.readouterr().out
    assert f"{rate} images a second" in printed
    assert f"{peak / 1e9:.0f} GFLOP/s" in printed and printed.endswith(f" {share:.2f}\n")


# webdataset leaves the tar file open until its reader is collected
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_the_pages_loader_of_tar_files_feeds_the_engine(tmp_path):
    """The snippet as it stands there, but for the size and the place of the files."""
    webdataset = pytest.importorskip("webdataset")
    shards = tmp_path / "train-000000.tar"
    with webdataset.TarWriter(str(shards)) as writer:
        for i in range(10):
            image = Image.new("RGB", (40, 30), (25 * i, 0, 0))
            writer.write({"__key__": f"{i:03}", "jpg": image, "cls": i % 2})
    snippet = PAGE.split("```python\n")[1].split("```")[0]
    for there, here in (
        ("/data/imagenet/train-{000000..001281}.tar", shards.as_posix()),
        ("recipe, 224", "recipe, 32"),
        ("batched(64)", "batched(4)"),
        ("num_workers=12", "num_workers=0"),
        ("with_epoch(312)", "with_epoch(2)"),
    ):
        assert there in snippet
        snippet = snippet.replace(there, here)
    names = {}
    exec(snippet, names)
    batches = list(names["batches"])
    assert [images.shape for images, _ in batches] == [(4, 3, 32, 32)] * 2
    vit = ViT(replace(TINY, num_classes=2))
    still = torch.optim.SGD(vit.parameters(), lr=0.0)
    loss, _ = engine.train_step(vit, names["batches"], torch.nn.CrossEntropyLoss(), still, "cpu")
    assert loss == pytest.approx(0.6931, abs=1e-4)  # ln 2
