"""ONNX Runtime's GPU providers: refused where they are not, and their logic over a stand-in.

The stand-in is the real ONNX Runtime, whose CPU provider answers to the GPU's names.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploy.errors import DeviceError, MissingDependency, StorageError
from deploy.sessions.opening import bound_call
from deploy.sessions.ort_gpu import PROVIDERS, OrtGpuSession
from deploy.sessions.session import Port

W_IO = np.arange(12, dtype=np.float32).reshape(3, 4)
CPU = "CPUExecutionProvider"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """y = x @ W, dynamic batch."""
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])
    graph = helper.make_graph([node], "g", [x], [y], [numpy_helper.from_array(W_IO, "w")])
    opset = [helper.make_opsetid("", 17)]
    path = tmp_path / "linear.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), str(path))
    return path


class StandIn:
    """The package with a GPU that is not there; ``log`` tells what was asked of it."""

    def __init__(self) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.took_over: list[str] | None = None
        self.fails = False
        self.__version__ = "9.9"
        self.ExecutionMode = onnxruntime.ExecutionMode
        self.GraphOptimizationLevel = onnxruntime.GraphOptimizationLevel
        self.OrtValue = SimpleNamespace(
            ortvalue_from_numpy=self._value, ortvalue_from_shape_and_type=self._empty
        )

    def get_available_providers(self) -> list[str]:
        return [*PROVIDERS.values(), CPU]

    def preload_dlls(self) -> None:
        self.log.append(("preload",))

    def SessionOptions(self) -> Any:
        outer = self

        class Options(onnxruntime.SessionOptions):
            def add_session_config_entry(self, key: str, value: str) -> None:
                outer.log.append(("setting", key, value))

        return Options()

    def RunOptions(self) -> Any:
        outer = self

        class Options(onnxruntime.RunOptions):
            def add_run_config_entry(self, key: str, value: str) -> None:
                outer.log.append(("run", key, value))

        return Options()

    def InferenceSession(self, path: str, options: Any, providers: list[Any]) -> Any:
        ((provider, settings),) = providers
        self.log.append(("open", provider, settings))
        real, outer = onnxruntime.InferenceSession(path, options, providers=[CPU]), self

        class Session:
            def __getattr__(self, name: str) -> Any:
                return getattr(real, name)

            def get_providers(self) -> list[str]:
                return outer.took_over or [provider, CPU]

            def run_with_iobinding(self, binding: Any, options: Any) -> None:
                if outer.fails:
                    raise RuntimeError("out of\nmemory")
                outer.log.append(("execute",))
                real.run_with_iobinding(binding, options)

        return Session()

    def _value(self, array: np.ndarray, device: str, number: int) -> Any:
        self.log.append(("reserve", device, number))
        return onnxruntime.OrtValue.ortvalue_from_numpy(array.copy())  # as a GPU has its own

    def _empty(self, shape: list[int], dtype: Any, device: str, number: int) -> Any:
        return onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, dtype)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    made = StandIn()
    monkeypatch.setitem(sys.modules, "onnxruntime", made)
    return made


def x(rows: int) -> np.ndarray:
    return np.random.default_rng(rows).normal(size=(rows, 3)).astype(np.float32)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_build_without_the_provider_is_refused(model: Path, provider: str) -> None:
    if PROVIDERS[provider] in onnxruntime.get_available_providers():
        pytest.skip("this build of onnxruntime has the provider")
    with pytest.raises(
        DeviceError, match=f"asked for {PROVIDERS[provider]}.*here has only"
    ) as told:
        OrtGpuSession(model, provider)
    assert "onnxruntime-gpu" in str(told.value)
    assert "\n" not in str(told.value)


def test_a_provider_that_took_over_is_an_error(model: Path, stand_in: StandIn) -> None:
    stand_in.took_over = [CPU]
    with pytest.raises(DeviceError, match=r"asked for CUDAExecutionProvider and got \['CPU"):
        OrtGpuSession(model)


def test_describes_itself_and_runs_any_shape(model: Path, stand_in: StandIn) -> None:
    session = OrtGpuSession(model, name="student")
    assert session.name == "student"
    assert session.inputs == (Port("x", (None, 3), "float32"),)
    assert session.outputs == (Port("y", (None, 4), "float32"),)
    for rows in (1, 5, 5, 2):
        np.testing.assert_allclose(session.run({"x": x(rows)})["y"], x(rows) @ W_IO, rtol=1e-5)
    reserved = [entry for entry in stand_in.log if entry[0] == "reserve"]
    assert reserved == [("reserve", "cuda", 0)] * 3  # once for each new shape


def test_no_node_may_fall_to_the_cpu(model: Path, stand_in: StandIn) -> None:
    session = OrtGpuSession(model)
    assert ("setting", "session.disable_cpu_ep_fallback", "1") in stand_in.log
    assert session.settings["session.disable_cpu_ep_fallback"] == "1"
    assert stand_in.log[0] == ("preload",)


@pytest.mark.parametrize(
    ("provider", "key"),
    [("ort-cuda", "enable_cuda_graph"), ("ort-tensorrt", "trt_cuda_graph_enable")],
)
def test_cuda_graph(model: Path, stand_in: StandIn, provider: str, key: str) -> None:
    OrtGpuSession(model, provider, device=1, provider_settings={"a": "b"})
    opened = next(entry for entry in stand_in.log if entry[0] == "open")
    assert opened == ("open", PROVIDERS[provider], {"device_id": "1", "a": "b"})
    assert not [entry for entry in stand_in.log if entry[0] == "run"]
    stand_in.log.clear()
    session = OrtGpuSession(model, provider, cuda_graph=True)
    opened = next(entry for entry in stand_in.log if entry[0] == "open")
    assert opened[2] == {"device_id": "0", key: "1"}
    for rows in (1, 1, 4):
        session.run({"x": x(rows)})
    numbers = [entry[2] for entry in stand_in.log if entry[0] == "run"]
    assert numbers == ["-1", "1", "-1", "2"]  # shapes are found without a graph, each has its own


def test_without_copies_what_was_loaded_stays(model: Path, stand_in: StandIn) -> None:
    session = OrtGpuSession(model)
    array = x(2)
    call = bound_call(session, {"x": array}, copies=False)
    wanted = array @ W_IO
    stand_in.log.clear()
    array[:] = 0  # not seen any more
    for _ in range(3):
        assert call() is None
    assert stand_in.log == [("execute",)] * 3
    np.testing.assert_allclose(session.fetch()["y"], wanted, rtol=1e-5)


def test_with_copies_every_call_brings_its_own(model: Path, stand_in: StandIn) -> None:
    array = x(2)
    call = bound_call(OrtGpuSession(model), {"x": array}, copies=True)
    call()
    array[:] = 1
    np.testing.assert_allclose(call()["y"], np.ones((2, 3)) @ W_IO)


def test_refuses_in_one_line(model: Path, stand_in: StandIn, tmp_path: Path) -> None:
    session = OrtGpuSession(model)
    with pytest.raises(DeviceError, match="nothing to execute"):
        session.execute()
    for feeds in ({}, {"z": x(1)}, {"x": np.ones((1, 2), np.float32)}, {"x": np.ones((1, 3))}):
        with pytest.raises(DeviceError, match="the model takes") as refused:
            session.run(feeds)
        assert "\n" not in str(refused.value)
    session.load({"x": x(1)})
    stand_in.fails = True
    with pytest.raises(DeviceError, match="the GPU failed: out of memory"):
        session.execute()
    session.close()
    session.close()
    for use in (lambda: session.run({"x": x(1)}), session.execute):
        with pytest.raises(DeviceError, match="closed"):
            use()
    with pytest.raises(DeviceError, match="unknown provider 'ort-cpu'"):
        OrtGpuSession(model, "ort-cpu")
    with pytest.raises(StorageError, match="no such file"):
        OrtGpuSession(tmp_path / "absent.onnx")


def test_missing_runtime_names_itself(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependency, match="pip install onnxruntime"):
        OrtGpuSession(model)


@pytest.mark.gpu
@pytest.mark.skipif(
    PROVIDERS["ort-cuda"] not in onnxruntime.get_available_providers(),
    reason="this build of onnxruntime has no CUDA provider",
)
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_on_a_gpu(model: Path, cuda_graph: bool) -> None:
    session = OrtGpuSession(model, cuda_graph=cuda_graph)
    for rows in (1, 4, 4, 1):
        np.testing.assert_allclose(
            session.run({"x": x(rows)})["y"], x(rows) @ W_IO, rtol=1e-3, atol=1e-3
        )
