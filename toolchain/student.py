"""A student on its way through the chain: network, structure and data, and what each stage does to them."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from deploy.errors import StructureError, VerificationError
from deploy.targets import unsigned_steps
from toolchain import checkpoint
from toolchain.chain import no_such_stage
from toolchain.checkpoint import Spec
from toolchain.data.batches import evaluation_batches
from toolchain.data.loading import load_data
from toolchain.data.samples import Data
from toolchain.distillation.teachers.frozen import FrozenTeacher
from toolchain.pqk import ChannelPruner, WeightPruner
from toolchain.quantization.attach import Quantization, attach_quantizers, calibrate
from toolchain.quantization.attached import attach_views, bare_names
from toolchain.stages import CUT
from toolchain.structure.cost import network_macs, network_parameters
from toolchain.structure.decision import Decision, decide
from toolchain.structure.importance import (
    Gradients,
    importance,
    producers,
    taylor_gradients,
)
from toolchain.structure.masks import (
    attach_element_masks,
    bake,
    hidden_share,
    kept_channels,
    mask_channels,
    vanishing,
)
from toolchain.structure.plan import Branch, ChannelPlan, Group
from toolchain.structure.slim import compose, cut, plan_of, slice_state
from toolchain.training.evaluation import evaluate
from toolchain.training.precision import Precision, choose_precision

if TYPE_CHECKING:
    from toolchain.recipe.schema import Recipe
    from toolchain.runs.artifacts import Artifact, RunContext
    from toolchain.stages import Quantizing

# Largest difference of logits in float64 between a slim network and the masked one.
EXACT = 1e-6


@cache
def _load_data(config_json: str) -> Data:
    from pydantic import TypeAdapter

    from toolchain.recipe.schema import DataConfig

    config: DataConfig = TypeAdapter(DataConfig).validate_json(config_json)
    return load_data(config)


def recipe_data(recipe: Recipe) -> Data:
    """The recipe's data, read once in a process."""
    return _load_data(recipe.data.model_dump_json())


def data_of(ctx: RunContext) -> Data:
    """Likewise the run's."""
    return recipe_data(ctx.recipe)


def _masked_already(what: str) -> StructureError:
    return StructureError(
        f"prune: {what} cannot be masked, because the network is masked already; accepted is one "
        "without masks; put a slim stage between two prunings, and prune single weights last"
    )


class Student:
    """The network that a stage works on.

    Args:
        source: The artifact it was read from; None for the teacher itself, before which there is none.

    Attributes:
        network: Traced; views and quantizers attached as ``spec`` says.
        spec: Its structure.
        ctx: The run.
        data: Its samples.
        precision: That it trains and is evaluated in.
        plan: What the masks hide, as a plan relative to the network as it is; None without masks.
    """

    def __init__(
        self,
        network: fx.GraphModule,
        spec: Spec,
        ctx: RunContext,
        source: Artifact | None = None,
        plan: ChannelPlan | None = None,
    ) -> None:
        self.network, self.spec, self.plan = network, spec, plan
        self.ctx, self._source = ctx, source
        self.data = data_of(ctx)
        self._decision: Decision | None = None
        self.precision: Precision = choose_precision(ctx.recipe.precision)

    @classmethod
    def load(cls, source: Artifact, ctx: RunContext) -> Student:
        """The student that an artifact holds."""
        network, spec = checkpoint.load(source.root)
        cut = source.root / CUT
        plan = ChannelPlan.from_json(json.loads(cut.read_text())) if cut.exists() else None
        return cls(network, spec, ctx, source, plan)

    def save(self, out: Path) -> dict[str, float]:
        """Write the student and return its numbers: validation top-1, size, sparsity."""
        self.network.cpu().eval()
        checkpoint.save(self.network, self.spec, out)
        if self.plan is not None:
            (out / CUT).write_text(json.dumps(self.plan.to_json()))
        found = evaluate(self.network, self.data.validation, self.data.preprocess, self.precision)
        plain = checkpoint.build(self.spec.plain())
        numbers = {
            "validation_top1": found.top1,
            "validation_loss": found.loss,
            "parameters": network_parameters(plain),
            "macs": network_macs(plain, self.spec.input_shape),
        }
        if self.spec.masked:
            numbers["sparsity"] = hidden_share(self.network)
        self.ctx.say(
            ", ".join(
                f"{name.replace('_', ' ')} {value:,.4g}" if value < 1e4 else f"{name} {value:,.0f}"
                for name, value in numbers.items()
            )
        )
        return numbers

    # quantization

    def quantize(self, config: Quantizing) -> None:
        """Attach quantizers and calibrate them on training images (not augmented).

        Raises:
            StructureError: The network is quantized already.
        """
        if self.spec.quantization is not None:
            raise StructureError(
                "quantize: the network is quantized already; accepted is a float one; "
                "leave one of the two stages out"
            )
        quantization = Quantization(
            config.bits,
            config.edge_bits,
            config.activation_bits,
            config.quantizer,
            tuple(config.keep_float),
            unsigned_steps(self.ctx.recipe.targets),
        )
        attach_quantizers(self.network, quantization, self.spec.input_shape)
        self.spec = replace(self.spec, quantization=quantization)
        self.network.cpu()
        calibrate(
            self.network, self._calibration_images(config.calibration_images), config.calibration
        )

    def _calibration_images(self, count: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(self.ctx.seed)
        order_N = torch.randperm(len(self.data.train), generator=generator)[:count]
        part = self.data.train.part(order_N)
        for images_BCHW, _ in evaluation_batches(part, self.data.preprocess, 128):
            yield images_BCHW

    # structure

    def pruner(self, granularity: str, sparsity: float | None) -> ChannelPruner | WeightPruner:
        """What moves the masks, attached to this student."""
        if granularity == "channels":
            return self.channel_pruner(sparsity)
        if sparsity is None:
            raise StructureError(
                "pqk-prune: granularity 'weights' without a sparsity; accepted is a fraction in [0, 1); "
                "set sparsity"
            )
        if self.spec.masked and not self.spec.elements:
            raise _masked_already("weights")
        attach_views(self.network, elements=True)
        attach_element_masks(self.network)  # views that came with quantizers have none
        self.spec = replace(self.spec, masked=True, elements=True)
        self.plan = ChannelPlan()
        return WeightPruner(self.network, sparsity)

    def channel_pruner(self, sparsity: float | None) -> ChannelPruner:
        """Decide what goes, by the recipe's structure and goals, and attach masks for it."""
        if self.spec.masked:
            raise _masked_already("channels")
        plain = self._plain()
        decision = decide(
            plain,
            self.spec.input_shape,
            self.ctx.recipe,
            sparsity=sparsity,
            whole=self._whole(),
            batches=self._task_batches,
            cache=self.ctx.out,
            say=self.ctx.say,
        )
        if decision.allocation.removed:
            self._prove_removal(plain, decision)
        attach_views(self.network)
        self.spec = replace(self.spec, masked=True)
        kind = self.ctx.recipe.structure.importance
        gradients = taylor_gradients(plain, self._task_batches()) if kind == "taylor" else None
        removed = decision.allocation.removed
        pruner = ChannelPruner(
            self.network,
            decision.groups,
            decision.allocation.widths,
            removed,
            lambda group: importance(group, self.network, kind, self._placed(gradients, group)),
            lambda: self._vanishing(removed),
        )
        self._decision = decision
        return pruner

    @property
    def decision(self) -> Decision:
        """What ``channel_pruner`` decided."""
        assert self._decision is not None, "the pruner is made first"
        return self._decision

    def _placed(self, gradients: Mapping[str, Tensor] | None, group: Group) -> Gradients | None:
        """The gradients that a group's score reads, where the network is by now."""
        if gradients is None:
            return None
        names = [f"{part.module}.weight" for part in producers(group, self.network)]
        device = next(self.network.parameters()).device
        return {name: gradients[name].to(device) for name in names}

    def _prove_removal(self, plain: fx.GraphModule, decision: Decision) -> None:
        """Before any training: without its branches the network is what it is with them masked.

        Raises:
            StructureError: It is not, because something in a branch answers zeros with something else.
        """
        removed = decision.allocation.removed
        exact = copy.deepcopy(plain).double()
        masked = copy.deepcopy(exact)
        attach_views(masked)
        mask_channels(masked, decision.groups, {}, removed)
        slim = cut(exact, ChannelPlan(removed={branch.add: branch.kept for branch in removed}))
        images_BCHW = next(self._calibration_images(8)).double()
        with torch.no_grad():
            difference = float((masked(images_BCHW) - slim(images_BCHW)).abs().max())
        if not difference <= EXACT:
            names = [branch.name for branch in removed]
            raise StructureError(
                f"prune: without {names} logits differ by {difference:.3g} from those with the branches "
                f"masked; accepted is {EXACT:g}, which a branch that ends in a convolution or a batch "
                "norm with affine parameters gives; set structure.branches to false, or drop others"
            )

    def _vanishing(self, removed: Sequence[Branch]) -> frozenset[str]:
        """Quantizers that the network has no place for once these branches are gone."""
        if self.spec.quantization is None:
            return frozenset()
        gone = ChannelPlan(removed={branch.add: branch.kept for branch in removed})
        spec = replace(self.spec, plan=compose(self.spec.plan, gone), masked=False)
        return vanishing(self.network, checkpoint.build(spec))

    def prune(self, sparsity: float | None) -> None:
        """Set the final masks at once."""
        self.channel_pruner(sparsity).apply(1.0)
        self.settle()

    def _plain(self) -> fx.GraphModule:
        """The student's weights in a network with nothing attached, for analysis."""
        plain = checkpoint.build(self.spec.plain())
        state = bare_names(self.network.state_dict())
        plain.load_state_dict({key: state[key] for key in plain.state_dict()})
        return plain.eval()

    def _whole(self) -> fx.GraphModule | None:
        """The teacher's structure, which goals refer to, where this network is another one.

        It was cut out of the teacher, or a stage ``student`` started it.
        """
        assert self._source is not None
        started = any(made.stage == "student" for made in self._source.lineage())
        if self.spec.plan == ChannelPlan() and not started:
            return None
        spec = checkpoint.read_spec(self._source.find("teacher").root)
        return checkpoint.build(replace(spec.plain(), plan=ChannelPlan()))

    def _task_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Some training batches, not augmented, for gradients and contributions."""
        generator = torch.Generator().manual_seed(self.ctx.seed)
        order_N = torch.randperm(len(self.data.train), generator=generator)[:1024]
        yield from evaluation_batches(self.data.train.part(order_N), self.data.preprocess, 128)

    def settle(self) -> None:
        """Write down what the masks hide now, so that it can be cut without any analysis.

        Masks of single weights have nothing to write down.
        """
        decision = self._decision
        if decision is None:
            return
        removed = {branch.add: branch.kept for branch in decision.allocation.removed}
        kept = kept_channels(self.network, decision.groups, decision.allocation.removed)
        self.plan = plan_of(self._plain(), decision.groups, kept, removed)

    def slim(self) -> float:
        """Cut what is masked; returns the largest difference of logits from the masked network.

        Masks of single weights stay: there is nothing to cut, and without them the zeros would learn.

        Raises:
            VerificationError: The slim network does not compute what the masked one did.
        """
        if not self.spec.masked or self.plan is None:
            raise StructureError(
                "slim: nothing is masked; accepted is a network that a prune stage has masked; "
                "add prune or pqk-prune before slim"
            )
        bake(self.network)
        spec = replace(
            self.spec,
            plan=compose(self.spec.plan, self.plan),
            masked=self.spec.elements,
            teacher_norms=False,
        )
        slim = checkpoint.build(spec)
        state = slice_state(self.network, self.network.state_dict(), self.plan)
        if spec.quantization is None and not spec.masked:
            state = bare_names(state)
        wanted = slim.state_dict()
        slim.load_state_dict({key: state.get(key, wanted[key]) for key in wanted})
        missing = [key for key in wanted if key not in state]
        if missing:
            raise VerificationError(
                f"slim: no tensors for {missing}; this is a bug, please report it"
            )
        images_BCHW = next(self._calibration_images(64)).double()
        with torch.no_grad():
            masked, cut = self.network.double().eval(), slim.double().eval()
            difference = float((masked(images_BCHW) - cut(images_BCHW)).abs().max())
        if not difference <= EXACT:
            raise VerificationError(
                f"slim: logits differ by {difference:.3g} from the masked network in float64; accepted "
                f"is {EXACT:g}; name the groups that compress-deploy plan marks under structure.ignore"
            )
        self.network, self.spec = slim.float(), spec
        self.plan = ChannelPlan() if spec.masked else None
        return difference

    def teacher(self) -> FrozenTeacher:
        """The pretrained network."""
        assert self._source is not None
        folder = self._source.find("teacher").root
        return FrozenTeacher(checkpoint.load(folder)[0], self.precision)

    def earlier(self, stage: str, back: int = 1, where: str = "stage") -> Path:
        """The folder of the student as an earlier stage of this chain left it.

        Args:
            stage: Name of the stage.
            back: 1 for the nearest of that name, 2 for the one before it.
            where: Who asks, for the message.

        Raises:
            ConfigError: There is none; lists the stages before this one.
        """
        lineage = [] if self._source is None else list(self._source.lineage())
        found = [made.root for made in lineage if made.stage == stage]
        if len(found) < back:
            raise no_such_stage(where, stage, back, [made.stage for made in reversed(lineage)])
        return found[back - 1]
