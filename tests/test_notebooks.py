"""Every notebook has the common structure, no outputs, and equals its source; nbmake runs them (`notebooks/`)."""

import ast
import re
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "notebooks"
sys.path.insert(0, str(FOLDER))

import make  # noqa: E402
import paired  # noqa: E402

NOTEBOOKS = sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def code(notebook) -> list[str]:
    """Sources of the code cells; IPython's own lines (%, !) are refused by a test below."""
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def test_the_first_cell_names_goal_prerequisites_and_time_and_the_last_is_a_recap(notebook, request):
    first = notebook.cells[0]
    number = request.node.callspec.params["notebook"].stem[:2]
    assert first.cell_type == "markdown" and first.source.startswith(f"# {number} · ")
    for line in ("**Goal**", "**You need**", "**Running time**"):
        assert line in first.source

    assert notebook.cells[-1].cell_type == "markdown" and notebook.cells[-1].source.startswith("## Recap")


def test_every_exercise_has_a_hidden_solution_that_asserts(notebook):
    cells = notebook.cells
    start = next(i for i, cell in enumerate(cells) if cell.source.startswith("## Exercises"))
    end = next(i for i, cell in enumerate(cells) if cell.source.startswith("## Recap"))
    solutions = [cell for cell in cells[start:end] if cell.cell_type == "code"]
    assert len(solutions) >= 2
    for cell in solutions:
        assert "solution" in cell.metadata.get("tags", []) and cell.metadata["jupyter"]["source_hidden"] is True
        assert any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(cell.source)))
    for before, cell in zip(cells[start:end], cells[start + 1 : end]):
        assert cell.cell_type == "markdown" or before.cell_type == "markdown", "an exercise has one solution cell"
    assert not [cell for cell in cells[:start] if "solution" in cell.metadata.get("tags", [])]


def test_cells_are_short_define_nothing_and_need_no_network_or_local_path(notebook):
    imported = set()
    for source in code(notebook):
        assert len(source.splitlines()) <= 25, source
        assert not re.search(r"https?://|^\s*[!%]", source, flags=re.MULTILINE), source
        for node in ast.walk(ast.parse(source)):
            assert not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef), source
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            imported |= {name.split(".")[0] for name in names}
    assert "dynamask" in imported and not imported & {"app", "tests", "benchmarks"}
    for cell in notebook.cells:
        assert not re.search(r"(?<![\w.])/(?:home|root|Users|work|tmp|opt|mnt)/|[A-Z]:\\", cell.source), cell.source


def test_sources_notebooks_and_the_syllabus_agree():
    paired.check()
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    for path in NOTEBOOKS:
        assert f"({path.name})" in text
        picture = FOLDER / "thumbnails" / f"{path.name[:2]}.png"
        assert f"thumbnails/{picture.name}" in text and 0 < picture.stat().st_size <= 60_000


def test_ids_depend_on_the_text_alone():
    text = "# %% [markdown]\n# # 99 · A\n\n# %%\n1\n\n# %%\n1\n"
    first, again = paired.notebook_of(text), paired.notebook_of(text)
    assert [cell.id for cell in first.cells] == [cell.id for cell in again.cells]
    assert len({cell.id for cell in first.cells}) == 3
    assert paired.text_of(first) == paired.text_of(again)


def test_check_sees_outputs_changes_and_missing_sources(tmp_path):
    source = tmp_path / "99_topic.py"
    source.write_text("# %% [markdown]\n# # 99 · A\n\n# %%\n1\n", encoding="utf-8")
    with pytest.raises(paired.NotebookError, match="make.py sync"):
        paired.check(tmp_path)
    (written,) = paired.sync([source])
    paired.check(tmp_path)
    assert paired.sync([source]) == []
    changed = nbformat.read(written, as_version=4)
    changed.cells[1].outputs = [nbformat.v4.new_output("stream", text="1")]
    nbformat.write(changed, written)
    with pytest.raises(paired.NotebookError, match="holds outputs"):
        paired.check(tmp_path)
    paired.sync([source])
    source.write_text(source.read_text(encoding="utf-8") + "\n# %%\n2\n", encoding="utf-8")
    with pytest.raises(paired.NotebookError, match="99_topic.ipynb differs from 99_topic.py"):
        paired.check(tmp_path)
    source.unlink()
    with pytest.raises(paired.NotebookError, match="has no source"):
        paired.check(tmp_path)


def test_an_unknown_number_is_one_line(capsys):
    assert make.main(["html", "--out", "nowhere", "77"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("notebooks/make.py: error: there is no notebook 77") and message.count("\n") == 1
    assert not Path("nowhere").exists()
