"""NVIDIA's tegrastats: its lines, in every format since JetPack 4, and a meter that runs it.

Rails are ``NAME now/average`` without unit (JetPack 4), ``now mW/average mW`` (5 to 7.1) or with a
maximum behind (7.2), where temperatures are pairs too.  The average is since tegrastats started, so
only ``now`` is of use.  The fallback where sysfs cannot be read: its moments are those at which a
line arrives.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from typing import Any, Callable, Sequence

import numpy as np

from deploy.errors import DeviceError
from deploy.power.boards import UNCONNECTED, Total
from deploy.power.meter import INTERVAL_S, Trace

_OFF_C = -256.0
_STAMP = re.compile(r"^\s*(\d\d-\d\d-\d{4} \d\d:\d\d:\d\d)\s")
_MEMORY = re.compile(r"(?<!\S)RAM (\d+)/(\d+)MB")
_CORES = re.compile(r"(?<![@\w])\[([^\]]*)\]")
_CORE = re.compile(r"(\d+)%@(\d+)$")
_GPU = re.compile(r"(?<!\S)GR3D_FREQ (?:(\d+)%)?(?:@(?:\[([\d,]+)\]|(\d+)))?")
_MEMORY_BUS = re.compile(r"(?<!\S)EMC_FREQ (\d+)%(?:@(\d+))?")
_HEAT = re.compile(r"(?<!\S)([A-Za-z]\w*)@(-?\d+(?:\.\d+)?)C(?:/(-?\d+(?:\.\d+)?)C)?(?!\S)")
_RAIL = re.compile(r"(?<!\S)(\w+) (-?\d+)(?:mW)?/(-?\d+)(?:mW)?(?:/(-?\d+)(?:mW)?)?(?!\S)")


@dataclass(frozen=True)
class Power:
    """One rail in milliwatts: now, on average since tegrastats started, and at most (JetPack 7.2)."""

    now_mw: int
    average_mw: int
    maximum_mw: int | None


@dataclass(frozen=True)
class Stats:
    """One line.  Names of sensors are in lower case; ``None`` is off or not printed.

    ``cores`` holds (load in percent, clock in MHz) of each, ``None`` for one that is off.
    ``peaks_c`` are the highest temperatures since tegrastats started.
    """

    stamp: str | None
    memory_used_mb: int | None
    memory_total_mb: int | None
    cores: tuple[tuple[int, int] | None, ...]
    gpu_load_percent: int | None
    gpu_clocks_mhz: tuple[int, ...]
    emc_load_percent: int | None
    emc_clock_mhz: int | None
    temperatures_c: dict[str, float | None]
    peaks_c: dict[str, float]
    rails: dict[str, Power]


def parse(line: str) -> Stats:
    """What one line of tegrastats says.

    Raises:
        DeviceError: Nothing of it is known; it is no line of tegrastats.

    >>> parse("GR3D_FREQ 12%@[1300,1300] cpu@-256C VDD_IN 7280mW/7280mW/7290mW").rails
    {'VDD_IN': Power(now_mw=7280, average_mw=7280, maximum_mw=7290)}
    """
    stamp, memory, gpu, bus = (
        pattern.search(line) for pattern in (_STAMP, _MEMORY, _GPU, _MEMORY_BUS)
    )
    temperatures_c: dict[str, float | None] = {}
    peaks_c = {}
    for name, now_c, most_c in _HEAT.findall(line):
        temperatures_c[name.lower()] = None if float(now_c) == _OFF_C else float(now_c)
        if most_c and float(most_c) != _OFF_C:
            peaks_c[name.lower()] = float(most_c)
    rails = {
        name: Power(int(now), int(average), int(most) if most else None)
        for name, now, average, most in _RAIL.findall(line)
        if name != UNCONNECTED
    }
    if not (memory or gpu or temperatures_c or rails):
        raise DeviceError(f"tegrastats: {line.strip()[:80]!r} is none of its lines")
    clocks = (gpu.group(2) or gpu.group(3) or "") if gpu else ""
    return Stats(
        stamp=stamp.group(1) if stamp else None,
        memory_used_mb=int(memory.group(1)) if memory else None,
        memory_total_mb=int(memory.group(2)) if memory else None,
        cores=_cores(line),
        gpu_load_percent=int(gpu.group(1)) if gpu and gpu.group(1) else None,
        gpu_clocks_mhz=tuple(int(clock) for clock in clocks.split(",") if clock),
        emc_load_percent=int(bus.group(1)) if bus else None,
        emc_clock_mhz=int(bus.group(2)) if bus and bus.group(2) else None,
        temperatures_c=temperatures_c,
        peaks_c=peaks_c,
        rails=rails,
    )


def _cores(line: str) -> tuple[tuple[int, int] | None, ...]:
    listed = _CORES.search(line)
    cores: list[tuple[int, int] | None] = []
    for word in listed.group(1).split(",") if listed else ():
        core = _CORE.match(word.strip())
        if core:
            cores.append((int(core.group(1)), int(core.group(2))))
        elif word.strip() == "off":
            cores.append(None)
    return tuple(cores)


def first_line(command: Sequence[str], wait_s: float = 5.0) -> Stats:
    """Run tegrastats until its first line.

    Raises:
        DeviceError: It cannot be started, ends, or says nothing within ``wait_s`` seconds.
    """
    lines = _Lines(command, 100, time.monotonic)
    try:
        lines.wait_for(1, wait_s)
        return lines.taken[0][1]
    finally:
        lines.end()


class TegrastatsMeter:
    """Power from the lines of ``tegrastats --interval``; ``total`` says which rails are added up."""

    name = "tegrastats"
    method = "tegrastats"

    def __init__(
        self,
        total: Total,
        interval_s: float = INTERVAL_S,
        command: Sequence[str] = ("tegrastats",),
        clock: Callable[[], float] = time.monotonic,
        wait_s: float = 5.0,
        remarks: Sequence[str] = (),
    ) -> None:
        self._total = total
        self._interval_ms = max(1, round(interval_s * 1e3))
        self._command = tuple(command)
        self._clock = clock
        self._wait_s = wait_s
        self._remarks = tuple(remarks)
        self._rails: list[str] = []
        self._lines: _Lines | None = None

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "board": self._total.board,
            "scope": self._total.scope,
            "total": list(self._total.rails),
            "rails": list(self._rails or self._total.rails),
            "method": self.method,
            "interval_s": self._interval_ms / 1e3,
            "resolution_w": None,
            "remarks": [
                *self._total.remarks,
                "a reading counts from the moment at which its line arrived",
                *self._remarks,
            ],
        }

    def start(self) -> None:
        """Start the tool and wait for its first line.

        Raises:
            DeviceError: The meter runs already, or the tool does not start, prints no line, or lacks
                a rail of the total.
        """
        if self._lines is not None:
            raise DeviceError(f"{self.name}: the meter runs already; stop it before starting again")
        lines = _Lines(self._command, self._interval_ms, self._clock)
        try:
            lines.wait_for(1, self._wait_s)
            rails = lines.taken[0][1].rails
            absent = [rail for rail in self._total.rails if rail not in rails]
            if absent:
                raise DeviceError(
                    f"{self.name}: prints no {', '.join(absent)}; it prints "
                    f"{', '.join(rails) or 'no rails at all'}; some releases need root for them"
                )
        except DeviceError:
            lines.end()
            raise
        self._rails = list(rails)
        self._lines = lines

    def stop(self) -> Trace:
        """Wait for one more line, end the tool, and give what it printed.

        Raises:
            DeviceError: The meter does not run, or the tool ended in the middle of the run.
        """
        if self._lines is None:
            raise DeviceError(f"{self.name}: the meter does not run; start it first")
        lines, self._lines = self._lines, None
        try:
            # The trace has to cover all that was before this call.
            lines.wait_for(max(2, len(lines.taken) + 1), self._wait_s + self._interval_ms / 1e3)
        finally:
            lines.end()
        taken = list(lines.taken)
        rails = {
            name: np.array(
                [s.rails[name].now_mw / 1e3 if name in s.rails else np.nan for _, s in taken]
            )
            for name in self._rails
        }
        power_w = np.sum([rails[name] for name in self._total.rails], axis=0)
        if not np.all(np.isfinite(power_w)):
            raise DeviceError(f"{self.name}: some lines lack a rail of the total; measure again")
        return Trace(
            time_s=np.array([when for when, _ in taken]),
            power_w=power_w,
            rails=rails,
            updates=len(taken),
            method=self.method,
            interval_s=self._interval_ms / 1e3,
            updated=np.ones(len(taken), dtype=bool),
        )


class _Lines:
    """A running tegrastats and the lines it has printed so far, each with the time it arrived."""

    def __init__(
        self, command: Sequence[str], interval_ms: int, clock: Callable[[], float]
    ) -> None:
        self.taken: list[tuple[float, Stats]] = []
        self._clock = clock
        self._failure = ""
        self._news = threading.Condition()
        self._ended = False
        try:
            self._process = subprocess.Popen(
                [*command, "--interval", str(interval_ms)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                bufsize=1,
                start_new_session=True,  # a wrapper script must not outlive the meter
            )
        except OSError as error:
            raise DeviceError(
                f"{command[0]}: cannot be started ({error.strerror}); is this a Jetson?"
            ) from error
        self._reader = threading.Thread(target=self._read, name="tegrastats", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            now_s = self._clock()
            try:
                stats = parse(line)
            except DeviceError:
                self._failure = self._failure or line.strip()[:120]
                continue
            with self._news:
                self.taken.append((now_s, stats))
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def wait_for(self, count: int, wait_s: float) -> None:
        """Until that many lines are there.  Raises DeviceError when the tool ends or is silent."""
        with self._news:
            self._news.wait_for(lambda: self._ended or len(self.taken) >= count, timeout=wait_s)
            if len(self.taken) >= count:
                return
            reason = "ended" if self._ended else f"printed nothing for {wait_s:.3g} s"
        said = f": it said {self._failure!r}" if self._failure else ""
        raise DeviceError(
            f"tegrastats: {reason} after {len(self.taken)} lines{said}; try it in a terminal, as root"
        )

    def end(self) -> None:
        self._signal(signal.SIGTERM)
        # The pipe closes when the last of the group has gone; until then its leader is not reaped,
        # so that its number cannot belong to somebody else.
        self._reader.join(timeout=2)
        self._signal(signal.SIGKILL)
        self._reader.join()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # all of them have ended already
            os.killpg(self._process.pid, number)
