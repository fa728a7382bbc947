"""Teachers by name: each kind for a student of a chain, and what is refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import save_file

from deploy.errors import CheckpointError, CompressDeployError, ConfigError, StructureError
from toolchain import checkpoint
from toolchain.distillation.teachers.build import build_teacher, build_teachers
from toolchain.distillation.teachers.config import KINDS, TeacherConfig
from toolchain.distillation.teachers.registry import TEACHERS
from toolchain.models.registry import build
from toolchain.recipe.schema import Recipe
from toolchain.runs.artifacts import RunContext, run_stages
from toolchain.student import Student

ARGS = {"input_shape": [1, 8, 8], "hidden": [24], "classes": 4}
OTHER = {"image_size": 8, "patch": 4, "in_channels": 1, "width": 8, "depth": 1, "token_hidden": 2}
MAKE: TypeAdapter[TeacherConfig] = TypeAdapter(TeacherConfig)


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Student]:
    """The student behind the teacher and these stages."""
    folder = tmp_path_factory.mktemp("chain")
    random = np.random.default_rng(0)
    arrays = {
        "x_train": random.integers(0, 255, (40, 8, 8), dtype=np.uint8),
        "y_train": np.arange(40) % 4,
        "x_test": random.integers(0, 255, (8, 8, 8), dtype=np.uint8),
        "y_test": np.arange(8) % 4,
    }
    np.savez(folder / "noise.npz", **arrays)

    def load(*stages: dict[str, Any]) -> Student:
        recipe = Recipe.model_validate(
            {
                "name": "chain",
                "precision": "float32",
                "model": {"builtin": "mlp", "args": ARGS},
                "data": {"kind": "npz", "root": str(folder / "noise.npz"), "validation": 0.2},
                "stages": [{"stage": "teacher"}, *stages],
            }
        )
        return Student.load(run_stages(recipe, folder), RunContext(recipe, folder))

    return load


def make(settings: dict[str, Any], student: Student) -> Any:
    return build_teacher(MAKE.validate_python(settings), student, "distil.teachers.it")


def refused(run: Callable[[], object], error: type[CompressDeployError], *words: str) -> None:
    with pytest.raises(error) as caught:
        run()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_every_kind_that_a_recipe_can_name_can_be_built_and_is_told_in_a_line() -> None:
    kinds = {kind.model_fields["kind"].default for kind in KINDS}
    assert kinds == set(TEACHERS) == {"pretrained", "network", "assistant", "ema", "in-network"}
    for name in TEACHERS:
        entry = TEACHERS.look_up(name)
        assert entry.name == name
        assert entry.about and "\n" not in entry.about


def test_the_pretrained_teacher_is_always_there(load: Callable[..., Student]) -> None:
    student = load({"stage": "prune", "sparsity": 0.5}, {"stage": "slim"})
    teachers = build_teachers({}, student)
    assert set(teachers) == {"pretrained"}
    torch.manual_seed(0)
    plain = build("mlp", **ARGS).eval()  # type: ignore[arg-type]
    x = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(
        teachers["pretrained"].observe(x, ["logits"])["logits"], plain(x).detach()
    )


def test_names_with_the_same_settings_are_one_teacher(load: Callable[..., Student]) -> None:
    student, given = load({"stage": "prune", "sparsity": 0.5}), {"kind": "in-network"}
    named = {
        "one": given,
        "two": given,
        "mean": {"kind": "ema"},
        "slow": {"kind": "ema", "decay": 0.9},
    }
    configs = {name: MAKE.validate_python(config) for name, config in named.items()}
    teachers = build_teachers(configs, student)
    assert teachers["one"] is teachers["two"]
    assert len({id(teacher) for teacher in teachers.values()}) == 4
    inside = build_teachers(configs, student, in_network=teachers["mean"])
    assert inside["one"] is inside["two"] is teachers["mean"]


def test_another_network_teaches_with_its_checkpoint(
    load: Callable[..., Student], tmp_path: Path
) -> None:
    network = build("mixer", **OTHER, classes=4).eval()  # type: ignore[arg-type]
    save_file(network.state_dict(), tmp_path / "mixer.safetensors")
    settings = {"kind": "network", "builtin": "mixer", "args": {**OTHER, "classes": 4}}
    teacher = make({**settings, "checkpoint": tmp_path / "mixer.safetensors"}, load())
    x = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(teacher.observe(x, ["logits"])["logits"], network(x).detach())


def test_an_assistant_is_an_earlier_student(load: Callable[..., Student]) -> None:
    student = load({"stage": "prune", "sparsity": 0.5}, {"stage": "slim"})
    teacher = make({"kind": "assistant", "stage": "prune"}, student)
    network, _ = checkpoint.load(student.earlier("prune"))
    x = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(teacher.observe(x, ["logits"])["logits"], network(x).detach())


def test_the_second_nearest_assistant(load: Callable[..., Student]) -> None:
    twice = [{"stage": "prune", "sparsity": s} for s in (0.2, 0.5)]
    student = load(twice[0], {"stage": "slim"}, twice[1], {"stage": "slim"})
    x = torch.randn(3, 1, 8, 8)
    near = make({"kind": "assistant", "stage": "slim"}, student).observe(x, ["logits"])["logits"]
    far = make({"kind": "assistant", "stage": "slim", "back": 2}, student).observe(x, ["logits"])
    torch.testing.assert_close(near, student.network(x).detach())
    assert not torch.allclose(near, far["logits"])


def test_the_teacher_inside_a_masked_student_is_saved_with_it(
    load: Callable[..., Student], tmp_path: Path
) -> None:
    student = load({"stage": "prune", "sparsity": 0.5})
    make({"kind": "in-network"}, student)
    assert student.spec.teacher_norms
    checkpoint.save(student.network, student.spec, tmp_path)
    again, _ = checkpoint.load(tmp_path)
    assert set(again.state_dict()) == set(student.network.state_dict())


def test_what_cannot_teach_is_one_line(load: Callable[..., Student], tmp_path: Path) -> None:
    student = load()
    refused(
        lambda: make({"kind": "in-network"}, student),
        StructureError,
        "distil.teachers.it: an in-network teacher, and nothing is masked",
        "before slim",
    )
    refused(
        lambda: make({"kind": "assistant", "stage": "recover"}, student),
        ConfigError,
        "distil.teachers.it: stage 'recover' is not in the chain",
        "teacher",
    )
    network = build("mixer", **OTHER, classes=7)  # type: ignore[arg-type]
    file = tmp_path / "seven.safetensors"
    save_file(network.state_dict(), file)
    settings = {"kind": "network", "builtin": "mixer", "checkpoint": file}
    refused(
        lambda: make({**settings, "args": {**OTHER, "classes": 7}}, student),
        ConfigError,
        "distil.teachers.it: the teacher has 7 classes and the student 4",
    )
    refused(
        lambda: make({**settings, "args": {**OTHER, "classes": 4}}, student),
        CheckpointError,
        "distil.teachers.it.checkpoint: seven.safetensors does not fit",
        "7 classes",
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "network"}, "none given of 'builtin' and 'file'"),
        ({"kind": "network", "builtin": "vit"}, "'vit' given without a checkpoint"),
        ({"kind": "network", "builtin": "vit", "file": "n.py:f"}, "both given"),
        ({"kind": "network", "file": "n"}, "file is 'n'; accepted: a Python file"),
        ({"kind": "assistant"}, "stage"),
        ({"kind": "assistant", "stage": "recover", "back": 0}, "greater than or equal to 1"),
        ({"kind": "ema", "decay": 1.0}, "less than 1"),
        ({"kind": "oracle"}, "does not match any of the expected tags"),
    ],
)
def test_settings_that_make_no_teacher(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        MAKE.validate_python(settings)
