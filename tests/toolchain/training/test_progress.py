"""Progress: what is shown with, and without, a terminal."""

from __future__ import annotations

import io

from rich.console import Console

from toolchain.training.progress import Progress, Task, duration


def shown(progress: Progress, text: io.StringIO) -> list[str]:
    with progress.stage("pqk-prune", 3, 8), progress.training("phase 1", 100) as task:
        task.show(40, 960.0, {"loss": 1.25, "sparsity": 0.3})
        task.epoch(1, 2, {"validation top1": 86.1})
        with progress.stage("inner", 1, 1):
            progress.say("deeper")
    return text.getvalue().splitlines()


def plain(every_s: float | None = None) -> tuple[Progress, io.StringIO]:
    text = io.StringIO()
    return Progress(plain=True, console=Console(file=text, width=200), every_s=every_s), text


def test_plain_lines_say_stage_step_throughput_loss_sparsity_and_eta() -> None:
    lines = shown(*plain())
    assert lines[0] == "[3/8] pqk-prune"
    for part in (
        "phase 1:  40%",
        "step 40/100",
        "960 images/s",
        "loss 1.25",
        "sparsity 0.3",
        "ETA",
    ):
        assert part in lines[1]
    assert "epoch 1/2" in lines[2]
    assert "validation top1 86.1" in lines[2]
    assert lines[3] == "  [1/1] inner"
    assert lines[4] == "    deeper"
    assert lines[-1].startswith("  done in ")


def test_without_a_terminal_lines_are_plain() -> None:
    text = io.StringIO()
    shown(Progress(console=Console(file=text, width=200)), text)
    assert "\x1b" not in text.getvalue()
    assert "step 40/100" in text.getvalue()


def test_on_a_terminal_the_line_is_live() -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=120)
    shown(Progress(console=console), text)
    assert "\x1b[" in text.getvalue()
    assert "step 40/100" in text.getvalue()
    assert "validation top1 86.1" in text.getvalue()


def test_quiet_says_nothing() -> None:
    text = io.StringIO()
    assert shown(Progress(quiet=True, console=Console(file=text)), text) == []


def test_nothing_is_due_right_after_it_was_shown() -> None:
    progress, _ = plain(every_s=3600.0)
    task = Task(progress, "x", 10, 0)
    assert task.due()
    task.show(1, 0.0, {})
    assert not task.due()


def test_eta_needs_a_pace_and_ends_at_zero() -> None:
    progress, _ = plain()
    task = Task(progress, "x", 10, 4)
    assert task.eta_s() is None
    task.show(10, 0.0, {})
    assert task.eta_s() == 0.0


def test_durations() -> None:
    assert [duration(s) for s in (0.0, 59.9, 60, 3599.6, 3661)] == [
        "0.0 s",
        "59.9 s",
        "1:00",
        "1:00:00",
        "1:01:01",
    ]
