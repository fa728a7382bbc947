"""Whole runs over a bundle of models that only look like models; the clock is the test's."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import benchmarks.bench
from benchmarks import environment
from benchmarks.bench import Request, run_bench
from benchmarks.records.record import read_record, write_record
from deploy.bundle import Bundle, write_bundle
from deploy.errors import (
    CompressDeployError,
    ConfigError,
    DataError,
    DeviceError,
    StorageError,
    VerificationError,
)
from deploy.power.meter import Trace
from deploy.sessions.session import Feeds, Port

QUICK = {"profile": "quick", "duration_s": 0.1, "queries": 64, "layers": False}


class Machine:
    """Time passes when something runs."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.opened: list[str] = []
        self.open = 0
        self.rng = np.random.default_rng(0)

    def clock_ns(self) -> int:
        return self.now_ns


class Fake:
    """Answers with the mean of each channel; the teacher takes 1 ms, the student 0.5, with outliers."""

    def __init__(self, machine: Machine, name: str, **changes: Any) -> None:
        self.machine, self.name = machine, name
        self.batch = changes.get("batch")
        self.spoil_after = changes.get("spoil_after", 1 << 60)
        self.slow = changes.get("slow", {"teacher": 1.0, "student": 0.5})[name]
        self.spoiled = changes.get("spoiled", np.float32(np.nan))
        self.calls = 0
        machine.opened.append(name)
        machine.open += 1

    @property
    def inputs(self) -> tuple[Port, ...]:
        return (Port("x", (self.batch, 2, 3, 3), "float32"),)

    @property
    def outputs(self) -> tuple[Port, ...]:
        return (Port("logits", (self.batch, 2), "float32"),)

    def run(self, feeds: Feeds) -> Feeds:
        self.calls += 1
        machine = self.machine
        lucky = 1 + 0.01 * machine.rng.random()
        machine.now_ns += round(self.slow * 1e6 * (8 if machine.rng.random() < 0.02 else lucky))
        logits = feeds["x"].mean(axis=(2, 3))
        return {"logits": logits if self.calls <= self.spoil_after else logits * self.spoiled}

    def close(self) -> None:
        self.machine.open -= 1


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    for name in ("student", "teacher"):
        (tmp_path / f"{name}.onnx").write_text(name)
    inputs = np.random.default_rng(0).integers(0, 256, (6, 2, 3, 3), dtype=np.uint8)
    outputs = (inputs.astype(np.float32) / 255).mean(axis=(2, 3))
    return write_bundle(
        tmp_path / "bundle", name="net", targets={"ort-cpu": tmp_path / "student.onnx"},
        input_name="x", input_shape=(2, 3, 3), output_name="logits", classes=["a", "b"],
        mean=(0.0, 0.0), std=(1.0, 1.0), sample_inputs=inputs, sample_outputs=outputs,
        recipe={}, seeds={}, versions={}, files={"teacher.onnx": tmp_path / "teacher.onnx"},
    )  # fmt: skip


def bench(bundle: Bundle, machine: Machine | None = None, **settings: Any) -> dict[str, Any]:
    machine = machine or Machine()
    changes = settings.pop("changes", {})
    extra = {key: settings.pop(key) for key in ("meter", "progress") if key in settings}

    def opener(bundle: Bundle, model: str, **asked: Any) -> Fake:
        return Fake(machine, model, **changes)

    request = Request.from_dict({**QUICK, **settings})
    made = run_bench(bundle, request, opener=opener, clock_ns=machine.clock_ns, **extra)
    assert machine.open == 0, "every session is closed"
    return made


def test_a_record_of_known_latencies(bundle: Bundle, tmp_path: Path) -> None:
    machine = Machine()
    made = bench(bundle, machine, duration_s=0.4, queries=700)
    assert made["status"] == "complete"
    teacher, student = (made["models"][name]["latency_ms"] for name in ("teacher", "student"))
    assert teacher["p50"] == pytest.approx(1.005, abs=0.001)
    assert student["p50"] == pytest.approx(0.5025, abs=0.0005)
    assert student["p90"] == pytest.approx(0.505, abs=0.001)
    assert student["p99"] == pytest.approx(4.0)
    assert made["speedup"]["p50"] == pytest.approx(2.0, abs=0.005)
    low, high = made["speedup"]["interval95"]
    assert 1.98 < low < 2 < high < 2.02
    assert made["models"]["student"]["throughput_per_s"] == pytest.approx(1e3 / 0.572, rel=0.05)
    assert student["early_stopping"]["percentile"] == 90
    assert student["n"] >= 700
    assert len(student["opening_rounds"]) == 10
    assert made["checks"]["samples"]["student"] == {"rows": 6, "agreeing": 6, "max_abs": 0.0}
    assert made["modes"]["target"] == "ort-cpu"
    assert made["energy_because"].startswith("not asked for")
    assert read_record(write_record(made, tmp_path / "r.json"))["models"] == made["models"]


def test_openings_alternate(bundle: Bundle) -> None:
    machine = Machine()
    bench(bundle, machine)
    assert machine.opened == ["teacher", "student", "student", "teacher"] * 5


@pytest.mark.parametrize(
    ("scenario", "samples", "p50"), [("multi-stream", 8, 0.5025), ("offline", 32, 0.5025)]
)
def test_scenarios(bundle: Bundle, scenario: str, samples: int, p50: float) -> None:
    made = bench(bundle, scenario=scenario, queries=700)
    student = made["models"]["student"]
    assert student["samples_per_query"] == made["modes"]["batch"] == samples
    assert student["latency_ms"]["p50"] == pytest.approx(p50, rel=0.01)
    assert student["throughput_per_s"] == pytest.approx(samples * 1e3 / 0.572, rel=0.25)
    stopped = student["latency_ms"]["early_stopping"]
    assert (stopped or {}).get("percentile") == (99 if scenario == "multi-stream" else None)


def test_a_fixed_batch_takes_several_calls(bundle: Bundle) -> None:
    made = bench(bundle, scenario="multi-stream", changes={"batch": 2})
    assert made["models"]["student"]["latency_ms"]["p50"] == pytest.approx(4 * 0.5025, rel=0.01)
    with pytest.raises(ConfigError, match="batch: 3 samples per query; the models take batches of"):
        bench(bundle, batch=3, changes={"batch": 2})


def test_samples_are_checked_in_batches_that_a_model_takes(bundle: Bundle) -> None:
    made = bench(bundle, scenario="multi-stream", changes={"batch": 4})
    assert made["checks"]["samples"]["student"]["agreeing"] == 6
    assert made["checks"]["samples"]["teacher"]["rows"] == 6


def test_one_model_alone(bundle: Bundle) -> None:
    made = bench(bundle, models=["student"])
    assert set(made["models"]) == {"student"}
    assert made["speedup"] is None


def test_wrong_answers_are_refused_before_timing(bundle: Bundle) -> None:
    machine = Machine()
    wrong = {"spoil_after": 0, "spoiled": np.float32(-1)}
    with pytest.raises(VerificationError, match="decisions are the recorded ones"):
        bench(bundle, machine, models=["student"], changes=wrong)
    assert machine.now_ns < 1e7


@pytest.mark.parametrize("model", ["teacher", "student"])
@pytest.mark.parametrize("after", [0, 10])
def test_a_session_that_returns_nan_is_an_error(bundle: Bundle, model: str, after: int) -> None:
    with pytest.raises(VerificationError, match="NaN|nan") as refused:
        bench(bundle, models=[model], changes={"spoil_after": after})
    assert "\n" not in str(refused.value)


def test_a_changed_bundle_is_refused_before_anything_is_loaded(bundle: Bundle) -> None:
    (bundle.folder / "ort-cpu.onnx").write_text("tampered")
    with pytest.raises(StorageError, match=r"ort-cpu\.onnx"):
        Bundle.open(bundle.folder)


def test_a_target_that_is_not_there(bundle: Bundle) -> None:
    with pytest.raises(DataError, match="no model for target 'tensorrt'"):
        run_bench(bundle, Request(target="tensorrt", **QUICK))  # type: ignore[arg-type]


def test_an_interrupt_leaves_a_partial_record(bundle: Bundle, tmp_path: Path) -> None:
    def interrupt(what: str, over: float) -> None:
        if over > 0.3:
            raise KeyboardInterrupt

    made = bench(bundle, progress=interrupt_once(interrupt))
    assert made["status"] == "partial"
    assert made["models"]["student"]["latency_ms"]["n"] > 0
    write_record(made, tmp_path / "r.json")


def interrupt_once(interrupt: Any) -> Any:
    done: list[bool] = []

    def tell(what: str, over: float) -> None:
        if not done:
            try:
                interrupt(what, over)
            except KeyboardInterrupt:
                done.append(True)
                raise

    return tell


def test_an_interrupt_before_anything_was_timed(bundle: Bundle, tmp_path: Path) -> None:
    def interrupt(what: str, over: float) -> None:
        raise KeyboardInterrupt

    made = bench(bundle, progress=interrupt_once(interrupt))
    assert (made["status"], made["models"], made["speedup"]) == ("partial", {}, None)
    write_record(made, tmp_path / "r.json")


def test_sigterm_is_an_interrupt_and_its_handler_goes(bundle: Bundle) -> None:
    before = signal.getsignal(signal.SIGTERM)
    sent: list[int] = []

    def terminate(what: str, over: float) -> None:
        if over > 0.3 and not sent:
            sent.append(1)
            os.kill(os.getpid(), signal.SIGTERM)

    assert bench(bundle, progress=terminate)["status"] == "partial"
    assert signal.getsignal(signal.SIGTERM) == before


def test_runs_in_a_thread_too(bundle: Bundle) -> None:
    made: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: made.append(bench(bundle)))
    thread.start()
    thread.join()
    assert made[0]["status"] == "complete"


def test_throttling_makes_a_record_invalid(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    class Throttled:
        def __init__(self, card: bool) -> None:
            assert not card, "a graphics card does not slow the processor down"

        def start(self) -> None:
            pass

        def stop(self) -> list[str]:
            return ["the processor was throttled 3 times"]

        def summary(self) -> dict[str, Any]:
            return {"watched": ["counters"]}

    monkeypatch.setattr(benchmarks.bench, "ThrottleWatch", Throttled)
    made = bench(bundle)
    assert made["status"] == "invalid"
    assert made["invalid_because"] == ["the processor was throttled 3 times"]
    assert made["environment"]["during"] == {"watched": ["counters"]}


def test_emulation_is_a_warning(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    here = environment.record()
    assert not any("timings do not" in line for line in bench(bundle)["checks"]["warnings"])
    emulated = {**here, "emulation": "the processor is called 'QEMU Virtual CPU'"}
    monkeypatch.setattr(environment, "record", lambda: emulated)
    made = bench(bundle)
    assert f"{emulated['emulation']}: results count, timings do not" in made["checks"]["warnings"]


def test_progress_grows_to_one(bundle: Bundle) -> None:
    heard: list[tuple[str, float]] = []
    bench(bundle, progress=lambda what, over: heard.append((what, over)))
    fractions = [over for _, over in heard]
    assert fractions == sorted(fractions)
    assert heard[-1] == ("done", 1.0)
    assert {what for what, _ in heard} == {"loading", "single-stream", "statistics", "done"}


def test_engines_time_their_own_layers(bundle: Bundle) -> None:
    machine = Machine()

    class Engine(Fake):
        def layer_times_us(self, feeds: Feeds) -> dict[str, float]:
            assert feeds["x"].shape == (1, 2, 3, 3)
            return {"conv": 3.0, "head": 1.0}

    request = Request.from_dict({**QUICK, "layers": True, "models": ["student"],
                                 "provider": "ort-cuda", "target": "ort-cpu"})  # fmt: skip
    made = run_bench(
        bundle,
        request,
        opener=lambda bundle, model, **_: Engine(machine, model),
        clock_ns=machine.clock_ns,
    )
    layers = made["models"]["student"]["layers"]
    assert [(layer["name"], layer["share"]) for layer in layers] == [("conv", 0.75), ("head", 0.25)]


class Meter:
    """A meter whose trace is 5 W throughout."""

    name = "constant"

    def describe(self) -> dict[str, Any]:
        return {"name": self.name}

    def start(self) -> None:
        self.began = time.monotonic()

    def stop(self) -> Trace:
        time_s = np.arange(self.began - 0.01, time.monotonic() + 0.02, 0.005)
        power_w = 5 + 1e-3 * (np.arange(len(time_s)) % 3)
        return Trace(time_s, power_w, {}, len(time_s), "constant", 0.005)


def test_energy(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    short = benchmarks.bench.ENERGY_PROFILES["quick"].__class__(0.15, 2, 0.15, 0.01)
    monkeypatch.setitem(benchmarks.bench.ENERGY_PROFILES, "quick", short)
    made = bench(bundle, power=True, meter=Meter())
    assert made["meter"]["name"] == "constant"
    assert made["energy_because"] is None
    for model in made["models"].values():
        assert model["energy"]["power_w"] == pytest.approx(5, rel=0.01)
        assert model["energy"]["total_j"] > 0


def test_no_sensor_is_an_error_before_anything_is_loaded(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(**_: Any) -> None:
        raise DeviceError("power: no sensor")

    monkeypatch.setattr(benchmarks.bench, "find_meter", absent)
    machine = Machine()
    with pytest.raises(CompressDeployError, match="no sensor"):
        bench(bundle, machine, power=True)
    assert machine.opened == []
