"""A tiny school: a student, a teacher that is right, one that is wrong, and batches by number."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from toolchain.distillation.lessons import TASK, School
from toolchain.distillation.losses.logits import kl
from toolchain.distillation.terms import Term
from toolchain.training.objective import Batch
from toolchain.training.precision import choose_precision

CLASSES, INPUTS = 4, 8


class Oracle:
    """Knows the rule by which the labels were made; a shift makes it name the wrong class."""

    def __init__(self, rule: Tensor, shift: int = 0) -> None:
        self._rule, self._shift = rule, shift

    def observe(self, images_BCHW: Tensor, spots: Sequence[str]) -> dict[str, Tensor]:
        logits_BC = 4 * (images_BCHW.flatten(1) @ self._rule).roll(self._shift, 1)
        return dict.fromkeys(spots, logits_BC)


class Data:
    """Samples whose class is the largest of some linear functions of them."""

    def __init__(self, samples: int = 600, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(7)
        self.images = torch.randn(samples, INPUTS, 1, 1, generator=generator).to(dtype)
        self.rule = torch.randn(INPUTS, CLASSES, generator=generator).to(dtype)
        self.labels = (self.images.flatten(1) @ self.rule).argmax(1)
        self.asked: dict[str, list[Tensor]] = {"train": [], "held out": []}

    def draw(self, part: str) -> Callable[[int, int], Batch]:
        """Batches of the first two thirds (``train``) or of the rest (``held out``)."""
        middle = 2 * len(self.images) // 3
        lo, hi = (0, middle) if part == "train" else (middle, len(self.images))

        def draw(number: int, size: int) -> Batch:
            generator = torch.Generator().manual_seed(number)
            index_B = lo + torch.randperm(hi - lo, generator=generator)[:size]
            self.asked[part].append(index_B)
            return Batch(self.images[index_B], self.labels[index_B])

        return draw


def student(dtype: torch.dtype = torch.float32, dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(INPUTS, 16, 1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Conv2d(16, 12, 1),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(12, CLASSES),
    ).to(dtype)


@pytest.fixture
def double_student() -> nn.Module:
    return student(torch.float64)


@pytest.fixture
def make_student() -> Callable[..., nn.Sequential]:
    return student


@pytest.fixture
def data() -> Data:
    return Data()


@pytest.fixture
def make_school(data: Data) -> Callable[..., School]:
    """``make_school(network, strengths, **fields)``: terms ``good`` and ``bad`` on the logits."""

    def make(
        network: nn.Module | None = None,
        strengths: Mapping[str, float] | None = None,
        data: Data = data,
        **fields: Any,
    ) -> School:
        oracles = {"good": Oracle(data.rule), "bad": Oracle(data.rule, shift=1)}
        strengths = strengths or {"good": 0.5, "bad": 0.5}
        return School(
            student() if network is None else network,
            choose_precision("float32", "cpu"),
            terms=tuple(Term(name, kl, oracles[name]) for name in strengths),
            base={TASK: 1.0, **strengths},
            **{"held_out": data.draw("held out"), "probe": data.draw("train"), **fields},
        )

    return make


class Copied:
    """A teacher whose features are another network's, at the student's spots."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network.eval()

    def observe(self, images_BCHW: Tensor, spots: Sequence[str]) -> dict[str, Tensor]:
        from toolchain.distillation.spots import capture

        with torch.no_grad(), capture(self._network, spots) as found:
            self._network(images_BCHW)
        return found


@pytest.fixture
def layered(data: Data) -> Callable[..., School]:
    """A school with a term at each of two inner layers and one at the logits."""

    def make(network: nn.Module, **fields: Any) -> School:
        dtype = next(network.parameters()).dtype
        torch.manual_seed(11)
        other = Data(dtype=dtype)
        teacher = Copied(student(dtype).apply(_shaken))

        def hint(student_BC: Tensor, teacher_BC: Tensor) -> Tensor:
            return (student_BC - teacher_BC).square().mean()

        terms = (
            Term("kl", _kl64 if dtype == torch.float64 else kl, teacher),
            Term("early", hint, teacher, "1", "1"),
            Term("late", hint, teacher, "5", "5"),
        )
        return School(
            network,
            choose_precision("float32", "cpu"),
            terms=terms,
            base={TASK: 0.7, "kl": 0.4, "early": 0.3, "late": 0.2},
            **{"held_out": other.draw("held out"), "probe": other.draw("train"), **fields},
        )

    return make


def _kl64(student_BC: Tensor, teacher_BC: Tensor) -> Tensor:
    """The same loss without its cast to float32."""
    log_q, log_p = student_BC.log_softmax(1), teacher_BC.log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1).mean()


def _shaken(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.4)
