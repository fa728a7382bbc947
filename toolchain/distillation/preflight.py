"""What can be told of a recipe's teaching before its first stage, while refusing it costs seconds.

Spots are looked for in networks that are built and never run, without their weights: paths of modules stay
what they are when a network is masked, quantized or cut. What only a cut network can tell is left to the
stage, because branches can go with their spots. Nothing distils where the recipe's model is an ONNX file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import fx

from deploy.errors import CompressDeployError, ConfigError
from toolchain.data.partition import hold_out
from toolchain.distillation.building import both_spots, require_as_many
from toolchain.distillation.controllers.controller import CONTROLLERS
from toolchain.distillation.locating import LOGITS, locate
from toolchain.distillation.losses.entry import LOSSES
from toolchain.distillation.spots import match_spots, matches
from toolchain.distillation.teachers.config import AnotherNetwork, Assistant, Pretrained
from toolchain.distillation.teachings import Teaching, place_of, teachings
from toolchain.distillation.terms import Spot, spots_of
from toolchain.quantization.residual_kernels import whole
from toolchain.stages import NewStudent

if TYPE_CHECKING:
    from toolchain.data.samples import Data
    from toolchain.distillation.config import DistilLoss
    from toolchain.recipe.network import NetworkOrigin
    from toolchain.recipe.schema import ModelConfig, Recipe


@dataclass(frozen=True)
class _Network:
    """A network that a stage meets: where its modules come from, and whether some may be gone."""

    origin: ModelConfig | NetworkOrigin
    where: str
    cut: bool = False


class Preflight:
    """Checks recipes; of several that have networks in common each network is built once.

    Args:
        data: Reads a recipe's data; asked only where a controller holds samples out.
    """

    def __init__(self, data: Callable[[Recipe], Data] | None = None) -> None:
        self._data = data
        self._built: dict[str, fx.GraphModule] = {}

    def check(self, recipe: Recipe) -> None:
        """Refuse spots that a network does not have, and too few held-out samples for a controller.

        Random numbers are left as they were.

        Raises:
            ConfigError: Names the stage, and what the networks or the data have.
            DataError: The data cannot be read, or not be divided so.
        """
        for place in teachings(recipe):
            where = place_of(place.position, recipe.stages[place.position], place.field)
            for loss in place.distil.losses:
                self.check_loss(recipe, place, loss, where)
            self._check_held_out(recipe, place, where)

    def check_loss(self, recipe: Recipe, place: Teaching, loss: DistilLoss, where: str) -> None:
        """Refuse the spots of one loss there.

        Raises:
            ConfigError: A spot that a network does not have; patterns of which one names more places.
        """
        entry = LOSSES.look_up(loss.loss)
        theirs, ours = both_spots(loss, entry)
        given = _given(recipe)
        student, teacher = given[place.position], _teacher(recipe, place, loss.teacher, given)
        at_student = self._matched(recipe, student, ours, f"{where}, in the student")
        if (
            entry.match == "exit"
        ):  # it ends in logits, and those are all that is asked of the teacher
            return
        whose = f"{where}, in the teacher {loss.teacher}"
        at_teacher = self._matched(recipe, teacher, theirs, whose)
        if at_student and at_teacher and not student.cut and not teacher.cut:
            try:
                require_as_many(loss, at_teacher, at_student)
            except ConfigError as error:
                raise ConfigError(f"{where}: {error}") from None

    def _matched(
        self, recipe: Recipe, network: _Network, spot: Spot, where: str
    ) -> tuple[str, ...] | None:
        """What ``spot`` names there; None where only the stage can tell."""
        spots = spots_of(spot)
        if spots == (LOGITS,):
            return spots
        built = self._network(recipe, network)
        try:
            if isinstance(spot, str):
                return match_spots(built, spot)
            for one in spots:
                locate(built, whole(built), one)
        except ConfigError as error:
            paths = [path for path, _ in built.named_modules()]
            if network.cut and any(matches(path, one) for path in paths for one in spots):
                return None
            raise ConfigError(f"{where}: {error}") from None
        return spots

    def _network(self, recipe: Recipe, network: _Network) -> fx.GraphModule:
        """The network as its constructor makes it."""
        from toolchain.starting import build_network

        origin = network.origin.model_copy(update={"checkpoint": None})
        key = origin.model_dump_json(include={"builtin", "file", "args"})
        if key not in self._built:
            with torch.random.fork_rng(devices=[]):
                self._built[key] = build_network(origin, network.where, recipe.seed)
        return self._built[key]

    def _check_held_out(self, recipe: Recipe, place: Teaching, where: str) -> None:
        entry = CONTROLLERS.look_up(place.distil.controller)
        options = place.distil.controller_options
        if not entry.held_out:
            return
        if self._data is None:
            from toolchain.student import recipe_data

            self._data = recipe_data
        data = self._data(recipe)
        try:
            _, part = hold_out(data, entry.held_out_share(options), recipe.seed)
            entry.check_held_out(options, len(part))
        except CompressDeployError as error:
            raise type(error)(f"{where}: {error}") from None


def _given(recipe: Recipe) -> list[_Network]:
    """What each stage is given, and after them what the last one leaves."""
    now = _Network(recipe.model, "model")
    given = [now]
    for stage in recipe.stages:
        if isinstance(stage, NewStudent):
            now = _Network(stage, "student")
        elif stage.stage == "slim":
            now = replace(now, cut=True)
        given.append(now)
    return given


def _teacher(recipe: Recipe, place: Teaching, name: str, given: list[_Network]) -> _Network:
    config = place.distil.teachers.get(name, Pretrained())
    if isinstance(config, Pretrained):
        return given[0]
    if isinstance(config, AnotherNetwork):
        return _Network(config, f"distil.teachers.{name}")
    if isinstance(config, Assistant):
        before = enumerate(recipe.stages[: place.position])
        made = [number for number, stage in before if stage.stage == config.stage]
        return given[made[-config.back] + 1]
    return given[place.position]  # a moving average and an in-network teacher are the student's
