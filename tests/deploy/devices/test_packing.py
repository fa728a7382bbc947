"""``runner.pyz``: what is in it, and that it starts where there is next to nothing."""

from __future__ import annotations

import ast
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from deploy.devices.packing import pack_runner

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def packed() -> zipfile.ZipFile:
    return zipfile.ZipFile(io.BytesIO(pack_runner()))


def test_the_same_sources_give_the_same_bytes(tmp_path: Path) -> None:
    first = pack_runner()
    assert first == pack_runner()
    (tmp_path / "deploy").mkdir()
    source = tmp_path / "deploy" / "a.py"
    source.write_text("x = 1\n")
    before = pack_runner(tmp_path)
    source.touch()
    assert pack_runner(tmp_path) == before
    source.write_text("x = 2\n")
    assert pack_runner(tmp_path) != before


def test_it_holds_the_device_side_and_nothing_else(packed: zipfile.ZipFile) -> None:
    names = packed.namelist()
    assert len(set(names)) == len(names)
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {
        "__main__.py",
        "benchmarks",
        "compress_deploy",
        "deploy",
    }
    sources = {
        path.relative_to(ROOT).as_posix()
        for room in ("deploy", "benchmarks")
        for path in (ROOT / room).rglob("*.py")
    }
    assert sources <= set(names)


def test_all_of_it_is_python_3_8(packed: zipfile.ZipFile) -> None:
    for name in packed.namelist():
        if name.endswith(".py"):
            ast.parse(packed.read(name), name, feature_version=(3, 8))


def test_the_far_side_needs_nothing_of_ours() -> None:
    tree = ast.parse((ROOT / "deploy/devices/farside.py").read_text(), feature_version=(3, 8))
    imported = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [a.name for a in node.names]
        )
    }
    assert imported <= set(sys.stdlib_module_names)


def test_it_starts_with_the_standard_library_and_numpy(tmp_path: Path) -> None:
    path = tmp_path / "runner.pyz"
    path.write_bytes(pack_runner())
    done = subprocess.run(
        [sys.executable, str(path), "version"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    said = json.loads(done.stdout)
    assert said["python"] == ".".join(map(str, sys.version_info[:3]))
    assert said["compress-deploy"]


def test_a_python_that_is_too_old_is_told_so(packed: zipfile.ZipFile) -> None:
    main = packed.read("__main__.py").decode()
    with pytest.raises(SystemExit, match=r"python is 3.6; Python 3.8 or newer is needed"):
        exec(main.replace("import sys\n", "import sys as real\n", 1), {"sys": _OldPython})


class _OldPython:
    version_info = (3, 6, 9)
    exit = sys.exit
