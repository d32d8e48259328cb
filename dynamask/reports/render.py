"""Write a report: Markdown and an interactive page from the same blocks, rows as CSV, everything as JSON."""

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
    """Text; what is in backticks is code."""

    text: str


@dataclass(frozen=True)
class Table:
    """A table; its first column is aligned left, the others right.

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
        caption: shown below it, and its alternative text.
    """

    jpeg: bytes
    caption: str


Block = Heading | Paragraph | Table | Figure | Picture


@dataclass(frozen=True)
class Report:
    """A report before it is written.

    Attributes:
        name: name of the files, without ending.
        title: title of the document.
        facts: (name, value) pairs at its head: weights, data, command.
        blocks: the document.
        rows: rows of the CSV, dicts with equal keys.
        data: content of the JSON, without NaN.
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
    """The report as Markdown, without figures and pictures."""
    return "\n\n".join([f"# {report.title}", _facts(report.facts), blocks_markdown(report.blocks)]) + "\n"


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    code = ("command", "checkpoint")
    return "\n".join(f"- {name}: {f'`{value}`' if name in code else value}" for name, value in facts)


def blocks_markdown(blocks: Sequence[Block], level: int = 2) -> str:
    """Blocks as Markdown, headings at a level; figures and pictures are left out."""
    texts = []
    for block in blocks:
        match block:
            case Heading(text):
                texts.append(f"{'#' * level} {text}")
            case Paragraph(text):
                texts.append(text)
            case Table(header, rows):
                cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
                head, *body = (f"| {' | '.join(row)} |" for row in (header, *cells))
                rule = "|" + "|".join("---" if i == 0 else "---:" for i in range(len(header))) + "|"
                texts.append("\n".join([head, rule, *body]))
    return "\n\n".join(texts)


def _html(block: Block, plotlyjs: bool) -> str:
    """A block as HTML; a figure with plotly.js before it if asked for."""
    match block:
        case Heading(text):
            return f"<h2>{html.escape(text)}</h2>"
        case Paragraph(text):
            code = re.sub("`([^`]+)`", r"<code>\1</code>", html.escape(text))
            return f"<p>{code}</p>"
        case Table(header, rows):
            head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
            lines = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows)
            body = "".join(f"<tr>{line}</tr>" for line in lines)
            return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'
        case Figure(figure):
            return f'<div class="scroll"><div class="figure">{page_html(figure, plotlyjs=plotlyjs)}</div></div>'
        case Picture(jpeg, caption):
            encoded, text = base64.b64encode(jpeg).decode("ascii"), html.escape(caption)
            image = f'<img alt="{text}" src="data:image/jpeg;base64,{encoded}">'
            return f"<figure>{image}<figcaption>{text}</figcaption></figure>"


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
    plotlyjs = True  # once, with the first figure
    for block in report.blocks:
        parts.append(_html(block, plotlyjs))
        plotlyjs = plotlyjs and not isinstance(block, Figure)
    return "\n".join([*parts, "</body></html>\n"])


def summary(
    facts: Sequence[tuple[str, str]], how: str, reports: Sequence[Report], missing: dict[str, str], checkpoints: Table
) -> str:
    """The tables of several reports as one Markdown document.

    Args:
        facts: (name, value) pairs at its head.
        how: the paragraph on how the figures were measured; reports have it each, the summary once.
        reports: reports in the order to show.
        missing: reasons why reports were not made, by name.
        checkpoints: table of the checkpoints of all weights.
    """
    anchors = {
        r.name: "".join(c for c in r.title.lower().replace(" ", "-") if c.isalnum() or c == "-") for r in reports
    }
    parts = [
        "# Results",
        "The paper's tables and figures, made again on the data and with the weights named here. The paper's own "
        "figures are in columns and tables of their own; they are of COCO, Cityscapes or LVIS, so figures of other "
        "data cannot be compared with them. The command below writes pages with pictures, CSV and JSON beside this "
        "summary.",
        _facts(facts),
        blocks_markdown([checkpoints]),
        how,
        f"Here: {', '.join(f'[{name}](#{anchor})' for name, anchor in anchors.items())}.",
    ]
    for report in reports:
        shown, section = [], ""
        for block in report.blocks:
            section = block.text if isinstance(block, Heading) else section
            if section not in ("Checkpoints", "Checkpoint") and block != Paragraph(how):
                shown.append(block)
        parts += [f"## {report.title}", blocks_markdown(shown, 3)]
    parts += [f"{name} was not made: {reason}." for name, reason in missing.items()]
    return "\n\n".join(parts) + "\n"


def jsonable(value: Any) -> Any:
    """A value with every :class:`Interval` in its dicts and lists replaced by its JSON form."""
    if isinstance(value, Interval):
        return value.to_dict()
    if isinstance(value, dict):
        return {key: jsonable(item) for key, item in value.items()}
    return [jsonable(item) for item in value] if isinstance(value, list) else value


def number(value: float | None, digits: int = 4, signed: bool = False) -> str:
    """A number as text, a dash where it is undefined."""
    return "–" if value is None else f"{value:{'+' if signed else ''}.{digits}f}"


def scaled(value: float | None, unit: float, digits: int = 3) -> str:
    """A number in multiples of a unit as text, for example MACs in units of 1e9."""
    return number(None if value is None else value / unit, digits)


def with_interval(values: Interval, digits: int = 4, signed: bool = False) -> str:
    """``mean [low, high]`` as text."""
    if values.low is None:
        return number(values.mean, digits, signed)
    mean, low, high = (number(value, digits, signed) for value in (values.mean, values.low, values.high))
    return f"{mean} [{low}, {high}]"


def significance(value: Interval) -> str:
    """A paired difference in words: "higher", "lower", or "not significant" if its interval contains zero."""
    return {1: "higher", -1: "lower", 0: "not significant"}[value.sign]
