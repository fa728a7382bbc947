from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deploy.engines.bindings import Bindings
from deploy.engines.driver import Driver
from deploy.errors import DeviceError
from deploy.sessions.engine import EngineSession
from deploy.sessions.rows import run_rows
from deploy.sessions.session import Port


@pytest.fixture
def opening(plan: Any, driver: Driver, bindings: Bindings, cuda: Any) -> Callable[..., Any]:
    def open_it(**how: Any) -> EngineSession:
        return EngineSession(plan(), driver=driver, bindings=bindings, cuda=cuda, **how)

    return open_it


def feeds(batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).normal(size=(batch, 3)).astype(np.float32)}


def test_ports_say_what_the_engine_takes(opening: Any) -> None:
    session = opening(name="student")
    assert session.inputs == (Port("x", (None, 3), "float32"),)
    assert session.outputs == (Port("y", (None, 3), "float32"),)
    assert (session.name, session.runtime) == ("student", "tensorrt 10.3.0")
    assert session.copies_included
    session.close()


def test_what_comes_back_is_what_the_engine_computed(opening: Any) -> None:
    session = opening()
    for batch in (1, 4, 2, 1):
        given = feeds(batch, seed=batch)
        np.testing.assert_array_equal(session.run(given)["y"], 2 * given["x"])
    session.close()


def test_more_rows_than_the_profile_has(opening: Any, cuda: Any) -> None:
    session = opening()
    given = feeds(10)
    np.testing.assert_array_equal(run_rows(session, given)["y"], 2 * given["x"])
    assert cuda.names().count("execute_async_v3") == 3  # of at most four rows
    session.close()


def test_outputs_belong_to_the_caller(opening: Any) -> None:
    session = opening()
    first = session.run(feeds(2, seed=1))["y"]
    kept = first.copy()
    session.run(feeds(2, seed=2))
    np.testing.assert_array_equal(first, kept)
    session.close()


def test_order_of_calls_for_a_new_shape(opening: Any, cuda: Any) -> None:
    session = opening()
    mark = len(cuda.calls)
    session.run(feeds(2))
    assert cuda.since(mark) == [
        "set_input_shape",
        "infer_shapes",
        "allocate",
        "set_tensor_address",
        "allocate",
        "set_tensor_address",
        "copy_to_device",
        "synchronize",
        "execute_async_v3",
        "synchronize",
        "copy_to_host",
        "synchronize",
    ]
    addresses = {call[1]: call[2] for call in cuda.calls if call[0] == "set_tensor_address"}
    assert set(addresses.values()) == set(cuda.memory)
    assert ("set_input_shape", "x", (2, 3)) in cuda.calls
    session.close()


def test_a_known_shape_costs_no_more_than_copies_and_the_engine(opening: Any, cuda: Any) -> None:
    session = opening()
    session.run(feeds(2))
    mark = len(cuda.calls)
    session.run(feeds(2))
    work = [name for name in cuda.since(mark) if name != "synchronize"]
    assert work == ["copy_to_device", "execute_async_v3", "copy_to_host"]
    session.close()


def test_memory_grows_only_when_it_has_to(opening: Any, cuda: Any) -> None:
    session = opening()
    session.run(feeds(4))
    grown = cuda.names().count("allocate")
    session.run(feeds(1))
    assert cuda.names().count("allocate") == grown
    assert session.memory_bytes == 2 * 4 * 3 * 4 + 1000
    session.close()


def test_execute_alone_copies_nothing(opening: Any, cuda: Any) -> None:
    session = opening()
    call = session.bind(feeds(2), copies=False)
    mark = len(cuda.calls)
    call()
    assert cuda.since(mark) == ["execute_async_v3", "synchronize"]
    np.testing.assert_array_equal(session.fetch()["y"], 2 * feeds(2)["x"])
    np.testing.assert_array_equal(session.bind(feeds(2))()["y"], 2 * feeds(2)["x"])
    session.close()


def test_a_graph_is_captured_after_a_warm_call_and_replayed(opening: Any, cuda: Any) -> None:
    session = opening(cuda_graph=True)
    given = feeds(2)
    session.run(given)
    assert "begin_capture" not in cuda.names()
    session.run(given)
    mark = len(cuda.calls)
    again = session.run(feeds(2, seed=5))["y"]
    work = [name for name in cuda.since(mark) if name != "synchronize"]
    assert work == ["copy_to_device", "launch_graph", "copy_to_host"]
    np.testing.assert_array_equal(again, 2 * feeds(2, seed=5)["x"])
    session.close()


def test_another_shape_is_captured_again(opening: Any, cuda: Any) -> None:
    session = opening(cuda_graph=True)
    for batch in (2, 2, 3, 3, 3):
        np.testing.assert_array_equal(session.run(feeds(batch))["y"], 2 * feeds(batch)["x"])
    assert cuda.names().count("begin_capture") == 2
    assert next(iter(cuda.graphs.values())) is None, "the old graph was kept"
    session.close()
    assert list(cuda.graphs.values()) == [None, None]


def test_work_that_cannot_be_captured_is_said(opening: Any, cuda: Any) -> None:
    session = opening(cuda_graph=True)
    session.run(feeds(2))
    cuda.refuse_capture = True
    with pytest.raises(DeviceError, match="cannot be captured.*901.*cuda_graph=False"):
        session.run(feeds(2))
    session.close()


def test_a_capture_in_which_the_engine_refuses_is_ended(
    opening: Any, cuda: Any, bindings: Bindings
) -> None:
    session = opening(cuda_graph=True)
    session.run(feeds(2))
    bindings.trt.engine.refuse_to_run = True
    with pytest.raises(DeviceError, match="cannot be captured.*did not start"):
        session.run(feeds(2))
    assert cuda.capturing is None
    bindings.trt.engine.refuse_to_run = False
    np.testing.assert_array_equal(session.run(feeds(2))["y"], 2 * feeds(2)["x"])
    session.close()


def test_time_on_the_device_is_between_events(opening: Any, cuda: Any) -> None:
    for cuda_graph in (False, True):
        session = opening(cuda_graph=cuda_graph)
        session.load(feeds(1))
        assert session.device_ms() == 0.25
        last = "launch_graph" if cuda_graph else "execute_async_v3"
        assert cuda.names()[-2:] == [last, "elapsed_ms"]
        cuda.closed = False
        session.close()
        cuda.closed = False


def test_the_profile_with_the_nearest_optimum_is_used(
    opening: Any, cuda: Any, bindings: Bindings
) -> None:
    bindings.trt.engine.profiles = [(1, 1, 8), (1, 8, 8), (16, 16, 16)]
    session = opening()
    for batch, profile in ((1, 0), (7, 1), (16, 2), (2, 0)):
        np.testing.assert_array_equal(session.run(feeds(batch))["y"], 2 * feeds(batch)["x"])
        assert bindings.trt.engine.contexts[-1].profile == profile
    session.close()


def test_a_batch_outside_every_profile_is_refused(opening: Any) -> None:
    session = opening()
    with pytest.raises(DeviceError, match=r"\(5, 3\).*built for.*\(1, 3\).*\(4, 3\).*--max-batch"):
        session.run(feeds(5))
    np.testing.assert_array_equal(session.run(feeds(4))["y"], 2 * feeds(4)["x"])
    session.close()


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"z": np.zeros((1, 3), np.float32)},
        {"x": np.zeros((1, 4), np.float32)},
        {"x": np.zeros(3, np.float32)},
        {"x": np.zeros((1, 3), np.float64)},
        {"x": [[0.0, 0.0, 0.0]]},
        {"x": np.zeros((1, 3), np.float32), "y": np.zeros((1, 3), np.float32)},
    ],
    ids=["nothing", "name", "size", "rank", "dtype", "list", "extra"],
)
def test_feeds_that_do_not_fit_never_reach_the_device(opening: Any, cuda: Any, given: Any) -> None:
    session = opening()
    mark = len(cuda.calls)
    with pytest.raises(DeviceError, match="the model takes .*'x'.* and was given"):
        session.run(given)
    assert cuda.since(mark) == []
    session.close()


def test_inputs_that_are_not_contiguous_are_copied_right(opening: Any) -> None:
    session = opening()
    x = np.arange(12, dtype=np.float32).reshape(4, 3)[::2]
    np.testing.assert_array_equal(session.run({"x": x})["y"], 2 * x)
    session.close()


def test_memory_that_runs_out_is_said_and_given_back(opening: Any, cuda: Any) -> None:
    cuda.left = 40
    session = opening()
    with pytest.raises(DeviceError, match="out of memory for 'y'.*24 bytes.*smaller batch"):
        session.run(feeds(2))
    np.testing.assert_array_equal(session.run(feeds(1))["y"], 2 * feeds(1)["x"])
    session.close()
    assert cuda.closed


def test_no_context_is_said_and_leaves_nothing(opening: Any, cuda: Any, bindings: Bindings) -> None:
    bindings.trt.engine.no_context = True
    with pytest.raises(DeviceError, match="no memory for the engine's 1000 bytes"):
        opening()
    assert cuda.closed


def test_only_a_version_compatible_plan_may_bring_its_own_code(
    plan: Any, driver: Driver, bindings: Bindings, cuda: Any
) -> None:
    for versions in (False, True):
        runtime = SimpleNamespace(deserialize_cuda_engine=lambda data: bindings.trt.engine)
        bindings.trt.Runtime = lambda logger, runtime=runtime: runtime
        path = plan(portable={"versions": versions, "gpus": None})
        EngineSession(path, driver=driver, bindings=bindings, cuda=cuda).close()
        assert getattr(runtime, "engine_host_code_allowed", False) == versions
        cuda.closed = False


def test_a_plan_that_does_not_load_is_said(opening: Any, cuda: Any, bindings: Bindings) -> None:
    bindings.trt.engine = None
    with pytest.raises(
        DeviceError, match="net: on Orin: tensorrt 10.3.0 cannot load the plan.*build it again"
    ):
        opening()
    assert cuda.closed


@pytest.mark.parametrize(
    ("attribute", "value", "words"),
    [
        ("unknown", ["y"], "shapes of .'y'. do not follow"),
        ("data_dependent", True, "depends on the data"),
        ("refuse_to_run", True, "did not start"),
    ],
)
def test_what_the_engine_refuses_is_said(
    opening: Any, bindings: Bindings, attribute: str, value: Any, words: str
) -> None:
    session = opening()
    setattr(bindings.trt.engine, attribute, value)
    with pytest.raises(DeviceError, match=words):
        session.run(feeds(2))
    session.close()


def test_a_type_without_a_numpy_twin_is_refused(
    opening: Any, cuda: Any, bindings: Bindings
) -> None:
    bindings.trt.engine.dtype = "BF16"
    with pytest.raises(DeviceError, match="'x' is of type BF16"):
        opening()
    assert cuda.closed


def test_a_closed_session_refuses(opening: Any, cuda: Any) -> None:
    session = opening(cuda_graph=True)
    session.run(feeds(2))
    session.run(feeds(2))
    session.close()
    assert cuda.closed
    assert cuda.names()[-1] == "destroy_stream"
    session.close()
    with pytest.raises(DeviceError, match="closed"):
        session.run(feeds(2))


def test_nothing_to_execute_or_fetch_is_said(opening: Any) -> None:
    session = opening()
    with pytest.raises(DeviceError, match="nothing is loaded"):
        session.execute()
    session.load(feeds(1))
    with pytest.raises(DeviceError, match="nothing was computed"):
        session.fetch()
    session.close()


def test_layer_times_are_means_and_leave_the_session_as_it_was(opening: Any) -> None:
    session = opening()
    assert session.layer_times_us(feeds(2), calls=4) == {"double": 500.0}
    np.testing.assert_array_equal(session.run(feeds(3))["y"], 2 * feeds(3)["x"])
    session.close()


def test_precision_by_layers_and_by_time(opening: Any) -> None:
    session = opening()
    assert session.precision().by_precision == {"float32": 1}
    assert session.precision().time_share == {}
    assert session.precision(feeds(2)).time_share == {"float32": 1.0}
    session.close()


def test_a_foreign_plan_is_refused_before_anything_is_loaded(
    plan: Any, driver: Driver, bindings: Bindings, cuda: Any
) -> None:
    path: Path = plan(runtime={"flavour": "tensorrt", "version": "8.6.1"})
    with pytest.raises(DeviceError, match="built for TensorRT 8.6.1 and this is 10.3.0"):
        EngineSession(path, driver=driver, bindings=bindings, cuda=cuda)
    assert cuda.calls == []


def test_a_device_that_is_not_there(plan: Any, driver: Driver, bindings: Bindings) -> None:
    with pytest.raises(DeviceError, match="device 1: the driver has 1 GPUs"):
        EngineSession(plan(), device=1, driver=driver, bindings=bindings)
