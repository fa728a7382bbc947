"""Other tools' graphs: the linter foretells what importer and runtime do with them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from toolchain.proof import peers


@pytest.mark.slow  # quantizes and exports a network nine times
def test_every_peer_is_foretold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    out = tmp_path / "peers.md"
    assert peers.main(["--depth", "8", "--out", str(out)]) == 0
    text = out.read_text()
    assert text == capsys.readouterr().out.removesuffix("\n")
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")][2:]
    by_setting = {row[1]: row for row in rows}
    assert "WEIGHT-BIAS" in by_setting["defaults"][2]
    assert by_setting["defaults"][3].startswith("refuses")
    assert by_setting["QInt8, symmetric, per channel, QuantizeBias=False"][3] == "accepts"
    assert by_setting["target tensorrt"][2:4] == ["nothing", "accepts"]
    if importlib.util.find_spec("torchao") is None:
        assert by_setting["x86_inductor"][2] == "torchao is not installed"


def test_findings_are_counted_by_rule_and_errors_are_bold() -> None:
    def finding(rule: str, level: peers.Finding) -> peers.Finding:
        return peers.Finding(rule, level, "node", "message", "remedy")  # type: ignore[arg-type]

    found = [finding("A", "error"), finding("A", "error"), finding("B", "warning")]  # type: ignore[arg-type]
    assert peers._rules(found) == "**A × 2**; B × 1"
    assert peers._rules([finding("C", "note")]) == "nothing"  # type: ignore[arg-type]
