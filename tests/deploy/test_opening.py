"""Which file of a bundle runs where, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deploy.bundle import Bundle, add_files, write_bundle
from deploy.errors import ConfigError, DataError, DeviceError
from deploy.sessions import opening
from deploy.sessions.opening import (
    TARGETS,
    bound_call,
    model_file,
    open_session,
    runtime_versions,
)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    for name in ("cpu", "trt", "half", "teacher"):
        (tmp_path / f"{name}.onnx").write_text(name)
    return write_bundle(
        tmp_path / "bundle", name="net",
        targets={"ort-cpu": tmp_path / "cpu.onnx", "tensorrt": tmp_path / "trt.onnx",
                 "tensorrt-fp16": tmp_path / "half.onnx"},
        input_name="x", input_shape=(1, 2, 2), output_name="y", classes=["a"], mean=(0.0,),
        std=(1.0,), sample_inputs=np.zeros((1, 1, 2, 2), np.uint8),
        sample_outputs=np.zeros((1, 1), np.float32), recipe={}, seeds={}, versions={},
        files={"teacher.onnx": tmp_path / "teacher.onnx"},
    )  # fmt: skip


def with_engine(bundle: Bundle, source: str, flavour: str, name: str = "net.plan") -> Bundle:
    folder = bundle.folder.parent
    (folder / "plan").write_text(f"{flavour} {source}")
    about = {
        "onnx": {"sha256": bundle.manifest["files"][source]["sha256"]},
        "runtime": {"flavour": flavour},
    }
    (folder / "side").write_text(json.dumps(about))
    return add_files(bundle, {name: folder / "plan", f"{name}.json": folder / "side"})


@pytest.mark.parametrize(
    ("model", "provider", "target", "name"),
    [
        ("teacher", "ort-cpu", None, "teacher.onnx"),
        ("student", "ort-cpu", None, "ort-cpu.onnx"),
        ("student", "ort-cpu", "tensorrt", "tensorrt.onnx"),
        ("student", "ort-cuda", None, "tensorrt.onnx"),
        ("student", "ort-tensorrt", "tensorrt-fp16", "tensorrt-fp16.onnx"),
        ("teacher", "ort-tensorrt", "tensorrt-fp16", "teacher.onnx"),
    ],
)
def test_model_file(
    bundle: Bundle, model: str, provider: str, target: str | None, name: str
) -> None:
    assert model_file(bundle, model, provider, target) == name


def test_an_engine_is_found_by_what_it_was_built_from(bundle: Bundle) -> None:
    bundle = with_engine(bundle, "tensorrt.onnx", "tensorrt", "one.plan")
    bundle = with_engine(bundle, "tensorrt.onnx", "rtx", "two.plan")
    bundle = with_engine(bundle, "teacher.onnx", "tensorrt", "three.engine")
    assert model_file(bundle, "student", "tensorrt") == "one.plan"
    assert model_file(bundle, "student", "tensorrt-rtx") == "two.plan"
    assert model_file(bundle, "teacher", "tensorrt") == "three.engine"
    with pytest.raises(DataError, match=r"no engine of teacher.onnx for tensorrt-rtx.*build"):
        model_file(bundle, "teacher", "tensorrt-rtx")
    with pytest.raises(
        DataError, match="no engine of tensorrt-fp16.onnx for tensorrt; this bundle has"
    ):
        model_file(bundle, "student", "tensorrt", "tensorrt-fp16")


def test_an_engine_without_its_side_file_is_refused(bundle: Bundle) -> None:
    (bundle.folder.parent / "plan").write_text("plan")
    bundle = add_files(bundle, {"net.plan": bundle.folder.parent / "plan"})
    with pytest.raises(DeviceError, match=r"net.plan.json: cannot be read"):
        model_file(bundle, "student", "tensorrt")


@pytest.mark.parametrize("damage", [{"onnx": []}, {"runtime": "rtx"}, {"gpu": "Orin"}])
def test_an_engine_with_a_damaged_side_file_is_refused(bundle: Bundle, damage: Any) -> None:
    bundle = with_engine(bundle, "tensorrt.onnx", "tensorrt")
    side = bundle.folder / "net.plan.json"
    side.write_text(json.dumps({**json.loads(side.read_text()), **damage}))
    (wrong,) = damage
    with pytest.raises(DeviceError, match=rf"net.plan.json: {wrong} should be an object"):
        model_file(bundle, "student", "tensorrt")


def test_what_is_not_there_is_named(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="model: unknown 'pupil'"):
        model_file(bundle, "pupil", "ort-cpu")
    with pytest.raises(ConfigError, match="provider: unknown 'cpu'; choose from"):
        model_file(bundle, "student", "cpu")
    with pytest.raises(DataError, match="no model for target 'tpu'"):
        model_file(bundle, "student", "ort-cpu", "tpu")
    alone = {**bundle.manifest, "files": {"ort-cpu.onnx": {}}}
    with pytest.raises(DataError, match="no teacher.onnx; ask for the student alone"):
        model_file(Bundle(bundle.folder, alone), "teacher", "ort-cpu")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """What sessions were made with, instead of making them."""
    made: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def recording(kind: str) -> Any:
        return lambda path, *given, **named: made.append((kind, (path.name, *given), named))

    monkeypatch.setattr(opening, "OrtCpuSession", recording("cpu"))
    monkeypatch.setattr(opening, "OrtGpuSession", recording("gpu"))
    module = SimpleNamespace(EngineSession=recording("engine"))
    monkeypatch.setitem(sys.modules, "deploy.sessions.engine", module)
    return made


def test_what_each_session_is_made_with(bundle: Bundle, opened: list[Any]) -> None:
    bundle = with_engine(bundle, "tensorrt.onnx", "tensorrt")
    open_session(bundle, "student", threads=2, affinity=(0, 1), spin=False)
    open_session(bundle, "student", provider="ort-cuda", cuda_graph=True)
    open_session(bundle, "student", provider="ort-tensorrt", target="tensorrt-fp16")
    open_session(bundle, "teacher", provider="ort-tensorrt")
    open_session(bundle, "student", provider="tensorrt", cuda_graph=True)
    assert [(kind, given) for kind, given, _ in opened] == [
        ("cpu", ("ort-cpu.onnx", 2)),
        ("gpu", ("tensorrt.onnx", "ort-cuda")),
        ("gpu", ("tensorrt-fp16.onnx", "ort-tensorrt")),
        ("gpu", ("teacher.onnx", "ort-tensorrt")),
        ("engine", ("net.plan",)),
    ]
    named = [each for _, _, each in opened]
    assert named[0] == {"spin": False, "affinity": (0, 1), "name": "student"}
    assert named[1]["cuda_graph"] is True
    assert named[2]["provider_settings"] == {"trt_int8_enable": "1", "trt_fp16_enable": "1"}
    assert named[3]["provider_settings"] == {}
    assert named[4] == {"name": "student", "cuda_graph": True}


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"cuda_graph": True}, "ort-cpu has none"),
        ({"provider": "ort-cuda", "threads": 2}, "computes on the GPU"),
        ({"provider": "ort-cuda", "affinity": (0,)}, "computes on the GPU"),
    ],
)
def test_settings_that_do_not_go_together(
    bundle: Bundle, opened: list[Any], settings: dict[str, Any], why: str
) -> None:
    with pytest.raises(ConfigError, match=why):
        open_session(bundle, "student", **settings)
    assert opened == []


def test_a_session_on_the_host_has_no_copies_to_leave_out() -> None:
    session: Any = SimpleNamespace(name="student", run=lambda feeds: feeds)
    assert bound_call(session, {"x": np.ones(1)})() == {"x": np.ones(1)}
    with pytest.raises(ConfigError, match="leave --no-copies out"):
        bound_call(session, {}, copies=False)


@pytest.mark.parametrize("provider", TARGETS)
def test_versions_are_those_installed(provider: str) -> None:
    versions = runtime_versions(provider)
    assert all(number[0].isdigit() for number in versions.values())
    if provider == "ort-cpu":
        assert "onnxruntime" in versions
