"""Keep the features of images in files, so that a frozen backbone sees each image once.

There is one file for each combination of weights, transform, precision, kind of device and
code, see `feature_key`. In it, the SHA-256 of an image's file finds its features. So an
image may have another name, folder or split, and a photo that has changed is new.

Features come back bit for bit. If they are computed again, in a batch with other images or
with more threads, the last bits may differ.
"""

import hashlib
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import torch
from filelock import FileLock
from torch import nn
from torch.utils.data import DataLoader, SequentialSampler, Subset, default_collate

from going_modular.images.checksums import sha256_of
from going_modular.images.folders import PhotoFolder
from going_modular.training.feature_key import RANDOM, NotKept, is_random, key_of
from going_modular.utils import atomic_write, data_dir, project_path, remove_unfinished

log = logging.getLogger(__name__)
LIMIT = 2**30  # bytes of all files in a folder; what was not used for longest goes first
BATCHES = 64  # that are computed before their features are written

Rows = dict[str, torch.Tensor]  # the features of an image, by the SHA-256 of its file


def feature_cache() -> Path:
    """Return the usual folder: `extract_features(..., cache=feature_cache())`.

    It is `features/` beside the images that are downloaded or drawn, see `data_dir`.
    """
    return data_dir() / "features"


def keep_features(
    compute: Callable, backbone: nn.Module, batches: object, setting: list[str], cache: str | Path
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what `compute(batches)` does, and compute only what is in no file yet.

    Args:
        compute: from batches to features (M, D) and labels (M,), on the CPU.
        setting: what decides the features besides backbone and transform.

    Raises:
        ValueError: if the transform is random, or for `check_order`.
    """
    try:
        if not isinstance(batches, DataLoader):
            raise NotKept("it needs a data loader")
        photos, indices = photos_of(batches.dataset)
        path = project_path(cache) / f"{key_of(backbone.eval(), photos, setting)}.features"
    except NotKept as reason:
        print(f"the feature cache is not used: {reason}")
        return compute(batches)
    check_order(batches)
    images = [sha256_of(Path(photos.samples[index][0])) for index in indices]
    rows = read_rows(path)
    missing = {i: index for i, index in zip(images, indices, strict=True) if i not in rows}
    if missing and is_random(photos, next(iter(missing.values()))):
        raise ValueError(RANDOM)
    todo, size = list(missing), BATCHES * (batches.batch_size or 1)
    for part in (todo[start : start + size] for start in range(0, len(todo), size)):
        loader: DataLoader = DataLoader(
            Subset(photos, [missing[image] for image in part]),
            batch_size=batches.batch_size,
            num_workers=batches.num_workers,
            worker_init_fn=batches.worker_init_fn,
            pin_memory=batches.pin_memory,
        )
        new = dict(zip(part, compute(loader)[0], strict=True))
        rows |= new
        # A file that changed meanwhile has features of another image
        same = [i for i in part if sha256_of(Path(photos.samples[missing[i]][0])) == i]
        add_rows(path, {image: new[image] for image in same})
    computed = sum(image in missing for image in images)
    # Twice the same, as all that a cell shows. How many were computed is for the log
    print(f"features of {len(images)} images, found in the cache or added to it")
    log.info("features: %d read from the cache, %d computed", len(images) - computed, computed)
    labels = [photos.samples[index][1] for index in indices]
    return torch.stack([rows[image] for image in images]), torch.tensor(labels)


def photos_of(dataset: object) -> tuple[PhotoFolder, list[int]]:
    """The folder that a data set or a part of one reads, and the indices of its images."""
    if type(dataset) is PhotoFolder:
        if dataset.target_transform is not None:
            raise NotKept("it knows an image's label by its folder, without a target_transform")
        return dataset, list(range(len(dataset)))
    if type(dataset) is not Subset:
        raise NotKept("it knows images by their files, and needs a loader of a PhotoFolder")
    photos, indices = photos_of(dataset.dataset)
    return photos, [indices[index] for index in dataset.indices]


def check_order(loader: DataLoader) -> None:
    """Raise `ValueError` if a loader does not give all images in the order of its data set."""
    in_order = isinstance(loader.sampler, SequentialSampler) and not loader.drop_last
    if not in_order or loader.batch_size is None or loader.collate_fn is not default_collate:
        raise ValueError(
            "cache needs a data loader that gives all images in the order of its data set: "
            "make one without shuffle, drop_last, and a sampler or collate_fn of its own"
        )


def read_rows(path: Path) -> Rows:
    """The features in a file. A damaged file is removed, and a line says so."""
    try:
        content = path.read_bytes()
        os.utime(path)  # it was used now, see `LIMIT`
    except OSError:  # not there, or of another user: its features are computed
        return {}
    if hashlib.sha256(content[32:]).digest() != content[:32]:
        print(f"{path.name} in the feature cache is damaged: its features are computed again")
        with suppress(OSError):
            path.unlink()
        return {}
    stored = torch.load(BytesIO(content[32:]), weights_only=True)
    return dict(zip(stored["images"], stored["features"], strict=True))


def add_rows(path: Path, rows: Rows) -> None:
    """Add features to a file. Several processes may do so at the same time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.parent / ".features.lock", timeout=60):
            remove_unfinished(path)
            rows = read_rows(path) | rows
            packed = BytesIO()
            features = torch.stack(list(rows.values()))
            torch.save({"images": list(rows), "features": features}, packed)
            with atomic_write(path) as unfinished:
                digest = hashlib.sha256(packed.getvalue()).digest()
                unfinished.write_bytes(digest + packed.getvalue())
            remove_oldest(path)
    except OSError as error:
        print(f"the features are not kept: {error}")


def remove_oldest(newest: Path) -> None:
    """Remove the files that were not used for longest, until the folder keeps to `LIMIT`."""
    times = {file: file.stat() for file in newest.parent.glob("*.features")}
    room = LIMIT
    for file in sorted(times, key=lambda file: times[file].st_mtime, reverse=True):
        room -= times[file].st_size
        if room < 0 and file != newest:
            file.unlink()
