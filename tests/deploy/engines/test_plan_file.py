from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from deploy.engines.driver import Gpu
from deploy.engines.plan_file import open_plan, side_path
from deploy.errors import DeviceError, StorageError

ORIN = Gpu("Orin", "8.7", 16, 32 << 30, True)
A6000 = Gpu("RTX A6000", "8.6", 84, 48 << 30, False)
A40 = replace(A6000, name="A40")
T4 = Gpu("T4", "7.5", 40, 16 << 30, False)


def test_a_plan_fits_where_it_was_built(plan: Any) -> None:
    opened = open_plan(plan())
    assert opened.runtime == "tensorrt"
    opened.require_fit("tensorrt", "10.3.0", ORIN)


@pytest.mark.parametrize(
    ("changed", "here", "words"),
    [
        ({}, ("rtx", "10.3.0", ORIN), "runtime tensorrt and this is tensorrt_rtx"),
        ({}, ("tensorrt", "10.16.2", ORIN), "TensorRT 10.3.0 and this is 10.16.2"),
        ({}, ("tensorrt", "10.3.0", A6000), r"GPU Orin \(SM 8.7\) and this is RTX A6000"),
        (
            {"platform": {"system": "QNX", "machine": "aarch64"}},
            ("tensorrt", "10.3.0", ORIN),
            "platform QNX aarch64 and this is Linux",
        ),
        ({"gpu": A6000.__dict__}, ("tensorrt", "10.3.0", A40), "GPU RTX A6000 and this is A40"),
        (
            {"portable": {"versions": True, "gpus": None}},
            ("tensorrt", "10.2.0", ORIN),
            "TensorRT 10.3.0 and this is 10.2.0",
        ),
        (
            {"portable": {"versions": False, "gpus": "ampere_plus"}},
            ("tensorrt", "10.3.0", T4),
            "GPU Orin",
        ),
        (
            {"portable": {"versions": False, "gpus": "same_compute_capability"}},
            ("tensorrt", "10.3.0", A6000),
            "GPU Orin",
        ),
    ],
)
def test_a_foreign_plan_is_refused(plan: Any, changed: Any, here: Any, words: str) -> None:
    with pytest.raises(DeviceError, match=words) as refused:
        open_plan(plan(**changed)).require_fit(*here)
    assert "compress-deploy build" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("changed", "here"),
    [
        ({"portable": {"versions": True, "gpus": None}}, ("tensorrt", "10.16.2", ORIN)),
        ({"portable": {"versions": False, "gpus": "ampere_plus"}}, ("tensorrt", "10.3.0", A6000)),
        (
            {
                "gpu": A6000.__dict__,
                "portable": {"versions": False, "gpus": "same_compute_capability"},
            },
            ("tensorrt", "10.3.0", A40),
        ),
        (
            {
                "runtime": {"flavour": "rtx", "version": "1.7.1"},
                "gpu": None,
                "portable": {"versions": False, "gpus": "any"},
            },
            ("rtx", "1.7.1", A6000),
        ),
    ],
    ids=["later version", "ampere_plus", "same capability", "rtx"],
)
def test_a_plan_that_may_travel_does(plan: Any, changed: Any, here: Any) -> None:
    open_plan(plan(**changed)).require_fit(*here)


def test_a_changed_plan_is_refused(plan: Any) -> None:
    path = plan()
    path.write_bytes(b"plam")
    with pytest.raises(StorageError, match="SHA-256 is not the one in net.plan.json"):
        open_plan(path)


def test_a_plan_without_its_side_file(plan: Any) -> None:
    path = plan()
    side_path(path).unlink()
    with pytest.raises(StorageError, match="has no side file net.plan.json"):
        open_plan(path)


def test_no_plan(tmp_path: Any) -> None:
    with pytest.raises(StorageError, match="no such file"):
        open_plan(tmp_path / "net.plan")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be read"),
        ("[]", "is not the side file of an engine"),
        ('{"format": "another"}', "is not the side file of an engine"),
        ('{"format": "compress-deploy engine", "format_version": 99}', "format version is 99"),
        ('{"format": "compress-deploy engine", "format_version": 1}', "lacks"),
    ],
)
def test_a_side_file_that_is_none(plan: Any, text: str, words: str) -> None:
    path = plan()
    side_path(path).write_text(text)
    with pytest.raises(StorageError, match=words):
        open_plan(path)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"plan": {}}, "plan.sha256 is not a text"),
        ({"plan": "4f"}, "plan is not an object"),
        ({"onnx": {"file": "net.onnx"}}, "onnx.sha256 is not a text"),
        ({"runtime": {}}, "runtime.flavour is not a text; runtime.version is not a text"),
        ({"runtime": {"flavour": "trt", "version": "10.3.0"}}, "runtime.flavour is not one of"),
        ({"runtime": {"flavour": "rtx", "version": 10}}, "runtime.version is not a text"),
        ({"platform": None}, "platform is not an object"),
        ({"portable": {"gpus": None}}, "portable.versions is not true or false"),
        ({"portable": {"versions": True}}, "portable.gpus is not a text or null"),
        ({"gpu": "Orin"}, "gpu is not an object"),
        ({"gpu": {"name": "Orin"}}, "gpu.compute_capability is not a text"),
        ({"layers": {}}, "layers is not a list"),
        ({"profiles": {"x": [[1, 1, 8]]}}, "profiles do not give each input its shapes"),
        ({"profiles": [1]}, "profiles do not give each input its shapes"),
    ],
)
def test_a_side_file_that_is_damaged(plan: Any, changed: Any, words: str) -> None:
    with pytest.raises(StorageError, match=f"net.plan.json: is damaged: .*{words}.*again") as no:
        open_plan(plan(**changed))
    assert "\n" not in str(no.value)


def test_what_is_read_later_of_a_damaged_side_file(plan: Any) -> None:
    opened = open_plan(plan(precision={"layers": 3}, layers=[{"name": "conv"}]))
    with pytest.raises(StorageError, match=r"net.plan.json: precision is damaged .KeyError"):
        _ = opened.precision
    with pytest.raises(StorageError, match=r"net.plan.json: layers is damaged .KeyError"):
        _ = opened.layers
    with pytest.raises(StorageError, match=r"layers is damaged .TypeError"):
        _ = open_plan(plan(layers=["conv"])).layers


def test_profiles_are_shapes(plan: Any) -> None:
    profiles = {"x": [[[1, 3], [2, 3], [4, 3]]]}
    assert open_plan(plan(profiles=profiles)).about["profiles"] == profiles


def test_a_side_file_with_more_than_we_know_is_read(plan: Any) -> None:
    path = plan()
    about = json.loads(side_path(path).read_text())
    side_path(path).write_text(json.dumps({**about, "later": 1}))
    assert open_plan(path).about["later"] == 1


def test_a_plan_for_another_platform_is_said_before_a_driver_is_looked_for(plan: Any) -> None:
    """A machine without a GPU names what is wrong with the plan, not what is missing here."""
    from deploy.sessions.engine import EngineSession

    foreign = plan(platform={"system": "QNX", "machine": "aarch64"})
    with pytest.raises(DeviceError, match="built for platform QNX aarch64"):
        EngineSession(foreign)
