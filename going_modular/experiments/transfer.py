"""The README's figures: what the backbone in `models/` is worth on 300 images.

    python -m going_modular.experiments.transfer choose  # settings, within the 225 images
    python -m going_modular.experiments.transfer probe  # frozen backbone, linear probe
    python -m going_modular.experiments.transfer finetune  # the whole network, trained
    python -m going_modular.experiments.transfer scratch  # the chapter's recipe, random start

FOODVISION_SOURCE says on which images. `probe` and `finetune` print, for five seeds,
the accuracy of 5-fold cross-validation over all 300 images. On the 75 test images
`finetune` prints five runs, and `probe`, which has nothing random left, one. Settings
are chosen on the 225 training images, which the folds contain too. ± is the standard
deviation over the seeds: they share their images, which it does not account for.
"""

import argparse
import statistics

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, Subset, TensorDataset
from torchvision.transforms import v2
from tqdm import tqdm

from going_modular import data_setup, engine, model_builder
from going_modular.training import recipes
from going_modular.utils import describe_environment, get_device, set_seeds
from going_modular.vit.backbones import load_pretrained_backbone

SEEDS = range(5)
DEVICE = get_device()
# Chosen by `choose`, for drawings and photos together, then left alone.
PROBE_C = 0.01
FINETUNE = {"lr": 3e-4, "epochs": 10}


def images_of(food, transform):
    """All images (300, ...), labels (300,), and how many belong to training."""
    parts = [
        data_setup.load_into_memory(data_setup.PhotoFolder(folder, transform))
        for folder in (food.train_dir, food.test_dir)
    ]
    images, labels = (torch.cat([part.tensors[i] for part in parts]) for i in (0, 1))
    return images, labels, len(parts[0])


def folds(labels, seed):
    """Five times (training, held-out) indices, of which each holds all classes."""
    splitter = StratifiedKFold(5, shuffle=True, random_state=seed)
    return splitter.split(np.zeros(len(labels)), labels)


def official(labels, train):
    """The published split."""
    return [(np.arange(train), np.arange(train, len(labels)))]


def accuracy_over(splits, fit_and_predict, labels):
    """Accuracy over all held-out images of the splits together."""
    right = total = 0
    for train, held_out in splits:
        predicted = fit_and_predict(train, held_out)
        right += (predicted == labels[held_out].numpy()).sum()
        total += len(held_out)
    return right / total


def probe(features, labels, splits, C=PROBE_C):
    """Logistic regression on standardised features of the frozen backbone."""

    def fit_and_predict(train, held_out):
        classifier = fit_probe(features[train], labels[train], C)
        return classifier.predict(features[held_out])

    return accuracy_over(splits, fit_and_predict, labels)


def fit_probe(features, labels, C=PROBE_C):
    """Standardisation and logistic regression, fitted."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=2000))
    return probe.fit(features, labels)


def linear_layer(probe):
    """A fitted probe as one layer: W (x - mean) / std + b = (W / std) x + ..."""
    scaler, regression = probe
    weight = regression.coef_ / scaler.scale_
    layer = nn.Linear(*reversed(weight.shape))
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(regression.intercept_ - weight @ scaler.mean_))
    return layer


def finetune(images, labels, splits, seed, lr, epochs):
    """All weights trained, with AdamW, warm-up and cosine decay, crops and flips.

    The head starts as the linear probe, so that its first, large errors do not distort
    the features (Kumar et al. 2022, arXiv 2202.10054).
    """

    def fit_and_predict(train, held_out):
        set_seeds(seed)
        backbone, transform, _ = load_pretrained_backbone("drawn_dishes")
        size = backbone.vit.config.image_size
        to_input = v2.Compose(
            [v2.ToDtype(torch.float32, scale=True), v2.Normalize(transform.mean, transform.std)]
        )
        augment = v2.Compose(
            [
                v2.RandomResizedCrop(size, scale=(0.4, 1.0)),
                v2.RandomHorizontalFlip(),
                v2.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3),
                to_input,
            ]
        )
        middle = v2.Compose([v2.CenterCrop(size), to_input])
        unchanged = TensorDataset(middle(images), labels)
        features, _ = engine.predict(backbone, DataLoader(Subset(unchanged, train), 50), DEVICE)
        head = linear_layer(fit_probe(features.numpy(), labels[train]))
        model = nn.Sequential(backbone, head).to(DEVICE)
        steps = epochs * -(-len(train) // 32)
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, lr, steps, pct_start=0.1, cycle_momentum=False
        )
        model.train()
        for _ in range(epochs):
            for batch in torch.as_tensor(train)[torch.randperm(len(train))].split(32):
                inputs = torch.stack([augment(images[i]) for i in batch]).to(DEVICE)
                half = torch.autocast(DEVICE.type, torch.bfloat16)  # as in pretraining
                with half, sdpa_kernel(SDPBackend.MATH):
                    logits = model(inputs).float()
                loss = nn.functional.cross_entropy(logits, labels[batch].to(DEVICE))
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
        held_out = DataLoader(Subset(unchanged, held_out), 50)
        logits, _ = engine.predict(model, held_out, DEVICE)
        return logits.argmax(dim=1).numpy()

    return accuracy_over(splits, fit_and_predict, labels)


def scratch(images, labels, train, seed):
    """The chapter's recipe at notebook 08's CPU size, on the official split."""
    set_seeds(seed)
    config = model_builder.ViTConfig(
        image_size=64,
        patch_size=8,
        embedding_dim=128,
        num_layers=4,
        num_heads=4,
        mlp_dim=512,
        num_classes=3,
    )
    vit = recipes.initialize("chapter", model_builder.ViT(config))
    data = TensorDataset(images / 127.5 - 1, labels)
    loaders = (
        data_setup.create_dataloader(Subset(data, range(train)), 32, shuffle=True, seed=seed),
        data_setup.create_dataloader(Subset(data, range(train, len(labels))), 75),
    )
    results = engine.train(
        vit,
        *loaders,
        torch.optim.Adam(vit.parameters(), lr=3e-3, weight_decay=0.3),
        nn.CrossEntropyLoss(),
        epochs=10,
        device=DEVICE,
        progress=False,
    )
    return results["test_acc"][-1]


def report(name, accuracies):
    """Print mean, standard deviation and values of the runs with SEEDS."""
    values = " ".join(f"{value:.3f}" for value in accuracies)
    spread = statistics.stdev(accuracies)
    mean = statistics.mean(accuracies)
    print(f"{name}: {mean:.3f} ± {spread:.3f} (seeds 0-4: {values})", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["choose", "probe", "finetune", "scratch"])
    what = parser.parse_args().what
    food = data_setup.get_food_images()
    print(f"{food.source} · {describe_environment()}")
    if what == "scratch":
        squeeze = v2.Compose([v2.Resize((64, 64)), v2.PILToTensor()])
        images, labels, train = images_of(food, squeeze)
        runs = [scratch(images, labels, train, seed) for seed in tqdm(SEEDS)]
        report("chapter's recipe from scratch, official split", runs)
        return
    if what in ("choose", "probe"):
        backbone, transform, _ = load_pretrained_backbone("drawn_dishes")
        images, labels, train = images_of(food, transform)
        data = DataLoader(TensorDataset(images, labels), 50)
        features = engine.extract_features(backbone, data, DEVICE).tensors[0].numpy()
    if what == "probe":
        runs = [probe(features, labels, folds(labels, seed)) for seed in SEEDS]
        report("linear probe, 5 folds over the 300", runs)
        print(f"official split: {probe(features, labels, official(labels, train)):.3f}")
        return
    if what == "choose":
        for C in (0.001, 0.003, 0.01, 0.03, 0.1):
            runs = [
                probe(features[:train], labels[:train], folds(labels[:train], seed), C)
                for seed in SEEDS
            ]
            report(f"linear probe, 5 folds over the 225, C = {C}", runs)
    squares = v2.Compose([v2.Resize(128), v2.CenterCrop(128), v2.PILToTensor()])
    images, labels, train = images_of(food, squares)
    if what == "choose":
        images, labels = images[:train], labels[:train]
        for epochs in (10, 20):
            for lr in (3e-5, 1e-4, 3e-4):
                run = finetune(images, labels, folds(labels, 0), 0, lr, epochs)
                print(
                    f"fine-tuned, 5 folds over the 225, seed 0, {lr=}, {epochs=}: {run:.3f}",
                    flush=True,
                )
        return
    runs = [finetune(images, labels, folds(labels, seed), seed, **FINETUNE) for seed in tqdm(SEEDS)]
    report("fine-tuned, 5 folds over the 300", runs)
    runs = [
        finetune(images, labels, official(labels, train), seed, **FINETUNE) for seed in tqdm(SEEDS)
    ]
    report("fine-tuned, official split", runs)


if __name__ == "__main__":
    main()
