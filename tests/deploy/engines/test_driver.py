from __future__ import annotations

import ctypes
from typing import Any

import pytest

from deploy.engines import driver as module
from deploy.engines.driver import Driver, Gpu, find_driver, probe
from deploy.engines.worker import Worker, WorkerDied
from deploy.errors import DeviceError


class Library:
    """A libcuda with one Orin; ``failing`` maps calls to the status that they return."""

    def __init__(self, gpus: int = 1, **failing: int) -> None:
        self.gpus, self.failing = gpus, failing
        self.called: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.called.append(name)
            if name in self.failing:
                return self.failing[name]
            return int(getattr(self, f"_{name}", lambda *_: 0)(*arguments) or 0)

        if name.startswith("_"):
            raise AttributeError(name)
        return call

    def _cuDriverGetVersion(self, out: Any) -> None:
        out._obj.value = 12060

    def _cuDeviceGetCount(self, out: Any) -> None:
        out._obj.value = self.gpus

    def _cuDeviceGet(self, out: Any, index: int) -> None:
        out._obj.value = 10 + index

    def _cuDeviceGetName(self, buffer: Any, size: int, device: Any) -> None:
        buffer.value = b"Orin"

    def _cuDeviceTotalMem_v2(self, out: Any, device: Any) -> None:
        out._obj.value = 32 << 30

    def _cuDeviceGetAttribute(self, out: Any, number: int, device: Any) -> None:
        assert 10 <= device.value < 10 + self.gpus
        out._obj.value = {75: 8, 76: 7, 16: 16, 18: 1}[number]

    def _cuGetErrorString(self, status: int, out: Any) -> None:
        out._obj.value = b"no such thing"


def test_a_driver_is_asked_for_its_devices() -> None:
    library = Library(gpus=2)
    answer = probe(lambda name: library)
    assert answer["cuda"] == "12.6"
    assert [Gpu(**gpu) for gpu in answer["gpus"]] == 2 * [Gpu("Orin", "8.7", 16, 32 << 30, True)]
    assert library.called[0] == "cuInit"


def test_the_second_name_of_the_library_is_tried() -> None:
    def open_library(name: str) -> Library:
        if name != "libcuda.so":
            raise OSError("no such file")
        return Library()

    assert probe(open_library)["cuda"] == "12.6"


def test_no_driver_is_one_line() -> None:
    def open_library(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    with pytest.raises(DeviceError, match=r"none on this machine \(libcuda.so.*--gpus all") as no:
        probe(open_library)
    assert "\n" not in str(no.value)


@pytest.mark.parametrize("call", ["cuInit", "cuDriverGetVersion", "cuDeviceGetName"])
def test_a_call_that_fails_is_named(call: str) -> None:
    with pytest.raises(DeviceError, match=rf"{call} failed with 999 \(no such thing\)"):
        probe(lambda name: Library(**{call: 999}))


def test_an_error_without_words() -> None:
    with pytest.raises(DeviceError, match=r"cuInit failed with 3 \(unknown\)"):
        probe(lambda name: Library(cuInit=3, cuGetErrorString=1))


def test_no_gpu_is_said() -> None:
    with pytest.raises(DeviceError, match="sees no GPU; check CUDA_VISIBLE_DEVICES"):
        probe(lambda name: Library(gpus=0))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Tasks that ``find_driver`` gives to its worker, which answers as ``answers`` says."""
    tasks: list[str] = []
    monkeypatch.setattr(module, "_known", {})
    monkeypatch.setattr(Worker, "ask", lambda self, task, request: _answer(tasks, task))
    return tasks


answers: list[Any] = []


def _answer(tasks: list[str], task: str) -> Any:
    tasks.append(task)
    if isinstance(answers[-1], Exception):
        raise answers[-1]
    return answers[-1]


def test_the_driver_is_asked_once(asked: list[str]) -> None:
    answers.append(probe(lambda name: Library()))
    assert find_driver() == find_driver() == Driver("12.6", (find_driver().gpu(0),))
    assert asked == ["probe"]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (DeviceError("NVIDIA driver: none"), "^NVIDIA driver: none$"),
        (WorkerDied("the process was ended by SIGSEGV", "SIGSEGV"), "crashed .*SIGSEGV"),
    ],
)
def test_a_refusal_is_kept_too(asked: list[str], answer: Any, words: str) -> None:
    answers.append(answer)
    for _ in range(2):
        with pytest.raises(DeviceError, match=words):
            find_driver()
    assert asked == ["probe"]


@pytest.mark.parametrize("index", [-1, 1])
def test_a_number_that_no_gpu_has(driver: Driver, index: int) -> None:
    with pytest.raises(DeviceError, match=f"device {index}: the driver has 1 GPUs"):
        driver.gpu(index)


def test_ctypes_is_what_opens_the_library() -> None:
    """On this machine: either there is a driver, or the reason is the loader's."""
    try:
        found = probe(ctypes.CDLL)
    except DeviceError as error:
        assert "libcuda" in str(error) or "failed with" in str(error) or "no GPU" in str(error)
    else:
        assert found["gpus"]
