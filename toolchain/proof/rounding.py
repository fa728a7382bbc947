"""How far float32 is from the student itself: nothing that computes in float32 can be asked to be closer.

    kept = share of rows with argmax f_32(x) = argmax f_64(x)
    allowed = m + 3 sqrt(m) rows of n,    m = 2 (1 - kept) n

A quantizer turns a last bit of a sum into a whole step where the sum lies between two steps, and the steps
of many layers add up. f_32 is the student in float32, as it is the reference of every proof; f_64 is the same
weights and scales with all sums in float64. Two runtimes that compute in float32, in different orders, are
each as far from f_64 as that, hence the 2; the root is three standard deviations of such a count.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import torch
from torch import fx

from exporters.proof.verify import Tolerance, Verification


def kept_in_float64(
    network: fx.GraphModule,
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
    report: Callable[[int], None] | None = None,
) -> float:
    """Share of its float32 decisions that a network in eval mode keeps when it computes in float64.

    ``batches`` are of (inputs, labels), of which only the inputs [B, C, H, W] are looked at. After each,
    ``report`` is told how many rows are done.
    """
    network = network.eval()
    exact = copy.deepcopy(network).double()
    same = rows = 0
    with torch.inference_mode():
        for inputs, _ in batches:
            images_BCHW = torch.from_numpy(np.ascontiguousarray(inputs, dtype=np.float32))
            decided_B = network(images_BCHW).argmax(1), exact(images_BCHW.double()).argmax(1)
            same += int((decided_B[0] == decided_B[1]).sum())
            rows += len(inputs)
            if report is not None:
                report(rows)
    return same / rows


def allowed_by_rounding(check: Verification, kept: float) -> Verification:
    """The check, allowed what rounding alone may change, where that is more than it was allowed."""
    expected = 2 * (1 - kept) * check.rows
    rows = min(check.rows, math.ceil(expected + 3 * math.sqrt(expected)))
    least = 1 - rows / check.rows
    if least >= check.allowed.decisions:
        return check
    wider: Tolerance = replace(
        check.allowed, decisions=least, points=max(check.allowed.points, 100 * (1 - least))
    )
    return replace(check, allowed=wider)


def sentence(target: str, kept: float) -> str:
    """What a report says of it."""
    return (
        f"{target}: the student itself decides {1 - kept:.2%} of the samples otherwise when its sums are in "
        "float64, so its file may too; training on with the quantizers in place makes decisions clearer"
    )
