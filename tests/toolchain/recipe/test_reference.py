"""The reference of recipes: complete, and the committed page is the one that the types give."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from toolchain.distillation.config import Distil, DistilLoss
from toolchain.recipe.reference import COMMAND, main, reference
from toolchain.recipe.schema import DataConfig, Goals, ModelConfig, Recipe, StructureConfig
from toolchain.stages import STAGES
from toolchain.training.config import Training

PAGE = Path(__file__).parents[3] / "docs" / "recipes.md"


@pytest.fixture(scope="module")
def page() -> str:
    return reference()


def sections(page: str) -> dict[str, str]:
    parts = re.split(r"^##+ (.+)$", page, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def fields(model: type[BaseModel]) -> set[str]:
    return set(model.model_fields)


def test_the_committed_page_is_up_to_date(page: str) -> None:
    assert PAGE.read_text() == page, f"run {COMMAND}"


@pytest.mark.parametrize(
    ("title", "model"),
    [
        ("The recipe", Recipe),
        ("model", ModelConfig),
        ("goals", Goals),
        ("structure", StructureConfig),
        ("training", Training),
        ("distil", Distil),
        ("distil.losses", DistilLoss),
    ],
)
def test_a_section_has_every_field(page: str, title: str, model: type[BaseModel]) -> None:
    assert set(re.findall(r"^\| `(\w+)` \|", sections(page)[title], re.MULTILINE)) == fields(model)


@pytest.mark.parametrize("section", ["stages", "data"])
def test_every_kind_has_its_fields_or_says_where_they_are(page: str, section: str) -> None:
    key, kinds = ("stage", STAGES) if section == "stages" else ("kind", get_args(DataConfig))
    found = sections(page)
    for model in kinds:
        (name,) = get_args(model.model_fields[key].annotation)
        text = found[f"{section}: {name}"]
        linked = "".join(found[title] for title in re.findall(r"\[(\w+)\]\(#\w+\)", text))
        common = found["data"] if section == "data" else ""
        shown = set(re.findall(r"^\| `(\w+)` \|", text + linked + common, re.MULTILINE))
        assert fields(model) - {key} <= shown


def test_links_lead_to_headings(page: str) -> None:
    headings = {title.lower().replace(".", "").replace(" ", "-") for title in sections(page)}
    links = re.findall(r"\]\(#([^)]+)\)", page)
    assert links
    assert set(links) <= headings


def test_defaults_and_bounds_are_those_of_the_types(page: str) -> None:
    found = sections(page)
    assert "| `max_sparsity` | number ≥ 0, < 1 | `0.9` | of each group |" in found["structure"]
    assert "| `clip_norm` | number > 0 or `null` | `5.0` |" in found["training"]
    assert (
        "| `distil` | see [distil](#distil) or `null` | its defaults |" in found["stages: recover"]
    )
    assert "| `distil` | see [distil](#distil) | none |" in found["stages: pqk-prune"]


def test_it_is_written_where_it_is_asked_for(tmp_path: Path, page: str) -> None:
    out = tmp_path / "recipes.md"
    assert main([str(out)]) == 0
    assert out.read_text() == page


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["/nowhere/recipes.md"]])
def test_what_a_user_can_fix_is_one_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 1
    assert capsys.readouterr().err.count("\n") == 1
