"""The gradient of every supervision term by itself, on one batch, with respect to the student's weights.

The student is left as it was: an auxiliary pass moves neither its buffers (BatchNorm statistics, quantizer
ranges) nor those of the losses and adapters, nor the random numbers that its next step draws.
Axes: T terms (row 0 is the task), P all trained numbers of the student, N its parameter tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from toolchain.distillation.lessons import School
from toolchain.training.objective import Batch, trainable


@dataclass(frozen=True)
class TermGradients:
    """What each term alone would do to the student's weights.

    Attributes:
        names: Of the terms.
        task_P: Gradient of the cross-entropy.
        terms_TP: Gradient of each term, before its strength.
        task: Value of the cross-entropy.
        values: Value of each term.
        reached: For each term, whether its value depends on each parameter tensor.
    """

    names: tuple[str, ...]
    task_P: Tensor
    terms_TP: Tensor
    task: float
    values: tuple[float, ...]
    reached: tuple[tuple[bool, ...], ...]


def trained(school: School) -> list[nn.Parameter]:
    """The student's parameters that its training moves."""
    return list(school.parameters) or trainable(school.network)


def term_gradients(
    school: School, batch: Batch, parameters: Sequence[nn.Parameter]
) -> TermGradients:
    """The task's gradient and each term's, from one pass of the student and one of each teacher."""
    with undisturbed(school):
        with school.precision.autocast():
            lesson = school.lesson(batch)
            values = [lesson.task(), *(lesson.value(term) for term in school.terms)]
        rows, reached = [], []
        for number, value in enumerate(values):
            found: Sequence[Tensor | None] = [None] * len(parameters)
            if value.requires_grad:
                found = torch.autograd.grad(
                    value, parameters, retain_graph=number < len(values) - 1, allow_unused=True
                )
            rows.append(flat(found, parameters))
            reached.append(tuple(gradient is not None for gradient in found))
    numbers = torch.stack([value.detach().double() for value in values]).tolist()
    return TermGradients(
        names=tuple(term.name for term in school.terms),
        task_P=rows[0],
        terms_TP=torch.stack(rows[1:]) if school.terms else rows[0].new_zeros(0, len(rows[0])),
        task=numbers[0],
        values=tuple(numbers[1:]),
        reached=tuple(reached[1:]),
    )


def task_gradient(
    school: School, batch: Batch, parameters: Sequence[nn.Parameter]
) -> tuple[Tensor, Tensor]:
    """The cross-entropy of a batch, and its gradient [P]; no teacher is asked."""
    with undisturbed(school):
        with school.precision.autocast():
            value = school.lesson(batch, ()).task()
        found = torch.autograd.grad(value, parameters, allow_unused=True)
    return value.detach(), flat(found, parameters)


def flat(tensors: Sequence[Tensor | None], parameters: Sequence[nn.Parameter]) -> Tensor:
    """One vector [P] of a tensor for each parameter; None stands for zeros."""
    return torch.cat(
        [
            torch.zeros_like(parameter).flatten() if tensor is None else tensor.flatten()
            for tensor, parameter in zip(tensors, parameters, strict=True)
        ]
    )


def by_parameter(vector_P: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """The pieces of ``flat``, in the shapes of the parameters."""
    pieces = vector_P.split([parameter.numel() for parameter in parameters])
    return [piece.view(p.shape) for piece, p in zip(pieces, parameters, strict=True)]


def products(left_TP: Tensor, right_TP: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """Inner products [T, N] in float64 on the CPU, for each parameter tensor by itself."""
    both_TP = (left_TP * right_TP).double()
    sizes = [parameter.numel() for parameter in parameters]
    return torch.stack([part.sum(-1) for part in both_TP.split(sizes, dim=-1)], dim=-1).cpu()


@contextmanager
def undisturbed(school: School) -> Iterator[None]:
    """Inside the block passes may be made: buffers and random numbers are put back after it."""
    parts = (school.network, *(part for term in school.terms for part in term.modules))
    owners = {id(module): module for part in parts for module in part.modules()}.values()
    # By their owners and names too: a pass may put another tensor in a buffer's place (CRD's banks).
    before = [
        (owner, name, buffer, buffer.detach().clone())
        for owner in owners
        for name, buffer in owner.named_buffers(recurse=False)
    ]
    cuda = school.precision.device_type == "cuda"
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if cuda else []):
        try:
            yield
        finally:
            with torch.no_grad():
                for owner, name, buffer, was in before:
                    buffer.copy_(was)
                    owner._buffers[name] = buffer


@contextmanager
def moved(parameters: Sequence[nn.Parameter], to: Sequence[Tensor]) -> Iterator[None]:
    """Inside the block the parameters hold other values; after it their own again, to the bit."""
    before = [parameter.detach().clone() for parameter in parameters]
    try:
        with torch.no_grad():
            for parameter, value in zip(parameters, to, strict=True):
                parameter.copy_(value)
        yield
    finally:
        with torch.no_grad():
            for parameter, was in zip(parameters, before, strict=True):
                parameter.copy_(was)
