"""The exercises and their solutions, as files and as a learner sees them."""

import copy
import functools
import re

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch
from torch import nn

from going_modular.checks import (
    NotYet,
    after_the_paper,
    getting_setup,
    is_close,
    patch_embedding,
    require_number,
    require_tensor,
    result_of,
)
from going_modular.publishing import notebooks
from going_modular.vit.descendants import turn

EXERCISES = notebooks.EXERCISES
each_pair = pytest.mark.parametrize(
    "path, solution",
    list(zip(EXERCISES, notebooks.SOLUTIONS, strict=True)),
    ids=lambda path: path.stem[:2],
)
pytestmark = pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")


@pytest.fixture(autouse=True)
def small_drawn_images(monkeypatch):
    monkeypatch.setenv("FOODVISION_SIZE", "smoke")
    monkeypatch.setenv("FOODVISION_SOURCE", "synthetic")
    monkeypatch.delenv("VIT_WEIGHTS", raising=False)
    yield
    plt.close("all")


def code_of(path):
    cells = nbformat.read(path, as_version=4).cells
    return [cell for cell in cells if cell.cell_type == "code"]


def kind_of(cell):
    (kind,) = [t for t in notebooks.tags_of(cell) if t in ("answer", "check")] or [""]
    return kind


def test_each_notebook_has_exercises_and_solutions():
    names = [path.name for path in notebooks.NOTEBOOKS]
    for paths in (EXERCISES, notebooks.SOLUTIONS):
        assert [path.name for path in paths] == names
    for path in notebooks.NOTEBOOKS:
        text = nbformat.read(path, as_version=4).cells[-1].source
        assert f"](exercises/{path.name})" in text


@each_pair
def test_every_exercise_ends_with_a_check(path, solution):
    notebook = nbformat.read(path, as_version=4)
    whole = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    assert whole.startswith(f"# Exercises {path.name[:2]} · ")
    assert re.search("[Pp]redict before you run", whole)
    links = re.findall(r"\]\((?!https?://)([^)]+)\)", whole)
    assert {f"../{path.name}", f"../solutions/{path.name}"} <= set(links)
    assert all((path.parent / link).is_file() for link in links)
    sections = re.split(r"^## ", whole, flags=re.M)[1:]
    number = int(path.name[:2])
    for i, section in enumerate(sections, 1):
        assert section.startswith(f"{number}.{i} "), section
    kinds = "".join(kind_of(cell)[:1] or "-" for cell in code_of(path))
    assert re.fullmatch(r"--(-*(a-*)+c)+", kinds), kinds  # answers, then their check
    assert kinds.count("c") == len(sections) >= 3
    for cell in code_of(path):
        assert cell.outputs == [] and cell.execution_count is None
        assert (kind_of(cell) == "answer") == ("..." in cell.source)
        assert (kind_of(cell) == "check") == cell.source.startswith("check.")


@each_pair
def test_a_solution_differs_by_its_answers_alone(path, solution):
    """If it fails: `python -m going_modular.publishing.notebooks solve`."""
    given, stored = (nbformat.read(p, as_version=4) for p in (path, solution))
    expected = notebooks.with_answers(given, stored)
    assert [(c.id, c.source) for c in stored.cells] == [(c.id, c.source) for c in expected.cells]
    assert stored.metadata.code_digest == notebooks.digest_of(stored)
    for cell in code_of(solution):
        assert kind_of(cell) != "answer" or "..." not in cell.source
        assert "error" not in {output.output_type for output in cell.outputs}
        if kind_of(cell) == "check":
            assert cell.outputs[-1].text.startswith("✓ Right. ")


@each_pair
def test_untouched_exercises_fail_their_checks(path, solution):
    names = {}
    for cell in code_of(path):
        if kind_of(cell) == "check":
            with pytest.raises(NotYet, match="replace the dots"):
                exec(cell.source, names)
        else:
            exec(cell.source, names)


@each_pair
def test_solving_needs_every_answer(path, solution):
    given, stored = (nbformat.read(p, as_version=4) for p in (path, solution))
    answer = next(c for c in stored.cells if kind_of(c) == "answer")
    stored.cells.remove(answer)
    with pytest.raises(ValueError, match=f"no cell {answer.id!r} tagged answer"):
        notebooks.with_answers(given, stored)


def test_a_rounded_number_gets_its_own_hint():
    for answer, hint in ((0.667, "very close"), (0.6, "think again"), (0.6666, "very close")):
        with pytest.raises(NotYet, match=hint):
            require_number("x", answer, 2 / 3, "think again")
    require_number("x", 2 / 3, 2 / 3, "think again")
    with pytest.raises(NotYet, match="think again"):  # a whole number is not rounded
        require_number("x", 86_567_657, 86_567_656, "think again")


def test_solving_with_photos_writes_nothing(monkeypatch):
    monkeypatch.setenv("FOODVISION_SOURCE", "auto")
    before = notebooks.SOLUTIONS[3].read_bytes()
    with pytest.raises(RuntimeError, match="FOODVISION_SOURCE is 'auto'"):
        notebooks.solve(EXERCISES[3:4])
    assert notebooks.SOLUTIONS[3].read_bytes() == before


def test_is_close_accepts_other_precisions_and_rejects_other_types():
    expected = torch.tensor([0.1, 0.2])
    assert is_close(expected.double() + 1e-7, expected)
    for answer in ([0.1, 0.2], expected.numpy(), expected[None], expected + 1e-3, ...):
        assert not is_close(answer, expected)


def spoil(answer):
    """Return a slightly wrong version of an answer."""
    if isinstance(answer, bool):
        return not answer
    if isinstance(answer, (int, float)):
        return answer + 1
    if isinstance(answer, str):
        return answer + "?"
    if isinstance(answer, torch.Tensor):
        return answer + 0.1
    if isinstance(answer, (list, tuple)):
        return type(answer)([spoil(answer[0]), *answer[1:]])
    if isinstance(answer, dict):
        first = next(iter(answer))
        return answer | {first: spoil(answer[first])}
    if isinstance(answer, nn.Module):
        wrong = copy.deepcopy(answer)
        wrong.register_forward_hook(lambda module, args, output: spoil(output))
        return wrong
    if isinstance(answer, type):

        class Wrong(answer):
            def forward(self, *arguments, **options):
                return spoil(super().forward(*arguments, **options))

        return Wrong

    @functools.wraps(answer)
    def wrong(*arguments, **options):
        return spoil(answer(*arguments, **options))

    return wrong


@each_pair
def test_checks_accept_the_solution_and_reject_slightly_wrong_answers(path, solution, capsys):
    """The hints must not contain the answer either."""
    names = {}
    for cell in code_of(solution):
        if kind_of(cell) != "check":
            exec(cell.source, names)
            continue
        capsys.readouterr()
        exec(cell.source, names)
        assert capsys.readouterr().out.startswith("✓ Right. ")
        call = re.fullmatch(r"check\.(\w+)\((.*)\)", cell.source, re.S)
        check = getattr(names["check"], call[1])
        answers = eval(f"[{call[2]}]", names)
        for i, answer in enumerate(answers):
            wrong = [*answers[:i], spoil(answer), *answers[i + 1 :]]
            with pytest.raises(NotYet) as caught:
                check(*wrong)
            if isinstance(answer, (int, float)) and abs(answer) > 9:
                hint = str(caught.value).replace(",", "")
                assert str(answer) not in hint, hint


@pytest.mark.slow
@each_pair
def test_the_solutions_run_as_notebooks(path, solution):
    executed = notebooks.execute(solution)
    assert all(
        cell.outputs[-1].text.startswith("✓ Right. ")
        for cell in executed.cells
        if "check" in notebooks.tags_of(cell)
    )


@pytest.mark.parametrize(
    "answer, hint",
    [(..., "replace the dots"), ("7", "its type is str"), (True, "its type is bool"), (6, "more")],
)
def test_a_number_that_is_wrong_gets_a_hint(answer, hint):
    with pytest.raises(NotYet, match=hint):
        require_number("answer", answer, 7, "more")
    require_number("answer", 7.0000001, 7.0, "more")
    with pytest.raises(NotYet, match="more"):  # a whole number must be exact
        require_number("answer", 7_000_001, 7_000_000, "more")


def test_a_tensor_that_is_wrong_gets_a_hint():
    expected = torch.ones(2, 3)
    for answer, hint in (
        (..., "replace the dots"),
        ([1, 1], "its type is list"),
        (torch.ones(3, 2), r"has the shape \(3, 2\), not \(2, 3\)"),
        (torch.zeros(2, 3), "the right shape but wrong numbers: more"),
    ):
        with pytest.raises(NotYet, match=hint):
            require_tensor("answer", answer, expected, "more")
    require_tensor("answer", expected + 1e-7, expected, "more")


def test_a_split_that_draws_from_numpys_shared_generator_is_rejected():
    def split(num_images, num_held_out, seed):
        order = np.random.default_rng(seed).permutation(num_images).tolist()
        np.random.rand()
        return order[num_held_out:], order[:num_held_out]

    np.random.rand()  # mid-sequence, so that the next number changes only the position
    with pytest.raises(NotYet, match="changes the random numbers"):
        getting_setup.a_generator_of_its_own(split)


def test_a_linear_layer_of_the_wrong_size_gets_a_hint():
    with pytest.raises(NotYet, match="an nn.Linear from P²C numbers to D, here from 48 to 10"):
        patch_embedding.pixel_by_pixel(lambda conv: nn.Linear(conv.weight[0].numel(), 9))


def test_an_error_in_an_answer_comes_through():
    with pytest.raises(ZeroDivisionError):
        result_of(lambda: 1 / 0)


def test_a_learner_sees_the_hint_and_no_traceback(tmp_path):
    """Run an unanswered exercise notebook in a Jupyter kernel."""
    path = EXERCISES[0]
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if "check" in notebooks.tags_of(cell):
            cell.metadata.tags.append("raises-exception")
    nbformat.write(notebook, tmp_path / path.name)
    executed = notebooks.execute(tmp_path / path.name)
    for cell in executed.cells:
        if "check" in notebooks.tags_of(cell):
            (output,) = cell.outputs
            (line,) = output.traceback
            assert re.match("✗ Not yet: .*replace the dots", line)


def deit_heads(combine):
    """A function for exercise 14.2 that makes the logits of two heads in its own way."""

    def fold_heads(first, second):
        class Folded(nn.Module):
            def forward(self, tokens):
                return combine(first, second, *tokens.chunk(2, dim=1))

        return Folded()

    return fold_heads


def sum_of_heads(first, second, x, y):
    return first(x) + second(y)


def heads_swapped(first, second, x, y):
    return (first(y) + second(x)) / 2


def biases_added(first, second, x, y):
    return (first(x) + second(y) + first.bias + second.bias) / 2


@pytest.mark.parametrize(
    "answer, hint",
    [
        (deit_heads(sum_of_heads), "the sum of the two answers"),
        (deit_heads(heads_swapped), "which head reads the first token"),
        (deit_heads(biases_added), "the biases belong to the mean"),
        (lambda first, second: first, "the layer reads 6 numbers"),
        (lambda first, second: first.weight, "its type is Parameter"),
    ],
)
def test_14_hints_at_what_is_wrong_with_two_heads_in_one(answer, hint):
    with pytest.raises(NotYet, match=hint):
        after_the_paper.two_heads_in_one(answer)


def patches_with(normalize, chosen):
    """A function for exercise 14.3 with its own targets and its own choice of patches."""

    def masked_loss(found, target, order, visible):
        indices = chosen(order, visible).unsqueeze(2)
        pairs = (torch.take_along_dim(x, indices, dim=1) for x in (found, normalize(target)))
        return nn.functional.mse_loss(*pairs)

    return masked_loss


def by_patch(target):
    return after_the_paper.normalized(target, 2)


def hidden(order, visible):
    return order[:, visible:]


@pytest.mark.parametrize(
    "answer, hint",
    [
        (patches_with(by_patch, lambda order, n: order), "the error of all patches"),
        (patches_with(by_patch, lambda order, n: order[:, :n]), "the encoder has seen"),
        (patches_with(by_patch, lambda order, n: order.sort().values[:, n:]), "has its own"),
        (patches_with(lambda target: target, hidden), "which target"),
        (patches_with(lambda t: after_the_paper.normalized(t, (1, 2)), hidden), "of its own"),
        (patches_with(lambda t: after_the_paper.normalized(t, 2, 1), hidden), "your variance"),
    ],
)
def test_14_hints_at_what_is_wrong_with_a_masked_loss(answer, hint):
    after_the_paper.loss_of_hidden_patches(patches_with(by_patch, hidden))
    with pytest.raises(NotYet, match=hint):
        after_the_paper.loss_of_hidden_patches(answer)


def scaled(weight, bias):
    """A function for exercise 14.4 that scales the two tensors in its own way."""

    def fold_before(layer, scale):
        new = copy.deepcopy(layer)
        with torch.no_grad():
            new.weight.copy_(weight(layer.weight, scale))
            new.bias.copy_(bias(layer.bias, scale))
        return new

    return fold_before


def scaled_in_place(layer, scale):
    with torch.no_grad():
        layer.weight.mul_(scale)
    return layer


@pytest.mark.parametrize(
    "answer, hint",
    [
        (scaled(lambda W, s: s * W, lambda b, s: s * b), "Does the bias see it"),
        (scaled(lambda W, s: s[:, None] * W, lambda b, s: s * b), "after the whole layer"),
        (scaled(lambda W, s: s[:, None] * W, lambda b, s: b), "Which numbers of W"),
        (scaled(lambda W, s: s.mean() * W, lambda b, s: b), "is the sum of"),
        (scaled_in_place, "the given layer has changed"),
        (lambda layer, scale: layer.weight, "its type is Parameter"),
    ],
)
def test_14_hints_at_what_is_wrong_with_a_folded_scale(answer, hint):
    after_the_paper.scale_before_a_layer(scaled(lambda W, s: s * W, lambda b, s: b))
    with pytest.raises(NotYet, match=hint):
        after_the_paper.scale_before_a_layer(answer)


def turned_in_pairs(x, positions, frequencies):
    """Exercise 14.5 with numbers 2i and 2i + 1 as one point."""
    points = torch.view_as_complex(x.unflatten(1, (-1, 2)).contiguous())
    angles = positions[:, None] * frequencies
    return torch.view_as_real(points * torch.polar(torch.ones_like(angles), angles)).flatten(1)


def turned_right(x, positions, frequencies):
    return turn(x, positions[:, None] * frequencies)


@pytest.mark.parametrize(
    "answer, same, hint",
    [
        (lambda x, p, f: turn(x, -p[:, None] * f), (True, False, False), "the other way"),
        (turned_in_pairs, (True, False, False), "the coordinates of one point"),
        (turned_right, (False, False, False), r"for \(6, 8\): how far"),
        (turned_right, (True, True, False), r"for \(3, 1\): how far"),
        (turned_right, (True, False, True), r"for \(2, 6\): how far"),
        (turned_right, (True, 0, False), r"for \(3, 1\) should be True or False"),
        (turned_right, (True, False, ...), r"for \(2, 6\) has no answer yet"),
        (turned_right, ..., "same_product has no answer yet"),
        (turned_right, True, "three values"),
    ],
)
def test_14_hints_at_what_is_wrong_with_turned_points(answer, same, hint):
    with pytest.raises(NotYet, match=hint):
        after_the_paper.turned_pairs(answer, same)


@pytest.mark.parametrize(
    "answer, hint",
    [
        (lambda values: 0 * values[:, :, :1], "Are the weights of a softmax zero"),
        (lambda values: values.sum(dim=2, keepdim=True), "add up to"),
        (lambda values: values[:, :, :1], "N equal numbers"),
        (lambda values: values.mean(dim=2), "has the shape"),
        (lambda values: ..., "returns nothing yet"),
    ],
)
def test_14_hints_at_what_is_wrong_with_a_pooling_without_keys(answer, hint):
    after_the_paper.pooling_without_keys(lambda values: values.mean(dim=2, keepdim=True))
    with pytest.raises(NotYet, match=hint):
        after_the_paper.pooling_without_keys(answer)
