"""Who is to blame for a failed proof: layers, by what the file should hold, by values, by cost.

changed    nodes and constants of the file that are not the student's: proof, not suspicion
parted     layers at which values first part, between the two sides of the hop that failed
costs      what each layer gives back when it alone is put back to float
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from deploy.targets import Target
from exporters.blame.costs import Cost, answer, costs
from exporters.blame.graph_diff import Difference
from exporters.blame.partings import SAME_RUNTIME_DB, Parting, culprits, partings
from exporters.ort_graph import KernelReport
from exporters.proof.ladder import FUSED, SIMULATED, TORCH, Hop, Progress, Samples
from toolchain.proof.parity import TorchSession, torch_partings

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import fx

# Enough rows that a layer which costs a point is told from one that costs none.
ROWS, WATCHED_ROWS = 512, 32


@dataclass(frozen=True)
class Blame:
    """The suspects.

    Attributes:
        hop: Where in the ladder it happened, in words.
        layers: Names, the most certain first: changed ones, then the parted, then the costly.
        notes: What else is known, one sentence each.
    """

    hop: str
    changed: tuple[Difference, ...]
    parted: tuple[Parting, ...]
    costs: tuple[Cost, ...]
    notes: tuple[str, ...]

    @property
    def layers(self) -> tuple[str, ...]:
        named = [
            *(each.layer for each in self.changed),
            *(each.layer for each in self.parted),
            *(each.layer for each in self.costs if each.regained > 0),
        ]
        return tuple(dict.fromkeys(named))

    def to_dict(self) -> dict[str, Any]:
        return {
            "hop": self.hop,
            "layers": list(self.layers),
            "changed": [asdict(each) for each in self.changed],
            "parted": [each.to_dict() for each in self.parted],
            "costs": [each.to_dict() for each in self.costs],
            "notes": list(self.notes),
        }


def blame(
    target: Target,
    hop: Hop | None,
    model: ModelProto,
    samples: Samples,
    *,
    network: fx.GraphModule | None,
    fresh: ModelProto | None,
    changed: Sequence[Difference] = (),
    kernels: KernelReport | None = None,
    progress: Progress | None = None,
) -> Blame:
    """Blame layers of ``model`` for the failed ``hop``, or for what failed without one.

    ``network`` is the student, ``fresh`` what it exports to; either may be missing, which costs
    certainty.
    """
    inputs, labels_N = next(samples.batches(min(ROWS, samples.rows), ROWS))
    watched = inputs[:WATCHED_ROWS]
    notes = list(kernels.notes()) if kernels is not None and not kernels else []
    fused = hop is not None and hop.above == SIMULATED and hop.below == FUSED
    parted: list[Parting] = []
    if fused:
        parted = culprits(partings(model, model, watched, suspect_fused=True))
    elif changed and fresh is not None:
        parted = culprits(partings(fresh, model, watched), SAME_RUNTIME_DB)
    elif hop is not None and (hop.above, hop.below) == (TORCH, SIMULATED) and network is not None:
        parted = culprits(torch_partings(network, target, watched))
        if fresh is not None:
            notes.append(
                "the file is what the student exports to, so the lowering for this target is where "
                "they part, not the file"
            )
    elif hop is not None and not fused:
        notes.append(
            f"values inside {hop.below} cannot be read; compare the precision of its layers with: "
            "compress-deploy explain"
        )
    expensive: list[Cost] = []
    if changed or (hop is not None and hop.below in (SIMULATED, FUSED)):
        reference_NC = _reference(network, fresh, model, inputs)
        expensive = costs(
            model,
            reference_NC,
            inputs,
            labels_N=labels_N if samples.labelled else None,
            trusted=fresh,
            fused=fused,
            progress=None if progress is None else _named(progress),
        )
    where = f"{hop.above} -> {hop.below} at batch {hop.batch}" if hop is not None else "the file"
    return Blame(where, tuple(changed), tuple(parted), tuple(expensive), tuple(notes))


def _named(progress: Progress) -> Any:
    return lambda done, total: progress("layers back to float", done, total)


def _reference(
    network: fx.GraphModule | None, fresh: ModelProto | None, model: ModelProto, inputs: np.ndarray
) -> np.ndarray:
    """What should come out: the student's, or the file's own with every pair in float."""
    if network is None:
        return answer(fresh if fresh is not None else model, inputs, fused=False)
    with closing(TorchSession(network, inputs.shape[1:], 0)) as session:
        return session.run({session.inputs[0].name: inputs})[session.outputs[0].name]
