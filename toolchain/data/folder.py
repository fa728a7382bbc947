"""A folder of images per class: ``root/<split>/<class>/*``, or ``root/<class>/*`` without splits.

Splits are the folders ``train``, ``validation`` (or ``val``, ``valid``) and ``test``; other folders
beside ``train`` are not read.  Classes are the names of the folders in ``train``, sorted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from deploy.errors import DataError
from toolchain.data.encoded import Encoded, decode
from toolchain.data.fingerprint import of_files
from toolchain.data.samples import Source

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
SPLITS = {
    "train": ("train",),
    "validation": ("validation", "valid", "val"),
    "test": ("test",),
}


def read_folder(
    root: Path,
    *,
    channels: int | None,
    image_size: int | None,
    memory_limit_mb: int,
    on_corrupt: Literal["error", "skip"],
) -> Source:
    """The parts that the folder has; without split folders, everything is ``train``.

    Raises:
        DataError: A folder is missing or empty, a class is unknown, or an image is not usable.
    """
    if not root.is_dir():
        raise DataError(
            f"data.root: {root} is not a folder; accepted: a folder with train/CLASS/* or CLASS/*"
        )
    folders = _split_folders(root)
    classes = tuple(path.name for path in _subfolders(folders["train"]))
    if not classes:
        raise DataError(
            f"data.root: {folders['train']} has no class folders; accepted: a folder per class; "
            "put the images of each class into one"
        )
    listed = {name: _listed(folder, classes) for name, folder in folders.items()}
    splits, shape, skipped = decode(
        {name: _encoded(root, samples) for name, samples in listed.items()},
        channels=channels,
        image_size=image_size,
        memory_limit_mb=memory_limit_mb,
        on_corrupt=on_corrupt,
    )
    mark = of_files(root, (path for samples in listed.values() for path, _ in samples))
    return Source(splits, classes, shape, skipped, mark)


def _split_folders(root: Path) -> dict[str, Path]:
    found = {
        split: root / name
        for split, names in SPLITS.items()
        for name in reversed(names)
        if (root / name).is_dir()
    }
    if not found:
        return {"train": root}
    if len(found) == 1:
        return {"train": next(iter(found.values()))}
    if "train" not in found:
        raise DataError(
            f"data.root: {root} has {' and '.join(sorted(found))} but no train folder; "
            "accepted: train with or without the others; name the training images' folder train"
        )
    return found


def _subfolders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _listed(folder: Path, classes: tuple[str, ...]) -> list[tuple[Path, int]]:
    """Every image with its label, in the order of class and file name."""
    samples = []
    for subfolder in _subfolders(folder):
        if subfolder.name not in classes:
            raise DataError(
                f"data: {subfolder} is no class of the training part; "
                f"accepted: {', '.join(classes[:10])}{', ...' if len(classes) > 10 else ''}; "
                "remove it or add its class to train"
            )
        label = classes.index(subfolder.name)
        samples += [
            (path, label)
            for path in sorted(subfolder.rglob("*"))
            if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
        ]
    if not samples:
        raise DataError(
            f"data: {folder} has no images; accepted: {', '.join(sorted(SUFFIXES))} in a folder "
            "per class; check data.root"
        )
    return samples


def _encoded(root: Path, samples: list[tuple[Path, int]]) -> Encoded:
    return Encoded(
        len(samples),
        lambda index: samples[index][0].read_bytes(),
        lambda index: str(samples[index][0].relative_to(root)),
        torch.tensor([label for _, label in samples], dtype=torch.int64),
    )
