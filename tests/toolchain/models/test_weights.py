"""Weights from files: every usual wrapping is taken off, and nothing loads by halves."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from deploy.errors import CheckpointError, StorageError
from toolchain.models.registry import build
from toolchain.models.weights import load_weights

State = dict[str, Tensor]


def _network(seed: int = 0, **args: Any) -> nn.Module:
    torch.manual_seed(seed)
    return build("cifar_resnet", **{"depth": 8, "width": 2, "classes": 4, **args})


def _equal(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def _renamed(state: State, name: Callable[[str], str]) -> State:
    return {name(key): value for key, value in state.items()}


WRAPPINGS: dict[str, Callable[[State], Any]] = {
    "bare": lambda s: s,
    "ordered": OrderedDict,
    "published": lambda s: {"best": 91.7, "state_dict": _renamed(s, "module.{}".format)},
    "model": lambda s: {"model": s, "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}},
    "model_state_dict": lambda s: {"model_state_dict": s, "epoch": 3},
    "net": lambda s: {"net": s},
    "ema": lambda s: {"ema": s},
    "deep": lambda s: {"model": {"state_dict": s}},
    "only one mapping": lambda s: {"student": s, "epoch": 3},
    "compiled": lambda s: _renamed(s, "_orig_mod.{}".format),
    "compiled, parallel": lambda s: _renamed(s, "_orig_mod.module.{}".format),
    "parallel, compiled": lambda s: _renamed(s, "module._orig_mod.{}".format),
    "compiled part": lambda s: _renamed(s, lambda k: k.replace("layer2.", "layer2._orig_mod.")),
    "averaged": lambda s: {"n_averaged": torch.tensor(3), **_renamed(s, "module.{}".format)},
    "scalars beside": lambda s: {**s, "epoch": 3},
    "no counters": lambda s: {k: v for k, v in s.items() if "num_batches" not in k},
    "half": lambda s: {k: v.half() if v.is_floating_point() else v for k, v in s.items()},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_torch_file_in_every_wrapping(tmp_path: Path, wrapping: str) -> None:
    state = _network(1).state_dict()
    if wrapping == "half":
        state = {k: v.half().float() if v.is_floating_point() else v for k, v in state.items()}
    path = tmp_path / "weights.th"
    torch.save(WRAPPINGS[wrapping](state), path)
    network = _network(2)
    load_weights(network, path)
    assert _equal(network.state_dict(), state)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_safetensors(tmp_path: Path, prefix: str) -> None:
    state = _network(1).state_dict()
    save_file(_renamed(state, f"{prefix}{{}}".format), tmp_path / "w.safetensors")
    network = _network(2)
    load_weights(network, tmp_path / "w.safetensors")
    assert _equal(network.state_dict(), state)


def test_legacy_torch_file(tmp_path: Path) -> None:
    state = _network(1).state_dict()
    torch.save({"state_dict": state}, tmp_path / "w.th", _use_new_zipfile_serialization=False)
    network = _network(2)
    load_weights(network, tmp_path / "w.th")
    assert _equal(network.state_dict(), state)


def test_a_child_called_module_keeps_its_name(tmp_path: Path) -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 2)

    source, network = Wrapper(), Wrapper()
    torch.save(source.state_dict(), tmp_path / "w.pt")
    load_weights(network, tmp_path / "w.pt")
    assert torch.equal(network.module.weight, source.module.weight)


def _without(state: State, key: str) -> State:
    return {k: v for k, v in state.items() if k != key}


MISFITS: list[tuple[str, Callable[[State], Any], str]] = [
    ("missing", lambda s: _without(s, "conv1.weight"), "1 missing: conv1.weight"),
    ("unexpected", lambda s: {**s, "extra.weight": torch.ones(1)}, "1 unexpected: extra.weight"),
    (
        "both",
        lambda s: {**_without(s, "conv1.weight"), "stem.weight": s["conv1.weight"]},
        "1 missing: conv1.weight; 1 unexpected: stem.weight; check model",
    ),
    (
        "many",
        lambda s: {k: v for k, v in s.items() if "layer3" not in k},
        r"10 missing: layer3.0.conv1.weight, .* and 7 more",
    ),
    (
        "shape",
        lambda s: {**s, "conv1.weight": torch.ones(3, 3, 3, 3)},
        "1 of another shape: conv1.weight is 3x3x3x3, the model has 2x3x3x3; check model.args",
    ),
    (
        "classes",
        lambda s: {**s, "linear.weight": torch.ones(9, 8), "linear.bias": torch.ones(9)},
        "linear is the classifier: the checkpoint has 9 classes and the model 4",
    ),
    ("integer", lambda s: {**s, "linear.bias": s["linear.bias"].char()}, "linear.bias is .*int8"),
    (
        "nan",
        lambda s: {**s, "linear.bias": torch.full((4,), float("nan"))},
        "not finite in linear.bias",
    ),
]


@pytest.mark.parametrize(("wrap", "words"), [m[1:] for m in MISFITS], ids=[m[0] for m in MISFITS])
def test_what_does_not_fit_changes_nothing(
    tmp_path: Path, wrap: Callable[[State], Any], words: str
) -> None:
    network = _network(2)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    torch.save(wrap(_network(1).state_dict()), tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=words) as caught:
        load_weights(network, tmp_path / "w.pt")
    assert "\n" not in str(caught.value)
    assert _equal(network.state_dict(), before)


def test_pickle_that_needs_code_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save(_network(), tmp_path / "whole.pt")
    with pytest.raises(CheckpointError, match="code execution.*torch.save") as caught:
        load_weights(_network(), tmp_path / "whole.pt")
    assert "\n" not in str(caught.value)

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return open, (str(tmp_path / "ran"), "w")

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match="code execution"):
        load_weights(_network(), tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


def _scripted() -> bytes:
    buffer = io.BytesIO()
    torch.save(_network().state_dict(), buffer)
    return buffer.getvalue()[:2000]


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"no weights at all", _scripted()])
def test_damaged_file_is_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name) as caught:
        load_weights(_network(), tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("record", "words"),
    [({"epoch": 3}, "a mapping with the keys epoch"), ([1, 2], "holds list"), ({}, "holds a map")],
)
def test_file_without_weights(tmp_path: Path, record: Any, words: str) -> None:
    torch.save(record, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=words):
        load_weights(_network(), tmp_path / "w.pt")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "not.pt", tmp_path):
        with pytest.raises(StorageError, match="is not a file"):
            load_weights(_network(), path)
