"""What TensorRT says while it works, kept instead of printed.

TensorRT holds on to the first logger that a process gives it, so a process has one of each flavour
and callers listen to it for a while.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any, Iterator

from deploy.engines.bindings import Bindings

# The builder describes the finished engine in one verbose message that starts so.
LAYERS = "Layers:"


@dataclass(eq=False)  # a listener is itself, not what it heard
class Messages:
    """Warnings and errors in order of arrival, each once, and the engine's own description."""

    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)

    def add(self, severity: str, text: str) -> None:
        if severity == "VERBOSE":
            if text.startswith(LAYERS):
                self.layers.append(text)
        elif severity != "INFO":
            kept = self.warnings if severity == "WARNING" else self.errors
            line = " ".join(text.split())
            if line not in kept:
                kept.append(line)

    @property
    def last_error(self) -> str:
        return self.errors[-1] if self.errors else "it gave no reason"

    @property
    def first_error(self) -> str:
        return self.errors[0] if self.errors else "it gave no reason"


_loggers: dict[str, Any] = {}
_listening: list[Messages] = []


def logger_of(bindings: Bindings) -> Any:
    """The ``ILogger`` of this process for these bindings."""
    if bindings.flavour not in _loggers:
        base = bindings.trt.ILogger

        class Logger(base):  # type: ignore[misc, valid-type]
            def __init__(self) -> None:
                base.__init__(self)  # pybind11 insists on its own __init__

            def log(self, severity: Any, message: str) -> None:
                for messages in _listening:
                    messages.add(severity.name, message)

        _loggers[bindings.flavour] = Logger()
    return _loggers[bindings.flavour]


@contextlib.contextmanager
def listening() -> Iterator[Messages]:
    """Collect what is said inside the block."""
    messages = Messages()
    _listening.append(messages)
    try:
        yield messages
    finally:
        _listening.remove(messages)
