"""Files that a recipe names, in whatever section: found, made absolute, told apart by content, shortened."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.errors import ConfigError
from toolchain.recipe.files import content_hash, named_files, portable
from toolchain.recipe.reading import load_recipe
from toolchain.recipe.schema import Recipe

TEXT = """\
name: files
model: {file: "nets/net.py:build", checkpoint: w.pt}
data: {kind: npz, root: d.npz}
stages:
  - {stage: teacher}
  - {stage: student, file: "own.py:make", args: {file: "kept.py:f"}, checkpoint: s.pt}
  - stage: recover
    distil:
      teachers: {other: {kind: network, file: "t.py:make", checkpoint: t.pt}}
"""
NAMES = ["nets/net.py", "w.pt", "d.npz", "own.py", "s.pt", "t.py", "t.pt"]


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    (tmp_path / "nets").mkdir()
    for name in NAMES:
        (tmp_path / name).write_text(name)
    (tmp_path / "r.yaml").write_text(TEXT)
    return load_recipe(tmp_path / "r.yaml")


def test_every_section_names_its_files_as_absolute_paths(recipe: Recipe, tmp_path: Path) -> None:
    found = [path for _, path in named_files(recipe)]
    assert found == [tmp_path / name for name in NAMES]


def test_what_ships_holds_names_and_no_paths(recipe: Recipe, tmp_path: Path) -> None:
    record = portable(recipe)
    assert str(tmp_path) not in str(record)
    assert record["model"]["file"] == "net.py:build"
    student, recover = record["stages"][1:]
    assert (student["file"], student["checkpoint"]) == ("own.py:make", "s.pt")
    assert student["args"] == {"file": "kept.py:f"}
    assert recover["distil"]["teachers"]["other"]["file"] == "t.py:make"


def test_a_stage_is_told_apart_by_what_its_files_hold(recipe: Recipe, tmp_path: Path) -> None:
    teacher, student, recover = recipe.stages
    assert content_hash(teacher) == ""
    before = content_hash(student), content_hash(recover)
    assert "" not in before and before[0] != before[1]
    (tmp_path / "t.pt").write_text("other")
    assert content_hash(student) == before[0]
    assert content_hash(recover) != before[1]


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("s.pt", "stages[1].checkpoint"),
        ("t.pt", "stages[2].distil.teachers.other.checkpoint"),
        ("t.py", "stages[2].distil.teachers.other.file"),
    ],
)
def test_a_file_that_is_not_there_is_told_with_its_place(
    recipe: Recipe, tmp_path: Path, name: str, place: str
) -> None:
    (tmp_path / name).unlink()
    with pytest.raises(ConfigError) as caught:
        load_recipe(tmp_path / "r.yaml")
    assert f"{place}: {tmp_path / name} does not exist" in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "kind: network",
            "kind: netwrok",
            "teachers.other.kind: \"netwrok\" is not known; did you mean 'network'",
        ),
        (
            "kind: network, ",
            "",
            "teachers.other.kind: required, and not given; accepted: assistant",
        ),
        (
            "checkpoint: t.pt",
            "checkpont: t.pt",
            "teachers.other.checkpont: unknown key; did you mean 'checkpoint'",
        ),
        (
            "own.py:make",
            "own.py",
            "stages[1]: file is 'own.py'; accepted: a Python file and a function",
        ),
    ],
)
def test_mistakes_about_networks_are_one_line_with_their_place(
    recipe: Recipe, tmp_path: Path, old: str, new: str, words: str
) -> None:
    (tmp_path / "r.yaml").write_text(TEXT.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        load_recipe(tmp_path / "r.yaml")
    assert "\n" not in str(caught.value)
    assert words in str(caught.value)
