"""What an analysis of a recipe measured, and back from JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from toolchain.analysis.claims import sentences
from toolchain.analysis.probing import Probed
from toolchain.analysis.sparsities import Damage


@dataclass(frozen=True)
class Analysis:
    """What was measured of one recipe.

    Attributes:
        recipe: Its name.
        stage: The stage whose teaching is looked at.
        seed: Of the run.
        seen: Distillability at each time.
        sparsability: At each time that it was measured at, in words: ``of the pretrained network``.
        distilled: The terms with their strengths, in words.
        probes: Batches and images of each, in words.
        images: Held-out images of the sparsability.
        importance: By which channels went.
        left_out: Why there is no sparsability, if there is none.
        others: Distillability at each time of trainings from the same start under other controllers, by
            their names; ``seen`` is at fixed strength.
        never: What a dean of this training never did: ``moved`` a strength, was ``judged``.
        others_never: Likewise in the other trainings, by their controllers.
        command: That made it; empty where nobody said.
    """

    recipe: str
    stage: str
    seed: int
    seen: Sequence[Probed]
    sparsability: Mapping[str, Sequence[Damage]]
    distilled: str
    probes: str
    images: int
    importance: str
    left_out: str = ""
    others: Mapping[str, Sequence[Probed]] = field(default_factory=dict)
    never: Sequence[str] = ()
    others_never: Mapping[str, Sequence[str]] = field(default_factory=dict)
    command: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe,
            "stage": self.stage,
            "seed": self.seed,
            "distilled": self.distilled,
            "probes": self.probes,
            "distillability": [probed.to_dict() for probed in self.seen],
            "importance": self.importance,
            "images": self.images,
            "sparsability": {
                when: [damage.to_dict() for damage in found]
                for when, found in self.sparsability.items()
            },
            "left_out": self.left_out,
            "others": {
                name: [probed.to_dict() for probed in seen] for name, seen in self.others.items()
            },
            "never": list(self.never),
            "others_never": {name: list(what) for name, what in self.others_never.items()},
            "command": self.command,
            "shows": self.sentences(),
        }

    def sentences(self) -> list[str]:
        """What was seen of the papers' claims."""
        said = sentences(self.seen, self.sparsability, self.others, self.others_never)
        return [*said, self.left_out] if self.left_out else said

    @property
    def by_controller(self) -> dict[str, Sequence[Probed]]:
        """Distillability at each time, by who set the strengths."""
        return {"fixed": self.seen, **self.others}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Analysis:
        """What ``to_dict`` wrote, read back from JSON, also before it told what was never done."""
        same = (
            "recipe",
            "stage",
            "seed",
            "distilled",
            "probes",
            "importance",
            "images",
            "left_out",
        )
        return cls(
            **{name: record[name] for name in same},
            seen=[Probed.from_dict(one) for one in record["distillability"]],
            others={
                name: [Probed.from_dict(one) for one in seen]
                for name, seen in record["others"].items()
            },
            never=record.get("never", ()),
            others_never=record.get("others_never", {}),
            command=record.get("command", ""),
            sparsability={
                when: [Damage.from_dict(one) for one in found]
                for when, found in record["sparsability"].items()
            },
        )
