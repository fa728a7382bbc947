"""Whole analyses of a tiny recipe: files, resuming, drawings, and bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner, Result

from toolchain.analysis.page import read, tables
from toolchain.cli import app


def analyze(recipe: Path, out: Path, *arguments: object) -> Result:
    given = ["analyze", recipe, "--out", out, "--plain", "--probes", 3, *arguments]
    return CliRunner().invoke(app, [str(argument) for argument in given])


def folder(out: Path) -> Path:
    (found,) = [path for path in out.iterdir() if path.name.startswith("quarters-analysis-")]
    return found


@pytest.fixture(scope="module")
def finished(quarters: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    out = tmp_path_factory.mktemp("runs")
    result = analyze(
        quarters, out, "--epochs", 2, "--every", 3, "--spots", "layer*", "--images", 12
    )
    return out, result


def record(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder(out) / "analysis.json").read_text())
    return found


def test_it_measures_before_during_and_after(finished: tuple[Path, Result]) -> None:
    out, result = finished
    assert result.exit_code == 0, result.output
    made = record(out)
    assert [each["step"] for each in made["distillability"]] == [0, 3, 6, 8]
    for each in made["distillability"]:
        names = list(each["layers"])
        assert (names[0], names[-1]) == ("conv1", "linear")
        assert list(each["terms"]) == ["at@layer1", "at@layer2", "at@layer3", "kl"]
        for values in (*each["layers"].values(), *each["terms"].values()):
            assert len(values) == 3 and all(-1 <= value <= 1 for value in values)
    whole, before, after = made["sparsability"].values()
    assert {each["sparsity"] for each in whole} == {0.25, 0.5, 0.75}
    assert [each["group"] for each in before] == [each["group"] for each in after]
    channels = [[each["channels"] for each in found] for found in (whole, before)]
    assert sum(channels[0]) > sum(channels[1])
    assert made["images"] == 12
    assert (
        made["distilled"] == "kl at strength 0.9; looked at only: at@layer1, at@layer2, at@layer3"
    )
    assert made["environment"]["python"]


def test_the_terminal_has_tables_and_what_was_seen(finished: tuple[Path, Result]) -> None:
    _, result = finished
    for part in (
        "Distillability by layer",
        "Distillability by term, at its own spot",
        "Sparsability after training",
        "Distillability with depth at step 0",
        "Distillability with training, mean over",
        "Sparsability before training: the cost of 75% of one group",
        "analysis.md",
    ):
        assert part in result.stdout, part


def test_the_page_shows_its_drawings_and_they_are_svg(finished: tuple[Path, Result]) -> None:
    out, _ = finished
    page = (folder(out) / "analysis.md").read_text()
    said = "quarters.yaml --epochs 2 --every 3 --spots 'layer*' --probes 3 --images 12"
    assert f"- written by: `compress-deploy analyze {said}`" in page
    for name in ("distillability", "terms", "sparsability-after-training"):
        assert f"]({name}.svg)" in page
        root = ElementTree.parse(folder(out) / f"{name}.svg").getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        paths = root.iter("{http://www.w3.org/2000/svg}path")
        assert sum(1 for _ in paths) >= 3
    assert "step 8" in (folder(out) / "distillability.svg").read_text()


def test_a_table_has_few_times_on_a_terminal(finished: tuple[Path, Result]) -> None:
    analysis = read(folder(finished[0]))
    made = record(finished[0])
    assert json.loads(json.dumps(analysis.to_dict())) == {
        key: made[key] for key in analysis.to_dict()
    }
    brief = {title: (head, rows) for title, head, rows in tables(analysis, 2, brief=True)}
    head, rows = brief["Distillability by layer"]
    assert head == ("layer", "step 0", "step 8")
    assert all("±" in cell for cell in rows[0][1:])
    assert not any("±" in cell for row in brief["Sparsability before training"][1] for cell in row)


def test_the_same_command_finds_it_and_shows_it_again(
    finished: tuple[Path, Result], quarters: Path
) -> None:
    out, first = finished
    again = analyze(quarters, out, "--epochs", 2, "--every", 3, "--spots", "layer*", "--images", 12)
    assert "analyze: found" in again.stderr
    assert again.stdout == first.stdout


def test_controllers_start_alike_and_are_looked_at_on_the_same_images(
    quarters: Path, tmp_path: Path
) -> None:
    dean = "{held_out: 0.25, probe_size: 4, probe_every: 2, trust_probes: 0}"
    distil = f"stages.recover.distil={{controller: dean, controller_options: {dean}}}"
    options = ["--epochs", 2, "--every", 3, "--images", 12, "--set", distil]
    result = analyze(quarters, tmp_path, "--controllers", "dean,fixed,ramp", *options)
    assert result.exit_code == 0, result.output
    made = record(tmp_path)
    assert list(made["others"]) == ["dean", "ramp"]
    fixed, dean, ramp = (made["distillability"], *made["others"].values())
    # The same steps although one of them holds images out, and the same network on the same batches first.
    assert [each["step"] for each in fixed] == [each["step"] for each in dean] == [0, 3, 6, 8]
    assert fixed[0] == dean[0] == ramp[0]
    assert fixed[-1]["layers"] != dean[-1]["layers"]
    assert (
        "Distillability under dean less that" in result.stdout
        and "Distillability under each controller" in result.stdout
    )
    where = folder(tmp_path)
    assert (
        "](controllers.svg)" in (where / "analysis.md").read_text()
        and "dean" in (where / "controllers.svg").read_text()
    )
    assert (where / "dean" / "analysis.md").is_file()
    assert made["others_never"] == {}
    again = analyze(quarters, tmp_path, "--controllers", "dean,ramp", *options)
    assert again.stdout == result.stdout and again.stderr.count("analyze: found") == 3


def test_a_dean_that_moved_nothing_is_said_instead_of_a_comparison(
    quarters: Path, tmp_path: Path
) -> None:
    dean = "{held_out: 0.25, probe_size: 4, probe_every: 100}"
    distil = f"stages.recover.distil={{controller: dean, controller_options: {dean}}}"
    options = ["--epochs", 2, "--every", 4, "--images", 0, "--set", distil]
    result = analyze(quarters, tmp_path, "--controllers", "dean", *options)
    assert result.exit_code == 0, result.output
    assert "Under dean no strength ever moved from the recipe's" in result.stdout
    assert "Distillability under dean less that" not in result.stdout
    assert "dean: 1 probe, too few to judge it: no strength ever moved" in result.stderr
    found = record(tmp_path)
    assert found["others_never"] == {"dean": ["moved", "judged"]}
    for older in ("never", "others_never"):
        del found[older]
    (folder(tmp_path) / "analysis.json").write_text(json.dumps(found))
    assert read(folder(tmp_path)).others_never == {}


def test_without_epochs_nothing_is_trained(quarters: Path, tmp_path: Path) -> None:
    result = analyze(quarters, tmp_path, "--quiet")
    assert result.exit_code == 0 and result.stderr == ""
    made = record(tmp_path)
    assert [each["step"] for each in made["distillability"]] == [0]
    assert list(made["sparsability"]) == ["of the pretrained network", "before training"]
    assert not list(folder(tmp_path).glob("*.metrics.jsonl"))
    assert "with training" not in result.stdout


def test_without_images_only_distillability_is_measured(quarters: Path, tmp_path: Path) -> None:
    result = analyze(quarters, tmp_path, "--images", 0)
    assert result.exit_code == 0, result.output
    assert record(tmp_path)["sparsability"] == {}
    page = (folder(tmp_path) / "analysis.md").read_text()
    assert "parsability" not in page + result.stdout and "by layer" in page


def test_a_masked_network_has_no_sparsability_and_says_so(quarters: Path, tmp_path: Path) -> None:
    stages = "stages=[{stage: teacher}, {stage: prune}, {stage: recover, batch_size: 16}]"
    result = analyze(quarters, tmp_path, "--set", stages)
    assert result.exit_code == 0, result.output
    assert "Sparsability of the student was not measured: masks hide" in result.stdout
    assert list(record(tmp_path)["sparsability"]) == ["of the pretrained network"]
    drawings = [path.name for path in folder(tmp_path).glob("sparsability-*.svg")]
    assert drawings == ["sparsability-of-the-pretrained-network.svg"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--stage", "slim"], "--stage: 'slim' does not distil in quarters; accepted: recover"),
        (["--set", "stages.recover.distil=null"], "no stage distils"),
        (["--spots", "layr*"], "layr"),
        (["--controllers", "dean"], "--controllers: dean asked for and no training"),
        (["--controllers", ",", "--epochs", "1"], "--controllers: ',' names none"),
        (["--controllers", "deen", "--epochs", "1"], "--controllers: unknown 'deen'"),
    ],
)
def test_bad_input_is_one_line(
    quarters: Path, tmp_path: Path, arguments: list[str], says: str
) -> None:
    result = analyze(quarters, tmp_path, "--quiet", *arguments)
    assert result.exit_code == 1
    assert says in result.stderr and result.stderr.count("\n") == 1
