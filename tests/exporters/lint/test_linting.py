"""The linter against its corpus, against NVIDIA's importer and against ONNX Runtime's executed graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from deploy.errors import ConfigError, DeviceError, StorageError
from deploy.sessions.ort import OrtCpuSession
from exporters.lint.finding import LEVELS
from exporters.lint.linting import has_errors, lint
from exporters.lint.ort_kernels import left_in_float
from exporters.lint.registry import rules
from exporters.lint.signatures import misfits, schema_of
from exporters.lint.view import GraphView, label
from exporters.ort_graph import kernel_report
from tests.exporters.lint import corpus_odd
from tests.exporters.lint.canvas import Canvas
from tests.exporters.lint.corpus import CASES, Case

# ONNX Runtime does not load these: refusing them is an error of the linter, checked below.
NOT_LOADED = {
    "custom-operator",
    "custom-operator-with-a-standard-name",
    "half-input-float-scale",
    "half-scales-opset-18",
    "input-that-nobody-makes",
    "operator-newer-than-the-opset",
    "opset-27",
    "shapes-that-do-not-fit",
    "unknown-operator",
    "value-made-twice",
}


def worse_than_notes(model: onnx.ModelProto, target: str) -> set[str]:
    return {finding.rule for finding in lint(model, target) if finding.level != "note"}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_finds_what_is_wrong_and_nothing_else(case: Case) -> None:
    model = case.model()
    assert worse_than_notes(model, "tensorrt") == case.tensorrt
    assert worse_than_notes(model, "ort-cpu") == case.ort


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_agrees_with_the_importer(case: Case) -> None:
    """A graph is refused by NVIDIA's importer exactly when a finding says so."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    from deploy.engines.importer import import_onnx

    model = case.model()
    findings = lint(model, "tensorrt")
    verdict = import_onnx(model.SerializeToString(), runtime="rtx")
    assert any(finding.refused_by_importer for finding in findings) is not verdict.accepted, (
        verdict.problems
    )


def test_every_error_that_is_accepted_says_so() -> None:
    """Errors are refusals of the importer, or rules that are known to be let through by it."""
    let_through = {
        finding.rule
        for case in CASES.values()
        for finding in lint(case.model(), "tensorrt")
        if finding.level == "error" and not finding.refused_by_importer
    }
    assert let_through == {
        "FILE-OPSET",
        "GRID-PER-CHANNEL-ACTIVATION",
        "GRID-SCALE",
        "GRID-SCALE-NOT-CONSTANT",
        "GRID-UINT8-ACTIVATION",
        "GRID-UINT8-WEIGHTS",
        "GRID-ZERO-POINT-NOT-CONSTANT",
        "OP-ATTRIBUTES",  # of another type, read as 0
        "OP-CUSTOM",
        "OP-INPUTS",  # an operator without its last one
        "OP-UNKNOWN",
        "PAIR-TWO-GRIDS",
        "SHAPE-CONTRADICTION",  # Expand, Split, lists of a Conv
        "SHAPE-EMPTY",
        "SHAPE-MISSING",  # an engine for one value
        "TYPE-HALF-SCALE",
        "WEIGHT-AXIS",
    }


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_agrees_with_the_graph_that_onnx_runtime_executes(case: Case, tmp_path: Path) -> None:
    """Layers that are said to stay float are those that do."""
    path = tmp_path / "graph.onnx"
    model = case.model()
    onnx.save(model, str(path))
    if case.name in NOT_LOADED or not case.loads:
        with pytest.raises(DeviceError):
            OrtCpuSession(path)
        assert has_errors(lint(path, "ort-cpu"))
        return
    OrtCpuSession(path).close()
    report = kernel_report(path)
    executed = {layer.name for layer in (*report.float, *report.other_float)}
    assert {label(left.node) for left in left_in_float(GraphView(model))} == executed
    said = {finding.node for finding in lint(path, "ort-cpu") if finding.stays_float}
    quantized = any("Quantize" in node.op_type for node in model.graph.node)
    assert said == (executed if quantized else set())


@pytest.mark.parametrize("name", corpus_odd.FAIL_IN_THE_FIRST_CALL)
def test_what_loads_and_does_not_run(name: str, tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    onnx.save(CASES[name].model(), str(path))
    session = OrtCpuSession(path)
    with pytest.raises(DeviceError):
        session.run({"x": np.zeros(CASES[name].input, np.float32)})
    session.close()
    assert has_errors(lint(path, "ort-cpu"))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_misfits_are_what_the_checker_of_onnx_finds(case: Case) -> None:
    """ONNX Runtime holds nodes against the same schemas."""
    model = case.model()
    known = 0 < case.opset <= onnx.defs.onnx_opset_version()
    for node in model.graph.node:
        schema = schema_of(node.op_type, case.opset) if not node.domain and known else None
        if schema is None or schema.deprecated or any(one.HasField("g") for one in node.attribute):
            continue
        context = onnx.checker.C.CheckerContext()
        context.ir_version, context.opset_imports = 10, {"": case.opset}
        found = [one.text for one in misfits(node, case.opset) if not one.beyond_the_schema]
        try:
            onnx.checker.check_node(node, context)
        except onnx.checker.ValidationError:
            assert found
        else:
            assert found == []


def test_a_matmul_with_a_bias_is_a_gemm(tmp_path: Path) -> None:
    """ONNX Runtime makes one of both first, under another name: seen in the executed operators."""

    def linear(quantized: bool) -> Case:
        def build(g: Canvas, x: str) -> str:
            x = g.op("MatMul", g.pooled(g.pair(x)), g.weights((16, 16), 1), name="linear")
            y = g.op("Add", x, g.constant(np.ones(16), np.float32), name="bias")
            return g.pair(y) if quantized else y

        return Case("linear", build, frozenset(), frozenset())

    for quantized in (True, False):
        model, path = linear(quantized).model(), tmp_path / "linear.onnx"
        onnx.save(model, str(path))
        assert ("QGemm" in kernel_report(path).operators) is quantized
        left = [label(one.node) for one in left_in_float(GraphView(model))]
        assert left == ([] if quantized else ["linear"])


def test_the_corpus_holds_every_kind() -> None:
    assert len(CASES) >= 40
    clean = [case for case in CASES.values() if not case.tensorrt]
    assert len(clean) >= 30, "a linter that finds everything is of no use"


def test_every_rule_strikes() -> None:
    """Each rule finds something in a graph of the corpus; what needs a file or a DLA is tested apart."""
    struck = {
        finding.rule
        for case in CASES.values()
        for target in ("tensorrt", "ort-cpu")
        for finding in lint(case.model(), target)
    }
    named = {name for name in rules() if not name.startswith("DLA-")}
    assert named - struck == {"FILE-EXTERNAL-DATA", "ORT-EXTERNAL-SIZES"}


@pytest.mark.parametrize("target", ["tensorrt", "ort-cpu"])
def test_every_rule_spares(target: str) -> None:
    """Not even a note, on a graph as it should be."""
    assert lint(CASES["conv-signed"].model(), target) == []


def test_a_file_without_an_opset() -> None:
    model = CASES["conv-signed"].model()
    del model.opset_import[:]
    found = {finding.rule for finding in lint(model, "tensorrt")}
    assert {"FILE-OPSET", "SHAPE-NOT-INFERRED"} <= found


def test_errors_come_first() -> None:
    levels = [finding.level for finding in lint(CASES["half-scales-opset-18"].model(), "ort-cpu")]
    assert levels == sorted(levels, key=LEVELS.index)
    assert set(levels) >= {"error", "warning"}


def test_findings_are_plain_data() -> None:
    (finding,) = lint(CASES["conv-relu-unsigned"].model(), "tensorrt")
    assert finding.to_dict() == {
        "rule": "GRID-UINT8-ACTIVATION",
        "level": "error",
        "node": "quantizelinear5",
        "message": "uint8 codes: values above 127 steps, 2.54, are clamped",
        "remedy": finding.remedy,
        "refused_by_importer": False,
        "stays_float": False,
    }


@pytest.mark.parametrize(
    ("given", "version", "level"),
    [
        (13, "8.0", None),
        (17, "8.6", None),
        (18, "8.6", "warning"),
        (20, "8.6", "error"),
        (20, "10.3", None),
        (22, "10.3", "warning"),
        (25, "10.3", "error"),
        (24, "10.16", None),
        (25, "11", None),
        (26, "11.4", "error"),
        (9, "10.3", "error"),
        (7, "10.3", "error"),
    ],
)
def test_opset_limits_follow_the_version(given: int, version: str, level: str | None) -> None:
    model = CASES["conv-signed"].model()
    model.opset_import[0].version = given
    found = [
        f.level for f in lint(model, "tensorrt", trt_version=version) if f.rule == "FILE-OPSET"
    ]
    assert found == ([level] if level else [])


@pytest.mark.parametrize(
    ("target", "version", "dla", "message"),
    [
        ("tflite", "11", False, "unknown 'tflite'; choose from ort-cpu, tensorrt"),
        ("tensorrt", "ten", False, "'ten' is not a version"),
        ("tensorrt", "12.0", False, "'12.0' is not a version"),
        ("tensorrt", "7.2", False, "'7.2' is not a version"),
        ("ort-cpu", "11", True, "ort-cpu has no DLA"),
    ],
)
def test_wrong_targets(target: str, version: str, dla: bool, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        lint(CASES["conv-signed"].model(), target, trt_version=version, dla=dla)


def test_bad_files(tmp_path: Path) -> None:
    whole = CASES["conv-signed"].model().SerializeToString()
    for name, content, message in [
        ("empty", b"", "holds a graph of 0 nodes"),
        ("cut", whole[: len(whole) // 2], "not a whole ONNX model"),
        ("text", b"this is not an onnx file\n", "not a whole ONNX model"),
    ]:
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(content)
        with pytest.raises(StorageError, match=message) as caught:
            lint(path, "tensorrt")
        assert "\n" not in str(caught.value)
    with pytest.raises(StorageError, match="no such file"):
        lint(tmp_path / "absent.onnx", "tensorrt")


def test_external_data(tmp_path: Path) -> None:
    path = tmp_path / "two.onnx"
    onnx.save(
        CASES["conv-signed"].model(),
        str(path),
        save_as_external_data=True,
        location="two.bin",
        size_threshold=1,
    )
    (finding,) = lint(path, "tensorrt")
    assert (finding.rule, finding.level) == ("FILE-EXTERNAL-DATA", "warning")
    assert "two.bin" in finding.message
    (tmp_path / "two.bin").unlink()
    with pytest.raises(StorageError, match=r"two\.bin"):
        lint(path, "tensorrt")


def test_sizes_in_another_file(tmp_path: Path) -> None:
    path = tmp_path / "two.onnx"
    onnx.save(
        CASES["pad-as-input"].model(),
        str(path),
        save_as_external_data=True,
        location="two.bin",
        size_threshold=0,
    )
    with pytest.raises(DeviceError, match="external tensors"):
        OrtCpuSession(path)
    errors = [finding for finding in lint(path, "ort-cpu") if finding.level == "error"]
    assert [finding.rule for finding in errors] == ["ORT-EXTERNAL-SIZES"]
    assert not any(finding.refused_by_importer for finding in lint(path, "tensorrt"))


def test_newer_file_format() -> None:
    model = CASES["conv-signed"].model()
    model.ir_version = 14
    assert [finding.rule for finding in lint(model, "ort-cpu")] == ["FILE-IR-VERSION"]
    assert lint(model, "tensorrt") == []


def test_nodes_need_no_names() -> None:
    model = CASES["conv-relu-unsigned"].model()
    for node in model.graph.node:
        node.name = ""
    (finding,) = lint(model, "tensorrt")
    assert finding.node == "quantizelinear5_out"


def test_deep_graphs() -> None:
    """As deep as Python's recursion limit allows nothing recursive to be."""

    def deep(g: Canvas, x: str) -> str:
        for _ in range(3000):
            x = g.op("Relu", x)
        return g.pair(g.conv(g.pair(x), name="layer"))

    case = Case("deep", deep, frozenset(), frozenset())
    assert lint(case.model(), "tensorrt") == []


def test_functions_of_the_file_are_looked_into() -> None:
    """torch's exporter may write parts of a network as functions in a domain of its own."""

    def build(g: Canvas, x: str) -> str:
        return g.op("Pairs", x, g.constant(0.02, np.float32), domain="ours", name="called")

    model = Case("functions", build, frozenset(), frozenset()).model()
    nodes = [
        onnx.helper.make_node("QuantizeLinear", ["value", "step"], ["codes"], "q"),
        onnx.helper.make_node("DequantizeLinear", ["codes", "step"], ["back"], "dq"),
    ]
    opset = onnx.helper.make_opsetid("", 18)
    model.functions.append(
        onnx.helper.make_function("ours", "Pairs", ["value", "step"], ["back"], nodes, [opset])
    )
    assert {finding.rule for finding in lint(model, "tensorrt")} == {"GRID-UINT8-ACTIVATION"}
    assert lint(model, "ort-cpu") == []
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    from deploy.engines.importer import import_onnx

    assert import_onnx(model.SerializeToString(), runtime="rtx").accepted
