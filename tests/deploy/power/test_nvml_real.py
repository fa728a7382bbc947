"""A real graphics card: its counter against the integral of its power."""

from __future__ import annotations

import time

import pytest

from benchmarks.energy.per_inference import energy_per_inference
from deploy.machine.throttling import ThrottleWatch
from deploy.power.finding import find_meter
from deploy.power.nvml import describe_cards, open_nvml

pytestmark = [pytest.mark.gpu, pytest.mark.slow]


def test_counter_and_integral_agree_under_a_steady_load() -> None:
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    import torch

    a = torch.randn(4096, 4096, device="cuda")
    meter = find_meter(wanted="nvml", interval_s=0.02)
    meter.start()
    time.sleep(1.0)
    start, calls = time.monotonic(), 0
    while time.monotonic() - start < 6.0:
        a = torch.nn.functional.normalize(a @ a)
        torch.cuda.synchronize()
        calls += 1
    end = time.monotonic()
    time.sleep(1.0)
    energy = energy_per_inference(meter.stop(), [(start + 1.0, end)], calls)
    assert energy.why is None
    assert energy.by_counter_j is not None and energy.by_integration_j is not None
    assert energy.by_counter_j == pytest.approx(energy.by_integration_j, rel=0.15)


def test_a_card_describes_itself_and_is_watched() -> None:
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    card = describe_cards(open_nvml())[0]
    assert card["compute_capability"] >= 5.0
    assert card["sm_clock_mhz"] > 0
    watch = ThrottleWatch()
    watch.start()
    assert "clock event reasons" in watch.watched
    watch.stop()
