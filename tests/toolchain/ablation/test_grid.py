"""Whole ablations on a tiny recipe: shared artifacts, failures, resuming, several processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from toolchain.ablation import outcome, workers
from toolchain.ablation.equal_steps import with_equal_steps
from toolchain.ablation.grid import check_seeds
from toolchain.cli import app
from toolchain.data.loading import load_data
from toolchain.data.partition import hold_out
from toolchain.recipe.reading import load_recipe
from toolchain.runs.artifacts import RunContext

ROOT = Path(__file__).parents[3]


def ablate(recipe: Path, out: Path, *arguments: object) -> Result:
    given = ["ablate", recipe, "--out", out, "--plain", *arguments]
    return CliRunner().invoke(app, [str(argument) for argument in given])


def numbers(out: Path) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for run in json.loads((out / "quarters.ablation.json").read_text())["runs"]:
        found.setdefault(run["variant"], {})[run["seed"]] = run["test_top1"]
    return found


@pytest.fixture(scope="module")
def finished(quarters: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    out = tmp_path_factory.mktemp("runs")
    table = out / "table.md"
    return out, ablate(quarters, out, "--controllers", "fixed,none", "--seeds", 2, "--table", table)


def test_every_variant_runs_with_every_seed(finished: tuple[Path, Result]) -> None:
    out, result = finished
    assert result.exit_code == 0, result.output
    found = numbers(out)
    assert {name: sorted(seeds) for name, seeds in found.items()} == {
        "fixed": [0, 1],
        "none": [0, 1],
    }
    assert "Budgets are equal: every run trained for 4 steps of 16 images." in result.stdout
    assert "none - fixed:" in result.stdout
    page = (out / "table.md").read_text()
    assert page == (out / "quarters.ablation.md").read_text()
    # What both variants have in common was made once for each seed.
    made = [path.name.rsplit("-", 1)[0] for path in (out / "artifacts").iterdir() if path.is_dir()]
    assert sorted(made) == sorted(["teacher", "prune", "slim"] * 2 + ["recover"] * 4)


def test_the_test_part_is_read_once_and_the_number_is_right(finished: tuple[Path, Result]) -> None:
    out, _ = finished
    record = json.loads((out / "quarters.ablation.json").read_text())
    run = record["runs"][0]
    kept = json.loads((out / outcome.TESTED / f"{run['artifact']}.json").read_text())
    assert kept["top1"] == run["test_top1"] and kept["n"] == 20
    assert run["teacher_top1"] in (0.0, *(5.0 * n for n in range(1, 21)))


def test_the_same_command_makes_nothing_anew_and_more_seeds_add(
    finished: tuple[Path, Result], quarters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, _ = finished
    before = numbers(out)
    made: list[str] = []
    original = RunContext._make

    def noted(self: RunContext, *arguments: object) -> None:
        made.append(str(arguments[-1]).rsplit("-", 1)[0])
        original(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(RunContext, "_make", noted)
    assert ablate(quarters, out, "--controllers", "fixed,none", "--seeds", 2).exit_code == 0
    assert made == []
    assert ablate(quarters, out, "--controllers", "fixed,none", "--seeds", 3).exit_code == 0
    assert made == ["teacher", "prune", "slim", "recover", "recover"]
    after = numbers(out)
    assert {name: {s: after[name][s] for s in (0, 1)} for name in after} == before


@pytest.mark.parametrize("text", ["{", "[]", '{"top1": 50.0}'])
def test_a_damaged_result_of_a_test_is_named_with_what_to_do(
    finished: tuple[Path, Result], quarters: Path, text: str
) -> None:
    out, _ = finished
    run = json.loads((out / "quarters.ablation.json").read_text())["runs"][0]
    file = out / outcome.TESTED / f"{run['artifact']}.json"
    whole = file.read_text()
    try:
        file.write_text(text)
        again = ablate(quarters, out, "--controllers", "fixed,none", "--seeds", 2)
    finally:
        file.write_text(whole)
    assert again.exit_code == 1
    (failed,) = (line for line in again.stdout.splitlines() if line.startswith("FAILED"))
    assert f"{file}: no result of a test" in failed and "delete the file" in failed


@pytest.mark.parametrize("wrong", ["--table", "--out"])
def test_a_page_that_cannot_be_written_is_found_before_the_first_run(
    quarters: Path, tmp_path: Path, wrong: str
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.md").mkdir()
    places = {"--table": tmp_path / "folder.md", "--out": tmp_path / "file" / "runs"}
    for jobs in (1, 2):
        asked = ["--controllers", "fixed,none", "--jobs", jobs, wrong, places[wrong]]
        result = ablate(quarters, tmp_path, *asked)
        assert result.exit_code == 1
        assert "the ablation's table cannot be written" in result.output
    assert not (tmp_path / "artifacts").exists()


def test_a_run_that_fails_is_reported_and_the_others_go_on(quarters: Path, tmp_path: Path) -> None:
    file = tmp_path / "variants.yaml"
    file.write_text(
        "odd: {stages.recover.distil.losses: [{loss: kl, spot: layer3}]}\n"
        "wild: [stages.recover.lr=1e30, stages.recover.clip_norm=null]\n"
        "none: [stages.recover.distil=null]\n"
    )
    result = ablate(quarters, tmp_path, "--variants", file, "--seeds", 1)
    assert result.exit_code == 1
    assert "FAILED odd, seed 0: stages[3] (recover): distil.losses (kl).spot" in result.stdout
    assert "FAILED wild, seed 0: " in result.stdout
    assert "One seed each" not in result.stdout  # there is nothing to compare with
    assert list(numbers(tmp_path)) == ["none"]


def test_what_is_no_error_of_the_user_leaves_its_traceback(
    quarters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("surprise")

    monkeypatch.setattr(workers, "run_one", broken)
    result = ablate(quarters, tmp_path, "--controllers", "none", "--seeds", 1)
    assert result.exit_code == 1
    assert "FAILED none, seed 0: ZeroDivisionError: surprise" in result.stdout
    (log,) = (tmp_path / workers.LOGS).iterdir()
    assert "broken" in log.read_text() and str(log.name) in result.stdout


def test_an_interrupt_leaves_what_is_finished(
    quarters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = workers.run_one, []

    def interrupted(variant: str, *arguments: object, **options: object) -> object:
        calls.append(variant)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return original(variant, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(workers, "run_one", interrupted)
    result = ablate(quarters, tmp_path, "--controllers", "none,fixed", "--seeds", 1)
    assert result.exit_code == 130
    assert "run the same command again to resume" in result.stderr
    assert list(numbers(tmp_path)) == ["none"]
    assert "1 of 2 runs are missing." in (tmp_path / "quarters.ablation.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--controllers", "deen"], "--controllers: unknown 'deen'"),
        (["--controllers", ","], "--controllers: ',' names none"),
        (
            ["--controllers", "replay,fixed"],
            "variant replay: stages[3] (recover): distil.controller_options",
        ),
        (["--controllers", "fixed", "--baseline", "none"], "--baseline: unknown 'none'"),
        (["--controllers", "fixed", "--only", "none"], "--only: unknown 'none'"),
        (["--variants", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["--set", "stages.recover.distil=null"], "no stage distils"),
        (
            ["--set", "seed=4294967295", "--controllers", "fixed"],
            "--seeds: 3 seeds from 4294967295",
        ),
    ],
)
def test_bad_input_is_one_line(
    quarters: Path, tmp_path: Path, arguments: list[str], says: str
) -> None:
    result = ablate(quarters, tmp_path / "runs", *arguments)
    assert result.exit_code == 1
    assert says in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_seeds_start_at_the_recipes() -> None:
    assert check_seeds(5, 3) == [5, 6, 7]


def test_a_controller_that_holds_images_out_trains_as_many_steps(quarters: Path) -> None:
    options = "stages.recover.distil.controller_options={held_out: 0.25}"
    overrides = ["stages.recover.distil.controller=dean", options, "stages.recover.epochs=2"]
    recipe = load_recipe(quarters, overrides)
    data = load_data(recipe.data)
    left, _ = hold_out(data, 0.25, recipe.seed)
    made = with_equal_steps(recipe, data).stages[-1]
    steps = 2 * (len(data.train) // 16)
    assert round(made.epochs * (len(left.train) // 16)) == steps
    assert len(left.train) // 16 < len(data.train) // 16
    fixed = load_recipe(quarters, ["stages.recover.epochs=2"])
    assert with_equal_steps(fixed, data) == fixed


@pytest.mark.slow
def test_several_processes_give_what_one_gives(quarters: Path, tmp_path: Path) -> None:
    file = tmp_path / "variants.yaml"
    file.write_text(
        "none: [stages.recover.distil=null]\n"
        "fixed:\n"
        "odd: {stages.recover.distil.losses: [{loss: kl, spot: layer3}]}\n"
    )
    results = {}
    for jobs in (1, 2):
        out = tmp_path / f"runs{jobs}"
        result = ablate(quarters, out, "--variants", file, "--seeds", 1, "--jobs", jobs)
        assert result.exit_code == 1
        assert "FAILED odd, seed 0: stages[3] (recover): distil.losses (kl).spot" in result.stdout
        results[jobs] = numbers(out)
    assert results[1] == results[2]
    logs = sorted(path.name for path in (tmp_path / "runs2" / workers.LOGS).iterdir())
    assert logs == [f"quarters-{name}-0.log" for name in ("fixed", "none", "odd")]


@pytest.mark.slow
def test_a_chain_that_ships_is_judged_by_the_file_as_shipped(
    quarters: Path, tmp_path: Path
) -> None:
    train = "batch_size: 16, lr: 0.01, warmup_epochs: 0"
    stages = (
        "stages=[{stage: teacher}, {stage: prune}, {stage: slim}, {stage: quantize}, "
        f"{{stage: recover, epochs: 1, {train}}}, {{stage: export, samples: 4}}, "
        "{stage: report, latency_s: 0.01, latency_runs: 20}]"
    )
    result = ablate(quarters, tmp_path, "--controllers", "none", "--seeds", 1, "--set", stages)
    assert result.exit_code == 0, result.output
    (run,) = json.loads((tmp_path / "quarters.ablation.json").read_text())["runs"]
    assert run["tested"] == outcome.AS_SHIPPED
    (report,) = (tmp_path / "artifacts").glob("report-*/report.json")
    assert run["test_top1"] == json.loads(report.read_text())["student"]["top1"]
    assert (
        "the file as shipped, after the last epoch"
        in (tmp_path / "quarters.ablation.md").read_text()
    )


ORPHANS = """
import multiprocessing, pathlib, sys, time
from toolchain.ablation import workers


def work(connection, out):
    def busy(job, out):
        pathlib.Path(out, "busy").touch()
        try:
            time.sleep(600)
        finally:
            pathlib.Path(out, "left").touch()

    workers._run_logged = busy
    workers._work(connection, out, None)


if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs, sys.argv[1]), daemon=True)
    process.start()
    ours.send("a job")
    print(process.pid, flush=True)
    process.join()
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_no_worker_outlives_a_parent_that_was_killed(tmp_path: Path, how: signal.Signals) -> None:
    script = tmp_path / "orphans.py"
    script.write_text(ORPHANS)
    parent = subprocess.Popen(
        [sys.executable, script, tmp_path], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    try:
        wait_for(lambda: (tmp_path / "busy").exists())
        parent.send_signal(how)
        parent.wait(10)
        wait_for(lambda: (tmp_path / "left").exists())  # and what was half-made is swept away
        wait_for(lambda: not Path(f"/proc/{worker}").exists())
    finally:
        parent.kill()
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)


def wait_for(what: Callable[[], bool], at_most_s: float = 60.0) -> None:
    ends = time.monotonic() + at_most_s
    while not what():
        assert time.monotonic() < ends
        time.sleep(0.05)
