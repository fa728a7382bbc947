"""The throughput tables: how they are summarized, and where they are written."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from toolchain.quantization import kernels
from toolchain.training.bench.__main__ import main
from toolchain.training.bench.measuring import Mode
from toolchain.training.bench.table import cost_rows, printed, rows, tables
from toolchain.training.bench.ways import KD, PLAIN

MODES = (PLAIN, "quantization-aware", "PQK phase 1", "PQK phase 2")
TINY = ("--depth", "8", "--batch", "2", "--seconds", "0.01", "--rounds", "2")
TINY = (*TINY, "--only", "compression", "--precision", "float32")


@pytest.fixture(autouse=True)
def few_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    kernels.use_compiled(False)


def test_medians_and_ranges_over_the_rounds() -> None:
    speeds, ratios = (1000.0, 3000.0, 1500.0), (0.5, 0.9, 0.7)
    assert rows([Mode("a", speeds, ratios)]) == [
        ("a", "1,500", "1,000 to 3,000", "0.70", "0.50 to 0.90")
    ]


@pytest.mark.parametrize(
    ("times", "said"),
    [((1.0, 1.15, 3.0), "at most 1.15: met"), ((1.0, 1.16, 1.2), "at most 1.15: MISSED")],
)
def test_what_was_asked_for_is_held_against_the_median(times: tuple[float, ...], said: str) -> None:
    dean = Mode("dean", (1.0,) * 3, (1.0,) * 3, KD, times, 1.15, taught=True)
    (row,) = cost_rows([Mode(PLAIN, (1.0,) * 3, (1.0,) * 3, PLAIN, (1.0,) * 3), dean])
    assert row == ("dean", KD, f"{times[1]:.2f}", f"{times[0]:.2f} to {times[2]:.2f}", said)


def test_without_teachers_there_is_one_table() -> None:
    plain = Mode(PLAIN, (1.0,), (1.0,), PLAIN, (1.0,))
    assert len(tables([plain])) == 1
    taught = Mode("kd", (1.0,), (1.0,), PLAIN, (2.0,), taught=True)
    _, costs = tables([plain, taught])
    assert list(printed(costs)) == [
        "a step of  in steps of     times    min to max  asked for",
        "kd         plain training   2.00  2.00 to 2.00",
    ]


def test_the_page_has_what_was_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "table.md"
    assert main([*TINY, "--out", str(out)]) == 0
    shown, text = capsys.readouterr().out.splitlines(), out.read_text()
    table = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert [line[0] for line in table[2:]] == list(MODES)
    for line in table[2:]:
        assert any(one.split() == " ".join(line).split() for one in shown)
    for word in ("ResNet-8, batch 2", "rounds: 2", "hardware: ", "torch ", "--rounds 2"):
        assert word in text


def test_json_has_every_round(tmp_path: Path) -> None:
    out = tmp_path / "table.json"
    assert main([*TINY, "--out", str(out)]) == 0
    plain, *others = json.loads(out.read_text())["modes"]
    assert plain["ratios"] == [1.0, 1.0]
    for mode in others:
        found = [
            one / two for one, two in zip(mode["images_per_s"], plain["images_per_s"], strict=True)
        ]
        assert mode["ratios"] == pytest.approx(found)
        assert mode["times"] == pytest.approx([1 / one for one in found])
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
    assert main([*TINY, *arguments]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("option", ["--batch", "--rounds", "--seconds", "--threads"])
def test_numbers_are_above_zero(option: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main([option, "0"])
    assert caught.value.code == 2
