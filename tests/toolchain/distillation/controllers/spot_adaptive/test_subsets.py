"""Any loss on the samples that a decision leaves it: none, one, some."""

from __future__ import annotations

import pytest
import torch

from toolchain.distillation.building import build_terms
from toolchain.distillation.config import DistilLoss
from toolchain.distillation.lessons import School
from toolchain.distillation.losses.entry import LOSSES
from toolchain.distillation.teachers.frozen import FrozenTeacher
from toolchain.distillation.terms import Term
from toolchain.graph import trace
from toolchain.models.cifar_resnet import cifar_resnet
from toolchain.training.objective import Batch
from toolchain.training.precision import choose_precision

FLOAT = choose_precision("float32", "cpu")
ON_LOGITS = {"kl", "dkd", "dist", "logit_mse", "ofa"}


def batch(number: int, size: int) -> Batch:
    noise = torch.Generator().manual_seed(number)
    images = torch.randn(size, 3, 8, 8, generator=noise)
    return Batch(images, torch.arange(size) % 3, torch.arange(size))


def one_term(name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[School, Term]:
    monkeypatch.setattr("toolchain.distillation.lessons.PREPARING_BATCHES", 2)
    monkeypatch.setattr("toolchain.distillation.lessons.PREPARING_SIZE", 8)
    torch.manual_seed(0)
    widths = (4, 4 if name == "fsp" else 6)  # FSP has no adapter
    networks = [trace(cifar_resnet(depth=8, classes=3, width=width)) for width in widths]
    teacher = FrozenTeacher(networks[1], FLOAT)
    school = School(networks[0], FLOAT, probe=batch)
    entry = LOSSES.look_up(name)
    spot = ("layer1", "layer1") if entry.match == "pair" else "layer2"
    loss = DistilLoss(loss=name, spot="logits" if name in ON_LOGITS else spot)
    ((term, _),) = build_terms(school, {"pretrained": teacher}, [loss], batch(0, 2).images_BCHW, 6)
    school = school.with_terms([term], {"task": 1.0, term.name: 1.0})
    school.prepare()
    return school, term


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_no_sample_gives_zero_and_one_gives_a_finite_loss(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    school, term = one_term(name, monkeypatch)
    moved = [p for p in school.network.parameters() if p.requires_grad]
    for chosen in ([], [2], [0, 3], range(6)):
        samples_B = torch.zeros(6, dtype=torch.bool)
        samples_B[list(chosen)] = True
        lesson = school.lesson(batch(1, 6))
        value = lesson.value(term, samples_B)
        grads = torch.autograd.grad(value + lesson.task(), moved, allow_unused=True)
        assert value.shape == () and torch.isfinite(value)
        assert all(torch.isfinite(g).all() for g in grads if g is not None)
        if not len(chosen):
            assert value.item() == 0.0


@pytest.mark.parametrize("name", ["kl", "at", "fitnet"])
def test_a_mean_over_some_samples_counts_by_their_share(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    school, term = one_term(name, monkeypatch)
    school.network.eval()  # or a sample's features depend on the others'
    lesson = school.lesson(batch(1, 6))
    parts = torch.tensor([[1, 0, 0, 1, 0, 1], [0, 1, 1, 0, 1, 0]]).bool()
    halves = [lesson.value(term, part_B).item() for part_B in parts]
    assert sum(halves) == pytest.approx(lesson.value(term).item(), rel=1e-5)
