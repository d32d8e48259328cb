"""HTML pages and thumbnails of notebooks, which are run first; the pages need no network."""

from __future__ import annotations

import io
import os
import re
import shutil
import sys
import tempfile
import time
from html import escape
from pathlib import Path

import nbformat
from jinja2 import DictLoader
from lessons.kernels import kernel_variables
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter
from paired import HERE, NotebookError, notebook_of, sources
from PIL import Image
from plotly.offline import get_plotlyjs
from static_widgets import figure_html

TIMEOUT = 900
"""Time limit of one cell in seconds."""
WIDTH, LIMIT = 360, 60_000
"""Width of a thumbnail in pixels, and its maximum size in bytes."""
SETUP = "import static_widgets\nstatic_widgets.install()"
PLOTLY, WIDGET = "application/vnd.plotly.v1+json", "application/vnd.jupyter.widget-view+json"
TEMPLATE = """
{%- extends 'lab/index.html.j2' -%}
{%- block codecell -%}
{%- if 'solution' in cell.metadata.get('tags', []) -%}
<details class="solution"><summary>Solution</summary>{{ super() }}</details>
{%- else -%}{{ super() }}{%- endif -%}
{%- endblock codecell -%}
"""
FIT = """<script>
window.addEventListener("load", () => {
  for (const figure of document.querySelectorAll(".plotly-graph-div")) Plotly.Plots.resize(figure);
});
</script>"""
"""Resizes figures once the page is complete: those side by side are drawn before their final width is known."""
STYLE = """<style>
.solution > summary { margin: .5rem 0 .5rem 5rem; cursor: pointer; }
.static-widget { color: var(--jp-content-font-color1); font-family: var(--jp-content-font-family); }
body { max-width: 1180px; margin: 0 auto; }
</style>"""


def run(path: Path) -> nbformat.NotebookNode:
    """Run the notebook of a source in a new kernel (short under ``FAST=1``), with widgets as HTML of their state."""
    notebook = notebook_of(path.read_text(encoding="utf-8"))
    notebook.cells.insert(0, nbformat.v4.new_code_cell(SETUP))
    before = dict(os.environ)
    with tempfile.TemporaryDirectory() as home:
        os.environ.update(kernel_variables(Path(home)))
        try:
            client = NotebookClient(notebook, timeout=TIMEOUT, kernel_name="python3", resources=_place())
            client.execute()
        except CellExecutionError as error:
            raise NotebookError(f"{path.stem} failed: {error.ename}: {' '.join(error.evalue.split())}") from error
        finally:
            os.environ.clear()
            os.environ.update(before)
    del notebook.cells[0]
    notebook.metadata.pop("widgets", None)
    return notebook


def _place() -> dict[str, dict[str, str]]:
    return {"metadata": {"path": str(HERE)}}


def stand_alone(notebook: nbformat.NotebookNode) -> None:
    """Replace figures and widgets by HTML, in place."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if PLOTLY in data:
                data["text/html"] = figure_html(data.pop(PLOTLY))
            elif WIDGET in data:
                data.pop(WIDGET)
            if "text/html" in data:
                data.pop("text/plain", None)


def page(notebook: nbformat.NotebookNode, title: str, theme: str = "light") -> str:
    """Return a self-contained HTML page, which includes plotly.js."""
    stand_alone(notebook)
    exporter = HTMLExporter(
        theme=theme,
        extra_loaders=[DictLoader({"page.html.j2": TEMPLATE})],
        template_file="page.html.j2",
        mathjax_url="",
        require_js_url="",
        jquery_url="",
        mermaid_js_url="",
        widget_renderer_url="",
    )
    text, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"name": title}})
    text = re.sub(r"<script[^>]*\bsrc=\"[^\"]*\"[^>]*>\s*</script>", "", text)
    text = re.sub(r"<script type=\"module\">.*?</script>", "", text, flags=re.DOTALL)  # mermaid
    text = text.replace("</body>", f"{FIT}</body>", 1)
    head = f"{STYLE}<script>{get_plotlyjs()}</script></head>"
    return text.replace("</head>", head, 1)


def write_pages(paths: list[Path], out: Path, theme: str = "light") -> list[Path]:
    """Run notebooks and write their pages to a folder, with one line on stderr for each."""
    written = []
    for path in paths:
        start = time.perf_counter()
        text = page(run(path), path.stem, theme)
        out.mkdir(parents=True, exist_ok=True)
        target = out / f"{path.stem}.html"
        target.write_text(text, encoding="utf-8")
        print(f"{target.name}: {time.perf_counter() - start:.1f} s", file=sys.stderr)
        written.append(target)
    return written


def write_thumbnails(paths: list[Path], pages: Path | None) -> None:
    """Take a picture of the tagged figure of each notebook, and write the table in README.md."""
    with tempfile.TemporaryDirectory() as folder:
        if pages is None:
            files = write_pages(paths, Path(folder))
        else:
            files = [pages / f"{path.stem}.html" for path in paths]
            missing = [file.name for file in files if not file.is_file()]
            if missing:
                raise NotebookError(f"{pages} holds no {missing[0]}; run: python notebooks/make.py html --out {pages}")
        (HERE / "thumbnails").mkdir(exist_ok=True)
        for path, shot in zip(paths, photographs(files)):
            (HERE / "thumbnails" / f"{path.name[:2]}.png").write_bytes(small_png(shot))
    write_syllabus()


def photographs(files: list[Path]) -> list[bytes]:
    """PNG of the output of the cell tagged `thumbnail`, else of the first figure of each page."""
    from playwright.sync_api import Error, sync_playwright

    found, shots = os.environ.get("CHROMIUM") or shutil.which("chromium"), []
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except Error as error:
            raise NotebookError(f"no Chromium that Playwright can start: {error.message.splitlines()[0]}") from error
        for file in files:
            tab = browser.new_page(viewport={"width": 1180, "height": 900}, device_scale_factor=1)
            tab.goto(file.resolve().as_uri())
            tab.wait_for_timeout(1500)
            tagged = tab.locator(".celltag_thumbnail .jp-OutputArea-output")
            figures = tagged if tagged.count() else tab.locator(".plotly-graph-div, .static-widget, .jp-RenderedImage")
            if not figures.count():
                raise NotebookError(f"{file.name} shows no figure; tag the cell of one with `thumbnail`")
            shots.append(figures.first.screenshot())
            tab.close()
        browser.close()
    return shots


def small_png(shot: bytes) -> bytes:
    """Scale a picture to the thumbnail's width, with as many colours as the size limit allows."""
    picture = Image.open(io.BytesIO(shot)).convert("RGB")
    width, height = picture.size
    picture = picture.crop((0, 0, width, min(height, width)))
    picture = picture.resize((WIDTH, max(1, round(picture.height * WIDTH / width))), Image.Resampling.LANCZOS)
    for colours in (256, 128, 64, 32, 16, 8):
        stream = io.BytesIO()
        picture.quantize(colours, dither=Image.Dither.NONE).save(stream, "PNG", optimize=True)
        if stream.tell() <= LIMIT:
            break
    return stream.getvalue()


def syllabus(paths: list[Path]) -> str:
    """Return the table of the syllabus, from the first cell of every notebook."""
    rows = ["| | notebook | what you can do after it | time |", "|---|---|---|---|"]
    for path in paths:
        head = notebook_of(path.read_text(encoding="utf-8")).cells[0].source
        title = re.search(r"^# (.*)$", head, flags=re.MULTILINE)
        goal, need, spent = (_line(head, name) for name in ("Goal", "You need", "Running time"))
        number = path.name[:2]
        picture = f'<img src="thumbnails/{number}.png" width="180" alt="{escape(title[1])}">'
        rows.append(
            f"| {picture} | [{title[1]}]({path.stem}.ipynb) | {goal}<br><sub>You need: {need}</sub> | {spent} |"
        )
    return "\n".join(rows)


def _line(head: str, name: str) -> str:
    """Return the text after a bold name, up to the next one or an empty line."""
    found = re.search(rf"\*\*{name}\*\*:?\s*(.*?)(?=\n\s*\n|\n\*\*|\n- \*\*|\Z)", head, flags=re.DOTALL)
    if found is None:
        raise NotebookError(f"the first cell of a notebook has no **{name}** line: {head.splitlines()[0]}")
    return " ".join(found[1].lstrip(": ").split()).replace("|", "\\|")


def write_syllabus() -> None:
    """Write the table into README.md, between its markers."""
    target = HERE / "README.md"
    text = target.read_text(encoding="utf-8")
    begin, end = "<!-- syllabus: begin", "<!-- syllabus: end -->"
    if begin not in text or end not in text:
        raise NotebookError(f"{target.name} has lost the marks of its table; put back `{begin} -->` and `{end}`")
    start = text.index("-->", text.index(begin)) + len("-->")
    target.write_text(text[:start] + "\n\n" + syllabus(sources()) + "\n\n" + text[text.index(end) :], encoding="utf-8")
