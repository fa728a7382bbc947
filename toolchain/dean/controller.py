"""The controller ``dean``: strengths that follow distillability and sparsability while the student trains.

Every K-th step, before the student's own step, on a clean probe batch of the training part:

    1. each term's gradient and the task's, by themselves (``gradients``), reduced to the layers' state
       (``state``), whose cosines are averaged over many probes;
    2. strengths alpha, beta from the state (``network``); these hold until the next probe;
    3. one step ahead with them, on samples that the student is never fitted on (``look_ahead``);
    4. one step of the dean's Adam along the hypergradients, unless the signal is noise (``fallback``).

Liu, Cao, Li, Hu, Maybank 2022, IEEE TPAMI 45(3), https://ieeexplore.ieee.org/abstract/document/9804342.
From the abstract and the authors' account: a dean sees the state of teacher and student, and sets the
strength of distillation and of sparsification per layer; it is trained by meta-learning.
**Reconstruction**: everything else, above all that it looks at a probe every K steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from deploy.errors import ConfigError
from toolchain.dean.fallback import Scale, Trust, agreement, product
from toolchain.dean.gradients import term_gradients, trained
from toolchain.dean.look_ahead import Ahead, look_ahead
from toolchain.dean.network import FILE, DeanNetwork
from toolchain.dean.state import Look, Memory, look
from toolchain.distillation.controllers.controller import Stats, Steady, controller
from toolchain.distillation.lessons import TASK, School
from toolchain.distillation.options import Count, Decay, HeldOut, Positive, Weight

# A probe's work, spread over the steps between two, is to stay below this share of a step's.
PROBE_SHARE = 0.08
USUAL_BATCH = 128
# A factor's range has to hold the recipe's strength.
AboveOne = Annotated[float, Field(gt=1, allow_inf_nan=False)]
# So many steps at least does a running mean of the cosines look back.
LOOK_BACK_STEPS = 50
# Of a factor on the recipe's strength: with keep_sum it is divided by what it is multiplied with.
UNMOVED = 1e-5


def require_held_out(options: Mapping[str, Any], samples: int) -> None:
    """Refuse a held-out part that has no batch of ``probe_size``; a frozen dean looks at none.

    Raises:
        ConfigError: Says how many samples are needed.
    """
    size = options["probe_size"]
    if samples < size and not options["frozen"]:
        raise ConfigError(
            f"distil.controller_options.held_out: {samples} samples for the dean; accepted are at least "
            f"{size}, two halves of probe_size {size}; hold out more, or probe less"
        )


@controller(
    "dean",
    about="a meta-network sets each term's strength from its distillability, and each layer's sparsity",
    source="DDSL: Liu et al. 2022, TPAMI 45(3); a reconstruction",
    held_out=True,
    require=require_held_out,
    version=2,
)
class DeanController(Steady):
    """Sets the strength of every term, and of every pruned layer where a sparsifier listens.

    Args:
        school: With held-out and probe batches.
        held_out: Share of the training part that the student is not fitted on in this stage; under a
            dean in earlier stages too, with the same seed, it is the same share.
        probe_every: K; default from the number of terms, so that probes cost about 8% of the training.
        probe_size: Samples of a probe batch, and of a held-out batch.
        lr: Learning rate of the dean's Adam, per probe.
        look_ahead: eta, the learning rate of the step ahead.
        alpha_max: Largest distillation strength, as a factor of the recipe's.
        beta_max: Largest sparsity strength; 1 is where every layer starts.
        ema: Decay of the running means per probe; default so that they look back over at least 10 probes
            and 50 steps.
        keep_sum: Divide the distillation strengths so that their sum stays the recipe's: then the dean
            decides who teaches, and not how fast the student learns.
        trust_probes: N of the fallback's test; 0 trusts always.
        frozen: Replay a dean that was trained before: no look ahead, no learning. The held-out share stays
            unused, as it was where the dean learned: equal data and steps.
        load: Its file, or where to start learning from.

    Raises:
        ConfigError: Nothing to look ahead at; a dean that cannot be loaded.
    """

    def __init__(
        self,
        school: School,
        *,
        held_out: HeldOut = 0.1,
        probe_every: Count | None = None,
        probe_size: Annotated[int, Field(ge=4)] = 128,
        lr: Weight = 3e-3,
        look_ahead: Positive = 0.01,
        alpha_max: AboveOne = 2.0,
        beta_max: AboveOne = 2.0,
        ema: Decay | None = None,
        keep_sum: bool = False,
        trust_probes: Annotated[int, Field(ge=2)] | Literal[0] = 20,
        frozen: bool = False,
        load: str | Path | None = None,
    ) -> None:
        if frozen and load is None:
            raise ConfigError(
                "distil.controller_options.frozen: true without a dean to replay; accepted with load: a "
                f"path to the {FILE} of an earlier run; set load, or take the controller fixed"
            )
        if not school.terms and school.sparsifier is None:
            raise ConfigError(
                "distil.losses: none given for the controller dean; accepted is at least one term, "
                "because it has nothing else to set; add one, or take the controller fixed"
            )
        self._school, self._size, self._rate = school, probe_size, look_ahead
        self._keep_sum, self._frozen, self._trusts = keep_sum, frozen, trust_probes > 0
        self._every = probe_every or probe_interval(school, probe_size)
        if ema is None:
            ema = 1 - 1 / max(10, math.ceil(LOOK_BACK_STEPS / self._every))
        self._check_batches()
        if load is None:
            self.network = DeanNetwork(alpha_max, beta_max, school.seed)
        else:
            self.network = DeanNetwork.load(Path(load))
        self._optimizer = torch.optim.Adam(self.network.parameters(), lr=lr)
        self._memory, self._trust = Memory(ema), Trust(max(2, trust_probes))
        self._scale, self._agreement = Scale(), 0.0
        self._before: dict[str, float] = {}  # what the last probe found
        self._base = dict(school.base)
        self._strengths = dict(self._base)
        self._trail: dict[str, float] = {}
        self._probes, self._fallen_back, self._warned = 0, False, False
        self._moved = False

    @property
    def probe_every(self) -> int:
        """Steps between two probes."""
        return self._every

    def strengths(self, step: int, total_steps: int, stats: Stats) -> Mapping[str, float]:
        """Those of the last probe; every K-th step makes a new one first, while there is one to set."""
        if step % self._every == 0 and self._decides:
            self._probe(step / max(1, total_steps - 1))
        else:
            self._trail = self._standing()
        return self._strengths

    @property
    def _tests(self) -> bool:
        """Whether there is a signal, and a test of it."""
        return self._trusts and not self._frozen

    @property
    def _decides(self) -> bool:
        """Whether there is a strength to set: without terms there is none once the masks are fixed."""
        sparsifier = self._school.sparsifier
        return bool(self._school.terms) or (sparsifier is not None and bool(sparsifier.layers))

    def trail(self) -> Mapping[str, float]:
        """Sparsity strengths and fallback at every step, whether its signal was judged by then and a strength
        ever moved, and at a probe what it found: distillability of each term (running mean, this batch's,
        over all weights), held-out loss, agreement, hypergradients.
        """
        return self._trail

    def keep(self, out: Path) -> None:
        """Write what was learned to ``dean.safetensors``, for ``load``; it is no part of the student.

        Says so where the training ended before the dean's signal could be judged, or a strength moved.
        """
        terms = ",".join(term.name for term in self._school.terms)
        self.network.save(out / FILE, {"terms": terms, "probes": str(self._probes)})
        if self._frozen or not self._probes:
            return
        unjudged = self._tests and not self._trust.judged
        if not unjudged and (self._moved or self._probes > 1):
            return
        said = [f"dean: {self._probes} probe{'' if self._probes == 1 else 's'}"]
        if unjudged:
            said[0] += f", its test needs {self._trust.least}: the strengths were never judged"
        if not self._moved:
            said.append("the dean never moved a strength")
        self._school.say("; ".join([*said, "shorten probe_every or train longer"]))

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimizer, running means, judgements and counters: a resumed run is the same run."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "memory": self._memory.state_dict(),
            "trust": self._trust.state_dict(),
            "scale": self._scale.state_dict(),
            "before": dict(self._before),
            "strengths": dict(self._strengths),
            "probes": self._probes,
            "fallen_back": self._fallen_back,
            "warned": self._warned,
            "moved": self._moved,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._memory.load_state_dict(state["memory"])
        self._trust.load_state_dict(state["trust"])
        self._scale.load_state_dict(state["scale"])
        self._before = dict(state["before"])
        self._strengths, self._probes = dict(state["strengths"]), state["probes"]
        self._fallen_back, self._warned = state["fallen_back"], state["warned"]
        # Checkpoints from before this was kept: more than one probe has moved something.
        self._moved = state.get("moved", self._probes > 1)

    # -- a probe

    def _probe(self, progress: float) -> None:
        school = self._school
        assert school.probe is not None
        parameters = trained(school)
        gradients = term_gradients(school, school.probe(self._probes, self._size), parameters)
        before = [self._strengths[name] for name in gradients.names]
        seen = look(gradients, parameters, before, school.sparsifier)
        self._memory.add(seen)
        alpha_R, beta_R = self._factors(self._memory.features(seen, progress))
        self._fallen_back = self._trusts and not self._trust.stands
        self._set(seen, alpha_R.detach(), beta_R.detach())
        ahead = None
        if not self._frozen:
            assert school.held_out is not None
            now = [self._strengths[name] for name in gradients.names]
            batch = school.held_out(self._probes, self._size)
            ahead = look_ahead(school, gradients, self._base[TASK], now, batch, self._rate)
            self._judge(ahead, seen)
            if self._trust.learns or not self._trusts:
                self._learn(ahead, seen, alpha_R, beta_R)
        self._probes += 1
        self._trail = {**self._standing(), **self._found(seen, ahead)}

    def _factors(self, state_RF: Tensor) -> tuple[Tensor, Tensor]:
        """Each row's factors, the terms' distillation strengths divided to the old sum if asked."""
        alpha_R, beta_R = self.network(state_RF)
        terms = len(self._school.terms)
        if self._keep_sum and terms:
            base_T = torch.tensor([self._base[term.name] for term in self._school.terms])
            total = (alpha_R[:terms] * base_T).sum()
            if float(base_T.sum()) > 0:
                alpha_R = alpha_R * (base_T.sum() / total)
        return alpha_R, beta_R

    def _set(self, seen: Look, alpha_R: Tensor, beta_R: Tensor) -> None:
        """Make the factors the strengths of the coming steps, or the recipe's if they are noise."""
        factors = [1.0] * len(seen.names) if self._fallen_back else alpha_R.tolist()
        for name, factor in zip(seen.names[: seen.terms], factors, strict=False):
            self._strengths[name] = factor * self._base[name]
            self._note_move(factor if self._base[name] > 0 else 1.0)
        sparsifier = self._school.sparsifier
        if sparsifier is not None and sparsifier.layers:
            layers = [1.0] * len(seen.names) if self._fallen_back else beta_R.tolist()
            names = seen.names[seen.terms :]
            sparsifier.set_strengths(dict(zip(names, layers[seen.terms :], strict=True)))
            for factor in layers[seen.terms :]:
                self._note_move(factor)

    def _note_move(self, factor: float) -> None:
        self._moved = self._moved or abs(factor - 1) > UNMOVED

    def _judge(self, ahead: Ahead, seen: Look) -> None:
        """Compare the two halves, and this probe with the last; say so once when either is noise."""
        names, mean, before = seen.names, ahead.mean, self._before
        self._scale.add(names, mean)
        one, other = (self._scale.divide(names, half) for half in ahead.halves)
        self._agreement = agreement(one, other)
        pairs = [(name, mean[n], before[name]) for n, name in enumerate(names) if name in before]
        known, now, then = zip(*pairs, strict=True) if pairs else ((), (), ())
        again = [self._scale.divide(known, side) for side in (now, then)]
        self._trust.add(product(one, other), product(*again) if pairs else None)
        self._before = dict(zip(names, mean, strict=True))
        if self._trusts and not self._trust.stands and not self._warned:
            self._warned = True
            self._school.say(self._doubt())

    def _doubt(self) -> str:
        halves, probes = self._trust.halves, self._trust.probes
        if halves.stands:
            who, evidence = "probes that follow each other", probes.evidence
            less = "a larger probe_size means less noise, and a term that teaches nothing is better left out"
        else:
            who, evidence = "two halves of the held-out batches", halves.evidence
            less = "a larger probe_size or held_out means less noise"
        return (
            f"dean: {who} do not agree on what helps (mean product less 1.645 standard errors is "
            f"{evidence:.3f}; it has to be above 0): strengths are the recipe's until they do; {less}"
        )

    def _learn(self, ahead: Ahead, seen: Look, alpha_R: Tensor, beta_R: Tensor) -> None:
        """A step along h over its own root mean square, by factors and not strengths: see ``network``."""
        h_R, terms = torch.tensor(self._scale.divide(seen.names, ahead.mean)), seen.terms
        moves_T = torch.tensor([float(self._base[name] > 0) for name in seen.names[:terms]])
        surrogate = (h_R[:terms] * moves_T * alpha_R[:terms]).sum()
        surrogate = surrogate + (h_R[terms:] * beta_R[terms:]).sum()
        self._optimizer.zero_grad(set_to_none=True)
        surrogate.backward()
        self._optimizer.step()

    def _standing(self) -> dict[str, float]:
        """What holds at every step until the next probe."""
        sparsifier = self._school.sparsifier
        layers = {} if sparsifier is None else sparsifier.strengths
        known: dict[str, float] = {}
        if self._probes:  # none: there was nothing to set
            known["dean.moved"] = float(self._moved)
            if self._tests:
                known["dean.judged"] = float(self._trust.judged)
        return {
            "dean.fallback": float(self._fallen_back),
            **known,
            **{f"sparsity_strength.{name}": value for name, value in layers.items()},
        }

    def _found(self, seen: Look, ahead: Ahead | None) -> dict[str, float]:
        """What a probe found."""
        trail: dict[str, float] = {}
        if ahead is not None:
            trail["dean.held_out_loss"] = ahead.loss
            trail["dean.agreement"] = self._agreement
            trail["dean.learns"] = float(self._trust.learns or not self._trusts)
            trail["dean.step"] = ahead.learning_rate
        for number, name in enumerate(seen.names[: seen.terms]):
            trail[f"distillability.{name}"] = self._memory.cosine(name)
            trail[f"distillability_now.{name}"] = seen.cosines[number]
            trail[f"distillability_all.{name}"] = seen.cosines_all[number]
            if ahead is not None:
                trail[f"hypergradient.{name}"] = ahead.mean[number]
        for number, name in enumerate(seen.names[seen.terms :], start=seen.terms):
            trail[f"sparsity.{name}"] = seen.channels[number][2]
            if ahead is not None:
                trail[f"sparsity_hypergradient.{name}"] = ahead.mean[number]
        return trail

    def _check_batches(self) -> None:
        """Refuse a training without a probe, or without enough samples to look ahead at."""
        school = self._school
        if school.probe is None or (school.held_out is None and not self._frozen):
            raise ConfigError(
                "distil.controller: 'dean' where no held-out samples are; accepted is a stage that "
                "distils in training (recover, pqk-prune, ddsl-prune); put it there"
            )
        if self._frozen:
            return
        assert school.held_out is not None
        found = len(school.held_out(0, self._size).labels_B)
        require_held_out({"probe_size": self._size, "frozen": False}, found)


def probe_interval(school: School, probe_size: int) -> int:
    """K, so that probes cost at most ``PROBE_SHARE`` of the steps between them, at batches of 128.

    Counted in forward passes of the student, a backward pass as two, a teacher as one: a step costs three
    and its teachers; a probe one with its teachers, two for the task and each term, three for the step
    ahead, and three more where channels are pruned.
    """
    teachers = len({id(term.teacher) for term in school.terms})
    ahead = 3 if school.sparsifier is None else 6
    probe = (1 + teachers + 2 * (1 + len(school.terms)) + ahead) * probe_size / USUAL_BATCH
    return max(1, math.ceil(probe / (3 + teachers) / PROBE_SHARE))
