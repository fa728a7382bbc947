"""Means of an epoch and losses that are not finite, read now and then without losing any."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from toolchain.training.tally import LOOK_EVERY_STEPS_GPU, Tally

finite = st.floats(-1e6, 1e6, width=32)


@given(
    steps=st.lists(st.tuples(finite, finite, finite), min_size=1, max_size=12),
    look_at=st.sets(st.integers(0, 11)),
)
def test_means_do_not_depend_on_when_one_looks(
    steps: list[tuple[float, float, float]], look_at: set[int]
) -> None:
    tally = Tally(["task"], "cuda")
    for number, (loss, double, plain) in enumerate(steps):
        noted = torch.tensor(loss, requires_grad=True)
        more = {"double": torch.tensor([double], dtype=torch.float64), "plain": plain}
        tally.note("task", noted, more)
        if number in look_at:
            assert tally.look() is None
    tally.look()
    expected = [0.0, 0.0, 0.0]
    for step in steps:
        expected = [total + value for total, value in zip(expected, step, strict=True)]
    means = tally.means(len(steps))
    assert means == {
        name: total / len(steps)
        for name, total in zip(("loss", "double", "plain"), expected, strict=True)
    }


@pytest.mark.parametrize("updates", [["a"], ["a", "b", "c"]])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_found_in_its_step(updates: list[str], value: float) -> None:
    for bad_step in range(4):
        for bad_update in range(len(updates)):
            tally = Tally(updates, "cuda")
            for step in range(4):
                for number, update in enumerate(updates):
                    bad = (step, number) == (bad_step, bad_update)
                    tally.note(update, torch.tensor(value if bad else 1.0), {})
            found = tally.look()
            assert found == (3 - bad_step, f"loss is {value}")


@pytest.mark.parametrize("updates", [["a"], ["a", "b"]])
def test_a_norm_that_is_not_finite_is_found_in_its_step_and_is_no_term(updates: list[str]) -> None:
    tally = Tally(updates, "cuda")
    for step in range(4):
        for update in updates:
            tally.note(update, torch.tensor(1.0), {}, torch.tensor(math.inf if step == 1 else 5.0))
    assert tally.look() == (2, "the gradient's norm is inf")
    assert not any("norm" in name for name in tally.means(1))


def test_several_updates_have_their_names_before_their_terms() -> None:
    tally = Tally(["dean", "student"], "cpu")
    tally.note("dean", torch.tensor(1.0), {"size": 2.0})
    tally.note("student", torch.tensor(3.0), {})
    tally.look()
    assert tally.means(1) == {"dean.loss": 1.0, "dean.size": 2.0, "student.loss": 3.0}


def test_noting_reads_nothing() -> None:
    """A tensor of the meta device has no value to read: the first look fails, no note does."""
    tally = Tally(["task"], "cuda")
    for _ in range(LOOK_EVERY_STEPS_GPU):
        tally.note("task", torch.ones((), device="meta"), {"kl": torch.ones((), device="meta")})
    with pytest.raises(NotImplementedError):
        tally.look()


def test_a_gpu_is_looked_at_now_and_then_and_a_cpu_always() -> None:
    gpu, cpu = Tally(["task"], "cuda"), Tally(["task"], "cpu")
    assert [step for step in range(1, 61) if gpu.due(step)] == [20, 40, 60]
    assert all(cpu.due(step) for step in range(1, 61))


def test_sums_go_on_after_a_resume() -> None:
    tally, again = Tally(["task"], "cpu"), Tally(["task"], "cpu")
    tally.note("task", torch.tensor(1.5), {"kl": 2.0})
    tally.look()
    again.load(tally.state())
    again.note("task", torch.tensor(0.5), {"kl": 1.0})
    again.look()
    assert again.means(2) == {"loss": 1.0, "kl": 1.5}
    again.clear()
    assert again.means(1) == {}
