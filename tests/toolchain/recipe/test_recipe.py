"""A recipe is read strictly, overridden by key, and every mistake is one line that helps."""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from deploy.errors import ConfigError
from toolchain.chain import standard_chain
from toolchain.recipe.reading import dump_recipe, load_recipe, parse_yaml
from toolchain.recipe.schema import ModelConfig, Recipe, StructureConfig
from toolchain.stages import STAGES

MINIMAL = "name: tiny\nmodel: {builtin: mlp}\ndata: {kind: digits}\n"
Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def problem(path: Path, *overrides: str, need_files: bool = False) -> str:
    with pytest.raises(ConfigError) as caught:
        load_recipe(path, overrides, need_files=need_files)
    message = str(caught.value)
    assert "\n" not in message
    return message


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every key path of a tree with its value; sections and stages count too."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        name = f"{path}.{key}".lstrip(".")
        yield name, value
        if isinstance(value, dict) or name == "stages":
            yield from leaves(value, name)


def test_defaults_are_the_documented_ones(write: Write) -> None:
    recipe = load_recipe(write(MINIMAL))
    assert (recipe.seed, recipe.threads, recipe.precision) == (0, None, "auto")
    assert recipe.target == "ort-cpu"
    assert recipe.stages == list(standard_chain())
    assert recipe.structure.allocation == "global"
    assert recipe.data.validation == 0.1


def test_a_recipe_never_changes(write: Write) -> None:
    recipe = load_recipe(write(MINIMAL))
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["holds nothing", "accepted: a mapping"]),
        ("- a", ["holds a list"]),
        ("name: [", ["line 1"]),
        ("\tname: x", ["line 1"]),
        (MINIMAL + "name: b", ["line 4", "'name' is given twice"]),
        (MINIMAL + "goals: {macs: 0.5, macs: 0.4}", ["line 4", "'macs' is given twice"]),
        (MINIMAL + "1: 2", ["line 4", "key 1 is not text"]),
        (MINIMAL + "x: &a [*a]", ["not plain text"]),
        (MINIMAL + "x: !!python/object:os.x {}", ["line 4", "constructor"]),
        (MINIMAL + "x: !!binary aGk=", ["not plain text"]),
        (MINIMAL + "strcture: {}", ["strcture: unknown key", "did you mean 'structure'?"]),
        (MINIMAL + "seed: '3'", ['seed: "3" given', "a whole number at least 0"]),
        (MINIMAL + "seed: true", ["seed: true given"]),
        (MINIMAL + "goals: {macs: 1.1}", ["goals.macs: 1.1 given", "above 0 and at most 1"]),
        (MINIMAL + "goals: {latency_ms: .inf}", ["goals.latency_ms", "accepted: a number above 0"]),
        (MINIMAL + "structure: {importance: L3}", ["structure.importance", "did you mean 'l"]),
        (MINIMAL + "structure: {ignore: fc}", ["structure.ignore", "a list of: text"]),
        (MINIMAL + "structure: {max_sparsity: 1}", ["structure.max_sparsity: 1 given", "below 1"]),
        (MINIMAL + "structure: {channels: {a.b: 0}}", ["structure.channels.a.b: 0 given"]),
        (MINIMAL + "structure: 3", ["structure: 3 given", "a mapping with the keys ignore"]),
        (
            MINIMAL + "target: tensort",
            ['target: "tensort" given', "ort-cpu, tensorrt, tensorrt-fp16"],
        ),
        (MINIMAL + "target: []", ["target: [] given", "a list with at least 1 of"]),
        (
            MINIMAL + "target: [ort-cpu, x]",
            ["target: [", "accepted: ort-cpu, tensorrt, tensorrt-fp16"],
        ),
        (MINIMAL + "target: [tensorrt, tensorrt]", ["target: tensorrt, tensorrt given", "once"]),
        (
            MINIMAL + "target: tensorrt-fp16\nstages: [{stage: export, static_int8: minmax}]",
            ["stages: static_int8 and target tensorrt-fp16 given", "for ort-cpu and tensorrt"],
        ),
        (MINIMAL + "stages: []", ["stages: [] given", "at least 1"]),
        (
            MINIMAL + "stages: [{stage: recover, distil: {losses: [{loss: at, spot: ''}]}}]",
            ['losses[0].spot: "" given; accepted: text that is not empty, or a list of 2'],
        ),
        (
            MINIMAL + "stages: [{stage: recover, distil: {controler: dean}}]",
            ["distil.controler: unknown key; did you mean 'controller'? accepted: controller, "],
        ),
        (
            MINIMAL + "stages: [{stage: pqk-distil, pretrained: {foo: 1}}]",
            ["pretrained.foo: unknown key; accepted: controller, controller_options, losses"],
        ),
        (MINIMAL + "stages: [3]", ["stages[0]: 3 given", "a mapping with stage: "]),
        (MINIMAL + "stages: [{}]", ["stages[0].stage: required", "accepted: "]),
        (MINIMAL.replace("digits", "digit"), ["data.kind", "did you mean 'digits'?"]),
        (MINIMAL.replace("digits", "null"), ["data.kind: null is not known", "accepted: digits"]),
        (MINIMAL.replace("digits", "digits, root: x"), ["data.root: unknown key"]),
        (MINIMAL.replace("digits", "npz, roat: x"), ["data.roat", "did you mean 'root'?"]),
        (MINIMAL.replace("mlp", "mlp, file: 'a.py:b'"), ["model: 'builtin' and 'file' given"]),
        (MINIMAL.replace("builtin: mlp", ""), ["model: none given of 'builtin'"]),
        (MINIMAL.replace("builtin: mlp", "file: net.py"), ["model: file is 'net.py'", "net.py:b"]),
        (MINIMAL.replace("tiny", "a b"), ['name: "a b" given', "text that matches"]),
        ("model: {builtin: mlp}\ndata: {kind: digits}", ["name: required, and not given"]),
    ],
)
def test_mistakes_say_where_what_and_what_is_accepted(
    write: Write, text: str, parts: list[str]
) -> None:
    path = write(text)
    message = problem(path)
    assert message.startswith(f"{path}: ")
    for part in parts:
        assert part in message


def test_one_target_or_several(write: Write) -> None:
    one, several = (
        load_recipe(write(MINIMAL + f"target: {given}"))
        for given in ("tensorrt", "[ort-cpu, tensorrt-fp16]")
    )
    assert one.targets == ("tensorrt",)
    assert several.targets == ("ort-cpu", "tensorrt-fp16")
    assert load_recipe(write(MINIMAL)).targets == ("ort-cpu",)


def test_unequal_lengths_of_mean_and_std(write: Write) -> None:
    message = problem(write(MINIMAL), "data.preprocess={mean: [0, 0, 0]}")
    assert "data.preprocess: mean has 3 numbers and std has 1" in message


def test_a_ramp_that_ends_before_it_starts(write: Write) -> None:
    text = MINIMAL + "stages: [{stage: pqk-prune, ramp_start: 0.8, ramp_end: 0.2}]\n"
    message = problem(write(text))
    assert "stages[0]: ramp_start is 0.8 and ramp_end is 0.2" in message
    level = text.replace("0.8", "0.2")
    assert load_recipe(write(level)).stages[0].stage == "pqk-prune"


def test_a_misspelt_key_inside_a_stage_names_its_neighbour(write: Write) -> None:
    name = standard_chain()[0].stage
    message = problem(write(MINIMAL + f"stages: [{{stage: {name}, stagge: 1}}]"))
    assert "stages[0].stagge: unknown key; did you mean 'stage'?" in message


def test_an_unknown_stage_lists_all(write: Write) -> None:
    message = problem(write(MINIMAL + "stages: [{stage: nosuch}]"))
    assert 'stages[0].stage: "nosuch" is not known' in message
    for stage in STAGES:
        assert str(stage.model_fields["stage"].default) in message


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("seed", ["accepted: key=value"]),
        ("=3", ["accepted: key=value"]),
        ("a..b=3", ["accepted: key=value"]),
        ("seed=[1", ["line 1"]),
        ("seed=x", ['seed: "x" given']),
        ("name.x=3", ['name is "tiny", which has no keys']),
        ("strucure.align=8", ["strucure: unknown key; did you mean 'structure'?"]),
        ("structure.aling=8", ["structure.aling: unknown key; did you mean 'align'?"]),
        ("structure={aling: 8}", ["structure.aling: unknown key"]),
        ("stages.99.x=3", ["stages: no entry 99; accepted: 0 to"]),
        ("stages.nosuch.x=3", ["stages: no entry 'nosuch'", "accepted: "]),
    ],
)
def test_mistakes_on_the_command_line_name_the_override(
    write: Write, override: str, parts: list[str]
) -> None:
    message = problem(write(MINIMAL), override)
    assert message.startswith(f"--set {override}: ")
    for part in parts:
        assert part in message


def test_an_override_is_not_blamed_for_the_file(write: Write) -> None:
    path = write(MINIMAL + "goals: {mac: 0.5}")
    assert problem(path, "goals.macs=0.5").startswith(f"{path}: goals.mac: unknown key")


def test_overrides_reach_sections_entries_and_stages_by_name(write: Write) -> None:
    names = [stage.stage for stage in standard_chain()]
    path = write(MINIMAL)
    recipe = load_recipe(path, ["structure.align=8", "goals.macs=5e-1", "model.args={width: 3}"])
    assert (recipe.structure.align, recipe.goals.macs) == (8, 0.5)
    assert recipe.model.args == {"width": 3}
    shorter = load_recipe(path, [f"stages=[{{stage: {names[-1]}}}]"])
    assert [stage.stage for stage in shorter.stages] == names[-1:]
    same = load_recipe(path, [f"stages.{names[0]}.stage={names[0]}", f"stages.0.stage={names[0]}"])
    assert same.stages == recipe.stages


def test_a_stage_that_is_there_twice_needs_its_position(write: Write) -> None:
    name = standard_chain()[0].stage
    path = write(MINIMAL + f"stages: [{{stage: {name}}}, {{stage: {name}}}]")
    assert f"{name!r} is there 2 times; accepted: [0, 1]" in problem(path, f"stages.{name}.x=1")


def test_the_last_override_wins(write: Write) -> None:
    assert load_recipe(write(MINIMAL), ["seed=1", "seed=2"]).seed == 2


def test_every_value_can_be_overridden_with_itself(write: Write) -> None:
    path = write(MINIMAL)
    recipe = load_recipe(path)
    for name, value in leaves(recipe.model_dump(mode="json")):
        assert load_recipe(path, [f"{name}={json.dumps(value)}"]) == recipe, name


def test_paths_start_at_the_file_or_at_the_current_directory(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    path = write(
        "name: tiny\nmodel: {file: 'net.py:build', checkpoint: w.pt}\ndata: {kind: npz, root: d}"
    )
    recipe = load_recipe(path, ["data.root=d"], need_files=False)
    assert recipe.model == ModelConfig(
        file=f"{tmp_path / 'net.py'}:build", checkpoint=tmp_path / "w.pt"
    )
    assert recipe.data.kind == "npz"
    assert recipe.data.root == here / "d"
    message = problem(path, "data.root=d", need_files=True)
    assert message.startswith(f"{path}: model.file: {tmp_path / 'net.py'} does not exist")
    (tmp_path / "net.py").touch()
    message = problem(path, "data.root=d", need_files=True)
    assert f"model.checkpoint: {tmp_path / 'w.pt'} does not exist" in message
    (tmp_path / "w.pt").touch()
    message = problem(path, "data.root=d", need_files=True)
    assert message.startswith(f"--set data.root=d: data.root: {here / 'd'} does not exist")
    (here / "d").touch()
    assert load_recipe(path, ["data.root=d"]) == recipe


def test_data_without_a_root_can_be_looked_at_but_not_run(write: Write) -> None:
    path = write("name: tiny\nmodel: {builtin: mlp}\ndata: {kind: parquet}")
    assert load_recipe(path, need_files=False).data.kind == "parquet"
    assert "data.root: required, and not given" in problem(path, need_files=True)


def test_a_missing_recipe_and_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert str(tmp_path / "nope.yaml") in problem(Path("nope.yaml"))
    assert "cannot be read" in problem(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9")
    assert "not UTF-8" in problem(tmp_path / "latin.yaml")


def test_scalars_follow_yaml_1_2() -> None:
    text = "[1e-3, 010, yes, no, on, 1:30, 2024-01-01, 0x10, true, null, ~, .5, -3, 1_000]"
    assert parse_yaml(text) == [
        0.001, 10, "yes", "no", "on", "1:30", "2024-01-01", "0x10", True, None, None, 0.5, -3,
        "1_000",
    ]  # fmt: skip


def test_anchors_and_merge_keys_work() -> None:
    assert parse_yaml("a: &x {p: 1, q: 2}\nb: {<<: *x, q: 3}")["b"] == {"p": 1, "q": 3}


SPELLED = "1e-3 1.0 010 0x1f 1:30 2024-01-01 .inf +1 - no true null ~ << = # &a *a !x ' \""
TRICKY = st.sampled_from([*SPELLED.split(), "", " ", "a: b", "- a", "é\u2028x"])
PLAIN_TEXT = st.text(string.printable, max_size=8)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TRICKY
    | PLAIN_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TRICKY, inner, max_size=3),
    max_leaves=6,
)


@given(args=st.dictionaries(TRICKY | PLAIN_TEXT, VALUES, max_size=3), seed=st.integers(0, 2**31))
def test_what_is_printed_is_read_back_equal(
    tmp_path_factory: pytest.TempPathFactory, args: dict[str, Any], seed: int
) -> None:
    recipe = Recipe(
        name="tiny",
        seed=seed,
        model=ModelConfig(builtin="mlp", args=args),
        data={"kind": "digits"},  # type: ignore[arg-type]
        structure=StructureConfig(ignore=list(args), channels=dict.fromkeys(args, 3)),
    )
    path = tmp_path_factory.mktemp("recipe") / "again.yaml"
    for defaults in (True, False):
        path.write_text(dump_recipe(recipe, defaults=defaults), encoding="utf-8")
        assert load_recipe(path) == recipe


@given(value=VALUES)
def test_an_override_sets_exactly_its_value(
    tmp_path_factory: pytest.TempPathFactory, value: Any
) -> None:
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(MINIMAL)
    recipe = load_recipe(path, [f"model.args.x={json.dumps(value)}"])
    assert recipe.model.args == {"x": value}


def test_the_schema_knows_every_section_and_stage() -> None:
    schema = Recipe.model_json_schema()
    assert set(schema["properties"]) == set(Recipe.model_fields)
    known = schema["properties"]["stages"]["items"]["discriminator"]["mapping"]
    assert len(known) == len(STAGES)


def test_unset_values_are_left_out_unless_asked_for(write: Write) -> None:
    recipe = load_recipe(write(MINIMAL), ["goals.macs=0.5"])
    assert yaml.safe_load(dump_recipe(recipe, defaults=False)) == {
        "name": "tiny",
        "model": {"builtin": "mlp"},
        "data": {"kind": "digits"},
        "goals": {"macs": 0.5},
    }
