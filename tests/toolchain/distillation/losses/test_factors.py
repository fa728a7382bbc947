"""FT against a small NumPy computation of its equation, and its paraphraser's preparation."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from deploy.errors import ConfigError
from toolchain.distillation.losses import factors
from toolchain.distillation.losses.factors import FactorTransfer

STUDENT, TEACHER = (4, 3, 4, 4), (4, 6, 4, 4)


def made(student: tuple[int, ...] = STUDENT, **options: float) -> FactorTransfer:
    torch.manual_seed(0)
    return FactorTransfer(student, TEACHER, **{"paraphraser_epochs": 2, **options})


def batches(number: int = 3) -> list[Tensor]:
    random = torch.Generator().manual_seed(1)
    return [torch.randn(TEACHER, generator=random) for _ in range(number)]


def test_ft() -> None:
    loss = made().double().eval()
    loss.prepare(iter(batches()))
    s, t = torch.randn(STUDENT, dtype=torch.float64), torch.randn(TEACHER, dtype=torch.float64)
    found = [loss.translator(s), loss.paraphraser(t)]
    u, v = (f.detach().numpy().reshape(4, -1) for f in found)
    u, v = (f / np.linalg.norm(f, axis=1, keepdims=True) for f in (u, v))
    assert u.shape == (4, 3 * 16)
    assert loss(s, t).item() == pytest.approx(np.abs(u - v).mean(), rel=1e-9)


@pytest.mark.parametrize(
    "student", [(4, 3, 8, 8), (4, 3, 2, 2), (4, 16, 5), (4, 17, 5), (4, 10, 2, 4)]
)
def test_shapes_that_it_joins(student: tuple[int, ...]) -> None:
    loss = made(student)
    loss.prepare(batches())
    s = torch.randn(student, requires_grad=True)
    loss(s, torch.randn(TEACHER)).backward()
    assert s.grad.any()


@pytest.mark.parametrize("student", [(4, 3), (4, 3, 1, 1)])
def test_one_position_is_refused(student: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="one position"):
        made(student)


def test_preparing_makes_a_better_code() -> None:
    """With a linear read-out, the prepared code tells more of the teacher's feature."""
    random = torch.Generator().manual_seed(2)
    basis = torch.randn(6, 2, generator=random)
    hidden = [torch.randn(16, 2, 4, 4, generator=random) for _ in range(4)]
    seen = [torch.einsum("oi,bihw->bohw", basis, h) for h in hidden]

    def unexplained(loss: FactorTransfer) -> float:
        loss.paraphraser.eval()
        code = torch.cat([loss.paraphraser(x) for x in seen]).transpose(0, 1).flatten(1).T
        whole = torch.cat(seen).transpose(0, 1).flatten(1).T
        fit = torch.linalg.lstsq(code.detach(), whole).solution
        return float((code @ fit - whole).square().mean() / whole.square().mean())

    loss = made(paraphraser_epochs=30, paraphraser_lr=0.05)
    before = unexplained(loss)
    loss.prepare(seen)
    assert unexplained(loss) < before


def test_preparing_is_deterministic_and_leaves_random_state_alone() -> None:
    first, second = made(), made()
    first.prepare(batches())
    torch.manual_seed(77)
    state = torch.get_rng_state()
    second.prepare(x for x in batches())
    assert torch.equal(torch.get_rng_state(), state)
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_preparing_works_without_gradients_around_it() -> None:
    first, second = made(), made()
    first.prepare(batches())
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        second.prepare(batches())
    assert torch.equal(*(next(loss.paraphraser.parameters()) for loss in (first, second)))


def test_only_the_translator_is_trained_afterwards() -> None:
    loss = made()
    loss.prepare(batches())
    loss.train()
    before = copy.deepcopy(loss.paraphraser.state_dict())
    loss(torch.randn(STUDENT), torch.randn(TEACHER)).backward()
    trained = {name for name, p in loss.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in loss.named_parameters() if p.grad is not None}
    assert all(name.startswith("translator") for name in trained)
    assert all(torch.equal(v, before[k]) for k, v in loss.paraphraser.state_dict().items())


def test_no_more_features_are_kept_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = batches()
    size = seen[0].numel() * seen[0].element_size()
    monkeypatch.setattr(factors, "MOST_BYTES", 2 * size)
    few, all_of_them = made(), made()
    asked = iter(seen)
    few.prepare(asked)
    assert len(list(asked)) == len(seen) - 2
    all_of_them.prepare(seen[:2])
    assert all(
        torch.equal(a, b)
        for a, b in zip(few.state_dict().values(), all_of_them.state_dict().values(), strict=True)
    )


def test_an_unprepared_paraphraser_is_a_bug_of_the_caller() -> None:
    with pytest.raises(RuntimeError, match="not prepared"):
        made()(torch.randn(STUDENT), torch.randn(TEACHER))


def test_a_loaded_state_is_as_prepared_as_the_saved_one() -> None:
    first, second = made(), made()
    first.prepare(batches())
    second.load_state_dict(first.state_dict())
    s, t = torch.randn(STUDENT), torch.randn(TEACHER)
    assert torch.equal(first(s, t), second(s, t))
    second.load_state_dict(made().state_dict())
    with pytest.raises(RuntimeError, match="not prepared"):
        second(s, t)
