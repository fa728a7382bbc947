"""A user's own Python file: it is found, run, and left without a trace in the process."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from deploy.errors import ConfigError
from toolchain.models.source import build_model

NET = """
from torch import nn
from blocks import head

def build(classes=10, in_features=4):
    return nn.Sequential(nn.Flatten(), head(in_features, classes))

def _hidden():
    pass

number = 3
"""
BLOCKS = """
from torch import nn

def head(n, c):
    return nn.Linear(n, c, bias={bias})
"""


def _config(file: str | None, builtin: str | None = None, **args: Any) -> Any:
    onnx = "net.onnx" if builtin is None and file is None else None
    return SimpleNamespace(builtin=builtin, file=file, onnx=onnx, args=args)


def _write(folder: Path, net: str = NET, bias: bool = True) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "net.py").write_text(net)
    (folder / "blocks.py").write_text(BLOCKS.format(bias=bias))
    return folder


def test_builtin_by_name(tmp_path: Path) -> None:
    network = build_model(_config(None, "mlp", classes=3, hidden=[4]), tmp_path)
    assert network.eval()(torch.rand(2, 1, 8, 8)).shape == (2, 3)


def test_file_is_relative_to_the_base_and_takes_arguments(tmp_path: Path) -> None:
    _write(tmp_path / "mine")
    network = build_model(_config("mine/net.py:build", classes=3), tmp_path)
    assert network(torch.rand(2, 2, 2)).shape == (2, 3)


def test_absolute_path_ignores_the_base(tmp_path: Path) -> None:
    folder = _write(tmp_path / "mine")
    network = build_model(_config(f"{folder}/net.py:build"), Path("/nowhere"))
    assert isinstance(network, nn.Module)


def test_nothing_stays_behind_and_siblings_are_not_confused(tmp_path: Path) -> None:
    path, modules = list(sys.path), set(sys.modules)
    for name, bias in (("a", True), ("b", False)):
        _write(tmp_path / name, bias=bias)
        network = build_model(_config(f"{name}/net.py:build"), tmp_path)
        assert (network[1].bias is not None) is bias  # type: ignore[index]
    assert sys.path == path
    assert all(name.startswith("compress_deploy_user_") for name in set(sys.modules) - modules)


def test_sibling_package_is_importable_and_forgotten(tmp_path: Path) -> None:
    (tmp_path / "parts_of_it").mkdir()
    (tmp_path / "parts_of_it" / "__init__.py").write_text("")
    (tmp_path / "parts_of_it" / "inner.py").write_text(BLOCKS.format(bias=True))
    (tmp_path / "net.py").write_text(NET.replace("from blocks", "from parts_of_it.inner"))
    assert isinstance(build_model(_config("net.py:build"), tmp_path), nn.Module)
    assert not [name for name in sys.modules if name.startswith("parts_of_it")]


@pytest.mark.parametrize(
    ("net", "function", "args", "words"),
    [
        (NET, "bild", {}, "no function 'bild'; choose from build$"),
        (NET, "number", {}, "no function 'number'; choose from build$"),
        ("x = 1", "build", {}, "no function 'build'; the file defines no function"),
        (NET, "build", {"depth": 3}, "raised TypeError.*'depth'.*accepted: build.*classes=10"),
        ("def build():\n  raise KeyError('a\\nb')", "build", {}, "raised KeyError"),
        ("def build():\n  return 3", "build", {}, "returned int; accepted: a torch.nn.Module"),
        ("def build(:", "build", {}, "cannot be imported: SyntaxError"),
        ("import not_there_at_all", "build", {}, "cannot be imported: ModuleNotFoundError"),
        ("raise RuntimeError('one\\ntwo')", "build", {}, "RuntimeError: one two"),
    ],
)
def test_mistakes_are_answered_in_one_line(
    tmp_path: Path, net: str, function: str, args: dict[str, Any], words: str
) -> None:
    _write(tmp_path, net)
    path = list(sys.path)
    with pytest.raises(ConfigError, match=words) as caught:
        build_model(_config(f"net.py:{function}", **args), tmp_path)
    assert "\n" not in str(caught.value)
    assert sys.path == path


def test_files_that_hold_no_network(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere.py does not exist"):
        build_model(_config("nowhere.py:build"), tmp_path)
    with pytest.raises(ConfigError, match="net.onnx holds a graph that cannot be cut or trained"):
        build_model(_config(None), tmp_path)
    (tmp_path / "net.txt").write_text(NET)
    with pytest.raises(ConfigError, match=r"ends in \.py"):
        build_model(_config("net.txt:build"), tmp_path)


def test_an_error_of_ours_passes_unchanged(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from toolchain.models import registry\n"
        "def build():\n"
        "    return registry.build('cifar_resnet', depth=3)\n"
    )
    with pytest.raises(ConfigError, match="^model.args.depth: 3 given"):
        build_model(_config("net.py:build"), tmp_path)
