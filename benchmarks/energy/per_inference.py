"""How many joules an inference takes: a trace of power, and the times between which it ran.

    total = (1 / n) ∫ P dt over the windows          net = total - idle power × time / n

The integral is trapezoidal between samples and linear at the edges of the windows.  The total is
what a wall meter sees and what MLPerf Power reports; net is what the inferences added to a machine
that is on anyway.  Where the sensor counts joules itself, the counter's number is taken and the
integral stands beside it.

A trace from which nothing can be said gives no number and the reason: fewer values of the sensor in
the windows than ``UPDATES``, or than ``UPDATES_PER_WINDOW`` in one of them, time that it did not
cover, or more than ``MISSING`` of the windows lost in gaps.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Sequence, Tuple

import numpy as np

from deploy.errors import ConfigError
from deploy.power.meter import Trace, changes

UPDATES = 20  # in all windows: edges are uncertain by an update, so about 5% of the energy at most
UPDATES_PER_WINDOW = 3
GAP = 3.0  # times the sampling interval
MISSING = 0.1
Window = Tuple[float, float]

CRITERION = (
    f"at least {UPDATES} new values of the sensor in the windows and {UPDATES_PER_WINDOW} in each, "
    f"at most {MISSING:.0%} of their time in gaps of over {GAP:g} sampling intervals"
)


@dataclass(frozen=True)
class Energy:
    """Joules per inference, or ``None`` and ``why`` where the trace cannot tell.

    ``total_j`` and ``net_j`` (idle subtracted, may be negative within its uncertainty) are per
    inference; ``by_counter_j`` and ``by_integration_j`` are the two ways to the total.
    Uncertainties are one standard deviation, of resolution, edges and the windows' scatter; they
    cannot know the sensor's calibration.  ``updates`` is how many values of the sensor fell into
    the windows, ``samples`` how often it was read there.  ``windows_s`` and ``idle_windows_s`` are
    (start, end) on ``time.monotonic``: by them an external analyser's recording is laid beside.
    """

    inferences: int
    duration_s: float
    windows: int
    samples: int
    updates: int
    method: str
    interval_s: float
    longest_gap_s: float
    total_j: float | None = None
    net_j: float | None = None
    why: str | None = None
    net_why: str | None = None
    uncertainty_j: float | None = None
    net_uncertainty_j: float | None = None
    by_counter_j: float | None = None
    by_integration_j: float | None = None
    power_w: float | None = None
    idle_w: float | None = None
    idle_windows_w: tuple[float, ...] = ()
    windows_s: tuple[Window, ...] = ()
    idle_windows_s: tuple[Window, ...] = ()
    uncertainty_parts_j: dict[str, float] | None = None
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with the criterion by which a number was given or withheld."""
        made = asdict(self)
        made.update(
            idle_windows_w=list(self.idle_windows_w),
            windows_s=[list(window) for window in self.windows_s],
            idle_windows_s=[list(window) for window in self.idle_windows_s],
            warnings=list(self.warnings),
            criterion=CRITERION,
        )
        return made


def energy_per_inference(
    trace: Trace,
    windows: Sequence[Window],
    inferences: int | Sequence[int],
    idle: Sequence[Window] = (),
) -> Energy:
    """Energy per inference; ``inferences`` ran in all windows together, or one count per window.

    ``windows`` and ``idle`` are (start, end) on ``time.monotonic``.  Idle is what the machine takes
    before and after the work, the model loaded and nothing running; without it there is no net.

    Raises:
        ConfigError: No window, one that ends before it starts, or counts that do not fit.
    """
    for start, end in (*windows, *idle):
        if not (math.isfinite(start) and math.isfinite(end) and end > start):
            raise ConfigError(f"energy: window {start} to {end}; it must end after it starts")
    counts = _counts(windows, inferences)
    duration_s = math.fsum(end - start for start, end in windows)
    inside = _inside(trace.time_s, windows)
    new = _updated(trace)
    gaps_s, longest_s = _gaps(trace, windows)
    seen: dict[str, Any] = {
        "inferences": round(math.fsum(counts)),
        "duration_s": duration_s,
        "windows": len(windows),
        "samples": int(inside.sum()),
        "updates": int((inside & new).sum()),
        "method": trace.method,
        "interval_s": trace.interval_s,
        "longest_gap_s": longest_s,
        "windows_s": tuple(windows),
        "idle_windows_s": tuple(idle),
    }
    why = _too_little(trace, windows, new, gaps_s / duration_s)
    if why is not None:
        return Energy(**seen, why=why)
    return _energy(trace, windows, counts, idle, seen, gaps_s)


def integrate(time_s: np.ndarray, values: np.ndarray, start: float, end: float) -> float:
    """Trapezoidal integral from ``start`` to ``end``, with values interpolated at both.

    >>> integrate(np.array([0.0, 1.0, 2.0]), np.array([0.0, 2.0, 4.0]), 0.5, 1.5)
    2.0
    """
    between = (time_s > start) & (time_s < end)
    x = np.concatenate([[start], time_s[between], [end]])
    y = np.interp(x, time_s, values)
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2))


def _energy(
    trace: Trace,
    windows: Sequence[Window],
    counts: Sequence[float],
    idle: Sequence[Window],
    seen: dict[str, Any],
    gaps_s: float,
) -> Energy:
    n, duration_s = seen["inferences"], seen["duration_s"]
    by_integration = [integrate(trace.time_s, trace.power_w, *window) for window in windows]
    by_counter = _counted(trace, windows)
    energies_j = by_integration if by_counter is None else by_counter
    total_j = math.fsum(energies_j) / n
    power_w = math.fsum(energies_j) / duration_s
    idle_w, each_idle_w, net_why = _idle(trace, idle, counted=by_counter is not None)
    resolution_w = (trace.resolution_w or 0.0) if by_counter is None else 0.0
    update_s = duration_s / seen["updates"]
    step_w = power_w - (idle_w or 0.0)
    parts = {
        # A constant load reads the same wrong step every time: no credit for averaging.
        "resolution": resolution_w / math.sqrt(12) * duration_s / n,
        "edges": math.sqrt(2 * len(windows) / 12) * update_s * abs(step_w) / n,
        "scatter": _scatter_j(energies_j, counts),
    }
    uncertainty_j = math.sqrt(math.fsum(part**2 for part in parts.values()))
    net_j = net_uncertainty_j = None
    if idle_w is not None:
        net_j = total_j - idle_w * duration_s / n
        spread_w = max(each_idle_w) - min(each_idle_w)
        of_idle_w = math.sqrt((resolution_w**2 + spread_w**2) / 12)
        net_uncertainty_j = math.hypot(uncertainty_j, of_idle_w * duration_s / n)
    counted_j = None if by_counter is None else math.fsum(by_counter) / n
    integral_j = math.fsum(by_integration) / n
    return Energy(
        **seen,
        total_j=total_j,
        net_j=net_j,
        net_why=net_why,
        uncertainty_j=uncertainty_j,
        net_uncertainty_j=net_uncertainty_j,
        by_counter_j=counted_j,
        by_integration_j=integral_j,
        power_w=power_w,
        idle_w=idle_w,
        idle_windows_w=each_idle_w,
        uncertainty_parts_j=parts,
        warnings=tuple(
            _warnings(trace, windows, seen, gaps_s, each_idle_w, step_w, counted_j, integral_j)
        ),
    )


def _counts(windows: Sequence[Window], inferences: int | Sequence[int]) -> list[float]:
    """Inferences per window; a sum is shared out by time, which its total does not feel."""
    if not windows:
        raise ConfigError("energy: no window was given; give the times between which the model ran")
    if isinstance(inferences, Sequence):
        counts = [float(count) for count in inferences]
        if len(counts) != len(windows):
            raise ConfigError(
                f"energy: {len(counts)} counts of inferences for {len(windows)} windows; "
                "give one for each, or their sum"
            )
        if min(counts) < 1:
            raise ConfigError(f"energy: inferences are {counts}; each window needs at least 1")
        return counts
    if inferences < 1:
        raise ConfigError(f"energy: inferences is {inferences}; it must be 1 or more")
    total_s = math.fsum(end - start for start, end in windows)
    return [inferences * (end - start) / total_s for start, end in windows]


def _inside(time_s: np.ndarray, windows: Sequence[Window]) -> np.ndarray:
    inside = np.zeros(len(time_s), dtype=bool)
    for start, end in windows:
        inside |= (time_s >= start) & (time_s <= end)
    return inside


def _updated(trace: Trace) -> np.ndarray:
    if trace.updated is not None:
        return trace.updated
    return changes([tuple(row) for row in zip(trace.power_w, *trace.rails.values())])


def _gaps(trace: Trace, windows: Sequence[Window]) -> tuple[float, float]:
    """Seconds of the windows that lie in gaps, and the longest time between two samples there."""
    before, after = trace.time_s[:-1], trace.time_s[1:]
    allowed_s = GAP * (trace.interval_s or float(np.median(after - before)))
    lost_s = longest_s = 0.0
    for start, end in windows:
        overlap = np.minimum(after, end) - np.maximum(before, start)
        touching = overlap > 0
        if touching.any():
            longest_s = max(longest_s, float((after - before)[touching].max()))
        lost_s += float(overlap[touching & (after - before > allowed_s)].sum())
    return lost_s, longest_s


def _too_little(
    trace: Trace, windows: Sequence[Window], new: np.ndarray, missing: float
) -> str | None:
    first, last = float(trace.time_s[0]), float(trace.time_s[-1])
    for start, end in windows:
        if start < first or end > last:
            return (
                f"a window lasts from {start - first:.3f} to {end - first:.3f} s of the trace, which "
                f"covers 0 to {last - first:.3f} s: start the meter before the work, stop it after"
            )
    each = [int((_inside(trace.time_s, [window]) & new).sum()) for window in windows]
    if sum(each) < UPDATES or min(each) < UPDATES_PER_WINDOW:
        return (
            f"the sensor gave {sum(each)} new values in {len(windows)} windows, {min(each)} in the "
            f"poorest; a number needs {UPDATES} in all and {UPDATES_PER_WINDOW} in each: measure longer"
        )
    if missing > MISSING:
        return (
            f"{missing:.0%} of the time in the windows lies in gaps of over {GAP:g} sampling "
            f"intervals, {MISSING:.0%} are allowed: sample more slowly, or leave the meter a core"
        )
    return None


def _counted(trace: Trace, windows: Sequence[Window]) -> list[float] | None:
    """Joules in each window by the counter, or ``None`` where it has none or does not cover them.

    Only moments at which it moved count: between them it is as old as the last one.
    """
    if trace.energy_j is None:
        return None
    moved = np.flatnonzero(np.diff(trace.energy_j) != 0) + 1
    if len(moved) < 2:
        return None
    time_s, energy_j = trace.time_s[moved], trace.energy_j[moved]
    if any(start < time_s[0] or end > time_s[-1] for start, end in windows):
        return None
    ends_j = [np.interp(window, time_s, energy_j) for window in windows]
    return [float(after - before) for before, after in ends_j]


def _idle(
    trace: Trace, idle: Sequence[Window], counted: bool
) -> tuple[float | None, tuple[float, ...], str | None]:
    """Idle power over all idle windows, in each of them, and the reason where there is none."""
    if not idle:
        return None, (), "idle was not measured"
    first, last = trace.time_s[0], trace.time_s[-1]
    if any(start < first or end > last for start, end in idle):
        return None, (), "the trace does not cover the time at idle"
    few = min(int(_inside(trace.time_s, [window]).sum()) for window in idle)
    if few < UPDATES_PER_WINDOW:
        return None, (), f"{few} samples at idle; at least {UPDATES_PER_WINDOW} are needed"
    energies_j = _counted(trace, idle) if counted else None
    if energies_j is None:
        energies_j = [integrate(trace.time_s, trace.power_w, *window) for window in idle]
    times_s = [end - start for start, end in idle]
    each_w = tuple(energy / time for energy, time in zip(energies_j, times_s))
    return math.fsum(energies_j) / math.fsum(times_s), each_w, None


def _scatter_j(energies_j: Sequence[float], counts: Sequence[float]) -> float:
    """Standard error of the mean energy per inference over windows; 0 for a single one."""
    each = [energy / count for energy, count in zip(energies_j, counts)]
    return float(np.std(each, ddof=1) / math.sqrt(len(each))) if len(each) > 1 else 0.0


def _warnings(
    trace: Trace,
    windows: Sequence[Window],
    seen: dict[str, Any],
    gaps_s: float,
    each_idle_w: Sequence[float],
    step_w: float,
    counted_j: float | None,
    integral_j: float,
) -> list[str]:
    said = []
    if gaps_s:
        said.append(
            f"{gaps_s:.3g} s of the windows lie in gaps of sampling, the longest of "
            f"{seen['longest_gap_s']:.3g} s where one sample every {trace.interval_s:.3g} s was asked"
        )
    if len(windows) < 2:
        said.append("one window: the scatter between repeats is not known")
    negative = int((trace.power_w[_inside(trace.time_s, windows)] < 0).sum())
    if negative:
        said.append(f"{negative} of {seen['samples']} readings are negative; they are kept")
    if len(each_idle_w) > 1 and max(each_idle_w) - min(each_idle_w) > 0.1 * abs(step_w):
        said.append(
            f"idle moved between {min(each_idle_w):.3g} and {max(each_idle_w):.3g} W, over a tenth of "
            "what the work added: net energy is doubtful"
        )
    if each_idle_w and step_w <= 0:
        said.append("the work took no more power than idling; it was too light for this sensor")
    if trace.energy_j is not None and counted_j is None:
        said.append("the sensor's counter does not cover the windows; power was integrated instead")
    if counted_j is not None and abs(counted_j - integral_j) > 0.05 * abs(counted_j):
        said.append(
            f"the counter says {counted_j:.4g} J, the integral of power {integral_j:.4g} J: "
            "over 5% apart"
        )
    return said
