"""The drawings say what the code does, and the stored ones are these."""

import operator
import re
from dataclasses import replace

import matplotlib.pyplot as plt
import pytest
import torch
from tiny_vit import TINY

from going_modular.model_builder import TransformerEncoderBlock, ViT, ViTConfig
from going_modular.publishing import diagrams
from going_modular.utils import project_path

SMALL = replace(TINY, num_classes=5, num_layers=3)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def recorded(model, images):
    """The shapes that a model's parts put out, by name, with B for the batch."""
    shapes = {}

    def hook(name):
        def remember(part, given, output):
            shapes[name] = diagrams.shape("B", *output.shape[1:])

        return remember

    for name, part in model.named_modules():
        part.register_forward_hook(hook(name))
    model(images)
    return shapes


def test_the_architecture_has_the_shapes_of_a_real_run():
    images = torch.rand(2, SMALL.in_channels, *SMALL.image_hw)
    shapes = recorded(ViT(SMALL).eval(), images)
    words = diagrams.words_of(diagrams.draw_architecture(SMALL)).split(" · ")
    assert diagrams.shape("B", *images.shape[1:]) in words
    assert words.count(shapes["dropout"]) == words.count(shapes["encoder.2"]) == 2
    assert shapes["head"] in words
    assert f"{SMALL.num_layers} blocks" in words
    assert f"patch {SMALL.num_patches}" in words


def test_the_block_has_the_shapes_of_a_real_run_and_names_of_the_code():
    shapes = recorded(ViT(SMALL).eval(), torch.rand(2, 3, *SMALL.image_hw))
    figure = diagrams.draw_block(SMALL)
    texts = [text.get_text() for text in figure.findobj(plt.Text) if text.get_text()]
    block = TransformerEncoderBlock()
    names = [t for t in texts if re.fullmatch("(attention|mlp)[._a-z]+", t)]
    assert len(names) == 7
    for name in names:
        operator.attrgetter(name)(block)  # it exists
        after = texts[texts.index(name) + 1 :]
        shape = next(text for text in after if text.startswith("(B"))
        assert shape == shapes[f"encoder.0.{name}"], name
    T, h = SMALL.num_patches + 1, SMALL.num_heads
    assert diagrams.shape("B", h, T, T) in texts
    assert f"q, k, v: {diagrams.shape('B', h, T, SMALL.embedding_dim // h)}" in texts


def test_the_equations_stand_beside_lines_that_exist():
    words = diagrams.words_of(diagrams.draw_equations())
    assert "z = self.drop_path(self.mlp(self.mlp_norm(z))) + z" in words
    with pytest.raises(ValueError, match="should have one line for each"):
        diagrams.lines_of(ViT.embed, ("a line that nobody wrote",))


@pytest.mark.parametrize("theme", diagrams.THEMES)
def test_the_stored_drawings_are_up_to_date(theme):
    """Otherwise: `python -m going_modular.publishing.diagrams`."""
    config = ViTConfig(num_classes=3)
    for name, figure in diagrams.diagrams(config, diagrams.THEMES[theme]).items():
        path = project_path(diagrams.FOLDER) / f"{name}_{theme}.svg"
        svg = path.read_text(encoding="utf-8")
        described = re.search("<dc:description>(.*?)</dc:description>", svg, re.S)[1]
        assert described.replace("&amp;", "&") == diagrams.words_of(figure)
        assert len(svg) < 200_000 and "<image" not in svg
        assert not re.search("(href|src)=.(https?:|//)", svg)


def test_every_text_lies_on_the_page_and_on_no_other():
    for figure in diagrams.diagrams(ViTConfig(num_classes=3), diagrams.LIGHT).values():
        figure.draw_without_rendering()
        boxes = [text.get_window_extent() for text in figure.findobj(plt.Text) if text.get_text()]
        for i, box in enumerate(boxes):
            assert figure.bbox.containsx(box.x0) and figure.bbox.containsx(box.x1)
            assert figure.bbox.containsy(box.y0) and figure.bbox.containsy(box.y1)
            assert not any(box.overlaps(other) for other in boxes[:i])
