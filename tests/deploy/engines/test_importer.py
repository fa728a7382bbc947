from __future__ import annotations

import random
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.external_data_helper import convert_model_to_external_data

from deploy.engines import importer
from deploy.engines.bindings import Bindings
from deploy.engines.importer import Import, Problem, import_onnx
from deploy.engines.worker import Worker, WorkerDied
from deploy.errors import ConfigError, MissingDependency, StorageError

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
Network = Callable[..., onnx.ModelProto]


@pytest.mark.parametrize(
    "how",
    [{}, {"batch": 2}, {"half": True}, {"quantize_weights": False}, {"opset": 21}],
    ids=["dynamic", "static", "float16", "float", "opset21"],
)
def test_a_sound_graph_is_accepted(network: Network, how: Any) -> None:
    found = import_onnx(network(**how).SerializeToString())
    assert found
    assert found.problems == found.warnings == ()
    assert found.parser.startswith("tensorrt_rtx ")


@pytest.mark.parametrize(
    ("how", "operator", "node", "words"),
    [
        ({"zero_point": np.int8(3)}, "QuantizeLinear", "quantize_x", "zero point"),
        ({"scale": -1.0}, "QuantizeLinear", "quantize_x", "positive"),
        ({"operator": "Frobnicate"}, "Frobnicate", "act", "Plugin not found"),
    ],
)
def test_a_refusal_names_the_node(
    network: Network, how: Any, operator: str, node: str, words: str
) -> None:
    found = import_onnx(network(**how).SerializeToString())
    assert not found
    problem = found.problems[0]
    assert (problem.operator, problem.node) == (operator, node)
    assert words in problem.description
    assert problem.code.isupper()
    assert f"{operator} '{node}'" in str(problem)


def test_a_warning_is_kept(network: Network) -> None:
    found = import_onnx(network(zero_point=np.uint8(0)).SerializeToString())
    assert found
    assert any("INT8" in warning for warning in found.warnings)


@pytest.mark.parametrize("data", [b"", b"not a model"], ids=["empty", "text"])
def test_what_is_no_model_is_refused(data: bytes) -> None:
    found = import_onnx(data)
    assert not found
    assert len(found.problems) == 1


def test_a_truncated_model_is_refused(network: Network) -> None:
    data = network().SerializeToString()
    assert not import_onnx(data[: len(data) // 2])


def test_a_file_finds_its_external_data_and_bytes_do_not(network: Network, tmp_path: Path) -> None:
    model = network()
    convert_model_to_external_data(model, location="net.data", size_threshold=64)
    path = tmp_path / "net.onnx"
    onnx.save(model, str(path))
    assert import_onnx(path)
    assert not import_onnx(path.read_bytes())
    (tmp_path / "net.data").unlink()
    lost = import_onnx(path)
    assert not lost
    assert "net.data" in lost.problems[0].description


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be read"):
        import_onnx(tmp_path / "net.onnx")


def test_a_runtime_that_does_not_exist(network: Network) -> None:
    with pytest.raises(ConfigError, match="unknown 'onnx'; choose from"):
        import_onnx(network().SerializeToString(), "onnx")


def test_a_runtime_that_is_not_installed(network: Network) -> None:
    try:
        found = import_onnx(network().SerializeToString(), "tensorrt")
    except MissingDependency as error:
        assert "apt install" in str(error)
    else:
        assert found.parser.startswith("tensorrt ")


def test_nothing_is_printed(network: Network, capfd: Any) -> None:
    model = network()
    model.graph.node[3].name = "one"
    model.graph.node[4].output[0] = model.graph.node[3].output[0]  # one name for two outputs
    import_onnx(model.SerializeToString())
    import_onnx(b"nothing")
    assert capfd.readouterr() == ("", "")


def test_a_crash_is_a_refusal(monkeypatch: pytest.MonkeyPatch, network: Network) -> None:
    class Crashing(Worker):
        def ask(self, *asked: Any) -> Any:
            raise WorkerDied("the process that calls TensorRT was ended by SIGSEGV", "SIGSEGV")

    monkeypatch.setattr(importer, "shared_worker", Crashing)
    found = import_onnx(network().SerializeToString(), "rtx")
    assert found == Import(False, found.problems, (), "tensorrt_rtx")
    assert found.problems[0] == Problem("CRASH", found.problems[0].description, "", "")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_corrupt_models_end_nobody(network: Network, seed: int) -> None:
    """On some of these the importer of TensorRT-RTX 1.7 dies."""
    good = network().SerializeToString()
    rng = random.Random(seed)
    found = []
    for _ in range(150):
        data = bytearray(good)
        for _ in range(rng.choice([1, 2, 5])):
            data[rng.randrange(len(data))] = rng.randrange(256)
        found.append(import_onnx(bytes(data)))
    assert all(result.accepted == (not result.problems) for result in found)
    assert {result.accepted for result in found} == {True, False}


def test_names_that_are_not_text(network: Network) -> None:
    model = network(zero_point=np.int8(3))
    data = model.SerializeToString().replace(b"quantize_x", b"quanti\xff\xfe_x", 1)
    found = import_onnx(data)
    assert not found
    assert found.problems[0].node == "(not text)"


def test_a_node_is_numbered_where_it_is_not_named() -> None:
    """Errors of TensorRT 8.6 have an index alone."""
    bindings = Bindings(None, "tensorrt")
    named = SimpleNamespace(node_operator=lambda: "Conv", node_name=lambda: "conv1")
    assert [get() for get in bindings.node_of(named)] == ["Conv", "conv1"]
    for index, words in ((7, "number 7"), (-1, "")):
        get_operator, get_node = bindings.node_of(SimpleNamespace(node=lambda i=index: i))
        assert (get_operator(), get_node()) == ("", words)


def test_it_works_out_of_an_archive(network: Network, tmp_path: Path) -> None:
    """``deploy`` zipped, as it is sent to boards: the worker's child finds it there too."""
    archive, model = tmp_path / "runner.pyz", tmp_path / "net.onnx"
    onnx.save(network(), str(model))
    root = Path(importer.__file__).parents[2]
    with zipfile.ZipFile(archive, "w") as zipped:
        for path in (root / "deploy").rglob("*.py"):
            zipped.write(path, path.relative_to(root))
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import deploy.engines.importer as importer; "
        "assert sys.argv[1] in importer.__file__; print(importer.import_onnx(sys.argv[2]).accepted)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(archive), str(model)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "True"
