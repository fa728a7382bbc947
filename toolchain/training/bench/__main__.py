"""What training costs on this machine, as ratios within one run.

    python -m toolchain.training.bench [--depth 20] [--out docs/results/training-throughput.md]

Every way is the product's own objective in the product's own loop, on random images of CIFAR's size,
with augmentation, clipping and optimizer, without validation and checkpoints. The ways take turns
within a round and a ratio is taken within its round, so that whatever else slows the machine down
slows all of them. Warm-up and compilation are not counted. A round of phase 1 sets the masks twice,
and a round with the dean has as many probes as its steps have in a long run.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks import environment
from deploy.errors import CompressDeployError, ConfigError, StorageError
from toolchain.quantization import kernels
from toolchain.training.bench.measuring import Bench
from toolchain.training.bench.table import markdown, printed, tables
from toolchain.training.bench.ways import GROUPS, Ways, random_data
from toolchain.training.precision import Precision, choose_precision

MODULE = "toolchain.training.bench"


def facts(options: argparse.Namespace, precision: Precision, compiled: bool) -> dict[str, str]:
    """What the numbers depend on."""
    machine = environment.record()
    versions = machine["versions"]
    gpu = torch.cuda.get_device_name() if precision.device_type == "cuda" else None
    network = f"CIFAR ResNet-{options.depth}, batch {options.batch}, random images 3 x 32 x 32"
    taught = "" if options.only == "compression" else f", taught by ResNet-{options.teacher}"
    return {
        "network": network + taught,
        "precision": str(precision),
        "quantizer kernels": "compiled" if compiled else "eager",
        "rounds": f"{options.rounds}, each {options.seconds:g} s per mode, the modes in turn; medians",
        "hardware": f"{gpu or machine['cpu_model'] or 'unknown CPU'}, {machine['usable_cores']} cores, "
        f"{torch.get_num_threads()} threads",
        "versions": f"python {machine['python']}, torch {versions['torch']}",
        "date": datetime.now(UTC).date().isoformat(),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write; returns the exit status."""
    options = _arguments(argv)
    try:
        if options.out is not None and options.out.suffix not in (".md", ".json"):
            raise ConfigError(f"--out {options.out}: accepted is a file that ends in .md or .json")
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        precision = choose_precision(options.precision)
        compiled = kernels.use_compiled(precision.name == "bf16")
        about = facts(options, precision, compiled)
        print("\n".join(f"{key}: {value}" for key, value in about.items()), flush=True)
        data = random_data(options.batch)
        ways = Ways(options.depth, options.teacher, data, precision).made(options.only)
        modes = Bench(ways, data, options.batch, precision).measure(options.seconds, options.rounds)
        for table in tables(modes):
            print("\n".join(["", *printed(table)]))
        if options.out is not None:
            record = {**about, "modes": [asdict(mode) for mode in modes]}
            given = sys.argv[1:] if argv is None else argv
            command = shlex.join(["python", "-m", MODULE, *given])
            as_json = options.out.suffix == ".json"
            page = json.dumps(record, indent=2) + "\n" if as_json else ""
            _write(page or markdown(modes, about, command), options.out)
    except CompressDeployError as error:
        print(f"training bench: {error}", file=sys.stderr)
        return 1
    return 0


def _write(text: str, out: Path) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(
            f"{out}: cannot be written ({error.strerror}); give --out in another folder"
        ) from error


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"python -m {MODULE}", description="Measure training throughput."
    )
    parser.add_argument("--depth", type=int, default=20, help="of the CIFAR ResNet")
    parser.add_argument("--teacher", type=int, default=56, help="depth of the one that teaches")
    parser.add_argument("--only", choices=GROUPS, default="all", help="beside plain training")
    parser.add_argument("--batch", type=_above_zero(int), default=128)
    parser.add_argument("--seconds", type=_above_zero(float), default=6.0, help="per mode, round")
    parser.add_argument("--rounds", type=_above_zero(int), default=5)
    parser.add_argument("--precision", choices=["auto", "float32", "bf16"], default="auto")
    parser.add_argument("--threads", type=_above_zero(int), help="CPU threads; default: all")
    parser.add_argument("--out", type=Path, help="write a .md or .json file too")
    return parser.parse_args(argv)


def _above_zero(kind: type[int] | type[float]) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"{text} given; accepted is a number above 0")
        return value

    return number


if __name__ == "__main__":
    sys.exit(main())
