"""The chain: which stages a recipe runs, in which order they can work, and running them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.errors import ConfigError
from toolchain.distillation.teachers.config import Assistant, InNetwork
from toolchain.distillation.teachings import place_of, teachings_in
from toolchain.stages import (
    MASKING,
    Export,
    PqkDistil,
    PqkPrune,
    Recover,
    Report,
    Slim,
    StageModel,
    Teacher,
)

if TYPE_CHECKING:
    from toolchain.recipe.schema import Recipe
    from toolchain.training.progress import Progress


def standard_chain() -> tuple[StageModel, ...]:
    """What a recipe without ``stages`` runs."""
    return (Teacher(), PqkPrune(), PqkDistil(), Slim(), Recover(), Export(), Report())


def onnx_chain() -> tuple[StageModel, ...]:
    """What a recipe without ``stages`` runs when its teacher is an ONNX file."""
    return (Teacher(), Export(static_int8="minmax"), Report())


def check_order(stages: Sequence[StageModel]) -> None:
    """Refuse, before any hours are spent, a chain in which a stage could only fail.

    Raises:
        ConfigError: Names the stage and what it lacks.
    """
    before, masked, quantized = "", False, False
    _check_assistants(stages)
    _check_teaching(stages)
    for stage in stages:
        name, wrong = stage.stage, None
        if (name == "teacher") != (before == ""):
            wrong = "teacher comes first, and only first"
        elif (name == "report") != (before == "export"):
            wrong = "report follows export at once, and nothing else does"
        elif name in ("slim", "pqk-distil") and not masked:
            wrong = "nothing is masked there"
        elif name in MASKING and masked:
            wrong = "the network is masked there already"
        elif name not in MASKING and not masked and (inside := _in_network(stage)) is not None:
            wrong = f"the teacher {inside} is made of masked weights, and nothing is masked there"
        elif name == "quantize" and quantized:
            wrong = "the network is quantized there already"
        if wrong is not None:
            raise ConfigError(
                f"stages: {name} after {before or 'nothing'}: {wrong}; accepted is e.g. "
                f"{', '.join(known.stage for known in standard_chain())}; reorder them"
            )
        masked = name in MASKING or (masked and name not in ("slim", "student"))
        quantized = (quantized and name != "student") or name in ("quantize", "pqk-prune")
        before = name


def _in_network(stage: StageModel) -> str | None:
    """The name of an in-network teacher that the stage's recipe asks for."""
    for place in teachings_in([stage]):
        for name, teacher in place.distil.teachers.items():
            if isinstance(teacher, InNetwork):
                return name
    return None


def _check_assistants(stages: Sequence[StageModel]) -> None:
    """Refuse a chain in which a teacher's assistant is asked for that no stage before has left."""
    for place in teachings_in(stages):
        before = [known.stage for known in stages[: place.position]]
        for name, teacher in place.distil.teachers.items():
            if isinstance(teacher, Assistant) and before.count(teacher.stage) < teacher.back:
                stage = stages[place.position].stage
                where = f"stages[{place.position}] ({stage}).{place.field}.teachers.{name}"
                raise no_such_stage(where, teacher.stage, teacher.back, before)


def _check_teaching(stages: Sequence[StageModel]) -> None:
    """Refuse what no loss, teacher or controller is called or takes; spots need the networks."""
    for place in teachings_in(stages):
        from toolchain.distillation.building import check_names

        stage = stages[place.position]
        try:
            check_names(place.distil, in_network=isinstance(stage, PqkDistil))
        except ConfigError as error:
            where = place_of(place.position, stage, place.field)
            raise ConfigError(f"{where}: {error}") from None


def no_such_stage(where: str, stage: str, back: int, before: Sequence[str]) -> ConfigError:
    """The error of a teacher's assistant that the chain does not have."""
    return ConfigError(
        f"{where}: stage {stage!r}{'' if back == 1 else f' with back: {back}'} is not in the chain; accepted "
        f"are the stages before this one: {', '.join(before)}; name one of them"
    )


def run_recipe(
    recipe: Recipe, *, out: Path, allow_missed: bool, progress: Progress | None = None
) -> int:
    """Run the recipe's chain into ``out``; returns the exit status: 1 where a goal was missed.

    What the last stage made is laid out in ``out/<name>-<key>``, with the report's files at the top.
    """
    check_order(recipe.stages)
    from toolchain.distillation.preflight import Preflight
    from toolchain.shipping.reporting import present

    if recipe.threads is not None:
        import torch

        torch.set_num_threads(recipe.threads)
    Preflight().check(recipe)
    from toolchain.runs.artifacts import run_stages

    last = run_stages(recipe, out, progress=progress)
    return present(last, recipe, out, allow_missed)
