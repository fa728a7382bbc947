"""Graphs for more targets out of a run that is finished: the student in its bundle, lowered again."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, fx

from deploy.bundle import Bundle, add_files
from deploy.errors import CheckpointError, ConfigError, StorageError
from deploy.manifest import MANIFEST
from deploy.targets import Target
from toolchain import checkpoint
from toolchain.quantization.settled.biases import settle_biases
from toolchain.shipping.exporting import (
    BUNDLE,
    STUDENT,
    Samples,
    TargetGraph,
    prove_graph,
    write_graph,
)


def export_again(
    run: Path,
    targets: Sequence[Target],
    *,
    out: Path | None = None,
    keep_float: Sequence[str] = (),
) -> list[TargetGraph]:
    """Write one graph per target into the run's bundle, or into the folder ``out``.

    ``run`` is a run's folder or a bundle. Each file is compared with the student on the bundle's
    samples; layers that ``keep_float`` names are float in both. With ``keep_float`` an ``out`` is
    needed where the bundle has a graph for the target: reports describe that one.

    Raises:
        StorageError: There is no bundle, or a file cannot be written.
        CheckpointError: The bundle has no student that can be built again.
        ConfigError: A name in ``keep_float`` matches no layer, or ``out`` is a bundle.
        VerificationError: A file disagrees with the student.
    """
    bundle = Bundle.open(_bundle_folder(run))
    if not (bundle.folder / STUDENT / "spec.json").is_file():
        raise CheckpointError(
            f"{bundle.folder}: has no {STUDENT}/spec.json to build the student from, as after an ONNX "
            "teacher; accepted is a bundle with a student; name the targets in the recipe "
            "(target: [ort-cpu, tensorrt]) and run it again"
        )
    if out is not None and (out / MANIFEST).is_file():
        raise ConfigError(
            f"--out: {out} is a bundle, and a file that its manifest does not know breaks it; accepted "
            "is another folder; without --out, files go into the run's own bundle"
        )
    taken = sorted(set(targets) & set(bundle.targets))
    if keep_float and out is None and taken:
        raise ConfigError(
            f"--keep-float: {bundle.folder} holds a graph for {', '.join(taken)} already, which its "
            "report describes; accepted is another folder for this one: give --out"
        )
    network, spec = checkpoint.load(bundle.folder / STUDENT, keep_float)
    # Biases of old bundles; multipliers as well would make the file another student than the one stored.
    settle_biases(network)
    images = torch.from_numpy(bundle.preprocess(bundle.samples()[0]))
    example = images[:2] if len(images) > 1 else images.repeat(2, 1, 1, 1)
    samples = _samples(images, network)
    facts = {"producer": "compress-deploy", "recipe": bundle.name}
    if keep_float:
        facts["keep_float"] = ", ".join(keep_float)
    with tempfile.TemporaryDirectory() as scratch:
        work, proofs = Path(scratch), []
        for target in targets:
            path = write_graph(network, target, example, work / f"{target}.onnx", facts)
            proofs.append(prove_graph(network, spec, target, path, samples))
        kept = {"keep_float": list(keep_float)} if keep_float else {}
        details = {proof.target: {**proof.to_dict(), **kept} for proof in proofs}
        files = {proof.path.name: proof.path for proof in proofs}
        if out is None:
            named: dict[str, str] = {proof.target: proof.path.name for proof in proofs}
            before = bundle.manifest["files"]
            after = add_files(bundle, files, {"targets": details}, named).manifest["files"]
            changed = [name for name in files if before.get(name, after[name]) != after[name]]
            proofs = [_noting(proof) if proof.path.name in changed else proof for proof in proofs]
        else:
            _place(files.values(), out)
    where = out or bundle.folder
    return [replace(proof, path=where / proof.path.name) for proof in proofs]


def _noting(proof: TargetGraph) -> TargetGraph:
    note = (
        f"{proof.target}: {proof.path.name} in the bundle was another file and is replaced; reports "
        "and records made before are about the old one"
    )
    return replace(proof, notes=(*proof.notes, note))


def _bundle_folder(run: Path) -> Path:
    for folder in (run, run / BUNDLE):
        if (folder / MANIFEST).is_file():
            return folder
    raise StorageError(
        f"{run}: holds no bundle; accepted is a folder that compress-deploy run wrote, or the "
        "bundle in it"
    )


def _samples(images: Tensor, student: fx.GraphModule) -> Samples:
    """The bundle's samples, with the student's decisions as labels: a bundle has no others."""

    def predict(network: fx.GraphModule) -> np.ndarray:
        with torch.no_grad():
            logits_NK: np.ndarray = network(images).numpy()
        return logits_NK

    labels_N = predict(student).argmax(1)
    return Samples(lambda: [(images.numpy(), labels_N)], predict)


def _place(files: Iterable[Path], out: Path) -> None:
    """Copy the files into ``out``, each whole or not at all."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for path in files:
            handle, name = tempfile.mkstemp(dir=out, prefix=f".{path.name}.")
            os.close(handle)
            try:
                shutil.copyfile(path, name)
                Path(name).chmod(0o644)  # mkstemp makes it private
                Path(name).replace(out / path.name)
            finally:
                Path(name).unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(
            f"{out}: cannot be written ({error.strerror}); give another --out"
        ) from error
