"""Every board of the table, a server and an empty root: each field known, or with its reason."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from deploy.board import Board, PowerMode, parse_nvpmodel, read_board
from deploy.errors import DeviceError

Files = Callable[[Path, Mapping[str, str]], None]


def unknown(value: Any, name: str = "") -> set[str]:
    """Dotted names of what is ``None``, inside nested dictionaries too; lists are left alone."""
    if isinstance(value, dict):
        return {
            found
            for key, item in value.items()
            for found in unknown(item, f"{name}.{key}" if name else key)
        }
    return {name} if value is None else set()


def without_reason(board: Board) -> set[str]:
    sensors = ("thermal.temperatures_c.", "clocks.cpu", "clocks.gpu")
    return {
        name
        for name in unknown(board.to_dict())
        if name not in board.missing and not name.startswith(sensors)
    }


def test_every_board_is_read(every_board: tuple[Path, Any]) -> None:
    root, truth = every_board
    board = read_board(root)
    assert board.jetson
    assert board.model == truth.model
    assert (board.l4t, board.jetpack) == (truth.l4t, truth.jetpack)
    assert board.power_mode == parse_nvpmodel(truth.mode)
    assert [gpu["name"] for gpu in board.fields["clocks"]["gpu"]] == [truth.gpu]
    assert board.fields["clocks"]["gpu"][0]["max_mhz"] == 918.0
    assert board.fields["clocks"]["cpu"][0] == {
        "name": "policy0",
        "cores": "0 1 2 3",
        "governor": "schedutil",
        "driver": "tegra194",
        "min_mhz": pytest.approx(729.6),
        "max_mhz": pytest.approx(1510.4),
        "now_mhz": pytest.approx(729.6),
        "hardware_max_mhz": pytest.approx(1728.0),
    }
    assert board.fields["thermal"]["temperatures_c"] == {"cpu-thermal": 48.5, "cv0-thermal": None}
    assert board.fields["thermal"]["trips_c"] == {"cpu-thermal": 99.0}  # not the fan's, at 46
    assert board.fields["thermal"]["fans"] == [
        {"name": "pwmfan", "duty": 77, "turns_per_minute": None}
    ]
    assert board.fields["thermal"]["slowed_by"] == {}  # a fan is no throttling
    assert without_reason(board) == set()
    assert json.loads(json.dumps(board.to_dict())) == board.to_dict()


@pytest.mark.parametrize(
    ("name", "sm"),
    [
        ("nano", "5.3"),
        ("tx2", "6.2"),
        ("agx-xavier", "7.2"),
        ("agx-orin", "8.7"),
        ("thor", "11.0"),
    ],
)
def test_compute_capability(fake_board: Callable[..., Any], name: str, sm: str) -> None:
    root, _ = fake_board(name)
    assert read_board(root).fields["compute_capability"] == sm


def test_nothing_at_all(tmp_path: Path) -> None:
    board = read_board(tmp_path)
    assert not board.jetson
    assert (board.model, board.l4t, board.power_mode) == (None, None, None)
    assert without_reason(board) == set()
    assert board.missing["l4t"] == "this is no Jetson"


def test_a_server(tmp_path: Path, write_files: Files) -> None:
    write_files(
        tmp_path,
        {
            "sys/class/dmi/id/sys_vendor": "Fast Inc.\n",
            "sys/class/dmi/id/product_name": "Server 9\n",
            "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  "
            "550.54.15  Tue Mar  5\nGCC version: gcc\n",
            "usr/local/cuda/version.json": '{"cuda": {"name": "CUDA SDK", "version": "12.6.68"}}',
            "var/lib/dpkg/status": "Package: libcudnn9-cuda-12\nStatus: install ok installed\n"
            "Version: 9.3.0.75-1\n\nPackage: libnvinfer10\nStatus: deinstall ok config-files\n"
            "Version: 10.3.0.30-1+cuda12.5\n",
        },
    )
    board = read_board(tmp_path)
    assert board.model == "Fast Inc. Server 9"
    assert board.fields["driver"] == "550.54.15"
    assert board.fields["cuda"] == "12.6.68"
    assert board.fields["cudnn"] == "9.3.0.75"
    assert board.fields["tensorrt"] is None  # it was removed again
    assert "TensorRT" in board.missing["tensorrt"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"cuda": 12}', "not json"])
def test_a_version_file_that_says_nothing(tmp_path: Path, write_files: Files, text: str) -> None:
    write_files(tmp_path, {"usr/local/cuda/version.json": text})
    assert read_board(tmp_path).fields["cuda"] is None
    write_files(tmp_path, {"usr/local/cuda/version.txt": "CUDA Version 10.2.300\n"})
    assert read_board(tmp_path).fields["cuda"] == "10.2.300"


def test_the_open_driver_on_a_jetson(tmp_path: Path, write_files: Files) -> None:
    text = "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build\n"
    write_files(tmp_path, {"proc/driver/nvidia/version": text})
    assert read_board(tmp_path).fields["driver"] == "540.4.0"


def test_the_jetpack_package_knows_best(fake_board: Callable[..., Any], write_files: Files) -> None:
    root, _ = fake_board("orin-nano")
    package = "Package: nvidia-jetpack\nStatus: install ok installed\nVersion: 6.2.1+b38\n"
    write_files(root, {"var/lib/dpkg/status": package})
    assert read_board(root).jetpack == "6.2.1"


def test_a_release_that_is_in_no_table(fake_board: Callable[..., Any], write_files: Files) -> None:
    root, _ = fake_board("thor")
    write_files(root, {"etc/nv_tegra_release": "# R99 (release), REVISION: 1.0, GCID: 1\n"})
    board = read_board(root)
    assert (board.l4t, board.jetpack) == ("99.1.0", None)
    assert board.missing["jetpack"] == "L4T 99.1.0: it is not known which JetPack that is"


def test_power_mode_without_the_tool(fake_board: Callable[..., Any], write_files: Files) -> None:
    root, _ = fake_board("orin-nano")
    (root / "usr/bin/nvpmodel").unlink()
    write_files(
        root,
        {
            "var/lib/nvpmodel/status": "pmode:0002 fmode:cool\n",
            "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n",
        },
    )
    assert read_board(root).power_mode == PowerMode(2, "MAXN_SUPER")


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo no root >&2; exit 3", "nvpmodel: exit status 3: no root"),
        ("echo strange", "nvpmodel: 'strange' names no mode"),
    ],
)
def test_power_mode_that_cannot_be_had(
    fake_board: Callable[..., Any],
    program: Callable[[Path, str, str], Path],
    script: str,
    reason: str,
) -> None:
    root, _ = fake_board("agx-orin")
    program(root, "nvpmodel", script)
    board = read_board(root)
    assert board.power_mode is None
    assert reason in board.missing["power_mode"]


def test_verbose_nvpmodel() -> None:
    text = (
        "NVPM VERB: parsing done for /etc/nvpmodel.conf\nNV Fan Mode:quiet\n"
        "NVPM VERB: Current mode: NV Power Mode: MODE_15W_6CORE\n2\nNVPM VERB: PARAM CPU\n"
    )
    assert parse_nvpmodel(text) == PowerMode(2, "MODE_15W_6CORE")
    with pytest.raises(DeviceError, match="names no mode"):
        parse_nvpmodel("")


def test_jetson_clocks_and_memory_rate(
    fake_board: Callable[..., Any],
    program: Callable[[Path, str, str], Path],
    write_files: Files,
) -> None:
    root, _ = fake_board("agx-orin")
    program(root, "jetson_clocks", "echo 'EMC MinFreq=1 MaxFreq=2 CurrentFreq=2 FreqOverride=1'")
    write_files(root, {"sys/kernel/debug/bpmp/debug/clk/emc/rate": "3199000000\n"})
    clocks = read_board(root).fields["clocks"]
    assert clocks["emc_mhz"] == 3199.0
    assert clocks["jetson_clocks"] == ["EMC MinFreq=1 MaxFreq=2 CurrentFreq=2 FreqOverride=1"]
