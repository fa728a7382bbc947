"""NVML: every metric is tried, and what is not supported is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from deploy.errors import DeviceError
from deploy.power.nvml import NvmlSource, describe_cards, visible_device


def test_counter_and_power_stand_side_by_side(fake_nvml: Callable[..., Any]) -> None:
    nvml = fake_nvml()
    source = NvmlSource(nvml, nvml.card)
    first, second = source.read(), source.read()
    assert first.power_w == 100.0  # of the moment, not the average, which is half a watt lower
    assert first.energy_j is not None and second.energy_j is not None
    assert second.energy_j - first.energy_j == pytest.approx(1.5)
    assert source.method == "power and energy counter"
    assert "POWER_INSTANT" in source.describe()["remarks"][0]


def test_older_cards_average(fake_nvml: Callable[..., Any]) -> None:
    nvml = fake_nvml(without=("instant", "energy"))
    source = NvmlSource(nvml, nvml.card)
    reading = source.read()
    assert (reading.power_w, reading.energy_j) == (99.5, None)
    told = source.describe()
    assert told["metrics"] == {
        "energy": "Not Supported",
        "instant": "Not Supported",
        "usage": "supported",
    }
    assert "averages" in told["remarks"][0]


def test_a_jetson_opens_and_supports_nothing(fake_nvml: Callable[..., Any]) -> None:
    everything = ("instant", "usage", "energy")
    nvml = fake_nvml(without=everything, name=b"Orin (nvgpu)")
    with pytest.raises(DeviceError, match=r"Orin \(nvgpu\) opens but tells no power") as caught:
        NvmlSource(nvml, nvml.card)
    assert all(f"{metric}: Not Supported" in str(caught.value) for metric in everything)


def test_bindings_that_do_not_name_the_field(fake_nvml: Callable[..., Any]) -> None:
    nvml = fake_nvml()
    del nvml.NVML_FI_DEV_POWER_INSTANT
    assert NvmlSource(nvml, nvml.card).read().power_w == 100.0


def test_a_card_that_falls_off_the_bus(fake_nvml: Callable[..., Any]) -> None:
    nvml = fake_nvml()
    source = NvmlSource(nvml, nvml.card)

    def lost(handle: object) -> int:
        raise nvml.NVMLError(999)

    nvml.nvmlDeviceGetTotalEnergyConsumption = lost
    with pytest.raises(DeviceError, match="nvml: Fast Card: Unknown Error"):
        source.read()


def test_the_visible_card(fake_nvml: Callable[..., Any]) -> None:
    asked: list[Any] = []
    nvml = fake_nvml()
    nvml.nvmlDeviceGetHandleByIndex = lambda index: asked.append(index)
    nvml.nvmlDeviceGetHandleByUUID = lambda uuid: asked.append(uuid)
    for visible in ({}, {"CUDA_VISIBLE_DEVICES": "3,1"}, {"CUDA_VISIBLE_DEVICES": "GPU-ab"}):
        visible_device(nvml, visible)
    assert asked == [0, 3, "GPU-ab"]


@pytest.mark.parametrize(
    ("names", "told", "clear"),
    [
        (("T1000", "RTX 4090"), {}, False),
        (("T1000", "RTX 4090"), {"CUDA_VISIBLE_DEVICES": "1"}, False),
        (("T1000", "RTX 4090"), {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, True),
        (("T1000", "RTX 4090"), {"CUDA_VISIBLE_DEVICES": "GPU-ab"}, True),
        (("A100", "A100"), {}, True),
    ],
)
def test_which_of_several_cards_is_never_guessed(
    fake_nvml: Callable[..., Any], names: tuple[str, ...], told: dict[str, str], clear: bool
) -> None:
    nvml = fake_nvml()
    nvml.nvmlDeviceGetCount = lambda: len(names)
    nvml.nvmlDeviceGetHandleByIndex = names.__getitem__
    nvml.nvmlDeviceGetName = lambda card: card
    if clear:
        visible_device(nvml, told)
    else:
        with pytest.raises(DeviceError, match=r"RTX 4090 and T1000.*CUDA_DEVICE_ORDER=PCI_BUS_ID"):
            visible_device(nvml, told)


def test_cards_tell_what_they_know(fake_nvml: Callable[..., Any]) -> None:
    (card,) = describe_cards(fake_nvml(without=("clocks", "limit")))
    assert card["compute_capability"] == 9.0
    assert card["sm_clock_mhz"] is None
    unknown = {name for name, value in card.items() if value is None}
    assert unknown == set(card["missing"])
    assert set(card["missing"].values()) == {"Not Supported"}
    assert json.loads(json.dumps(card)) == card
