"""Correlation by definition, and what it does to the worth of a sequence."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.statistics.correlation import autocorrelation, block_length, effective_number


def ar1(n: int, phi: float, rng: np.random.Generator) -> np.ndarray:
    """Correlated noise of unit variance: correlation phi ** k at lag k."""
    noise = rng.normal(size=n) * math.sqrt(1 - phi**2)
    noise[0] /= math.sqrt(1 - phi**2)
    made = np.empty(n)
    level = 0.0
    for place, value in enumerate(noise):
        level = phi * level + value
        made[place] = level
    return made


def test_autocorrelation_against_its_definition() -> None:
    x = np.random.default_rng(8).normal(size=200)
    centred = x - x.mean()
    wanted = [(centred[:-k] * centred[k:]).sum() / (centred**2).sum() for k in range(1, 6)]
    np.testing.assert_allclose(autocorrelation(x, 5), wanted, atol=1e-12)
    assert autocorrelation(np.ones(10), 3).tolist() == [0.0] * 3


def test_blocks_grow_with_correlation() -> None:
    rng = np.random.default_rng(9)
    lengths = [
        np.mean([block_length(ar1(1000, phi, rng)) for _ in range(10)]) for phi in (0, 0.5, 0.9)
    ]
    assert lengths[0] < 4 < lengths[1] < lengths[2] < 100
    assert block_length(np.ones(100)) == 1.0
    assert block_length(np.arange(3.0)) == 1.0


def test_effective_number() -> None:
    rng = np.random.default_rng(10)
    assert effective_number(rng.normal(size=5000)) > 4000
    # AR(1) of phi tells as much as n (1 - phi) / (1 + phi) independent samples.
    numbers = [effective_number(ar1(5000, 0.8, rng)) for _ in range(10)]
    assert np.mean(numbers) == pytest.approx(5000 * 0.2 / 1.8, rel=0.2)
