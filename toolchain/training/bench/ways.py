"""The ways of training that are compared: what each network is, and what it minimizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx

from toolchain.data.batches import evaluation_batches
from toolchain.data.samples import Augment, Data, Preprocess, Split
from toolchain.graph import trace
from toolchain.models.registry import build
from toolchain.pqk import ChannelPruner, PruningObjective, TwoNetworks
from toolchain.quantization.attach import Quantization, attach_quantizers, calibrate
from toolchain.quantization.attached import attach_teacher_norms
from toolchain.structure.groups import find_groups
from toolchain.structure.importance import importance
from toolchain.structure.masks import HeldStill
from toolchain.training.bench.taught import taught
from toolchain.training.objective import Objective, SupervisedObjective
from toolchain.training.optimizers import quantizer_scales
from toolchain.training.precision import Precision

SHAPE = (3, 32, 32)
SPARSITY = 0.5
# Of batches; a dean looks at 128 samples, so there are at least twice as many.
EPOCH_STEPS, LEAST_SAMPLES = 32, 256

PLAIN, KD = "plain training", "distillation (KL)"
FIXED, DEAN, SAKD = (
    "KL and AT, fixed strengths",
    "KL and AT under a dean",
    "KL and AT, spot-adaptive",
)
GROUPS = ("all", "compression", "distillation")


@dataclass(frozen=True)
class Way:
    """One way of training.

    Attributes:
        network: Placed on the device.
        objective: What is minimized.
        every: Steps after which what happens now and then has happened once.
        against: The way that a step is compared with.
        at_most: The largest ratio of their steps' times that is asked for, if one is.
        taught: Whether it follows a teacher.
    """

    network: fx.GraphModule
    objective: Objective
    every: int = 1
    against: str = PLAIN
    at_most: float | None = None
    taught: bool = False


def random_data(batch_size: int) -> Data:
    """Images of noise with labels, enough for one short epoch."""
    generator = torch.Generator().manual_seed(0)
    count = max(EPOCH_STEPS * batch_size, LEAST_SAMPLES)
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


class Ways:
    """Makes each way on a network of its own, all with the same weights at the start.

    Args:
        depth: Of the CIFAR ResNet that is trained.
        teacher_depth: Of the one that teaches.
        data: Noise.
        precision: Where and in what format.
    """

    def __init__(self, depth: int, teacher_depth: int, data: Data, precision: Precision) -> None:
        self._depth, self._teacher_depth = depth, teacher_depth
        self._data, self._precision = data, precision

    def made(self, group: str) -> dict[str, Way]:
        """Those of a group by name, plain training first; what others are compared with comes before."""
        compression: dict[str, Callable[[fx.GraphModule], Objective]] = {
            "quantization-aware": self._quantized,
            "PQK phase 1": self._pruning,
            "PQK phase 2": self._two_networks,
        }
        ways = {PLAIN: self._way(self._plain)}
        if group in ("all", "compression"):
            ways |= {name: self._way(prepare) for name, prepare in compression.items()}
        if group in ("all", "distillation"):
            ways |= self._distilled()
        return ways

    def _way(self, prepare: Callable[[fx.GraphModule], Objective]) -> Way:
        network = self._network(self._depth)
        return Way(network, prepare(network))

    def _network(self, depth: int) -> fx.GraphModule:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return trace(build("cifar_resnet", depth=depth))

    def _distilled(self) -> dict[str, Way]:
        """A teacher's terms, and what it costs to decide on their strengths or on their spots."""
        teacher = self._network(self._teacher_depth)

        def way(
            controller: str, losses: tuple[str, ...], against: str, at_most: float | None
        ) -> Way:
            network = self._network(self._depth)
            objective, every = taught(
                network, teacher, losses, controller, self._data, self._precision
            )
            return Way(network, objective, every, against, at_most, taught=True)

        return {
            KD: way("fixed", ("kl",), PLAIN, None),
            FIXED: way("fixed", ("kl", "at"), KD, None),
            DEAN: way("dean", ("kl", "at"), FIXED, 1.15),
            SAKD: way("spot-adaptive", ("kl", "at"), KD, 2.2),
        }

    def _plain(self, network: fx.GraphModule) -> Objective:
        self._precision.place(network)
        return SupervisedObjective(network)

    def _quantized(self, network: fx.GraphModule) -> Objective:
        self._quantize(network)
        return SupervisedObjective(network, scales=quantizer_scales(network))

    def _pruning(self, network: fx.GraphModule) -> Objective:
        pruner = self._pruner(network)
        held = HeldStill(network)
        base = SupervisedObjective(
            network, scales=quantizer_scales(network), guard=lambda: held.only("important")
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
        whole = self._network(self._depth)
        groups = [group for group in find_groups(whole, SHAPE) if group.reason is None]
        self._quantize(network)
        kept = {group.name: round((1 - SPARSITY) * group.channels) for group in groups}
        return ChannelPruner(
            network, groups, kept, (), lambda group: importance(group, network, "l2")
        )
