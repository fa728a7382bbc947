"""Every attribute of TensorRT's bindings that the adapter touches exists in every version.

What is touched is read from the adapter's sources: expressions that hold an object of the bindings
are known by name (``HOLDS``), and their attributes are collected.  The binding wheels are NVIDIA's
own, from the package index; they are imported against empty libraries, so nothing is ever called.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.engines.compiling import _VERBOSITY
from deploy.engines.settings import HARDWARE

ROOT = Path(__file__).parents[3]
SOURCES = [*sorted((ROOT / "deploy/engines").glob("*.py")), ROOT / "deploy/sessions/engine.py"]

# Expressions in the adapter that hold an object of the bindings, and its class ("" the module).
HOLDS = {
    "trt": "",
    "bindings.trt": "",
    "self.trt": "",
    "self.bindings.trt": "",
    "self._bindings.trt": "",
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "tensor": "ITensor",
    "engine": "ICudaEngine",
    "self._engine": "ICudaEngine",
    "context": "IExecutionContext",
    "self._context": "IExecutionContext",
    "self._runtime": "Runtime",
    "inspector": "EngineInspector",
    "runtime": "Runtime",
}
# The same name means other things in these files.
ELSEWHERE = {
    "settings.py": {"profile"},
    "driver.py": {"context"},
    "cuda.py": {"context"},
}
# The adapter asks for these in ways that no attribute access shows.
ASKED = {
    "BuilderFlag": {"TF32", "INT8", "FP16", "VERSION_COMPATIBLE", "GPU_FALLBACK"},
    "ProfilingVerbosity": set(_VERBOSITY.values()),
    "HardwareCompatibilityLevel": {name.upper() for name in HARDWARE},
    "MemoryPoolType": {"WORKSPACE"},
    "DeviceType": {"DLA"},
    "NetworkDefinitionCreationFlag": {"STRONGLY_TYPED", "EXPLICIT_BATCH"},
    "INetworkDefinition": {"num_inputs", "num_outputs", "get_input", "get_output"},
    "IBuilderConfig": {"builder_optimization_level"},
    "ParserError": {"code", "desc", "node", "node_operator", "node_name"},
    "ITensor": {"name", "shape", "dtype"},
    "ITimingCache": {"serialize"},
    "Runtime": {"deserialize_cuda_engine"},
    "EngineInspector": {"get_engine_information"},
    "ILogger": {"log"},
    "IProfiler": {"report_layer_time"},
    "IProgressMonitor": {"phase_start", "phase_finish", "step_complete"},
    "TensorIOMode": {"INPUT"},
    "TensorLocation": {"HOST"},
    "LayerInformationFormat": {"JSON"},
}
# What a version lacks, each handled by presence in bindings.py or refused by name.
RTX_ONLY = {
    "ComputeCapability",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
}
NEVER_TYPED_WEAKLY = {
    "BuilderFlag.INT8",
    "BuilderFlag.FP16",
    "NetworkDefinitionCreationFlag.EXPLICIT_BATCH",
    "ICudaEngine.device_memory_size",
}
ABSENT = {
    "tensorrt-bindings==8.6.1": RTX_ONLY
    | {
        "HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY",
        "BuilderFlag.DISTRIBUTIVE_INDEPENDENCE",
        "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
        "IBuilderConfig.progress_monitor",
        "IProgressMonitor",
        "IProgressMonitor.phase_start",
        "IProgressMonitor.phase_finish",
        "IProgressMonitor.step_complete",
        "ParserError.node_name",
        "ParserError.node_operator",
        "ICudaEngine.device_memory_size_v2",
    },
    "tensorrt-cu12-bindings==10.3.0": RTX_ONLY
    | {
        "HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY",
        "BuilderFlag.DISTRIBUTIVE_INDEPENDENCE",
    },
    "tensorrt-cu13-bindings==10.13.3.9": RTX_ONLY,
    "tensorrt-cu13-bindings==10.16.1.11": RTX_ONLY,
    "tensorrt-cu13-bindings==11.4.0.106": RTX_ONLY | NEVER_TYPED_WEAKLY,
}
ENTRY_POINTS = """
void *createInferBuilder_INTERNAL(void *logger, int version) { return 0; }
void *createInferRuntime_INTERNAL(void *logger, int version) { return 0; }
void *createInferRefitter_INTERNAL(void *engine, void *logger, int version) { return 0; }
void *createNvOnnxParser_INTERNAL(void *network, void *logger, int version) { return 0; }
void *createNvOnnxParserRefitter_INTERNAL(void *refitter, void *logger, int v) { return 0; }
int getNvOnnxParserVersion(void) { return 0; }
void *getPluginRegistry(void) { return 0; }
void *getBuilderPluginRegistry(int capability) { return 0; }
int initLibNvInferPlugins(void *logger, const char *space) { return 1; }
"""
# Version 8 also wants the parsers of two formats that are gone; C++ names, written as C has them.
OLD_ENTRY_POINTS = """
void *a(void) __asm__("_ZN11nvuffparser15createUffParserEv"); void *a(void) { return 0; }
void *b(void) __asm__("_ZN11nvuffparser8FieldMapC1EPKcPKvNS_9FieldTypeEi");
void *b(void) { return 0; }
void *c(void) __asm__("_ZN14nvcaffeparser117createCaffeParserEv"); void *c(void) { return 0; }
void *d(void) __asm__("_ZN14nvcaffeparser123shutdownProtobufLibraryEv");
void *d(void) { return 0; }
"""
LOOK = """
import importlib, json, sys
trt = importlib.import_module(sys.argv[1])
found = {name: sorted(dir(getattr(trt, name))) for name in dir(trt)}
from deploy.engines.bindings import Bindings
from deploy.engines.messages import logger_of
from deploy.engines.monitor import progress_monitor
bindings = Bindings(trt, "tensorrt")
logger_of(bindings).log(trt.ILogger.Severity.WARNING, "it takes messages")
if bindings.reports_progress:
    assert progress_monitor(trt, lambda phase, share: None).step_complete("phase", 0)
routes = {
    "strong": bindings.types_strongly,
    "flags": bindings.has_precision_flags,
    "times": bindings.times_kernels,
    "bits": [
        bindings.network_flags(typed)
        for typed in (False, True)
        if not typed or "STRONGLY_TYPED" in trt.NetworkDefinitionCreationFlag.__members__
    ],
}
print(json.dumps({"found": found, "routes": routes, "version": bindings.version}))
"""


def touched() -> set[str]:
    """``Class.attribute`` and module attributes that the sources touch."""
    names = {f"{owner}.{name}" for owner, members in ASKED.items() for name in members}
    for path in SOURCES:
        holds = {
            name: owner for name, owner in HOLDS.items() if name not in ELSEWHERE.get(path.name, ())
        }
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Attribute):
                continue
            owner = holds.get(ast.unparse(node.value))
            if owner == "" and node.attr != "__version__":
                names.add(node.attr)
            elif owner:
                names.add(f"{owner}.{node.attr}")
    return names | {"BuilderFlag.DISTRIBUTIVE_INDEPENDENCE", "ComputeCapability"}


def lacking(found: dict[str, list[str]]) -> set[str]:
    def there(name: str) -> bool:
        owner, _, member = name.partition(".")
        return owner in found and (not member or member in found[owner])

    return {name for name in touched() if not there(name)}


def test_the_sources_were_read() -> None:
    assert touched() >= {
        "Builder.build_serialized_network",
        "IBuilderConfig.set_memory_pool_limit",
        "IExecutionContext.execute_async_v3",
        "ICudaEngine.num_optimization_profiles",
        "OnnxParser.parse_from_file",
        "OnnxParser.num_errors",
        "OnnxParser",
        "Runtime",
    }


def test_what_is_asked_by_name_is_in_the_table() -> None:
    """``member("Enumeration", "NAME", ...)`` with literal names, anywhere in the adapter."""
    asked = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            called = isinstance(node, ast.Call) and ast.unparse(node.func).endswith("member")
            values = [getattr(argument, "value", None) for argument in node.args] if called else []
            if len(values) == 3 and isinstance(values[0], str):
                assert values[0] in (*ASKED, "ComputeCapability"), values
                if isinstance(values[1], str):
                    asked.add((values[0], values[1]))
    assert asked
    assert {(owner, name) for owner, name in asked if name not in ASKED[owner]} == set()


def test_version_numbers_decide_nothing() -> None:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.If | ast.IfExp | ast.While):
                assert "__version__" not in ast.unparse(node.test), path


def test_tensorrt_rtx_has_what_is_touched() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    found = {name: dir(getattr(trt, name)) for name in dir(trt)}
    assert lacking(found) == NEVER_TYPED_WEAKLY


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes a folder of empty libraries of one major version."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is not installed; the stand-in libraries need it")

    def make(major: str) -> Path:
        folder = tmp_path_factory.mktemp(f"libraries-{major}")
        source = folder / "entry_points.c"
        source.write_text(ENTRY_POINTS + (OLD_ENTRY_POINTS if major == "8" else ""))
        old = ("nvparsers",) if major == "8" else ()
        for library in ("nvinfer", "nvonnxparser", "nvinfer_plugin", *old):
            name = f"lib{library}.so.{major}"
            soname = f"-Wl,-soname,{name}"
            command = [str(compiler), "-shared", "-fPIC", soname, "-o", folder / name, source]
            subprocess.run(command, check=True)
        return folder

    return make


def wheel(requirement: str, folder: Path) -> Path:
    """The unpacked wheel; skips where the index does not answer."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--retries", "1"]
    command += ["--only-binary=:all:", "--dest", str(folder), requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{requirement}: the package index did not answer in time")
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        pytest.skip(f"{requirement}: cannot be fetched ({reason})")
    shutil.unpack_archive(wheels[0], folder / "unpacked", "zip")
    return folder / "unpacked"


@pytest.mark.slow
@pytest.mark.parametrize("requirement", ABSENT)
def test_every_version_has_what_is_touched(
    requirement: str, libraries: Callable[[str], Path], tmp_path: Path
) -> None:
    version = requirement.partition("==")[2]
    unpacked = wheel(requirement, tmp_path)
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(libraries(version.partition(".")[0])),
        "PYTHONPATH": os.pathsep.join([str(unpacked), str(ROOT)]),
    }
    command = [sys.executable, "-c", LOOK, "tensorrt_bindings"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    look = json.loads(done.stdout)
    assert look["version"] == version
    assert lacking(look["found"]) == ABSENT[requirement]
    new, old = version.startswith("11."), version.startswith(("8.", "10.3"))
    assert look["routes"] == {
        "strong": not old,
        "flags": not new,
        "times": True,
        "bits": [0, 1] if new else [1] if version.startswith("8.") else [1, 3],
    }
