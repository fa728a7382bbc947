"""The throughput table: what it measures, how it is summarized, and where it is written."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
import torch

from toolchain.quantization import kernels
from toolchain.structure.masks import hidden_share
from toolchain.training import bench as training_bench
from toolchain.training.bench import PLAIN, Bench, Mode, main, rows
from toolchain.training.precision import choose_precision

MODES = (PLAIN, "quantization-aware", "PQK phase 1", "PQK phase 2")
TINY = ("--depth", "8", "--batch", "2", "--seconds", "0.01", "--rounds", "2")


@pytest.fixture(autouse=True)
def few_threads() -> object:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    kernels.use_compiled(False)


def test_medians_and_ranges_over_the_rounds() -> None:
    speeds, ratios = (1000.0, 3000.0, 1500.0), (0.5, 0.9, 0.7)
    assert rows([Mode("a", speeds, ratios)]) == [
        ("a", "1,500", "1,000 to 3,000", "0.70", "0.50 to 0.90")
    ]


def test_modes_take_turns_and_ratios_stay_within_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock of our own: each round is slower than the last, and no ratio sees it."""
    bench = Bench(8, 2, choose_precision("float32", "cpu"))
    calls: list[tuple[str, int]] = []
    share = dict(zip(MODES, (1.0, 0.8, 0.6, 0.4), strict=True))

    def train(name: str, steps: int) -> float:
        calls.append((name, steps))
        turn = (len(calls) - 1) // len(MODES)
        return 100.0 * share[name] / (1 + turn)

    monkeypatch.setattr(bench, "train", train)
    modes = bench.measure(seconds=4.0, rounds=3)
    assert [name for name, _ in calls] == list(MODES) * 5
    assert [mode.ratios for mode in modes] == [pytest.approx((one,) * 3) for one in share.values()]
    paces = {name: 50.0 * one for name, one in share.items()}
    assert calls[-4:] == [(name, round(4.0 * pace / 2)) for name, pace in paces.items()]


def test_every_mode_trains_what_it_says() -> None:
    bench = Bench(8, 2, choose_precision("float32", "cpu"))
    assert tuple(bench.modes) == MODES
    hidden = {}
    for name, (network, objective) in bench.modes.items():
        before = {key: value.clone() for key, value in network.state_dict().items()}
        assert bench.train(name, 2) > 0
        after = network.state_dict()
        assert any(not torch.equal(before[key], after[key]) for key in before)
        hidden[name] = hidden_share(network) if name.startswith("PQK") else 0.0
        assert [update.name for update in objective.updates] == (
            ["teacher", "student"] if name == "PQK phase 2" else ["task"]
        )
        quantized = any("quantizer" in key for key in after)
        assert quantized == (name != PLAIN)
    assert hidden["PQK phase 1"] == hidden["PQK phase 2"] > 0.5


def test_the_page_has_what_was_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "table.md"
    assert main([*TINY, "--precision", "float32", "--out", str(out)]) == 0
    printed, text = capsys.readouterr().out.splitlines(), out.read_text()
    table = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert [line[0] for line in table[2:]] == list(MODES)
    for line in table[2:]:
        assert any(shown.split() == " ".join(line).split() for shown in printed)
    for word in ("ResNet-8, batch 2", "rounds: 2", "hardware: ", "torch ", "--rounds 2"):
        assert word in text


def test_json_has_every_round(tmp_path: Path) -> None:
    out = tmp_path / "table.json"
    assert main([*TINY, "--precision", "float32", "--out", str(out)]) == 0
    plain, *others = json.loads(out.read_text())["modes"]
    assert plain["ratios"] == [1.0, 1.0]
    for mode in others:
        found = [
            one / two for one, two in zip(mode["images_per_s"], plain["images_per_s"], strict=True)
        ]
        assert mode["ratios"] == pytest.approx(found)
        assert statistics.median(mode["images_per_s"]) > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--out", "table.txt"), "accepted is a file that ends in .md or .json"),
        (("--depth", "9"), "depth"),
    ],
)
def test_what_a_user_can_fix_is_one_line(
    arguments: tuple[str, str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TINY, "--precision", "float32", *arguments]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("option", ["--batch", "--rounds", "--seconds", "--threads"])
def test_numbers_are_above_zero(option: str) -> None:
    with pytest.raises(SystemExit) as caught:
        training_bench.main([option, "0"])
    assert caught.value.code == 2
