"""Which processors the calling thread may use, for as long as something is measured."""

from __future__ import annotations

import contextlib
import os
from typing import Iterator, Sequence

from deploy.errors import DeviceError


@contextlib.contextmanager
def pinned(processors: Sequence[int]) -> Iterator[None]:
    """Keep the calling thread on the first of ``processors``; on none given, where it is.

    The others belong to the threads of the runtime, which pins them itself.

    Raises:
        DeviceError: This system cannot pin, or this process may not use one of the processors.
    """
    if not processors:
        yield
        return
    if not hasattr(os, "sched_setaffinity"):
        raise DeviceError("affinity: this system cannot pin threads; leave it out")
    before = os.sched_getaffinity(0)
    denied = sorted(set(processors) - before)
    if denied:
        raise DeviceError(
            f"affinity: this process may not use processors {denied}; choose from {sorted(before)}"
        )
    os.sched_setaffinity(0, {processors[0]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
