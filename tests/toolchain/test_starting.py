"""Networks of another kind in a chain: started, taught, taught by each other, and refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from deploy.errors import CompressDeployError, ConfigError, DataError
from toolchain import checkpoint
from toolchain.chain import check_order, run_recipe
from toolchain.models.registry import build
from toolchain.recipe.schema import Recipe
from toolchain.runs.artifacts import Artifact, RunContext, run_stages
from toolchain.structure.cost import network_macs
from toolchain.structure.preflight import plan_recipe
from toolchain.student import Student

TRAIN = {"epochs": 1, "batch_size": 16, "lr": 0.005, "warmup_epochs": 0}
TEACHER = {
    "builtin": "cifar_resnet",
    "args": {"depth": 8, "in_channels": 1, "width": 4, "classes": 4},
}
SMALL = {"image_size": 8, "patch": 2, "in_channels": 1, "classes": 4, "depth": 1}
VIT = {"stage": "student", "builtin": "vit", "args": {**SMALL, "width": 8, "heads": 2}}
MIXER = {"stage": "student", "builtin": "mixer", "args": {**SMALL, "width": 8, "token_hidden": 4}}
BY_ASSISTANT = {
    "losses": [{"loss": "kl", "teacher": "ta", "temperature": 4.0}],
    "teachers": {"ta": {"kind": "assistant", "stage": "recover"}},
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
            "model": TEACHER,
            "data": {"kind": "npz", "root": str(data), "validation": 0.12},
            "stages": [{"stage": "teacher"}, *stages],
            **sections,
        }
    )


def weights(artifact: Artifact) -> dict[str, torch.Tensor]:
    return dict(checkpoint.load(artifact.root)[0].state_dict())


def refused(run: Callable[[], object], error: type[CompressDeployError], *words: str) -> None:
    with pytest.raises(error) as caught:
        run()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_a_started_student_is_another_network_with_its_own_numbers(
    data: Path, tmp_path: Path
) -> None:
    made = run_stages(recipe(data, [VIT]), tmp_path)
    network, spec = checkpoint.load(made.root)
    assert (spec.builtin, spec.input_shape, len(spec.classes)) == ("vit", (1, 8, 8), 4)
    assert made.metrics["macs"] == network_macs(network, spec.input_shape)
    assert made.find("teacher").metrics["macs"] != made.metrics["macs"]


def test_the_seed_decides_the_first_weights(data: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    one = weights(run_stages(recipe(data, [VIT]), tmp_path / "one"))
    torch.manual_seed(6)
    same = weights(run_stages(recipe(data, [VIT]), tmp_path / "same"))
    other = weights(run_stages(recipe(data, [VIT], seed=1), tmp_path / "other"))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["patches.conv.weight"], other["patches.conv.weight"])


def test_it_starts_from_a_checkpoint_and_a_changed_one_is_another_artifact(
    data: Path, tmp_path: Path
) -> None:
    file = tmp_path / "vit.safetensors"
    keys = set()
    for seed in (3, 4):
        torch.manual_seed(seed)
        given = build("vit", **VIT["args"]).state_dict()  # type: ignore[arg-type]
        save_file(given, file)
        made = run_stages(recipe(data, [{**VIT, "checkpoint": str(file)}]), tmp_path / "out")
        got = weights(made)
        assert all(torch.equal(got[key], value) for key, value in given.items())
        keys.add(made.key)
    assert len(keys) == 2


def test_an_assistant_is_the_nearest_earlier_student(data: Path, tmp_path: Path) -> None:
    stages = [VIT, {"stage": "recover", **TRAIN}, MIXER]
    taught = {"stage": "recover", **TRAIN, "distil": BY_ASSISTANT}
    made = run_stages(recipe(data, [*stages, taught]), tmp_path)
    assert checkpoint.read_spec(made.root).builtin == "mixer"
    before = made.source
    assert before is not None
    student = Student.load(before, RunContext(recipe(data, [*stages, taught]), tmp_path))
    nearest = student.earlier("recover")
    assert checkpoint.read_spec(nearest).builtin == "vit"
    assert nearest == before.find("recover").root
    assert any(
        not torch.equal(a, b)
        for a, b in zip(weights(before).values(), weights(made).values(), strict=True)
    )


def test_goals_of_a_started_student_refer_to_the_teacher(data: Path, tmp_path: Path) -> None:
    teacher_macs = network_macs(build("cifar_resnet", **TEACHER["args"]), (1, 8, 8))  # type: ignore[arg-type]
    student_macs = network_macs(build("vit", **VIT["args"]), (1, 8, 8))  # type: ignore[arg-type]
    share = 0.8 * student_macs / teacher_macs
    asked = recipe(data, [VIT, {"stage": "prune"}, {"stage": "slim"}], goals={"macs": share})
    made = run_stages(asked, tmp_path)
    assert 0.6 * student_macs < made.metrics["macs"] <= share * teacher_macs


def test_a_latency_goal_for_another_network_is_refused(data: Path, tmp_path: Path) -> None:
    asked = recipe(
        data, [VIT, {"stage": "prune"}], structure={"latency": 0.5, "allocation": "macs"}
    )
    refused(lambda: run_stages(asked, tmp_path), ConfigError, "not the whole teacher", "macs")


def test_plan_shows_the_network_that_will_be_pruned(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = recipe(data, [VIT, {"stage": "prune"}, {"stage": "slim"}], goals={"macs": 0.9})
    assert plan_recipe(asked, as_json=True) == 0
    record = json.loads(capsys.readouterr().out)
    teacher_macs = network_macs(build("cifar_resnet", **TEACHER["args"]), (1, 8, 8))  # type: ignore[arg-type]
    assert record["teacher"]["macs"] == teacher_macs
    reasons = {group["name"]: group["reason"] for group in record["groups"]}
    assert reasons["blocks.0.mlp.fc1"] is None
    assert "position_NC is used directly" in reasons["patches.conv"]
    assert reasons["blocks.0.attn.q"]


@pytest.mark.parametrize(("share", "status"), [(0.9, 0), (0.01, 1)])
def test_plan_says_whether_a_student_that_nothing_prunes_is_within_the_goals(
    data: Path, capsys: pytest.CaptureFixture[str], share: float, status: int
) -> None:
    asked = recipe(data, [VIT, {"stage": "train", **TRAIN}], goals={"macs": share})
    assert plan_recipe(asked, as_json=True) == status
    record = json.loads(capsys.readouterr().out)
    assert record["planned"] is None
    if status:
        assert "no stage prunes it" in record["out_of_reach"]
    plan_recipe(asked, as_json=False)
    shown = capsys.readouterr().out
    assert "teacher" in shown and "student" in shown
    assert ("no stage prunes it" in shown) == bool(status)


@pytest.mark.slow
def test_a_chain_of_families_ends_in_a_report_against_the_teacher(
    data: Path, tmp_path: Path
) -> None:
    file = tmp_path / "net.py"
    file.write_text(
        "from toolchain.models.registry import build\n"
        f"def net():\n    return build('mixer', **{MIXER['args']!r})\n"
    )
    stages = [
        {"stage": "student", "file": f"{file}:net"},
        {"stage": "recover", **TRAIN},
        {"stage": "quantize"},
        {"stage": "export", "samples": 2},
        {"stage": "report", "latency_s": 0.01, "latency_runs": 20},
    ]
    asked = recipe(data, stages)
    assert run_recipe(asked, out=tmp_path / "out", allow_missed=True) == 0
    (folder,) = (tmp_path / "out").glob("chain-*")
    record = json.loads((folder / "report.json").read_text())
    macs = {who: record[who]["macs"] for who in ("teacher", "student")}
    assert macs["teacher"] == network_macs(build("cifar_resnet", **TEACHER["args"]), (1, 8, 8))  # type: ignore[arg-type]
    assert macs["student"] == network_macs(build("mixer", **MIXER["args"]), (1, 8, 8))  # type: ignore[arg-type]
    for written in (folder / "report.json", folder / "bundle" / "manifest.json"):
        assert str(tmp_path) not in written.read_text()
    assert record["stages"][1]["config"]["file"] == "net.py:net"


@pytest.mark.parametrize("given", ["(y, x)", "{'logits': y}"])
def test_a_network_that_gives_more_than_logits_is_refused(
    given: str, data: Path, tmp_path: Path
) -> None:
    """By every verb that looks at the network, in one line."""
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.fc = nn.Linear(64, 4)\n"
        "    def forward(self, x):\n"
        "        y = self.fc(x.flatten(1))\n"
        f"        return {given}\n"
    )
    model = {"file": f"{tmp_path / 'net.py'}:Net"}
    asked = recipe(data, [], model=model)
    kind = "tuple" if given.startswith("(") else "dict"
    for look in (run_stages, lambda one, _: plan_recipe(one, as_json=True)):
        refused(
            lambda look=look: look(asked, tmp_path), DataError, f"model: gives a {kind}", "wrap"
        )  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (
            {"args": {**VIT["args"], "classes": 7}},
            DataError,
            ("student: gives an output of shape (2, 7)", "4 classes"),
        ),  # type: ignore[dict-item]
        (
            {"args": {**VIT["args"], "image_size": 16}},  # type: ignore[dict-item]
            DataError,
            ("student: does not take images of shape (1, 8, 8)", "student.args"),
        ),
        (
            {"args": {"widht": 8}},
            ConfigError,
            ("student.args: vit has no argument 'widht'", "width"),
        ),
        (
            {"builtin": "vitt"},
            ConfigError,
            ("student.builtin: unknown 'vitt'", "did you mean 'vit'"),
        ),
    ],
)
def test_what_does_not_fit_is_one_line_about_the_student(
    change: dict[str, Any],
    error: type[CompressDeployError],
    words: tuple[str, ...],
    data: Path,
    tmp_path: Path,
) -> None:
    refused(lambda: run_stages(recipe(data, [{**VIT, **change}]), tmp_path), error, *words)


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ([VIT, {"stage": "slim"}], ("slim after student: nothing is masked",)),
        ([{"stage": "prune"}, VIT, {"stage": "slim"}], ("slim after student: nothing is masked",)),
        ([{"stage": "export"}, VIT], ("student after export",)),
        (
            [VIT, {"stage": "recover", **TRAIN, "distil": BY_ASSISTANT}],
            (
                "stages[2] (recover).distil.teachers.ta",
                "'recover' is not in the chain",
                "teacher, student",
            ),
        ),
        (
            [
                {"stage": "recover", **TRAIN},
                {
                    "stage": "pqk-prune",
                    "distil": {
                        "teachers": {"ta": {"kind": "assistant", "stage": "recover", "back": 2}}
                    },
                },
            ],
            ("'recover' with back: 2 is not in the chain", "teacher, recover"),
        ),
    ],
)
def test_a_chain_that_could_only_fail_is_refused_before_it_runs(
    stages: list[dict[str, Any]], words: tuple[str, ...], data: Path
) -> None:
    refused(lambda: check_order(recipe(data, stages).stages), ConfigError, *words)


def test_sensible_chains_with_several_students_are_accepted(data: Path) -> None:
    recover = {"stage": "recover", **TRAIN}
    end = [{"stage": "export"}, {"stage": "report"}]
    check_order(recipe(data, [VIT, recover, *end]).stages)
    check_order(
        recipe(data, [{"stage": "prune"}, VIT, {"stage": "prune"}, {"stage": "slim"}]).stages
    )
    check_order(recipe(data, [{"stage": "quantize"}, VIT, {"stage": "quantize"}, *end]).stages)
    check_order(recipe(data, [VIT, recover, MIXER, {**recover, "distil": BY_ASSISTANT}]).stages)
