"""A power meter answers one question: how many watts, at which moments of the monotonic clock?

``PowerMeter`` is the seam.  ``SampledMeter`` implements it for whatever can be asked for a reading
(a ``Source``): a thread asks at fixed moments, and each reading carries the middle of the time that
it took.  Readings are kept as they come, negative ones too: clipping noise biases every average.
"""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Callable, Hashable, Protocol, Sequence

import numpy as np

from deploy.errors import DeviceError

INTERVAL_S = 0.1


@dataclass(frozen=True)
class Reading:
    """One answer of a sensor: watts in total and per rail.

    ``stamp`` is anything that changes when the sensor has measured again (a time stamp, a counter,
    its raw registers); without it the values stand in.  ``energy_j`` is a counter that only grows;
    its zero means nothing.
    """

    power_w: float
    rails_w: dict[str, float] = field(default_factory=dict)
    stamp: Hashable | None = None
    energy_j: float | None = None


@dataclass(frozen=True)
class Trace:
    """Power over time: ``time_s`` on ``time.monotonic``, ``power_w`` the total, ``rails`` in watts.

    ``updates`` counts how often the sensor had a new value, which is less often than it was asked;
    ``updated`` marks the samples that brought one.  ``energy_j`` is the sensor's own counter at each
    sample, where it has one.  ``resolution_w`` is the sensor's step in the total, ``reading_s`` the
    median time that a reading took, which the measured program has to share.

    Raises:
        DeviceError: Fewer than two samples, time that does not grow, or lengths that differ.
    """

    time_s: np.ndarray
    power_w: np.ndarray
    rails: dict[str, np.ndarray]
    updates: int
    method: str
    interval_s: float
    updated: np.ndarray | None = None
    energy_j: np.ndarray | None = None
    resolution_w: float | None = None
    reading_s: float | None = None

    def __post_init__(self) -> None:
        if len(self.time_s) < 2:
            raise DeviceError(
                f"{self.method}: {len(self.time_s)} samples; a trace needs at least 2: measure longer"
            )
        columns = [self.power_w, *self.rails.values()]
        columns += [c for c in (self.updated, self.energy_j) if c is not None]
        if any(len(column) != len(self.time_s) for column in columns):
            raise DeviceError(f"{self.method}: its columns differ in length from its time stamps")
        if not np.all(np.diff(self.time_s) > 0):
            raise DeviceError(
                f"{self.method}: its time stamps do not grow; the recording is damaged"
            )

    def to_dict(self, samples: bool = False) -> dict[str, Any]:
        """Plain values for a record; with ``samples`` also the readings themselves."""
        made: dict[str, Any] = {
            "method": self.method,
            "samples": len(self.time_s),
            "updates": self.updates,
            "interval_s": self.interval_s,
            "duration_s": float(self.time_s[-1] - self.time_s[0]),
            "resolution_w": self.resolution_w,
            "reading_s": self.reading_s,
        }
        if samples:
            made["time_s"] = [round(float(t), 6) for t in self.time_s]
            made["power_w"] = [float(p) for p in self.power_w]
            made["rails_w"] = {k: [float(p) for p in v] for k, v in self.rails.items()}
        return made


class PowerMeter(Protocol):
    """A meter that can be started and stopped, any number of times.

    ``describe`` holds at least ``name``, ``scope`` (what the total includes, in words), ``rails``
    (names), ``total`` (the rails that are added up), ``method``, ``interval_s``, ``resolution_w``
    and ``remarks``; it is plain data for the record.  ``start`` raises DeviceError when the sensor
    cannot be read; ``stop`` when it could not be read to the end, or the meter is not running.
    """

    @property
    def name(self) -> str: ...

    def describe(self) -> dict[str, Any]: ...

    def start(self) -> None: ...

    def stop(self) -> Trace: ...


class Source(Protocol):
    """What can be asked for a reading.  ``begin`` precedes the first one; both raise DeviceError."""

    @property
    def name(self) -> str: ...

    @property
    def method(self) -> str: ...

    @property
    def resolution_w(self) -> float | None: ...

    def describe(self) -> dict[str, Any]: ...

    def begin(self) -> None: ...

    def read(self) -> Reading: ...


class SampledMeter:
    """Asks a source at fixed moments, from a thread that is alive only between start and stop.

    The first reading is taken by ``start`` itself and the last by ``stop``: a sensor that cannot be
    read is known at once, and the trace covers all that lies between the two calls.
    """

    def __init__(
        self,
        source: Source,
        interval_s: float = INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
        remarks: Sequence[str] = (),
    ) -> None:
        if not (math.isfinite(interval_s) and interval_s > 0):
            raise DeviceError(f"{source.name}: interval_s is {interval_s}; it must be positive")
        self._source = source
        self._interval_s = interval_s
        self._clock = clock
        self._remarks = tuple(remarks)
        self._samples: list[tuple[float, float, Reading]] = []  # when, how long it took, what
        self._failure: Exception | None = None
        self._enough = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def name(self) -> str:
        return self._source.name

    def describe(self) -> dict[str, Any]:
        made = self._source.describe()
        return {
            **made,
            "name": self.name,
            "method": self._source.method,
            "interval_s": self._interval_s,
            "resolution_w": self._source.resolution_w,
            "remarks": [*made["remarks"], *self._remarks],
        }

    def start(self) -> None:
        """Take the first reading, then one every interval.

        Raises:
            DeviceError: The sensor cannot be read, or the meter runs already.
        """
        if self._thread is not None:
            raise DeviceError(f"{self.name}: the meter runs already; stop it before starting again")
        self._samples, self._failure = [], None
        self._enough = threading.Event()
        self._source.begin()
        self._sample()
        self._thread = threading.Thread(target=self._run, name=f"power {self.name}", daemon=True)
        self._thread.start()

    def stop(self) -> Trace:
        """End the thread and give what it saw.

        Raises:
            DeviceError: The meter does not run, or its sensor failed in the middle of the run.
        """
        if self._thread is None:
            raise DeviceError(f"{self.name}: the meter does not run; start it first")
        self._enough.set()
        self._thread.join()
        self._thread = None
        if self._failure is None:
            try:
                self._sample()
            except (DeviceError, OSError) as error:
                self._failure = error
        if isinstance(self._failure, (DeviceError, OSError)):
            raise DeviceError(
                f"{self.name}: failed after {len(self._samples)} readings: {self._failure}; "
                "nothing that was measured since counts: find out why, and measure again"
            ) from self._failure
        if self._failure is not None:
            raise self._failure
        return self._trace()

    def _sample(self) -> None:
        before_s = self._clock()
        reading = self._source.read()
        after_s = self._clock()
        if not math.isfinite(reading.power_w):
            raise DeviceError(
                f"{self.name}: read {reading.power_w} W, which is not a number of watts"
            )
        self._samples.append(((before_s + after_s) / 2, after_s - before_s, reading))

    def _run(self) -> None:
        due_s = self._clock()
        try:
            while True:
                # From the schedule, not from the last reading: a slow one must not stretch the rest.
                due_s = max(due_s + self._interval_s, self._clock())
                if self._enough.wait(max(0.0, due_s - self._clock())):
                    return
                self._sample()
        except Exception as error:  # raised again by stop, in the thread that can act on it
            self._failure = error

    def _trace(self) -> Trace:
        times = [when for when, _, _ in self._samples]
        readings = [reading for _, _, reading in self._samples]
        rails = {
            rail: np.array([reading.rails_w.get(rail, math.nan) for reading in readings])
            for rail in readings[0].rails_w
        }
        stamps: list[Hashable] = [
            reading.stamp
            if reading.stamp is not None
            else (reading.power_w, *reading.rails_w.values())
            for reading in readings
        ]
        updated = changes(stamps)
        counters = [reading.energy_j for reading in readings]
        return Trace(
            time_s=np.array(times),
            power_w=np.array([reading.power_w for reading in readings]),
            rails=rails,
            updates=int(updated.sum()),
            method=self._source.method,
            interval_s=self._interval_s,
            updated=updated,
            energy_j=None if None in counters else np.array(counters, dtype=np.float64),
            resolution_w=self._source.resolution_w,
            reading_s=float(np.median([took for _, took, _ in self._samples])),
        )


def changes(stamps: list[Hashable]) -> np.ndarray:
    """Which samples differ from the one before them; the first counts, since it was never seen.

    >>> changes([3, 3, 4, 4, 3]).tolist()
    [True, False, True, False, True]
    """
    return np.array([i == 0 or stamps[i] != stamps[i - 1] for i in range(len(stamps))], dtype=bool)
