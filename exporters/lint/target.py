"""What a graph is linted for: a runtime, its version, and whether it shall run on a DLA.

Opset limits: the heading of docs/operators.md in the onnx-tensorrt repository at 8.0, 8.5, 9.2, 10.0 and
10.15, and NVIDIA's "ONNX Opset Guide" for 11.x.  Typing: strong typing is complete from 10.12 and the only
one from 11.0 on (TensorRT 11 migration guide; the bindings of 11.4 have no precision flags).  DLA: 10.7 is
the last 10.x with DLA ("Working with DLA", TensorRT 11.4.1), Orin has it back from 11.4.1 on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from deploy.errors import ConfigError
from deploy.targets import TARGETS, Target

Version = tuple[int, int]

# Highest opset that the importer of this version and later ones is documented for.
_TENSORRT_OPSETS: dict[Version, int] = {
    (8, 0): 13,
    (8, 5): 17,
    (9, 2): 19,
    (10, 0): 20,
    (10, 15): 24,
    (11, 0): 25,
}
_NEWEST = (11, 99)
# ONNX Runtime 1.31.1 loads these, tried one by one.
_ORT_OPSETS = (7, 26)
# Documented as the least: 7 for TensorRT 8, 9 from 10.0 on.
_LEAST_BEFORE_10, _LEAST_FROM_10 = 7, 9


@dataclass(frozen=True)
class LintTarget:
    """A runtime; ``version`` is that of TensorRT and means nothing for ONNX Runtime."""

    runtime: Target
    version: Version = _NEWEST
    dla: bool = False

    @classmethod
    def parse(cls, runtime: str, version: str = "11", dla: bool = False) -> LintTarget:
        """From what a user writes; a version without a minor number is the newest of that major one.

        Raises:
            ConfigError: There is no such target or version, or the target has no DLA.
        """
        if runtime not in TARGETS:
            raise ConfigError(f"target: unknown {runtime!r}; choose from {', '.join(TARGETS)}")
        match = re.fullmatch(r"(\d+)(?:\.(\d+)(?:\.\d+)*)?", version)
        if match is None or not 8 <= int(match[1]) <= _NEWEST[0]:
            raise ConfigError(
                f"--tensorrt: {version!r} is not a version that is known here; accepted is 8 to "
                f"{_NEWEST[0]}, with a minor number if you have one, e.g. 10.3"
            )
        chosen = next(known for known in TARGETS if known == runtime)
        if dla and chosen == "ort-cpu":
            raise ConfigError(
                "--dla: ort-cpu has no DLA; accepted is --target tensorrt or tensorrt-fp16"
            )
        return cls(chosen, (int(match[1]), int(match[2] or 99)), dla)

    @property
    def is_tensorrt(self) -> bool:
        return self.runtime != "ort-cpu"

    @property
    def least_opset(self) -> int:
        if not self.is_tensorrt:
            return _ORT_OPSETS[0]
        return _LEAST_FROM_10 if self.version >= (10, 0) else _LEAST_BEFORE_10

    @property
    def documented_opset(self) -> int:
        """The highest that this version is documented for."""
        if not self.is_tensorrt:
            return _ORT_OPSETS[1]
        return max(
            (limit for since, limit in _TENSORRT_OPSETS.items() if since <= self.version),
            default=min(_TENSORRT_OPSETS.values()),
        )

    @property
    def possible_opset(self) -> int:
        """The limit of the next version that has another one: up to there it may work."""
        later = [limit for since, limit in _TENSORRT_OPSETS.items() if since > self.version]
        return min(later) if self.is_tensorrt and later else self.documented_opset

    @property
    def always_strongly_typed(self) -> bool:
        return self.is_tensorrt and self.version >= (11, 0)

    @property
    def has_dla(self) -> bool:
        return self.is_tensorrt and (self.version <= (10, 7) or self.version >= (11, 4))

    def __str__(self) -> str:
        if not self.is_tensorrt:
            return self.runtime
        major, minor = self.version
        number = f"{major}.x" if minor == 99 else f"{major}.{minor}"
        return f"{self.runtime} (TensorRT {number}{', DLA' if self.dla else ''})"
