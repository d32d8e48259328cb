"""Conversion of sources in jupytext's py:percent format to notebooks without outputs."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import jupytext
import nbformat

HERE = Path(__file__).resolve().parent
METADATA = {
    "jupytext": {"formats": "ipynb,py:percent"},
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


class NotebookError(Exception):
    """An error of one line: what is wrong and what to do."""


def sources(numbers: list[str] | None = None, folder: Path = HERE) -> list[Path]:
    """Return the sources in order, optionally only those with some numbers (00, 04, …)."""
    found = sorted(folder.glob("[0-9][0-9]_*.py"))
    known = {path.name[:2] for path in found}
    missing = sorted(set(numbers or []) - known)
    if missing:
        raise NotebookError(f"there is no notebook {', '.join(missing)}; choose from {', '.join(sorted(known))}")
    return [path for path in found if not numbers or path.name[:2] in numbers]


def notebook_of(source: str) -> nbformat.NotebookNode:
    """Convert a py:percent text to a notebook without outputs, with cell ids that depend on the text alone."""
    notebook = jupytext.reads(source, fmt="py:percent")
    seen: Counter[str] = Counter()
    for cell in notebook.cells:
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:8]
        cell.id = digest if not seen[digest] else f"{digest}-{seen[digest]}"
        seen[digest] += 1
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    nbformat.validate(notebook)
    return notebook


def text_of(notebook: nbformat.NotebookNode) -> str:
    """Return the contents of the .ipynb file."""
    return nbformat.writes(notebook, indent=1, sort_keys=True, ensure_ascii=False).rstrip("\n") + "\n"


def sync(paths: list[Path]) -> list[Path]:
    """Write the notebooks that differ from their sources, and return their paths."""
    changed = []
    for path in paths:
        target, text = path.with_suffix(".ipynb"), text_of(notebook_of(path.read_text(encoding="utf-8")))
        if not target.is_file() or target.read_text(encoding="utf-8") != text:
            target.write_text(text, encoding="utf-8")
            changed.append(target)
    return changed


def check(folder: Path = HERE) -> None:
    """Raise :class:`NotebookError` if a notebook has outputs, differs from its source or has none."""
    paths = sources(folder=folder)
    for path in sorted(folder.glob("*.ipynb")):
        if path.with_suffix(".py") not in paths:
            raise NotebookError(f"{path.name} has no source {path.stem}.py; write one (jupytext --to py:percent)")
        notebook = nbformat.reads(path.read_text(encoding="utf-8"), as_version=4)
        if any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells):
            raise NotebookError(f"{path.name} holds outputs; run: python notebooks/make.py sync")
    for path in paths:
        target = path.with_suffix(".ipynb")
        text = text_of(notebook_of(path.read_text(encoding="utf-8")))
        if not target.is_file() or target.read_text(encoding="utf-8") != text:
            raise NotebookError(f"{target.name} differs from {path.name}; run: python notebooks/make.py sync")
