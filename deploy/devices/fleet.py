"""The same work on many devices, so many at a time; one that fails does not stop the rest."""

from __future__ import annotations

import threading
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Callable, Sequence

from deploy.devices.device import Device
from deploy.errors import CompressDeployError, ConfigError

AT_ONCE = 16


@dataclass(frozen=True)
class Outcome:
    """What one device returned, or why it did not; truthy when it returned."""

    device: str
    result: dict[str, Any] | None
    error: str | None = None

    def __bool__(self) -> bool:
        return self.result is not None


def run_fleet(
    devices: Sequence[Device],
    work: Callable[[Device], dict[str, Any]],
    *,
    at_once: int = AT_ONCE,
    done: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """``work`` on every device, at most ``at_once`` at a time; outcomes in the order of ``devices``.

    A device holds at most one ssh process, so ``at_once`` bounds those too.  Each is closed when its
    work has ended.  What ``work`` raises on purpose becomes the outcome's ``error``; any other
    exception is a bug and is raised when all devices have ended.  ``done`` is called with each
    outcome as it comes, in this thread.

    Interrupted from the keyboard, what runs is told to end and no more begins: the outcomes hold
    what there is, which may be partial.  A second interrupt is raised.

    Raises:
        ConfigError: No device, the same one twice, or ``at_once`` below 1.
    """
    names = [device.name for device in devices]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names or twice:
        given = f"{twice} more than once" if twice else "no device"
        raise ConfigError(f"devices: {given} given; name each device once, at least one")
    if at_once < 1:
        raise ConfigError(f"at_once is {at_once}; at least 1 device has to run at a time")
    stopped = threading.Event()
    outcomes: dict[str, Outcome] = {}
    bugs: list[BaseException] = []
    with ThreadPoolExecutor(max_workers=min(at_once, len(devices))) as pool:
        waiting = {pool.submit(_run, device, work, stopped): device.name for device in devices}
        while waiting:
            try:
                ended, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in ended:
                    name, problem = waiting[future], future.exception()
                    if problem is not None:
                        bugs.append(problem)
                    else:
                        outcomes[name] = future.result()
                    del waiting[future]  # last: an interrupt before it finds the future again
                    if done is not None and name in outcomes:
                        done(outcomes[name])
            except BaseException as problem:
                again = stopped.is_set()
                stopped.set()  # those that have not begun do not begin; those that run are told
                for device in devices:
                    device.close()
                if again or not isinstance(problem, KeyboardInterrupt):
                    raise
    if bugs:
        raise bugs[0]
    return [outcomes[name] for name in names]


def _run(
    device: Device, work: Callable[[Device], dict[str, Any]], stopped: threading.Event
) -> Outcome:
    if stopped.is_set():
        return Outcome(device.name, None, "interrupted before it began")
    try:
        return Outcome(device.name, work(device))
    except CompressDeployError as error:
        said, prefix = str(error), f"{device.name}: "
        return Outcome(device.name, None, said[len(prefix) :] if said.startswith(prefix) else said)
    finally:
        device.close()
