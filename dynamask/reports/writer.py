"""One report in four files: Markdown and an interactive page from the same blocks, rows as CSV, everything as JSON."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from dynamask.files import write_text
from dynamask.structures import DynaMaskError, Interval
from dynamask.viz.charts import page_html

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1f2937; background: #fff; max-width: 1320px; margin: 0 auto;
       padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .5rem; } h2 { font-size: 1.25rem; margin: 2.2rem 0 .4rem; }
p { max-width: 46rem; } .figure { max-width: 1080px; } .scroll { overflow-x: auto; } .figure { min-width: 640px; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; margin: .6rem 0; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #e5e7eb; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { border-bottom: 2px solid #9ca3af; }
figure { margin: 1rem 0; } figure img { max-width: 100%; height: auto; display: block; }
figcaption { font-size: .85rem; color: #6b7280; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; font-size: .9rem; }
dt { color: #6b7280; } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 600px) { dl { grid-template-columns: 1fr; } dd { margin-bottom: .4rem; }
       th:first-child, td:first-child { white-space: normal; min-width: 8.5rem; } }
"""


@dataclass(frozen=True)
class Heading:
    """A heading within the report."""

    text: str


@dataclass(frozen=True)
class Paragraph:
    """Plain text."""

    text: str


@dataclass(frozen=True)
class Table:
    """A table, its first column to the left.

    Attributes:
        header: names of the columns.
        rows: cells as text, as many as the header has.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Figure:
    """A plotly figure, on the page only."""

    figure: go.Figure


@dataclass(frozen=True)
class Picture:
    """A picture, on the page only.

    Attributes:
        jpeg: its bytes.
        caption: below it, and for those who do not see it.
    """

    jpeg: bytes
    caption: str


Block = Heading | Paragraph | Table | Figure | Picture


@dataclass(frozen=True)
class Report:
    """What is written.

    Attributes:
        name: of the files, without ending.
        title: of the document.
        facts: (name, value) of what was measured with what.
        blocks: the document.
        rows: dicts with equal keys, for the CSV.
        data: for the JSON; no NaN.
    """

    name: str
    title: str
    facts: Sequence[tuple[str, str]]
    blocks: Sequence[Block]
    rows: Sequence[dict[str, Any]]
    data: dict[str, Any]


def write_report(report: Report, out: Path) -> list[Path]:
    """Write ``out/NAME.md``, ``.csv``, ``.html`` and ``.json``, each atomically; returns their paths.

    Raises:
        DynaMaskError: ``out`` is a file.
    """
    if out.exists() and not out.is_dir():
        raise DynaMaskError(f"--out {out} is a file; give a folder")
    texts = {
        "md": markdown(report),
        "csv": csv_text(report.rows),
        "html": page(report),
        "json": json.dumps(report.data, indent=1, allow_nan=False) + "\n",
    }
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for ending, text in texts.items():
        path = out / f"{report.name}.{ending}"
        write_text(path, text)
        paths.append(path)
    return paths


def markdown(report: Report) -> str:
    """The report as Markdown; figures and pictures are left to the page."""
    facts = "\n".join(f"- {name}: {_code(name, value)}" for name, value in report.facts)
    return "\n\n".join([f"# {report.title}", facts, blocks_markdown(report.blocks)]) + "\n"


def blocks_markdown(blocks: Sequence[Block], level: int = 2) -> str:
    """Blocks as Markdown, headings at a level; figures and pictures are left out."""
    parts = []
    for block in blocks:
        if isinstance(block, Heading):
            parts.append(f"{'#' * level} {block.text}")
        elif isinstance(block, Paragraph):
            parts.append(block.text)
        elif isinstance(block, Table):
            rule = "|" + "|".join("---" if i == 0 else "---:" for i in range(len(block.header))) + "|"
            cells = [[cell.replace("|", "\\|") for cell in row] for row in block.rows]
            parts.append("\n".join([_row(block.header), rule, *map(_row, cells)]))
    return "\n\n".join(parts)


def csv_text(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as CSV with a header, None as an empty cell."""
    if not rows:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def page(report: Report) -> str:
    """The report as one HTML page that needs no network."""
    facts = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in report.facts)
    title = html.escape(report.title)
    parts = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1><dl>{facts}</dl>",
    ]
    library: bool = True  # plotly.js goes in once, with the first figure
    for block in report.blocks:
        if isinstance(block, Heading):
            parts.append(f"<h2>{html.escape(block.text)}</h2>")
        elif isinstance(block, Paragraph):
            parts.append(f"<p>{_with_code(html.escape(block.text))}</p>")
        elif isinstance(block, Table):
            head = "".join(f"<th>{html.escape(cell)}</th>" for cell in block.header)
            body = "".join(
                "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in block.rows
            )
            parts.append(f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>')
        elif isinstance(block, Picture):
            encoded, caption = base64.b64encode(block.jpeg).decode("ascii"), html.escape(block.caption)
            parts.append(
                f'<figure><img alt="{caption}" src="data:image/jpeg;base64,{encoded}">'
                f"<figcaption>{caption}</figcaption></figure>"
            )
        else:
            drawn = page_html(block.figure, plotlyjs=library)
            parts.append(f'<div class="scroll"><div class="figure">{drawn}</div></div>')
            library = False
    return "\n".join([*parts, "</body></html>\n"])


def jsonable(value: Any) -> Any:
    """A value with every :class:`Interval` in its dicts and lists replaced by its JSON form."""
    if isinstance(value, Interval):
        return value.to_dict()
    if isinstance(value, dict):
        return {key: jsonable(item) for key, item in value.items()}
    return [jsonable(item) for item in value] if isinstance(value, list) else value


def number(value: float | None, digits: int = 4, signed: bool = False) -> str:
    """A figure as text, a dash where it is undefined."""
    return "–" if value is None else f"{value:{'+' if signed else ''}.{digits}f}"


def with_interval(values: Interval, digits: int = 4, signed: bool = False) -> str:
    """``mean [low, high]`` as text."""
    if values.low is None:
        return number(values.mean, digits, signed)
    mean, low, high = (number(value, digits, signed) for value in (values.mean, values.low, values.high))
    return f"{mean} [{low}, {high}]"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _with_code(text: str) -> str:
    """Escaped text with what stands in backticks as code."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", text)


def _code(name: str, value: str) -> str:
    return f"`{value}`" if name in ("command", "checkpoint") else value
