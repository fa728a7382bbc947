from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.bundle import Bundle, write_bundle
from deploy.engines import bundled
from deploy.engines.bundled import add_engine
from deploy.engines.plan_file import open_plan
from deploy.engines.settings import Batches, BuildSettings
from deploy.errors import ConfigError, DataError, VerificationError

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")


@pytest.fixture
def bundle(tmp_path: Path, network: Callable[..., onnx.ModelProto]) -> Bundle:
    student, teacher = tmp_path / "student.onnx", tmp_path / "float.onnx"
    onnx.save(network(), str(student))
    onnx.save(network(quantize_weights=False), str(teacher))
    return write_bundle(
        tmp_path / "bundle",
        name="small",
        targets={"tensorrt": student},
        input_name="x",
        input_shape=(16, 8, 8),
        output_name="y",
        classes=[str(i) for i in range(32)],
        mean=[0.0] * 16,
        std=[1.0] * 16,
        sample_inputs=np.zeros((2, 16, 8, 8), np.uint8),
        sample_outputs=np.zeros((2, 32), np.float32),
        recipe={},
        seeds={},
        versions={},
        files={"teacher.onnx": teacher},
    )


def test_an_engine_is_vouched_for_by_the_manifest(bundle: Bundle) -> None:
    grown, built = add_engine(bundle, "tensorrt", BuildSettings(profiles=(Batches(1, 1, 2),)))
    name = built.plan.relative_to(bundle.folder).as_posix()
    assert name.startswith("engines/tensorrt.rtx")
    assert {name, f"{name}.json"} <= set(grown.manifest["files"])
    assert Bundle.open(bundle.folder).manifest == grown.manifest
    about = open_plan(built.plan).about
    assert about["onnx"]["sha256"] == grown.manifest["files"]["tensorrt.onnx"]["sha256"]
    built.plan.write_bytes(b"changed")
    with pytest.raises(Exception, match="copy the bundle again"):
        Bundle.open(bundle.folder)


def test_building_again_replaces_it(bundle: Bundle) -> None:
    first = add_engine(bundle, "tensorrt")[1]
    grown, again = add_engine(bundle, "tensorrt", BuildSettings(profiles=(Batches(4, 4, 4),)))
    assert again.plan == first.plan
    assert open_plan(again.plan).about["profiles"]["x"][0][0][0] == 4
    assert len([name for name in grown.manifest["files"] if name.endswith(".plan")]) == 1


def test_the_teacher_is_built_without_a_claim_to_integers(bundle: Bundle) -> None:
    grown, built = add_engine(bundle, "teacher")
    assert built.precision.convolutions == {"conv": "float32"}
    assert built.about["settings"]["precision"] == "float32"
    assert any(name.startswith("engines/teacher.rtx") for name in grown.manifest["files"])


def test_a_refused_build_leaves_the_bundle_as_it_was(bundle: Bundle, network: Any) -> None:
    before = dict(bundle.manifest)
    path = bundle.model_path("tensorrt")
    onnx.save(network(zero_point=np.int8(5)), str(path))  # the model, not the manifest
    with pytest.raises(VerificationError, match="refuses the graph"):
        add_engine(bundle, "tensorrt")
    assert bundle.manifest == before
    assert not (bundle.folder / bundled.FOLDER).exists()


def test_a_contradiction_is_said_before_anything_is_built(bundle: Bundle) -> None:
    manifest = {**bundle.manifest, "targets": {"tensorrt-fp16": {"file": "tensorrt.onnx"}}}
    with pytest.raises(ConfigError, match="float32.*tensorrt-fp16 has float16"):
        add_engine(
            Bundle(bundle.folder, manifest), "tensorrt-fp16", BuildSettings(precision="float32")
        )
    assert not (bundle.folder / bundled.FOLDER).exists()


def test_a_model_that_the_bundle_lacks(bundle: Bundle) -> None:
    with pytest.raises(DataError, match="no model for target 'tensorrt-fp16'"):
        add_engine(bundle, "tensorrt-fp16")
    files = {k: v for k, v in bundle.manifest["files"].items() if k != "teacher.onnx"}
    with pytest.raises(DataError, match=r"no teacher.onnx"):
        add_engine(Bundle(bundle.folder, {**bundle.manifest, "files": files}), "teacher")


@given(st.text())
def test_any_gpus_name_is_a_file_name(name: str) -> None:
    slug = bundled._slug(name)
    assert "/" not in slug
    assert "." not in slug
    assert " " not in slug


def test_a_gpus_name_is_readable() -> None:
    assert bundled._slug("NVIDIA GeForce RTX 4090 (nvgpu)") == "nvidia-geforce-rtx-4090-nvgpu"
