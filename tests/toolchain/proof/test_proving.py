"""What is proved, what is skipped with a reason, and how the command says it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from typer.testing import CliRunner, Result

from deploy.bundle import Bundle
from deploy.errors import ConfigError, DataError
from deploy.sessions.ort import OrtCpuSession
from exporters.blame.graph_layers import GraphLayers
from exporters.explain.machine_limits import Machine
from exporters.onnx_from_torch import export_onnx
from exporters.proof.ladder import FUSED, SIMULATED, TORCH
from toolchain import checkpoint
from toolchain.cli import app
from toolchain.data.held_out import samples_for
from toolchain.proof.proving import Proof, prove
from toolchain.quantization.lowering import lower
from toolchain.training.progress import Progress

QUIET = Progress(quiet=True)


@pytest.fixture
def bundle(case: Any, tmp_path: Path) -> Bundle:
    found: Bundle = case("vgg").bundle(tmp_path)
    return found


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def proved(bundle: Bundle, **settings: Any) -> Proof:
    (proof,) = prove(bundle, (), samples_for(bundle, None), QUIET, **settings)
    return proof


def save_npz(bundle: Bundle, path: Path, **changed: Any) -> Path:
    images_u8, outputs = bundle.samples()
    arrays = {"inputs": images_u8, "labels": outputs.argmax(axis=1), **changed}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def test_a_whole_bundle_is_proved_with_a_real_fresh_export(bundle: Bundle) -> None:
    proof = proved(bundle, batches=(1, 5, 48))
    assert proof, proof.failures
    assert proof.changed == ()
    assert proof.kernels is not None and proof.kernels.integer
    assert proof.recorded is not None and proof.recorded.agreeing == 48
    assert {(hop.above, hop.below, hop.batch) for hop in proof.ladder.hops} == {
        (TORCH, SIMULATED, 1), (TORCH, SIMULATED, 5), (TORCH, SIMULATED, 48),
        (SIMULATED, FUSED, 1), (SIMULATED, FUSED, 5), (SIMULATED, FUSED, 48),
    }  # fmt: skip


def test_sessions_are_closed_when_the_bundles_samples_do_not_fit(
    bundle: Bundle, sessions: dict[Any, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unfit(*_: object) -> None:
        raise DataError("samples of another shape")

    monkeypatch.setattr(Bundle, "verify_samples", unfit)
    with pytest.raises(DataError, match="another shape"):
        proved(bundle)
    assert sessions and not any(sessions.values())


def test_a_target_without_an_engine_says_so(case: Any, tmp_path: Path) -> None:
    bundle = case("vgg", "tensorrt").bundle(tmp_path, target="tensorrt")
    proof = proved(bundle)
    assert [stand.name for stand in proof.ladder.stands] == [TORCH, SIMULATED]
    (skipped,) = [hop for hop in proof.ladder.hops if hop.check is None]
    assert skipped.below == "engine"
    assert "compress-deploy build" in skipped.skipped
    assert proof.kernels is None
    assert proof.changed == ()
    result = call("verify", bundle.folder)
    assert "engine    not made:" in result.stdout.replace("\n", " ")


def test_a_bundle_without_its_student_is_proved_from_the_file_on(case: Any, tmp_path: Path) -> None:
    whole = case("vgg").bundle(tmp_path)
    manifest = json.loads((whole.folder / "manifest.json").read_text())
    manifest["files"] = {
        name: each for name, each in manifest["files"].items() if not name.startswith("student/")
    }
    (whole.folder / "manifest.json").write_text(json.dumps(manifest))
    shutil.rmtree(whole.folder / "student")
    proof = proved(Bundle.open(whole.folder))
    assert proof, proof.failures
    assert [stand.name for stand in proof.ladder.stands] == [SIMULATED, FUSED]
    assert proof.changed is None
    assert "no student/spec.json" in proof.not_compared


def test_what_was_quantized_after_training_gets_numbers_and_no_verdict_on_its_loss(
    case: Any, tmp_path: Path
) -> None:
    found = case("vgg")
    bundle = found.bundle(tmp_path)
    spec = json.loads((bundle.folder / "student" / "spec.json").read_text())
    assert spec["quantization"] is not None
    # A float student beside a file that is quantized, as static quantization leaves it.
    plain = checkpoint.read_spec(bundle.folder / "student").plain()
    floating = tmp_path / "float"
    checkpoint.save(checkpoint.build(plain), plain, floating)
    other = type(found)("float", floating, found.shape, found.images_u8, found.models)
    proof = proved(other.bundle(tmp_path / "other"))
    assert proof.ladder, "a random float student agrees with nothing, which is no fault here"
    assert "quantized after training" in proof.not_compared
    assert not proof.failures


def test_what_another_version_wrote_is_judged_by_the_ladder(
    case: Any, tmp_path: Path, faults: Any
) -> None:
    found = case("vgg")
    layers = GraphLayers(found.model)
    layer = layers.of(layers.weighted()[1])
    bundle = found.bundle(tmp_path, faults.activation_scale_times(found.model, layer, 1.1))
    path = bundle.folder / "manifest.json"
    proof = proved(bundle)
    assert proof.ladder and proof.changed and not proof
    manifest = json.loads(path.read_text())
    manifest["versions"]["compress-deploy"] = "0.0.1"
    path.write_text(json.dumps(manifest))
    proof = proved(Bundle.open(bundle.folder))
    assert proof and proof.changed and proof.other_version == "0.0.1"
    result = call("verify", bundle.folder)
    assert result.exit_code == 0
    assert "0.0.1 wrote it, and the ladder decides" in " ".join(result.stdout.split())


def test_layers_kept_in_float_on_export_are_so_in_the_reference(case: Any, tmp_path: Path) -> None:
    found = case("vgg")
    network, _ = checkpoint.load(found.student, ("first",))
    images = torch.from_numpy(found.images_u8[:2].astype(np.float32))
    path = export_onnx(
        lower(network), images, tmp_path / "kept.onnx", metadata={"keep_float": "first"}
    )
    proof = proved(found.bundle(tmp_path, onnx.load(path)))
    assert proof.ladder and proof.changed == ()
    assert proof.kernels is not None and len(proof.kernels.float_convolutions) == 1
    assert proof, "it was asked for"
    unasked = replace(proof, kept=frozenset())
    assert "computes 1 convolutions in float" in unasked.failures[0]


def test_the_command_shows_a_table_and_exits_0(bundle: Bundle, tmp_path: Path) -> None:
    labelled = save_npz(bundle, tmp_path / "labelled.npz")
    result = call("verify", bundle.folder, "--data", labelled)
    assert result.exit_code == 0, result.output
    for word in ("torch → simulated", "simulated → fused", "48/48", "100.00 → 100.00", "proved"):
        assert word in result.stdout


def test_json_is_whole_and_strict(bundle: Bundle) -> None:
    result = call("verify", bundle.folder, "--json", "--batch", 48)
    assert result.exit_code == 0
    record = json.loads(result.stdout, parse_constant=lambda name: pytest.fail(name))
    assert record["passed"] is True
    (target,) = record["targets"]
    assert [hop["batch"] for hop in target["ladder"]["hops"]] == [48, 48]
    assert target["ladder"]["rungs"][0]["top1"] is None, "samples have no labels"


def test_a_failure_exits_1_and_names_the_hop_and_the_layer(
    case: Any, tmp_path: Path, faults: Any
) -> None:
    found = case("vgg")
    model = found.model
    layers = GraphLayers(model)
    layer = layers.of(layers.weighted()[0])
    bundle = found.bundle(tmp_path, faults.weight_scale_times(model, layer, -1.0))
    result = call("verify", bundle.folder)
    assert result.exit_code == 1
    text = " ".join(result.stdout.split())
    assert "lost between torch and simulated" in text
    assert "who is to blame" in text
    assert layer in text
    record = json.loads(call("verify", bundle.folder, "--json").stdout)
    assert record["passed"] is False
    assert record["targets"][0]["blame"]["layers"][0] == layer


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"labels": None}, "lacks labels"),
        ({"inputs": np.zeros((48, 1, 8, 8), np.uint8)}, "takes uint8 or float32 (N, 3, 8, 8)"),
        ({"inputs": np.zeros((48, 3, 8, 8), np.float64)}, "are float64"),
        ({"inputs": np.full((48, 3, 8, 8), np.nan, np.float32)}, "NaN or infinity"),
        ({"inputs": np.zeros((0, 3, 8, 8), np.uint8)}, "at least one"),
        ({"labels": np.full(48, 10)}, "has 10 classes, accepted are 0 to 9"),
        ({"labels": np.full(48, -1)}, "go from -1 to -1"),
        ({"labels": np.zeros(7, np.int64)}, "accepted are 48 integers"),
        ({"labels": np.zeros(48, np.float32)}, "labels of"),
    ],
)
def test_arrays_that_do_not_fit(
    changed: dict[str, Any], message: str, bundle: Bundle, tmp_path: Path
) -> None:
    path = save_npz(bundle, tmp_path / "data.npz", **changed)
    with pytest.raises(DataError) as caught:
        samples_for(bundle, path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pixels_and_what_the_model_takes_are_the_same_samples(
    bundle: Bundle, tmp_path: Path
) -> None:
    images_u8, _ = bundle.samples()
    raw = samples_for(bundle, save_npz(bundle, tmp_path / "raw.npz"))
    ready = bundle.preprocess(images_u8)
    given = samples_for(bundle, save_npz(bundle, tmp_path / "ready.npz", inputs=ready))
    one, two = next(raw.batches(48, 48)), next(given.batches(48, 48))
    assert np.array_equal(one[0], two[0]) and np.array_equal(one[1], two[1])
    assert raw.labelled and raw.rows == 48


def test_the_file_that_a_recipe_reads_gives_its_test_part(bundle: Bundle, tmp_path: Path) -> None:
    images_u8, _ = bundle.samples()
    labels = np.arange(len(images_u8)) % len(bundle.classes)
    last = np.moveaxis(images_u8, 1, -1)
    file = tmp_path / "arrays.npz"
    np.savez(file, x_train=last, y_train=labels, x_test=last[:9], y_test=labels[:9])
    samples = samples_for(bundle, file)
    inputs, found = next(samples.batches(9, 9))
    assert (samples.rows, samples.labelled) == (9, True)
    assert np.array_equal(inputs, bundle.preprocess(images_u8[:9]))
    assert np.array_equal(found, labels[:9])


def test_a_recipe_gives_its_test_part_if_it_fits(case: Any, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: tiny\nmodel: {builtin: mlp}\ndata: {kind: digits}\n")
    digits = case("resnet").bundle(tmp_path)
    samples = samples_for(digits, recipe)
    assert (samples.rows, samples.labelled) == (359, True)
    inputs, labels = next(samples.batches(7, 5))
    assert inputs.shape == (5, 1, 8, 8) and labels.shape == (5,)
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match=r"are \(1, 8, 8\) and vgg takes \(3, 8, 8\)"):
        samples_for(case("vgg").bundle(tmp_path / "other"), recipe)


def test_what_the_command_refuses_in_one_line(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 no archive")
    model = bundle.folder / "ort-cpu.onnx"
    for arguments, message in (
        (("--data", tmp_path / "broken.npz"), "cannot be read"),
        (("--data", tmp_path / "none.npz"), "cannot be read"),
        (("--data", model), "neither a recipe"),
        (("--target", "tensorrt"), "no model for target 'tensorrt'"),
        (("--batch", "1,0"), "give whole numbers of 1 or more"),
    ):
        result = call("verify", bundle.folder, *arguments)
        assert result.exit_code == 1
        assert message in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
    model.write_bytes(model.read_bytes()[:-100])
    for verb in ("verify", "explain"):
        result = call(verb, bundle.folder)
        assert (result.exit_code, "ort-cpu.onnx has" in result.stderr) == (1, True)
        result = call(verb, tmp_path / "nowhere")
        assert (result.exit_code, "not a bundle" in result.stderr) == (1, True)
    with pytest.raises(ConfigError, match="accepted are 1 and more"):
        prove(bundle, (), samples_for(bundle, None), QUIET, batches=(0,))


def test_a_model_that_is_cut_off_but_vouched_for(case: Any, tmp_path: Path) -> None:
    """The manifest's hashes fit, the file is no model."""
    found = case("vgg")
    bundle = found.bundle(tmp_path)
    from deploy.manifest import describe

    model = bundle.folder / "ort-cpu.onnx"
    model.write_bytes(model.read_bytes()[:-100])
    path = bundle.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["ort-cpu.onnx"] = describe(model)
    path.write_text(json.dumps(manifest))
    for verb in ("verify", "explain"):
        result = call(verb, bundle.folder)
        assert result.exit_code == 1, result.output
        assert "ort-cpu.onnx: not a whole ONNX model" in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1


def test_explain_shows_kernels_causes_and_what_to_try(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(1, ((1 << 26, 1e11),), 3.0, 0.2, 0.8, 0.4, 4e11, 1e11)
    monkeypatch.setattr("exporters.explain.machine_limits.measure_machine", lambda threads: machine)
    result = call("explain", bundle.folder, "--all", "--batch", 3, "--seconds", 0)
    assert result.exit_code == 0, result.output
    for word in ("vgg, ort-cpu", "batch 3, 1 thread", "Conv int8", "what to try next", "GMAC/s"):
        assert word in result.stdout
    record = json.loads(call("explain", bundle.folder, "--json", "--seconds", 0).stdout)
    assert record["student"]["kernels"] and record["teacher"] is None
    assert call("explain", bundle.folder, "--target", "tensorrt").exit_code == 1


def cells(page: str) -> list[dict[str, str]]:
    """The rows of the table on a page of results, by the names of its columns."""
    lines = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("|")]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def test_several_bundles_make_one_table_and_one_list(case: Any, tmp_path: Path) -> None:
    folders = []
    for name in ("vgg", "resnet-conv"):
        (tmp_path / name).mkdir()
        folders.append(case(name).bundle(tmp_path / name).folder)
    table = tmp_path / "proved.md"
    result = call("verify", *folders, "--table", table, "--json")
    assert result.exit_code == 0, result.output
    records = json.loads(result.stdout)
    assert [record["bundle"] for record in records] == ["vgg", "resnet-conv"]
    rows = cells(table.read_text())
    assert [row["network"] for row in rows] == ["vgg", "resnet-conv"]
    for row, record in zip(rows, records, strict=True):
        (ladder,) = [target["ladder"] for target in record["targets"]]
        last = ladder["rungs"][-1]
        assert row["rows"] == str(last["rows"]) == "48"
        assert float(row["decided as by the student, %"]) == pytest.approx(
            100 * last["as_first"] / 48, abs=0.006
        )
        assert float(row["answered as by the student, %"]) == pytest.approx(
            100 * last["same"] / 48, abs=0.006
        )
        integer, every = row["convolutions on integers"].split(" of ")
        assert integer == every and int(every) == (2 if row["network"] == "vgg" else 9)
        assert row["linear layers on integers"] == "0 of 1"
        assert row["verdict"] == "proved"
    page = table.read_text()
    assert "compress-deploy verify" in page and str(tmp_path) not in page


def test_agreement_with_the_first_rung_is_counted_over_all_hops(case: Any, tmp_path: Path) -> None:
    """Against an independent count: torch, and the file as it ships, asked directly."""
    from toolchain.proof.parity import reload_student

    bundle = case("mobilenet").bundle(tmp_path)
    images_u8, _ = bundle.samples()
    inputs = np.random.default_rng(3).normal(size=(200, *images_u8.shape[1:])).astype(np.float32)
    labels = np.arange(200) % 10
    path = tmp_path / "rows.npz"
    np.savez(path, inputs=inputs, labels=labels)
    (proof,) = prove(bundle, (), samples_for(bundle, path), QUIET)
    network, _ = reload_student(bundle)
    with torch.no_grad():
        answered = network.eval()(torch.from_numpy(inputs)).numpy()
    session = OrtCpuSession(bundle.model_path("ort-cpu"))
    shipped = session.run({session.inputs[0].name: inputs})[session.outputs[0].name]
    session.close()
    last = proof.ladder.stands[-1]
    assert (last.name, last.rows) == (FUSED, 200)
    assert last.as_first == int((answered.argmax(1) == shipped.argmax(1)).sum())
    apart = [
        max(abs(row - other)) / max(abs(row)) for row, other in zip(answered, shipped, strict=True)
    ]
    assert last.same == sum(float(each) <= 1e-5 for each in apart)
    assert proof.ladder.stands[0].same == 200


def test_what_failed_is_on_the_page(case: Any, tmp_path: Path, faults: Any) -> None:
    model = case("vgg").model
    broken = faults.weight_scale_times(model, "features.0")
    bundle = case("vgg").bundle(tmp_path, model=broken)
    table = tmp_path / "proved.md"
    result = call("verify", bundle.folder, "--table", table)
    assert result.exit_code == 1
    assert cells(table.read_text())[0]["verdict"] == "failed"
    assert "## What failed" in table.read_text() and "vgg, ort-cpu:" in table.read_text()


def test_a_table_that_cannot_be_written_is_said_before_anything_is_proved(
    bundle: Bundle, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    for table in (tmp_path / "file" / "t.md", tmp_path):
        result = call("verify", bundle.folder, "--table", table)
        assert result.exit_code == 1 and result.stdout == ""
        assert str(table) in result.stderr and result.stderr.count("\n") == 1
    assert (tmp_path / "file").read_text() == "mine"
    assert not list(tmp_path.glob(".*"))
