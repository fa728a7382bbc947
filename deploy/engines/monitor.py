"""How far a build is, from TensorRT's own phases."""

from __future__ import annotations

import threading
import time
from typing import Any

from deploy.engines.worker import Progress

AT_MOST_EVERY_S = 0.1


def progress_monitor(trt: Any, progress: Progress) -> Any:
    """An ``IProgressMonitor`` that turns nested phases into one fraction, which only grows."""
    phases: dict[str, list[Any]] = {}
    lock = threading.Lock()  # the builder calls from several threads
    last = [0.0, -1.0]

    def fraction(name: str) -> float:
        _, done, steps = phases[name]
        inside = [child for child, (parent, _, _) in phases.items() if parent == name]
        return (done + max((fraction(child) for child in inside), default=0.0)) / max(steps, 1)

    def report(name: str) -> None:
        roots = [root for root, (parent, _, _) in phases.items() if parent not in phases]
        now, share = time.monotonic(), min(1.0, fraction(roots[0])) if roots else last[1]
        if share > last[1] and now - last[0] > AT_MOST_EVERY_S:
            last[:] = now, share
            progress(name, share)

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with lock:
                phases[phase_name] = [parent_phase, 0, num_steps]

        def phase_finish(self, phase_name: str) -> None:
            with lock:
                phases.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with lock:
                if phase_name in phases:
                    phases[phase_name][1] = step + 1
                try:
                    report(phase_name)
                except (BrokenPipeError, ValueError):
                    return False  # nobody waits for the answer any more
            return True

    return Monitor()
