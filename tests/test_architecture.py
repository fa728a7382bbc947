"""The rules that connect the rooms, checked from the source text and in fresh processes."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("deploy", "benchmarks", "exporters", "toolchain")  # each may import those before it
DEVICE_SIDE = ROOMS[:2]
SOURCES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
DEVICE_SOURCES = [path for path in SOURCES if path.relative_to(ROOT).parts[0] in DEVICE_SIDE]
ON_A_BOARD = {"numpy", *DEVICE_SIDE, *sys.stdlib_module_names}
NEWER = {"removeprefix", "removesuffix", "is_relative_to", "with_stem", "cache"}
LIGHT = (
    "recipe.base",
    "recipe.schema",
    "recipe.reading",
    "recipe.errors",
    "stages",
    "runs.artifacts",
    "runs.lock",
    "cli",
)
HEAVY = ("torch", "torch_pruning", "numpy", "onnx", "onnxscript", "onnxruntime", "accelerate")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported(tree: ast.AST, *, when_imported: bool = False) -> Iterator[str]:
    """Top-level packages that ``tree`` imports: anywhere, or as soon as it is imported itself."""
    nodes = [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide the room"
            yield (node.module or "").partition(".")[0]
        deferred = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or (
            isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        )
        if not (when_imported and deferred):
            nodes.extend(ast.iter_child_nodes(node))


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_point_one_way(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    above = set(ROOMS[ROOMS.index(room) + 1 :]) | {"tests"}
    assert not above & set(imported(ast.parse(path.read_text())))


@pytest.mark.parametrize("path", DEVICE_SOURCES, ids=name_of)
def test_device_side_is_python_3_8_and_needs_only_numpy(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text, feature_version=(3, 8))
    if path.name != "__init__.py":
        assert "from __future__ import annotations" in text
    assert "torch" not in set(imported(tree))
    assert set(imported(tree, when_imported=True)) <= ON_A_BOARD, "import it where it is used"
    assert [f"line {node.lineno}: {ast.unparse(node)}" for node in newer_than_3_8(tree)] == []


def newer_than_3_8(tree: ast.AST) -> Iterator[ast.expr]:
    """Expressions that Python 3.8 can parse but not run; annotations are never run."""
    abstract = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "collections.abc"
        for alias in node.names
    }
    types = {"int", "str", "float", "bool", "bytes", "list", "dict", "tuple", "set", "frozenset"}
    nodes: list[ast.AST] = [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) in types | abstract:
            yield node
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            sides = {ast.unparse(node.left), ast.unparse(node.right)}
            yield from [node] if sides & (types | abstract | {"None"}) else []
        if isinstance(node, ast.Attribute) and node.attr in NEWER:
            yield node
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func).rpartition(".")[2]
            given = {keyword.arg for keyword in node.keywords}
            if name in ("dataclass", "zip") and given & {"slots", "kw_only", "strict"}:
                yield node
        for field, value in ast.iter_fields(node):
            if field not in ("annotation", "returns"):
                children = value if isinstance(value, list) else [value]
                nodes.extend(child for child in children if isinstance(child, ast.AST))


@pytest.mark.parametrize(
    "text",
    [
        "Names = list[str]",
        "isinstance(x, int | None)",
        "from collections.abc import Mapping\nRecord = Mapping[str, int]",
        "@dataclass(frozen=True, slots=True)\nclass A: ...",
        "zip(a, b, strict=True)",
        "name.removeprefix('x')",
        "@functools.cache\ndef f(): ...",
    ],
)
def test_what_python_3_8_cannot_run_is_seen(text: str) -> None:
    assert list(newer_than_3_8(ast.parse(text)))


def test_annotations_may_be_modern() -> None:
    text = "def f(a: int | None, b: list[str]) -> dict[str, int]:\n    c: set[int] | None = None"
    assert not list(newer_than_3_8(ast.parse(text)))


@pytest.mark.parametrize("path", [p for p in SOURCES if p.name == "__init__.py"], ids=name_of)
def test_packages_hold_a_docstring_and_no_code(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    assert len(tree.body) == 1


def test_every_folder_of_code_is_a_package() -> None:
    assert {path.parent for path in SOURCES} == {
        path.parent for path in SOURCES if path.name == "__init__.py"
    }


def test_no_room_for_leftovers() -> None:
    parts = {part for path in SOURCES for part in path.relative_to(ROOT).with_suffix("").parts}
    assert not parts & {"utils", "util", "common", "helpers", "helper", "core", "misc"}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_every_file_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )


def test_device_side_imports_with_nothing_but_numpy() -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in DEVICE_SOURCES
        if path.name != "__init__.py"
    ]
    blocked = ("torch", "onnx", "onnxruntime", "tensorrt", "pydantic", "yaml", "rich", "typer")
    code = f"import sys, importlib\nfor name in {blocked}: sys.modules[name] = None\n"
    run_python(code + f"for name in {modules}: importlib.import_module(name)")


@pytest.mark.parametrize("module", LIGHT)
def test_what_reads_recipes_is_light(module: str) -> None:
    code = f"import sys, toolchain.{module}\nprint([n for n in {HEAVY} if n in sys.modules])"
    assert run_python(code).stdout.strip() == "[]"


def test_help_needs_no_heavy_package() -> None:
    heavy = (*HEAVY, "pydantic", "yaml", "rich")
    code = (
        "import sys\n"
        f"for name in {heavy}: sys.modules[name] = None\n"
        "sys.argv = ['compress-deploy', '--help']\n"
        "from toolchain.cli import main\nmain()"
    )
    assert "Usage: compress-deploy" in run_python(code).stdout
