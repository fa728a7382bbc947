"""Cosines per layer against a plain computation, and a probe that leaves no trace."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from toolchain.dean.distillability import cosine, own_layers
from toolchain.dean.gradients import moved, term_gradients, trained
from toolchain.dean.state import look
from toolchain.distillation.lessons import School


def test_a_layer_is_what_lies_between_two_spots() -> None:
    reached = [[True, False, False, False], [True, True, False, False], [True] * 4]
    assert own_layers(reached) == ((0,), (1,), (2, 3))


def test_two_terms_at_one_spot_share_its_layer_and_parallel_spots_have_their_own() -> None:
    assert own_layers([[True, True], [True, True]]) == ((0, 1), (0, 1))
    assert own_layers([[True, False, True], [False, True, True]]) == ((0, 2), (1, 2))
    assert own_layers([]) == ()


def test_the_cosine_of_nothing_is_zero() -> None:
    assert cosine(0.0, 0.0, 1.0) == 0.0
    assert cosine(2.0, 1.0, 4.0) == 1.0


def test_cosines_against_numpy(
    layered: Callable[..., School], make_student: Callable[..., nn.Sequential]
) -> None:
    school = layered(make_student())
    parameters = trained(school)
    assert school.probe is not None
    batch = school.probe(0, 50)
    found = look(term_gradients(school, batch, parameters), parameters, [1.0] * 3, None)
    assert found.names == tuple(term.name for term in school.terms)

    network = copy.deepcopy(school.network)
    lesson = School(network, school.precision, school.terms, school.base).lesson(batch)
    values = [lesson.task(), *(lesson.value(term) for term in school.terms)]
    rows = []
    for value in values:
        got = torch.autograd.grad(
            value, list(network.parameters()), retain_graph=True, allow_unused=True
        )
        rows.append([None if g is None else g.numpy().ravel() for g in got])
    own = {"early": range(4), "late": range(4, 6), "kl": range(6, 8)}  # conv and norm; conv; linear
    for row, term in enumerate(school.terms, start=1):
        mine = np.concatenate([rows[row][n] for n in own[term.name]])
        task = np.concatenate([rows[0][n] for n in own[term.name]])
        expected = mine @ task / np.linalg.norm(mine) / np.linalg.norm(task)
        assert found.cosines[row - 1] == pytest.approx(expected, abs=1e-5)
        whole = np.concatenate([g for g in rows[row] if g is not None])
        part = np.concatenate([t for g, t in zip(rows[row], rows[0], strict=True) if g is not None])
        every = np.concatenate(rows[0])
        expected = whole @ part / np.linalg.norm(whole) / np.linalg.norm(every)
        assert found.cosines_all[row - 1] == pytest.approx(expected, abs=1e-5)


def test_a_teacher_that_is_right_agrees_and_one_that_is_wrong_does_not(
    make_school: Callable[..., School],
) -> None:
    school = make_school()
    assert school.probe is not None
    parameters = trained(school)
    for number in range(3):
        gradients = term_gradients(school, school.probe(number, 100), parameters)
        good, bad = look(gradients, parameters, [0.5, 0.5], None).cosines_all
        assert good > 0.5 > 0.0 > bad


def test_a_probe_moves_no_buffer_no_weight_no_gradient_and_no_random_number(
    make_school: Callable[..., School], make_student: Callable[..., nn.Sequential]
) -> None:
    school = make_school(make_student(dropout=0.5))
    before = copy.deepcopy(school.network.state_dict())
    assert school.probe is not None
    batch = school.probe(0, 32)
    torch.manual_seed(5)
    untouched = torch.get_rng_state()
    term_gradients(school, batch, trained(school))
    assert torch.equal(torch.get_rng_state(), untouched)
    assert all(torch.equal(v, before[k]) for k, v in school.network.state_dict().items())
    assert all(p.grad is None for p in school.network.parameters())
    school.network(batch.images_BCHW)  # a pass of the student's own does move them
    assert not torch.equal(school.network.state_dict()["1.running_mean"], before["1.running_mean"])


def test_weights_come_back_to_the_bit_even_after_an_error() -> None:
    weight = nn.Parameter(torch.randn(5))
    before = weight.detach().clone()
    with pytest.raises(RuntimeError), moved([weight], [torch.zeros(5)]):
        assert not weight.any()
        raise RuntimeError
    assert torch.equal(weight, before)


def test_a_student_that_is_masked_and_quantized_has_gradients_at_its_latent_weights(
    make_school: Callable[..., School],
) -> None:
    from toolchain.graph import trace
    from toolchain.quantization.attach import Quantization, attach_quantizers, calibrate

    torch.manual_seed(0)
    network = trace(nn.Sequential(nn.Conv2d(8, 16, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16, 4)))
    attach_quantizers(network, Quantization(8, 8, 8, "minmax", ()))
    calibrate(network, iter([torch.randn(32, 8, 1, 1)]))
    view = network.get_submodule("0").parametrizations.weight[0]  # type: ignore[union-attr]
    view.keep_O[:4] = False
    school = make_school(network)
    before = copy.deepcopy(network.state_dict())
    parameters = trained(school)
    assert school.probe is not None
    gradients = term_gradients(school, school.probe(0, 32), parameters)
    latent = network.get_submodule("0").parametrizations.weight.original  # type: ignore[union-attr]
    position = next(n for n, p in enumerate(parameters) if p is latent)
    sizes = [p.numel() for p in parameters]
    of_latent = gradients.terms_TP[0].split(sizes)[position].view_as(latent)
    assert of_latent[:4].abs().max() == 0 < of_latent[4:].abs().max()
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
