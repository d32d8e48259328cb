"""Classes: the mask sizes that each class gets (Fig. 8) and needs, for bundled tables and for uploaded data."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from app.class_table import bundled_tables, csv_text
from app.errors import refusal_of, refuse
from app.limits import LIMITS
from app.messages import as_json, size_styles
from app.templates import module_loader, template
from app.uploads import MAX_BYTES, MAX_INSTANCES, MAX_PICTURES, analyse, unpacked
from dynamask.structures import DynaMaskError

if TYPE_CHECKING:
    from app.context import PageContext

OWN = "Your data"
FILE_TYPES = ["image", ".json", ".zip", ".tif", ".tiff", ".bmp", ".webp"]
NOTE = (
    f"Pictures, a COCO JSON, or a zip of both: at most {MAX_PICTURES} pictures, {MAX_INSTANCES} instances, "
    f"{LIMITS.annotation_megabytes} MB of JSON and {MAX_BYTES // 2**20} MB in all. From a JSON alone, the table shows "
    "the sizes that each class needs; from pictures alone, the sizes of the detected objects. Uploaded files are "
    "deleted after the analysis."
)


@dataclass
class OwnAnalysis:
    """The analysis of a visitor's data. One object per session is changed in place, so that Cancel reaches Analyse.

    Attributes:
        turn: number of clicks on Analyse and Cancel; an analysis ends when it is no longer its own.
        table: the last result.
    """

    turn: int = 0
    table: dict[str, Any] | None = None

    def steps(self, analysis: Iterable[tuple[str, dict[str, Any] | None]]) -> Iterator[tuple[str, bool]]:
        """Run an analysis until it is cancelled; yields a progress text and whether the table is complete.

        Raises:
            DynaMaskError: it takes longer than its limit.
        """
        self.turn += 1
        turn, end = self.turn, time.monotonic() + LIMITS.analysis_seconds
        for text, table in analysis:
            if self.turn != turn:
                yield "Cancelled.", False
                return
            if table is None and time.monotonic() > end:
                raise DynaMaskError(f"the analysis took longer than {LIMITS.analysis_seconds} s; send fewer pictures")
            self.table = table or self.table
            yield text, table is not None

    def cancel(self) -> None:
        """End the running analysis, if any."""
        self.turn += 1


def table_text(table: dict[str, Any] | None) -> str:
    """A table as JSON text for the page, with its CSV."""
    return "{}" if table is None else as_json({**table, "styles": size_styles(), "csv": csv_text(table)})


def build(context: PageContext) -> None:
    """Put the table on the page, with the bundled tables and a form for own data."""
    tables = bundled_tables()
    first = next(iter(tables), OWN)
    gr.HTML(template("classes_head.html"), css_template=template("tabs.css"), apply_default_css=False)
    analysis = gr.State(OwnAnalysis(), time_to_live=1800, delete_callback=OwnAnalysis.cancel)
    source = gr.Radio([*tables, OWN], value=first, label="Statistics for", elem_id="dynamask-classes-source")
    table = gr.HTML(
        value=table_text(tables.get(first)),
        html_template=template("classes.html"),
        css_template=template("tabs.css", "classes.css"),
        js_on_load=module_loader("class_table"),
        apply_default_css=False,
        elem_id="dynamask-classes",
    )
    with gr.Accordion("Your own pictures or annotations", open=not tables, elem_id="dynamask-classes-own"):
        gr.Markdown(NOTE)
        files = gr.File(
            label="Pictures, COCO JSON or zip",
            file_count="multiple",
            file_types=FILE_TYPES,
            elem_id="dynamask-classes-files",
        )
        names = context.explorer.catalog.names
        with gr.Row():
            weights = gr.Dropdown(names, value=names[0], label="Weights", filterable=False)
            start = gr.Button("Analyse", variant="primary", elem_id="dynamask-classes-start")
            cancel = gr.Button("Cancel", elem_id="dynamask-classes-cancel")
        status = gr.Markdown("", elem_id="dynamask-classes-status")

    def show(name: str, analysis: OwnAnalysis) -> str:
        return table_text(analysis.table if name == OWN else tables.get(name))

    def run(analysis: OwnAnalysis, sent: list[str] | None, name: str) -> Iterator[tuple[Any, Any, Any, str]]:
        unchanged = (analysis, gr.skip(), gr.skip())
        try:
            yield *unchanged, "Reading the files…"
            with unpacked(sent or []) as data, closing(analyse(data, context.predictor(name), name)) as steps:
                for text, complete in analysis.steps(steps):
                    yield (analysis, OWN, table_text(analysis.table), text) if complete else (*unchanged, text)
        except Exception as error:
            yield *unchanged, ""
            refuse(refusal_of(error))

    private = {"api_visibility": "private", "show_progress": "hidden"}
    source.input(show, [source, analysis], table, queue=False, **private)
    start.click(
        run,
        [analysis, files, weights],
        [analysis, source, table, status],
        concurrency_id="classes",
        concurrency_limit=1,
        trigger_mode="once",
        **private,
    )
    cancel.click(OwnAnalysis.cancel, analysis, None, concurrency_limit=None, **private)
