"""The structure of the project: which package may import which, and limits on names, lengths and documentation."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

FLOORS = [
    {"structures"},
    {"files", "config", "ops"},
    {"training_config"},
    {"presets", "recipes"},
    {"data"},
    {"evaluation"},
    {"models"},
    {"predict"},
    {"engine"},
    {"viz"},
    {"reports"},
    {"cli"},
    {"__init__", "__main__"},
]
"""Parts of the library, from the lowest floor up. A part imports parts of lower floors, and itself."""
APART = {("models", "data"), ("models", "evaluation")}
"""Parts that may not import others, although these are on a lower floor."""
EXCEPTIONS: set[tuple[str, str]] = set()
"""Pairs (importing module, imported module) that may break the rule of the floors; at most five."""
FOREIGN = {"app", "benchmarks", "gradio", "lessons", "tests", "tools"}
"""Packages that the library must not import."""
FAMILIES = {"DynaMask", "SoloNet", "ModelConfig", "SoloConfig", "TwoStagePredictor", "OneStagePredictor"}
"""Classes of the model families; code outside ``models`` should not have to tell them apart."""
MAX_FUNCTION, MAX_FILE = 60, 500
LONGER: dict[str, str] = {}
"""Files (``path``) and functions (``path:name``) above these limits, each with the reason."""
SAME_NAME = {
    "base": "the base classes of detectors and of mask heads",
    "cityscapes": "reading the data set, and its evaluation",
    "costs": "the mask branch and the one-stage family count their own layers",
    "losses": "the mask branch and the one-stage family have their own losses",
    "speed": "the report, and the benchmark",
}
"""File names that may occur twice, each with the reason."""
PROJECT = ("dynamask", "app", "notebooks/lessons", "benchmarks", "tools")


@cache
def sources(*folders: str) -> list[Path]:
    """Python files below folders of the repository."""
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


@cache
def tree_of(path: Path) -> ast.Module:
    """The parsed file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def module_name(path: Path) -> str:
    """``dynamask/ops/masks.py`` → ``dynamask.ops.masks``; a package's file keeps its ``__init__``."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imported(node: ast.AST, module: str) -> Iterator[str]:
    """Absolute names of all modules, or names in modules, that are imported anywhere below a node."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Import):
            yield from (alias.name for alias in inner.names)
        elif isinstance(inner, ast.ImportFrom):
            package = module.split(".")[: -inner.level] if inner.level else []
            base = ".".join([*package, *([inner.module] if inner.module else [])])
            yield from (f"{base}.{alias.name}" for alias in inner.names)


def floor_of(name: str) -> int:
    """Index in FLOORS of a name that starts with ``dynamask``; names of the package itself are on the top floor."""
    part = (name.split(".") + ["__init__"])[1]
    return next((level for level, parts in enumerate(FLOORS) if part in parts), len(FLOORS) - 1)


def violations(module: str, source: str) -> list[str]:
    """Imports of a library module that break the rules."""
    found = []
    part, level = (module.split(".") + ["__init__"])[1], floor_of(module)
    for name in imported(ast.parse(source), module):
        root, *rest = name.split(".")
        if root in FOREIGN:
            found.append(f"{module} imports {name}")
        elif root == "dynamask":
            other = rest[0] if rest else ""
            allowed = other == part or (floor_of(name) < level and (part, other) not in APART)
            if not allowed and (module, name.rpartition(".")[0]) not in EXCEPTIONS:
                found.append(f"{module} (floor {level}) imports {name} (floor {floor_of(name)})")
    return found


def runtime_imports(path: Path, modules: dict[str, Path]) -> set[Path]:
    """Files of the project that a file imports when it runs, that is, outside ``if TYPE_CHECKING``."""
    body = [node for node in tree_of(path).body if "TYPE_CHECKING" not in ast.dump(getattr(node, "test", ast.Pass()))]
    found = set()
    for name in imported(ast.Module(body, []), module_name(path)):
        parent = name.rpartition(".")[0]
        candidates = (name, f"{name}.__init__", parent, f"{parent}.__init__")
        found |= {next((modules[each] for each in candidates if each in modules), path)}
    return found - {path}


def find_cycle(graph: dict[Path, set[Path]]) -> list[Path]:
    """The files of one import cycle, the first one again at the end; empty without a cycle."""
    done: set[Path] = set()

    def visit(path: Path, trail: list[Path]) -> list[Path]:
        if path in trail:
            return [*trail[trail.index(path) :], path]
        if path not in done:
            for other in sorted(graph[path]):
                if cycle := visit(other, [*trail, path]):
                    return cycle
            done.add(path)
        return []

    return next((cycle for path in graph if (cycle := visit(path, []))), [])


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def public_items(tree: ast.Module) -> Iterator[tuple[ast.FunctionDef | ast.ClassDef, ast.ClassDef | None]]:
    """Public functions, classes and methods of a file, each with its class."""
    for node in tree.body:
        inner = node.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_") else []
        for item, owner in [(node, None), *((item, node) for item in inner)]:
            if isinstance(item, ast.FunctionDef | ast.ClassDef) and not item.name.startswith("_"):
                yield item, owner


def repeated(names: Iterable[tuple[str, Path]]) -> dict[str, list[str]]:
    """Names that occur more than once, with their files."""
    places = defaultdict(list)
    for name, path in names:
        places[name].append(str(path.relative_to(ROOT)))
    return {name: found for name, found in places.items() if len(found) > 1}


def test_every_part_has_a_floor():
    parts = {path.stem for path in (ROOT / "dynamask").glob("*.py")}
    parts |= {path.parent.name for path in (ROOT / "dynamask").glob("*/__init__.py")}
    known = [part for floor in FLOORS for part in floor]
    assert parts <= set(known) and len(known) == len(set(known))


def test_imports_point_downwards():
    found = [line for path in sources("dynamask") for line in violations(module_name(path), path.read_text("utf-8"))]
    assert not found and len(EXCEPTIONS) <= 5


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("dynamask.models.build", "from dynamask.data import loaders", 1),
        ("dynamask.models.build", "from ..data.loaders import training_loader", 1),
        ("dynamask.ops.masks", "def f():\n    from dynamask.models import build", 1),
        ("dynamask.files", "from dynamask.config import ModelConfig", 1),
        ("dynamask.engine.train", "from dynamask import load", 1),
        ("dynamask.engine.train", "import dynamask", 1),
        ("dynamask.predict", "from app import handlers", 1),
        ("dynamask.cli.predict", "import gradio as gr", 1),
        ("dynamask.models.build", "from .masks import losses\nfrom dynamask.ops import masks", 0),
        ("dynamask.cli", "from dynamask.engine.train import train", 0),
        ("dynamask.__main__", "from dynamask.cli import main", 0),
    ],
)
def test_wrong_imports_are_found(module, source, wrong):
    assert len(violations(module, source)) == wrong


def test_there_is_no_import_cycle():
    modules = {module_name(path).removeprefix("notebooks."): path for path in sources(*PROJECT)}
    assert find_cycle({path: runtime_imports(path, modules) for path in modules.values()}) == []
    a, b, c = (Path(name) for name in "abc")
    assert find_cycle({a: {b}, b: {c}, c: {b}}) == [b, c, b]


def test_only_the_command_line_imports_the_library_inside_functions():
    found = [
        f"{path.relative_to(ROOT)}: {function.name} imports {name}"
        for path in sources("dynamask")
        if path.relative_to(ROOT).parts[1] != "cli"
        for function in functions(tree_of(path))
        for name in imported(function, module_name(path))
        if name.startswith("dynamask")
    ]
    assert not found


def test_families_are_told_apart_in_models_only():
    found = []
    for path in sources(*PROJECT):
        if path.relative_to(ROOT).parts[:2] == ("dynamask", "models"):
            continue
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
                kinds = {getattr(kind, "id", getattr(kind, "attr", "")) for kind in ast.walk(node.args[1])}
                if kinds & FAMILIES:
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert len(found) <= 3, found


def test_handlers_of_the_app_do_without_gradio():
    names = list(imported(tree_of(ROOT / "app" / "handlers.py"), "app.handlers"))
    assert names and not [name for name in names if name.split(".")[0] == "gradio"]


def test_no_two_classes_have_the_same_name():
    nodes = ((node, path) for path in sources(*PROJECT) for node in ast.walk(tree_of(path)))
    assert not repeated((node.name, path) for node, path in nodes if isinstance(node, ast.ClassDef))


def test_file_names_are_unique():
    files = [path for path in sources(*PROJECT) if path.stem not in ("__init__", "__main__")]
    commands = ROOT / "dynamask" / "cli"  # a command may be called like what it runs
    found = repeated((path.stem, path) for path in files if path.parent != commands)
    assert found.keys() <= SAME_NAME.keys(), found


def test_test_modules_import_no_test_module():
    found = [
        f"{path.name} imports {name}"
        for path in sources("tests")
        for name in imported(tree_of(path), path.stem)
        if name.split(".")[0].startswith("test_") or name.startswith("tests.")
    ]
    assert not found


def test_files_and_functions_are_short():
    lengths = {}
    for path in sources(*PROJECT):
        name = str(path.relative_to(ROOT))
        lengths[name] = (len(path.read_text("utf-8").splitlines()), MAX_FILE)
        for node in functions(tree_of(path)):
            lengths[f"{name}:{node.name}"] = ((node.end_lineno or node.lineno) - node.lineno + 1, MAX_FUNCTION)
    longer = {name: length for name, (length, limit) in lengths.items() if length > limit}
    assert longer.keys() == LONGER.keys(), longer


def test_formatting_is_left_to_ruff_except_in_tables_of_constants():
    found = []
    for path in sources(*PROJECT, "tests"):
        constants = {node.end_lineno for node in tree_of(path).body if isinstance(node, ast.Assign | ast.AnnAssign)}
        lines = path.read_text("utf-8").splitlines()
        marked = {number for number, line in enumerate(lines, start=1) if line.rstrip().endswith("# fmt: " + "skip")}
        found += [f"{path.relative_to(ROOT)}:{number}" for number in sorted(marked - constants)]
    assert not found


def test_public_names_are_documented_and_typed():
    found = []
    for path in sources("dynamask"):
        for item, owner in public_items(tree_of(path)):
            place = f"{path.relative_to(ROOT)}:{item.lineno}: {item.name}"
            inherited = owner is not None and item.name == "forward" and ast.get_docstring(owner)
            if not ast.get_docstring(item) and not inherited:
                found.append(f"{place} has no docstring")
            if isinstance(item, ast.FunctionDef):
                arguments = [*item.args.posonlyargs, *item.args.args, *item.args.kwonlyargs]
                bare = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
                bare += ["return"] if item.returns is None else []
                if bare:
                    found.append(f"{place}: untyped {', '.join(bare)}")
    assert not found


def test_the_library_prints_nothing():
    calls = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sources("dynamask")
        if path.relative_to(ROOT).parts[1] != "cli"
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not calls
