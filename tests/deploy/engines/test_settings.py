from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.engines.settings import Batches, BuildSettings
from deploy.errors import ConfigError


@given(st.tuples(st.integers(-2, 6), st.integers(-2, 6), st.integers(-2, 6)))
def test_batches_are_in_order(sizes: tuple[int, int, int]) -> None:
    if 1 <= sizes[0] <= sizes[1] <= sizes[2]:
        assert Batches(*sizes) == Batches.of(*sizes)
    else:
        with pytest.raises(ConfigError, match="1 <= min <= opt <= max"):
            Batches(*sizes)


@pytest.mark.parametrize(
    ("given_sizes", "meant"),
    [
        ((None, None, None), (1, 1, 8)),
        ((4, None, None), (4, 4, 8)),
        ((None, 16, None), (1, 16, 16)),
        ((None, None, 2), (1, 1, 2)),
    ],
)
def test_what_is_not_given_fits(given_sizes: Any, meant: Any) -> None:
    assert Batches.of(*given_sizes) == Batches(*meant)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"runtime": "onnx"}, "runtime is 'onnx'; choose from"),
        ({"precision": "int4"}, "precision is 'int4'"),
        ({"typing": "loose"}, "typing is 'loose'"),
        ({"hardware_compatible": "all"}, "hardware_compatible is 'all'"),
        ({"optimization_level": 6}, "optimization_level is 6"),
        ({"optimization_level": True}, "optimization_level is True"),
        ({"workspace_mb": 0}, "workspace_mb is 0; it must be 1 or more"),
        ({"dla_core": -1}, "dla_core is -1"),
        ({"profiles": ()}, "profiles is empty"),
        ({"verbosity": "none"}, "int8 could not be proved"),
        ({"verbosity": "none", "precision": "float16"}, "float16 could not be proved"),
        ({"dla_core": 0, "profiles": (Batches(1, 1, 2),)}, "static shapes only"),
    ],
)
def test_what_is_not_accepted_is_said(settings: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as refused:
        BuildSettings(**settings)
    assert "\n" not in str(refused.value)


def test_a_float16_model_is_not_built_in_float32() -> None:
    asked = BuildSettings(precision="float32", verbosity="none")
    with pytest.raises(
        ConfigError, match="tensorrt-fp16 has float16.*choose int8 or float16"
    ) as no:
        asked.require_sense("tensorrt-fp16")
    assert "\n" not in str(no.value)
    asked.require_sense("tensorrt")
    asked.require_sense("teacher")
    for precision in ("int8", "float16"):
        BuildSettings(precision=precision).require_sense("tensorrt-fp16")


def test_settings_go_there_and_back() -> None:
    settings = BuildSettings(
        runtime="rtx",
        profiles=(Batches(1, 2, 4), Batches(8, 8, 8)),
        timing_cache=Path("cache"),
        compute_capabilities=("8.6",),
        dla_core=None,
    )
    assert BuildSettings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    assert BuildSettings.from_dict({}) == BuildSettings()


def test_an_unknown_setting_is_named() -> None:
    with pytest.raises(ConfigError, match=r"unknown settings \['workspace'\]; choose from"):
        BuildSettings.from_dict({"workspace": 3})
