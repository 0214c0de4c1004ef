"""The demo: its functions, its errors, and the page in a browser."""

import gc
import io
import re
import socket
import sys
import threading
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import requests
import torch
from PIL import Image
from tiny_vit import tiny_vit

from going_modular import data_setup, engine
from going_modular.drawings.synthetic_food import draw
from going_modular.images.transforms import HALF, IMAGENET, denormalize, evaluation_transform
from going_modular.predictions import predict_image
from going_modular.utils import get_device, give_random_values
from going_modular.vit.descendant_config import DescendantConfig, Rotary
from going_modular.vit.descendants import Descendant
from going_modular.vit.files import write_vit
from going_modular.vit.inspect import (
    attention_maps,
    attention_rollout,
    class_attention,
    read_by_head,
)

gr = pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.sync_api")
from going_modular.publishing import demo  # noqa: E402 (it needs gradio)

pytestmark = [
    pytest.mark.slow,
    # Gradio leaves event loops and their sockets open
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def collected():
    """The last test of the file collects Gradio's event loops, while the mark holds."""
    yield
    gc.collect()


# Pictures and pure functions


def test_attention_is_that_of_the_chosen_layer_and_head():
    maps = torch.rand(3, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    read = torch.eye(5)[0]  # the class token
    of_head = demo.attention_of(maps, read, (2, 2), layer=3, head=2)
    assert torch.equal(of_head, maps[2, 1, 0, 1:].view(2, 2))
    of_mean = demo.attention_of(maps, read, (2, 2), layer=1, head=0)
    torch.testing.assert_close(of_mean, maps[0, :, 0, 1:].mean(dim=0).view(2, 2))
    rollout = class_attention(attention_rollout(maps), (2, 2))
    assert torch.equal(demo.attention_of(maps, read, (2, 2), layer=0, head=0), rollout)


def test_overlay_keeps_colors_where_attention_is_and_shows_the_rest_in_grey():
    image = np.random.default_rng(0).random((40, 40, 3))
    attention = torch.tensor([[0.0, 0.0], [0.0, 0.2]])
    drawn = demo.overlay(image, attention)
    lit, unlit = (slice(30, 40),) * 2, (slice(0, 10),) * 2
    assert np.array_equal(drawn[lit], (255 * image[lit]).round())
    grey = (255 * 0.4 * image[unlit].mean(axis=2, keepdims=True)).round()
    assert np.array_equal(drawn[unlit], grey.repeat(3, axis=2))
    assert np.array_equal(
        demo.overlay(image, torch.ones(2, 2)), (255 * image).round().astype(np.uint8)
    )


def test_patches_are_the_images_own_with_clear_gaps_between_them(monkeypatch):
    monkeypatch.setattr(demo, "SHARP", 120)
    image = np.random.default_rng(0).random((60, 60, 3))
    patches = demo.separate_patches(image, (2, 3))  # patches of 60 × 40, each pixel doubled
    assert patches.shape == (2 * 60 + 6, 3 * 40 + 2 * 6, 4)
    colors = (255 * image).round()
    patch = patches[66:, 46:86]  # row 1, column 1
    assert (patch[..., 3] == 255).all()
    assert np.array_equal(patch[::2, ::2, :3], colors[30:, 20:40])
    assert np.array_equal(patch[1::2, 1::2, :3], colors[30:, 20:40])
    assert (patches[60:66, :, 3] == 0).all() and (patches[:, 40:46, 3] == 0).all()


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA", "P", "CMYK", "I;16"])
def test_every_kind_of_picture_is_read(mode, tmp_path):
    path = tmp_path / ("picture.jpg" if mode == "CMYK" else "picture.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.new(mode, (64, 40)).save(path, exif=exif)
    picture = demo.read_picture(path)
    assert (picture.mode, picture.size) == ("RGB", (40, 64))


@pytest.mark.parametrize("size", [(31, 100), (100, 31), (32, 321), (500, 40)])
def test_small_or_narrow_pictures_are_refused_with_their_size(size, tmp_path):
    Image.new("RGB", size).save(tmp_path / "picture.png")
    with pytest.raises(ValueError, match=f"{size[0]} × {size[1]} pixels"):
        demo.read_picture(tmp_path / "picture.png")


def test_a_file_that_is_no_picture_is_refused_without_naming_paths(tmp_path):
    good = io.BytesIO()
    draw("pizza", np.random.default_rng(0), 64).save(good, "JPEG")
    for content in (b"", b"\xff\xd8\xff no picture", good.getvalue()[:700]):
        (tmp_path / "broken.jpg").write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read as a picture") as caught:
            demo.read_picture(tmp_path / "broken.jpg")
        assert str(tmp_path) not in str(caught.value)


# A classifier from a file


@pytest.mark.parametrize(
    ("size", "grid", "sharp"),
    [
        ((32, 32), (4, 4), (560, 560)),
        ((24, 40), (3, 5), (336, 560)),
        ((64, 16), (8, 2), (560, 140)),
    ],
)
@pytest.mark.parametrize("normalization", [IMAGENET, HALF])
def test_a_trained_classifier_can_be_tried(size, grid, sharp, normalization, tmp_path, monkeypatch):
    """Whatever its height and width, and the colors that it was trained with."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    names = ["a", "b", "c", "d", "e"]
    vit = tiny_vit(pool="mean", image_size=size)
    path = tmp_path / "vit.safetensors"
    write_vit(vit, path, class_names=names, normalization=normalization)
    page = demo.build_page(*demo.trained_classifier(path))
    blocks = page.blocks.values()
    texts = [b.value or "" for b in blocks if isinstance(b, gr.Markdown)]
    assert "vit.safetensors" in texts[0] and "a, b, c, d, e" in texts[0]
    assert any("average token" in text for text in texts)
    shape = "{} × {} pixels, cut into {} × {}".format(*size, *grid)
    assert any(shape in text for text in texts)

    picture = draw("sushi", np.random.default_rng(0), 100)
    picture.save(tmp_path / "sushi.png")
    (show,) = {block.fn for block in page.fns.values() if block.name == "show"}
    answers = {
        component.elem_id: answer
        for component, answer in show(tmp_path / "sushi.png", 2, 3).items()
    }
    transform = evaluation_transform(size, *normalization)
    expected = predict_image(vit, picture, names, transform, get_device())
    assert answers["probabilities"] == expected.probabilities
    image = transform(picture)[None].to(get_device())
    maps, read = attention_maps(vit, image).cpu(), read_by_head(vit, image).cpu()
    (seen,) = class_attention(maps[:, 1, 2], grid, read)
    view = denormalize(evaluation_transform(sharp, *normalization)(picture), *normalization)
    assert np.array_equal(answers["attention"], demo.overlay(view, seen))
    assert answers["attention"].shape == (*sharp, 3)
    patches = answers["patches"]
    assert patches.shape[0] / patches.shape[1] == pytest.approx(size[0] / size[1], rel=0.05)


PARTS = {
    "registers": ({"num_registers": 2, "rotary": Rotary()}, "the class token"),
    "pooling": ({"pool": "attention", "class_token": False}, "weighted by the attention pooling"),
    "two": ({"pool": "class_and_register", "num_registers": 1}, "distillation token takes"),
    "class and mean": ({"pool": "class_and_mean"}, "class token and mean of the patches"),
}


@pytest.mark.parametrize(("parts", "reader"), PARTS.values(), ids=PARTS)
def test_a_descendant_shows_what_its_head_takes_from_patches(parts, reader, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    vit = give_random_values(Descendant(DescendantConfig(**asdict(tiny_vit().config) | parts)))
    names = ["a", "b", "c", "d", "e"]
    path = write_vit(vit.eval(), tmp_path / "vit.safetensors", class_names=names)
    page = demo.build_page(*demo.trained_classifier(path))
    texts = [b.value or "" for b in page.blocks.values() if isinstance(b, gr.Markdown)]
    assert any(reader in text for text in texts)
    picture = draw("sushi", np.random.default_rng(0), 100)
    picture.save(tmp_path / "sushi.png")
    (show,) = {block.fn for block in page.fns.values() if block.name == "show"}
    answers = {c.elem_id: answer for c, answer in show(tmp_path / "sushi.png", 0, 0).items()}
    transform = evaluation_transform(32)
    expected = predict_image(vit, picture, names, transform, get_device())
    assert answers["probabilities"] == expected.probabilities
    image = transform(picture)[None].to(get_device())
    rollout, read = attention_rollout(attention_maps(vit, image)), read_by_head(vit, image)
    (seen,) = class_attention(rollout, (4, 4), read).cpu()
    view = denormalize(evaluation_transform((560, 560))(picture))
    assert np.array_equal(answers["attention"], demo.overlay(view, seen))


def test_a_model_that_diverged_is_a_message_on_the_page(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    vit = tiny_vit()
    vit.head.bias.data.fill_(float("nan"))
    write_vit(vit, tmp_path / "vit.safetensors", class_names=["a", "b", "c", "d", "e"])
    page = demo.build_page(*demo.trained_classifier(tmp_path / "vit.safetensors"))
    draw("sushi", np.random.default_rng(0), 100).save(tmp_path / "sushi.png")
    (show,) = {block.fn for block in page.fns.values() if block.name == "show"}
    answers = show(tmp_path / "sushi.png", 0, 0)
    by_name = {component.elem_id: answer for component, answer in answers.items()}
    assert "NaN" in by_name["message"] and "lower learning rate" in by_name["message"]
    assert by_name["photo"] is None and "probabilities" not in by_name


def test_bad_weights_are_an_error_of_one_line(tmp_path, capsys):
    write_vit(tiny_vit(), tmp_path / "nameless.safetensors")
    for name, message in {
        "nameless.safetensors": "does not name its classes",
        "missing.safetensors": "there is no file of weights",
    }.items():
        with pytest.raises(SystemExit) as end:
            demo.main(["--weights", str(tmp_path / name)])
        (line,) = capsys.readouterr().err.splitlines()
        assert end.value.code == 2 and message in line
        assert line.startswith("python -m going_modular.publishing.demo: error: ")


@pytest.mark.parametrize("port", ["taken", 99999])
def test_a_port_that_cannot_be_opened_is_an_error_of_one_line(port, tmp_path, capsys):
    path = write_vit(tiny_vit(), tmp_path / "vit.safetensors", class_names=list("abcde"))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1] if port == "taken" else port
        with pytest.raises(SystemExit):
            demo.main(["--weights", str(path), "--port", str(port)])
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert f"cannot listen on port {port}" in last and "--port" in last


def test_no_uploaded_photo_is_left_when_the_server_has_stopped(tmp_path, monkeypatch):
    names = ["a", "b", "c", "d", "e"]
    path = write_vit(tiny_vit(), tmp_path / "vit.safetensors", class_names=names)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    found = []

    def upload(page):
        file = {"files": ("mine.png", b"a photo")}
        answer = requests.post(f"{page.local_url}gradio_api/upload", files=file)
        found.extend(map(Path, answer.json()))
        assert found[0].read_bytes() == b"a photo"

    monkeypatch.setattr(gr.Blocks, "block_thread", upload)
    demo.main(["--weights", str(path)])
    gr.close_all(verbose=False)
    assert len(found) == 1 and not found[0].exists()


# Other hosts


HERE = {"127.0.0.1", "localhost", "127.0.0.2"}
ADDRESS = "http://192.0.2.1/photo.png"  # an example for documents: no server has it


@contextmanager
def hosts_called():
    """The hosts that this process looks up or connects to."""
    called, listening = set(), True

    def listen(event, arguments):
        if not listening:  # Python cannot remove a hook
            return
        if event == "socket.getaddrinfo":
            called.add(arguments[0])
        elif event == "socket.connect" and isinstance(arguments[1], tuple):
            called.add(arguments[1][0])

    sys.addaudithook(listen)
    try:
        yield called
    finally:
        listening = False


def test_an_address_that_a_request_names_is_not_fetched(tmp_path, monkeypatch):
    """Gradio would ask a name server about it, and then the host."""
    path = write_vit(tiny_vit(), tmp_path / "vit.safetensors", class_names=list("abcde"))
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "*")
    file = {"path": ADDRESS, "meta": {"_type": "gradio.FileData"}}
    routes, events = [], []

    def ask(page):
        home = f"{page.local_url}gradio_api"
        for route in ("file=", "file/", "proxy="):
            for address in (ADDRESS, ADDRESS.replace(":", "%3A").replace("/", "%2F")):
                for method in ("GET", "HEAD"):
                    routes.append(requests.request(method, f"{home}/{route}{address}", timeout=60))
        for data in ([file, 0, 0], [None, [{"layer": file}], 0]):
            asked = requests.post(f"{home}/call/show", json={"data": data}, timeout=60).json()
            events.append(requests.get(f"{home}/call/show/{asked['event_id']}", timeout=60).text)

    monkeypatch.setattr(gr.Blocks, "block_thread", ask)
    with hosts_called() as called:
        demo.main(["--weights", str(path)])
        gr.close_all(verbose=False)
    assert [answer.status_code for answer in routes] == 12 * [403]
    assert all("fetches nothing" in answer.text for answer in routes[::2])
    assert all("event: error" in event and "does not fit the page" in event for event in events)
    assert {host for host in called if host} <= HERE


# The page in a browser


@pytest.fixture(scope="module")
def served(chromium):
    """The running demo: its port, its classifier and ViT, and the hosts that it has called."""
    shown = []

    def build_page(classifier, vit, description, build_page=demo.build_page):
        shown.extend([classifier, vit])
        return build_page(classifier, vit, description)

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with hosts_called() as called, pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOODVISION_SOURCE", "synthetic")
        patch.setenv("GRADIO_TEMP_DIR", "restored afterwards")
        patch.setattr(demo, "build_page", build_page)
        ready, done = threading.Event(), threading.Event()
        patch.setattr(gr.Blocks, "block_thread", lambda page: ready.set() or done.wait())
        server = threading.Thread(target=demo.main, args=[["--port", str(port)]])
        server.start()
        try:
            assert ready.wait(timeout=120)
            yield SimpleNamespace(port=port, classifier=shown[0], vit=shown[1], called=called)
        finally:
            done.set()
            server.join()
            gr.close_all(verbose=False)


@pytest.fixture
def complaints():
    """What went wrong in the browser: errors, and requests to other hosts."""
    found = []
    yield found
    assert not found


@pytest.fixture
def open_page(served, chromium, complaints):
    """A function that opens the demo. The page cannot reach other hosts and must not try."""
    contexts = []
    home = f"http://127.0.0.1:{served.port}/"

    def guard(route):
        if route.request.url.startswith(home):
            return route.continue_()
        complaints.append(f"asked {route.request.url}")
        return route.abort()

    def on_console(message):
        if message.type == "error":
            complaints.append(f"console: {message.text}")

    def open_page(**options):
        context = chromium.new_context(**options)
        contexts.append(context)
        context.set_default_timeout(20_000)
        page = context.new_page()
        page.route(re.compile("^(?!data:|blob:)"), guard)
        page.on("console", on_console)
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.goto(home)
        page.wait_for_selector("#photo input[type=file]", state="attached")
        return page

    yield open_page
    for context in contexts:
        context.close()


def upload(page, path):
    page.set_input_files("#photo input[type=file]", path)


def save(picture, path):
    picture.save(path)
    return path


def probabilities_on(page):
    """The probabilities as printed, by class."""
    page.wait_for_selector("#probabilities .confidence-set")
    names, numbers = (
        page.locator(f"#probabilities .{part}").all_inner_texts() for part in ("text", "confidence")
    )
    return dict(zip(names, numbers, strict=True))


def predicted(served, picture):
    c = served.classifier
    p = predict_image(c.model, picture, c.class_names, c.transform, get_device())
    return {name: f"{value:.0%}" for name, value in p.probabilities.items()}


def image_on(page, name, before=None):
    """(source, pixels) of a picture, as soon as its source is not `before`."""
    page.wait_for_function(
        "([name, before]) => {"
        " const image = document.querySelector(`#${name} img`);"
        " return image && image.complete && image.src != before }",
        arg=[name, before],
    )
    source = page.locator(f"#{name} img").get_attribute("src")
    with Image.open(io.BytesIO(page.request.get(source).body())) as image:
        return source, np.asarray(image)


def square(picture):
    """The square of the picture that the page draws."""
    image = evaluation_transform(demo.SHARP)(picture)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
    return (image.movedim(0, -1) * std + mean).clamp(0, 1).numpy()


def test_an_uploaded_picture_is_classified_lit_and_cut(served, open_page, tmp_path):
    picture = draw("steak", np.random.default_rng(5), size=(400, 300))
    page = open_page()
    assert not page.locator("#probabilities").is_visible()
    upload(page, save(picture, tmp_path / "steak.png"))
    assert probabilities_on(page) == predicted(served, picture)

    vit, transform = served.vit, served.classifier.transform
    maps = attention_maps(vit, transform(picture)[None].to(get_device())).cpu()[0]
    expected = class_attention(attention_rollout(maps), (8, 8))
    source, pixels = image_on(page, "attention")
    assert np.array_equal(pixels, demo.overlay(square(picture), expected))
    _, patches = image_on(page, "patches")
    assert (patches[..., 3] == 0).any()
    assert page.locator("#head input").is_disabled()  # rollout takes the mean

    for name, choice, attention in (
        ("layer", "layer 5", maps[4].mean(dim=0)),
        ("head", "head 2", maps[4, 1]),
        ("layer", "layer 6", maps[5, 1]),
        ("layer", "rollout over all layers", attention_rollout(maps)),
    ):
        page.locator(f"#{name} input").click()
        page.get_by_role("option", name=choice).click()
        source, pixels = image_on(page, "attention", before=source)
        lit = demo.overlay(square(picture), class_attention(attention, (8, 8)))
        assert np.array_equal(pixels, lit), choice
    playwright.expect(page.locator("#head input")).to_be_disabled()
    assert page.locator("#head input").input_value() == "mean of all heads"

    page.get_by_label("Remove Image").click()
    playwright.expect(page.locator("#probabilities")).to_be_hidden()
    playwright.expect(page.locator("#patches")).to_be_hidden()


def test_the_page_says_what_the_model_is_and_how_good(served, open_page):
    food = data_setup.get_drawn_images()
    c = served.classifier
    *_, test_loader = data_setup.create_dataloaders(
        food.train_dir, food.test_dir, c.transform, batch_size=25
    )[:2]
    logits, labels = engine.predict(c.model, test_loader, get_device())
    right = (logits.argmax(dim=1) == labels).sum().item()
    assert right > 60
    text = open_page().locator("body").inner_text()
    assert f"right for {right} of 75 test images" in text
    assert "pizza, steak, sushi" in text and food.source in text


def test_an_example_can_be_clicked(served, open_page):
    page = open_page()
    page.locator(".gallery-item").nth(2).click()
    sushi = draw("sushi", np.random.default_rng([2, 0]), size=384)
    assert probabilities_on(page) == predicted(served, sushi)
    text = page.locator("body").inner_text()
    assert "no certainty" in text and "Attention is not an explanation" in text


def test_a_bad_file_is_explained_and_the_page_goes_on(served, open_page, tmp_path):
    page = open_page()
    message = page.locator("#message")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    upload(page, tmp_path / "broken.jpg")
    playwright.expect(message).to_contain_text("cannot be read as a picture")
    assert "Traceback" not in page.locator("body").inner_text()
    page.wait_for_selector("#photo input[type=file]", state="attached")
    upload(page, save(Image.new("RGB", (20, 30)), tmp_path / "tiny.png"))
    playwright.expect(message).to_contain_text("20 × 30 pixels")
    assert not page.locator("#probabilities").is_visible()

    page.wait_for_selector("#photo input[type=file]", state="attached")
    picture = draw("pizza", np.random.default_rng(6), size=200)
    upload(page, save(picture.convert("CMYK"), tmp_path / "print.tif"))
    assert probabilities_on(page) == predicted(served, picture)
    playwright.expect(message).to_have_text("")
    # Browsers cannot show this file, so the page shows a copy
    _, copy = image_on(page, "photo")
    assert np.array_equal(copy, np.asarray(picture))


def test_a_file_that_is_too_large_is_refused(open_page, complaints, tmp_path):
    page = open_page()
    picture = draw("pizza", np.random.default_rng(0), size=100)
    path = save(picture, tmp_path / "large.png")
    with path.open("ab") as file:
        file.write(bytes(10 * 2**20))
    upload(page, path)
    error = page.get_by_text("exceed the maximum allowed size")
    playwright.expect(error).to_be_visible()
    assert not page.locator("#probabilities").is_visible()
    page.wait_for_timeout(500)
    complaints.clear()  # Gradio complains about the upload that it refused


@pytest.mark.parametrize("color_scheme", ["light", "dark"])
def test_nothing_is_wider_than_a_phone(open_page, color_scheme):
    page = open_page(viewport={"width": 390, "height": 844}, color_scheme=color_scheme)
    too_wide = """() => [document.documentElement, ...document.querySelectorAll('*')]
        .filter(e => Math.max(e.getBoundingClientRect().right,
                              e == document.documentElement ? e.scrollWidth : 0) > 390)
        .map(e => `${e.tagName} ${e.className}`)"""
    assert page.evaluate(too_wide) == []
    page.locator(".gallery-item").first.click()
    probabilities_on(page)
    image_on(page, "patches")
    assert page.evaluate(too_wide) == []


def test_the_browser_is_told_to_ask_no_other_host(open_page, complaints):
    blocked = open_page().evaluate(
        """() => new Promise(done => {
            document.addEventListener('securitypolicyviolation',
                                      event => done(event.blockedURI));
            fetch('http://elsewhere.invalid/font').catch(() => {});
            setTimeout(() => done('by no policy'), 3000);
        })"""
    )
    assert blocked == "http://elsewhere.invalid/font"
    complaints.clear()


def test_the_server_listens_here_only_and_calls_nobody(served):
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.2", served.port), timeout=1)
    with socket.create_connection(("127.0.0.1", served.port), timeout=1):
        pass
    assert {host for host in served.called if host} <= HERE
