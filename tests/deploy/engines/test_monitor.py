from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from deploy.engines import monitor as module
from deploy.engines.monitor import progress_monitor

TRT = SimpleNamespace(IProgressMonitor=object)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    monkeypatch.setattr(module, "AT_MOST_EVERY_S", -1.0)
    return []


def monitor_of(seen: list[tuple[str, float]]) -> Any:
    return progress_monitor(TRT, lambda phase, share: seen.append((phase, share)))


def test_inner_phases_are_parts_of_the_outer_ones(seen: list[tuple[str, float]]) -> None:
    monitor = monitor_of(seen)
    monitor.phase_start("build", None, 2)
    monitor.phase_start("graph", "build", 4)
    for step in range(4):
        assert monitor.step_complete("graph", step)
    monitor.phase_finish("graph")
    monitor.step_complete("build", 0)
    monitor.phase_start("kernels", "build", 2)
    monitor.step_complete("kernels", 0)
    shares = [share for _, share in seen]
    assert shares == pytest.approx([0.125, 0.25, 0.375, 0.5, 0.75])
    assert seen[0][0] == "graph"
    assert seen[-1][0] == "kernels"


def test_it_never_goes_back(seen: list[tuple[str, float]]) -> None:
    monitor = monitor_of(seen)
    monitor.phase_start("build", None, 10)
    for step in (4, 1, 2, 4, 5):
        monitor.step_complete("build", step)
    assert [share for _, share in seen] == pytest.approx([0.5, 0.6])


def test_steps_of_unknown_or_empty_phases(seen: list[tuple[str, float]]) -> None:
    monitor = monitor_of(seen)
    assert monitor.step_complete("unknown", 3)
    monitor.phase_start("build", None, 0)
    assert monitor.step_complete("build", 5)
    assert all(0 <= share <= 1 for _, share in seen)
    monitor.phase_finish("never started")


def test_it_is_not_told_too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AT_MOST_EVERY_S", 3600.0)
    monkeypatch.setattr(module.time, "monotonic", lambda: 7200.0)
    seen: list[tuple[str, float]] = []
    monitor = monitor_of(seen)
    monitor.phase_start("build", None, 10)
    for step in range(10):
        monitor.step_complete("build", step)
    assert len(seen) == 1


def test_a_build_that_nobody_waits_for_is_given_up(seen: list[tuple[str, float]]) -> None:
    def gone(phase: str, share: float) -> None:
        raise BrokenPipeError

    monitor = progress_monitor(TRT, gone)
    monitor.phase_start("build", None, 2)
    assert not monitor.step_complete("build", 0)
