import re
from dataclasses import replace

import pytest
import torch
from PIL import Image
from tiny_vit import TINY

from going_modular import engine
from going_modular.experiments import costs
from going_modular.model_builder import VIT_CONFIGS, ViT
from going_modular.training import fit, memory, recipes
from going_modular.training.recipes import Recipe
from going_modular.utils import project_path

PAGE = project_path("docs/scaling_out.md").read_text(encoding="utf-8")
SMALL = replace(VIT_CONFIGS["ViT-Ti/16"], num_layers=2, dropout=0.0)


@pytest.mark.parametrize("config", [replace(TINY, dropout=0.0), SMALL])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_formula_for_activations_counts_every_byte(config, precision, batch_size):
    counted = memory.measured_activation_bytes(ViT(config), batch_size, precision)
    assert memory.activation_bytes(config, batch_size, precision) == counted


def test_states_are_16_bytes_a_parameter():
    vit = ViT(TINY)
    optimizer = recipes.build_optimizer(vit, Recipe(epochs=1, weight_decay=0.1))
    vit(torch.rand(1, 3, 32, 32)).sum().backward()
    optimizer.step()
    tensors = [
        *vit.parameters(),
        *(parameter.grad for parameter in vit.parameters()),
        *(t for state in optimizer.state.values() for t in state.values() if t.ndim),
    ]
    counted = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert memory.state_bytes(TINY) == counted


def test_flops_are_six_a_multiply_add():
    assert costs.training_flops(VIT_CONFIGS["ViT-B/16"]) / 6e9 == pytest.approx(17.56, abs=0.01)


def test_the_page_shows_the_tables_that_the_formulas_give():
    memory, hours = costs.memory_table(), costs.hours_table()
    assert costs.as_markdown(costs.MEMORY_HEADER, memory) in PAGE
    assert costs.as_markdown(costs.HOURS_HEADER, hours) in PAGE
    flops = costs.training_flops(VIT_CONFIGS["ViT-B/16"])
    rate = costs.PEAK * costs.UTILISATION / flops
    assert f"a ViT-B/16 takes {rate:,.0f} images a second" in PAGE


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


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_largest_batch_is_the_largest_that_fits(precision):
    def needed(batch_size):
        bytes_ = memory.process_bytes(SMALL, batch_size, precision=precision)
        return memory.HEADROOM * bytes_

    for images in (1, 2, 7, 100):
        for free, fits in ((needed(images), images), (needed(images) - 1, images - 1)):
            assert memory.largest_batch(SMALL, free, precision=precision) == fits


def test_the_guard_says_how_to_make_it_fit():
    vit_b, free = VIT_CONFIGS["ViT-B/16"], 15 * 2**30  # a free Colab GPU
    fits = memory.largest_batch(vit_b, free, precision="float16")
    assert 64 < fits < 512
    memory.check_memory(vit_b, fits, free, precision="float16")
    with pytest.raises(MemoryError, match="not even one fits"):
        memory.check_memory(VIT_CONFIGS["ViT-H/14"], 1, 2**30)


@pytest.mark.parametrize("batch_size", [30, 32, 37])
@pytest.mark.parametrize("accumulate, processes", [(1, 1), (2, 1), (2, 2), (1, 3)])
def test_the_guards_advice_can_be_followed(batch_size, accumulate, processes):
    free = int(memory.HEADROOM * memory.process_bytes(TINY, 4))
    with pytest.raises(MemoryError, match="at most 4 fit") as refused:
        memory.check_memory(TINY, batch_size, free, accumulate, processes)
    advised = int(re.search(r"set accumulate .* to (\d+)$", str(refused.value))[1])
    assert batch_size % advised == 0
    memory.check_memory(TINY, batch_size, free, advised, processes)


def test_training_on_a_gpu_asks_the_guard_first(monkeypatch):
    """With a made-up GPU, which nothing reaches."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**20, 2**30))
    recipe, cuda = Recipe(epochs=1, batch_size=32), torch.device("cuda")
    with pytest.raises(MemoryError, match="on 16 images at once"):
        fit.fit(ViT(TINY), recipe, [], [], 3, device=cuda, accumulate=2)
