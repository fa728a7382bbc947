"""The dean's network: exactly 1 at first, inside its ranges always, and back from its file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from deploy.errors import ConfigError
from toolchain.dean.network import FILE, DeanNetwork
from toolchain.dean.state import FEATURES


@given(st.floats(1.01, 50.0), st.floats(1.01, 50.0), st.integers(0, 100))
def test_at_first_every_factor_is_exactly_one(alpha_max: float, beta_max: float, seed: int) -> None:
    dean = DeanNetwork(alpha_max, beta_max, seed)
    a_R, b_R = dean(torch.randn(5, len(FEATURES)))
    assert (dean.alpha(a_R) == 1.0).all() and (dean.beta(b_R) == 1.0).all()


@given(st.floats(-200, 200), st.floats(1.1, 20.0))
def test_factors_stay_in_their_range(bias: float, largest: float) -> None:
    dean = DeanNetwork(largest, 2 * largest, 0)
    with torch.no_grad():
        dean.layers[4].bias.fill_(bias)
    a_R, b_R = dean(torch.randn(3, len(FEATURES)))
    alpha_R, beta_R = dean.alpha(a_R), dean.beta(b_R)
    assert (alpha_R >= 0).all() and (alpha_R <= largest * (1 + 1e-5)).all()
    assert (beta_R >= 0).all() and (beta_R <= 2 * largest * (1 + 1e-5)).all()


def test_rows_do_not_see_each_other() -> None:
    dean = DeanNetwork(2.0, 2.0, 0)
    torch.nn.init.normal_(dean.layers[4].weight)
    state_RF = torch.randn(4, len(FEATURES))
    together, alone = dean(state_RF)[0], dean(state_RF[2:3])[0]
    torch.testing.assert_close(together[2:3], alone)


def test_it_comes_back_from_its_file(tmp_path: Path) -> None:
    dean = DeanNetwork(3.0, 1.5, 4)
    torch.nn.init.normal_(dean.layers[4].weight)
    dean.noise = ("at@layer1", "conv1,conv2")
    dean.save(tmp_path / FILE, {"terms": "kl"})
    again = DeanNetwork.load(tmp_path / FILE)
    state_RF = torch.randn(4, len(FEATURES))
    assert (again.alpha_max, again.beta_max) == (3.0, 1.5)
    assert again.noise == dean.noise
    for one, other in zip(dean(state_RF), again(state_RF), strict=True):
        assert torch.equal(one, other)


def test_files_that_are_no_dean_are_refused_in_a_line(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    (tmp_path / "text").write_text("no tensors at all")
    for name, message in (
        ("other.safetensors", "looks at nothing known"),
        ("text", "cannot be read"),
        ("missing", "cannot be read"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            DeanNetwork.load(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("facts", "drop", "message"),
    [
        ({"noise": 5}, "", "cannot be read .noise: Input should be a valid tuple"),
        ({"alpha_max": 0.5}, "", "cannot be read .alpha_max: Input should be greater than 1"),
        ({}, "layers.4.bias", "its tensors are not those of a dean"),
        ({"features": 3}, "", "looks at nothing known"),
        (None, "", "looks at nothing known"),
    ],
)
def test_a_damaged_dean_is_refused_in_a_line(
    facts: dict[str, Any] | None, drop: str, message: str, tmp_path: Path
) -> None:
    dean = DeanNetwork(3.0, 1.5, 4)
    known = {"alpha_max": 3.0, "beta_max": 1.5, "features": list(FEATURES), "noise": []}
    text = json.dumps([1, 2] if facts is None else known | facts)
    tensors = {name: value for name, value in dean.state_dict().items() if name != drop}
    save_file(tensors, tmp_path / FILE, metadata={"dean": text})
    with pytest.raises(ConfigError, match=message) as caught:
        DeanNetwork.load(tmp_path / FILE)
    assert "\n" not in str(caught.value)


def test_its_file_has_the_same_bytes_whenever_it_is_written(tmp_path: Path) -> None:
    """A file that ``load`` names is part of the key of what is trained with it."""
    facts = {"terms": "kl,at@layer1", "probes": "7"}
    files = [tmp_path / f"{number}.safetensors" for number in range(8)]
    for file in files:
        DeanNetwork(3.0, 1.5, 4).save(file, facts)
    assert len({file.read_bytes() for file in files}) == 1
