"""Gradients of each term leave no trace, neither in the student nor in losses that remember."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from toolchain.dean.gradients import term_gradients, trained
from toolchain.distillation.lessons import School
from toolchain.distillation.losses.contrast import ContrastiveRepresentation
from toolchain.distillation.terms import Term
from toolchain.training.objective import Batch


def test_the_banks_of_a_loss_that_remembers_stay_as_they_were(
    make_school: Callable[..., School],
) -> None:
    """It puts new tensors in the place of its buffers at every pass in training mode."""
    school = make_school()
    crd = ContrastiveRepresentation((2, 4), (2, 4), samples=400, negatives=8)
    needs = frozenset({"labels_B", "index_B"})
    school = replace(school, terms=(Term("crd", crd, school.terms[0].teacher, needs=needs),))
    assert school.probe is not None
    images_BCHW, labels_B, _ = school.probe(0, 16)
    names = [name for name, _ in crd.named_buffers()]
    held = dict(crd.named_buffers())
    before = {name: buffer.clone() for name, buffer in held.items()}
    found = term_gradients(school, Batch(images_BCHW, labels_B, torch.arange(16)), trained(school))
    assert found.terms_TP.abs().sum() > 0
    assert [name for name, _ in crd.named_buffers()] == names
    for name, buffer in crd.named_buffers():
        assert buffer is held[name]
        torch.testing.assert_close(buffer, before[name], rtol=0, atol=0, equal_nan=True)
