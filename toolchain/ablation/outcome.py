"""One run of an ablation: the recipe's chain, and what its last student is worth on the test part."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.errors import ConfigError, StorageError
from deploy.whole_file import write_whole
from toolchain.runs.artifacts import Artifact, RunContext, run_stages
from toolchain.runs.training_logs import Trained, record_of, trained

if TYPE_CHECKING:
    from toolchain.recipe.schema import Recipe
    from toolchain.training.progress import Progress

TESTED = "tested"
# What is kept of a test.
_PARTS = frozenset({"top1", "loss", "n", "precision", "data", "date"})
AS_SHIPPED, AS_TRAINED = "the file as shipped", "the network as its last training stage left it"


@dataclass(frozen=True)
class Outcome:
    """What one run came to.

    Attributes:
        variant: Name of the variant.
        seed: Of the run.
        test_top1: Percent on the test part, of the student that the last epoch left.
        validation_top1: Percent on the validation part, of the same student.
        teacher_top1: Percent of the pretrained teacher on the test part.
        tested: What was tested: the file as shipped, or the trained network.
        test_images: How many images the test part has.
        macs: Multiplications of the student for one image.
        parameters: Numbers in the student.
        seconds: Of all stages up to the tested student, also of those that were found.
        trained: What each training stage spent.
        artifact: Name of the last artifact's folder.
        precision: In what it was trained, and on which device.
        data: Fingerprint.
        date: When the student was tested.
    """

    variant: str
    seed: int
    test_top1: float
    validation_top1: float
    teacher_top1: float
    tested: str
    test_images: int
    macs: int
    parameters: int
    seconds: float
    trained: tuple[Trained, ...]
    artifact: str
    precision: str
    data: str
    date: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def run_one(variant: str, recipe: Recipe, out: Path, progress: Progress) -> Outcome:
    """Run the recipe's chain, or find it done, and test its student once.

    Variants share stages: where another process is making one of this chain's, this one waits.

    Raises:
        ConfigError: The chain leaves no student that could be tested.
    """
    import torch

    from toolchain.ablation.equal_steps import with_equal_steps
    from toolchain.chain import check_order
    from toolchain.student import data_of

    check_order(recipe.stages)
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    recipe = with_equal_steps(recipe, data_of(RunContext(recipe, out)))
    last = run_stages(recipe, out, progress=progress, patient=True)
    student = next((made for made in last.lineage() if "validation_top1" in made.metrics), None)
    if student is None:
        raise ConfigError(
            f"{recipe.name}: its chain ends with {last.stage} and leaves no student that could be tested; "
            "accepted is a chain with a stage that trains or cuts; add one"
        )
    ctx = RunContext(recipe, out, progress, progress.say)
    teacher = _tested(student.find("teacher"), ctx)
    found = _tested(student, ctx)
    top1, tested, ended = found["top1"], AS_TRAINED, student
    if last.stage == "report":
        top1, tested, ended = last.metrics["top1"], AS_SHIPPED, last
    return Outcome(
        variant=variant,
        seed=recipe.seed,
        test_top1=top1,
        validation_top1=student.metrics["validation_top1"],
        teacher_top1=teacher["top1"],
        tested=tested,
        test_images=found["n"],
        macs=int(student.metrics["macs"]),
        parameters=int(student.metrics["parameters"]),
        seconds=sum(record_of(made)["seconds"] for made in ended.lineage()),
        trained=tuple(reversed([one for made in ended.lineage() if (one := trained(made))])),
        artifact=last.root.name,
        precision=found["precision"],
        data=found["data"],
        date=found["date"],
    )


def _tested(artifact: Artifact, ctx: RunContext) -> dict[str, Any]:
    """Top-1 of an artifact's network on the test part; measured once and kept beside the artifacts."""
    path = ctx.out / TESTED / f"{artifact.root.name}.json"
    if path.exists():
        return _kept(path)
    from toolchain.student import Student
    from toolchain.training.evaluation import evaluate

    student = Student.load(artifact, ctx)
    data = student.data
    found = evaluate(student.network, data.test, data.preprocess, student.precision)
    made = {
        "top1": found.top1,
        "loss": found.loss,
        "n": found.n,
        "precision": f"{student.precision.name} on {_device(student.precision.device)}",
        "data": data.fingerprint,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    text = json.dumps(made, indent=2) + "\n"
    write_whole(path, text, "the result of the test", "free some space or give another --out")
    return made


def _kept(path: Path) -> dict[str, Any]:
    """What was measured before.

    Raises:
        StorageError: The file is not what this wrote.
    """
    try:
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        wrong = sorted(_PARTS - kept.keys())
    except (ValueError, AttributeError) as error:
        wrong = [" ".join(str(error).split())]
    if wrong:
        raise StorageError(
            f"{path}: no result of a test ({', '.join(wrong)}); accepted is what an ablation wrote; delete "
            "the file, and the student is tested again"
        )
    return kept


def _device(device: str) -> str:
    import torch

    on_gpu = torch.device(device).type == "cuda"
    return torch.cuda.get_device_name(device) if on_gpu else "the CPU"
