"""The layers hold: imports point downward, the library never reaches for the app, and the house's limits are kept."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

LEVELS = {
    "config": 0, "structures": 0, "bundled": 0, "files": 0, "ops": 0, "recipes": 0,
    "models": 1, "data": 1, "evaluation": 1, "viz": 1,
    "engine": 2, "predictor": 2, "solo_predictor": 2, "reports": 2, "viz.explorer": 2, "lessons": 2,
    "viz.cells": 2,
    "cli": 3, "__init__": 4, "__main__": 4,
}  # fmt: skip
SIDEWAYS = {
    ("bundled", "structures"), ("config", "structures"), ("files", "structures"), ("ops", "structures"),
    ("recipes", "structures"),
    ("predictor", "engine"), ("predictor", "solo_predictor"), ("reports", "engine"),
    ("reports", "predictor"), ("reports", "solo_predictor"), ("viz.explorer", "predictor"),
    ("viz.cells", "solo_predictor"),
    ("lessons", "engine"), ("lessons", "predictor"), ("lessons", "reports"), ("lessons", "solo_predictor"),
    ("lessons", "viz.explorer"),
    ("__main__", "cli"),
}  # fmt: skip
"""Who may import a module of its own level."""
FOREIGN = {"gradio", "app", "tests", "benchmarks"}
"""What the library must not import."""
MAX_FUNCTION, MAX_FILE = 60, 500


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def module_name(path: Path, root: Path = ROOT) -> str:
    """`dynamask/ops/masks.py` → `dynamask.ops.masks`; a package's file keeps its `__init__`."""
    return ".".join(path.relative_to(root).with_suffix("").parts)


def imported(tree: ast.AST, module: str) -> Iterator[str]:
    """Absolute names of all modules (or names in modules) that a file imports, wherever in the file it does."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*package, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def part(name: str) -> str:
    """The part of the floor plan that a `dynamask…` name belongs to; `__init__` for the package itself."""
    pieces = name.split(".")[1:]
    if ".".join(pieces[:2]) in LEVELS:
        return ".".join(pieces[:2])
    return pieces[0] if pieces and pieces[0] in LEVELS else "__init__"


def violations(module: str, source: str) -> list[str]:
    """What a library file imports against the floor plan."""
    found = []
    own = part(module)
    for name in imported(ast.parse(source), module):
        if name.split(".")[0] in FOREIGN:
            found.append(f"{module} imports {name}")
        elif name.split(".")[0] == "dynamask":
            other = part(name)
            sideways = LEVELS[other] == LEVELS[own] and other != own and (own, other) not in SIDEWAYS
            if LEVELS[other] > LEVELS[own] or sideways:
                found.append(f"{module} (level {LEVELS[own]}) imports {name} (level {LEVELS[other]})")
    return found


def test_every_module_has_its_place_in_the_floor_plan():
    children = {path.stem if path.suffix == ".py" else path.name for path in (ROOT / "dynamask").iterdir()
                if path.suffix == ".py" or (path / "__init__.py").is_file()}  # fmt: skip
    assert children <= set(LEVELS), f"no level given for {sorted(children - set(LEVELS))}"


def test_imports_point_downward():
    files = sources("dynamask")
    assert len(files) > 10
    assert not [line for path in files for line in violations(module_name(path), path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("dynamask.models.build", "from dynamask.data import coco"),
        ("dynamask.models.build", "from ..data.coco import CocoDataset"),
        ("dynamask.viz.overlay", "import dynamask.evaluation.mask_quality"),
        ("dynamask.ops.masks", "def f():\n    from dynamask.models import factory"),
        ("dynamask.engine.train", "from dynamask.predict import load"),
        ("dynamask.engine.train", "from dynamask import load"),
        ("dynamask.predict", "from app import handlers"),
        ("dynamask.cli.predict", "import gradio as gr"),
    ],
)
def test_the_check_sees_a_wrong_import(module, source):
    assert len(violations(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("dynamask.models.dynamask", "from .losses import mask_loss\nfrom dynamask.ops import masks"),
        ("dynamask.predict", "from dynamask.engine import checkpoint\nfrom dynamask.viz.overlay import draw_overlay"),
        ("dynamask.cli", "from dynamask.engine.train import train"),
    ],
)
def test_the_check_lets_right_imports_pass(module, source):
    assert violations(module, source) == []


def test_handlers_do_without_gradio():
    source = (ROOT / "app" / "handlers.py").read_text(encoding="utf-8")
    names = list(imported(ast.parse(source), "app.handlers"))
    assert names and not [name for name in names if name.split(".")[0] == "gradio"]


def test_files_and_functions_stay_short():
    long = []
    for path in sources("dynamask", "app", "benchmarks"):
        source = path.read_text(encoding="utf-8")
        if len(source.splitlines()) > MAX_FILE:
            long.append(f"{path.relative_to(ROOT)}: {len(source.splitlines())} lines")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION:
                    long.append(f"{path.relative_to(ROOT)}:{node.lineno}: {node.name} has {length} lines")
    assert not long


def public_items(tree: ast.Module) -> Iterator[tuple[ast.stmt, ast.ClassDef | None]]:
    """Public functions, classes and methods of a file, each with its class."""
    for node in tree.body:
        for item, owner in [(node, None), *((inner, node) for inner in getattr(node, "body", [])
                                            if isinstance(node, ast.ClassDef))]:  # fmt: skip
            hidden = owner is not None and owner.name.startswith("_")
            if isinstance(item, ast.FunctionDef | ast.ClassDef) and not item.name.startswith("_") and not hidden:
                yield item, owner


def test_public_names_are_documented_and_typed():
    found = []
    for path in sources("dynamask"):
        for item, owner in public_items(ast.parse(path.read_text(encoding="utf-8"))):
            place = f"{path.relative_to(ROOT)}:{item.lineno}: {item.name}"
            inherited = owner is not None and (item.name == "forward" and ast.get_docstring(owner))
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
    found = []
    for path in sources("dynamask"):
        if path.parent.name == "cli":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not found
