"""The file: checked, self-contained, with a free batch, and silent about where it was made."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor, nn

from deploy.errors import VerificationError
from exporters import qdq_ops
from exporters.onnx_from_torch import INPUT, OPSET, OUTPUT, export_onnx
from exporters.qdq_ops import FakeQuantize


class Net(nn.Module):
    """A convolution and a linear layer between quantizers; two of three grids are the same."""

    def __init__(self) -> None:
        super().__init__()
        random = np.random.default_rng(0)
        q_OX = random.integers(-127, 128, (4, 3, 3, 3), dtype=np.int8)
        self.register_buffer("q_OX", torch.from_numpy(q_OX))
        self.register_buffer("scale_O", torch.from_numpy(random.uniform(0.001, 0.01, 4)).float())
        self.register_buffer("bias_O", torch.zeros(4))
        self.grids = nn.ModuleList([FakeQuantize(0.02, 128, False, False) for _ in range(2)])
        self.relu = FakeQuantize(0.01, 0, False, True)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        w_OX = qdq_ops.dequantize_weight(self.q_OX, self.scale_O, 0)
        x = self.grids[1](F.conv2d(self.grids[0](x), w_OX, self.bias_O))
        pooled = qdq_ops.global_average_pool(self.relu(x))
        return self.head(self.drop(qdq_ops.flatten(pooled)))


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.fixture(scope="module")
def path(net: Net, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One export for the tests that only look at it."""
    where = tmp_path_factory.mktemp("onnx") / "net.onnx"
    facts = {"recipe": "demo", "producer": "tests"}
    assert export_onnx(net.train(), torch.zeros(2, 3, 8, 8), where, metadata=facts) == where
    return where


@pytest.fixture(scope="module")
def model(path: Path) -> onnx.ModelProto:
    return onnx.load(path)


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
def test_batch_is_free_and_values_agree(net: Net, path: Path, batch: int) -> None:
    x = torch.randn(batch, 3, 8, 8)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (got,) = session.run([OUTPUT], {INPUT: x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(got, net.eval()(x).numpy(), atol=0.01)


def test_input_and_output_are_named_and_shaped(model: onnx.ModelProto) -> None:
    (source,), (target,) = model.graph.input, model.graph.output
    assert (source.name, target.name) == (INPUT, OUTPUT)
    sizes = [size.dim_value for size in source.type.tensor_type.shape.dim]
    assert sizes == [0, 3, 8, 8]
    assert source.type.tensor_type.shape.dim[0].dim_param
    assert [entry.version for entry in model.opset_import if not entry.domain] == [OPSET]


def test_one_file_holds_it_all(path: Path, model: onnx.ModelProto) -> None:
    assert [entry.name for entry in path.parent.iterdir()] == ["net.onnx"]
    onnx.checker.check_model(model, full_check=True)


def test_weights_are_int8_and_each_constant_is_there_once(net: Net, model: onnx.ModelProto) -> None:
    tensors = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    assert [t.dtype for t in tensors if t.ndim == 4] == [np.int8]
    assert any(np.array_equal(t, net.q_OX.numpy()) for t in tensors)
    assert not any(node.op_type == "Constant" for node in model.graph.node)
    scales = [t.item() for t in tensors if t.ndim == 0 and t.dtype == np.float32]
    assert sorted(scales) == sorted({np.float32(0.02).item(), np.float32(0.01).item()})


def test_no_quantizer_is_lost(model: onnx.ModelProto) -> None:
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("QuantizeLinear") == 3
    assert kinds.count("DequantizeLinear") == 4
    assert "Dropout" not in kinds


def test_metadata_is_kept_and_nothing_else_is_told(path: Path, model: onnx.ModelProto) -> None:
    assert {p.key: p.value for p in model.metadata_props} == {"producer": "tests", "recipe": "demo"}
    graph = model.graph
    notes = (graph.input, graph.output, graph.value_info, graph.initializer, graph.node)
    parts = [graph, *(one for several in notes for one in several)]
    assert not any(part.metadata_props or part.doc_string for part in parts)
    content = path.read_bytes()
    folders = [Path(torch.__file__).parents[1], Path(__file__).parent, path.parent, Path.home()]
    assert not any(str(folder).encode() in content for folder in folders)
    assert not any(told in content for told in (b".py", b"stack_trace", b"test_onnx_from_torch"))


def test_the_same_network_gives_the_same_bytes(net: Net, path: Path, tmp_path: Path) -> None:
    again = export_onnx(
        net,
        torch.ones(3, 3, 8, 8),
        tmp_path / "net.onnx",
        metadata={"producer": "tests", "recipe": "demo"},
    )
    assert again.read_bytes() == path.read_bytes()


def test_export_is_silent(
    net: Net, tmp_path: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    level = logging.getLogger("torch.onnx").level
    export_onnx(net, torch.zeros(2, 3, 8, 8), tmp_path / "net.onnx")
    assert tuple(capsys.readouterr()) == ("", "")
    assert not recwarn.list
    assert logging.getLogger("torch.onnx").level == level
    assert not onnx.load(tmp_path / "net.onnx").metadata_props


def test_a_file_that_the_checker_refuses_is_not_written(
    net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(model: onnx.ModelProto, full_check: bool) -> None:
        raise onnx.checker.ValidationError("bad node")

    monkeypatch.setattr(onnx.checker, "check_model", refuse)
    with pytest.raises(VerificationError, match="net.onnx: onnx.checker refuses.*bad node"):
        export_onnx(net, torch.zeros(2, 3, 8, 8), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_a_quantizer_that_was_lost_is_told(tmp_path: Path) -> None:
    class Unused(Net):
        def __init__(self) -> None:
            super().__init__()
            self.grids.append(FakeQuantize(0.5, 0, False, False))

    with pytest.raises(VerificationError, match="3 QuantizeLinear nodes were written for 4"):
        export_onnx(Unused(), torch.zeros(2, 3, 8, 8), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_an_interrupt_is_no_failed_export(
    net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise AttributeError("module 'torch._dynamo' has no attribute 'exc'") from None

    def export(*_: object, **__: object) -> None:
        try:
            interrupted()
        except AttributeError as error:
            raise RuntimeError("Failed to export the model") from error

    monkeypatch.setattr("torch.onnx.export", export)
    with pytest.raises(KeyboardInterrupt):
        export_onnx(net, torch.zeros(2, 3, 8, 8), tmp_path / "net.onnx")
    assert not (tmp_path / "net.onnx").exists()
