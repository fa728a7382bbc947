"""What a run is: each stage turns one artifact into the next, and the folder remembers.

A stage *is* its configuration, and an artifact is an immutable folder named by the hash of all that
its bytes depend on. Running again therefore resumes: what is finished is found, not repeated. An
artifact is written to a scratch folder and renamed when it is whole.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import math
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from deploy.errors import CompressDeployError, ConfigError, StorageError
from toolchain.runs.lock import SCRATCH, KeyLock, remove_dead_scratch

if TYPE_CHECKING:
    from toolchain.recipe.schema import Recipe
    from toolchain.training.progress import Progress

_RECORD = "artifact.json"
# How safetensors, torch and numpy report a write that the disk did not take, in this order.
_SHORT_WRITE = re.compile(
    r"no space left on device|inline_container.*(unexpected pos|file write failed)"
    r"|^\d+ requested and \d+ written",
    re.IGNORECASE | re.DOTALL,
)
_VERSIONED = ("compress-deploy", "torch", "torch-pruning", "onnx", "onnxruntime", "numpy")


@dataclass(frozen=True)
class Artifact:
    """One finished folder: ``artifact.json`` plus the files its stage wrote.

    Attributes:
        root: The folder. Never modified once it exists.
        key: Content key of the stage and everything it depends on (hex).
        stage: Name of the stage that made it.
        metrics: Numbers worth comparing between artifacts, unit in the name: ``latency_ms``.
        source: The artifact it was made from; None for the empty one that a chain starts with.
    """

    root: Path
    key: str
    stage: str
    metrics: dict[str, float]
    source: Artifact | None = None

    def lineage(self) -> Iterator[Artifact]:
        """This artifact, the one it was made from, and so on, back to the first stage."""
        artifact: Artifact | None = self
        while artifact is not None and artifact.source is not None:
            yield artifact
            artifact = artifact.source

    def find(self, stage: str) -> Artifact:
        """The nearest artifact of ``stage`` in the lineage; KeyError when there is none."""
        for artifact in self.lineage():
            if artifact.stage == stage:
                return artifact
        raise KeyError(stage)


class Stage(Protocol):
    """A step of the chain: a frozen pydantic model of JSON values with one method.

    A stage may define ``fingerprint(ctx) -> str`` for what its bytes depend on besides the recipe,
    e.g. the hash of a checkpoint file, and ``explain(error, position) -> ConfigError`` that says where in
    the recipe an error lies. Its folder name is the field ``stage``.

    Attributes:
        uses: Sections of the recipe that it reads.
        version: Counted up when its code makes different bytes from the same configuration.
    """

    uses: ClassVar[tuple[str, ...]]
    version: ClassVar[int]

    @property
    def stage(self) -> str: ...

    def model_dump(self, *, mode: str) -> dict[str, Any]: ...

    def run(self, source: Artifact, out: Path, ctx: RunContext) -> dict[str, float]:
        """Read ``source``, write files into the empty folder ``out``, return metrics."""
        ...


def _say_on_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class RunContext:
    """Where a run keeps its artifacts, and the few things that every stage may need.

    Attributes:
        recipe: The whole recipe; a stage reads only the sections that it names in ``uses``.
        out: The run's folder; artifacts are in ``out/artifacts``.
        progress: Where training shows how far it is.
        say: Prints one line for people.
        partial: Folder of the running stage for files that outlive a kill.
        patient: Whether to wait where another process is making the same artifact.
    """

    recipe: Recipe
    out: Path
    progress: Progress | None = None
    say: Callable[[str], None] = _say_on_stderr
    partial: Path | None = None
    patient: bool = False

    @property
    def seed(self) -> int:
        """Seeds every generator a stage creates; part of each artifact's key."""
        return self.recipe.seed

    def scratch(self, key: str = "checkpoint") -> Path:
        """A folder that survives a kill of this stage and is deleted when its artifact is whole."""
        if self.partial is None:
            raise RuntimeError("scratch folders exist only while a stage runs")
        folder = self.partial / key
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def apply(self, stage: Stage, source: Artifact) -> Artifact:
        """Run ``stage`` unless the artifact that it would make is already on disk.

        Raises:
            StorageError: the disk is full, the folder cannot be written, an artifact in it is
                damaged, or another process is making the same one.
        """
        record = _record(stage, source, self)
        key = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
        folder = self.out / "artifacts"
        name = f"{stage.stage}-{key[:16]}"
        try:
            _make_writable(folder)
            remove_dead_scratch(folder)
            with KeyLock(folder, name, waits=self.say if self.patient else None):
                if (folder / name).exists():
                    self.say(f"{stage.stage}: found {folder / name}")
                else:
                    self._make(stage, source, record, folder, name)
        except CompressDeployError:
            raise
        except Exception as error:
            if not is_disk_full(error):
                raise
            raise StorageError(
                f"{folder}: the disk is full ({stage.stage}); free some space and run the same "
                "command again, or give an --out on another disk"
            ) from error
        return Artifact(folder / name, key, stage.stage, _metrics_of(folder / name), source)

    def _make(
        self, stage: Stage, source: Artifact, record: dict[str, Any], folder: Path, name: str
    ) -> None:
        scratch, partial = folder / f"{SCRATCH}{name}", folder / f".partial-{name}"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        started = time.monotonic()
        try:
            metrics = stage.run(source, scratch, dataclasses.replace(self, partial=partial))
            facts = {
                **record,
                "metrics": _finite(metrics, stage.stage),
                "seconds": round(time.monotonic() - started, 3),
                "versions": installed_versions(),
            }
            (scratch / _RECORD).write_text(json.dumps(facts, indent=2) + "\n")
            scratch.rename(folder / name)
        finally:  # also on Ctrl-C; what a kill leaves is swept away by the next run
            shutil.rmtree(scratch, ignore_errors=True)
        shutil.rmtree(partial, ignore_errors=True)


def run_stages(
    recipe: Recipe,
    out: Path,
    *,
    progress: Progress | None = None,
    patient: bool = False,
) -> Artifact:
    """Apply the recipe's stages in order, each to what the one before it made.

    Returns the last artifact; ``lineage`` and ``find`` lead back to the others. ``patient`` runs share a
    folder: one waits where another is making what both need.
    """
    say = progress.say if progress else _say_on_stderr
    ctx = RunContext(recipe, out, progress, say, patient=patient)
    artifact = Artifact(out, "", "", {})
    for number, stage in enumerate(recipe.stages, 1):
        heading = progress.stage(stage.stage, number, len(recipe.stages)) if progress else None
        with heading or nullcontext():
            try:
                artifact = ctx.apply(stage, artifact)
            except ConfigError as error:
                explain = getattr(stage, "explain", None)
                explained = error if explain is None else explain(error, number - 1)
                if explained is error:
                    raise
                raise explained from error
    return artifact


def is_disk_full(error: BaseException | None) -> bool:
    """Whether ``error``, or what it was raised from, says that no space is left.

    Libraries that write from native code report it in words only, so words are looked at too.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if _SHORT_WRITE.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _make_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = None if os.access(folder, os.W_OK | os.X_OK) else "no permission"
    except OSError as error:  # also a file system that is mounted read-only
        if is_disk_full(error):
            raise
        reason = error.strerror
    if reason is not None:
        raise StorageError(f"{folder}: cannot be written ({reason}); give another --out")


def _record(stage: Stage, source: Artifact, ctx: RunContext) -> dict[str, Any]:
    """Everything that the bytes of the artifact depend on, as JSON."""
    recipe = ctx.recipe.model_dump(mode="json", include=set(stage.uses))
    unknown = set(stage.uses) - set(recipe)
    if unknown:
        raise RuntimeError(f"stage {stage.stage} uses {sorted(unknown)}, which no recipe has")
    fingerprint = getattr(stage, "fingerprint", None)
    return {
        "stage": stage.stage,
        "version": stage.version,
        "config": stage.model_dump(mode="json"),
        "seed": ctx.seed,
        "source": source.key,
        "recipe": recipe,
        "fingerprint": fingerprint(ctx) if fingerprint is not None else "",
    }


def _finite(metrics: dict[str, float], stage: str) -> dict[str, float]:
    """NaN in a table of results is a bug of the stage, not a result."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise RuntimeError(f"stage {stage} returned {name} = {value}")
    return {name: float(value) for name, value in metrics.items()}


def _metrics_of(folder: Path) -> dict[str, float]:
    try:
        metrics: dict[str, float] = json.loads((folder / _RECORD).read_text())["metrics"]
    except (OSError, ValueError, KeyError) as error:
        raise StorageError(
            f"{folder}: {_RECORD} cannot be read ({error}); delete the folder and run again"
        ) from error
    return metrics


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the packages that the bytes of an artifact may depend on."""
    versions = {"python": platform.python_version()}
    for name in _VERSIONED:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # the toolchain itself, run from a source tree
            versions[name] = "not installed"
    return versions
