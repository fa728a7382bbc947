"""Training throughput on this machine: QAT and both phases of PQK as ratios to plain training.

    python -m toolchain.training.bench [--depth 20] [--out docs/results/training-throughput.md]

Every mode is the product's own objective in the product's own loop, on random images of CIFAR's size,
with augmentation, clipping and optimizer, without validation and checkpoints. The modes take turns
within a round and a ratio is taken within its round, so that whatever else slows the machine down
slows all of them. Warm-up and compilation are not counted. A round of phase 1 sets the masks twice.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import fx

from benchmarks import environment
from deploy.errors import CompressDeployError, ConfigError, StorageError
from toolchain.data.batches import evaluation_batches
from toolchain.data.samples import Augment, Data, Preprocess, Split
from toolchain.graph import trace
from toolchain.models.registry import build
from toolchain.pqk import ChannelPruner, PruningObjective, TwoNetworks
from toolchain.quantization import kernels
from toolchain.quantization.attach import Quantization, attach_quantizers, calibrate
from toolchain.quantization.attached import attach_teacher_norms
from toolchain.quantization.residual_kernels import fused_adds
from toolchain.structure.groups import find_groups
from toolchain.structure.importance import importance
from toolchain.structure.masks import HeldStill
from toolchain.training.config import Training
from toolchain.training.loop import fit
from toolchain.training.objective import Objective, SupervisedObjective
from toolchain.training.precision import Precision, choose_precision

SHAPE = (3, 32, 32)
EPOCH_STEPS = 32
WARM_UP_STEPS, PACE_STEPS = 3, 5
SPARSITY = 0.5
PLAIN = "plain training"


@dataclass(frozen=True)
class Mode:
    """One way of training, measured.

    Attributes:
        images_per_s: In each round.
        ratios: To plain training in the same round.
    """

    name: str
    images_per_s: tuple[float, ...]
    ratios: tuple[float, ...]


def random_data(batch_size: int) -> Data:
    """Images of noise with labels, enough for one short epoch."""
    generator = torch.Generator().manual_seed(0)
    count = EPOCH_STEPS * batch_size
    pixels_NHWC = torch.randint(
        0, 256, (count, *SHAPE[1:], SHAPE[0]), generator=generator, dtype=torch.uint8
    )
    split = Split.in_memory(pixels_NHWC, torch.arange(count) % 10)
    return Data(
        train=split,
        validation=split.part(torch.arange(batch_size)),
        test=split.part(torch.arange(batch_size)),
        classes=tuple(map(str, range(10))),
        input_shape=SHAPE,
        preprocess=Preprocess((0.5,) * 3, (0.25,) * 3),
        augment=Augment(crop=4, flip=True),
        skipped=(),
        fingerprint=f"noise {count}",
    )


class Bench:
    """The four ways of training one network.

    Attributes:
        modes: By name, the network of each, placed on the device, and what is minimized.
    """

    def __init__(self, depth: int, batch_size: int, precision: Precision) -> None:
        self._depth, self._batch_size, self._precision = depth, batch_size, precision
        self._data = random_data(batch_size)
        self.modes: dict[str, tuple[fx.GraphModule, Objective]] = {}
        for name, prepare in (
            (PLAIN, self._plain),
            ("quantization-aware", self._quantized),
            ("PQK phase 1", self._pruning),
            ("PQK phase 2", self._two_networks),
        ):
            network = self._network()
            self.modes[name] = (network, prepare(network))

    def measure(self, seconds: float, rounds: int) -> list[Mode]:
        """Every mode for ``seconds`` in each round."""
        for name in self.modes:
            self.train(name, WARM_UP_STEPS)
        paces = {name: self.train(name, PACE_STEPS) for name in self.modes}
        steps = {
            name: max(1, round(seconds * pace / self._batch_size)) for name, pace in paces.items()
        }
        speeds: dict[str, list[float]] = {name: [] for name in self.modes}
        for _ in range(rounds):
            for name in self.modes:
                speeds[name].append(self.train(name, steps[name]))
        return [
            Mode(
                name,
                tuple(found),
                tuple(one / plain for one, plain in zip(found, speeds[PLAIN], strict=True)),
            )
            for name, found in speeds.items()
        ]

    def train(self, name: str, steps: int) -> float:
        """Images per second over this many steps."""
        network, objective = self.modes[name]
        config = Training(
            epochs=steps / EPOCH_STEPS,
            batch_size=self._batch_size,
            lr=0.01,
            checkpoint_every_s=1e9,
            log_every_steps=10**9,
        )
        with tempfile.TemporaryDirectory() as scratch, fused_adds(network):
            result = fit(
                network,
                objective,
                self._data,
                config,
                _Nowhere(Path(scratch)),
                seed=0,
                precision=self._precision,
                validate=lambda network: {},
            )
        return result.images_per_s

    def _network(self) -> fx.GraphModule:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return trace(build("cifar_resnet", depth=self._depth))

    def _plain(self, network: fx.GraphModule) -> Objective:
        self._precision.place(network)
        return SupervisedObjective(network)

    def _quantized(self, network: fx.GraphModule) -> Objective:
        self._quantize(network)
        return SupervisedObjective(network, scales=_scales(network))

    def _pruning(self, network: fx.GraphModule) -> Objective:
        pruner = self._pruner(network)
        held = HeldStill(network)
        base = SupervisedObjective(
            network, scales=_scales(network), guard=lambda: held.only("important")
        )
        return PruningObjective(network, base, pruner)

    def _two_networks(self, network: fx.GraphModule) -> Objective:
        self._pruner(network).apply(1.0)
        attach_teacher_norms(network)
        self._precision.place(network)
        return TwoNetworks(network)

    def _quantize(self, network: fx.GraphModule) -> None:
        attach_quantizers(network, Quantization())
        batches = evaluation_batches(self._data.validation, self._data.preprocess)
        calibrate(network, (images_BCHW for images_BCHW, _ in batches))
        self._precision.place(network)

    def _pruner(self, network: fx.GraphModule) -> ChannelPruner:
        """Half of every group's channels may go."""
        groups = [group for group in find_groups(self._network(), SHAPE) if group.reason is None]
        self._quantize(network)
        kept = {group.name: round((1 - SPARSITY) * group.channels) for group in groups}
        return ChannelPruner(
            network, groups, kept, (), lambda group: importance(group, network, "l2")
        )


class _Nowhere:
    """A training context without a display whose checkpoints nobody keeps."""

    progress = None

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def scratch(self, key: str) -> Path:
        return self._folder


def _scales(network: fx.GraphModule) -> list[torch.nn.Parameter]:
    return [p for name, p in network.named_parameters() if "scale" in name.rsplit(".", 1)[-1]]


HEAD = ("", "images/s", "min to max", "ratio to plain", "min to max")


def rows(modes: Sequence[Mode]) -> list[tuple[str, ...]]:
    """Medians and ranges over the rounds, ready to print."""
    return [
        (
            mode.name,
            f"{statistics.median(mode.images_per_s):,.0f}",
            f"{min(mode.images_per_s):,.0f} to {max(mode.images_per_s):,.0f}",
            f"{statistics.median(mode.ratios):.2f}",
            f"{min(mode.ratios):.2f} to {max(mode.ratios):.2f}",
        )
        for mode in modes
    ]


def facts(options: argparse.Namespace, precision: Precision, compiled: bool) -> dict[str, str]:
    """What the numbers depend on."""
    machine = environment.record()
    versions = machine["versions"]
    gpu = torch.cuda.get_device_name() if precision.device_type == "cuda" else None
    return {
        "network": f"CIFAR ResNet-{options.depth}, batch {options.batch}, random images 3 x 32 x 32",
        "precision": str(precision),
        "quantizer kernels": "compiled" if compiled else "eager",
        "rounds": f"{options.rounds}, each {options.seconds:g} s per mode, the modes in turn; medians",
        "hardware": f"{gpu or machine['cpu_model'] or 'unknown CPU'}, {machine['usable_cores']} cores, "
        f"{torch.get_num_threads()} threads",
        "versions": f"python {machine['python']}, torch {versions['torch']}",
        "date": datetime.now(UTC).date().isoformat(),
    }


def markdown(modes: Sequence[Mode], about: dict[str, str], command: str) -> str:
    """The page for ``--out FILE.md``."""
    rule = ("---", *["---:"] * (len(HEAD) - 1))
    table = "\n".join(f"| {' | '.join(line)} |" for line in (HEAD, rule, *rows(modes)))
    lines = [*(f"- {key}: {value}" for key, value in about.items()), f"- written by: `{command}`"]
    return "\n\n".join(["# Training throughput", "\n".join(lines), table]) + "\n"


def write(text: str, out: Path) -> None:
    """Raises StorageError when ``out`` cannot be written."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(
            f"{out}: cannot be written ({error.strerror}); give --out in another folder"
        ) from error


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m toolchain.training.bench", description="Measure training throughput."
    )
    parser.add_argument("--depth", type=int, default=20, help="of the CIFAR ResNet")
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


def _lines(table: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    for line in table:
        cells = [f"{cell:>{width}}" for cell, width in zip(line[1:], widths[1:], strict=True)]
        yield "  ".join([f"{line[0]:<{widths[0]}}", *cells])


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
        bench = Bench(options.depth, options.batch, precision)
        modes = bench.measure(options.seconds, options.rounds)
        print("\n".join(["", *_lines([HEAD, *rows(modes)])]))
        if options.out is not None:
            record = {**about, "modes": [asdict(mode) for mode in modes]}
            given = sys.argv[1:] if argv is None else argv
            command = shlex.join(["python", "-m", "toolchain.training.bench", *given])
            as_json = options.out.suffix == ".json"
            page = json.dumps(record, indent=2) + "\n" if as_json else ""
            write(page or markdown(modes, about, command), options.out)
    except CompressDeployError as error:
        print(f"training_bench: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
