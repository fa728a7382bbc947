"""``runner.pyz`` on arm64: emulated, with a Jetson's sensors and this machine's arithmetic."""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.bundle import Bundle
from deploy.devices.packing import pack_runner
from deploy.sessions.ort import OrtCpuSession

pytestmark = [pytest.mark.arm64, pytest.mark.slow]

RUN_SAMPLES = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import numpy as np
from deploy.bundle import Bundle
from deploy.sessions.ort import OrtCpuSession

bundle = Bundle.open(Path(sys.argv[2]))
session = OrtCpuSession(bundle.model_path("ort-cpu"))
bundle.verify_samples(session, required=1.0).require()
images_u8, _ = bundle.samples()
np.save(sys.argv[3], session.run({"images": bundle.preprocess(images_u8)})["logits"])
"""


@pytest.fixture
def pyz(tmp_path: Path) -> Path:
    path = tmp_path / "runner.pyz"
    path.write_bytes(pack_runner())
    return path


@pytest.mark.parametrize("cpu", ["cortex-a57", "cortex-a76"])  # without and with dot products
def test_integer_outputs_are_those_of_this_machine(
    cpu: str, arm64: Any, pyz: Path, int8_bundle: Bundle, tmp_path: Path
) -> None:
    out = tmp_path / "logits.npy"
    (tmp_path / "nothing").mkdir()
    board = arm64.with_root(tmp_path / "nothing", tmp_path / "root", cpu)
    done = board.run("-c", RUN_SAMPLES, pyz, int8_bundle.folder, out)
    assert (done.returncode, done.stderr) == (0, "")
    session = OrtCpuSession(int8_bundle.model_path("ort-cpu"))
    images_u8, _ = int8_bundle.samples()
    here = session.run({"images": int8_bundle.preprocess(images_u8)})["logits"]
    there = np.load(out)
    assert there.tobytes() == here.tobytes()
    assert len(np.unique(here)) > 10  # not all the same, which would prove nothing


@pytest.fixture
def orin(arm64: Any, fake_board: Callable[..., Any], tmp_path: Path) -> Any:
    """An Orin NX as far as its files tell, one INA3221 with three rails among them."""
    root, _ = fake_board("orin-nx")
    return arm64.with_root(root, tmp_path / "root")


def test_a_jetson_is_recognised_with_its_rails(orin: Any, pyz: Path, tmp_path: Path) -> None:
    done = orin.run(pyz, "check", "--json", "--dir", tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["ready"] and found["environment"]["architecture"] == "aarch64"
    assert found["runtimes"]["onnxruntime"]["version"]
    assert found["board"]["model"] == "NVIDIA Jetson Orin NX Engineering Reference Developer Kit"
    assert (found["board"]["l4t"], found["board"]["jetpack"]) == ("39.2.1", "7.2.1")
    ina = found["meters"]["ina"]
    assert ina["total"] == ["VDD_IN"] and set(ina["rails"]) == {
        "VDD_IN",
        "VDD_CPU_GPU_CV",
        "VDD_SOC",
    }
    text = orin.run(pyz, "check", "--dir", tmp_path).stdout
    assert "Jetson Orin NX" in text and "VDD_IN" in text


@contextlib.contextmanager
def living(rail: Path) -> Iterator[None]:
    """A rail that draws between 1.0 and 1.4 A, another value every 50 ms."""
    enough = threading.Event()

    def draw() -> None:
        scratch = rail.with_name("next")
        for step in itertools.count():
            scratch.write_text(f"{1000 + 50 * (step % 9)}\n")
            scratch.replace(rail)  # a reader never sees half a number
            if enough.wait(0.05):
                return

    drawing = threading.Thread(target=draw)
    drawing.start()
    try:
        yield
    finally:
        enough.set()
        drawing.join()


def test_a_bundle_is_measured_with_its_energy(
    orin: Any, pyz: Path, int8_bundle: Bundle, tmp_path: Path
) -> None:
    request = {"profile": "quick", "queries": 8, "duration_s": 0.1, "layers": False, "power": True}
    (tmp_path / "request.json").write_text(json.dumps(request))
    (rail,) = orin.prefix.glob("sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*/curr1_input")
    with living(rail):
        done = orin.run(
            pyz, "bench", int8_bundle.folder, "--request", tmp_path / "request.json",
            "--out", tmp_path / "record.json", "--progress", tmp_path / "progress",
            TMPDIR=str(tmp_path),
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "record.json").read_text())
    assert set(record["models"]) == {"teacher", "student"}
    assert record["models"]["student"]["latency_ms"]["n"] >= 8
    assert record["environment"]["architecture"] == "aarch64"
    assert record["meter"]["total"] == ["VDD_IN"]
    energy = record["models"]["student"]["energy"]
    assert energy["updates"] >= 20 and energy["inferences"] > 0
    assert 5.0 <= energy["power_w"] <= 7.0  # 5 V x 1.0 to 1.4 A
    assert energy["total_j"] > 0
