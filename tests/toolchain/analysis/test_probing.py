"""Distillability on probe batches: against cosines from plain autograd, and nothing is disturbed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toolchain.analysis.probing import layers_of, probe, samples
from toolchain.distillation.lessons import TASK, School
from toolchain.distillation.losses.logits import kl, logit_mse
from toolchain.distillation.teachers.frozen import FrozenTeacher
from toolchain.distillation.terms import Term
from toolchain.quantization.attached import attach_views
from toolchain.training.objective import Batch
from toolchain.training.precision import choose_precision

CPU = choose_precision("float32", "cpu")


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    )


def draw(number: int, size: int) -> Batch:
    generator = torch.Generator().manual_seed(number)
    images_BCHW = torch.randn(size, 1, 4, 4, generator=generator)
    return Batch(images_BCHW, torch.arange(size) % 3)


@pytest.fixture
def school() -> School:
    teacher = FrozenTeacher(network(1), CPU)
    terms = (
        Term("kl", kl, teacher),
        Term("mse", logit_mse, teacher),
        Term("hint", F.mse_loss, teacher, spot="0", student_spot="0"),
    )
    base = {TASK: 1.0, "kl": 0.5, "mse": 2.0, "hint": 0.0}
    return School(network(0).eval(), CPU, terms=terms, base=base, probe=draw)


def gradient(loss: Tensor, weight: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(loss, [weight], retain_graph=True)
    return found.flatten().double()


def test_by_layer_it_is_the_cosine_of_the_weighted_sum_with_the_task(school: School) -> None:
    found = probe(school, 7, count=2, size=6)
    assert found.step == 7
    assert list(found.layers) == ["0", "4"]
    for number in range(2):
        student = copy.deepcopy(school.network).train()
        batch = draw(number, 6)
        logits_BC = student(batch.images_BCHW)
        with torch.no_grad():
            taught_BC = school.terms[0].teacher.network(batch.images_BCHW)  # type: ignore[attr-defined]
        task = F.cross_entropy(logits_BC, batch.labels_B)
        kd = 0.5 * kl(logits_BC, taught_BC) + 2.0 * logit_mse(logits_BC, taught_BC)
        for name in ("0", "4"):
            weight = student.get_submodule(name).weight
            assert isinstance(weight, Tensor)
            expected = F.cosine_similarity(gradient(kd, weight), gradient(task, weight), dim=0)
            assert found.layers[name][number] == pytest.approx(float(expected), abs=1e-5)


def test_terms_come_in_order_of_depth_with_their_own_layer(school: School) -> None:
    found = probe(school, 0, count=1, size=6)
    assert list(found.terms) == ["hint", "kl", "mse"]
    batch, student = draw(0, 6), copy.deepcopy(school.network).train()
    logits_BC = student(batch.images_BCHW)
    feature = student[0](batch.images_BCHW)  # type: ignore[index]
    with torch.no_grad():
        wanted = school.terms[0].teacher.network[0](batch.images_BCHW)  # type: ignore[attr-defined]
    task = F.cross_entropy(logits_BC, batch.labels_B)
    parameters = list(student[0].parameters())  # type: ignore[index]

    def flat(loss: Tensor) -> Tensor:
        found = torch.autograd.grad(loss, parameters, retain_graph=True)
        return torch.cat([each.flatten() for each in found])

    expected = F.cosine_similarity(flat(F.mse_loss(feature, wanted)), flat(task), dim=0)
    assert found.terms["hint"] == pytest.approx([float(expected)], abs=1e-5)


def test_probing_leaves_the_student_as_it_was(school: School) -> None:
    state = copy.deepcopy(school.network.state_dict())
    modes = [module.training for module in school.network.modules()]
    random = torch.get_rng_state()
    first, again = (probe(school, 0, count=2, size=6) for _ in range(2))
    assert first == again
    assert all(torch.equal(state[key], value) for key, value in school.network.state_dict().items())
    assert [module.training for module in school.network.modules()] == modes
    assert all(parameter.grad is None for parameter in school.network.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_layers_have_their_modules_path_under_masks_too() -> None:
    plain = network(0)
    attach_views(plain)  # type: ignore[arg-type]
    places = layers_of(plain, list(plain.parameters()))
    assert list(places) == ["0", "4"]
    parameters = list(plain.parameters())
    assert parameters[places["4"]].shape == (3, 16)


def test_samples_are_layers_by_probes() -> None:
    assert samples({"a": [1.0, 2.0], "b": [3.0, 4.0]}).tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert samples({}).shape == (0, 0)
