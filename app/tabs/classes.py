"""Classes: which mask sizes every class gets (Fig. 8), beside what its outlines need; for bundled and for own data."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

import gradio as gr

from app.classes_data import bundled_tables, csv_text
from app.tabs import page_text
from app.tabs.spoken import refuse
from app.visitors_data import MAX_BYTES, MAX_INSTANCES, MAX_PICTURES, opened, table_of
from dynamask.structures import MASK_SIZES, DynaMaskError
from dynamask.viz.overlay import SIZE_COLOURS, contrast_colour

if TYPE_CHECKING:
    from app.shared import Shared

OWN = "your data"
LIMITS = (
    f"Pictures, a COCO JSON, or a zip of both: at most {MAX_PICTURES} pictures, {MAX_INSTANCES} instances and "
    f"{MAX_BYTES // 2**20} MB. A JSON alone shows what each class needs; pictures alone show what the weights detect. "
    "Nothing is kept."
)


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


def build(shared: Shared) -> None:
    """Put the table on the page, with the bundled weights' figures and a place for own data."""
    tables = bundled_tables()
    first = next(iter(tables), OWN)
    gr.HTML(page_text("classes_head.html"), css_template=page_text("tabs.css"), apply_default_css=False)
    own = gr.State(None, time_to_live=1800)
    source = gr.Radio([*tables, OWN], value=first, label="Figures of", elem_id="dynamask-classes-source")
    table = gr.HTML(
        value=table_text(tables.get(first)),
        html_template=page_text("classes.html"),
        css_template=page_text("tabs.css") + page_text("classes.css"),
        js_on_load=page_text("classes.js"),
        apply_default_css=False,
        elem_id="dynamask-classes",
    )
    with gr.Accordion("Your own pictures or annotations", open=not tables, elem_id="dynamask-classes-own"):
        gr.Markdown(LIMITS)
        files = gr.File(
            label="Pictures, COCO JSON or zip", file_count="multiple",
            file_types=["image", ".json", ".zip", ".tif", ".tiff", ".bmp", ".webp"], elem_id="dynamask-classes-files",
        )  # fmt: skip
        names = shared.explorer.shelf.names
        with gr.Row():
            weights = gr.Dropdown(names, value=names[0], label="Weights", filterable=False)
            start = gr.Button("Analyse", variant="primary", elem_id="dynamask-classes-start")
            cancel = gr.Button("Cancel", elem_id="dynamask-classes-cancel")
        status = gr.Markdown("", elem_id="dynamask-classes-status")

    def show(name: str, kept: dict[str, Any] | None) -> str:
        return table_text(kept if name == OWN else tables.get(name))

    def analyse(sent: list[str] | None, name: str) -> Iterator[tuple[Any, Any, Any, str]]:
        try:
            yield gr.skip(), gr.skip(), gr.skip(), "Reading the files…"
            with opened(sent or []) as found, closing(table_of(found, shared.predictor(name), name)) as steps:
                for words, result in steps:
                    if result is None:
                        yield gr.skip(), gr.skip(), gr.skip(), words
                    else:
                        yield result, OWN, table_text(result), words
        except DynaMaskError as error:
            yield gr.skip(), gr.skip(), gr.skip(), ""
            refuse(error)

    private = {"api_visibility": "private", "show_progress": "hidden"}
    source.input(show, [source, own], table, queue=False, **private)
    running = start.click(
        analyse, [files, weights], [own, source, table, status], concurrency_id="classes", concurrency_limit=1,
        trigger_mode="once", **private,
    )  # fmt: skip
    cancel.click(lambda: "Cancelled.", None, status, cancels=[running], queue=False, **private)
