"""Stages in every sensible order: each leaves a student that works, and says what cannot work."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from deploy.errors import CompressDeployError, ConfigError, DataError, StructureError
from deploy.sessions.ort import OrtCpuSession
from exporters.onnx_from_torch import INPUT, OUTPUT, export_onnx
from toolchain import checkpoint
from toolchain.chain import check_order, standard_chain
from toolchain.checkpoint import Spec
from toolchain.quantization.attached import latent_parameter, weight_view, weighted
from toolchain.quantization.lowering import lower
from toolchain.recipe.schema import Recipe
from toolchain.runs.artifacts import Artifact, run_stages
from toolchain.structure.masks import hidden_share
from toolchain.training.loop import _Loop
from toolchain.training.objective import Batch

TRAIN = {"epochs": 1, "batch_size": 16, "lr": 0.005, "warmup_epochs": 0, "log_every_steps": 1}
RESNET = {
    "builtin": "cifar_resnet",
    "args": {"depth": 8, "in_channels": 1, "width": 4, "classes": 4},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes, told apart by which quarter of the image is bright."""
    random = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for part, count in (("train", 72), ("test", 16)):
        labels = np.arange(count) % 4
        images = random.integers(0, 120, (count, 8, 8), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[4 * (label // 2) :, 4 * (label % 2) :][:4, :4] += 100
        arrays |= {f"x_{part}": images, f"y_{part}": labels}
    file = tmp_path_factory.mktemp("data") / "quarters.npz"
    np.savez(file, **arrays)
    return file


def recipe(data: Path, stages: list[dict[str, Any]], **sections: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "chain",
            "precision": "float32",
            "model": RESNET,
            "data": {
                "kind": "npz",
                "root": str(data),
                "validation": 0.12,
                "preprocess": {"mean": [0.3], "std": [0.2]},
            },
            "stages": [{"stage": "teacher"}, *stages],
            **sections,
        }
    )


def agrees_with_onnx(artifact: Artifact, folder: Path) -> None:
    network, spec = checkpoint.load(artifact.root)
    random = torch.Generator().manual_seed(0)
    images = torch.randn(16, *spec.input_shape, generator=random)
    path = export_onnx(lower(network), images, folder / "student.onnx")
    session = OrtCpuSession(path)
    got = session.run({INPUT: images.numpy()})[OUTPUT]
    session.close()
    with torch.no_grad():
        wanted = network(images).numpy()
    assert got.shape == wanted.shape == (16, 4)
    scale = np.abs(wanted).max()
    if spec.quantization is None:
        np.testing.assert_allclose(got, wanted, atol=1e-4 * scale)
    else:  # a value on the edge between two steps may fall to either side
        assert np.abs(got - wanted).mean() <= 0.01 * scale
        assert np.abs(got - wanted).max() <= 0.1 * scale


def spec_of(artifact: Artifact) -> Spec:
    return checkpoint.read_spec(artifact.root)


SEQUENCES: dict[str, list[dict[str, Any]]] = {
    "prune-then-quantize": [
        {"stage": "prune", "sparsity": 0.5},
        {"stage": "slim"},
        {"stage": "quantize", "bits": 6},
        {"stage": "recover", **TRAIN},
    ],
    "quantize-then-prune": [
        {"stage": "quantize"},
        {"stage": "train", **TRAIN},
        {"stage": "prune", "sparsity": 0.5},
        {"stage": "train", **TRAIN},
        {"stage": "slim"},
    ],
    "twice-pruned": [
        {"stage": "pqk-prune", "sparsity": 0.3, **TRAIN},
        {"stage": "slim"},
        {"stage": "prune", "sparsity": 0.3},
        {"stage": "pqk-distil", **TRAIN},
        {"stage": "slim"},
    ],
    "without-branches": [
        {"stage": "pqk-prune", "mask_every_steps": 1, **TRAIN},
        {"stage": "pqk-distil", "mutual": 0.1, "quantize_teacher": True, **TRAIN},
        {"stage": "slim"},
        {"stage": "recover", **TRAIN},
    ],
    "float": [{"stage": "prune", "sparsity": 0.5}, {"stage": "train", **TRAIN}, {"stage": "slim"}],
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_a_sequence_gives_a_student_that_works(name: str, data: Path, tmp_path: Path) -> None:
    sections: dict[str, Any] = {}
    if name == "without-branches":
        sections["structure"] = {"channels": {"*": 3}, "drop": ["layer1.0", "layer2.0"]}
    last = run_stages(recipe(data, SEQUENCES[name], **sections), tmp_path)
    spec, teacher = spec_of(last), last.find("teacher").metrics
    assert not spec.masked and not spec.teacher_norms
    assert (spec.quantization is None) == (name == "float")
    assert last.metrics["macs"] < 0.8 * teacher["macs"]
    assert last.metrics["parameters"] < 0.8 * teacher["parameters"]
    assert last.find("slim").metrics["largest_difference"] <= 1e-10
    if name == "without-branches":
        assert set(spec.plan.removed.values()) == {1} and len(spec.plan.removed) == 2
        names = load_file(last.root / "model.safetensors")
        assert not any(name.startswith(("layer1.0.conv", "layer2.0.conv")) for name in names)
    if name == "twice-pruned":
        first = [made for made in last.lineage() if made.stage == "slim"][1]
        assert last.metrics["macs"] < first.metrics["macs"] < teacher["macs"]
    agrees_with_onnx(last, tmp_path)


def test_the_second_pruning_goes_by_the_teachers_macs(data: Path, tmp_path: Path) -> None:
    """A goal of 0.5 that the first pruning has reached half of leaves that much for the second."""
    stages = [{"stage": "prune", "sparsity": 0.2}, {"stage": "slim"}, {"stage": "prune"}]
    last = run_stages(recipe(data, [*stages, {"stage": "slim"}], goals={"macs": 0.5}), tmp_path)
    share = last.metrics["macs"] / last.find("teacher").metrics["macs"]
    assert 0.35 < share <= 0.5


def test_single_weights_stay_pruned_to_the_end(data: Path, tmp_path: Path) -> None:
    weights = {"granularity": "weights", "sparsity": 0.6, "bits": 4}
    stages = [
        {"stage": "pqk-prune", **weights, **TRAIN},
        {"stage": "pqk-distil", **TRAIN},
        {"stage": "slim"},
        {"stage": "recover", **TRAIN},
    ]
    last = run_stages(recipe(data, stages), tmp_path)
    network, spec = checkpoint.load(last.root)
    assert spec.elements and spec.plan.out == {}
    assert hidden_share(network) == pytest.approx(0.6, abs=1e-3)
    assert last.metrics["sparsity"] == pytest.approx(0.6, abs=1e-3)
    for _, module in weighted(network):
        view, latent = weight_view(module), latent_parameter(module, "weight")
        assert view is not None and not latent[~view.mask()].any()
        assert not module.weight[~view.mask()].any()  # type: ignore[index, operator, union-attr]
    slim, pruned = last.find("slim"), last.find("pqk-distil")
    assert slim.metrics["validation_loss"] == pytest.approx(pruned.metrics["validation_loss"])
    agrees_with_onnx(last, tmp_path)


def test_single_weights_of_a_quantized_network(data: Path, tmp_path: Path) -> None:
    stages = [
        {"stage": "quantize"},
        {"stage": "pqk-prune", "granularity": "weights", "sparsity": 0.4, **TRAIN},
    ]
    last = run_stages(recipe(data, stages), tmp_path)
    assert last.metrics["sparsity"] == pytest.approx(0.4, abs=1e-3)


def test_hidden_weights_hold_still_in_phase_one(data: Path, tmp_path: Path) -> None:
    """Masked from the first step, so that what they were is still there, to the bit, at the end."""
    stages = [
        {"stage": "quantize"},
        {
            "stage": "pqk-prune",
            "sparsity": 0.5,
            "ramp_end": 0.0,
            **TRAIN,
        },
    ]
    last = run_stages(recipe(data, stages), tmp_path)
    before = checkpoint.load(last.find("quantize").root)[0]
    after, _ = checkpoint.load(last.root)
    held = moved = 0
    for path, module in weighted(after):
        view = weight_view(module)
        assert view is not None
        was = latent_parameter(before.get_submodule(path), "weight")
        now = latent_parameter(module, "weight")
        mask = view._mask_like(now).expand_as(now)
        assert torch.equal(was[~mask], now[~mask])
        held, moved = held + int((~mask).sum()), moved + int((was[mask] != now[mask]).sum())
    assert held > 100 and moved > 100


class Killed(BaseException):
    """What a kill is to Python: nothing catches it."""


def kill_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    original: Callable[[_Loop, Batch], None] = _Loop._one_step
    steps = iter(range(10_000))

    def one_step(self: _Loop, batch: Batch) -> None:
        if next(steps) == step:
            raise Killed
        original(self, batch)

    monkeypatch.setattr(_Loop, "_one_step", one_step)


RESUMED: dict[str, dict[str, Any]] = {
    "pqk-prune": {
        "stage": "pqk-prune",
        "sparsity": 0.5,
        "mask_every_steps": 3,
        "distil": {},
        "ema": 0.9,
    },
    "pqk-distil": {"stage": "pqk-distil", "mutual": 0.3},
    "recover": {"stage": "recover"},
}


@pytest.mark.parametrize("killed", [1, 5])
@pytest.mark.parametrize("name", RESUMED)
def test_a_killed_run_ends_with_the_same_bytes(
    name: str, killed: int, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = {**TRAIN, "epochs": 2, "checkpoint_every_s": 0}
    stages = [{**RESUMED[name], **train}]
    if name != "pqk-prune":
        stages = [{"stage": "quantize"}, {"stage": "prune", "sparsity": 0.5}, *stages]
    asked = recipe(data, stages, structure={"branches": False})
    whole = run_stages(asked, tmp_path / "whole")
    with monkeypatch.context() as patch:
        kill_at(patch, killed)
        with pytest.raises(Killed):
            run_stages(asked, tmp_path / "killed")
    folder = tmp_path / "killed" / "artifacts"
    assert not list(folder.glob(f"{name}-*")) and list(folder.glob(f".partial-{name}-*"))
    resumed = run_stages(asked, tmp_path / "killed")
    assert resumed.key == whole.key
    for file in ("model.safetensors", "spec.json", "cut.json"):
        assert (resumed.root / file).read_bytes() == (whole.root / file).read_bytes()
    assert resumed.metrics == whole.metrics
    assert not list(folder.glob(".partial-*"))
    log = [json.loads(line) for line in (resumed.root / "training.metrics.jsonl").open()]
    steps = [record["step"] for record in log if record.get("kind", "step") == "step"]
    assert steps == sorted(steps)


def test_phase_two_keeps_the_mask_and_the_cut(data: Path, tmp_path: Path) -> None:
    stages = [{"stage": "prune", "sparsity": 0.5}, {"stage": "pqk-distil", **TRAIN}]
    last = run_stages(recipe(data, stages), tmp_path)
    pruned = last.find("prune").root / "cut.json"
    assert (last.root / "cut.json").read_text() == pruned.read_text()
    assert last.metrics["sparsity"] == last.find("prune").metrics["sparsity"] > 0.5


def test_taylor_importance_and_a_pretrained_term(data: Path, tmp_path: Path) -> None:
    stages = [
        {"stage": "pqk-prune", "sparsity": 0.5, "regrow": True, **TRAIN},
        {
            "stage": "pqk-distil",
            "teacher_updates": "all",
            "pretrained": {"losses": [{"loss": "kl", "strength": 0.5}]},
            **TRAIN,
        },
        {"stage": "slim"},
    ]
    last = run_stages(recipe(data, stages, structure={"importance": "taylor"}), tmp_path)
    log = (last.find("pqk-distil").root / "training.metrics.jsonl").read_text()
    assert "student.kl" in log and "student.in_network_kl" in log
    assert last.metrics["largest_difference"] <= 1e-10


OWN = """\
from torch import nn
{imports}
def build(classes=4):
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, classes),
    )
"""


def test_a_users_file_goes_through_the_chain(data: Path, tmp_path: Path) -> None:
    (tmp_path / "user").mkdir()
    (tmp_path / "user" / "net.py").write_text(OWN.format(imports=""))
    model = {"file": f"{tmp_path / 'user' / 'net.py'}:build"}
    stages = [{"stage": "pqk-prune", "sparsity": 0.5, **TRAIN}, {"stage": "slim"}]
    last = run_stages(recipe(data, stages, model=model), tmp_path / "out")
    shutil.rmtree(tmp_path / "user")
    network, spec = checkpoint.load(last.root)
    assert network(torch.zeros(1, 1, 8, 8)).shape == (1, 4)
    assert {len(kept) for kept in spec.plan.out.values()} == {3, 4}
    assert (last.root / "source.py").is_file()


def test_a_users_file_with_neighbours_is_refused_at_once(data: Path, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(OWN.format(imports="import blocks"))
    (tmp_path / "blocks.py").write_text("")
    model = {"file": f"{tmp_path / 'net.py'}:build"}
    refused(
        lambda: run_stages(recipe(data, [], model=model), tmp_path / "out"),
        ConfigError,
        "net.py:build does not work without its neighbours (No module named 'blocks')",
    )
    assert not list((tmp_path / "out" / "artifacts").glob("teacher-*"))


def refused(call: Callable[[], object], kind: type[CompressDeployError], message: str) -> None:
    with pytest.raises(kind) as error:
        call()
    assert message in str(error.value)
    assert "\n" not in str(error.value) and "; accepted " in str(error.value)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"classes": 5}, "gives an output of shape (2, 5) for 2 images and the data has 4 classes"),
        ({"in_channels": 3}, "does not take images of shape (1, 8, 8)"),
    ],
)
def test_a_model_that_does_not_fit_the_data(
    args: dict[str, int], message: str, data: Path, tmp_path: Path
) -> None:
    model = {**RESNET, "args": {**RESNET["args"], **args}}  # type: ignore[dict-item]
    refused(lambda: run_stages(recipe(data, [], model=model), tmp_path), DataError, message)
    assert not [p for p in (tmp_path / "artifacts").iterdir() if not p.name.startswith(".")]


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (["slim"], "slim: nothing is masked"),
        (["pqk-distil"], "pqk-distil: nothing is masked"),
        (["prune", "prune"], "prune: channels cannot be masked"),
        (["quantize", "quantize"], "quantize: the network is quantized already"),
        (["weights"], "granularity 'weights' without a sparsity"),
        (["prune", "weights 0.5"], "prune: weights cannot be masked"),
    ],
)
def test_what_cannot_work_is_told(
    stages: list[str], message: str, data: Path, tmp_path: Path
) -> None:
    weights = {"stage": "pqk-prune", "granularity": "weights", **TRAIN}
    known: dict[str, list[dict[str, Any]]] = {
        "slim": [{"stage": "slim"}],
        "pqk-distil": [{"stage": "pqk-distil", **TRAIN}],
        "prune": [{"stage": "prune", "sparsity": 0.5}],
        "quantize": [{"stage": "quantize"}],
        "weights": [weights],
        "weights 0.5": [{**weights, "sparsity": 0.5}],
    }
    asked = recipe(data, [stage for name in stages for stage in known[name]])
    refused(lambda: run_stages(asked, tmp_path), StructureError, message)


NO_AFFINE = """\
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4, affine=False)
        self.norm.running_mean.fill_(0.5)
        self.fc = nn.Linear(4, 4)
    def forward(self, x):
        x = self.stem(x).relu()
        return self.fc((x + self.norm(self.conv(x))).relu().mean((2, 3)))
"""


def test_a_branch_that_cannot_be_masked_is_told_before_training(data: Path, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NO_AFFINE)
    asked = recipe(
        data,
        [{"stage": "pqk-prune", **TRAIN, "epochs": 1e6}],
        model={"file": f"{tmp_path / 'net.py'}:Net"},
        structure={"drop": ["conv"]},
    )
    refused(lambda: run_stages(asked, tmp_path / "out"), StructureError, "without ['conv'] logits")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train"], "train after nothing: teacher comes first"),
        (["teacher", "teacher"], "teacher after teacher: teacher comes first"),
        (["teacher", "slim"], "slim after teacher: nothing is masked"),
        (["teacher", "prune", "slim", "pqk-distil"], "pqk-distil after slim: nothing is masked"),
        (["teacher", "prune", "pqk-prune"], "pqk-prune after prune: the network is masked"),
        (["teacher", "pqk-prune", "quantize"], "quantize after pqk-prune: the network is quant"),
        (["teacher", "report"], "report after teacher: report follows export"),
        (["teacher", "export", "train"], "train after export: report follows export"),
    ],
)
def test_a_wrong_order_is_refused_before_anything_runs(
    names: list[str], message: str, data: Path
) -> None:
    stages = [{"stage": n, **({"epochs": 1} if n == "train" else {})} for n in names]
    asked = Recipe.model_validate({**recipe(data, []).model_dump(), "stages": stages})
    refused(lambda: check_order(asked.stages), ConfigError, message)


def test_sensible_orders_are_accepted(data: Path) -> None:
    check_order(standard_chain())
    for stages in SEQUENCES.values():
        check_order(recipe(data, [*stages, {"stage": "export"}, {"stage": "report"}]).stages)
