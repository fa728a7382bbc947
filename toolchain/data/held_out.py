"""Samples that a bundle is proved on: its own, a recipe's test part, or arrays in an .npz file."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deploy.bundle import Bundle
from deploy.errors import DataError
from exporters.proof.ladder import Samples

RECIPES = (".yaml", ".yml")


def samples_for(bundle: Bundle, data: Path | None, overrides: Sequence[str] = ()) -> Samples:
    """Samples for every rung, pre-processed as the bundle says; ``overrides`` are of a recipe.

    Raises:
        ConfigError: A recipe is wrong.
        DataError: The data is of no accepted kind, or does not fit the bundle.
    """
    if data is None:
        images_u8, _ = bundle.samples()
        return Samples.of(bundle.preprocess(images_u8), None, "the bundle's samples")
    if data.suffix.lower() in RECIPES:
        return _of_recipe(bundle, data, overrides)
    if data.suffix.lower() == ".npz":
        return _of_arrays(bundle, data)
    raise DataError(
        f"--data: {data} is neither a recipe ({', '.join(RECIPES)}) nor an .npz file; give one of them"
    )


def _of_recipe(bundle: Bundle, path: Path, overrides: Sequence[str]) -> Samples:
    from toolchain.recipe.reading import load_recipe

    config = load_recipe(path, overrides, need_files=False).data

    from toolchain.data.loading import load_data

    data = load_data(config)
    shape = tuple(bundle.manifest["input"]["shape"])
    if tuple(data.input_shape) != shape:
        raise DataError(
            f"--data: images of {path} are {tuple(data.input_shape)} and {bundle.name} takes {shape}; "
            "give the data of this bundle, or set data.image_size"
        )
    if tuple(data.classes) != bundle.classes:
        raise DataError(
            f"--data: {path} has {len(data.classes)} classes ({_some(data.classes)}) and "
            f"{bundle.name} has {len(bundle.classes)} ({_some(bundle.classes)}); "
            "give the data of this bundle"
        )
    if not len(data.test):
        raise DataError(f"--data: {path} has no test part; give data with one")

    def batches(size: int, rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        import torch

        index_N = torch.arange(min(rows, len(data.test)))
        for index_B in index_N.split(size):
            images_u8 = data.test.images(index_B).contiguous().numpy()
            yield bundle.preprocess(images_u8), data.test.labels_N[index_B].numpy()

    return Samples(len(data.test), batches, True, f"the test part of {path.name}")


def _some(classes: tuple[str, ...]) -> str:
    return ", ".join(classes[:3]) + (", ..." if len(classes) > 3 else "")


def _of_arrays(bundle: Bundle, path: Path) -> Samples:
    arrays = _read(path)
    if "inputs" not in arrays and {"x_test", "y_test"} <= set(arrays):
        arrays = _test_part(path)
    lacking = [name for name in ("inputs", "labels") if name not in arrays]
    if lacking:
        raise DataError(
            f"--data: {path} has the arrays {', '.join(sorted(arrays))} and lacks {', '.join(lacking)}; "
            "accepted are inputs [N, C, H, W], raw uint8 or pre-processed float32, and labels [N], or "
            "x_test and y_test as a recipe takes them"
        )
    inputs, labels = arrays["inputs"], arrays["labels"]
    shape = tuple(bundle.manifest["input"]["shape"])
    if inputs.dtype not in (np.uint8, np.float32) or inputs.shape[1:] != shape or not len(inputs):
        raise DataError(
            f"--data: inputs of {path} are {inputs.dtype} {inputs.shape}; {bundle.name} takes uint8 "
            f"or float32 (N, {', '.join(map(str, shape))}), at least one"
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != (len(inputs),):
        raise DataError(
            f"--data: labels of {path} are {labels.dtype} {labels.shape}; "
            f"accepted are {len(inputs)} integers, one for each input"
        )
    classes = len(bundle.classes)
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(
            f"--data: labels of {path} go from {labels.min()} to {labels.max()}; "
            f"{bundle.name} has {classes} classes, accepted are 0 to {classes - 1}"
        )
    if inputs.dtype == np.float32 and not np.isfinite(inputs).all():
        raise DataError(f"--data: inputs of {path} hold NaN or infinity; give finite ones")
    ready = bundle.preprocess(inputs) if inputs.dtype == np.uint8 else inputs
    return Samples.of(ready, labels.astype(np.int64), path.name)


def _test_part(path: Path) -> dict[str, Any]:
    """The test part of a file that recipes read too, in any order of axes that they accept."""
    import torch

    from toolchain.data.npz import read_npz
    from toolchain.recipe.schema import NpzData

    limit_mb = NpzData(kind="npz").memory_limit_mb
    test = read_npz(path, limit_mb).parts["test"]
    images_NCHW = test.images(torch.arange(len(test)))
    return {"inputs": images_NCHW.contiguous().numpy(), "labels": test.labels_N.numpy()}


def _read(path: Path) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"--data: {path} cannot be read ({' '.join(str(error).split())}); "
            "accepted is an .npz file of plain arrays; write it with numpy.savez"
        ) from error
