"""Losses by name: what they accept, what they need, and how a mistake is reported."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from deploy.errors import ConfigError
from toolchain.distillation.losses.entry import LOSSES, LossEntry, distillation_loss
from toolchain.distillation.losses.logits import kl, logit_mse

ALL = (
    *("ab", "at", "cc", "crd", "dist", "dkd", "fitnet", "fsp", "ft"),
    *("kl", "logit_mse", "nst", "ofa", "pkt", "rkd", "sp", "vid"),
)


def test_all_are_there_without_importing_them_by_hand() -> None:
    line = "from toolchain.distillation.losses.entry import LOSSES; print(*LOSSES)"
    done = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=True)
    assert tuple(done.stdout.split()) == ALL


@pytest.mark.parametrize("name", ALL)
def test_every_loss_says_where_it_comes_from_and_what_it_computes(name: str) -> None:
    entry = LOSSES[name]
    assert entry.name == name
    assert entry.source
    assert entry.equation
    assert "\n" not in entry.equation
    assert entry.match in ("classes", "shape", "positions", "batch", "exit", "pair", "own")


def test_customary_strengths_are_those_of_the_comparisons() -> None:
    found = {name: entry.default_strength for name, entry in LOSSES.items()}
    assert {k: v for k, v in found.items() if v and v > 1} == {
        **{"fitnet": 100, "at": 1000, "sp": 3000, "pkt": 30000, "ft": 200, "nst": 50, "fsp": 50},
        "dist": 2,
    }
    assert (found["cc"], found["crd"], found["vid"], found["kl"]) == (0.02, 0.8, 1, None)


def test_what_is_needed_of_a_batch() -> None:
    needs = {name: set(entry.needs) for name, entry in LOSSES.items() if entry.needs}
    assert needs == {"dkd": {"labels_B"}, "ofa": {"labels_B"}, "crd": {"labels_B", "index_B"}}


def test_a_name_has_one_owner() -> None:
    with pytest.raises(ValueError, match="already"):
        distillation_loss("kl", match="shape", source="somebody else")(logit_mse)
    assert LOSSES["kl"].function is kl


def test_a_loss_is_a_function_or_a_module() -> None:
    with pytest.raises(ValueError, match="either"):
        LossEntry("none", None, "shape", "test")


def test_an_unknown_loss_lists_the_known_ones_and_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'at'.*'kl'.*did you mean 'kl'"):
        LOSSES.look_up("kll")


def test_options_are_bound() -> None:
    s, t = torch.randn(3, 4), torch.randn(3, 4)
    assert float(LOSSES["kl"].bind(temperature=2.0)(s, t)) == float(kl(s, t, 2.0))
    learned = LOSSES["kl"].bind(temperature=torch.tensor(2.0))
    assert float(learned(s, t)) == pytest.approx(float(kl(s, t, 2.0)))


def test_a_module_is_made_of_two_shapes() -> None:
    module = LOSSES["cc"].bind(dimensions=5)((2, 3, 4, 4), (2, 7))
    assert isinstance(module, nn.Module)
    assert module.student.linear.weight.shape == (5, 3)
    assert module.teacher.linear.weight.shape == (5, 7)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("kl", {"temprature": 2.0}, "unknown 'temprature'.*did you mean 'temperature'"),
        ("at", {"temperature": 2.0}, "unknown 'temperature'"),
        ("dkd", {"labels_B": 2.0}, "unknown 'labels_B'"),
        ("kl", {"temperature": 0.0}, r"\.temperature: 0.0 given; accepted is greater than 0"),
        ("kl", {"temperature": "warm"}, "'warm' given; accepted is a valid number"),
        ("kl", {"temperature": float("nan")}, "nan given"),
        ("ofa", {"form": "coda"}, r"ofa\).form: 'coda' given; accepted is 'code' or 'paper'"),
        ("ofa", {"gamma": -1}, "accepted is greater than 0"),
        ("rkd", {"angle": -1}, "accepted is greater than or equal to 0"),
        ("crd", {"negatives": 0.5}, "accepted is a valid integer"),
        ("crd", {"other_classes": "no"}, "accepted is a valid boolean"),
        ("ft", {"share": 1.5}, "accepted is less than or equal to 1"),
    ],
)
def test_mistakes_are_one_line(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        LOSSES[name].bind(**options)
    assert "\n" not in str(error.value)


def test_a_loss_of_ones_own() -> None:
    def spread(student: Tensor, teacher: Tensor, labels_B: Tensor, power: float = 2.0) -> Tensor:
        return (student - teacher).abs().pow(power).mean()

    entry = LossEntry("spread", spread, "shape", "test")
    assert entry.options == {"power": 2.0}
    assert entry.needs == {"labels_B"}
    with pytest.raises(ConfigError, match=r"spread\).power: 'x' given"):
        entry.bind(power="x")
