"""A bundle: the folder that ships.  Model files, samples, and a manifest that vouches for them.

``manifest.json`` names every other file with its size and SHA-256, so a bundle that was cut off,
edited or mixed up is refused before any model is loaded.  Pre-processing is data in the manifest:
a device needs no code of the training side.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Mapping, Sequence

import numpy as np

from deploy.errors import DataError, StorageError, VerificationError
from deploy.sessions.session import Session

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
SAMPLES = "samples.npz"


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
        manifest = _read_manifest(Path(folder))
        for name, expected in manifest["files"].items():
            _check_file(Path(folder), name, expected)
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
            raise DataError(
                f"{self.folder}: no model for target {target!r}; "
                f"this bundle has {list(self.targets)}"
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
        got_NK = session.run(feeds)[self.manifest["output"]["name"]]
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
            (scratch / _inside(folder, inside)).parent.mkdir(parents=True, exist_ok=True)
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
            "files": {inside: _describe(scratch / inside) for inside in sorted([*copies, SAMPLES])},
        }
        (scratch / MANIFEST).write_text(
            json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        scratch.chmod(0o755)  # mkdtemp makes it private
        scratch.replace(folder)
    except OSError as error:
        raise _cannot_write(folder, error) from error
    finally:
        shutil.rmtree(str(scratch), ignore_errors=True)
    return Bundle.open(folder)


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


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StorageError(
            f"{folder}: not a bundle, it has no {MANIFEST}; give the folder that a run wrote"
        ) from None
    except (OSError, ValueError) as error:
        raise StorageError(f"{path}: cannot be read ({error}); copy the bundle again") from error
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if version != FORMAT_VERSION:
        raise StorageError(
            f"{path}: format version is {version!r}; this program reads "
            f"{FORMAT_VERSION}; use the version that wrote the bundle"
        )
    lacking = [
        key
        for key in (
            "name",
            "targets",
            "input",
            "output",
            "preprocess",
            "classes",
            "samples",
            "files",
        )
        if key not in manifest
    ]
    if lacking:
        raise StorageError(f"{path}: lacks {lacking}; copy the bundle again")
    unvouched = sorted(
        {*(entry["file"] for entry in manifest["targets"].values()), manifest["samples"]}
        - set(manifest["files"])
    )
    if unvouched:
        raise StorageError(f"{path}: names {unvouched} without a hash; copy the bundle again")
    return manifest


def _check_file(folder: Path, name: str, expected: Mapping[str, Any]) -> None:
    path = folder / _inside(folder, name)
    if not path.is_file():
        raise StorageError(f"{folder}: {name} is missing; copy the bundle again")
    size_bytes = path.stat().st_size
    if size_bytes != expected.get("size_bytes"):
        raise StorageError(
            f"{folder}: {name} has {size_bytes} bytes and the manifest says "
            f"{expected.get('size_bytes')}; copy the bundle again"
        )
    if _sha256(path) != expected.get("sha256"):
        raise StorageError(
            f"{folder}: {name} was changed (its SHA-256 is not the manifest's); "
            "copy the bundle again"
        )


def _inside(folder: Path, name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or name == MANIFEST:
        raise StorageError(
            f"{folder}: file name {name!r} leaves the bundle or is its manifest; "
            "a bundle's files lie inside it"
        )
    return path


def _describe(path: Path) -> dict[str, Any]:
    return {"sha256": _sha256(path), "size_bytes": path.stat().st_size}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
