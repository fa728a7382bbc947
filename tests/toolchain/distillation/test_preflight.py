"""What is refused before the first stage: spots that no network has, and too few held-out samples."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from deploy.errors import CompressDeployError, ConfigError
from toolchain.cli import app
from toolchain.dean.network import DeanNetwork
from toolchain.distillation.preflight import Preflight
from toolchain.models import registry
from toolchain.recipe.reading import load_recipe
from toolchain.recipe.schema import Recipe

SMALL = {"image_size": 8, "patch": 2, "in_channels": 1, "classes": 4, "depth": 2}
VIT = {"stage": "student", "builtin": "vit", "args": {**SMALL, "width": 8, "heads": 2}}
TRAIN = {"epochs": 1, "batch_size": 16, "warmup_epochs": 0}
BEFORE = [{"stage": "teacher"}, {"stage": "train", **TRAIN}]


def taught(*losses: dict[str, Any], **distil: Any) -> dict[str, Any]:
    return {"stage": "recover", **TRAIN, "distil": {"losses": list(losses), **distil}}


def recipe(quarters: Path, *stages: dict[str, Any], **sections: Any) -> Recipe:
    given = load_recipe(quarters).model_dump(mode="json")
    return Recipe.model_validate({**given, "stages": [*BEFORE, *stages], **sections})


def refusal(asked: Recipe) -> str:
    with pytest.raises(CompressDeployError) as caught:
        Preflight().check(asked)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [
        ("run", []),
        ("plan", []),
        ("analyze", ["--epochs", "1"]),
        ("ablate", ["--controllers", "fixed,none", "--seeds", "1"]),
    ],
)
@pytest.mark.parametrize(
    ("override", "says"),
    [
        (
            "stages.recover.distil.losses=[{loss: at, spot: 'layr*'}]",
            "stages[3] (recover), in the student: distil.spot: 'layr*' matches no module that the forward "
            "pass reaches; a * does not go across a dot; did you mean 'layer",
        ),
        (
            "stages.recover.distil={controller: dean, controller_options: {probe_size: 64}}",
            "stages[3] (recover): distil.controller_options.held_out: 8 samples for the dean; accepted are "
            "at least 64, a batch of probe_size 64",
        ),
    ],
)
def test_every_verb_refuses_before_its_first_stage(
    quarters: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    arguments: list[str],
    override: str,
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if "dean" in override and verb == "analyze":
        arguments = [*arguments, "--controllers", "dean"]
    if "dean" in override and verb == "ablate":
        arguments = ["--controllers", "dean,none", "--seeds", "1"]
    given = [verb, str(quarters), *arguments, "--set", override]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 1
    prefix = "variant fixed: " if verb == "ablate" and "dean" not in override else ""
    prefix = "variant dean: " if verb == "ablate" and "dean" in override else prefix
    assert prefix + says in result.stderr
    assert result.stderr.count("\n") == 1 and result.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_spots_of_an_analysis_are_refused_before_its_first_stage(
    quarters: Path, tmp_path: Path
) -> None:
    given = ["analyze", str(quarters), "--spots", "layr*", "--out", str(tmp_path / "runs")]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 1 and "--spots, in the student: distil.spot" in result.stderr
    assert not (tmp_path / "runs").exists()


def test_a_students_spots_are_those_of_the_last_student_stage(quarters: Path) -> None:
    good = {"loss": "fitnet", "spot": "layer3", "student_spot": "blocks.1"}
    Preflight().check(recipe(quarters, taught({"loss": "at", "spot": "layer1"}), VIT, taught(good)))
    said = refusal(recipe(quarters, VIT, taught({"loss": "fitnet", "spot": "layer3"})))
    assert said.startswith("stages[3] (recover), in the student: distil.spot: 'layer3' is not a")
    said = refusal(recipe(quarters, VIT, taught({**good, "spot": "blocks.1"})))
    assert said.startswith(
        "stages[3] (recover), in the teacher pretrained: distil.spot: 'blocks.1'"
    )
    # An exit ends in logits, and asks nothing else of the teacher.
    Preflight().check(recipe(quarters, VIT, taught({"loss": "ofa", "spot": "blocks.*"})))
    said = refusal(recipe(quarters, VIT, taught({"loss": "ofa", "spot": "block.*"})))
    assert "in the student" in said and "did you mean 'blocks." in said


def test_spots_of_other_teachers(quarters: Path, tmp_path: Path) -> None:
    file = tmp_path / "mlp.safetensors"
    mixer = {**SMALL, "width": 8, "token_hidden": 4}
    save_file(registry.build("mixer", **mixer).state_dict(), file)
    network = {"kind": "network", "builtin": "mixer", "args": mixer, "checkpoint": str(file)}
    loss = {"loss": "fitnet", "teacher": "other", "student_spot": "layer3"}

    def asked(spot: str, teacher: dict[str, Any], *between: dict[str, Any]) -> Recipe:
        last = taught({**loss, "spot": spot}, teachers={"other": teacher})
        return recipe(quarters, *between, last)

    Preflight().check(asked("blocks.0", network))
    assert "in the teacher other: distil.spot: 'layer3'" in refusal(asked("layer3", network))
    for kind in ("ema", "in-network"):
        Preflight().check(asked("layer3", {"kind": kind}))
        assert "in the teacher other" in refusal(asked("blocks.0", {"kind": kind}))
    # An assistant is what an earlier stage left, here before the new student.
    assistant = {"kind": "assistant", "stage": "train"}
    said = refusal(asked("blocks.0", assistant))
    assert "in the teacher other: distil.spot: 'blocks.0'" in said
    back = {**loss, "spot": "layer3", "student_spot": "blocks.0"}
    Preflight().check(recipe(quarters, VIT, taught(back, teachers={"other": assistant})))


def test_patterns_name_as_many_places_unless_the_student_is_cut(quarters: Path) -> None:
    loss = {"loss": "at", "spot": "layer?.0", "student_spot": "layer[12].0"}
    said = refusal(recipe(quarters, taught(loss)))
    assert said.startswith(
        "stages[2] (recover): distil.losses (at): spot 'layer?.0' names 3 places"
    )
    # Branches may go with their spots: then there can be as many, which only the stage sees.
    Preflight().check(recipe(quarters, {"stage": "prune"}, {"stage": "slim"}, taught(loss)))
    bad = taught({"loss": "at", "spot": "layr?.0"})
    assert "'layr?.0' matches no" in refusal(
        recipe(quarters, {"stage": "prune"}, {"stage": "slim"}, bad)
    )


def test_both_spots_of_a_pair_are_looked_for(quarters: Path) -> None:
    Preflight().check(recipe(quarters, taught({"loss": "fsp", "spot": ["layer1", "layer2"]})))
    said = refusal(recipe(quarters, taught({"loss": "fsp", "spot": ["layer1", "layr2"]})))
    assert "'layr2' is not a module of this network; did you mean 'layer2'?" in said


def test_a_stage_that_says_it_elsewhere_is_named_with_the_place(quarters: Path) -> None:
    distil = {"losses": [{"loss": "at", "spot": "layr1"}]}
    stage = {"stage": "pqk-distil", **TRAIN, "pretrained": distil}
    said = refusal(recipe(quarters, {"stage": "prune"}, stage))
    assert said.startswith("stages[3] (pqk-distil).pretrained, in the student: distil.spot")


@pytest.mark.parametrize("controller", ["dean", "anti"])
def test_a_held_out_part_has_to_hold_a_probe(
    quarters: Path, controller: str, tmp_path: Path
) -> None:
    def asked(**options: Any) -> Recipe:
        loss = {"loss": "kl", "temperature": 4.0}
        return recipe(quarters, taught(loss, controller=controller, controller_options=options))

    Preflight().check(asked(held_out=0.25, probe_size=16))
    said = refusal(asked(held_out=0.25, probe_size=17))
    assert said.startswith("stages[2] (recover): distil.controller_options.held_out: 16 samples")
    assert "accepted are at least 128" in refusal(asked())
    # A frozen dean looks at nothing there.
    file = tmp_path / "dean.safetensors"
    DeanNetwork(2.0, 2.0, 0).save(file, {})
    before = torch.get_rng_state()
    Preflight().check(asked(frozen=True, load=str(file)))
    assert torch.equal(torch.get_rng_state(), before)
    file.write_bytes(b"no dean")
    said = refusal(asked(frozen=True, load=str(file)))
    assert said.startswith("stages[2] (recover): distil.controller_options.load: ")
    assert "accepted: above 0 and below 1" in refusal(asked(held_out=1.5))
    if controller == "dean":
        assert "frozen: true without a dean to replay" in refusal(asked(frozen=True))


def test_only_a_controller_that_holds_samples_out_reads_the_data(quarters: Path) -> None:
    def no(_: Recipe) -> Any:
        raise AssertionError("not needed")

    asked = recipe(quarters, taught({"loss": "at", "spot": "layer*"}))
    Preflight(no).check(asked)
    with pytest.raises(AssertionError, match="not needed"):
        Preflight(no).check(recipe(quarters, taught({"loss": "kl"}, controller="dean")))


def test_random_numbers_are_left_as_they_were_and_a_network_is_built_once(
    quarters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = recipe(
        quarters,
        taught({"loss": "at", "spot": "layer*"}, {"loss": "at", "spot": "layer1.0"}),
        VIT,
        taught({"loss": "fitnet", "spot": "layer3", "student_spot": "blocks.1"}),
    )
    from toolchain import starting

    built: list[str] = []
    original = starting.build_network

    def noted(origin: Any, *arguments: Any) -> Any:
        built.append(origin.builtin)
        return original(origin, *arguments)

    monkeypatch.setattr(starting, "build_network", noted)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    preflight = Preflight()
    preflight.check(asked)
    preflight.check(asked.model_copy(update={"seed": 7}))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())
    assert built == ["cifar_resnet", "vit"]


def test_where_only_logits_are_compared_nothing_is_built(
    quarters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from toolchain import starting

    def no(*_: Any) -> Any:
        raise ConfigError("not needed")

    monkeypatch.setattr(starting, "build_network", no)
    Preflight().check(recipe(quarters, taught({"loss": "kl"}, {"loss": "ofa"})))


def test_a_good_recipe_runs_as_before(quarters: Path, tmp_path: Path) -> None:
    """The same keys and the same bytes as without the look ahead."""
    from toolchain.runs.artifacts import run_stages

    given = ["stages.recover.distil.losses=[{loss: at, spot: 'layer*', strength: 100}]"]
    asked = load_recipe(quarters, given)
    plain = run_stages(asked, tmp_path / "plain")
    result = CliRunner().invoke(
        app, ["run", str(quarters), "--out", str(tmp_path / "run"), "--quiet", "--set", given[0]]
    )
    assert result.exit_code == 0, result.output
    (other,) = (tmp_path / "run" / "artifacts").glob("recover-*")
    assert other.name == plain.root.name
    files = ("model.safetensors", "spec.json")
    assert all((other / f).read_bytes() == (plain.root / f).read_bytes() for f in files)
    assert json.loads((other / "artifact.json").read_text())["metrics"] == plain.metrics
