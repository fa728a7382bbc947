"""The grid of one Q or DQ node: scale, zero point and type of the codes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Grid:
    """Scale, zero point and type of the codes of one Q or DQ node.

    ``scale`` is None where it is not constant.  ``zero_point`` is None where it is absent or not
    constant; ``zero_is_constant`` tells the two apart.  ``dtype`` is ONNX's name, e.g. ``int8``.
    """

    scale: np.ndarray | None
    zero_point: np.ndarray | None
    zero_is_constant: bool
    dtype: str
    axis: int
    block_size: int

    @property
    def per_channel(self) -> bool:
        return self.scale is not None and self.scale.size > 1 and not self.block_size

    def __str__(self) -> str:
        if self.scale is None:
            return f"{self.dtype} with a scale that is not constant"
        scale = (
            f"scale {self.scale.ravel()[0]:.6g}"
            if self.scale.size == 1
            else f"{self.scale.size} scales"
        )
        zero = 0 if self.zero_point is None else int(np.ravel(self.zero_point)[0])
        return f"{self.dtype}, {scale}, zero point {zero}"

    @property
    def lowest(self) -> float:
        """The real value of code 0 of the range, e.g. 0 for uint8 with zero point 0."""
        assert self.scale is not None
        info = np.iinfo(self.dtype)
        zero = 0 if self.zero_point is None else int(np.ravel(self.zero_point)[0])
        return (info.min - zero) * float(np.ravel(self.scale)[0])

    @property
    def highest(self) -> float:
        assert self.scale is not None
        info = np.iinfo(self.dtype)
        zero = 0 if self.zero_point is None else int(np.ravel(self.zero_point)[0])
        return (info.max - zero) * float(np.ravel(self.scale)[0])

    def same_as(self, other: Grid) -> bool | None:
        """Whether both are one grid; None where that is not constant."""
        if self.scale is None or other.scale is None:
            return None
        mine, theirs = (
            np.zeros(1) if zero is None else np.ravel(zero).astype(np.int64)
            for zero in (self.zero_point, other.zero_point)
        )
        return (
            self.dtype == other.dtype
            and np.array_equal(np.ravel(self.scale), np.ravel(other.scale), equal_nan=True)
            and (np.array_equal(mine, theirs) or not (mine.any() or theirs.any()))
        )
