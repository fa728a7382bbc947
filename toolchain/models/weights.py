"""Weights from a file into a network: all of them, or none and one line that says why."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from deploy.errors import CheckpointError, StorageError

# Where training scripts put the weights inside a checkpoint, in the order of preference.
_NESTED = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "module",
    "weights",
    "params",
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
)
_SHOWN = 3


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a ``.safetensors`` or torch file into ``model``, in place and strictly.

    Looks inside the usual nested keys and takes off the prefixes that wrappers add (``module.``,
    ``_orig_mod.``).  BatchNorm's ``num_batches_tracked`` may be absent: old files have none.  The
    model is unchanged unless every tensor fits.

    Raises:
        StorageError: The file does not exist or cannot be read.
        CheckpointError: It holds no weights, needs code execution, or does not fit.
    """
    path = Path(path)
    state = _unwrapped(_tensors(_read(path), path), model)
    _check(model, state, path)
    model.load_state_dict(state, strict=False)  # `_check` was stricter: it allows only counters


def _read(path: Path) -> Any:
    if not path.is_file():
        raise StorageError(
            f"model.checkpoint: {path} is not a file; accepted: .safetensors, or a torch file"
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path, device="cpu")
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise StorageError(f"model.checkpoint: {path} cannot be read: {error}") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"model.checkpoint: {path.name} needs code execution to be read, or is no torch file; "
            "accepted: tensors only; where you trust it, load it once and write "
            "torch.save(model.state_dict(), 'weights.pt')"
        ) from error
    except (SafetensorError, RuntimeError, ValueError, EOFError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"model.checkpoint: {path.name} cannot be read ({type(error).__name__}: {reason}); "
            "accepted: a whole .safetensors or torch file; fetch or write it again"
        ) from error


def _tensors(record: Any, path: Path) -> dict[str, Tensor]:
    """The mapping from name to tensor inside a checkpoint.

    Scalars beside the tensors (an epoch, an accuracy) are no weights and are left out.
    """
    if isinstance(record, Mapping):
        for key in _NESTED:
            if isinstance(record.get(key), Mapping) and _has_tensors(record[key]):
                return _tensors(record[key], path)
        tensors = {str(key): value for key, value in record.items() if isinstance(value, Tensor)}
        if tensors:
            return tensors
        inner = [value for value in record.values() if _has_tensors(value)]
        if len(inner) == 1:
            return _tensors(inner[0], path)
        held = f"a mapping with the keys {_first([str(key) for key in record])}"
    else:
        held = type(record).__name__
    raise CheckpointError(
        f"model.checkpoint: {path.name} holds {held}; accepted: names and tensors, "
        f"as they are or under one of {', '.join(_NESTED)}"
    )


def _has_tensors(value: Any) -> bool:
    """Whether tensors lie in a mapping by name, at any depth."""
    return isinstance(value, Mapping) and any(
        isinstance(key, str) and (isinstance(item, Tensor) or _has_tensors(item))
        for key, item in value.items()
    )


def _unwrapped(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """``state`` under the names the bare network has."""
    expected = model.state_dict()
    if not any("_orig_mod" in name.split(".") for name in expected):
        state = {
            ".".join(part for part in name.split(".") if part != "_orig_mod"): tensor
            for name, tensor in state.items()
        }
    if "n_averaged" not in expected:  # the counter of torch.optim.swa_utils.AveragedModel
        state.pop("n_averaged", None)
    own = any(name.startswith("module.") for name in expected)
    while state and not own and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return state


def _check(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    expected = {
        name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)
    }
    missing = [name for name in expected if name not in state and not _is_counter(name)]
    # Sorted so that weights are shown before counters.
    unexpected = sorted((name for name in state if name not in expected), key=_is_counter)
    shared = [name for name in expected if name in state]
    wrong = [name for name in shared if state[name].shape != expected[name].shape]
    if missing or unexpected or wrong:
        shapes = [
            f"{name} is {_shape(state[name])}, the model has {_shape(expected[name])}"
            for name in wrong
        ]
        told = [
            f"{len(names)} {what}: {_first(names)}"
            for what, names in (
                ("missing", missing),
                ("unexpected", unexpected),
                ("of another shape", shapes),
            )
            if names
        ]
        advice = (
            "check model.builtin, model.file and model.args"
            if missing or unexpected
            else _class_count(model, expected, state, wrong)
        )
        raise CheckpointError(
            f"model.checkpoint: {path.name} does not fit the model: {'; '.join(told)}; {advice}"
        )
    kinds = [
        f"{name} is {state[name].dtype}, the model has {expected[name].dtype}"
        for name in shared
        if state[name].is_floating_point() != expected[name].is_floating_point()
    ]
    if kinds:
        raise CheckpointError(
            f"model.checkpoint: {path.name} has values of another kind: {_first(kinds)}; "
            "accepted: floating-point weights; load the checkpoint from before quantization"
        )
    broken = [
        name
        for name, _ in model.named_parameters()
        if name in state and not torch.isfinite(state[name]).all()
    ]
    if broken:
        raise CheckpointError(
            f"model.checkpoint: {path.name} has values that are not finite in {_first(broken)}; "
            "accepted: finite weights; use an earlier checkpoint"
        )


def _class_count(
    model: nn.Module,
    expected: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    wrong: Sequence[str],
) -> str:
    """What to do about wrong shapes: where only the last layer's outputs differ, say classes."""
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    outputs = all(state[name].shape[1:] == expected[name].shape[1:] for name in wrong)
    if not outputs or {name.rpartition(".")[0] for name in wrong} != set(layers[-1:]):
        return "check model.args: the layers are the same but their widths differ"
    return (
        f"{layers[-1]} is the classifier: the checkpoint has {len(state[wrong[0]])} classes and "
        f"the model {len(expected[wrong[0]])}; set the class count in model.args"
    )


def _is_counter(name: str) -> bool:
    return name.rpartition(".")[2] == "num_batches_tracked"


def _shape(tensor: Tensor) -> str:
    return "x".join(str(size) for size in tensor.shape) or "a scalar"


def _first(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
