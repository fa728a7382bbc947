"""Engines really built, by TensorRT-RTX, which needs no GPU for it."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.external_data_helper import convert_model_to_external_data

from deploy.engines import build as module
from deploy.engines.build import BuiltEngine, build_engine
from deploy.engines.plan_file import open_plan, side_path
from deploy.engines.precision import require_int8
from deploy.engines.settings import Batches, BuildSettings
from deploy.engines.worker import Worker, WorkerDied
from deploy.errors import (
    CompressDeployError,
    ConfigError,
    DeviceError,
    StorageError,
    VerificationError,
)
from deploy.manifest import sha256_of

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
Model = Callable[..., Path]


def build(model: Path, progress: Any = None, **settings: Any) -> BuiltEngine:
    out = model.with_name("out") / "net.plan"
    return build_engine(model, out, BuildSettings(runtime="rtx", **settings), progress)


def left(model: Path) -> list[str]:
    """What a refused build left behind."""
    out = model.with_name("out")
    return sorted(path.name for path in out.iterdir()) if out.exists() else []


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> BuiltEngine:
    """One engine of a dynamic graph, for whoever only looks at it."""
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("graphs", Path(__file__).with_name("conftest.py"))
    assert spec and spec.loader
    graphs = module_from_spec(spec)
    spec.loader.exec_module(graphs)
    path = tmp_path_factory.mktemp("built") / "net.onnx"
    onnx.save(graphs.qdq_network(), str(path))
    return build(path, profiles=(Batches(1, 2, 4),))


def test_the_plan_and_its_side_file_belong_together(built: BuiltEngine) -> None:
    about = json.loads(built.side.read_text())
    assert about["plan"] == {
        "sha256": sha256_of(built.plan),
        "size_bytes": built.plan.stat().st_size,
    }
    assert about["plan"]["size_bytes"] > 1000
    source = built.plan.parents[1] / "net.onnx"
    assert about["onnx"] == {"file": "net.onnx", "sha256": sha256_of(source)}
    assert about["runtime"]["flavour"] == "rtx"
    assert built.runtime == f"tensorrt_rtx {about['runtime']['version']}"
    assert about["platform"] == {"system": platform.system(), "machine": platform.machine()}
    assert about["typing"] == "strong"
    assert about["profiles"] == {"x": [[[1, 16, 8, 8], [2, 16, 8, 8], [4, 16, 8, 8]]]}
    assert [port["name"] for port in about["inputs"] + about["outputs"]] == ["x", "y"]
    assert BuildSettings.from_dict(about["settings"]).profiles == (Batches(1, 2, 4),)
    assert about["build_s"] > 0
    assert open_plan(built.plan).layers == built.layers
    assert sorted(p.name for p in built.plan.parent.iterdir()) == ["net.plan", "net.plan.json"]


def test_the_convolution_is_proved_to_be_int8(built: BuiltEngine) -> None:
    assert built.precision.convolutions == {"conv": "int8"}
    assert built.precision.by_precision["int8"] >= 1
    assert built.precision.source == ("engine inspector" if built.loaded else "build log")
    require_int8(built.precision, "net.onnx", every=True)
    assert open_plan(built.plan).precision == built.precision


@pytest.mark.parametrize("batch", [1, 3])
def test_a_static_graph_is_built_for_its_shape(model: Model, batch: int) -> None:
    built = build(model(batch=batch))
    assert built.about["profiles"] == {"x": [[[batch, 16, 8, 8]] * 3]}
    assert build(model(batch=batch), profiles=(Batches(batch, batch, batch),)).plan.is_file()


def test_float16_outside_the_islands(model: Model) -> None:
    built = build(model(half=True))
    assert built.precision.convolutions == {"conv": "int8"}
    assert {port["dtype"] for port in built.about["inputs"]} == {"half"}


def test_several_profiles(model: Model) -> None:
    built = build(model(), profiles=(Batches(1, 1, 1), Batches(8, 8, 16)))
    assert [profile[2][0] for profile in built.about["profiles"]["x"]] == [1, 16]


def test_no_int8_where_int8_was_asked_for(model: Model) -> None:
    path = model(quantize_weights=False)
    with pytest.raises(VerificationError, match=r"1 of 1 convolutions .*conv \(float32\)"):
        build(path)
    assert left(path) == []
    assert build(path, precision="float32").precision.convolutions == {"conv": "float32"}


def test_float16_that_is_not_there(model: Model) -> None:
    path = model(quantize_weights=False)
    with pytest.raises(VerificationError, match="float16 was asked for and 1 of 1 .*tensorrt-fp16"):
        build(path, precision="float16")
    half = model(quantize_weights=False, half=True)
    assert build(half, precision="float16").precision.convolutions == {"conv": "float16"}


def test_progress_is_told_and_only_grows(model: Model) -> None:
    seen: list[tuple[str, float]] = []
    build(model(), lambda phase, share: seen.append((phase, share)))
    shares = [share for _, share in seen]
    assert shares
    assert shares == sorted(shares)
    assert all(0 <= share <= 1 for share in shares)


def test_building_again_replaces_the_plan(model: Model) -> None:
    path = model()
    first = build(path).about["plan"]["sha256"]
    again = build(path, profiles=(Batches(2, 2, 2),))
    assert again.about["plan"]["sha256"] != first
    open_plan(again.plan)


def test_a_refused_build_leaves_the_old_plan(model: Model) -> None:
    built = build(model())
    with pytest.raises(VerificationError):
        build(model(zero_point=np.int8(1)))
    open_plan(built.plan)
    assert left(built.plan.parents[1] / "net.onnx") == ["net.plan", "net.plan.json"]


@pytest.mark.parametrize(
    ("how", "settings", "kind", "words"),
    [
        ({"zero_point": np.int8(3)}, {}, VerificationError, "QuantizeLinear 'quantize_x'"),
        (
            {"zero_point": np.uint8(0)},
            {},
            VerificationError,
            "uint8 activations for int8 and clamp",
        ),
        ({"operator": "Frobnicate"}, {}, VerificationError, "Frobnicate 'act': .*Plugin not"),
        ({}, {"workspace_mb": 1}, DeviceError, "workspace of 1 MB .*raise --workspace-mb"),
        ({}, {"dla_core": 0}, DeviceError, "DLA core 0 .* sees 0 on this machine"),
        ({}, {"typing": "weak"}, ConfigError, "only types strongly"),
        ({}, {"timing_cache": Path("cache")}, ConfigError, "times no kernels"),
        ({}, {"hardware_compatible": "ampere_plus"}, ConfigError, "hardware_compatible"),
        ({}, {"version_compatible": True}, DeviceError, "could not build it"),
        ({}, {"compute_capabilities": ("5.0",)}, ConfigError, "ComputeCapability.SM50"),
        ({"batch": 0}, {}, ConfigError, "'x' has shape .0, 16, 8, 8., which holds nothing"),
        ({"batch": 2}, {"profiles": (Batches(1, 1, 2),)}, ConfigError, "fixed shape .2, 16, 8, 8"),
    ],
)
def test_what_cannot_be_built_is_one_line_and_leaves_nothing(
    model: Model, how: Any, settings: Any, kind: type[CompressDeployError], words: str, capfd: Any
) -> None:
    path = model(**how)
    with pytest.raises(kind, match=words) as refused:
        build(path, **settings)
    assert "\n" not in str(refused.value)
    assert left(path) == []
    assert capfd.readouterr() == ("", "")


def test_a_size_that_is_free_beside_the_batch(model: Model) -> None:
    path = model()
    free = onnx.load(str(path))
    free.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    onnx.save(free, str(path))
    with pytest.raises(ConfigError, match="'x' has shape .*only the batch"):
        build(path)


def test_corrupt_models(model: Model, tmp_path: Path) -> None:
    path = model()
    data = path.read_bytes()
    for broken in (b"", b"not a model", data[: len(data) // 2]):
        path.write_bytes(broken)
        with pytest.raises(VerificationError, match="refuses the graph") as refused:
            build(path)
        assert "\n" not in str(refused.value)
    assert left(path) == []


def test_external_data_that_is_missing(model: Model) -> None:
    path = model()
    loaded = onnx.load(str(path))
    convert_model_to_external_data(loaded, location="net.data", size_threshold=64)
    onnx.save(loaded, str(path))
    assert build(path).plan.is_file()
    path.with_name("net.data").unlink()
    with pytest.raises(VerificationError, match="net.data"):
        build(path)


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be read"):
        build(tmp_path / "net.onnx")


def test_a_folder_that_cannot_be_made(model: Model) -> None:
    path = model()
    path.with_name("out").write_text("a file")
    with pytest.raises(StorageError, match="cannot be written"):
        build(path)


@pytest.mark.parametrize(("name", "words"), [("SIGKILL", "memory"), ("SIGSEGV", "lint")])
def test_a_crash_while_building_is_said(
    model: Model, monkeypatch: pytest.MonkeyPatch, name: str, words: str
) -> None:
    class Crashing(Worker):
        def ask(self, *asked: Any) -> Any:
            raise WorkerDied(f"the process that calls TensorRT was ended by {name}", name)

    monkeypatch.setattr(module, "Worker", Crashing)
    path = model()
    with pytest.raises(
        DeviceError, match=f"{name} while building with a workspace of 64 MB.*{words}"
    ):
        build(path, workspace_mb=64)
    assert left(path) == []


def test_an_interrupt_leaves_nothing(model: Model) -> None:
    def interrupt(phase: str, share: float) -> None:
        raise KeyboardInterrupt

    path = model()
    with pytest.raises(KeyboardInterrupt):
        build(path, interrupt)
    assert left(path) == []


def test_batches_that_the_network_cannot_hold(tmp_path: Path) -> None:
    """The builder only warns, and the engine that it makes is of no use."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 16, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    opsets = [helper.make_opsetid("", 18)]
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    with pytest.raises(ConfigError, match="up to 2000000000 .* lower --max-batch"):
        build(path, precision="float32", profiles=(Batches(1, 1, 2 * 10**9),))
    assert left(path) == []


def test_several_compute_capabilities(model: Model) -> None:
    built = build(model(), compute_capabilities=("8.6", "8.9"))
    assert built.precision.convolutions == {"conv": "int8"}


def test_the_side_file_lies_beside_the_plan() -> None:
    assert side_path(Path("a/net.plan")) == Path("a/net.plan.json")


def test_a_model_with_control_flow(tmp_path: Path) -> None:
    def branch(name: str, operator: str) -> onnx.GraphProto:
        y = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node(operator, ["x"], [name])], name, [], [y])

    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Cast", ["sum"], ["choice"], to=TensorProto.BOOL),
        helper.make_node(
            "If", ["choice"], ["y"], then_branch=branch("a", "Relu"), else_branch=branch("b", "Neg")
        ),
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in "xy"]
    graph = helper.make_graph(nodes, "net", ports[:1], ports[1:])
    opset = [helper.make_opsetid("", 18)]
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), str(path))
    with pytest.raises(VerificationError, match="none of the engine's .* is a convolution"):
        build(path)
    assert left(path) == []
    assert build(path, precision="float32").plan.is_file()
