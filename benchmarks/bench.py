"""One benchmark run over a bundle: checked, timed in turns, its energy and layers measured.

The order is fixed.  The bundle's samples are run first: a model that answers something else is
refused before it is timed.  Then latency, teacher and student in turns; energy; the cross-check;
layers; statistics last.  An interrupt (Ctrl-C, SIGTERM) ends the measuring, and what there is until
then becomes a record marked partial.

Where a model's memory happens to lie makes a percent of difference for as long as it is loaded, so
models are closed and opened again during the latency run, in alternating order and with some memory
taken up before each; ``benchmarks.statistics.intervals`` says how intervals count that in.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from typing import Any, Callable, Iterator, Mapping

import numpy as np

from benchmarks.energy.measuring import PROFILES as ENERGY_PROFILES
from benchmarks.energy.measuring import measure_energy
from benchmarks.records.findings import Findings, make_record
from benchmarks.records.request import Request
from benchmarks.steps import Progress, Steps, interruptible
from benchmarks.timing import loadgen, scenarios, server
from benchmarks.timing.interleaving import Call, Clock, interleave, measure_overhead
from deploy.bundle import Bundle
from deploy.errors import ConfigError, VerificationError
from deploy.machine.throttling import ThrottleWatch
from deploy.power.finding import find_meter
from deploy.power.meter import PowerMeter
from deploy.sessions.affinity import pinned
from deploy.sessions.opening import LayerTimed, bound_call, model_file, open_session
from deploy.sessions.rows import run_rows
from deploy.sessions.session import Feeds, Session

__all__ = ["Request", "run_bench"]

Opener = Callable[..., Session]
_TAKEN_UP_BYTES = 1 << 21


def run_bench(
    bundle: Bundle,
    request: Request,
    *,
    meter: PowerMeter | None = None,
    progress: Progress | None = None,
    opener: Opener = open_session,
    clock_ns: Clock = time.perf_counter_ns,
) -> dict[str, Any]:
    """The record (see ``benchmarks.records.record``) of what was asked.

    ``meter`` measures the energy, if the request asks for it; one is found where none is given.
    ``progress`` hears what is being done and which share of the run is over, in [0, 1].

    Raises:
        ConfigError, DataError: The request does not fit the bundle.
        VerificationError: A model answers something else than the bundle says, or NaN.
        DeviceError, MissingDependency: A runtime, a sensor or the cross-check is not there.
    """
    started = time.monotonic()
    for model in request.models:  # before a sensor or a runtime is touched
        model_file(bundle, model, request.provider, request.target)
    steps = Steps(progress, request)
    run = _Run(bundle, request, _meter(request, meter), steps, opener, clock_ns)
    with interruptible():
        try:
            run.measure()
        except KeyboardInterrupt:
            run.found.interrupted = True
        steps.enter("statistics")
        made = make_record(bundle, request, run.found, time.monotonic() - started)
    steps.enter("done")
    return made


@dataclass
class _Run:
    """What a run is made of, and what it found."""

    bundle: Bundle
    request: Request
    meter: PowerMeter | None
    steps: Steps
    opener: Opener
    clock_ns: Clock
    found: Findings = field(default_factory=Findings)
    feeds: Feeds = field(default_factory=dict)

    def measure(self) -> None:
        self.steps.enter("loading")
        watch = ThrottleWatch(card=self.request.provider != "ort-cpu")
        watch.start()
        try:
            self._measure_openings()
        finally:
            self.found.throttled = list(watch.stop())
            self.found.during = watch.summary()
        if self.request.layers and self.request.provider == "ort-cpu":
            self.steps.enter("layers")
            self.found.layers = self._layers()

    def _measure_openings(self) -> None:
        place, openings = 0, 1
        while place < openings:
            before = self.clock_ns()
            with self._opened(place) as sessions:
                if place == 0:
                    for model, session in sessions.items():
                        self.found.samples[model] = _check(self.bundle, model, session)
                calls = self._calls(sessions)
                if place == 0:
                    openings = scenarios.openings(self.request, (self.clock_ns() - before) / 1e9)
                    self.steps.enter(self.request.scenario)
                self._latency(calls, place, openings)
                for model, session in sessions.items():
                    _require_finite(model, session.run(self.feeds))
                if place == openings - 1:
                    self._energy(calls)
                    self._cross_check(calls)
                    self._engine_layers(sessions)
            place += 1

    @contextlib.contextmanager
    def _opened(self, place: int) -> Iterator[dict[str, Session]]:
        """Fresh sessions; every other time in reverse order."""
        rng = np.random.default_rng([self.request.seed, place])
        models = list(self.request.models)[:: -1 if place % 2 else 1]
        sessions: dict[str, Session] = {}
        taken_up = []
        try:
            for model in models:
                taken_up.append(bytearray(int(rng.integers(1, _TAKEN_UP_BYTES))))
                sessions[model] = _open(self.bundle, self.request, model, self.opener)
            yield sessions
        finally:
            for session in sessions.values():
                session.close()

    def _calls(self, sessions: Mapping[str, Session]) -> dict[str, Call]:
        """A query of each, on inputs of its own."""
        made = {}
        for model, session in sessions.items():
            self.feeds, times = _feeds(self.bundle, self.request, sessions)
            call = bound_call(session, self.feeds, copies=self.request.copies)
            made[model] = _query(call, times)
        return made

    def _latency(self, calls: Mapping[str, Call], place: int, openings: int) -> None:
        with pinned(self.request.affinity):
            if self.request.scenario == "server":
                self.found.taken.empty_ns = measure_overhead(self.clock_ns).empty_ns
                server.serve_all(
                    calls,
                    self.request,
                    self.found.served,
                    self.found.tried,
                    clock_ns=self.clock_ns,
                    progress=self.steps.part,
                )
                return
            interleave(
                calls,
                scenarios.share(scenarios.floors(self.request), place, openings),
                taken=self.found.taken,
                clock_ns=self.clock_ns,
                progress=lambda over: self.steps.part((place + over) / openings),
            )

    def _energy(self, calls: Mapping[str, Call]) -> None:
        if self.meter is None:
            return
        self.steps.enter("energy")
        self.found.energy, self.found.meter = measure_energy(
            calls,
            scenarios.samples_per_query(self.request),
            self.meter,
            ENERGY_PROFILES[self.request.profile],
            affinity=self.request.affinity,
            progress=self.steps.part,
        )

    def _cross_check(self, calls: Mapping[str, Call]) -> None:
        if not self.request.loadgen:
            return
        self.steps.enter("loadgen")
        with pinned(self.request.affinity):
            for place, (model, call) in enumerate(calls.items()):
                self.found.loadgen[model] = loadgen.cross_check(call)
                self.steps.part((place + 1) / len(calls))

    def _engine_layers(self, sessions: Mapping[str, Session]) -> None:
        """Of engines, which time their own layers; last, for it unloads the inputs."""
        for model, session in sessions.items():
            if self.request.layers and isinstance(session, LayerTimed):
                times_us = session.layer_times_us(self.feeds)
                total_us = sum(times_us.values())
                self.found.layers[model] = [
                    {"name": name, "op_type": None, "kernel": None, "time_us": time_us,
                     "share": time_us / total_us if total_us else None}
                    for name, time_us in times_us.items()
                ]  # fmt: skip

    def _layers(self) -> dict[str, Any]:
        from benchmarks.timing.layer_times import measure_layers

        return {
            model: [
                layer.to_dict()
                for layer in measure_layers(
                    self.bundle.folder
                    / model_file(self.bundle, model, self.request.provider, self.request.target),
                    self.feeds,
                    threads=self.request.threads,
                )
            ]
            for model in self.request.models
        }


def _meter(request: Request, given: PowerMeter | None) -> PowerMeter | None:
    """Found before anything is loaded: who asked for energy and has no sensor learns it at once."""
    if not request.power:
        return None
    if given is not None:
        return given
    return find_meter(provider=request.provider, wanted=request.meter, total=request.rails)


def _open(bundle: Bundle, request: Request, model: str, opener: Opener) -> Session:
    return opener(
        bundle,
        model,
        provider=request.provider,
        target=request.target,
        threads=request.threads,
        affinity=request.affinity,
        spin=request.spin,
        cuda_graph=request.cuda_graph,
    )


def _feeds(bundle: Bundle, request: Request, sessions: Mapping[str, Session]) -> tuple[Feeds, int]:
    """Inputs of one call, made of the bundle's samples, and how many calls a query takes."""
    samples = scenarios.samples_per_query(request)
    fixed = {session.inputs[0].shape[0] for session in sessions.values()} - {None}
    batch = samples
    for size in fixed:
        assert size is not None
        if len(fixed) > 1 or samples % size:
            raise ConfigError(
                f"batch: {samples} samples per query; the models take batches of "
                f"{sorted(s for s in fixed if s)}: give a multiple, or build them with another"
            )
        batch = size
    images_u8, _ = bundle.samples()
    chosen = images_u8[np.arange(batch) % len(images_u8)]
    return {bundle.manifest["input"]["name"]: bundle.preprocess(chosen)}, samples // batch


def _query(call: Call, times: int) -> Call:
    """A query of several calls, where the model's batch is fixed and smaller."""
    if times == 1:
        return call

    def query() -> None:
        for _ in range(times):
            call()

    return query


def _check(bundle: Bundle, model: str, session: Session) -> dict[str, Any]:
    """The student has to answer as recorded; of the teacher only its agreement is told.

    Raises:
        VerificationError: It does not, or an answer is not finite.
    """
    if model == "student":
        check = bundle.verify_samples(session).require()
        return {"rows": check.rows, "agreeing": check.agreeing, "max_abs": check.max_abs}
    images_u8, wanted_NK = bundle.samples()
    feeds = {bundle.manifest["input"]["name"]: bundle.preprocess(images_u8)}
    outputs = run_rows(session, feeds)
    _require_finite(model, outputs)
    got_NK = outputs[bundle.manifest["output"]["name"]]
    if got_NK.shape != wanted_NK.shape:
        raise VerificationError(
            f"{bundle.folder}: the teacher answers {got_NK.shape} where the student's samples are "
            f"{wanted_NK.shape}; it is another model"
        )
    same = int((got_NK.argmax(axis=1) == wanted_NK.argmax(axis=1)).sum())
    return {"rows": len(wanted_NK), "agreeing": same, "max_abs": None}


def _require_finite(model: str, outputs: Feeds) -> None:
    for name, array in outputs.items():
        if not np.isfinite(array).all():
            raise VerificationError(
                f"{model}: output {name!r} holds NaN or infinity; its speed means nothing, check "
                "the model and the runtime's version"
            )
