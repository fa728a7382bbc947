"""Terms from a recipe: a loss that remembers every sample has a place for each."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deploy.errors import ConfigError
from toolchain.distillation.building import build_terms
from toolchain.distillation.config import DistilLoss
from toolchain.distillation.lessons import School
from toolchain.distillation.teachers.frozen import FrozenTeacher
from toolchain.training.precision import choose_precision


def test_memory_for_fewer_samples_than_there_are_is_refused() -> None:
    """It would fail at the first batch that holds one of the others."""
    precision = choose_precision("float32", "cpu")
    student, teacher = (
        nn.Sequential(nn.Flatten(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4)) for _ in range(2)
    )
    school = School(student, precision)
    teachers = {"pretrained": FrozenTeacher(teacher, precision)}
    images_BCHW = torch.randn(2, 8, 1, 1)

    def build(**options: int) -> int:
        loss = DistilLoss(loss="crd", spot="penultimate", options=options)
        ((term, _),) = build_terms(school, teachers, [loss], images_BCHW, 40)
        assert isinstance(term.loss, nn.Module)
        return len(term.loss.get_buffer("labels_N"))

    assert build() == build(samples=40) == 40
    with pytest.raises(ConfigError, match="10 given, and the training part has 40") as caught:
        build(samples=10)
    assert "\n" not in str(caught.value)
