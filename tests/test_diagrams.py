"""The drawings show what the code does, and the stored ones are up to date."""

import operator
import re
from dataclasses import replace

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from tiny_vit import TINY

from going_modular.model_builder import TransformerEncoderBlock, ViT, ViTConfig
from going_modular.publishing import diagrams
from going_modular.utils import give_random_values, project_path

SMALL = replace(TINY, num_classes=5, num_layers=3)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def recorded(model, images):
    """The shapes of what a model's parts return, by name, with B for the batch."""
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


def arrows_of(figure):
    """The points of each arrow, in inches, by (start, end)."""
    arrows = {
        tuple(arrow.get_gid().split("__")): arrow.get_path().vertices
        for arrow in figure.findobj(FancyArrowPatch)
    }
    assert len(arrows) == len(figure.findobj(FancyArrowPatch))
    return arrows


def run_drawing(arrows, z, functions):
    """What a drawn chain computes from z: "add..." adds what arrives, the others are given."""
    values = {"input": z}
    while "output" not in values:
        ready = {
            end: [values[start] for start, target in arrows if target == end]
            for _, end in arrows
            if end not in values
            and all(start in values for start, target in arrows if target == end)
        }
        assert ready, f"no arrow leads on from {list(values)}"
        for name, arriving in ready.items():
            if name.startswith("add"):
                assert len(arriving) == 2
                values[name] = arriving[0] + arriving[1]
            else:
                (value,) = arriving
                values[name] = functions[name](value)
    return values["output"]


@pytest.fixture
def block():
    """An encoder block of SMALL, with random numbers, in evaluation mode."""
    return give_random_values(ViT(SMALL)).eval().encoder[0]


@pytest.fixture
def z():
    """Tokens for it."""
    return torch.randn(2, 7, SMALL.embedding_dim)


OF_BLOCK = {"attention_norm", "attention", "add_attention", "mlp_norm", "mlp", "add_mlp"}


def test_the_arrows_of_the_small_block_compute_what_the_block_computes(block, z):
    arrows = [pair for pair in arrows_of(diagrams.draw_architecture(SMALL)) if OF_BLOCK & {*pair}]
    functions = dict(block.named_modules()) | {"output": lambda z: z}
    torch.testing.assert_close(run_drawing(arrows, z, functions), block(z))


def test_the_arrows_of_the_large_block_compute_what_the_block_computes(block, z):
    h = SMALL.num_heads

    def softmax(qkv):
        q, k, v = qkv
        return (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1), v

    functions = dict(block.named_modules()) | {
        "split": lambda x: x.unflatten(-1, (3, h, -1)).permute(2, 0, 3, 1, 4),
        "softmax": softmax,
        "sum": lambda weights_and_v: weights_and_v[0] @ weights_and_v[1],
        "join": lambda x: x.transpose(1, 2).flatten(2),
        "output": lambda z: z,
    }
    drawn = run_drawing(arrows_of(diagrams.draw_block(SMALL)), z, functions)
    torch.testing.assert_close(drawn, block(z))


def test_the_arrows_of_the_model_join_these_parts():
    arrows = arrows_of(diagrams.draw_architecture(SMALL))
    numbers = [0, 1, 2, 3, SMALL.num_patches]
    expected = {("image", "tokens"), ("encoder", "norm"), ("norm", "head"), ("head", "scores")}
    expected |= {(f"position-{number}", "encoder") for number in numbers}
    assert {pair for pair in arrows if not OF_BLOCK & {*pair}} == expected
    # The class token enters and leaves at the same height
    entering, leaving = arrows["position-0", "encoder"], arrows["encoder", "norm"]
    assert entering[0, 1] == leaving[0, 1] == max(path[0, 1] for _, path in arrows.items())


def test_every_arrow_starts_and_ends_at_its_parts():
    for figure in (diagrams.draw_architecture(SMALL), diagrams.draw_block(SMALL)):
        parts = {
            box.get_gid(): box.get_window_extent().padded(0.15 * figure.dpi)
            for box in figure.findobj(FancyBboxPatch)
        }
        places = {"input", "output", "image", "tokens", "scores"}  # without a box
        for pair, path in arrows_of(figure).items():
            points = figure.dpi * path  # one unit is one inch
            start, tip = points[0], points[-2]
            for name, point in zip(pair, (start, tip), strict=True):
                assert name in places or parts[name].contains(*point), (pair, name)


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
        ids = re.findall('id="([^"]+__[^"]+)"', svg)
        assert {tuple(each.split("__")) for each in ids} == arrows_of(figure).keys()
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
