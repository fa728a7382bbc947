"""What a run found, and the record that is made of it."""

from __future__ import annotations

import datetime
import time
from dataclasses import dataclass, field
from typing import Any

from benchmarks import environment
from benchmarks.records import record
from benchmarks.records.figures import latency_figures, speedup_figures, throughput_figures
from benchmarks.records.request import Request
from benchmarks.statistics.intervals import FEWEST_OPENINGS
from benchmarks.timing import scenarios
from benchmarks.timing.checks import check_latency
from benchmarks.timing.interleaving import Taken
from benchmarks.timing.latency import Latency
from benchmarks.timing.server import Load
from deploy.bundle import Bundle
from deploy.manifest import MANIFEST, sha256_of
from deploy.sessions.opening import TARGETS, model_file, runtime_versions


@dataclass
class Findings:
    """What was measured so far; an interrupt leaves it as it is."""

    taken: Taken = field(default_factory=Taken)
    served: dict[str, Load] = field(default_factory=dict)
    tried: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    samples: dict[str, Any] = field(default_factory=dict)
    energy: dict[str, Any] = field(default_factory=dict)
    meter: dict[str, Any] | None = None
    layers: dict[str, Any] = field(default_factory=dict)
    loadgen: dict[str, Any] = field(default_factory=dict)
    throttled: list[str] = field(default_factory=list)
    during: dict[str, Any] | None = None
    interrupted: bool = False

    def latency(self, model: str) -> Latency:
        if model in self.served:
            return self.served[model].latency
        if model not in self.taken.rounds_ns:
            return Latency(())
        taken = self.taken
        return Latency(taken.times_ms(model), taken.round_lengths(model), taken.opening_rounds)


def make_record(
    bundle: Bundle, request: Request, found: Findings, duration_s: float
) -> dict[str, Any]:
    latencies = {model: found.latency(model) for model in request.models}
    measured = {model: latency for model, latency in latencies.items() if latency.n}
    checks: dict[str, Any] = {"trend": {}, "outliers": {}, "autocorrelation": {}}
    warnings: list[str] = []
    for model, latency in measured.items():
        # A queue makes latencies depend on each other and lie far out: that is the scenario.
        told, warned = check_latency(model, latency)
        for check, result in told.items():
            checks[check][model] = result
        warnings += warned if request.scenario != "server" else []
    openings = len(found.taken.opening_rounds)
    if request.scenario != "server" and openings < FEWEST_OPENINGS:
        warnings.append(
            f"models were opened {openings} times, too few to know what memory placement does; "
            "intervals leave that out"
        )
    for model, energy in found.energy.items():
        warnings += [f"{model}: energy: {line}" for line in energy.get("warnings") or ()]
        if energy.get("total_j") is None:
            warnings.append(f"{model}: no energy: {energy.get('why')}")
    for model, checked in found.loadgen.items():
        if not checked["agree"]:
            warnings.append(
                f"{model}: LoadGen's p90 is {checked['difference_ms']:+.4f} ms from ours, noise is "
                f"{checked['noise_ms']:.4f}"
            )
    surroundings = {**environment.record(), "during": found.during}
    if surroundings["emulation"] != environment.NOT_EMULATED:
        warnings.append(f"{surroundings['emulation']}: results count, timings do not")
    overhead = found.taken.overhead
    made = {
        "format": record.FORMAT,
        "format_version": record.VERSION,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "status": "partial" if found.interrupted else "invalid" if found.throttled else "complete",
        "invalid_because": found.throttled,
        "bundle": {
            "name": bundle.name,
            "manifest_sha256": sha256_of(bundle.folder / MANIFEST),
        },
        "device": {"name": request.device, "kind": request.device_kind},
        "modes": {
            "provider": request.provider,
            "target": request.target or TARGETS[request.provider],
            "threads": request.threads,
            "affinity": list(request.affinity) or None,
            "batch": scenarios.samples_per_query(request),
            "scenario": request.scenario,
            "profile": request.profile,
            "target_qps": request.target_qps,
            "bound_ms": request.bound_ms,
            "copies_included": request.copies,
            "cuda_graph": request.cuda_graph,
            "spin": request.spin,
            "power_mode": surroundings.get("power_mode"),
            "versions": runtime_versions(request.provider),
        },
        "models": {
            model: _model_record(bundle, request, found, model, latency)
            for model, latency in measured.items()
        },
        "speedup": _speedup(request, found, measured),
        "harness": {
            **(
                overhead.to_dict()
                if overhead is not None
                else {"overhead_us": None, "reported_us": None}
            ),
            "clock": "time.perf_counter_ns",
            "clock_step_ns": time.get_clock_info("perf_counter").resolution * 1e9,
        },
        "checks": {**checks, "samples": found.samples, "warnings": warnings},
        "environment": surroundings,
        "meter": found.meter,
        "energy_because": None if request.power else "not asked for; --power measures it",
        "request": request.to_dict(),
        "duration_s": duration_s,
    }
    final: dict[str, Any] = record.plain(made)
    record.validate(final, "record")
    return final


def _model_record(
    bundle: Bundle, request: Request, found: Findings, model: str, latency: Latency
) -> dict[str, Any]:
    name = model_file(bundle, model, request.provider, request.target)
    samples = scenarios.samples_per_query(request)
    percent = scenarios.SCENARIOS[request.scenario].percentile
    made: dict[str, Any] = {
        "file": name,
        "sha256": bundle.manifest["files"][name]["sha256"],
        "size_bytes": bundle.manifest["files"][name]["size_bytes"],
        "latency_ms": latency_figures(latency, percent),
        "samples_per_query": samples,
    }
    if model in found.served:
        load = found.served[model]
        made["throughput_per_s"], made["throughput_interval95"] = load.served_qps * samples, None
        made["server"] = {**load.to_dict(), "tried": found.tried.get(model, [])}
    else:
        made.update(throughput_figures(latency, samples))
    queries, seconds = found.taken.warm_up.get(model, (0, 0.0))
    made["warm_up"] = {"queries": queries, "seconds": seconds}
    made["energy"] = found.energy.get(model)
    made["layers"] = found.layers.get(model)
    if model in found.loadgen:
        made["loadgen"] = found.loadgen[model]
    return made


def _speedup(
    request: Request, found: Findings, measured: dict[str, Latency]
) -> dict[str, Any] | None:
    made = speedup_figures(measured, paired=request.scenario != "server")
    if made is not None and request.bound_ms is not None:
        # At the same load both serve as much; at each one's highest that is the gain.
        teacher, student = (found.served[name].offered_qps for name in ("teacher", "student"))
        made["throughput"] = student / teacher
    return made
