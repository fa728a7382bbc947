"""Many devices at once."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from deploy.bundle import Bundle
from deploy.devices.device import Device
from deploy.devices.fleet import Outcome, run_fleet
from deploy.errors import ConfigError, DeviceError


class Fake:
    """A device that takes a moment; counts how many of its kind are at work."""

    def __init__(self, name: str, counter: Counter, act: Callable[[], None] = lambda: None) -> None:
        self.name, self.closed = name, 0
        self._counter, self._act = counter, act

    def check(self, needs: object = None) -> dict[str, Any]:
        with self._counter:
            time.sleep(random.uniform(0.001, 0.01))
            self._act()
            return {"ready": True, "device": {"name": self.name}}

    def bench(self, bundle: Path, request: Mapping[str, Any], progress: object = None) -> Any:
        raise AssertionError

    def build(self, *given: object) -> Any:
        raise AssertionError

    def close(self) -> None:
        self.closed += 1


class Counter:
    """How many are inside, and the most that ever were."""

    def __init__(self) -> None:
        self._lock, self._inside, self.most = threading.Lock(), 0, 0

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            self.most = max(self.most, self._inside)

    def __exit__(self, *ignored: object) -> None:
        with self._lock:
            self._inside -= 1


def fail() -> None:
    raise DeviceError("it burns")


def check(device: Device) -> dict[str, Any]:
    return device.check()


def test_two_hundred_devices_with_a_bounded_number_at_a_time() -> None:
    counter, told = Counter(), list[str]()
    devices = [
        Fake(f"board{i}", counter, fail if i % 10 == 3 else lambda: None) for i in range(200)
    ]
    outcomes = run_fleet(
        devices, check, at_once=12, done=lambda outcome: told.append(outcome.device)
    )
    assert 1 < counter.most <= 12
    assert [outcome.device for outcome in outcomes] == [device.name for device in devices]
    assert sorted(told) == sorted(device.name for device in devices)
    for i, outcome in enumerate(outcomes):
        if i % 10 == 3:
            assert outcome == Outcome(f"board{i}", None, "it burns") and not outcome
        else:
            assert outcome.result is not None
            assert outcome.result["device"]["name"] == f"board{i}" and outcome
    assert all(device.closed for device in devices)


def test_a_bug_is_not_an_outcome_and_stops_nobody() -> None:
    def bug() -> None:
        raise ZeroDivisionError

    counter = Counter()
    devices = [Fake("bad", counter, bug), *(Fake(f"good{i}", counter) for i in range(5))]
    told: list[str] = []
    with pytest.raises(ZeroDivisionError):
        run_fleet(devices, check, at_once=2, done=lambda outcome: told.append(outcome.device))
    assert sorted(told) == [f"good{i}" for i in range(5)]
    assert all(device.closed for device in devices)


def test_interrupted_it_stops_those_that_run_and_begins_no_more() -> None:
    counter, interrupted = Counter(), list[bool]()
    devices = [Fake(f"board{i}", counter) for i in range(50)]

    def interrupt(outcome: Outcome) -> None:
        if not interrupted:
            interrupted.append(True)
            raise KeyboardInterrupt

    outcomes = run_fleet(devices, check, at_once=2, done=interrupt)
    assert [outcome.device for outcome in outcomes] == [device.name for device in devices]
    left = [outcome for outcome in outcomes if not outcome]
    assert left and {outcome.error for outcome in left} == {"interrupted before it began"}
    assert len(left) < len(outcomes) and all(device.closed for device in devices)


def test_interrupted_twice_it_gives_up() -> None:
    devices = [Fake(f"board{i}", Counter()) for i in range(5)]

    def interrupt(outcome: Outcome) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_fleet(devices, check, at_once=2, done=interrupt)


def test_an_error_does_not_repeat_the_name() -> None:
    def fail_by_name() -> None:
        raise DeviceError("board: it burns")

    (outcome,) = run_fleet([Fake("board", Counter(), fail_by_name)], check)
    assert outcome.error == "it burns"


@pytest.mark.parametrize(
    ("names", "at_once", "said"),
    [
        ([], 1, "no device"),
        (["a", "b", "a"], 1, r"\['a'\] more than once"),
        (["a"], 0, "at_once is 0"),
    ],
)
def test_what_makes_no_fleet_is_refused(names: list[str], at_once: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        run_fleet([Fake(name, Counter()) for name in names], check, at_once=at_once)


@pytest.mark.slow
def test_real_connections_are_bounded_too(
    sshd: Any, bundle: Bundle, runner: Callable[[], bytes]
) -> None:
    devices = [sshd.device(runner, name=f"board{i}") for i in range(3)]
    devices.insert(1, sshd.device(runner, name="absent", python="/no/such/python"))
    most, stop = [0], threading.Event()

    def count() -> None:
        while not stop.wait(0.002):
            most[0] = max(most[0], sum(len(device.ssh_processes) for device in devices))

    counting = threading.Thread(target=count)
    counting.start()
    try:
        outcomes = run_fleet(devices, lambda device: device.check(), at_once=2)
    finally:
        stop.set()
        counting.join()
    assert 1 <= most[0] <= 2
    assert [bool(outcome) for outcome in outcomes] == [True, False, True, True]
    assert "there is no /no/such/python there" in (outcomes[1].error or "")
    assert not any(device.ssh_processes for device in devices)
