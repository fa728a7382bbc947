"""What ``deploy/jetson.md`` says is what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deploy.machine.jetpack import RELEASES
from deploy.power.boards import SUPPLIES, Supply

TEXT = (Path(__file__).parents[2] / "deploy/jetson.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TEXT.splitlines()
    if line.startswith("|")
]


@pytest.mark.parametrize("supply", SUPPLIES, ids=lambda supply: supply.board)
def test_totals(supply: Supply) -> None:
    name = supply.board.replace("Jetson ", "")
    rows = [row for row in ROWS if len(row) == 3 and re.search(rf"\b{name}\b(?! 2GB)", row[0])]
    total = next(row[1] for row in rows if supply.measurable == ("`" in row[1]))
    assert re.findall(r"`(\w+)`", total) == [*supply.total, *supply.beside]


def test_jetpacks() -> None:
    rows = [row for row in ROWS if len(row) == 6 and row[0][:1].isdigit()]
    told = {(row[3], row[4], row[5]) for row in rows}
    # 4.6 and 5.0 are known to the code as the start of the lines that the table names.
    known = {(r.python, r.cuda, r.tensorrt) for r in RELEASES if r.version not in ("4.6", "5.0.2")}
    assert told == known


def test_the_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "".join(f"{1_795_000_000 + i / 10:.1f},{5 + i % 3}\n" for i in range(900))
    (tmp_path / "analyser.csv").write_text(f"unix_s,power_w\n{rows}")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    exec(code, {})
    assert "'total_j': 0.003" in capsys.readouterr().out
