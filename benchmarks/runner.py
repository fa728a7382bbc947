"""The program inside ``runner.pyz``: what a device runs, with Python 3.8, numpy and one runtime.

    check [--json] [--out FILE] [--dir DIR] [--needs needs.json]
    bench BUNDLE --request request.json --out record.json [--progress FILE]
    build BUNDLE --settings settings.json --out FOLDER [--progress FILE]
    version

Progress is lines of JSON (``deploy.devices.outcome``), so that it can be followed from afar.  Exit
status: 0 done, 1 something that the user can fix (one line says what), 143 told to end (SIGTERM),
with a partial record where something was measured.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import shutil
import signal
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import IO, Any, Callable, Iterator, Mapping, Sequence

from benchmarks.records.record import write_record
from deploy.bundle import Bundle
from deploy.devices.lock import only_one
from deploy.errors import CompressDeployError, ConfigError, DeviceError, StorageError
from deploy.whole_file import write_whole

TERMINATED = 128 + signal.SIGTERM
EVERY_S = 0.25  # progress within a stage is told no more often: a board has better things to do

NEEDS = {"provider", "power", "meter", "total"}

Progress = Callable[[str, float], None]
Bench = Callable[[Bundle, Mapping[str, Any], Progress], Mapping[str, Any]]


def main(arguments: Sequence[str] | None = None, bench: Bench | None = None) -> int:
    """Run one verb; the exit status.  ``bench`` replaces the measurement."""
    asked = _parser().parse_args(arguments)
    verbs: Mapping[str, Callable[[Progress], int]] = {
        "check": lambda progress: _check(asked),
        "bench": lambda progress: _bench(asked, progress, bench or _measure),
        "build": lambda progress: _build(asked, progress),
        "version": lambda progress: _version(),
    }
    with _lines(asked.progress) as lines, _terminable():
        try:
            return verbs[asked.verb](lines)
        except CompressDeployError as error:
            lines.failed(error)
            print(f"compress-deploy: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            stopped = DeviceError("told to end before anything was measured; start it again")
            lines.failed(stopped)
            print(f"compress-deploy: {stopped}", file=sys.stderr)
            return TERMINATED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="runner.pyz", description="Checks this device, or measures a bundle on it."
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    parents = argparse.ArgumentParser(add_help=False)
    parents.add_argument("--progress", metavar="FILE", help="lines of JSON; - is standard output")
    check = verbs.add_parser("check", parents=[parents], help="what this device is and has")
    check.add_argument("--json", action="store_true", help="JSON instead of lines to read")
    check.add_argument("--out", type=Path, metavar="FILE", help="write the JSON there")
    check.add_argument("--needs", type=Path, metavar="FILE", help="JSON: provider, power, meter")
    check.add_argument("--dir", type=Path, default=Path(), help="folder whose free space counts")
    bench = verbs.add_parser("bench", parents=[parents], help="measure a bundle")
    bench.add_argument("bundle", type=Path, metavar="BUNDLE")
    bench.add_argument("--request", type=Path, required=True, metavar="FILE")
    bench.add_argument("--out", type=Path, required=True, metavar="FILE")
    build = verbs.add_parser("build", parents=[parents], help="build the engine of a bundle")
    build.add_argument("bundle", type=Path, metavar="BUNDLE")
    build.add_argument("--settings", type=Path, required=True, metavar="FILE")
    build.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    verbs.add_parser("version", parents=[parents], help="versions, as JSON")
    return parser


def _check(asked: argparse.Namespace) -> int:
    from benchmarks.check import check_device
    from benchmarks.check_text import rows

    needs = {} if asked.needs is None else _read(asked.needs)
    unknown = sorted(set(needs) - NEEDS)
    if unknown:
        raise ConfigError(f"check: unknown needs {unknown}; choose from {sorted(NEEDS)}")
    found = check_device(asked.dir.resolve(), **needs)
    text = json.dumps(found, indent=1, ensure_ascii=False)
    if asked.out is not None:
        _write(asked.out, text + "\n")
    elif asked.json:
        print(text)
    else:
        print(*(f"{label:<12}{line}" for label, line in rows(found)), sep="\n")
    return 0 if found["ready"] else 1


def _bench(asked: argparse.Namespace, progress: Progress, bench: Bench) -> int:
    request = _read(asked.request)
    bundle = Bundle.open(asked.bundle)
    with only_one():
        record = bench(bundle, request, progress)
    write_record(record, asked.out)
    return TERMINATED if record["status"] == "partial" else 0


def _measure(bundle: Bundle, request: Mapping[str, Any], progress: Progress) -> Mapping[str, Any]:
    from benchmarks.bench import run_bench
    from benchmarks.records.request import Request

    return run_bench(bundle, Request.from_dict(request), progress=progress)


def _build(asked: argparse.Namespace, progress: Progress) -> int:
    """Build the engine of ``model``: the files to add to the bundle, and ``build.json`` about them."""
    from deploy.engines.bundled import add_engine
    from deploy.engines.settings import BuildSettings

    given = dict(_read(asked.settings))
    model, settings = str(given.pop("model", "tensorrt")), BuildSettings.from_dict(given)
    bundle = Bundle.open(asked.bundle)
    with tempfile.TemporaryDirectory(prefix="compress-deploy-") as scratch:
        copy = Path(scratch) / "bundle"  # the files given may be shared with other runs
        shutil.copytree(str(bundle.folder), str(copy))
        with only_one():  # the builder times kernels
            _, built = add_engine(Bundle.open(copy), model, settings, progress)
        # Both, even if one is what the bundle holds already: a build may give the same bytes again.
        names = [path.relative_to(copy).as_posix() for path in (built.plan, built.side)]
        for name in names:
            (asked.out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.move(str(copy / name), str(asked.out / name))
    about = {key: value for key, value in built.about.items() if key != "layers"}
    said = {"model": model, "files": names, "loaded": built.loaded, "about": about}
    _write(asked.out / "build.json", json.dumps(said, indent=1) + "\n")
    return 0


def _version() -> int:
    versions = {"python": platform.python_version(), "machine": platform.machine()}
    for package in ("compress-deploy", "numpy", "onnxruntime"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    print(json.dumps(versions))
    return 0


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or f"not JSON: {error}"
        raise StorageError(f"{path}: cannot be read ({reason}); give a file of settings") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: is not an object of settings; give one")
    return content


def _write(path: Path, text: str) -> None:
    write_whole(path, text, "it", "free some space or choose another place")


class _Lines:
    """Progress as lines of JSON, flushed one by one."""

    def __init__(self, file: IO[str] | None) -> None:
        self._file, self._stage, self._next_s = file, "", 0.0

    def __call__(self, stage: str, share: float) -> None:
        now_s = time.monotonic()
        if stage != self._stage or now_s >= self._next_s or share >= 1:
            self._stage, self._next_s = stage, now_s + EVERY_S
            self._say({"stage": stage, "share": round(float(share), 4)})

    def failed(self, error: CompressDeployError) -> None:
        self._say({"error": str(error), "kind": type(error).__name__})

    def _say(self, said: Mapping[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(said) + "\n")
            self._file.flush()


@contextlib.contextmanager
def _lines(path: str | None) -> Iterator[_Lines]:
    if path is None or path == "-":
        yield _Lines(sys.stdout if path else None)
        return
    with open(path, "a", encoding="utf-8") as file:  # noqa: PTH123 as it was given
        yield _Lines(file)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM interrupts like the keyboard does: what was measured until then is written."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
