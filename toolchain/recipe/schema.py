"""What a recipe can say: the teacher, its data, the goals, the structure and the chain of stages.

Every field has one spelling, one type and one default. Reading a file, overrides and error messages
live in ``toolchain.recipe.reading``; importing this module needs neither torch nor numpy.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from deploy.targets import Target
from toolchain.chain import onnx_chain, standard_chain
from toolchain.recipe.base import Frozen
from toolchain.recipe.network import check_constructor
from toolchain.stages import STAGES, StageModel

Share = Annotated[float, Field(gt=0, le=1)]

if TYPE_CHECKING:
    StageConfig = StageModel
else:  # the union is data: a stage added to STAGES is at once accepted, suggested and in the schema
    StageConfig = Annotated[Union[STAGES], Field(discriminator="stage")]  # noqa: UP007


class ModelConfig(Frozen):
    """Where the teacher's network and its weights come from: exactly one of builtin, file and onnx."""

    builtin: str | None = Field(None, description="name of a built-in network")
    file: str | None = Field(None, description="a Python file and a function in it: net.py:build")
    onnx: Path | None = Field(
        None, description="a float ONNX file: quantized, verified and measured without training"
    )
    args: dict[str, Any] = Field({}, description="keyword arguments of the constructor")
    checkpoint: Path | None = Field(None, description=".safetensors, or a torch file of tensors")

    @model_validator(mode="after")
    def _one_origin(self) -> ModelConfig:
        given = [name for name in ("builtin", "file", "onnx") if getattr(self, name) is not None]
        if len(given) != 1:
            found = f"{' and '.join(map(repr, given))} given" if given else "none given"
            raise ValueError(
                f"{found} of 'builtin', 'file' and 'onnx'; accepted: exactly one of them"
            )
        if self.onnx is not None and (self.args or self.checkpoint is not None):
            raise ValueError(
                "an ONNX file given with args or a checkpoint, which it has no use for; "
                "accepted: the file alone"
            )
        if self.file is not None:
            check_constructor(self.file)
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without ``onnx`` where it says nothing: what older versions made is found by the same key."""
        record: dict[str, Any] = dump(self)
        if self.onnx is None:
            record.pop("onnx", None)
        return record


class PreprocessConfig(Frozen):
    """Normalisation of pixels in [0, 1], per channel; one number stands for every channel."""

    mean: list[float] = Field([0.0], min_length=1)
    std: list[Annotated[float, Field(gt=0)]] = Field([1.0], min_length=1)

    @model_validator(mode="after")
    def _same_length(self) -> PreprocessConfig:
        if len(self.mean) != len(self.std):
            raise ValueError(
                f"mean has {len(self.mean)} numbers and std has {len(self.std)}; "
                "accepted: one per channel in both"
            )
        return self


class AugmentConfig(Frozen):
    """Random changes of training images."""

    crop: int = Field(0, ge=0, description="pixels of zero padding before a random crop")
    flip: bool = Field(False, description="mirror left and right for half of the images")


class _DataConfig(Frozen):
    """What every kind of data can say."""

    title: str | None = Field(None, description="what tables call it, e.g. CIFAR-10 (JPEG)")
    validation: float = Field(0.1, gt=0, le=0.5, description="share cut from train")
    split_seed: int = Field(0, ge=0, description="which samples are cut for validation")
    on_corrupt: Literal["error", "skip"] = Field("error", description="skipped ones are counted")
    image_size: int | None = Field(
        None, ge=1, description="shorter side in pixels, then a centre crop; images may differ"
    )
    memory_limit_mb: int = Field(4096, ge=1, description="decoded images beyond it are streamed")
    preprocess: PreprocessConfig = PreprocessConfig()
    augment: AugmentConfig = AugmentConfig()


class DigitsData(_DataConfig):
    """scikit-learn's handwritten digits, 1 x 8 x 8; needs the extra ``demo``."""

    kind: Literal["digits"]


class ParquetData(_DataConfig):
    """Parquet files with encoded images, as data sets on hubs have them."""

    kind: Literal["parquet"]
    root: Path | None = Field(None, description="folder with train-*.parquet and test-*.parquet")


class FolderData(_DataConfig):
    """A folder per split and in it a folder of images per class."""

    kind: Literal["folder"]
    root: Path | None = Field(None, description="folder with train/CLASS/* and test/CLASS/*")


class NpzData(_DataConfig):
    """Arrays in one ``.npz`` file: ``x_train``, ``y_train``, ``x_test``, ``y_test``, or ``x``, ``y``.

    Images are uint8, [N, H, W], [N, H, W, C] or [N, C, H, W]; ``classes`` may hold names.
    """

    kind: Literal["npz"]
    root: Path | None = Field(None, description="the .npz file")


DataConfig = DigitsData | ParquetData | FolderData | NpzData


class Goals(Frozen):
    """What must be reached; a goal that is missed is exit status 1."""

    macs: Share | None = Field(None, description="share of the teacher's MACs that may remain")
    parameters: Share | None = Field(None, description="share of the parameters that may remain")
    accuracy_drop: float | None = Field(None, description="points of top-1 that may be lost")
    latency: Share | None = Field(None, description="share of the teacher's latency")
    latency_ms: float | None = Field(None, gt=0, description="median at batch 1")


class StructureConfig(Frozen):
    """Which channels may go, how they are ranked, and how the sparsity is spread."""

    ignore: list[str] = Field([], description="layers left whole: name, glob or module type")
    importance: Literal["l1", "l2", "taylor", "bn_scale"] = "l2"
    allocation: Literal["local", "global", "macs", "latency"] = "global"
    align: int = Field(1, ge=1, description="kept widths are multiples of it where possible")
    branches: bool = Field(False, description="whole residual branches may go")
    max_sparsity: float = Field(0.9, ge=0, lt=1, description="of each group")
    macs: Share | None = Field(None, description="share of MACs to keep; default goals.macs")
    latency: Share | None = Field(None, description="likewise; default goals.latency")
    channels: dict[str, Annotated[int, Field(ge=1)]] | None = Field(
        None, description="kept channels by group name or glob; overrides allocation"
    )
    drop: list[str] = Field([], description="residual branches to remove, by name")


def _default_stages(given: dict[str, Any]) -> list[StageModel]:
    """The chain of a recipe that names none."""
    model = given.get("model")
    return list(onnx_chain() if model is not None and model.onnx is not None else standard_chain())


class Recipe(Frozen):
    """One compression job, complete: the same recipe and seed give the same student."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(0, ge=0, lt=2**32)
    threads: int | None = Field(None, ge=1, description="CPU threads; default: all")
    precision: Literal["auto", "float32", "bf16"] = "auto"
    target: Target | Annotated[list[Target], Field(min_length=1)] = Field(
        "ort-cpu",
        description="one or several; training uses a grid of activations that all of them have",
    )
    model: ModelConfig
    data: Annotated[DataConfig, Field(discriminator="kind")]
    goals: Goals = Goals()
    structure: StructureConfig = StructureConfig()
    stages: list[StageConfig] = Field(
        default_factory=lambda given: _default_stages(given), min_length=1
    )

    @field_validator("target")
    @classmethod
    def _each_target_once(cls, target: Target | list[Target]) -> Target | list[Target]:
        if isinstance(target, list) and len(set(target)) < len(target):
            raise ValueError(f"{', '.join(target)} given; accepted: each target once")
        return target

    @field_validator("stages")
    @classmethod
    def _static_int8_has_no_float16(
        cls, stages: list[StageConfig], info: ValidationInfo
    ) -> list[StageConfig]:
        static = any(getattr(stage, "static_int8", None) is not None for stage in stages)
        if static and "tensorrt-fp16" in info.data.get("target", ""):
            raise ValueError(
                "static_int8 and target tensorrt-fp16 given; accepted: static_int8 for ort-cpu and "
                "tensorrt, because it writes float32; use the stage quantize"
            )
        return stages

    @field_validator("stages")
    @classmethod
    def _an_onnx_file_is_not_trained(
        cls, stages: list[StageConfig], info: ValidationInfo
    ) -> list[StageConfig]:
        model = info.data.get("model")
        if model is None or model.onnx is None:
            return stages
        known = {stage.stage for stage in onnx_chain()}
        others = [stage.stage for stage in stages if stage.stage not in known]
        if others:
            raise ValueError(
                f"{others[0]} given for an ONNX file, which cannot be cut or trained; accepted: "
                f"{', '.join(stage.stage for stage in onnx_chain())}; give the network as a Python file"
            )
        if any(getattr(stage, "static_int8", "minmax") is None for stage in stages):
            raise ValueError(
                "export without static_int8 given for an ONNX file; accepted: minmax, entropy, "
                "percentile or mse, because nothing else quantizes it"
            )
        return stages

    @property
    def targets(self) -> tuple[Target, ...]:
        """The targets in the order given."""
        return (self.target,) if isinstance(self.target, str) else tuple(self.target)
