"""Every field is there, known or with a reason; nothing is imported to know a version."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.environment import record


def test_reads_the_files(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("model name: Fast\nflags: fpu avx2 avx512_vnni unrelated\n")
    (tmp_path / "meminfo").write_text("MemFree: 1 kB\nMemTotal:  2048 kB\n")
    governor = tmp_path / "devices/system/cpu/cpu0/cpufreq/scaling_governor"
    governor.parent.mkdir(parents=True)
    governor.write_text("performance\n")
    made = record(("numpy", "no-such-package"), tmp_path, tmp_path)
    assert made["cpu_model"] == "Fast"
    assert made["cpu_flags"] == ["avx2", "avx512_vnni"]
    assert made["memory_bytes"] == 2048 * 1024
    assert made["governor"] == "performance"
    assert made["versions"]["numpy"] == np.__version__
    assert made["missing"] == {"versions.no-such-package": "not installed"}


def test_what_is_not_known_has_a_reason(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("no total here\n")
    made = record((), tmp_path, tmp_path)
    for field in ("cpu_model", "cpu_flags", "memory_bytes", "governor"):
        assert made[field] is None
        assert made["missing"][field]
    assert {field for field, value in made.items() if value is None} == set(made["missing"])


def test_this_machine_is_json() -> None:
    made = record()
    assert json.loads(json.dumps(made)) == made
    assert made["usable_cores"] >= 1


def test_does_not_import_torch() -> None:
    code = ("import sys; from benchmarks.environment import record; record(); "
            "sys.exit('torch' in sys.modules or 'onnxruntime' in sys.modules)")  # fmt: skip
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0
