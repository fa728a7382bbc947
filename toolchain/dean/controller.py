"""The controller ``dean``: strengths that follow distillability and sparsability while the student trains.

Every K-th step, before the student's own step, on a clean probe batch of the training part:

    1. each term's gradient and the task's, by themselves (``gradients``), reduced to the layers' state
       (``state``), whose cosines are averaged over many probes;
    2. strengths alpha, beta from the state (``network``) where their derivatives have shown to be no noise
       (``evidence``), the recipe's elsewhere; these hold until the next probe;
    3. one step ahead with them, on samples that the student is never fitted on (``look_ahead``);
    4. one step of the dean's Adam along the hypergradients that are no noise.

Liu, Cao, Li, Hu, Maybank 2022, IEEE TPAMI 45(3), https://ieeexplore.ieee.org/abstract/document/9804342.
From the abstract and the authors' account: a dean sees the state of teacher and student, and sets the
strength of distillation and of sparsification per layer; it is trained by meta-learning.
**Reconstruction**: everything else, above all that it looks at a probe every K steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from deploy.errors import ConfigError
from toolchain.dean.evidence import Evidence
from toolchain.dean.gradients import term_gradients, trained
from toolchain.dean.look_ahead import Ahead, look_ahead
from toolchain.dean.network import FILE, PULL, DeanNetwork
from toolchain.dean.requirements import require_all, require_held_out, require_replayed
from toolchain.dean.state import Look, Memory, look
from toolchain.distillation.controllers.controller import Stats, Steady, controller
from toolchain.distillation.lessons import TASK, School
from toolchain.distillation.options import Count, Decay, HeldOut, Positive, Weight

# A probe's work, spread over the steps between two, is to stay below this share of a step's.
PROBE_SHARE = 0.15
USUAL_BATCH = 128
# A factor's range has to hold the recipe's strength.
AboveOne = Annotated[float, Field(gt=1, allow_inf_nan=False)]
# So many steps at least does a running mean of the cosines look back.
LOOK_BACK_STEPS = 50
# N, and over how many probes derivatives are scaled where no evidence is asked for.
WINDOW = 6
# Of a factor on the recipe's strength: with keep_sum it is divided by what it is multiplied with.
UNMOVED = 1e-5


@controller(
    "dean",
    about="a meta-network sets each term's strength from its distillability, and each layer's sparsity",
    source="DDSL: Liu et al. 2022, TPAMI 45(3); a reconstruction",
    held_out=True,
    require=require_all,
    version=3,
)
class DeanController(Steady):
    """Sets the strength of every term, and of every pruned layer where a sparsifier listens.

    Args:
        school: With held-out and probe batches.
        held_out: Share of the training part that the student is not fitted on in this stage; under a
            dean in earlier stages too, with the same seed, it is the same share.
        probe_every: K; default from the number of terms, so that probes cost 15% of the training at most
            at batches of 128.
        probe_size: Samples of a probe batch, and of a held-out batch.
        lr: Learning rate of the dean's Adam, per probe.
        look_ahead: eta, the learning rate of the step ahead.
        alpha_max: Largest distillation strength, as a factor of the recipe's.
        beta_max: Largest sparsity strength; 1 is where every layer starts.
        ema: Decay of the running means per probe; default so that they look back over at least 10 probes
            and 50 steps.
        keep_sum: Divide the distillation strengths so that their sum stays the recipe's: then the dean
            decides who teaches, and not how fast the student learns.
        trust_probes: N: a strength stays the recipe's until its derivative is shown to be no noise, over
            the last N probes or over all, N at least; 0 asks for no evidence.
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
        lr: Weight = 0.01,
        look_ahead: Positive = 0.01,
        alpha_max: AboveOne = 2.0,
        beta_max: AboveOne = 2.0,
        ema: Decay | None = None,
        keep_sum: bool = False,
        trust_probes: Annotated[int, Field(ge=2)] | Literal[0] = WINDOW,
        frozen: bool = False,
        load: str | Path | None = None,
    ) -> None:
        require_replayed(frozen, load)
        if not school.terms and school.sparsifier is None:
            raise ConfigError(
                "distil.losses: none given for the controller dean; accepted is at least one term, "
                "because it has nothing else to set; add one, or take the controller fixed"
            )
        self._school, self._size, self._rate = school, probe_size, look_ahead
        self._keep_sum, self._frozen, self._loaded = keep_sum, frozen, load is not None
        if keep_sum and sum(school.base[term.name] > 0 for term in school.terms) == 1:
            raise ConfigError(
                "distil.controller_options.keep_sum: true with one term; accepted is at least two, because "
                "a sum of one cannot be shared out otherwise; add one, or leave it out"
            )
        self._every = probe_every or probe_interval(school, probe_size)
        if ema is None:
            ema = 1 - 1 / max(10, math.ceil(LOOK_BACK_STEPS / self._every))
        self._check_batches()
        if load is None:
            self.network = DeanNetwork(alpha_max, beta_max, school.seed)
        else:
            self.network = DeanNetwork.load(Path(load))
        self._optimizer = torch.optim.Adam(self.network.parameters(), lr=lr)
        self._memory = Memory(ema)
        self._evidence = Evidence(trust_probes or WINDOW, presume=trust_probes > 0)
        self._base = dict(school.base)
        self._strengths = dict(self._base)
        self._trail: dict[str, float] = {}
        self._probes, self._fallen_back = 0, 0.0
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
    def _decides(self) -> bool:
        """Whether there is a strength to set: without terms there is none once the masks are fixed."""
        sparsifier = self._school.sparsifier
        return bool(self._school.terms) or (sparsifier is not None and bool(sparsifier.layers))

    def trail(self) -> Mapping[str, float]:
        """At every step sparsity strengths, the share of all strengths that are the recipe's for want of
        evidence, whether there were probes enough to judge by then, and whether a strength ever moved; at a
        probe what it found: distillability of each term (running mean, this batch's, over all weights),
        held-out loss, hypergradients and their t.
        """
        return self._trail

    def keep(self, out: Path) -> None:
        """Write what was learned to ``dean.safetensors``, for ``load``; it is no part of the student.

        Says so where no strength ever moved, and why.
        """
        terms = ",".join(term.name for term in self._school.terms)
        self.network.save(out / FILE, {"terms": terms, "probes": str(self._probes)})
        if self._frozen or self._moved or not self._probes:
            return
        if self._evidence.judged:
            if self._probes < 2 * self._evidence.least:
                self._doubt()
            return
        few = f"{self._probes} probe{'' if self._probes == 1 else 's'}"
        self._school.say(
            f"dean: {few}, too few to judge it: no strength ever moved; shorten probe_every or train longer"
        )

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimizer, running means, evidence and counters: a resumed run is the same run."""
        return {
            "network": self.network.state_dict(),
            "noise": list(self.network.noise),
            "optimizer": self._optimizer.state_dict(),
            "memory": self._memory.state_dict(),
            "evidence": self._evidence.state_dict(),
            "strengths": dict(self._strengths),
            "probes": self._probes,
            "fallen_back": self._fallen_back,
            "moved": self._moved,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.network.load_state_dict(state["network"])
        self.network.noise = tuple(state["noise"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._memory.load_state_dict(state["memory"])
        self._evidence.load_state_dict(state["evidence"])
        self._strengths, self._probes = dict(state["strengths"]), state["probes"]
        self._fallen_back, self._moved = state["fallen_back"], state["moved"]

    # -- a probe

    def _probe(self, progress: float) -> None:
        school = self._school
        assert school.probe is not None
        parameters = trained(school)
        gradients = term_gradients(school, school.probe(self._probes, self._size), parameters)
        before = [self._strengths[name] for name in gradients.names]
        seen = look(gradients, parameters, before, school.sparsifier)
        self._memory.add(seen)
        a_R, b_R = self.network(self._memory.features(seen, progress))
        self._set(seen, a_R.detach(), b_R.detach())
        ahead = None
        if not self._frozen:
            assert school.held_out is not None
            now = [self._strengths[name] for name in gradients.names]
            batch = school.held_out(self._probes, self._size)
            ahead = look_ahead(school, gradients, self._base[TASK], now, batch, self._rate)
            self._evidence.add(seen.names, self._to_learn_from(seen, ahead, now))
            self._learn(seen, a_R, b_R)
        self._probes += 1
        if not self._frozen:
            self._note_noise(seen)
            if self._probes == 2 * self._evidence.least:
                self._doubt()
        self._trail = {**self._standing(), **self._found(seen, ahead)}

    def _may_move(self, name: str) -> bool:
        """Whether a strength is the dean's to set, or the recipe's."""
        return name not in self.network.noise if self._frozen else self._evidence.shown(name)

    def _set(self, seen: Look, a_R: Tensor, b_R: Tensor) -> None:
        """Make the factors the strengths of the coming steps; the recipe's stay where nothing is shown."""
        free = [self._may_move(name) for name in seen.names]
        alpha, beta = self.network.alpha(a_R).tolist(), self.network.beta(b_R).tolist()
        terms, layers = seen.names[: seen.terms], seen.names[seen.terms :]
        factors = {
            name: factor if own else 1.0
            for name, factor, own in zip(terms, alpha, free, strict=False)
        }
        if self._keep_sum:
            factors = self._with_their_sum(factors, free)
        for name, factor in factors.items():
            self._strengths[name] = factor * self._base[name]
        sparsifier = self._school.sparsifier
        if sparsifier is not None and sparsifier.layers:
            of_layers = zip(layers, beta[seen.terms :], free[seen.terms :], strict=True)
            chosen = {name: factor if own else 1.0 for name, factor, own in of_layers}
            sparsifier.set_strengths(chosen)
            factors |= chosen
        # A term without strength has none to move.
        counted = {name: own for name, own in zip(seen.names, free, strict=True) if self._has(name)}
        self._fallen_back = 1 - sum(counted.values()) / len(counted) if counted else 0.0
        moved = any(abs(factors[name] - 1) > UNMOVED for name in counted)
        self._moved = self._moved or moved

    def _has(self, name: str) -> bool:
        return self._base.get(name, 1.0) > 0

    def _with_their_sum(self, factors: Mapping[str, float], free: list[bool]) -> dict[str, float]:
        """The factors of free terms divided so that all strengths together are the recipe's sum."""
        own = [name for name, may in zip(factors, free, strict=False) if may and self._has(name)]
        asked = sum(self._base[name] for name in own)
        given = sum(factors[name] * self._base[name] for name in own)
        return {
            name: factor * asked / given if name in own else factor
            for name, factor in factors.items()
        }

    def _learn(self, seen: Look, a_R: Tensor, b_R: Tensor) -> None:
        """A step of Adam down the surrogate of ``network``, if a derivative is shown to be no noise."""
        shown = [self._has(name) and self._evidence.shown(name) for name in seen.names]
        if not any(shown):
            return
        z_R = torch.cat([a_R[: seen.terms], b_R[seen.terms :]])
        of = zip(seen.names, shown, strict=True)
        x_R = torch.tensor([self._evidence.last(name) if own else 0.0 for name, own in of])
        surrogate = (x_R * z_R).sum() + PULL / 2 * z_R.square().sum()
        self._optimizer.zero_grad(set_to_none=True)
        surrogate.backward()
        self._optimizer.step()

    def _note_noise(self, seen: Look) -> None:
        """Keep what is known of each strength: of one without N probes here what the loaded dean knew."""
        noise = set(self.network.noise)
        for name in filter(self._has, seen.names):
            if self._evidence.shown(name):
                noise.discard(name)
            elif self._evidence.enough(name) or not self._loaded:
                noise.add(name)
        self.network.noise = tuple(sorted(noise))

    def _doubt(self) -> None:
        """Say so where probes were many, and all strengths are noise."""
        names = [name for name in self._evidence.names if self._has(name)]
        if not names or any(map(self._evidence.shown, names)):
            return
        best = max(names, key=lambda name: abs(self._evidence.t(name)))
        self._school.say(
            f"dean: {self._probes} probes, and for no strength do they agree on whether more of it helps "
            f"(largest |t| {abs(self._evidence.t(best)):.1f}, of {best}; 95% sure is asked for): strengths "
            "are the recipe's until they do; a larger probe_size or held_out means less noise, and a term "
            "that teaches nothing is better left out"
        )

    def _to_learn_from(self, seen: Look, ahead: Ahead, now: Sequence[float]) -> list[float]:
        """h; where the sum is kept, what is left when a term is raised at the cost of all of them.

        With strengths s_i = S v_i / sum v the derivative by log v_i is s_i h_i - s_i / S sum_j s_j h_j.
        """
        found = list(ahead.derivatives)
        total = sum(now)
        if not self._keep_sum or total <= 0:
            return found
        gained = [s * h for s, h in zip(now, found[: seen.terms], strict=True)]
        shared = [g - s / total * sum(gained) for s, g in zip(now, gained, strict=True)]
        return [*shared, *found[seen.terms :]]

    def _standing(self) -> dict[str, float]:
        """What holds at every step until the next probe."""
        sparsifier = self._school.sparsifier
        layers = {} if sparsifier is None else sparsifier.strengths
        known: dict[str, float] = {}
        if self._probes:  # none: there was nothing to set
            known["dean.moved"] = float(self._moved)
            if not self._frozen:
                known["dean.judged"] = float(self._evidence.judged)
        return {
            "dean.fallback": self._fallen_back if self._decides else 0.0,
            **known,
            **{f"sparsity_strength.{name}": value for name, value in layers.items()},
        }

    def _found(self, seen: Look, ahead: Ahead | None) -> dict[str, float]:
        """What a probe found."""
        trail: dict[str, float] = {}
        if ahead is not None:
            trail["dean.held_out_loss"] = ahead.loss
            trail["dean.step"] = ahead.learning_rate
            trail |= {f"t.{name}": self._evidence.t(name) for name in seen.names}
        for number, name in enumerate(seen.names[: seen.terms]):
            trail[f"distillability.{name}"] = self._memory.cosine(name)
            trail[f"distillability_now.{name}"] = seen.cosines[number]
            trail[f"distillability_all.{name}"] = seen.cosines_all[number]
            if ahead is not None:
                trail[f"hypergradient.{name}"] = ahead.derivatives[number]
        for number, name in enumerate(seen.names[seen.terms :], start=seen.terms):
            trail[f"sparsity.{name}"] = seen.channels[number][2]
            if ahead is not None:
                trail[f"sparsity_hypergradient.{name}"] = ahead.derivatives[number]
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
