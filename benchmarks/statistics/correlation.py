"""How much neighbours in a sequence resemble each other, and what follows for resampling it."""

from __future__ import annotations

import math

import numpy as np


def autocorrelation(series: np.ndarray, lags: int) -> np.ndarray:
    """Autocorrelations at lags 1 to ``lags``; zeros where the series does not vary."""
    centred = np.asarray(series, np.float64) - np.mean(series)
    n = len(centred)
    lags = min(lags, n - 1)
    power = np.fft.rfft(centred, 1 << max(1, 2 * n - 1).bit_length())
    products = np.fft.irfft(power * power.conj())[: lags + 1]
    varies = products[0] > 1e-24 * max(1.0, float(np.abs(series).max()) ** 2) * n
    return products[1:] / products[0] if varies else np.zeros(lags)


def block_length(series: np.ndarray) -> float:
    """Mean length of the stationary bootstrap's blocks (Politis, White 2004, section 3.2)."""
    n = len(series)
    if n < 8:
        return 1.0
    run = max(5, math.ceil(math.sqrt(math.log10(n))))
    rho = autocorrelation(series, math.ceil(math.sqrt(n)) + run)
    small = np.abs(rho) < 2 * math.sqrt(math.log10(n) / n)
    # The first lag after which `run` correlations in a row are negligible.
    quiet = np.convolve(small, np.ones(run), "valid") == run
    last = int(np.argmax(quiet)) if quiet.any() else int(np.flatnonzero(~small)[-1]) + 1
    bandwidth = min(2 * max(1, last), len(rho))
    k = np.arange(1, bandwidth + 1)
    window = np.clip(2 * (1 - k / bandwidth), 0, 1)  # flat top, then a slope
    slope = 2 * float((window * k * rho[:bandwidth]).sum())
    spectrum = 1 + 2 * float((window * rho[:bandwidth]).sum())
    longest = math.ceil(min(3 * math.sqrt(n), n / 3))
    if spectrum <= 0:
        return float(longest) if slope > 0 else 1.0
    return float(np.clip((slope / spectrum) ** 2 * n, 1, longest**3) ** (1 / 3))


def effective_number(series: np.ndarray) -> float:
    """How many independent samples tell as much about the mean as this series does."""
    n = len(series)
    rho = autocorrelation(series, max(1, n // 4))
    # Geyer's initial positive sequence: sums of neighbouring pairs, until one is not positive.
    pairs = 1 + rho[0] if len(rho) else 1.0
    total = 0.0
    for k in range(1, len(rho), 2):
        if pairs <= 0:
            break
        total += pairs
        pairs = rho[k] + rho[k + 1] if k + 1 < len(rho) else 0.0
    return float(min(n, n / max(2 * total - 1, 1.0)))
