"""Did the machine slow itself down while it was measured?  Counters, trips, clocks, NVML's reasons.

Counters tell all that happened between start and stop; states (temperatures, clocks, the reasons of
a graphics card) are looked at once a second in between, so a shorter dip can escape.
"""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable

from deploy.errors import CompressDeployError
from deploy.machine.clocks import cpu_domains, gpu_domains, locked
from deploy.machine.sysfs import optional_number, optional_text
from deploy.machine.thermal import cooling, thermal_zones
from deploy.power.nvml import card_state, event_reasons, open_nvml, visible_device

INTERVAL_S = 1.0
# The meaning of a Jetson's three counters (NVIDIA's developer guide for Orin).
_OVER_CURRENT = {1: "under-voltage", 2: "average over-current", 3: "instantaneous over-current"}
_REASONS = {  # nvml.h, nvmlClocksEventReason*; idling and clocks that the user asked for do not count
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
_OWN_MIND = ("intel_pstate", "amd-pstate", "amd-pstate-epp", "acpi-cpufreq", "cppc_cpufreq")
_SLACK = 0.95


@dataclass(frozen=True)
class Range:
    """How a value moved: at the start, at the end, and how far in between."""

    start: float
    lowest: float
    highest: float
    end: float

    def with_value(self, value: float) -> Range:
        return Range(self.start, min(self.lowest, value), max(self.highest, value), value)


class ThrottleWatch:
    """``start`` before a measurement, ``stop`` after it: what is returned makes the numbers invalid.

    ``card`` says whether the graphics card does the work: on others' work there it says nothing of
    this.  It never fails: what a machine does not tell is not watched, and ``watched`` says what is.
    """

    def __init__(
        self,
        root: Path = Path("/"),
        interval_s: float = INTERVAL_S,
        open_card: Callable[[], tuple[Any, Any]] | None = None,
        card: bool = True,
    ) -> None:
        self._root = root
        self._interval_s = interval_s
        self._open_card = open_card or _visible_card
        self._with_card = card
        self._card: tuple[Any, Any] | None = None
        self._counters: dict[str, int] = {}
        self._tops: dict[str, float] = {}
        self._cooled: dict[str, int] = {}
        self._seen: dict[str, None] = {}  # an ordered set
        self._values: dict[str, Range] = {}
        self._enough = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def watched(self) -> list[str]:
        """What this machine tells, of what could give throttling away; known after ``start``."""
        zones = [zone for zone in thermal_zones(self._root) if zone.trips_c]
        kinds = {
            "counters": bool(self._counters),
            "thermal trips": bool(zones),
            "clocks": bool(self._tops),
            "clock event reasons": self._card is not None,
        }
        return [kind for kind, there in kinds.items() if there]

    def start(self) -> None:
        """Note every counter and clock limit, and look at the states from now on."""
        self.stop()
        here = self._root == Path("/") or self._open_card is not _visible_card
        if self._with_card and here:
            try:
                self._card = self._open_card()
            except CompressDeployError:
                self._card = None  # no card, or no way to ask it: nothing to watch there
        self._counters = _counters(self._root)
        self._tops = _tops(self._root)
        self._cooled = cooling(self._root)
        self._seen, self._values = {}, {}
        self._enough = threading.Event()
        self._look()
        self._thread = threading.Thread(target=self._run, name="throttling", daemon=True)
        self._thread.start()

    def stop(self) -> list[str]:
        """Reasons to distrust what was measured since ``start``; empty is good."""
        if self._thread is None:
            return []
        self._enough.set()
        self._thread.join()
        self._thread = None
        self._look()
        reasons = []
        for name, count in _counters(self._root).items():
            more = count - self._counters.get(name, 0)
            if more > 0:
                reasons.append(f"{name}: {more} more than before")
        for name, top in _tops(self._root).items():
            before = self._tops.get(name, top)
            if top < before:
                reasons.append(f"{name}: its highest clock fell from {before:.0f} to {top:.0f} MHz")
        return [*reasons, *self._seen]

    def summary(self) -> dict[str, Any]:
        """For a record: what was watched and how often, and how temperatures and clocks moved.

        ``values`` holds start, lowest, highest and end by name; the unit is in the name.
        """
        return {
            "watched": self.watched,
            "interval_s": self._interval_s,
            "values": {name: asdict(moved) for name, moved in sorted(self._values.items())},
        }

    def _note(self, name: str, value: float | None) -> None:
        if value is not None:
            before = self._values.get(name, Range(value, value, value, value))
            self._values[name] = before.with_value(value)

    def _run(self) -> None:
        while not self._enough.wait(self._interval_s):
            self._look()

    def _look(self) -> None:
        for zone in thermal_zones(self._root):
            self._note(f"{zone.name}_c", zone.temperature_c)
            for kind, trip_c in zone.trips_c:
                if zone.temperature_c is not None and zone.temperature_c >= trip_c:
                    self._seen[f"{zone.name}: reached its {kind} trip at {trip_c:g} °C"] = None
        for name, steps in cooling(self._root).items():
            if steps > self._cooled.get(name, 0):
                self._seen[f"{name}: the kernel slowed it down against heat"] = None
        for domain in [*cpu_domains(self._root), *gpu_domains(self._root)]:
            now, low = domain["now_mhz"], domain["min_mhz"]
            self._note(f"{domain['name']}_mhz", now)
            # Some hardware picks its clock itself, and an idle core tells a low one.
            told = domain.get("driver") not in _OWN_MIND and locked(domain)
            if told and now is not None and now < _SLACK * low:
                self._seen[f"{domain['name']}: ran below its locked clock of {low:.0f} MHz"] = None
        if self._card is not None:
            self._look_at_card(*self._card)

    def _look_at_card(self, nvml: Any, handle: Any) -> None:
        try:
            bits = event_reasons(nvml, handle)
        except nvml.NVMLError:
            self._card = None  # it opens but does not tell, as on a Jetson
            return
        for bit, reason in _REASONS.items():
            if bits & bit:
                self._seen[f"graphics card: {reason}"] = None
        for name, value in card_state(nvml, handle).items():
            self._note(f"graphics card {name}", value)


def _visible_card() -> tuple[Any, Any]:
    nvml = open_nvml()
    return nvml, visible_device(nvml)


def _counters(root: Path) -> dict[str, int]:
    """Events so far, by name."""
    counters = {}
    for path in sorted((root / "sys/class/hwmon").glob("hwmon*/oc*_event_cnt")):
        count = optional_number(path)
        if count is not None:
            number = int("".join(filter(str.isdigit, path.name)))
            counters[f"{path.name} ({_OVER_CURRENT.get(number, 'over-current')})"] = count
    for kind in ("core", "package"):
        # Every core of a package shows the package's counter: the largest, not the sum.
        files = (root / "sys/devices/system/cpu").glob(
            f"cpu*/thermal_throttle/{kind}_throttle_count"
        )
        counts = [count for count in map(optional_number, files) if count is not None]
        if counts:
            total = sum(counts) if kind == "core" else max(counts)
            counters[f"processor {kind} thermal throttling"] = total
    for place in ("sys/fs/cgroup/cpu.stat", "sys/fs/cgroup/cpu/cpu.stat"):
        for line in (optional_text(root / place) or "").splitlines():
            name, _, value = line.partition(" ")
            if name == "nr_throttled" and value.isdigit():
                counters["processor quota of the control group"] = int(value)
    return counters


def _tops(root: Path) -> dict[str, float]:
    """The highest clock that each domain may take at the moment."""
    domains = [*cpu_domains(root), *gpu_domains(root)]
    return {d["name"]: d["max_mhz"] for d in domains if d["max_mhz"] is not None}
