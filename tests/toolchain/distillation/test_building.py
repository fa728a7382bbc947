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
from toolchain.models.cifar_resnet import cifar_resnet
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


def test_exits_that_are_listed_one_by_one_are_those_of_a_pattern() -> None:
    """In whatever order: a gamma for each stage changes no branch."""
    precision = choose_precision("float32", "cpu")
    school = School(cifar_resnet(depth=8, width=4), precision)
    one, two = (FrozenTeacher(cifar_resnet(depth=8, width=8), precision) for _ in range(2))
    teachers = {"pretrained": one, "other": two}
    images_BCHW = torch.randn(2, 3, 16, 16)

    def sizes(*spots: str, **given: str) -> dict[str, list[torch.Size]]:
        losses = [DistilLoss(loss="ofa", student_spot=spot, **given) for spot in spots]
        extra = [
            DistilLoss(loss="ofa"),
            DistilLoss(loss="ofa", student_spot="layer3", teacher="other"),
        ]
        made = build_terms(school, teachers, [*extra, *losses], images_BCHW)
        return {
            term.name: [p.shape for p in term.adapter.parameters()]
            for term, _ in made
            if term.adapter is not None
        }

    found = sizes("layer*")
    assert list(found) == ["ofa@layer3:other", "ofa@layer1", "ofa@layer2", "ofa@layer3"]
    assert len(found["ofa@layer1"]) > len(found["ofa@layer2"]) > len(found["ofa@layer3"])
    assert found["ofa@layer3:other"] == found["ofa@layer3"]  # another teacher's only one
    assert sizes("layer3", "layer1", "layer2") == found


@pytest.mark.parametrize(("ours", "theirs", "width"), [(4, 8, 32), (8, 4, 32), (4, 4, 16)])
def test_an_exit_of_maps_is_as_wide_as_the_wider_network(
    ours: int, theirs: int, width: int
) -> None:
    """At its end, where a CIFAR ResNet has four times its first channels (Hao et al. 2023, code)."""
    precision = choose_precision("float32", "cpu")
    school = School(cifar_resnet(depth=8, width=ours), precision)
    teachers = {"pretrained": FrozenTeacher(cifar_resnet(depth=8, width=theirs), precision)}
    loss = DistilLoss(loss="ofa", student_spot="layer1")
    ((term, _),) = build_terms(school, teachers, [loss], torch.randn(2, 3, 16, 16))
    assert term.adapter is not None
    *_, linear = term.adapter.modules()
    assert isinstance(linear, nn.Linear) and linear.in_features == width


@pytest.mark.parametrize("linear", ["neither", "teacher"])
def test_an_exit_needs_no_linear_layer_at_the_end(linear: str) -> None:
    """The student is then as wide as at its last exit; a teacher that has one counts as ever."""

    def without(width: int) -> nn.Sequential:
        convolutions = nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 10, 1)
        return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten())

    precision = choose_precision("float32", "cpu")
    network = without(8) if linear == "neither" else cifar_resnet(depth=8, width=4)
    teachers = {"pretrained": FrozenTeacher(network, precision)}
    losses = [DistilLoss(loss="ofa", student_spot="1")]
    terms = build_terms(School(without(6), precision), teachers, losses, torch.randn(2, 3, 16, 16))
    ((term, _),) = terms
    assert term.adapter is not None
    *_, last = term.adapter.modules()
    assert isinstance(last, nn.Linear) and last.in_features == (6 if linear == "neither" else 16)
    assert term.adapter(torch.randn(2, 6, 16, 16)).shape == (2, 10)
