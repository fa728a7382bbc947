"""A bar on a terminal, lines elsewhere; neither draws from a thread of its own."""

from __future__ import annotations

import io
import threading

import pytest
from rich.console import Console

from toolchain.measuring import progress_bars
from toolchain.measuring.progress_bars import Bars


def test_elsewhere_there_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress_bars.time, "monotonic", lambda: now[0])
    with Bars(Console(file=io.StringIO(), force_terminal=False)) as bars:
        tell = bars.add("board")
        for second in range(0, 41):
            now[0] = float(second)
            tell("single-stream", second / 40)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "board: single-stream  25%  30 s left"
    assert len(lines) == 4
    assert capsys.readouterr().out == ""


def test_on_a_terminal_there_is_a_bar_and_no_thread() -> None:
    shown = io.StringIO()
    threads = threading.active_count()
    with Bars(Console(file=shown, force_terminal=True, width=100)) as bars:
        assert threading.active_count() == threads
        first, second = bars.add("a"), bars.add("b")
        first("single-stream", 0.5)
        second("loading", 1.0)
    assert "a: single-stream" in shown.getvalue()
    assert "b: loading" in shown.getvalue()
    assert "50%" in shown.getvalue()
