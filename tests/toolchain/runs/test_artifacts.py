"""Artifacts are keyed by what they depend on, written whole or not at all, and found again."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from deploy.errors import StorageError
from toolchain.recipe.base import Frozen
from toolchain.recipe.schema import Recipe
from toolchain.runs.artifacts import Artifact, RunContext, Stage, is_disk_full, run_stages
from toolchain.runs.lock import KeyLock, remove_dead_scratch

ROOT = Path(__file__).parents[3]
RAN: list[str] = []
Behaviour = Callable[[Path, RunContext], None]


class Write(Frozen):
    """Writes its number behind what the source holds."""

    stage: Literal["write"] = "write"
    number: int = 0
    uses: ClassVar[tuple[str, ...]] = ("goals",)
    version: ClassVar[int] = 1
    before: ClassVar[Behaviour | None] = None
    metrics: ClassVar[dict[str, float]] = {"top1": 50.0}

    def run(self, source: Artifact, out: Path, ctx: RunContext) -> dict[str, float]:
        RAN.append(f"{self.stage} {self.number}")
        behaviour = type(self).before
        if behaviour is not None:
            behaviour(out, ctx)
        held = (source.root / "text").read_text() if source.stage else ""
        (out / "text").write_text(f"{held}{self.number}")
        return self.metrics


class Marked(Write):
    """The same, with a fingerprint that is not in the recipe."""

    stage: Literal["marked"] = "marked"  # type: ignore[assignment]
    mark: ClassVar[str] = "a"

    def fingerprint(self, ctx: RunContext) -> str:
        return self.mark


@pytest.fixture(autouse=True)
def fresh() -> None:
    RAN.clear()


def recipe_of(*stages: Stage, **sections: Any) -> Recipe:
    base = Recipe.model_validate(
        {"name": "t", "model": {"builtin": "mlp"}, "data": {"kind": "digits"}, **sections}
    )
    return base.model_copy(update={"stages": list(stages)})


def behave(monkeypatch: pytest.MonkeyPatch, behaviour: Behaviour) -> None:
    monkeypatch.setattr(Write, "before", staticmethod(behaviour))


def left(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "artifacts").iterdir())


def test_stages_run_in_order_and_only_once(tmp_path: Path) -> None:
    recipe = recipe_of(Write(number=1), Write(number=2))
    first = run_stages(recipe, tmp_path)
    again = run_stages(recipe, tmp_path)
    assert first == again
    assert RAN == ["write 1", "write 2"]
    assert (first.root / "text").read_text() == "12"
    assert len(left(tmp_path)) == 2


def test_the_record_says_what_the_artifact_depends_on(tmp_path: Path) -> None:
    last = run_stages(recipe_of(Write(), Marked(number=2), seed=7, goals={"macs": 0.5}), tmp_path)
    source = last.source
    assert source is not None
    record = json.loads((last.root / "artifact.json").read_text())
    assert record["stage"] == "marked"
    assert record["config"] == {"stage": "marked", "number": 2}
    assert record["seed"] == 7
    assert record["source"] == source.key
    assert record["recipe"]["goals"]["macs"] == 0.5
    assert record["fingerprint"] == "a"
    assert record["metrics"] == {"top1": 50.0} == last.metrics
    assert record["seconds"] >= 0
    assert {"python", "torch"} <= set(record["versions"])
    assert last.root == tmp_path / "artifacts" / f"marked-{last.key[:16]}"


def test_lineage_leads_back(tmp_path: Path) -> None:
    last = run_stages(recipe_of(Marked(), Write(number=1), Write(number=2)), tmp_path)
    assert [artifact.stage for artifact in last.lineage()] == ["write", "write", "marked"]
    assert (last.find("marked").root / "text").read_text() == "0"
    assert last.find("write") is last
    with pytest.raises(KeyError):
        last.find("nosuch")


def test_the_key_changes_with_everything_it_should_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key(*stages: Stage, **sections: Any) -> str:
        return run_stages(recipe_of(*stages, **sections), tmp_path).key

    keys = [
        key(Write()),
        key(Write(number=1)),
        key(Marked()),
        key(Write(), seed=1),
        key(Write(), goals={"macs": 0.5}),
        key(Write(number=2), Write()),
        key(Write(number=3), Write()),
    ]
    assert len(set(keys)) == len(keys)
    assert key(Write(), threads=1, structure={"align": 8}) == keys[0]
    monkeypatch.setattr(Marked, "mark", "b")
    assert key(Marked()) != keys[2]
    monkeypatch.setattr(Write, "version", 2)
    assert key(Write()) != keys[0]


def test_a_stage_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(out: Path, ctx: RunContext) -> None:
        (out / "half").write_text("half")
        raise ZeroDivisionError

    behave(monkeypatch, fail)
    with pytest.raises(ZeroDivisionError):
        run_stages(recipe_of(Write()), tmp_path)
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("Error: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
        OSError("400000 requested and 64480 written"),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_full_disk_is_one_line_and_no_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, wrapped: bool
) -> None:
    def fill(out: Path, ctx: RunContext) -> None:
        (out / "half").write_text("half")
        if wrapped:
            raise RuntimeError("cannot save") from error
        raise error

    behave(monkeypatch, fill)
    with pytest.raises(StorageError) as caught:
        run_stages(recipe_of(Write()), tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'artifacts'}: the disk is full (write)")
    assert "\n" not in str(caught.value)
    assert left(tmp_path) == []
    monkeypatch.setattr(Write, "before", None)
    run_stages(recipe_of(Write()), tmp_path)
    assert len(left(tmp_path)) == 1


def test_a_disk_that_fills_with_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text = Path.write_text

    def full(path: Path, data: str, *args: Any, **kwargs: Any) -> int:
        if path.name == "artifact.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_text(path, data, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(StorageError, match="the disk is full"):
        run_stages(recipe_of(Write()), tmp_path)
    assert left(tmp_path) == []


def test_other_errors_are_not_a_full_disk() -> None:
    assert not is_disk_full(OSError(errno.EACCES, "Permission denied"))
    assert not is_disk_full(None)
    looped = RuntimeError("a")
    looped.__cause__ = looped
    assert not is_disk_full(looped)


def test_an_output_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    with pytest.raises(StorageError, match="cannot be written") as caught:
        run_stages(recipe_of(Write()), tmp_path / "runs")
    assert "--out" in str(caught.value)


def test_an_output_on_a_read_only_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StorageError, match=r"cannot be written \(Read-only file system\)"):
        run_stages(recipe_of(Write()), tmp_path / "runs")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_metric_that_is_no_number_is_a_bug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    monkeypatch.setattr(Write, "metrics", {"top1": value})
    with pytest.raises(RuntimeError, match="top1"):
        run_stages(recipe_of(Write()), tmp_path)
    assert left(tmp_path) == []


def test_a_section_that_no_recipe_has_is_a_bug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Write, "uses", ("nosuch",))
    with pytest.raises(RuntimeError, match="nosuch"):
        run_stages(recipe_of(Write()), tmp_path)


def test_a_damaged_artifact_is_named(tmp_path: Path) -> None:
    artifact = run_stages(recipe_of(Write()), tmp_path)
    (artifact.root / "artifact.json").write_text("{")
    with pytest.raises(StorageError, match="delete the folder") as caught:
        run_stages(recipe_of(Write()), tmp_path)
    assert str(artifact.root) in str(caught.value)


def test_an_interrupt_keeps_the_checkpoint_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(out: Path, ctx: RunContext) -> None:
        (out / "half").write_text("half")
        (ctx.scratch() / "state").write_text("step 7")
        raise KeyboardInterrupt

    behave(monkeypatch, interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_stages(recipe_of(Write()), tmp_path)
    (partial,) = left(tmp_path)
    assert partial.startswith(".partial-write-")
    seen = []

    def resume(out: Path, ctx: RunContext) -> None:
        assert list(out.iterdir()) == []
        seen.append((ctx.scratch() / "state").read_text())

    behave(monkeypatch, resume)
    run_stages(recipe_of(Write()), tmp_path)
    assert seen == ["step 7"]
    assert all(name.startswith("write-") for name in left(tmp_path))


def test_scratch_folders_exist_only_while_a_stage_runs(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="while a stage runs"):
        RunContext(recipe_of(), tmp_path).scratch()


KILLED = """
import os, signal, sys
from pathlib import Path
from typing import ClassVar, Literal
from toolchain.recipe.schema import Recipe
from toolchain.recipe.base import Frozen
from toolchain.runs.artifacts import run_stages

class Slow(Frozen):
    stage: Literal["slow"] = "slow"
    uses: ClassVar = ()
    version: ClassVar = 1
    def run(self, source, out, ctx):
        state = ctx.scratch() / "state"
        text = state.read_text() if state.exists() else ""
        for step in range(len(text), 6):
            text += str(step)
            (out / "text").write_text(text)
            state.write_text(text)
            if str(step) == sys.argv[2]:
                os.kill(os.getpid(), signal.SIGKILL)
        (out / "text").write_text(text)
        return {}

recipe = Recipe.model_validate(
    {"name": "t", "model": {"builtin": "mlp"}, "data": {"kind": "digits"}})
print(run_stages(recipe.model_copy(update={"stages": [Slow()]}), Path(sys.argv[1])).root)
"""


def test_a_killed_run_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    def run(out: str, kill_at: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", KILLED, str(tmp_path / out), kill_at],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )

    killed = run("killed", "3")
    assert killed.returncode == -signal.SIGKILL
    assert not list((tmp_path / "killed" / "artifacts").glob("slow-*"))
    resumed, whole = run("killed", "3"), run("whole", "never")
    folders = [Path(process.stdout.strip()) for process in (resumed, whole)]
    assert folders[0].name == folders[1].name
    assert (folders[0] / "text").read_bytes() == (folders[1] / "text").read_bytes() == b"012345"
    assert left(tmp_path / "killed") == [folders[0].name]


def test_scratch_of_the_living_stays_and_of_the_dead_goes(tmp_path: Path) -> None:
    for name in ("living", "dead"):
        (tmp_path / f".scratch-{name}").mkdir()
    with KeyLock(tmp_path, "living"):
        remove_dead_scratch(tmp_path)
        assert (tmp_path / ".scratch-living").exists()
        assert not (tmp_path / ".scratch-dead").exists()
    remove_dead_scratch(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_two_processes_do_not_make_the_same_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_again(out: Path, ctx: RunContext) -> None:
        with pytest.raises(StorageError, match="is making the same artifact") as caught:
            run_stages(recipe_of(Write()), tmp_path)
        assert str(os.getpid()) in str(caught.value)
        assert out.exists()

    behave(monkeypatch, run_again)
    run_stages(recipe_of(Write()), tmp_path)
    assert RAN == ["write 0"]
    assert len(left(tmp_path)) == 1


def test_a_lock_can_be_taken_again_after_its_holder(tmp_path: Path) -> None:
    lock, other = KeyLock(tmp_path, "a"), KeyLock(tmp_path, "a")
    assert lock.try_acquire()
    assert not other.try_acquire()
    lock.release()
    assert other.try_acquire()
    other.release()
    assert list(tmp_path.iterdir()) == []
