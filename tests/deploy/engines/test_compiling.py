"""How each version of TensorRT is asked to build, seen from stand-ins for its bindings."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deploy.engines import compiling, messages
from deploy.engines.bindings import Bindings
from deploy.engines.compiling import answer_build
from deploy.engines.settings import Batches, BuildSettings
from deploy.errors import CompressDeployError, ConfigError, DeviceError, StorageError

DRIVER = {
    "cuda": "12.6",
    "gpus": [
        {
            "name": "Orin",
            "compute_capability": "8.7",
            "multiprocessors": 16,
            "memory_bytes": 1 << 30,
            "integrated": True,
        }
    ],
}
LOG = (
    "Layers:\nName: conv, LayerType: CaskConvolution, Inputs: [ { Name: x, Format/Datatype: Int8 }"
    "], Outputs: [ { Name: y, Format/Datatype: Int8 }], TacticName: t, StreamId: 0, Metadata: "
    "[ONNX Layer: conv]"
)


class Config:
    def __init__(self, trt: SimpleNamespace) -> None:
        self.trt = trt
        self.flags: set[str] = {"TF32"}
        self.pools: dict[str, int] = {}
        self.profiles: list[Any] = []
        self.cache: Any = None
        self.builder_optimization_level = 3
        self.hardware_compatibility_level: Any = None

    def set_flag(self, flag: Any) -> None:
        self.flags.add(flag.name)

    def clear_flag(self, flag: Any) -> None:
        self.flags.remove(flag.name)

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self.pools[pool.name] = size

    def add_optimization_profile(self, profile: Any) -> int:
        self.profiles.append(profile.shapes)
        return len(self.profiles) - 1

    def create_timing_cache(self, data: bytes) -> Any:
        if data == b"foreign":
            return None
        return SimpleNamespace(serialize=lambda: data + b"+timed")

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        self.cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return self.cache


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, name: str, low: Any, best: Any, high: Any) -> None:
        self.shapes[name] = (low, best, high)


class TensorRT(SimpleNamespace):
    """Bindings of a version, which build a plan of four bytes and say what they were told."""

    def __init__(self, version: str) -> None:
        old, new = (version.startswith(start) for start in ("10.3", "11"))
        flags = ["TF32", "GPU_FALLBACK", "VERSION_COMPATIBLE"]
        flags += [] if new else ["FP16", "INT8"]
        flags += [] if old else ["DISTRIBUTIVE_INDEPENDENCE"]
        levels = ["NONE", "AMPERE_PLUS", *([] if old else ["SAME_COMPUTE_CAPABILITY"])]
        creation = {"STRONGLY_TYPED": 0} if new else {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}
        super().__init__(
            __version__=version,
            ILogger=object,
            BuilderFlag=enum.Enum("BuilderFlag", flags),
            NetworkDefinitionCreationFlag=enum.IntEnum("Creation", creation),
            HardwareCompatibilityLevel=enum.Enum("Hardware", levels),
            MemoryPoolType=enum.Enum("Pool", ["WORKSPACE"]),
            ProfilingVerbosity=enum.Enum("Verbosity", ["LAYER_NAMES_ONLY", "NONE", "DETAILED"]),
            DeviceType=enum.Enum("DeviceType", ["GPU", "DLA"]),
            LayerInformationFormat=SimpleNamespace(JSON="json"),
        )
        self.config = Config(self)
        self.dla_cores = 2
        self.bits: int | None = None
        self.plan: bytes | None = b"plan"
        self.errors: list[str] = []
        self.no_builder = False
        self.network = SimpleNamespace(
            num_inputs=1,
            num_outputs=1,
            get_input=lambda index: SimpleNamespace(
                name="x", shape=(-1, 3), dtype=SimpleNamespace(name="FLOAT")
            ),
            get_output=lambda index: SimpleNamespace(
                name="y", shape=(-1, 2), dtype=SimpleNamespace(name="FLOAT")
            ),
        )

    def say(self, severity: str, text: str) -> None:
        messages.logger_of(Bindings(self, "tensorrt")).log(SimpleNamespace(name=severity), text)

    def Builder(self, logger: Any) -> Any:
        if self.no_builder:
            self.say("ERROR", "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        return SimpleNamespace(
            create_network=self._create_network,
            create_builder_config=lambda: self.config,
            create_optimization_profile=Profile,
            build_serialized_network=self._build,
            num_DLA_cores=self.dla_cores,
        )

    def OnnxParser(self, network: Any, logger: Any) -> Any:
        return SimpleNamespace(parse_from_file=lambda path: True, num_errors=0)

    def Runtime(self, logger: Any) -> Any:
        def inspector() -> Any:
            tensor = '{"Name": "x", "Format/Datatype": "Int8"}'
            layer = f'{{"Name": "conv", "LayerType": "CaskConvolution", "Inputs": [{tensor}]}}'
            text = f'{{"Layers": [{layer}]}}'
            return SimpleNamespace(get_engine_information=lambda form: text)

        engine = SimpleNamespace(
            create_engine_inspector=inspector, create_execution_context=lambda: None
        )
        return SimpleNamespace(deserialize_cuda_engine=lambda plan: engine)

    def _create_network(self, bits: int) -> Any:
        self.bits = bits
        return self.network

    def _build(self, network: Any, config: Any) -> Any:
        for text in self.errors:
            self.say("ERROR", text)
        self.say("VERBOSE", LOG)
        return self.plan


@pytest.fixture
def asking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    def ask(trt: TensorRT, **settings: Any) -> Any:
        messages._loggers.clear()
        monkeypatch.setattr(compiling, "find_bindings", lambda runtime: Bindings(trt, "tensorrt"))
        request = {
            "onnx": str(tmp_path / "net.onnx"),
            "name": "net.onnx",
            "out": "net.plan",
            "plan": str(tmp_path / "plan"),
            "settings": BuildSettings(**settings).to_dict(),
            "cache_folder": str(tmp_path / "cache"),
        }
        return answer_build(request, lambda phase, share: None)

    monkeypatch.setattr(compiling, "probe", lambda open_library: DRIVER)
    yield ask
    messages._loggers.clear()


@pytest.mark.parametrize(
    ("version", "typing", "bits", "flags"),
    [
        ("10.3.0", "weak", 0b01, {"TF32", "INT8", "FP16"}),
        ("10.12.0.36", "strong", 0b11, {"TF32"}),
        ("10.16.1.11", "strong", 0b11, {"TF32"}),
        ("11.4.0.106", "strong", 0b01, {"TF32"}),
    ],
)
def test_the_route_to_a_precision(
    asking: Any, version: str, typing: str, bits: int, flags: set[str]
) -> None:
    trt = TensorRT(version)
    answer = asking(trt)
    assert (answer["typing"], trt.bits, trt.config.flags) == (typing, bits, flags)
    assert answer["version"] == version


def test_the_other_route_can_be_asked_for(asking: Any) -> None:
    trt = TensorRT("10.16.1.11")
    assert asking(trt, typing="weak")["typing"] == "weak"
    assert trt.config.flags == {"TF32", "INT8", "FP16"}
    trt = TensorRT("10.3.0")
    assert asking(trt, typing="strong")["typing"] == "strong"
    assert (trt.bits, trt.config.flags) == (0b11, {"TF32"})


@pytest.mark.parametrize(
    ("precision", "flags"), [("float16", {"TF32", "FP16"}), ("float32", {"TF32"})]
)
def test_weak_typing_raises_the_flags_of_its_precision(
    asking: Any, precision: str, flags: set[str]
) -> None:
    trt = TensorRT("10.3.0")
    asking(trt, precision=precision)
    assert trt.config.flags == flags


def test_settings_reach_the_builder(asking: Any) -> None:
    trt = TensorRT("10.16.1.11")
    asking(
        trt,
        workspace_mb=256,
        optimization_level=5,
        tf32=False,
        version_compatible=True,
        hardware_compatible="same_compute_capability",
        profiles=(Batches(1, 2, 4), Batches(8, 8, 8)),
    )
    config = trt.config
    assert config.pools == {"WORKSPACE": 256 << 20}
    assert config.builder_optimization_level == 5
    assert config.flags == {"VERSION_COMPATIBLE"}
    assert config.hardware_compatibility_level.name == "SAME_COMPUTE_CAPABILITY"
    assert config.profiles == [
        {"x": ((1, 3), (2, 3), (4, 3))},
        {"x": ((8, 3), (8, 3), (8, 3))},
    ]
    assert config.profiling_verbosity.name == "DETAILED"


def test_a_setting_that_a_version_lacks_is_refused(asking: Any) -> None:
    with pytest.raises(ConfigError, match=r"SAME_COMPUTE_CAPABILITY, which tensorrt 10.3.0 does"):
        asking(TensorRT("10.3.0"), hardware_compatible="same_compute_capability")
    with pytest.raises(ConfigError, match="ComputeCapability.SM86"):
        asking(TensorRT("10.3.0"), compute_capabilities=("8.6",))
    with pytest.raises(ConfigError, match="only types strongly"):
        asking(TensorRT("11.4.0.106"), typing="weak")
    trt = TensorRT("10.3.0")
    del trt.config.builder_optimization_level
    with pytest.raises(ConfigError, match="Config.builder_optimization_level"):
        asking(trt, optimization_level=2)


def test_the_dla_falls_back_to_the_gpu_unless_it_may_not(asking: Any) -> None:
    trt = TensorRT("10.3.0")
    asking(trt, dla_core=1)
    assert trt.config.DLA_core == 1
    assert trt.config.default_device_type.name == "DLA"
    assert "GPU_FALLBACK" in trt.config.flags
    assert trt.config.profiles == [{"x": ((1, 3), (1, 3), (1, 3))}]
    trt = TensorRT("10.3.0")
    asking(trt, dla_core=0, gpu_fallback=False)
    assert "GPU_FALLBACK" not in trt.config.flags
    with pytest.raises(DeviceError, match="DLA core 2 was asked for and tensorrt 10.3.0 sees 2"):
        asking(TensorRT("10.3.0"), dla_core=2)


def test_what_was_timed_is_kept_and_used_again(asking: Any, tmp_path: Path) -> None:
    path = tmp_path / "timing.cache"
    assert asking(TensorRT("10.3.0"), timing_cache=path)["timing_cache"] == str(path)
    assert path.read_bytes() == b"+timed"
    asking(TensorRT("10.3.0"), timing_cache=path)
    assert path.read_bytes() == b"+timed+timed"
    assert [p.name for p in tmp_path.iterdir() if "timing" in p.name] == ["timing.cache"]


def test_a_timing_cache_has_a_place_of_its_own(asking: Any, tmp_path: Path) -> None:
    kept = asking(TensorRT("10.3.0"))["timing_cache"]
    assert kept == str(tmp_path / "cache" / "timing-10.3.0-Orin-8.7.cache")
    assert Path(kept).is_file()
    assert asking(TensorRT("10.3.0"), keep_timing=False)["timing_cache"] is None


def test_a_foreign_timing_cache_is_refused(asking: Any, tmp_path: Path) -> None:
    path = tmp_path / "timing.cache"
    path.write_bytes(b"foreign")
    with pytest.raises(StorageError, match="refuses this timing cache"):
        asking(TensorRT("10.3.0"), timing_cache=path)
    assert path.read_bytes() == b"foreign"


def test_a_timing_cache_that_is_a_folder(asking: Any, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be read"):
        asking(TensorRT("10.3.0"), timing_cache=tmp_path)


def test_the_inspector_is_believed_where_there_is_a_gpu(asking: Any) -> None:
    answer = asking(TensorRT("10.3.0"))
    assert (answer["source"], answer["layers"][0]["name"]) == ("engine inspector", "conv")


def test_an_engine_that_does_not_load_here(asking: Any) -> None:
    trt = TensorRT("10.3.0")
    trt.Runtime = lambda logger: SimpleNamespace(deserialize_cuda_engine=lambda plan: None)
    with pytest.raises(DeviceError, match="cannot load the plan on this machine"):
        asking(trt)
    trt.ComputeCapability = enum.Enum("ComputeCapability", ["SM86"])  # built ahead of time
    answer = asking(trt)
    assert answer["source"] == "build log"
    assert "cannot load the plan on this machine" in answer["warnings"][-1]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("Error Code 2: OutOfMemory (Requested size was 9 bytes.)", "out of memory .*lower"),
        ("[virtualMemoryBuffer.cpp] cudaError 2: out of memory", "out of memory .*lower"),
        ("no tactics to implement the operation within workspace limit", "no kernel fits.*raise"),
        ("Could not find any implementation for node conv", "no kernel fits.*64 MB.*raise"),
        ("Error Code 4: API Usage Error", "tensorrt 10.3.0 could not build it: Error Code 4"),
    ],
)
def test_a_build_that_fails_says_why(asking: Any, said: str, words: str) -> None:
    trt = TensorRT("10.3.0")
    trt.plan, trt.errors = None, [said]
    with pytest.raises(DeviceError, match=words) as refused:
        asking(trt, workspace_mb=64)
    assert "\n" not in str(refused.value)


def test_without_a_driver_nothing_is_constructed(
    asking: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(open_library: Any) -> Any:
        raise DeviceError("NVIDIA driver: none on this machine (libcuda.so); run it elsewhere")

    monkeypatch.setattr(compiling, "probe", missing)
    trt = TensorRT("10.3.0")
    with pytest.raises(DeviceError, match="times kernels on the GPU .*none on this machine"):
        asking(trt)
    assert trt.bits is None


def test_a_builder_that_cannot_be_made(asking: Any) -> None:
    trt = TensorRT("10.3.0")
    trt.no_builder = True
    with pytest.raises(DeviceError, match="cannot make a builder .*error: 35"):
        asking(trt)


def test_a_plan_that_cannot_be_written(asking: Any, tmp_path: Path) -> None:
    (tmp_path / "plan").mkdir()
    with pytest.raises(StorageError, match="net.plan: the plan of 4 bytes cannot be written"):
        asking(TensorRT("10.3.0"))


def test_without_detail_nothing_is_described(asking: Any) -> None:
    answer = asking(TensorRT("10.3.0"), precision="float32", verbosity="none")
    assert answer["layers"] == []
    assert "not 'detailed'" in answer["source"]


def test_strong_typing_before_it_existed() -> None:
    trt = TensorRT("10.3.0")
    trt.NetworkDefinitionCreationFlag = enum.IntEnum("Creation", {"EXPLICIT_BATCH": 0})
    bindings = Bindings(trt, "tensorrt")
    assert bindings.network_flags(False) == 1
    with pytest.raises(CompressDeployError, match="has no strong typing"):
        bindings.network_flags(True)
