"""The table measures graphs that run on integer kernels, once, and remembers them. No time is asserted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from toolchain.structure import latency_table
from toolchain.structure.cost import Cost, Layer
from toolchain.structure.latency_table import LatencyTable
from toolchain.structure.layer_graph import COPIES, Shape, build_graph
from toolchain.structure.plan import Group, Slice

CONV = Shape("conv", 16, 8, 1, (3, 3), (2, 2), (1, 1), (8, 8))
SHAPES = [
    CONV,
    Shape("conv", 8, 8, 8, (3, 3), (1, 1), (1, 1), (8, 8)),
    Shape("transposed", 8, 4, 1, (2, 2), (2, 2), (0, 0), (4, 4)),
    Shape("linear", 16, 10),
    Shape("add", 8, 8, size=(4, 4)),
    Shape("pool", 8, 8, size=(4, 4)),
]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency_table, "ROUNDS", 1)
    monkeypatch.setattr(latency_table, "ROUND_MS", 0.1)


def optimised(shape: Shape, folder: Path) -> list[str]:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(
        build_graph(shape).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return [node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.kind)
@pytest.mark.parametrize("precision", ["int8", "float"])
def test_graphs_are_valid_and_run(shape: Shape, precision: str) -> None:
    shape = Shape(**{**shape.__dict__, "precision": precision})
    model = build_graph(shape)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    dtype = np.uint8 if precision == "int8" else np.float32
    outputs = session.run(None, {"x": np.ones((1, shape.in_channels, *shape.size), dtype)})
    assert len(outputs) == COPIES
    assert all(output.shape[:2] == (1, shape.out_channels) for output in outputs)


def test_convolutions_linears_and_adds_become_integer_kernels(tmp_path: Path) -> None:
    for shape, kernel in (
        (CONV, "QLinearConv"),
        (SHAPES[1], "QLinearConv"),
        (SHAPES[3], "QGemm"),
        (SHAPES[4], "QLinearAdd"),
    ):
        operators = optimised(shape, tmp_path)
        assert operators.count(kernel) == COPIES
        assert not {"Conv", "Gemm", "Add", "Relu", "DequantizeLinear"} & set(operators)


def layers() -> tuple[Cost, list[Group]]:
    cost = Cost(
        {
            "a": Layer(
                "conv",
                3,
                16,
                kernel=(3, 3),
                stride=(1, 1),
                padding=(1, 1),
                input_size=(4, 4),
                output_size=(4, 4),
                positions=16,
            ),
            "n": Layer("norm", 0, 16, bias=True),
            "d": Layer("depthwise", 16, 16, 16, (3, 3), (1, 1), (1, 1), (4, 4), (4, 4), 16),
            "fc": Layer("linear", 16 * 16, 5, positions=1),
        }
    )
    one = tuple((channel,) for channel in range(16))
    spread = tuple(tuple(range(16 * c, 16 * c + 16)) for c in range(16))
    group = Group(
        "a",
        16,
        (
            Slice("a", "out", one),
            Slice("n", "out", one),
            Slice("d", "out", one),
            Slice("fc", "in", spread),
        ),
    )
    return cost, [group]


def test_prepare_measures_what_can_be_asked_and_remembers_it(tmp_path: Path) -> None:
    cost, groups = layers()
    calls: list[tuple[int, int]] = []
    table = LatencyTable(tmp_path, step=8, progress=lambda done, all_: calls.append((done, all_)))
    table.prepare(cost, groups)
    assert calls[-1][0] == calls[-1][1]
    (file,) = tmp_path.iterdir()
    assert onnxruntime.__version__ in file.name
    calls.clear()
    for width in table.widths(16):
        for name, in_, out in (("a", 3, width), ("d", 16, width), ("fc", 16 * width, 5)):
            assert table.time_us(cost.layers[name], in_, out) > 0
    assert table.time_us(cost.layers["a"], 3, 16, precision="float") > 0
    assert table.time_us(cost.layers["n"], 0, 8) == 0
    assert calls == []


def test_known_times_are_read_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cost, groups = layers()
    LatencyTable(tmp_path, step=8).prepare(cost, groups)
    (file,) = tmp_path.iterdir()
    times = dict.fromkeys(json.loads(file.read_text()), 7.0)
    file.write_text(json.dumps(times))

    def measured(*_: object) -> dict[str, float]:
        raise AssertionError("measured again")

    monkeypatch.setattr(latency_table, "_take_turns", measured)
    table = LatencyTable(tmp_path, step=8)
    table.prepare(cost, groups)
    assert table.time_us(cost.layers["a"], 3, 8) == 7.0
    assert table.time_us(cost.layers["a"], 3, 8, adds=2) == 21.0


def test_pools_are_subtracted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pretend(shapes: list[Shape], _: object) -> dict[str, float]:
        return {shape.key: 2.0 if shape.kind == "pool" else 5.0 for shape in shapes}

    monkeypatch.setattr(latency_table, "_take_turns", pretend)
    cost, _ = layers()
    table = LatencyTable(tmp_path)
    assert table.time_us(cost.layers["a"], 3, 16) == 3.0
    assert table.time_us(cost.layers["fc"], 256, 5) == 5.0


@pytest.mark.parametrize(
    ("channels", "widths"),
    [
        (16, (8, 16)),
        (8, (8,)),
        (4, (4,)),
        (20, (8, 16, 20)),
        (128, (16, 32, 48, 64, 80, 96, 112, 128)),
    ],
)
def test_widths_are_few_multiples_of_the_step(
    tmp_path: Path, channels: int, widths: tuple[int, ...]
) -> None:
    assert LatencyTable(tmp_path, step=8).widths(channels) == widths


def test_many_groups_on_one_axis_do_not_explode(tmp_path: Path) -> None:
    count = 40
    cost = Cost({"fc": Layer("linear", 16 * count, 5, positions=1)})
    groups = [
        Group(f"g{i}", 16, (Slice("fc", "in", tuple((16 * i + c,) for c in range(16))),))
        for i in range(count)
    ]
    LatencyTable(tmp_path, step=4).prepare(cost, groups)
    (file,) = tmp_path.iterdir()
    assert len(json.loads(file.read_text())) == 2  # int8 and float, at the whole width
