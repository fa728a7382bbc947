"""A bundle comes back as it was written, or is refused with the file that does not match."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deploy.bundle import Bundle, SampleCheck, add_files, bundle_folder, write_bundle
from deploy.errors import DataError, StorageError, VerificationError
from deploy.manifest import MANIFEST
from deploy.sessions.session import Feeds, Port

MEAN, STD = (0.5, 0.25), (0.5, 0.2)


def arguments(folder: Path) -> dict[str, Any]:
    """What a run hands over; the model's answer to an input is its mean per channel."""
    model, licence = folder / "student.onnx", folder / "LICENCE"
    model.write_bytes(b"the model")
    licence.write_text("free")
    inputs = np.random.default_rng(0).integers(0, 256, (6, 2, 3, 3), dtype=np.uint8)
    return {
        "name": "net",
        "targets": {"ort-cpu": model},
        "input_name": "x",
        "input_shape": (2, 3, 3),
        "output_name": "logits",
        "classes": ["cat", "dog"],
        "mean": MEAN,
        "std": STD,
        "sample_inputs": inputs,
        "sample_outputs": normalized(inputs).mean(axis=(2, 3)),
        "recipe": {"name": "net", "stages": [{"stage": "pqk"}]},
        "seeds": {"run": 7},
        "versions": {"numpy": np.__version__, "torch": None},
        "files": {"licences/LICENCE": licence},
        "details": {"note": "kept"},
    }


def normalized(images: np.ndarray) -> np.ndarray:
    """Pre-processing done pixel by pixel in float64, as an independent reference."""
    out = np.empty(images.shape, np.float64)
    for channel in range(images.shape[1]):
        out[:, channel] = (images[:, channel] / 255.0 - MEAN[channel]) / STD[channel]
    return out


class Answers:
    name = "answers"
    inputs = (Port("x", (None, 2, 3, 3), "float32"),)
    outputs = (Port("logits", (None, 2), "float32"),)

    def __init__(self, change: Callable[[np.ndarray], np.ndarray] = lambda y: y) -> None:
        self.change = change

    def run(self, feeds: Feeds) -> Feeds:
        return {"logits": self.change(feeds["x"].mean(axis=(2, 3)))}

    def close(self) -> None:
        pass


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / "made" / "bundle", **arguments(tmp_path))


def test_round_trip(bundle: Bundle, tmp_path: Path) -> None:
    again = Bundle.open(bundle.folder)
    assert again == bundle
    assert (again.name, again.classes, again.targets) == ("net", ("cat", "dog"), ("ort-cpu",))
    assert again.model_path("ort-cpu").read_bytes() == b"the model"
    assert (again.folder / "licences/LICENCE").read_text() == "free"
    wanted = arguments(tmp_path)
    for key in ("recipe", "seeds", "versions", "details"):
        assert again.manifest[key] == wanted[key]
    inputs, outputs = again.samples()
    np.testing.assert_array_equal(inputs, wanted["sample_inputs"])
    np.testing.assert_array_equal(outputs, wanted["sample_outputs"].astype(np.float32))
    assert [path.name for path in bundle.folder.parent.iterdir()] == ["bundle"]


def test_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_bundle(tmp_path / name, **arguments(tmp_path))
    assert (tmp_path / "a" / MANIFEST).read_bytes() == (tmp_path / "b" / MANIFEST).read_bytes()


def test_a_moved_bundle_opens(bundle: Bundle, tmp_path: Path) -> None:
    moved = shutil.move(str(bundle.folder), str(tmp_path / "elsewhere"))
    assert Bundle.open(Path(moved)).verify_samples(Answers())


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 4), st.just(2), st.just(3), st.just(3))))
def test_preprocess(images: np.ndarray) -> None:
    manifest = {"input": {"shape": [2, 3, 3]}, "preprocess": {"mean": MEAN, "std": STD}}
    got = Bundle(Path(), {"name": "net", **manifest}).preprocess(images)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, normalized(images), atol=1e-6)


@pytest.mark.parametrize(
    "images", [np.zeros((1, 2, 3, 3), np.float32), np.zeros((1, 3, 3, 2), np.uint8)]
)
def test_preprocess_refuses(bundle: Bundle, images: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"give uint8 \(batch, 2, 3, 3\)"):
        bundle.preprocess(images)


def test_samples_are_verified(bundle: Bundle) -> None:
    check = bundle.verify_samples(Answers())
    assert check.require() is check
    assert (check.rows, check.agreeing) == (6, 6)
    assert check.max_abs < 1e-6
    for change in (lambda y: -y, lambda y: y * np.nan):
        wrong = bundle.verify_samples(Answers(change))
        assert not wrong
        with pytest.raises(VerificationError, match="of 6 decisions"):
            wrong.require()
    with pytest.raises(VerificationError, match="another model"):
        bundle.verify_samples(Answers(lambda y: y[:, :1]))


def test_nothing_is_not_a_pass() -> None:
    assert not SampleCheck(0, 0, 0.0, 0.0)
    assert SampleCheck(32, 31, 0.1, 0.99)
    assert not SampleCheck(32, 31, 0.1, 1.0)
    assert not SampleCheck(32, 30, 0.1, 0.99)


def change_manifest(folder: Path, **values: Any) -> None:
    path = folder / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def escape(folder: Path) -> None:
    listed = json.loads((folder / MANIFEST).read_text())["files"]
    change_manifest(folder, files={**listed, "../../LICENCE": listed["licences/LICENCE"]})


DAMAGES = {
    "missing file": (lambda f: (f / "ort-cpu.onnx").unlink(), "ort-cpu.onnx is missing"),
    "cut file": (lambda f: (f / "samples.npz").write_bytes(b"x"), "samples.npz has 1 bytes"),
    "changed file": (
        lambda f: (f / "ort-cpu.onnx").write_bytes(b"the modex"),
        "ort-cpu.onnx was changed",
    ),
    "newer format": (lambda f: change_manifest(f, format_version=2), "format version is 2"),
    "no format": (lambda f: (f / MANIFEST).write_text("[]"), "format version is None"),
    "no manifest": (lambda f: (f / MANIFEST).unlink(), "not a bundle"),
    "broken manifest": (lambda f: (f / MANIFEST).write_text("{"), "cannot be read"),
    "no hashes": (lambda f: change_manifest(f, files={}), "without a hash"),
    "path outside": (escape, "leaves the bundle"),
}


@pytest.mark.parametrize(("damage", "words"), DAMAGES.values(), ids=DAMAGES)
def test_refuses_what_does_not_match(
    bundle: Bundle, damage: Callable[[Path], object], words: str
) -> None:
    damage(bundle.folder)
    with pytest.raises(StorageError, match=words) as refused:
        Bundle.open(bundle.folder)
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith(str(bundle.folder))


def test_a_file_in_place_of_the_folder_names_the_folder(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="ort-cpu.onnx: no folder; .*; give ") as refused:
        Bundle.open(bundle.model_path("ort-cpu"))
    assert str(refused.value).endswith(f"give {bundle.folder}")
    lonely = tmp_path / "lonely.onnx"
    lonely.write_bytes(b"")
    with pytest.raises(
        StorageError, match="lonely.onnx: no folder; .*; give the folder that a run"
    ):
        Bundle.open(lonely)


def test_unknown_target_lists_what_there_is(bundle: Bundle) -> None:
    with pytest.raises(
        DataError, match=r"'tensorrt'; this bundle has ort-cpu; .* export --target tensorrt"
    ):
        bundle.model_path("tensorrt")


WRONG = {
    "float samples": {"sample_inputs": np.zeros((6, 2, 3, 3), np.float32)},
    "no samples": {"sample_inputs": np.zeros((0, 2, 3, 3), np.uint8)},
    "other shape": {"sample_inputs": np.zeros((6, 1, 3, 3), np.uint8)},
    "other classes": {"classes": ["cat"]},
    "nan outputs": {"sample_outputs": np.full((6, 2), np.nan)},
    "std of zero": {"std": (0.5, 0.0)},
    "one mean of two": {"mean": (0.5, 0.1, 0.1), "std": (1.0, 1.0, 1.0)},
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_refuses_samples_that_do_not_fit(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="bundle"):
        write_bundle(tmp_path / "bundle", **{**arguments(tmp_path), **change})
    assert not (tmp_path / "bundle").exists()


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    wrong = {**arguments(tmp_path), "targets": {"ort-cpu": tmp_path / "absent.onnx"}}
    before = sorted(tmp_path.iterdir())
    with pytest.raises(StorageError, match=r"cannot be written .*absent\.onnx"):
        write_bundle(tmp_path / "bundle", **wrong)
    assert sorted(tmp_path.iterdir()) == before


def test_an_empty_folder_is_used_and_a_full_one_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_bundle(tmp_path / "empty", **arguments(tmp_path))
    with pytest.raises(StorageError, match="not empty"):
        write_bundle(tmp_path / "empty", **arguments(tmp_path))


def engine(folder: Path, content: bytes = b"engine") -> Path:
    path = folder / "made.plan"
    path.write_bytes(content)
    return path


def test_added_files_are_vouched_for(bundle: Bundle, tmp_path: Path) -> None:
    got = add_files(
        bundle,
        {"engines/a.plan": engine(tmp_path), "tensorrt.onnx": engine(tmp_path)},
        details={"engines": {"a": {"sm": 87}}},
        targets={"tensorrt": "tensorrt.onnx"},
    )
    assert got == Bundle.open(bundle.folder)
    assert got.targets == ("ort-cpu", "tensorrt")
    assert got.model_path("tensorrt").read_bytes() == b"engine"
    assert got.manifest["details"] == {"note": "kept", "engines": {"a": {"sm": 87}}}
    assert got.verify_samples(Answers())
    assert not [path.name for path in got.folder.iterdir() if path.name.startswith(".")]
    (got.folder / "engines/a.plan").write_bytes(b"other!")
    with pytest.raises(StorageError, match=r"engines/a\.plan was changed"):
        Bundle.open(got.folder)


def test_details_are_merged_and_a_file_is_replaced(bundle: Bundle, tmp_path: Path) -> None:
    for number, content in enumerate((b"one", b"two")):
        # Both from the bundle as it was first opened: what is on disk counts.
        got = add_files(
            bundle,
            {"ort-cpu.onnx": engine(tmp_path, content), f"{number}.txt": tmp_path / "LICENCE"},
            details={"engines": {str(number): {"n": number}}, "note": number},
        )
    assert got.model_path("ort-cpu").read_bytes() == b"two"
    assert got.manifest["details"] == {"note": 1, "engines": {"0": {"n": 0}, "1": {"n": 1}}}
    assert {"0.txt", "1.txt"} <= set(Bundle.open(got.folder).manifest["files"])


@pytest.mark.parametrize("stop_at", range(4))
def test_every_moment_of_adding_is_a_bundle(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    """A kill is an exception at a rename: of the manifest, one file, the other, the manifest."""
    done: list[Path] = []
    real = Path.replace

    def stopping(source: Path, target: Path) -> Path:
        if len(done) == stop_at:
            raise OSError(5, "stopped")
        done.append(target)
        return real(source, target)

    monkeypatch.setattr(Path, "replace", stopping)
    changed = {"ort-cpu.onnx": engine(tmp_path, b"changed"), "new": engine(tmp_path)}
    with pytest.raises(StorageError, match="stopped"):
        add_files(bundle, changed, targets={"tensorrt": "new"})
    again = Bundle.open(bundle.folder)
    assert again.targets == (("ort-cpu",) if stop_at == 0 else ())
    assert again.manifest["details"] == {"note": "kept"}
    monkeypatch.undo()
    assert add_files(again, changed, targets={"ort-cpu": "ort-cpu.onnx"}).targets == ("ort-cpu",)


def test_many_may_add_at_once(bundle: Bundle, tmp_path: Path) -> None:
    made = {str(number): engine(tmp_path) for number in range(8)}
    with ThreadPoolExecutor(8) as pool:
        for done in [
            pool.submit(add_files, bundle, {name: path}, {"by": {name: 1}})
            for name, path in made.items()
        ]:
            done.result()
    again = Bundle.open(bundle.folder)
    assert set(made) <= set(again.manifest["files"])
    assert again.manifest["details"]["by"] == dict.fromkeys(made, 1)


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "samples": ({"files": {"samples.npz": "made.plan"}}, DataError, "holds the samples"),
    "manifest": ({"files": {MANIFEST: "made.plan"}}, StorageError, "is its manifest"),
    "outside": ({"files": {"../x": "made.plan"}}, StorageError, "leaves the bundle"),
    "absent": ({"files": {"x": "absent"}}, StorageError, "cannot be written"),
    "target": ({"files": {}, "targets": {"tensorrt": "x"}}, DataError, r"name \['x'\]"),
}


@pytest.mark.parametrize(("given", "kind", "words"), REFUSED.values(), ids=REFUSED)
def test_refuses_to_add(
    bundle: Bundle, tmp_path: Path, given: dict[str, Any], kind: type[Exception], words: str
) -> None:
    engine(tmp_path)
    before = sorted(bundle.folder.rglob("*"))
    files = {name: tmp_path / path for name, path in given["files"].items()}
    with pytest.raises(kind, match=words) as refused:
        add_files(bundle, files, targets=given.get("targets"))
    assert "\n" not in str(refused.value)
    assert sorted(bundle.folder.rglob("*")) == before
    assert Bundle.open(bundle.folder) == bundle


def test_nothing_is_added_to_a_damaged_bundle(bundle: Bundle, tmp_path: Path) -> None:
    (bundle.folder / "ort-cpu.onnx").unlink()
    (bundle.folder / ".adding.dead").mkdir()
    with pytest.raises(StorageError, match="is missing"):
        add_files(bundle, {"x": engine(tmp_path)})
    assert not (bundle.folder / "x").exists()
    assert not (bundle.folder / ".adding.dead").exists()


def test_a_run_folder_holds_its_bundle(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    assert bundle_folder(tmp_path) == tmp_path / "bundle"
    (tmp_path / "manifest.json").write_text("{}")
    assert bundle_folder(tmp_path) == tmp_path
