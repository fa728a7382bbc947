"""A teacher that is only an ONNX file: from the file to a measured INT8 bundle, and what is refused."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn
from typer.testing import CliRunner

from deploy.bundle import Bundle
from deploy.errors import CompressDeployError, ConfigError, DataError
from deploy.sessions.ort import OrtCpuSession
from exporters.blame.graph_layers import GraphLayers
from exporters.onnx_from_torch import export_onnx
from toolchain.chain import run_recipe
from toolchain.cli import app
from toolchain.data.held_out import samples_for
from toolchain.graph import trace
from toolchain.proof.proving import prove
from toolchain.quantization.lowering import lower
from toolchain.recipe.schema import Recipe
from toolchain.training.progress import Progress

CLASSES = 4
QUIET = Progress(quiet=True)


def make_data(folder: Path) -> Path:
    """Images of four brightnesses."""
    random = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for part, count in (("train", 80), ("test", 20)):
        labels = np.arange(count) % CLASSES
        noise = random.integers(0, 40, (count, 8, 8))
        arrays |= {f"x_{part}": (noise + 60 * labels[:, None, None]).astype(np.uint8)}
        arrays |= {f"y_{part}": labels}
    np.savez(folder / "grey.npz", **arrays)
    return folder / "grey.npz"


def make_onnx(path: Path, channels: int = 1, classes: int = CLASSES) -> Path:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, classes),
    )
    return export_onnx(lower(trace(network)), torch.zeros(2, channels, 8, 8), path)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("given")
    make_data(folder)
    make_onnx(folder / "net.onnx")
    return folder


def recipe(given: Path, file: Path | None = None, **more: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "grey",
            "threads": 1,
            "model": {"onnx": str(file or given / "net.onnx")},
            "data": {"kind": "npz", "root": str(given / "grey.npz"), "validation": 0.2},
            "stages": [
                {"stage": "teacher"},
                {"stage": "export", "static_int8": "mse", "samples": 4, "calibration_images": 32},
                {"stage": "report", "latency_s": 0.01, "latency_runs": 20},
            ],
            **more,
        }
    )


def test_a_file_becomes_a_measured_bundle(given: Path, tmp_path: Path) -> None:
    targets = ["ort-cpu", "tensorrt"]
    assert run_recipe(recipe(given, target=targets), out=tmp_path, allow_missed=False) == 0
    (folder,) = tmp_path.glob("grey-*")
    report = json.loads((folder / "report.json").read_text())
    bundle = Bundle.open(folder / "bundle")
    assert bundle.targets == ("ort-cpu", "tensorrt")
    weights = 8 * 9 + 8 + 8 * 8 * 9 + 8 + 8 * CLASSES + CLASSES
    macs = 64 * (8 * 9 + 8 * 8 * 9) + 8 * CLASSES
    for who in ("teacher", "student"):
        assert (report[who]["parameters"], report[who]["macs"]) == (weights, macs)
    operators = {node.op_type for node in onnx.load(bundle.model_path("ort-cpu")).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators
    images_u8, _ = bundle.samples()
    feeds = {"images": bundle.preprocess(images_u8)}
    mine = OrtCpuSession(folder / "bundle" / "teacher.onnx").run(feeds)["logits"]
    theirs = OrtCpuSession(given / "net.onnx").run(feeds)["logits"]
    np.testing.assert_array_equal(mine, theirs)
    assert bundle.verify_samples(OrtCpuSession(bundle.model_path("ort-cpu")))
    assert any("without training" in note for note in report["notes"])


def test_without_stages_the_chain_is_that_of_a_file(given: Path) -> None:
    made = Recipe.model_validate(
        {"name": "grey", "model": {"onnx": "net.onnx"}, "data": {"kind": "digits"}}
    )
    assert [stage.stage for stage in made.stages] == ["teacher", "export", "report"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": {"onnx": "n.onnx", "builtin": "mlp"}}, "'builtin' and 'onnx' given"),
        ({"model": {"onnx": "n.onnx", "checkpoint": "c.pth"}}, "the file alone"),
        ({"stages": [{"stage": "teacher"}, {"stage": "prune"}]}, "cannot be cut or trained"),
        ({"stages": [{"stage": "teacher"}, {"stage": "export"}]}, "without static_int8"),
    ],
)
def test_recipes_that_make_no_sense(given: Path, change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        recipe(given, **change)


def fixed_batch(path: Path, given: Path) -> Path:
    """A model that reshapes to one image, whatever its input says."""
    model = onnx.load(given / "net.onnx")
    for node in model.graph.node:
        if node.op_type == "Reshape":
            shape = numpy_helper.from_array(np.array([1, 8], np.int64), "one")
            model.graph.initializer.append(shape)
            node.input[1] = "one"
    onnx.save(model, path)
    return path


def quantized(path: Path, given: Path) -> Path:
    model = onnx.load(given / "net.onnx")
    pair = [
        numpy_helper.from_array(np.array(0.1, np.float32), "s"),
        numpy_helper.from_array(np.array(0, np.uint8), "z"),
    ]
    model.graph.initializer.extend(pair)
    logits = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["float" if name == logits else name for name in node.output]
    model.graph.node.extend(
        [
            onnx.helper.make_node("QuantizeLinear", ["float", "s", "z"], ["q"]),
            onnx.helper.make_node("DequantizeLinear", ["q", "s", "z"], [logits]),
        ]
    )
    onnx.save(model, path)
    return path


def changed(path: Path, given: Path, **fields: Any) -> Path:
    """The file with another opset, first size, last operator, edges or weights."""
    model = onnx.load(given / "net.onnx")
    if "opset" in fields:
        model.opset_import[0].version = fields["opset"]
    if "batch" in fields:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = fields["batch"]
    if "domain" in fields:
        model.opset_import.append(onnx.helper.make_opsetid(fields["domain"], 1))
        model.graph.node[-1].domain = fields["domain"]
    if "value" in fields:
        for tensor in model.graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT:
                filled = np.full_like(numpy_helper.to_array(tensor), fields["value"])
                tensor.CopyFrom(numpy_helper.from_array(filled, tensor.name))
    if "cycle" in fields:
        model.graph.node[0].input[0] = model.graph.node[-1].output[0]
    if "attribute" in fields:
        model.graph.node[-1].attribute.append(onnx.helper.make_attribute(fields["attribute"], 1))
    if "op_type" in fields:
        model.graph.node[-1].op_type = fields["op_type"]
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path, given: changed(path, given, opset=5), "other.onnx: opset 5; ort-cpu"),
        (lambda path, given: changed(path, given, opset=99), "other.onnx: opset 99; ort-cpu"),
        (
            lambda path, given: changed(path, given, cycle=True),
            r"model.onnx: other.onnx: .* wait for each other; look at the nodes that are named",
        ),
        (
            lambda path, given: changed(path, given, attribute="slope"),
            r"model.onnx: other.onnx: .* has the attribute 'slope', which the operator never had; "
            r"declare the opset",
        ),
        (lambda path, given: changed(path, given, batch=0), r"has the shape \[0, 1, 8, 8\]"),
        (lambda path, given: changed(path, given, value=np.nan), "gives NaN or infinity"),
        (lambda path, given: changed(path, given, op_type="Wibble"), "Wibble is no operator of"),
        (lambda path, given: changed(path, given, domain="com.acme"), "of domain 'com.acme'"),
        (lambda path, given: make_onnx(path, channels=3), "the data's images are"),
        (lambda path, given: make_onnx(path, classes=7), "the data has 4 classes"),
        (fixed_batch, "whose batch is free"),
        (quantized, "is quantized already"),
        (lambda path, given: path.write_bytes(b"nothing") and path, "not a whole ONNX model"),
    ],
)
def test_files_that_do_not_fit(make: Any, says: str, given: Path, tmp_path: Path) -> None:
    file = make(tmp_path / "other.onnx", given)
    with pytest.raises(CompressDeployError, match=says) as caught:
        run_recipe(recipe(given, file), out=tmp_path / "runs", allow_missed=True)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "runs").glob("artifacts/teacher-*"))


def test_a_file_cannot_be_planned(given: Path) -> None:
    from toolchain.structure.preflight import plan_recipe

    with pytest.raises(ConfigError, match="cannot be cut or trained"):
        plan_recipe(recipe(given), as_json=False)


def test_two_inputs(given: Path, tmp_path: Path) -> None:
    model = onnx.load(given / "net.onnx")
    second = onnx.helper.make_tensor_value_info("more", onnx.TensorProto.FLOAT, ["batch", 1])
    model.graph.input.append(second)
    onnx.save(model, tmp_path / "two.onnx")
    with pytest.raises(DataError, match="has 2 inputs and 1 outputs"):
        run_recipe(recipe(given, tmp_path / "two.onnx"), out=tmp_path / "runs", allow_missed=True)


def test_other_recipes_keep_the_keys_of_their_artifacts() -> None:
    """A section is part of a key as it is dumped: what an older version trained must be found."""
    made = Recipe.model_validate(
        {"name": "grey", "model": {"builtin": "mlp"}, "data": {"kind": "digits"}}
    )
    assert made.model_dump(mode="json", include={"model"}) == {
        "model": {"builtin": "mlp", "file": None, "args": {}, "checkpoint": None}
    }


def test_its_bundle_is_proved_against_the_file(given: Path, tmp_path: Path) -> None:
    assert run_recipe(recipe(given), out=tmp_path, allow_missed=False) == 0
    (folder,) = tmp_path.glob("grey-*")
    arguments = ["verify", str(folder / "bundle"), "--data", str(given / "grey.npz"), "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    (target,) = json.loads(result.stdout)["targets"]
    lost = next(hop for hop in target["ladder"]["hops"] if hop["below"] == "simulated")
    assert lost["above"] == "float file"
    assert lost["check"]["rows"] == 20
    assert lost["check"]["max_abs"] > 0


def test_weights_that_are_inputs_too_become_constants(given: Path, tmp_path: Path) -> None:
    """Files of before IR 4 list every weight among the inputs, in any order."""
    model = onnx.load(given / "net.onnx")
    listed = [
        onnx.helper.make_tensor_value_info(one.name, one.data_type, list(one.dims))
        for one in model.graph.initializer
    ]
    images = model.graph.input[0]
    both = [*listed, images]
    copied = [value.SerializeToString() for value in both]
    del model.graph.input[:]
    for value in copied:
        model.graph.input.add().ParseFromString(value)
    onnx.save(model, tmp_path / "listed.onnx")
    answers = []
    for name, file in (("plain", None), ("listed", tmp_path / "listed.onnx")):
        out = tmp_path / name
        assert run_recipe(recipe(given, file), out=out, allow_missed=True) == 0
        (made,) = out.glob("grey-*")
        kept = onnx.load(made / "bundle" / "ort-cpu.onnx")
        assert len(kept.graph.input) == 1
        images_u8, outputs = Bundle.open(made / "bundle").samples()
        answers.append((images_u8, outputs))
    for one, two in zip(*answers, strict=True):
        np.testing.assert_array_equal(one, two)


def test_what_the_quantizer_cannot_take_is_one_line(given: Path, tmp_path: Path) -> None:
    def gelu(path: Path) -> Path:
        model = onnx.load(given / "net.onnx")
        relu = next(node for node in model.graph.node if node.op_type == "Relu")
        relu.op_type, relu.domain = "Gelu", "com.microsoft"
        model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
        onnx.save(model, path)
        return path

    with pytest.raises(CompressDeployError, match="quantizer, calibrating by mse") as caught:
        run_recipe(recipe(given, gelu(tmp_path / "gelu.onnx")), out=tmp_path, allow_missed=True)
    assert "\n" not in str(caught.value) and "model.onnx" in str(caught.value)


def _faults() -> Any:
    path = Path(__file__).parents[2] / "exporters" / "faults.py"
    spec = importlib.util.spec_from_file_location("faults", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _rewritten(bundle: Path, target: str, model: onnx.ModelProto) -> None:
    """The file of a target replaced, as somebody would who also mends the manifest."""
    path = bundle / f"{target}.onnx"
    onnx.save(model, path)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"][path.name] |= {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "size_bytes": path.stat().st_size,
    }
    (bundle / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture(scope="module")
def calibrated(given: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the file for both kinds of grid."""
    out = tmp_path_factory.mktemp("calibrated")
    assert (
        run_recipe(recipe(given, target=["ort-cpu", "tensorrt"]), out=out, allow_missed=True) == 0
    )
    (folder,) = out.glob("grey-*")
    return folder / "bundle"


@pytest.mark.parametrize("target", ["ort-cpu", "tensorrt"])
@pytest.mark.parametrize("fault", ["weight_scale_times", "activation_scale_times", "pair_deleted"])
def test_a_fault_in_a_calibrated_file_is_found_and_blamed(
    calibrated: Path, given: Path, tmp_path: Path, target: str, fault: str
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(calibrated, bundle)
    model = onnx.load(bundle / f"{target}.onnx")
    layers = GraphLayers(model)
    layer = [layers.of(node) for node in layers.weighted()][1]
    _rewritten(bundle, target, getattr(_faults(), fault)(model, layer))
    (proof,) = prove(
        Bundle.open(bundle), [target], samples_for(Bundle.open(bundle), given / "grey.npz"), QUIET
    )
    assert not proof
    assert proof.blame is not None and proof.blame.layers[0] == layer


@pytest.mark.parametrize("target", ["ort-cpu", "tensorrt"])
def test_a_whole_calibrated_file_holds_the_weights(
    calibrated: Path, given: Path, target: str
) -> None:
    opened = Bundle.open(calibrated)
    for data in (given / "grey.npz", None):
        (proof,) = prove(opened, [target], samples_for(opened, data), QUIET)
        assert proof, proof.failures
        assert proof.changed == ()
    result = CliRunner().invoke(app, ["verify", str(calibrated), "--target", target])
    assert result.exit_code == 0
    assert "not judged" in result.stdout and "holds the weights of the float file" in result.stdout
