"""The worker's side of building: from an ONNX file to a plan, inside the bindings."""

from __future__ import annotations

import ctypes
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, Sequence

from deploy.engines.bindings import Bindings, find_bindings
from deploy.engines.driver import probe
from deploy.engines.importer import parse
from deploy.engines.layers import Layer, layers_from_log
from deploy.engines.loading import inspected, load_engine
from deploy.engines.messages import Messages, listening, logger_of
from deploy.engines.monitor import progress_monitor
from deploy.engines.settings import Batches, BuildSettings
from deploy.engines.timing import TimingCache
from deploy.engines.worker import Answer, Progress
from deploy.errors import ConfigError, DeviceError, StorageError, VerificationError

MIB = 1 << 20
_VERBOSITY = {"detailed": "DETAILED", "layer_names_only": "LAYER_NAMES_ONLY", "none": "NONE"}
# A warning of the importer after which the engine computes something else than the graph.
_CLAMPS = ("UINT8", "Defaulting to INT8")
_IMPOSSIBLE_SIZES = "not self-consistent"
# What the builder says when its scratch limit leaves no kernel, and when memory itself is gone.
_LIMIT = ("within workspace limit", "insufficient workspace", "could not find any implementation")
_MEMORY = ("out of memory", "outofmemory", "bad_alloc", "memory allocation", "cudaerror 2:")


def answer_build(request: Answer, progress: Progress) -> Answer:
    """Build what ``deploy.engines.build.build_engine`` asks for; the plan goes to a scratch file."""
    settings = BuildSettings.from_dict(request["settings"])
    bindings = find_bindings(settings.runtime)
    driver = _driver(bindings)
    with listening() as messages:
        return _Build(bindings, settings, request, messages, progress, driver).run()


def _driver(bindings: Bindings) -> Answer | None:
    """The driver, ``None`` where it is neither there nor needed."""
    try:
        return probe(ctypes.CDLL)
    except DeviceError as error:
        if bindings.times_kernels:
            raise DeviceError(
                f"build: {bindings.title} times kernels on the GPU that the engine is for; {error}"
            ) from error
        return None


@dataclass(frozen=True)
class _Build:
    bindings: Bindings
    settings: BuildSettings
    request: Answer
    messages: Messages
    progress: Progress
    driver: Answer | None

    def run(self) -> Answer:
        bindings, settings = self.bindings, self.settings
        strong = {"strong": True, "weak": False}.get(settings.typing, bindings.types_strongly)
        if not strong and not self.bindings.has_precision_flags:
            raise ConfigError(
                f"build: typing 'weak' was asked for and {self.bindings.title} only types "
                "strongly: precision is what the ONNX graph says; use typing 'strong' or 'auto'"
            )
        logger = logger_of(bindings)
        builder = bindings.make_builder(logger, lambda: self.messages.first_error)
        network = builder.create_network(self.bindings.network_flags(strong))
        parser = self._parse(network)
        config = builder.create_builder_config()
        self._configure(builder, config, strong)
        profiles = self._profiles(builder, config, network)
        timing = TimingCache.of(bindings, settings, self.driver, Path(self.request["cache_folder"]))
        if timing is not None:
            timing.load_into(config)
        started = time.perf_counter()
        plan = self._build(builder, network, config)
        build_s = time.perf_counter() - started
        self._require_sizes_that_run()
        if timing is not None:
            timing.keep_from(config)
        layers, source = self._describe(plan)
        ports = {"inputs": _ports(network, "input"), "outputs": _ports(network, "output")}
        del parser  # it owns weights that the network points to, so it had to live until here
        return {
            "runtime": self.bindings.flavour,
            "version": self.bindings.version,
            "driver": self.driver,
            "typing": "strong" if strong else "weak",
            "profiles": profiles,
            "timing_cache": None if timing is None else str(timing.path),
            "build_s": build_s,
            "size_bytes": len(plan),
            "layers": [layer.to_dict() for layer in layers],
            "source": source,
            "warnings": self.messages.warnings,
            **ports,
        }

    def _parse(self, network: Any) -> Any:
        parser, problems = parse(self.bindings, network, Path(self.request["onnx"]))
        if problems:
            shown = "; ".join(str(problem) for problem in problems[:3])
            more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
            raise VerificationError(
                f"{self.request['name']}: {self.bindings.title} refuses the graph: {shown}{more}; "
                "compress-deploy lint says what to do about it"
            )
        clamped = [text for text in self.messages.warnings if all(w in text for w in _CLAMPS)]
        if clamped:
            raise VerificationError(
                f"{self.request['name']}: {self.bindings.title} would take uint8 activations for "
                f"int8 and clamp what is above 127 steps ({clamped[0]}); give a graph that was "
                "exported for the target tensorrt"
            )
        return parser

    def _require_sizes_that_run(self) -> None:
        """The builder makes an engine even for sizes at which the network's own arithmetic overflows."""
        broken = [text for text in self.messages.warnings if _IMPOSSIBLE_SIZES in text]
        if broken:
            sizes = ", ".join(str(one.max) for one in self.settings.profiles or ())
            raise ConfigError(
                f"build: with batches up to {sizes} {self.bindings.title} builds an engine that cannot "
                f"run them ({' '.join(broken[0].split())[:160]}); lower --max-batch"
            )

    def _configure(self, builder: Any, config: Any, strong: bool) -> None:
        settings, bindings = self.settings, self.bindings
        member = bindings.member
        config.profiling_verbosity = member(
            "ProfilingVerbosity", _VERBOSITY[settings.verbosity], f"verbosity {settings.verbosity}"
        )
        if settings.workspace_mb is not None:
            pool = member("MemoryPoolType", "WORKSPACE", "workspace_mb")
            config.set_memory_pool_limit(pool, settings.workspace_mb * MIB)
        if settings.optimization_level is not None:
            bindings.set_attribute(
                config,
                "builder_optimization_level",
                settings.optimization_level,
                "optimization_level",
            )
        if not settings.tf32:
            config.clear_flag(member("BuilderFlag", "TF32", "tf32 false"))
        if not strong:
            for name in {"int8": ("INT8", "FP16"), "float16": ("FP16",)}.get(
                settings.precision, ()
            ):
                config.set_flag(member("BuilderFlag", name, f"precision {settings.precision}"))
        if settings.version_compatible:
            config.set_flag(member("BuilderFlag", "VERSION_COMPATIBLE", "version_compatible"))
        if settings.hardware_compatible:
            self._hardware_compatible(config)
        if settings.dla_core is not None:
            self._use_dla(builder, config)
        if settings.compute_capabilities:
            self._compile_for(config)
        if bindings.reports_progress:
            config.progress_monitor = progress_monitor(bindings.trt, self.progress)

    def _hardware_compatible(self, config: Any) -> None:
        name = str(self.settings.hardware_compatible).upper()
        level = self.bindings.member("HardwareCompatibilityLevel", name, "hardware_compatible")
        known = len(self.messages.warnings)
        config.hardware_compatibility_level = level
        # TensorRT-RTX has the attribute, says that it does not heed it, and goes on.
        refused = [text for text in self.messages.warnings[known:] if "unsupported" in text]
        if refused:
            raise ConfigError(
                f"build: hardware_compatible is not for {self.bindings.title} ({refused[0]}); "
                "leave it out"
            )

    def _use_dla(self, builder: Any, config: Any) -> None:
        core, bindings = self.settings.dla_core, self.bindings
        if core is None or core >= builder.num_DLA_cores:
            raise DeviceError(
                f"build: DLA core {core} was asked for and {bindings.title} sees "
                f"{builder.num_DLA_cores} on this machine; leave it out (JetPack 7.2 has no DLA "
                "compiler, Orin Nano and Thor have no DLA)"
            )
        config.default_device_type = bindings.member("DeviceType", "DLA", "dla_core")
        config.DLA_core = core
        if self.settings.gpu_fallback:
            config.set_flag(bindings.member("BuilderFlag", "GPU_FALLBACK", "gpu_fallback"))

    def _compile_for(self, config: Any) -> None:
        wanted = self.settings.compute_capabilities
        levels = [
            self.bindings.member("ComputeCapability", f"SM{name.replace('.', '')}", f"GPU {name}")
            for name in wanted
        ]
        config.num_compute_capabilities = len(levels)
        for index, level in enumerate(levels):
            if not config.set_compute_capability(level, index):
                raise ConfigError(
                    f"build: {self.bindings.title} cannot compile for {wanted[index]} together "
                    f"with {list(wanted)} ({self.messages.last_error}); give fewer"
                )

    def _profiles(self, builder: Any, config: Any, network: Any) -> Answer:
        """Add the optimisation profiles; returns shapes by input, one ``[min, opt, max]`` each."""
        shapes = {}
        for index in range(network.num_inputs):
            tensor = network.get_input(index)
            shapes[tensor.name] = tuple(tensor.shape)
            if 0 in shapes[tensor.name]:
                raise ConfigError(
                    f"{self.request['name']}: input {tensor.name!r} has shape "
                    f"{shapes[tensor.name]}, which holds nothing; export it with a batch of 1 or "
                    "more, or a dynamic one"
                )
        dynamic = {name for name, shape in shapes.items() if -1 in shape}
        for name in dynamic:
            if -1 in shapes[name][1:]:
                raise ConfigError(
                    f"{self.request['name']}: input {name!r} has shape {shapes[name]}; only the "
                    "batch, the first size, may be dynamic; export it with the others fixed"
                )
        if not dynamic:
            self._check_static(shapes)
            return {name: [[list(shape)] * 3] for name, shape in shapes.items()}
        profiles = self.settings.profiles or (
            Batches() if self.settings.dla_core is None else Batches(1, 1, 1),
        )
        for number, batches in enumerate(profiles):
            profile = builder.create_optimization_profile()
            for name in sorted(dynamic):
                profile.set_shape(name, *_sizes(shapes[name], batches))
            if config.add_optimization_profile(profile) < 0:
                raise ConfigError(
                    f"{self.request['name']}: profile {number} ({batches}) was refused: "
                    f"{self.messages.first_error}"
                )
        return {
            name: [[list(size) for size in _sizes(shape, batches)] for batches in profiles]
            for name, shape in shapes.items()
        }

    def _check_static(self, shapes: Mapping[str, Sequence[int]]) -> None:
        for batches in self.settings.profiles or ():
            for name, shape in shapes.items():
                if {batches.min, batches.opt, batches.max} != {shape[0] if shape else 1}:
                    raise ConfigError(
                        f"{self.request['name']}: input {name!r} has the fixed shape {shape} and "
                        f"batches {batches.min} to {batches.max} were asked for; leave them out, "
                        "or export the model with a dynamic batch"
                    )

    def _build(self, builder: Any, network: Any, config: Any) -> bytes:
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise self._refusal()
        data = bytes(plan)
        try:
            Path(self.request["plan"]).write_bytes(data)
        except OSError as error:
            raise StorageError(
                f"{self.request['out']}: the plan of {len(data)} bytes cannot be written "
                f"({error.strerror}); free some space or choose another folder"
            ) from error
        return data

    def _refusal(self) -> DeviceError:
        said, name = " ".join(self.messages.errors), self.request["name"]
        first = self.messages.first_error[:300]
        limit = self.settings.workspace_mb
        workspace = "the runtime's own limit" if limit is None else f"{limit} MB"
        if any(text in said.lower() for text in _MEMORY):
            return DeviceError(
                f"{name}: out of memory while building with a workspace of {workspace} ({first}); "
                "lower --workspace-mb or --max-batch, and close what else uses the GPU's memory"
            )
        if any(text in said.lower() for text in _LIMIT):
            return DeviceError(
                f"{name}: no kernel fits into a workspace of {workspace} ({first}); raise "
                "--workspace-mb, or lower --max-batch"
            )
        return DeviceError(f"{name}: {self.bindings.title} could not build it: {first}")

    def _describe(self, plan: bytes) -> tuple[list[Layer], str]:
        """The finished engine's layers: by the inspector with a driver, else by the build's log."""
        if self.settings.verbosity != "detailed":
            return [], "nothing: the verbosity is not 'detailed'"
        if self.driver is not None:
            try:
                runtime, engine = load_engine(
                    self.bindings, plan, version_compatible=self.settings.version_compatible
                )
                layers = inspected(self.bindings, engine)
                del engine, runtime  # in this order
                return layers, "engine inspector"
            except DeviceError as error:
                # Kernels that were timed here run here; ahead of time, any GPU is built for.
                if self.bindings.times_kernels or not self.messages.layers:
                    raise
                self.messages.add("WARNING", str(error))
        if not self.messages.layers:
            return [], "nothing: the builder did not describe the engine"
        return layers_from_log(self.messages.layers[-1]), "build log"


def _sizes(shape: Sequence[int], batches: Batches) -> list[tuple[int, ...]]:
    return [
        tuple(batch if size == -1 else size for size in shape)
        for batch in (batches.min, batches.opt, batches.max)
    ]


def _ports(network: Any, side: str) -> list[Answer]:
    count, get = getattr(network, f"num_{side}s"), getattr(network, f"get_{side}")
    return [
        {"name": t.name, "shape": list(t.shape), "dtype": str(t.dtype.name).lower()}
        for t in (get(index) for index in range(count))
    ]
