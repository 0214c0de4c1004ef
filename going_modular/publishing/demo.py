"""Try it: a page on this machine that classifies a photo and shows attention.

python -m going_modular.publishing.demo                            # our backbone and a new head
python -m going_modular.publishing.demo --weights vit.safetensors  # a model of going_modular.train

Only this machine can reach the server. The page asks no other host, and no request of a page
makes the server ask one.
"""

import argparse
import contextlib
import os
import signal
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import nn

from going_modular import data_setup, engine
from going_modular.drawings.synthetic_food import draw
from going_modular.images import reading
from going_modular.images.transforms import denormalize, evaluation_transform
from going_modular.model_builder import ViT
from going_modular.predictions import predict_image
from going_modular.training.feature_cache import feature_cache
from going_modular.training.fit import fit
from going_modular.training.recipes import HEAD
from going_modular.utils import (
    best_precision,
    command_path,
    errors_in_one_line,
    get_device,
    set_seeds,
)
from going_modular.vit.backbones import load_pretrained_backbone, vit_of
from going_modular.vit.files import Classifier, read_classifier
from going_modular.vit.inspect import (
    attention_maps,
    attention_rollout,
    class_attention,
    read_by_head,
)
from going_modular.vit.plots import upsample
from going_modular.vit.positions import Grid

if TYPE_CHECKING:  # `check_gradio` says whether it is installed
    import gradio as gr

SMALLEST = 32  # pixels of the shorter side of a picture
LONGEST = 10  # the longer side of a picture, at most, by the shorter one
SHARP = 560  # pixels of the longer side of a picture that is drawn, at least
FILES = 100  # photos and answers on the disk, at most: 4 or more for each prediction
PAGES = 8  # open pages, at most, whose attention maps stay in memory
HOSTS = ["127.0.0.1", "localhost"]  # names of this machine


def trained_classifier(path: Path) -> tuple[Classifier, ViT, str]:
    """The classifier in a file, its ViT, and a description in words.

    Raises:
        FileNotFoundError, ValueError: see `read_classifier`.
    """
    classifier = read_classifier(path)
    description = f"the ViT of {path.name}. Its accuracy was not measured here"
    return classifier, vit_of(classifier.model), description


def fit_classifier() -> tuple[Classifier, ViT, str]:
    """Our backbone with a linear head, fitted to the training images (notebook 09).

    Returns:
        (classifier, the backbone's ViT, a description with the accuracy on the test images)
    """
    device = get_device()
    backbone, transform, name = load_pretrained_backbone("drawn_dishes")
    food = data_setup.get_food_images()
    parts = [data_setup.PhotoFolder(each, transform) for each in (food.train_dir, food.test_dir)]
    train, test = (
        engine.extract_features(
            backbone,
            data_setup.create_dataloader(part, batch_size=32),
            device,
            cache=feature_cache(),
            precision=best_precision(device),
        )
        for part in parts
    )
    class_names = parts[0].classes
    K = len(class_names)
    set_seeds(42)
    head = nn.Linear(train.tensors[0].shape[1], K)  # D features
    _, results = fit(head, HEAD, train, test, K, device=device, progress=False)
    right = round(results["test_acc"][-1] * len(test))
    description = (
        f"{name}, and a linear head on the mean and the spread of its patch tokens, "
        f"fitted to {len(train)} images when this page was started. It is right for "
        f"**{right} of {len(test)}** test images of the same kind; your photo may be "
        f"harder. Images: {food.source}"
    )
    model = nn.Sequential(backbone, head).eval()
    return Classifier(model, transform, class_names), vit_of(backbone), description


def read_picture(picture: str | Path | Image.Image) -> Image.Image:
    """`load_image`, with error messages for the page.

    Raises:
        ValueError: if the file is gone or no picture, or the picture is too small or narrow.
    """
    try:
        picture = reading.load_image(picture)
    except FileNotFoundError as error:
        raise ValueError("This photo was deleted here. Choose it again.") from error
    except ValueError as error:
        raise ValueError(
            "This file cannot be read as a picture. It is damaged, it has too many pixels, or "
            "its kind is not known here (HEIC, SVG). Save it as a JPEG or PNG of the usual "
            "size and try again."
        ) from error
    shorter, longer = sorted(picture.size)
    if shorter < SMALLEST or longer > LONGEST * shorter:
        raise ValueError(
            f"This picture has {picture.width} × {picture.height} pixels. Its shorter "
            f"side should have at least {SMALLEST}, and the longer side at most "
            f"{LONGEST} times as many."
        )
    return picture


def attention_of(
    maps: torch.Tensor, read: torch.Tensor, grid: Grid, layer: int, head: int
) -> torch.Tensor:
    """The attention to each patch: maps (L, h, T, T) -> (rows, columns).

    Args:
        read: how much of each token the head reads, (T), see `read_by_head`.
        layer: counted from 1. 0 is the rollout over all layers, for any head.
        head: counted from 1. 0 is the mean of all heads.
    """
    if layer == 0:
        attention = attention_rollout(maps)
    else:
        heads = maps[int(layer) - 1]  # JSON has 1.0 as well
        attention = heads[int(head) - 1] if head else heads.mean(dim=0)
    return class_attention(attention[None], grid, read[None])[0]


def overlay(image: np.ndarray, attention: torch.Tensor) -> np.ndarray:
    """Colors (H, W, 3) as they are where attention is largest, dark grey at 0; uint8.

    This is Figure 6 of the paper, except that the dark parts stay visible.
    """
    light = upsample(attention[None], image.shape[:2])[0][:, :, None]
    light = light / light.max()
    grey = 0.4 * image.mean(axis=2, keepdims=True)
    return (255 * (light * image + (1 - light) * grey)).round().astype(np.uint8)


def separate_patches(image: np.ndarray, grid: Grid) -> np.ndarray:
    """Colors (H, W, 3) cut into patches, enlarged, with transparent gaps; uint8 RGBA."""
    (rows, columns), scale = grid, -(-SHARP // max(image.shape[:2]))
    pixels = np.dstack([image, np.ones(image.shape[:2])])  # opaque
    pixels = pixels.repeat(scale, axis=0).repeat(scale, axis=1)
    patches = pixels.reshape(rows, len(pixels) // rows, columns, -1, 4)
    gap = max(patches.shape[1] // 10, 2)
    patches = np.pad(patches, ((0, 0), (0, gap), (0, 0), (0, gap), (0, 0)))
    separate = patches.reshape(rows * patches.shape[1], -1, 4)[:-gap, :-gap]
    return (255 * separate).round().astype(np.uint8)


MODEL = """# Try it: what is on the photo?
**The model:** {}. It knows only **{}**, and cannot say "none of them".
Your photo stays on this machine. The server deletes it when newer ones have come, and at the
latest when Ctrl-C stops the server."""
PROBABILITIES = """**How to read it:** the numbers compare these classes and sum to
100% for any picture. A probability is no certainty: 99% can be wrong."""
READERS = {
    "class_token": "class token",
    "mean": "average token",
    "attention": "average token, weighted by the attention pooling,",
    "class_and_register": "average of class token and distillation token",
    "class_and_mean": "average of class token and mean of the patches",
}
ATTENTION = """**How to read it:** the {} takes most from the brightest patch, and
nothing from a dark grey one. **Attention is not an explanation:** it shows where a token
took something from, not what the answer depended on. In notebook 12, covering the brightest
patches costs our backbone no more than covering the middle of the image."""
PATCHES = """**How to read it:** this is all that the model gets: the middle of the
picture in {} × {} pixels, cut into {} × {} patches. Each becomes one token."""
CSS = """
.gradio-container { max-width: 1100px !important; margin: auto !important; }
.gallery { max-width: 300px; }
"""


def check_gradio() -> None:
    """Raise `ImportError` unless gradio is installed, which makes the page."""
    if find_spec("gradio") is None:
        raise ImportError(
            "the page needs gradio, which is not installed: `pip install gradio` installs it; "
            "in a checkout, `make demo` installs it and starts the page"
        )


def preprocess_in_words(preprocess: Callable) -> Callable:
    """Gradio's `preprocess`, which explains the error where the page would never send such data.

    Gradio alone would print a traceback on the server, and show the page no reason. It would
    also fetch a file whose path is an address.
    """
    import gradio as gr
    from gradio_client.utils import is_file_obj_with_meta, traverse

    def refuse_address(file):
        if "://" in file["path"]:
            raise ValueError("an address instead of a file")
        return file

    async def preprocess_data(block_fn, inputs, *others):
        try:
            traverse(inputs, refuse_address, is_file_obj_with_meta)
            return await preprocess(block_fn, inputs, *others)
        except gr.Error as error:  # it has a reason
            error.print_exception = False
            raise
        except ValueError as error:
            words = "This request does not fit the page. Reload the page and try again."
            raise gr.Error(words, print_exception=False) from error

    return preprocess_data


def build_page(classifier: Classifier, vit: ViT, description: str) -> "gr.Blocks":
    """The page, ready to launch.

    Args:
        vit: the part of the classifier's model that has attention.
        description: what the model is, in words.
    """
    import gradio as gr

    device = get_device()
    model, transform, class_names = classifier
    colors = {"mean": transform.mean, "std": transform.std}
    config, grid = vit.config, vit.config.grid
    H, W = config.image_hw
    sharp_size = (SHARP * H // max(H, W), SHARP * W // max(H, W))

    def check(layer, head):
        if layer not in range(config.num_layers + 1) or head not in range(config.num_heads + 1):
            raise gr.Error("There is no such layer or head.", print_exception=False)

    def show(picture, layer, head):
        check(layer, head)
        hidden = {
            photo: None,  # without a value, Gradio would make a new photo with its own `preprocess`
            verdict: gr.Column(visible=False),
            pictures: gr.Row(visible=False),
            looked: None,
        }
        if picture is None:  # cleared
            return {message: "", **hidden}
        try:
            picture = read_picture(picture)
            prediction = predict_image(model, picture, class_names, transform, device)
        except ValueError as error:
            return {message: f"**{error}**", **hidden}
        image = transform(picture)[None].to(device)  # (1, 3, H, W)
        maps = attention_maps(vit, image)[0].cpu()
        read = read_by_head(vit, image)[0].cpu()
        # The same part of the picture with more pixels than the model gets
        view = denormalize(evaluation_transform(sharp_size, **colors)(picture), **colors)
        picture.thumbnail((640, 640))  # browsers cannot show every kind of file
        return {
            photo: picture,
            message: "",
            verdict: gr.Column(visible=True),
            probabilities: prediction.probabilities,
            pictures: gr.Row(visible=True),
            looked: (view, maps, read),
            attention: overlay(view, attention_of(maps, read, grid, layer, head)),
            patches: separate_patches(denormalize(image[0], **colors), grid),
        }

    def show_drawn(number, layer, head):
        dish = dishes[int(number)] if number in range(len(dishes)) else None
        return show(dish, layer, head)

    def light(looked, layer, head):
        check(layer, head)
        if looked is None:  # after `PAGES` newer pages, or a new start of the server
            words = "The server has no picture of this page, or not any more. Choose one again."
            raise gr.Error(words, print_exception=False)
        view, maps, read = looked
        lit = overlay(view, attention_of(maps, read, grid, layer, head))
        return lit, gr.Dropdown(value=head if layer else 0, interactive=layer > 0)

    def choose(name, everything, count):
        each = [(f"{name} {number}", number) for number in range(1, count + 1)]
        return gr.Dropdown(
            [(everything, 0), *each],
            value=0,
            label=name.title(),
            filterable=False,
            min_width=200,
            interactive=name == "layer",
            elem_id=name,
        )

    def shown(name):
        gr.Markdown(f"### {name.title()}")
        return gr.Image(
            show_label=False,
            elem_id=name,
            alt_text=name,
            format="png",
            buttons=[],
            interactive=False,
        )

    with gr.Blocks(title="Try it: a Vision Transformer", analytics_enabled=False) as page:
        looked = gr.State()
        gr.Markdown(MODEL.format(description, ", ".join(class_names)))
        with gr.Row():
            with gr.Column():
                photo = gr.Image(
                    label="Your photo (10 MB at most)",
                    sources=["upload", "clipboard"],
                    format="png",
                    height=360,
                    buttons=[],
                    elem_id="photo",
                )
                # Gradio would open the file itself and show Pillow's error
                photo.preprocess = lambda file: file and file.path  # type: ignore
                message = gr.Markdown(elem_id="message")
            with gr.Column():
                dishes = [
                    draw(dish, np.random.default_rng([row, column]), size=384)
                    for column in range(2)
                    for row, dish in enumerate(("pizza", "steak", "sushi"))
                ]
                drawn = gr.Dataset(
                    components=[photo],
                    samples=[[dish] for dish in dishes],
                    type="index",
                    label="Or drawn by a program",
                )
                with gr.Column(visible=False) as verdict:
                    probabilities = gr.Label(show_label=False, elem_id="probabilities")
                    gr.Markdown(PROBABILITIES)
        with gr.Row(visible=False) as pictures:
            with gr.Column():
                attention = shown("attention")
                with gr.Row():
                    layer = choose("layer", "rollout over all layers", config.num_layers)
                    head = choose("head", "mean of all heads", config.num_heads)
                gr.Markdown(ATTENTION.format(READERS[config.pool]))
            with gr.Column():
                patches = shown("patches")
                gr.Markdown(PATCHES.format(H, W, *grid))
        chosen = [layer, head]
        answers = [photo, message, verdict, probabilities, pictures, looked, attention, patches]
        gr.on([photo.upload, photo.clear], show, [photo, *chosen], answers)
        drawn.click(show_drawn, [drawn, *chosen], answers)
        gr.on([layer.input, head.input], light, [looked, *chosen], [attention, head])
    page.preprocess_data = preprocess_in_words(page.preprocess_data)  # type: ignore
    return page


async def forbid_other_hosts(request, call_next):
    """Refuse a path with an address in it, and tell the browser to ask this server only.

    Gradio would fetch the address for `/gradio_api/file=`.
    """
    from starlette.responses import JSONResponse

    if "://" in request.scope["path"]:
        words = "This server fetches nothing from other addresses."
        answer = JSONResponse({"detail": words}, status_code=403)
    else:
        answer = await call_next(request)
    answer.headers["Content-Security-Policy"] = "default-src 'self' data: blob: 'unsafe-inline'"
    return answer


def delete_oldest(folder: Path, kept: set[Path]) -> None:
    """Delete all but the newest files in a folder and below, and the folders that this empties.

    Args:
        kept: files that stay, whatever their age.
    """
    files = {path for path in folder.rglob("*") if path.is_file()} - kept
    for path in sorted(files, key=lambda path: path.stat().st_mtime)[:-FILES]:
        with contextlib.suppress(OSError):  # the folder is not empty
            path.unlink()
            path.parent.rmdir()


def serve(classifier: Classifier, vit: ViT, description: str, port: int | None) -> None:
    """Start the server of `build_page`, print its address, and stop at Ctrl-C.

    Raises:
        OSError: if there is no free port.
    """
    import gradio as gr
    from starlette.middleware import Middleware
    from starlette.middleware.base import BaseHTTPMiddleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    with tempfile.TemporaryDirectory(prefix="demo-") as folder:
        # Gradio keeps uploaded photos and its answers here, and would delete none
        os.environ["GRADIO_TEMP_DIR"] = folder
        page = build_page(classifier, vit, description)
        examples = set(Path(folder).rglob("*"))

        async def limit_files(request, call_next):
            answer = await call_next(request)
            if request.method == "POST":  # a photo, or a question about one
                delete_oldest(Path(folder), examples)
            return answer

        try:
            _, url, _ = page.launch(
                server_name="127.0.0.1",
                server_port=port,
                share=False,
                ssr_mode=False,  # no second server, in Node
                max_file_size="10mb",
                theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono="monospace"),
                css=CSS,
                footer_links=[],
                run_history=False,
                state_session_capacity=PAGES,
                app_kwargs={
                    "middleware": [
                        # Another site could give its own name this machine's address
                        Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS),
                        Middleware(BaseHTTPMiddleware, dispatch=forbid_other_hosts),
                        Middleware(BaseHTTPMiddleware, dispatch=limit_files),
                    ]
                },
                quiet=True,
                prevent_thread_lock=True,
            )
        except (OSError, OverflowError) as error:
            ports = f"port {port}" if port else "a port from 7860 on"
            raise OSError(
                f"the server cannot listen on {ports}: another program uses it, or the system "
                "does not allow it. Give another number with --port"
            ) from error
        print(f"Open {url} in a browser; Ctrl-C stops the server.", flush=True)
        page.block_thread()


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the options, load or fit the classifier, and serve the page."""
    parser = argparse.ArgumentParser(
        prog="python -m going_modular.publishing.demo",
        description="A page on this machine on which to try a ViT on a photo.",
    )
    parser.add_argument(
        "--weights",
        type=command_path,
        help="the vit.safetensors that `python -m going_modular.train` wrote "
        "(default: our pretrained backbone, with a head that is fitted now)",
    )
    parser.add_argument("--port", type=int, help="(default: a free one from 7860)")
    options = parser.parse_args(arguments)
    weights = options.weights
    with errors_in_one_line(parser.prog):
        check_gradio()
        shown = trained_classifier(weights) if weights else fit_classifier()
        serve(*shown, options.port)


if __name__ == "__main__":
    # SIGTERM ends the server as Ctrl-C does, so that it deletes the photos
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    main()
