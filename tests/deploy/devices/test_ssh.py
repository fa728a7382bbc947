"""Boards over ssh: what goes there and comes back, with a real sshd."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from deploy.bundle import Bundle, add_files
from deploy.devices.channel import Channel
from deploy.devices.ssh import SshDevice
from deploy.errors import DeviceError, StorageError

Runner = Callable[[], bytes]
LONG = {"steps": 400, "pause_s": 0.02}


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What was asked of the far side, with the bytes that went along."""
    asked: list[tuple[str, int]] = []
    ask = Channel.ask

    def recording(self: Channel, do: str, data: bytes = b"", **message: Any) -> Any:
        asked.append((do, len(data)))
        return ask(self, do, data, **message)

    monkeypatch.setattr(Channel, "ask", recording)
    return asked


def size_of(bundle: Bundle) -> int:
    return sum(path.stat().st_size for path in bundle.folder.rglob("*") if path.is_file())


def running(job: Path) -> bool:
    command = (job / "record.json").name  # only the runner's command line has it
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().decode("utf-8", "replace")
        except OSError:
            continue
        if job.name in text and command in text:
            return True
    return False


def once(
    when: Callable[[str, float], bool], act: Callable[[], object]
) -> Callable[[str, float], None]:
    """A progress callback that acts the first time that ``when`` holds."""
    acted: list[bool] = []

    def progress(stage: str, share: float) -> None:
        if not acted and when(stage, share):
            acted.append(True)
            act()

    return progress


def test_a_bench_goes_there_and_its_record_comes_back(
    sshd: Any, bundle: Bundle, runner: Runner
) -> None:
    told: list[tuple[str, float]] = []
    device = sshd.device(runner)
    record = device.bench(bundle.folder, {"steps": 3}, lambda *said: told.append(said))
    assert record["status"] == "complete"
    assert record["device"] == {"name": "board", "kind": "ssh", "clock_skew_s": 0.0}
    assert record["request"] == {"steps": 3, "device": "board", "device_kind": "ssh"}
    stages = [stage for stage, _ in told]
    assert stages[0] == "copy to the device" and stages[-3:] == ["step 0", "step 1", "step 2"]
    assert sshd.jobs == [] and device.ssh_processes == ()


@pytest.mark.slow
def test_only_what_changed_is_sent_again(
    sshd: Any, bundle: Bundle, runner: Runner, sent: list[tuple[str, int]]
) -> None:
    device = sshd.device(runner)
    device.bench(bundle.folder, {})
    first = sum(count for do, count in sent if do == "put")
    assert first == size_of(bundle) + len(runner())
    sent.clear()
    device.bench(bundle.folder, {})
    assert not [do for do, _ in sent if do == "put"]
    changed = runner() + b"\0"  # a zip file may be followed by anything
    other = sshd.device(lambda: changed)
    other.bench(bundle.folder, {})
    assert sum(count for do, count in sent if do == "put") == len(changed)


def test_a_copy_goes_on_where_it_was_cut(
    sshd: Any, bundle: Bundle, runner: Runner, sent: list[tuple[str, int]]
) -> None:
    progress = once(lambda stage, share: "copy" in stage and share > 0.5, sshd.cut)
    assert sshd.device(runner).bench(bundle.folder, {}, progress)["status"] == "complete"
    assert len([do for do, _ in sent if do == "hello"]) >= 2
    block = 1 << 20
    assert sum(n for do, n in sent if do == "put") <= size_of(bundle) + len(runner()) + block


@pytest.mark.parametrize("which", ["server", "client"])
def test_a_run_does_not_notice_a_lost_connection(
    which: str, sshd: Any, bundle: Bundle, runner: Runner
) -> None:
    device, told = sshd.device(runner), list[str]()

    def cut() -> None:
        if which == "server":
            assert sshd.cut() >= 1
        else:
            os.kill(device.ssh_processes[0], signal.SIGKILL)

    breaking = once(lambda stage, share: stage == "step 2", cut)

    def progress(stage: str, share: float) -> None:
        told.append(stage)
        breaking(stage, share)

    record = device.bench(bundle.folder, {"steps": 8, "pause_s": 0.05}, progress)
    assert record["models"]["student"]["latency_ms"]["n"] == 8
    assert [stage for stage in told if "step" in stage] == [f"step {i}" for i in range(8)]
    assert sshd.jobs == []


def test_a_run_goes_on_when_the_connection_stays_away(
    sshd: Any, bundle: Bundle, runner: Runner
) -> None:
    device = sshd.device(runner, patience_s=0.3)
    progress = once(lambda stage, share: stage == "step 1", sshd.stop)
    with pytest.raises(DeviceError, match="board: the connection was lost .* goes on there"):
        device.bench(bundle.folder, {"steps": 12, "pause_s": 0.1}, progress)
    (job,) = sshd.jobs
    until = time.monotonic() + 10
    while not (job / "end").exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert (job / "out" / "record.json").exists()


def test_a_host_key_that_changes_during_the_run_ends_it(
    sshd: Any, bundle: Bundle, runner: Runner
) -> None:
    def replaced() -> None:
        sshd.stop()
        sshd.make_key("host")
        sshd.start()

    progress = once(lambda stage, share: stage == "step 1", replaced)
    with pytest.raises(DeviceError, match="board: its host key has changed"):
        sshd.device(runner).bench(bundle.folder, {"steps": 8, "pause_s": 0.05}, progress)


def test_closed_from_another_thread_the_run_ends_with_what_it_has(
    sshd: Any, bundle: Bundle, runner: Runner
) -> None:
    device = sshd.device(runner)
    closing = once(
        lambda stage, share: stage == "step 1",
        lambda: threading.Thread(target=device.close).start(),
    )
    record = device.bench(bundle.folder, LONG, closing)
    assert record["status"] == "partial"
    assert 1 <= record["models"]["student"]["latency_ms"]["n"] < LONG["steps"]
    assert sshd.jobs == [] and device.ssh_processes == ()
    with pytest.raises(DeviceError, match="board: the device is closed"):
        device.bench(bundle.folder, LONG)


def test_ctrl_c_ends_the_run_with_what_it_has(sshd: Any, bundle: Bundle, runner: Runner) -> None:
    interrupt = once(
        lambda stage, share: stage == "step 1", lambda: signal.raise_signal(signal.SIGINT)
    )
    record = sshd.device(runner).bench(bundle.folder, LONG, interrupt)
    assert record["status"] == "partial"
    assert sshd.jobs == []


def test_ctrl_c_twice_gives_up_and_cleans_up(sshd: Any, bundle: Bundle, runner: Runner) -> None:
    jobs: list[Path] = []

    def stubborn(stage: str, share: float) -> None:
        if stage in ("step 1", "step 3"):
            jobs.extend(sshd.jobs)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        sshd.device(runner).bench(bundle.folder, {**LONG, "deaf": True}, stubborn)
    assert sshd.jobs == [] and not running(jobs[0])


def test_a_bug_here_leaves_nothing_running_there(sshd: Any, bundle: Bundle, runner: Runner) -> None:
    def bug(stage: str, share: float) -> None:
        if stage == "step 1":
            jobs.extend(sshd.jobs)
            raise ZeroDivisionError

    jobs: list[Path] = []
    with pytest.raises(ZeroDivisionError):
        sshd.device(runner).bench(bundle.folder, LONG, bug)
    assert sshd.jobs == [] and not running(jobs[0])


def test_what_a_run_wrote_can_be_kept(sshd: Any, bundle: Bundle, runner: Runner) -> None:
    sshd.device(runner, keep=True).bench(bundle.folder, {})
    (job,) = sshd.jobs
    assert (job / "out" / "record.json").exists() and (job / "end").read_text() == "0\n"


@pytest.mark.slow
def test_two_benches_never_run_at_once(
    sshd: Any, bundle: Bundle, runner: Runner, tmp_path: Path
) -> None:
    errors: list[str] = []

    def second() -> None:
        other = sshd.device(runner, name="again", folder=str(sshd.folder / "elsewhere"))
        with pytest.raises(DeviceError) as caught:
            other.bench(bundle.folder, {})
        errors.append(str(caught.value))
        (tmp_path / "enough").touch()

    progress = once(lambda stage, share: stage == "step 1", second)
    request = {"pause_s": 0.02, "until": str(tmp_path / "enough")}
    assert sshd.device(runner).bench(bundle.folder, request, progress)["status"] == "complete"
    assert "again: process" in errors[0] and "is measuring here already" in errors[0]


def test_a_runner_that_vanished_is_told_from_one_that_was_killed(
    sshd: Any, bundle: Bundle, runner: Runner
) -> None:
    def all_of_it() -> None:
        text = (sshd.jobs[0] / "process.json").read_text()
        os.killpg(int(text.split(":")[1].split(",")[0]), signal.SIGKILL)

    progress = once(lambda stage, share: stage == "step 1", all_of_it)
    with pytest.raises(DeviceError, match="has vanished without a result"):
        sshd.device(runner).bench(bundle.folder, LONG, progress)
    assert sshd.jobs == []


def test_what_the_runner_refuses_is_said_here(sshd: Any, bundle: Bundle, runner: Runner) -> None:
    with pytest.raises(DeviceError, match=r"^board: .*is measuring here already"):
        lock = sshd.temporary / "compress-deploy-device.lock"
        from deploy.devices.lock import only_one

        with only_one(lock):
            sshd.device(runner).bench(bundle.folder, {})


def test_a_clock_that_is_wrong_changes_nothing(
    stopped_sshd: Any, tmp_path: Path, bundle: Bundle, runner: Runner
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import time\nright = time.time\ntime.time = lambda: right() - 10 * 365 * 86400\n"
    )
    stopped_sshd.start(f"SetEnv PYTHONPATH={tmp_path} TMPDIR={stopped_sshd.temporary}")
    record = stopped_sshd.device(runner).bench(bundle.folder, {"steps": 3})
    assert record["device"]["clock_skew_s"] == pytest.approx(-10 * 365 * 86400, abs=60)
    age = datetime.now(UTC) - datetime.fromisoformat(record["created"])
    assert abs(age.total_seconds()) < 3600


def test_login_scripts_may_talk(stopped_sshd: Any, bundle: Bundle, runner: Runner) -> None:
    stopped_sshd.start('ForceCommand echo "Welcome!"; exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"')
    assert stopped_sshd.device(runner).bench(bundle.folder, {})["status"] == "complete"


def test_a_file_that_arrives_damaged_is_refused(sshd: Any, bundle: Bundle, runner: Runner) -> None:
    device = sshd.device(runner)
    name = "0" * 64
    with pytest.raises(DeviceError, match="what arrived is not what was sent"):
        device._connected()
        device._ask("put", b"abc", name=name, size=3, offset=0)
    assert not list((sshd.far / "store").iterdir())
    device.close()


def test_an_empty_file_is_a_file(sshd: Any, bundle: Bundle, runner: Runner, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    grown = add_files(bundle, {"NOTICE": tmp_path / "empty"})
    assert sshd.device(runner).bench(grown.folder, {})["status"] == "complete"


def test_a_board_cannot_write_where_it_likes(
    sshd: Any, bundle: Bundle, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = Channel.ask

    def lying(self: Channel, do: str, data: bytes = b"", **message: Any) -> Any:
        answer, block = ask(self, do, data, **message)
        if do == "files":
            answer = {**answer, "files": {**answer["files"], "../../outside": 3}}
        return answer, block

    monkeypatch.setattr(Channel, "ask", lying)
    with pytest.raises(StorageError, match="leaves the bundle"):
        sshd.device(runner).bench(bundle.folder, {})


def test_a_damaged_bundle_is_refused_before_anything_is_sent(
    sshd: Any, bundle: Bundle, runner: Runner, sent: list[tuple[str, int]]
) -> None:
    with (bundle.folder / "ort-cpu.onnx").open("r+b") as file:
        file.write(b"changed")
    with pytest.raises(OSError, match="ort-cpu.onnx was changed"):
        sshd.device(runner).bench(bundle.folder, {})
    assert not [do for do, _ in sent if do in ("have", "put")]


def test_check_shows_what_is_there(sshd: Any) -> None:
    found = sshd.device().check()
    assert found["ready"] and found["runtimes"]["onnxruntime"]["version"]
    assert found["device"]["kind"] == "ssh"
    assert found["disk"]["folder"] == str(sshd.far)


def test_check_tells_what_is_missing(sshd: Any, tmp_path: Path) -> None:
    bare = tmp_path / "bare-python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    bare.chmod(0o755)
    device: SshDevice = sshd.device(python=str(bare))
    found = device.check()
    assert not found["ready"]
    (problem,) = found["problems"]
    assert "not installed there: numpy, onnxruntime; install with" in problem
    assert "-m pip install numpy onnxruntime" in problem
    with pytest.raises(DeviceError, match="board: not installed there: numpy, onnxruntime"):
        device.bench(tmp_path, {})


def test_python_3_8_is_enough(sshd: Any, bundle: Bundle, runner: Runner) -> None:
    old = shutil.which("python3.8")
    needed = [str(old), "-c", "import numpy, onnxruntime"]
    if old is None or subprocess.run(needed, capture_output=True).returncode:
        pytest.skip("there is no python3.8 with numpy and onnxruntime on the PATH")
    record = sshd.device(runner, python=old).bench(bundle.folder, {})
    assert (record["status"], record["python"]) == ("complete", [3, 8])


def test_a_clock_that_libfaketime_sets_changes_nothing(
    stopped_sshd: Any, bundle: Bundle, runner: Runner
) -> None:
    program = shutil.which("faketime")
    if program is None:
        pytest.skip("faketime is not installed")
    slow = f'exec {program} -f "-10y" /bin/sh -c "$SSH_ORIGINAL_COMMAND"'
    stopped_sshd.start(f"ForceCommand {slow}")
    record = stopped_sshd.device(runner).bench(bundle.folder, {"steps": 3})
    assert record["status"] == "complete"
    assert record["device"]["clock_skew_s"] == pytest.approx(-10 * 365 * 86400, rel=0.01)
