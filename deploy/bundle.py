"""A bundle: the folder that ships.  Model files, samples, and a manifest that vouches for them.

``manifest.json`` names every other file with its size and SHA-256, so a bundle that was cut off,
edited or mixed up is refused before any model is loaded.  Pre-processing is data in the manifest:
a device needs no code of the training side.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Mapping, Sequence

import numpy as np

from deploy.errors import DataError, StorageError, VerificationError
from deploy.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    check_file,
    describe,
    inside_path,
    read_manifest,
    write_manifest,
)
from deploy.sessions.rows import run_rows
from deploy.sessions.session import Session
from deploy.targets import TARGETS
from deploy.whole_file import alone_in

SAMPLES = "samples.npz"
ADDING = ".adding."


@dataclass(frozen=True)
class SampleCheck:
    """A session's answers to a bundle's samples against the recorded ones; truthy on a pass."""

    rows: int
    agreeing: int
    max_abs: float
    required: float

    def __bool__(self) -> bool:
        # A share of a few rows is rounded up to whole rows; a NaN in max_abs never passes.
        spare = math.ceil((1 - self.required) * self.rows - 1e-9)
        return self.rows > 0 and math.isfinite(self.max_abs) and self.rows - self.agreeing <= spare

    def require(self) -> SampleCheck:
        """Itself when it passed.

        Raises:
            VerificationError: It did not.
        """
        if not self:
            raise VerificationError(
                f"samples: {self.agreeing} of {self.rows} decisions are the recorded ones "
                f"(required {self.required:.2%}), max |delta| {self.max_abs:.3g}; this machine "
                "computes something else: check the runtime's version and settings"
            )
        return self


def bundle_folder(folder: Path) -> Path:
    """The bundle in a run's folder, or the folder itself."""
    inside = folder / "bundle"
    return inside if inside.is_dir() and not (folder / MANIFEST).is_file() else folder


@dataclass(frozen=True)
class Bundle:
    """A verified bundle.  Open it with ``Bundle.open``."""

    folder: Path
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, folder: Path) -> Bundle:
        """The bundle in ``folder``, every file checked against the manifest.

        Raises:
            StorageError: There is no manifest, or it or a file does not match; says which.
        """
        manifest = read_manifest(Path(folder))
        for name, expected in manifest["files"].items():
            check_file(Path(folder), name, expected)
        return cls(Path(folder), manifest)

    @property
    def name(self) -> str:
        return str(self.manifest["name"])

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.manifest["classes"])

    @property
    def targets(self) -> tuple[str, ...]:
        return tuple(sorted(self.manifest["targets"]))

    def model_path(self, target: str) -> Path:
        """The model file for ``target``, e.g. ``"ort-cpu"``.

        Raises:
            DataError: The bundle has no model for it.
        """
        if target not in self.manifest["targets"]:
            remedy = f"; compress-deploy export --target {target} adds it" * (target in TARGETS)
            raise DataError(
                f"{self.folder}: no model for target {target!r}; "
                f"this bundle has {', '.join(self.targets)}{remedy}"
            )
        return self.folder / self.manifest["targets"][target]["file"]

    def preprocess(self, images_u8: np.ndarray) -> np.ndarray:
        """Raw uint8 ``[B, C, H, W]`` to what the model takes: float32, (x / 255 - mean) / std.

        Raises:
            DataError: The images have another type or shape.
        """
        shape = tuple(self.manifest["input"]["shape"])
        images = np.asarray(images_u8)
        if images.dtype != np.uint8 or images.shape[1:] != shape:
            raise DataError(
                f"{self.name}: images are {images.dtype} {images.shape}; "
                f"give uint8 (batch, {', '.join(map(str, shape))})"
            )
        recorded = self.manifest["preprocess"]
        mean, std = (
            np.asarray(recorded[key], np.float32).reshape(-1, *[1] * (len(shape) - 1))
            for key in ("mean", "std")
        )
        return np.ascontiguousarray((images.astype(np.float32) / np.float32(255) - mean) / std)

    def samples(self) -> tuple[np.ndarray, np.ndarray]:
        """Raw inputs uint8 ``[N, C, H, W]`` and the recorded outputs float32 ``[N, K]``."""
        with np.load(str(self.folder / self.manifest["samples"]), allow_pickle=False) as stored:
            return stored["inputs"], stored["outputs"]

    def verify_samples(self, session: Session, required: float = 0.99) -> SampleCheck:
        """Run the samples; at least the share ``required`` of the decisions must be as recorded.

        Raises:
            VerificationError: The session's outputs have another shape.
        """
        inputs, wanted_NK = self.samples()
        feeds = {self.manifest["input"]["name"]: self.preprocess(inputs)}
        got_NK = run_rows(session, feeds)[self.manifest["output"]["name"]]
        if got_NK.shape != wanted_NK.shape:
            raise VerificationError(
                f"{self.folder}: the session returned {got_NK.shape} for samples "
                f"recorded as {wanted_NK.shape}; it runs another model"
            )
        same = int((got_NK.argmax(axis=1) == wanted_NK.argmax(axis=1)).sum())
        worst = float(np.abs(got_NK.astype(np.float64) - wanted_NK).max(initial=0))
        return SampleCheck(len(wanted_NK), same, worst, required)


def write_bundle(
    folder: Path,
    *,
    name: str,
    targets: Mapping[str, Path],
    input_name: str,
    input_shape: Sequence[int],
    output_name: str,
    classes: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    sample_inputs: np.ndarray,
    sample_outputs: np.ndarray,
    recipe: Mapping[str, Any],
    seeds: Mapping[str, int],
    versions: Mapping[str, str | None],
    files: Mapping[str, Path] | None = None,
    details: Mapping[str, Any] | None = None,
) -> Bundle:
    """Write a bundle that appears whole or not at all, and open it.

    ``targets`` maps a target to its model file, which is copied as ``<target>.onnx`` (its own
    suffix); ``files`` adds others under their names in the bundle (spec, weights, licences).
    ``input_shape`` lacks the batch.  ``sample_inputs`` are raw uint8, ``sample_outputs`` what the
    model answered to them.  ``details`` is kept in the manifest as it is.

    Raises:
        DataError: The samples do not fit the rest.
        StorageError: The folder holds something already, or cannot be written.
    """
    _check_samples(sample_inputs, sample_outputs, tuple(input_shape), len(classes), mean, std)
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StorageError(f"{folder}: exists and is not empty; give a new folder for the bundle")
    copies = {f"{target}{path.suffix}": path for target, path in targets.items()}
    copies.update(files or {})
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=str(folder.parent), prefix=f".{folder.name}."))
    except OSError as error:
        raise _cannot_write(folder, error) from error
    try:
        for inside, path in copies.items():
            (scratch / inside_path(folder, inside)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(str(path), str(scratch / inside))
        np.savez_compressed(
            str(scratch / SAMPLES),
            inputs=sample_inputs,
            outputs=np.asarray(sample_outputs, np.float32),
        )
        manifest = {
            "format": "compress-deploy bundle",
            "format_version": FORMAT_VERSION,
            "name": name,
            "targets": {
                target: {"file": f"{target}{path.suffix}"} for target, path in targets.items()
            },
            "input": {"name": input_name, "shape": list(input_shape), "dtype": "float32"},
            "output": {"name": output_name, "dtype": "float32"},
            "preprocess": {
                "from": "uint8",
                "steps": "(x / 255 - mean) / std, per channel",
                "mean": list(mean),
                "std": list(std),
            },
            "classes": list(classes),
            "samples": SAMPLES,
            "recipe": dict(recipe),
            "seeds": dict(seeds),
            "versions": dict(versions),
            "details": dict(details or {}),
            "files": {inside: describe(scratch / inside) for inside in sorted([*copies, SAMPLES])},
        }
        write_manifest(scratch / MANIFEST, manifest)
        scratch.chmod(0o755)  # mkdtemp makes it private
        scratch.replace(folder)
    except OSError as error:
        raise _cannot_write(folder, error) from error
    finally:
        shutil.rmtree(str(scratch), ignore_errors=True)
    return Bundle.open(folder)


def add_files(
    bundle: Bundle,
    files: Mapping[str, Path],
    details: Mapping[str, Any] | None = None,
    targets: Mapping[str, str] | None = None,
) -> Bundle:
    """Add files to a bundle that exists, and open it again.

    ``files`` maps names in the bundle to files, which are copied; one that is there already is
    replaced.  ``details`` go into the manifest's, mappings into mappings, anything else in place of
    what was there.  ``targets`` maps targets to names in the bundle.

    At every moment the folder holds a bundle that can be opened: copies lie aside until they are
    whole, a file to be replaced is taken out of the manifest first, and the new manifest comes last.
    Several processes may add at the same time.

    Raises:
        DataError: A file is the bundle's samples, or a target names a file that is not there.
        StorageError: The bundle was changed or damaged, or cannot be written.
    """
    folder = bundle.folder
    for name in files:
        inside_path(folder, name)
        if name == bundle.manifest["samples"]:
            raise DataError(
                f"{folder}: {name} holds the samples that vouch for every model of the bundle; "
                "other files can be added; write a new bundle for other samples"
            )
    try:
        with _alone_in(folder), tempfile.TemporaryDirectory(
            dir=str(folder), prefix=ADDING
        ) as scratch:
            return _add(folder, Path(scratch), files, details or {}, targets or {})
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise _cannot_write(folder, error) from error


def _add(
    folder: Path,
    scratch: Path,
    files: Mapping[str, Path],
    details: Mapping[str, Any],
    targets: Mapping[str, str],
) -> Bundle:
    old = Bundle.open(folder).manifest  # not the caller's: others may have added files since
    copies = {name: scratch / str(place) for place, name in enumerate(files)}
    for name, path in files.items():
        shutil.copyfile(str(path), str(copies[name]))
        copies[name].chmod(0o644)
    added = {name: describe(path) for name, path in copies.items()}
    new = {
        **old,
        "targets": {
            **old["targets"],
            **{target: {"file": name} for target, name in targets.items()},
        },
        "details": _merged(old.get("details", {}), details),
        "files": dict(sorted({**old["files"], **added}.items())),
    }
    unknown = sorted(name for name in targets.values() if name not in new["files"])
    if unknown:
        raise DataError(
            f"{folder}: targets name {unknown}, which this bundle does not hold; "
            "add these files in the same call"
        )
    for name, manifest in (("without", _without(old, added)), ("with", new)):
        write_manifest(scratch / name, manifest)
    if any(old["files"].get(name, entry) != entry for name, entry in added.items()):
        (scratch / "without").replace(folder / MANIFEST)
    for name, path in copies.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        path.replace(folder / name)
    (scratch / "with").replace(folder / MANIFEST)
    return Bundle(folder, new)


def _without(manifest: Mapping[str, Any], gone: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: entry for name, entry in manifest["targets"].items() if entry["file"] not in gone}
    files = {name: entry for name, entry in manifest["files"].items() if name not in gone}
    return {**manifest, "targets": kept, "files": files}


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """``new`` over ``old``, mapping by mapping."""
    both = dict(old)
    for key, value in new.items():
        known = both.get(key)
        nested = isinstance(known, Mapping) and isinstance(value, Mapping)
        both[key] = _merged(known, value) if nested else value  # type: ignore[arg-type]
    return both


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, and sweep away what one that was killed left there."""
    with alone_in(folder):
        for left in folder.glob(f"{ADDING}*"):  # no other is at work now
            shutil.rmtree(str(left))
        yield


def _cannot_write(folder: Path, error: OSError) -> StorageError:
    return StorageError(
        f"{folder}: the bundle cannot be written ({error.strerror}: "
        f"{error.filename or folder}); nothing was left behind, "
        "free some space or choose another folder"
    )


def _check_samples(
    inputs: np.ndarray,
    outputs: np.ndarray,
    shape: tuple[int, ...],
    classes: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> None:
    if inputs.dtype != np.uint8 or inputs.shape[1:] != shape or not len(inputs):
        raise DataError(
            f"bundle samples are {inputs.dtype} {inputs.shape}; "
            f"give at least one raw uint8 input of shape {shape}"
        )
    if outputs.shape != (len(inputs), classes) or not np.isfinite(outputs).all():
        raise DataError(
            f"bundle sample outputs have shape {outputs.shape} for {len(inputs)} samples "
            f"and {classes} classes, or are not finite; give one row of logits each"
        )
    if not len(mean) == len(std) or len(mean) not in (1, shape[0]) or not all(s > 0 for s in std):
        raise DataError(
            f"bundle pre-processing has mean {list(mean)} and std {list(std)} for "
            f"{shape[0]} channels; give one of each per channel, std above 0"
        )
