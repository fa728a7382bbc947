"""The torch end of the parity ladder: a bundle's student, reloaded, as a session and as a fresh export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, fx

from deploy.bundle import Bundle
from deploy.errors import DeviceError
from deploy.sessions.session import Feeds, Port
from deploy.targets import Target, unsigned_steps
from exporters.blame.partings import EQUAL_DB, Parting, snr
from exporters.onnx_from_torch import INPUT, OUTPUT, export_onnx
from toolchain import checkpoint
from toolchain.quantization.lowering import lower

if TYPE_CHECKING:
    from onnx import ModelProto

STUDENT = "student"
QUANTIZERS = "quantizers"


class TorchSession:
    """A network in eval mode and float32, as a session; ``images`` in, ``logits`` out."""

    def __init__(
        self, network: fx.GraphModule, shape: tuple[int, ...], classes: int, name: str = "torch"
    ) -> None:
        self._network: fx.GraphModule | None = network.eval().float()
        self._name = name
        self._inputs = (Port(INPUT, (None, *shape), "float32"),)
        self._outputs = (Port(OUTPUT, (None, classes), "float32"),)

    @property
    def name(self) -> str:
        return self._name

    @property
    def inputs(self) -> tuple[Port, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[Port, ...]:
        return self._outputs

    def run(self, feeds: Feeds) -> Feeds:
        """Outputs by name.

        Raises:
            DeviceError: The feeds do not fit the network, or the session is closed.
        """
        if self._network is None:
            raise DeviceError(f"{self._name}: the session is closed; open a new one")
        wanted = self._inputs[0]
        given = {key: (tuple(array.shape), str(array.dtype)) for key, array in feeds.items()}
        if given.keys() != {wanted.name} or (
            given[wanted.name][0][1:] != wanted.shape[1:] or given[wanted.name][1] != wanted.dtype
        ):
            raise DeviceError(
                f"{self._name}: refused the inputs {given}; the network takes "
                f"{ {wanted.name: (wanted.shape, wanted.dtype)} }"
            )
        with torch.inference_mode():
            logits_BC: Tensor = self._network(torch.from_numpy(np.ascontiguousarray(feeds[INPUT])))
        return {OUTPUT: logits_BC.float().numpy()}

    def close(self) -> None:
        """Give the network back; ``run`` is an error from here on."""
        self._network = None


def has_student(bundle: Bundle) -> bool:
    return f"{STUDENT}/spec.json" in bundle.manifest["files"]


def reload_student(
    bundle: Bundle, keep_float: Sequence[str] = ()
) -> tuple[fx.GraphModule, checkpoint.Spec]:
    """The student that the bundle carries as a spec and tensors, float32, in eval mode.

    Layers that ``keep_float`` names come without their quantizers, as a file that was exported so has them.

    Raises:
        CheckpointError: It carries none, or one that does not load.
        ConfigError: A name in ``keep_float`` matches no layer.
    """
    return checkpoint.load(bundle.folder / STUDENT, keep_float)


def kept_in_float(model: ModelProto) -> tuple[str, ...]:
    """Layers that an export was asked to leave in float, as its file says."""
    said = next((entry.value for entry in model.metadata_props if entry.key == "keep_float"), "")
    return tuple(name for name in said.split(", ") if name)


def fresh_export(student: fx.GraphModule, example: Tensor, target: Target, out: Path) -> Path:
    """What this version writes for ``target``: the graph that a shipped file is compared with.

    ``example`` is one batch [B, ...] with B >= 2.
    """
    return export_onnx(lower(student, target), example, out, float16=target == "tensorrt-fp16")


def same_grid(spec: checkpoint.Spec, target: Target) -> bool:
    """Whether the target stores every grid as the student was trained on it."""
    quantization = spec.quantization
    return quantization is not None and quantization.unsigned_steps <= unsigned_steps([target])


@torch.no_grad()
def torch_partings(student: fx.GraphModule, target: Target, inputs: np.ndarray) -> list[Parting]:
    """Where the lowered network parts from the student, both in torch: at which quantizer.

    The quantizers are what both have by name; a fault between two of them shows at the second.
    """
    values: list[dict[str, np.ndarray]] = []
    for network in (student, lower(student, target)):
        watch = _Watch(network)
        watch.run(torch.from_numpy(inputs))
        values.append(watch.values)
    found: list[Parting] = []
    before_db = EQUAL_DB
    for name, value in values[0].items():
        if name in values[1]:
            snr_db = snr(value, values[1][name])
            found.append(Parting(name, name, snr_db, max(0.0, before_db - snr_db)))
            before_db = min(before_db, snr_db)
    return found


class _Watch(fx.Interpreter):
    """Runs a network and keeps what its quantizers and its last layer return."""

    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network)
        self.values: dict[str, np.ndarray] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op == "output":
            self.values[n.name] = value.numpy()
        elif n.op == "call_module" and str(n.target).startswith(f"{QUANTIZERS}."):
            # Named after the operation whose result is quantized.
            self.values[str(n.target)[len(QUANTIZERS) + 1 :]] = value.numpy()
        return value
