"""What a trained model says about one picture.

python -m going_modular.predictions photo.jpg --weights vit.safetensors
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
from PIL import Image
from torch import nn

from going_modular.images.reading import load_image
from going_modular.images.transforms import Transform
from going_modular.utils import command_path, errors_in_one_line, expand_home, get_device
from going_modular.vit.files import read_classifier
from going_modular.vit.fonts import drawable_names

MOST_SHOWN = 10  # classes


class Prediction(NamedTuple):
    """The most probable class, its probability, and those of all classes."""

    label: str
    probability: float
    probabilities: dict[str, float]

    def shown(self) -> dict[str, float]:
        """The probabilities of all classes in their order; of many, only the highest ones."""
        if len(self.probabilities) <= MOST_SHOWN:
            return self.probabilities
        falling = sorted(self.probabilities.items(), key=lambda item: -item[1])
        return dict(falling[:MOST_SHOWN])


@torch.inference_mode()
def predict_image(
    model: nn.Module,
    image: str | Path | Image.Image,
    class_names: Sequence[str],
    transform: Transform,
    device: torch.device | str,
) -> Prediction:
    """Classify one picture, given as a path or a Pillow image.

    Args:
        transform: the one that the model was evaluated with. The measured accuracy says
            nothing about pictures that went through a different transform.

    Raises:
        FileNotFoundError, ValueError: if the picture cannot be read (`load_image`).
        ValueError: if two class names are equal, there is not one for each output of the
            model, or the outputs are NaN.
    """
    model.to(device).eval()
    batch = transform(load_image(image)).unsqueeze(0)  # (1, C, H, W)
    probabilities = model(batch.to(device)).softmax(dim=1)[0].tolist()  # K numbers
    if len(set(class_names)) != len(class_names):
        raise ValueError(f"a class name appears twice in {list(class_names)}")
    if len(probabilities) != len(class_names):
        raise ValueError(
            f"the model has {len(probabilities)} outputs, but there are "
            f"{len(class_names)} class names: {list(class_names)}"
        )
    if not all(p >= 0 for p in probabilities):  # false for NaN
        raise ValueError(
            "the model's outputs are not numbers (NaN): its training diverged; train it "
            "again with a lower learning rate"
        )
    by_name = dict(zip(class_names, probabilities, strict=True))
    label = max(by_name, key=by_name.__getitem__)
    return Prediction(label, by_name[label], by_name)


def pred_and_plot_image(
    model: nn.Module,
    image: str | Path | Image.Image,
    class_names: Sequence[str],
    transform: Transform,
    device: torch.device | str,
) -> Prediction:
    """Classify one picture, draw it beside its class probabilities, return both.

    Arguments and errors are those of `predict_image`.
    """
    image = load_image(image)
    prediction = predict_image(model, image, class_names, transform, device)
    plot_prediction(image, prediction)
    plt.show()
    return prediction


def plot_prediction(image: Image.Image, prediction: Prediction) -> plt.Figure:
    """Draw a picture beside the probabilities of its classes."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(9, 4), width_ratios=(3, 2), layout="constrained"
    )
    left.imshow(image)
    left.set_axis_off()
    shown = prediction.shown()
    drawn = dict(zip(shown, drawable_names(list(shown)), strict=True))
    title = f"{drawn[prediction.label]}, {prediction.probability:.0%}"
    left.set_title(title, parse_math=False)  # a dollar sign in a name is no formula
    names = list(shown)[::-1]  # the first class on top
    rows = range(len(names))
    bars = right.barh(rows, [shown[name] for name in names])
    right.set_yticks(rows, [drawn[name] for name in names], parse_math=False)
    for bar, name in zip(bars, names, strict=True):
        bar.set_alpha(1.0 if name == prediction.label else 0.35)
    right.bar_label(bars, fmt="{:.1%}", padding=4)
    right.set_xlim(0, 1.2)  # room for the labels
    right.set_xticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
    K = len(prediction.probabilities)
    hidden = K > len(shown)
    right.set_title(f"the {len(shown)} highest of {K}" if hidden else "probability of each class")
    right.spines[["top", "right"]].set_visible(False)
    return figure


def check_folder(path: Path) -> None:
    """Raise `FileNotFoundError` unless the folder that a file goes into exists."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent}: make it, or choose another")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the label and the probabilities for a photo, and write the picture."""
    parser = argparse.ArgumentParser(
        prog="python -m going_modular.predictions",
        description="Say what is on a photo, with a model that "
        "`python -m going_modular.train` has trained.",
    )
    parser.add_argument("photo", type=command_path)
    parser.add_argument(
        "--weights",
        type=command_path,
        required=True,
        help="the vit.safetensors that the training wrote",
    )
    parser.add_argument(
        "--output",
        type=expand_home,
        help="the picture to write (default: <photo>_prediction.png, here)",
    )
    options = parser.parse_args(arguments)
    path = options.output or Path(f"{options.photo.stem}_prediction.png")
    if not path.suffix:
        path = path.with_suffix(".png")  # as matplotlib will call it
    with errors_in_one_line(parser.prog):
        check_folder(path)
        image = load_image(options.photo)
        model, transform, class_names = read_classifier(options.weights)
        prediction = predict_image(model, image, class_names, transform, get_device())
        figure = plot_prediction(image, prediction)
        figure.savefig(path)
        plt.close(figure)
    print(prediction.label)
    shown = prediction.shown()
    for name, probability in shown.items():
        print(f"  {probability:6.1%}  {name}")
    if more := len(prediction.probabilities) - len(shown):
        print(f"  and {more} other classes, which are less probable")
    print(f"picture: {path}")


if __name__ == "__main__":
    main()
