"""From the recipe's data section to samples: the one place that knows every kind of data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.errors import DataError
from toolchain.data.digits import read_digits
from toolchain.data.folder import read_folder
from toolchain.data.npz import read_npz
from toolchain.data.parquet import read_parquet
from toolchain.data.partition import three_parts
from toolchain.data.samples import Augment, Data, Preprocess, Source, check_labels

if TYPE_CHECKING:
    from toolchain.recipe.schema import DataConfig


def load_data(config: DataConfig) -> Data:
    """Read, decode, check and split; missing parts are cut from train with ``split_seed``.

    Raises:
        DataError: Something is missing, empty, corrupt, or does not fit together.
        MissingDependency: The kind of data needs a package that is not installed.
    """
    source = _read(config)
    for name, split in source.parts.items():
        check_labels(f"data: the {name} part", split.labels_N, len(source.classes))
    train, validation, test = three_parts(source.parts, config.validation, config.split_seed)
    channels, height, width = source.input_shape
    crop = config.augment.crop
    if crop >= min(height, width):
        raise DataError(
            f"data.augment.crop: {crop} given for images of {height} x {width}; "
            f"accepted: 0 to {min(height, width) - 1}"
        )
    return Data(
        train,
        validation,
        test,
        source.classes,
        source.input_shape,
        Preprocess(
            _per_channel("mean", config.preprocess.mean, channels),
            _per_channel("std", config.preprocess.std, channels),
        ),
        Augment(crop, config.augment.flip),
        source.skipped,
        source.fingerprint,
    )


def _read(config: Any) -> Source:
    if config.kind == "digits":
        return read_digits()
    if config.root is None:
        raise DataError(
            f"data.root: not given; accepted for {config.kind}: where the data lies; "
            "add --set data.root=PATH"
        )
    root = Path(config.root)
    if config.kind == "npz":
        return read_npz(root, config.memory_limit_mb)
    read = {"parquet": read_parquet, "folder": read_folder}[config.kind]
    # Three means ask for colour; one number stands for any count, so the images decide.
    channels = 3 if len(config.preprocess.mean) == 3 else None
    return read(
        root,
        channels=channels,
        image_size=config.image_size,
        memory_limit_mb=config.memory_limit_mb,
        on_corrupt=config.on_corrupt,
    )


def _per_channel(name: str, values: list[float], channels: int) -> tuple[float, ...]:
    if len(values) not in (1, channels):
        raise DataError(
            f"data.preprocess.{name}: {len(values)} numbers for images of {channels} channels; "
            f"accepted: one, or {channels}"
        )
    return tuple(map(float, values)) * (channels if len(values) == 1 else 1)
