"""Other processors by emulation: an arm64 userland from Debian and PyPI, and an x86-64 without VNNI.

The arm64 prefix is made once and kept in the user's cache: an own apt state (nothing of this
machine's is touched) downloads Debian's arm64 Python, dpkg-deb unpacks it, pip fetches the aarch64
wheels of this environment's numpy and ONNX Runtime.  No chroot, no root, no registration with the
kernel: qemu reads absolute paths below the prefix where they exist there, which is also how
``/proc`` and ``/sys`` are faked.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploy.bundle import Bundle, write_bundle
from deploy.sessions.ort import OrtCpuSession

PACKAGES = ("python3", "libstdc++6", "libgomp1")
WHEELS = ("numpy", "onnxruntime")
TAGS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64",
        "manylinux2014_aarch64")  # fmt: skip
# What identifies a core in /proc/cpuinfo, and what it can do.  qemu 7 shows the host's own file, which
# ONNX Runtime from 1.28 on does not survive, and from which no version learns what it may use.
CORES = {
    "cortex-a57": ("0xd07", "fp asimd evtstrm aes pmull sha1 sha2 crc32"),
    "cortex-a76": (
        "0xd0b",
        "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp asimddp",
    ),
}


def cpuinfo(cpu: str) -> str:
    """Two such cores, as an arm64 kernel describes them."""
    part, features = CORES[cpu]
    return "".join(
        f"processor\t: {core}\nBogoMIPS\t: 100.00\nFeatures\t: {features}\n"
        "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x1\n"
        f"CPU part\t: {part}\nCPU revision\t: 1\n\n"
        for core in range(2)
    )


class Unavailable(Exception):
    """The prefix cannot be made here; says why."""


@dataclass(frozen=True)
class Arm64:
    """An arm64 Python with numpy and ONNX Runtime that runs here."""

    qemu: str
    prefix: Path
    python: str
    wheels: Path
    cpu: str = "cortex-a76"

    def run(self, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [
            self.qemu,
            "-cpu",
            self.cpu,
            "-L",
            str(self.prefix),
            str(self.prefix / self.python),
        ]
        return subprocess.run(
            [*command, *map(str, arguments)],
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(self.wheels), "OMP_NUM_THREADS": "1",
                 "PYTHONDONTWRITEBYTECODE": "1", **environment},
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    def with_root(self, root: Path, folder: Path, cpu: str = "cortex-a76") -> Arm64:
        """The same with ``root``'s ``/sys``, ``/proc`` and ``/etc`` in place of this machine's."""
        folder.mkdir()
        faked = ("sys", "proc", "etc")
        for name in faked:
            for source in (self.prefix, root):
                if (source / name).exists():
                    shutil.copytree(source / name, folder / name, symlinks=True, dirs_exist_ok=True)
        (folder / "proc" / "cpuinfo").write_text(cpuinfo(cpu))
        for path in self.prefix.iterdir():
            if path.name not in faked:
                (folder / path.name).symlink_to(path)
        return replace(self, prefix=folder, cpu=cpu)


@pytest.fixture(scope="session")
def arm64() -> Arm64:
    if platform.machine() in ("aarch64", "arm64"):
        pytest.skip("this machine is arm64: every other test runs there already")
    try:
        return find_or_make()
    except Unavailable as reason:
        pytest.skip(f"no arm64 userland: {reason}")


def find_or_make() -> Arm64:
    """The prefix in the cache, made if it is not there.

    Raises:
        Unavailable: A program or the network is missing.
    """
    qemu = tool("qemu-aarch64-static", "qemu-aarch64")
    wheels = [f"{name}=={metadata.version(name)}" for name in WHEELS]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "compress-deploy-tests" / "-".join(["arm64", *wheels]).replace("==", "-")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another test process may be making it
        if not folder.exists():
            scratch = folder.with_name(f".{folder.name}.{os.getpid()}")
            shutil.rmtree(scratch, ignore_errors=True)
            try:
                make(scratch, wheels)
                scratch.rename(folder)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    (python,) = (folder / "root" / "usr" / "bin").glob("python3.[0-9]*")
    return Arm64(qemu, folder / "root", f"usr/bin/{python.name}", folder / "wheels")


def make(folder: Path, wheels: list[str]) -> None:
    root, state = folder / "root", folder / "apt"
    for part in ("lists/partial", "archives/partial"):
        (state / part).mkdir(parents=True)
    (state / "status").touch()
    settings = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "",
        "Dir::State": state,
        "Dir::State::Lists": state / "lists",
        "Dir::State::status": state / "status",
        "Dir::Cache": state,
        "Dir::Cache::Archives": state / "archives",
        "Debug::NoLocking": "1",
    }
    apt = [tool("apt-get"), "-qq", *(f"-o{key}={value}" for key, value in settings.items())]
    call(*apt, "update")
    call(*apt, "install", "-y", "--download-only", "--no-install-recommends", *PACKAGES)
    unpack = tool("dpkg-deb")
    root.mkdir()
    for package in sorted((state / "archives").glob("*.deb")):
        call(unpack, "-x", package, root)
    shutil.rmtree(state)
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc" / "cpuinfo").write_text(cpuinfo("cortex-a76"))
    pythons = sorted((root / "usr" / "bin").glob("python3.[0-9]*"))
    if len(pythons) != 1:
        raise Unavailable(
            f"Debian's packages hold {len(pythons)} Pythons; exactly one was expected"
        )
    tags = [f"--platform={tag}" for tag in TAGS]
    version = pythons[0].name.replace("python", "")
    call(
        sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
        f"--target={folder / 'wheels'}", "--only-binary=:all:", *tags,
        f"--python-version={version}", "--implementation=cp", *wheels,
    )  # fmt: skip


def call(*command: object, environment: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, env=environment
    )
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise Unavailable(f"{Path(str(command[0])).name} failed: {last}")


def tool(*names: str) -> str:
    for name in names:
        found = shutil.which(name)
        if found:
            return found
    raise Unavailable(f"{' and '.join(names)} not installed")


@pytest.fixture(scope="session")
def int8_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Two integer convolutions, an addition, pooling and a classifier, as ``ort-cpu`` wants them."""
    folder = tmp_path_factory.mktemp("int8")
    student, teacher = small_network(folder / "s.onnx", 0), small_network(folder / "t.onnx", 1)
    inputs = np.random.default_rng(2).integers(0, 256, (6, 3, 12, 12), np.uint8)
    feeds = {"images": (inputs.astype(np.float32) / 255 - 0.5) / 0.25}
    return write_bundle(
        folder / "bundle",
        name="small",
        targets={"ort-cpu": student},
        files={"teacher.onnx": teacher},
        input_name="images",
        input_shape=(3, 12, 12),
        output_name="logits",
        classes=tuple("abcde"),
        mean=(0.5,),
        std=(0.25,),
        sample_inputs=inputs,
        sample_outputs=OrtCpuSession(student).run(feeds)["logits"],
        recipe={},
        seeds={},
        versions={},
    )


def small_network(path: Path, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    constants: dict[str, np.ndarray] = {}
    nodes: list[onnx.NodeProto] = []

    def node(kind: str, *inputs: str, **attributes: object) -> str:
        out = f"{kind}{len(nodes)}"
        nodes.append(helper.make_node(kind, inputs, [out], **attributes))
        return out

    def constant(value: object) -> str:
        name = f"c{len(constants)}"
        constants[name] = np.asarray(value)
        return name

    def grid(x: str, scale: float, zero: int = 0) -> str:
        ends = constant(np.float32(scale)), constant(np.uint8(zero))
        return node("DequantizeLinear", node("QuantizeLinear", x, *ends), *ends)

    def weights(*shape: int) -> str:
        codes = constant(rng.integers(-127, 128, shape, np.int8))
        scales = constant(rng.uniform(0.001, 0.003, shape[0]).astype(np.float32))
        return node(
            "DequantizeLinear", codes, scales, constant(np.zeros(shape[0], np.int8)), axis=0
        )

    def block(x: str, inputs: int) -> str:
        bias = constant(rng.normal(0, 0.1, 16).astype(np.float32))
        y = node("Conv", x, weights(16, inputs, 3, 3), bias, pads=[1] * 4)
        return grid(node("Relu", y), 0.02)

    first = block(grid("images", 0.02, 128), 3)
    added = grid(node("Relu", node("Add", block(first, 16), first)), 0.03)
    pooled = grid(node("GlobalAveragePool", added), 0.02)
    flat = node("Flatten", pooled)
    scored = node("Gemm", flat, weights(5, 16), constant(np.zeros(5, np.float32)), transB=1)
    nodes.append(helper.make_node("Identity", [grid(scored, 0.01, 128)], ["logits"]))
    graph = helper.make_graph(
        nodes, "small",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 12, 12])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path
