"""Classes: which mask sizes every class gets (Fig. 8), beside what its outlines need; for bundled and for own data."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from app.class_table import bundled_tables, csv_text
from app.errors import refuse
from app.templates import module_loader, template
from app.uploads import MAX_BYTES, MAX_INSTANCES, MAX_PICTURES, opened, table_of
from dynamask.structures import MASK_SIZES, DynaMaskError
from dynamask.viz.style import SIZE_COLOURS, contrast_colour

if TYPE_CHECKING:
    from app.context import PageContext

OWN = "your data"
LIMITS = (
    f"Pictures, a COCO JSON, or a zip of both: at most {MAX_PICTURES} pictures, {MAX_INSTANCES} instances and "
    f"{MAX_BYTES // 2**20} MB. A JSON alone shows what each class needs; pictures alone show what the weights detect. "
    "Nothing is kept."
)


@dataclass
class Errand:
    """What a visitor had analysed; one object per session, changed in place, so that every click sees the same truth.

    Attributes:
        turn: counts Analyse and Cancel; an analysis that sees another number than its own has been cancelled.
        table: the last result.
    """

    turn: int = 0
    table: dict[str, Any] | None = None

    def steps(self, analysis: Iterable[tuple[str, dict[str, Any] | None]]) -> Iterator[tuple[str, bool]]:
        """Work through an analysis until it is cancelled; yields what is being done, and whether the table is there."""
        self.turn += 1
        turn = self.turn
        for words, table in analysis:
            if self.turn != turn:
                yield "Cancelled.", False
                return
            self.table = table or self.table
            yield words, table is not None

    def cancel(self) -> None:
        """End the analysis that is going on, if any."""
        self.turn += 1


def table_text(table: dict[str, Any] | None) -> str:
    """A table as JSON text for the page, with its CSV beside it; `<` escaped."""
    if table is None:
        return "{}"
    styles = []
    for size in MASK_SIZES:
        red, green, blue = contrast_colour(SIZE_COLOURS[size])
        styles.append({"size": size, "colour": SIZE_COLOURS[size], "text": f"#{red:02x}{green:02x}{blue:02x}"})
    shown = {**table, "styles": styles, "csv": csv_text(table)}
    return json.dumps(shown, allow_nan=False).replace("<", "\\u003c")


def build(context: PageContext) -> None:
    """Put the table on the page, with the bundled weights' figures and a place for own data."""
    tables = bundled_tables()
    first = next(iter(tables), OWN)
    gr.HTML(template("classes_head.html"), css_template=template("tabs.css"), apply_default_css=False)
    errand = gr.State(Errand(), time_to_live=1800, delete_callback=Errand.cancel)
    source = gr.Radio([*tables, OWN], value=first, label="Figures of", elem_id="dynamask-classes-source")
    table = gr.HTML(
        value=table_text(tables.get(first)),
        html_template=template("classes.html"),
        css_template=template("tabs.css") + template("classes.css"),
        js_on_load=module_loader("class_table"),
        apply_default_css=False,
        elem_id="dynamask-classes",
    )
    with gr.Accordion("Your own pictures or annotations", open=not tables, elem_id="dynamask-classes-own"):
        gr.Markdown(LIMITS)
        files = gr.File(
            label="Pictures, COCO JSON or zip", file_count="multiple",
            file_types=["image", ".json", ".zip", ".tif", ".tiff", ".bmp", ".webp"], elem_id="dynamask-classes-files",
        )  # fmt: skip
        names = context.explorer.catalog.names
        with gr.Row():
            weights = gr.Dropdown(names, value=names[0], label="Weights", filterable=False)
            start = gr.Button("Analyse", variant="primary", elem_id="dynamask-classes-start")
            cancel = gr.Button("Cancel", elem_id="dynamask-classes-cancel")
        status = gr.Markdown("", elem_id="dynamask-classes-status")

    def show(name: str, errand: Errand) -> str:
        return table_text(errand.table if name == OWN else tables.get(name))

    def analyse(errand: Errand, sent: list[str] | None, name: str) -> Iterator[tuple[Any, Any, Any, str]]:
        unchanged = (errand, gr.skip(), gr.skip())
        try:
            yield *unchanged, "Reading the files…"
            with opened(sent or []) as found, closing(table_of(found, context.predictor(name), name)) as analysis:
                for words, there in errand.steps(analysis):
                    yield (errand, OWN, table_text(errand.table), words) if there else (*unchanged, words)
        except DynaMaskError as error:
            yield *unchanged, ""
            refuse(error)

    private = {"api_visibility": "private", "show_progress": "hidden"}
    source.input(show, [source, errand], table, queue=False, **private)
    start.click(
        analyse, [errand, files, weights], [errand, source, table, status], concurrency_id="classes",
        concurrency_limit=1, trigger_mode="once", **private,
    )  # fmt: skip
    cancel.click(Errand.cancel, errand, None, concurrency_limit=None, **private)
