"""Targets: the runtimes that a graph is lowered for, and how far their grids of activations reach.

ort-cpu         ONNX Runtime's integer kernels on a processor: values after a ReLU are uint8
tensorrt        TensorRT and TensorRT-RTX: every activation is int8, what is not integer is float32
tensorrt-fp16   the same with float16 in place of float32: TensorRT from 10.12 on takes the types
                that a graph has and no others
"""

from __future__ import annotations

from typing import Iterable, Literal

Target = Literal["ort-cpu", "tensorrt", "tensorrt-fp16"]
TARGETS: tuple[Target, ...] = ("ort-cpu", "tensorrt", "tensorrt-fp16")
# Steps above zero of a value that is never below: uint8 has 255, int8 has 127.
WIDE, PORTABLE = 255, 127


def unsigned_steps(targets: Iterable[str]) -> int:
    """The most steps above zero that every one of ``targets`` can store.

    >>> unsigned_steps(["ort-cpu"]), unsigned_steps(["ort-cpu", "tensorrt"])
    (255, 127)
    """
    return WIDE if set(targets) <= {"ort-cpu"} else PORTABLE
