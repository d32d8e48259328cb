"""The page: the Explore canvas with the one event that needs the server, and the other tabs around it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr
from gradio.utils import get_upload_folder

from app import api
from app.handlers import Explorer
from app.session import Session
from app.shared import Shared
from app.tabs import budget, classes, train
from app.tabs.spoken import refuse
from dynamask.structures import DynaMaskError

APP_DIR = Path(__file__).resolve().parent
SCRIPTS = (
    "masks.js", "policies.js", "panels.js", "cells.js", "why.js", "canvas.js", "link.js", "boxes.js", "pictures.js",
    "events.js",
)  # fmt: skip
STYLES = ("canvas.css", "details.css", "cells.css")
FONT = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]
MAX_UPLOAD = "100mb"
OTHER_TABS = {"Budget curve": budget, "Classes": classes, "Train": train}
KEPT_SESSIONS = 60
"""Visitors whose pictures the server remembers at a time; the oldest is forgotten first."""
SESSION_SECONDS = 3600

# Gradio's own margins, which leave a phone too little width.
PAGE_HEAD = """<style>
.gradio-container .html-container { padding: 0 !important; }
.gradio-container .main.app { padding-top: 10px !important; }
@media (max-width: 600px) { .gradio-container .main.app { padding: 8px 14px !important; } }
</style>"""

# Runs when the server has refused; answers reach the canvas as its value.
REFUSED = "() => { document.dispatchEvent(new CustomEvent('dynamask-refused')); }"


def page_text(*names: str) -> str:
    """Text of the canvas's files, one behind the other."""
    return "\n".join((APP_DIR / name).read_text(encoding="utf-8") for name in names)


def explore(shared: Shared) -> None:
    """The Explore tab."""
    explorer = shared.explorer
    canvas = gr.HTML(
        value=explorer.first_view(),
        html_template=page_text("canvas.html"),
        css_template=page_text(*STYLES),
        js_on_load=page_text(*SCRIPTS),
        apply_default_css=False,
        elem_id="dynamask-canvas",
        examples=explorer.shown_examples(),
        weights=json.dumps(explorer.shelf.described()).replace("<", "\\u003c"),
    )

    def answer(session: Session | None, event: gr.EventData) -> tuple[str, Session | None]:
        try:
            return explorer.answer(event._data, session, Path(get_upload_folder()))
        except DynaMaskError as error:
            refuse(error)

    answered = canvas.select(
        answer, shared.session, [canvas, shared.session], show_progress="hidden", api_visibility="private",
        **shared.model_queue,
    )  # fmt: skip
    answered.failure(None, js=REFUSED, api_visibility="private")  # `then` is not told of a refusal


def build(explorer: Explorer) -> gr.Blocks:
    """The page around an explorer, its first picture analysed."""
    with gr.Blocks(title="DynaMask", fill_width=True, analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        shared = Shared(explorer, gr.State(None, time_to_live=SESSION_SECONDS))
        with gr.Tabs(elem_id="dynamask-tabs"):
            with gr.Tab("Explore", id="explore"):
                explore(shared)
            for label, tab in OTHER_TABS.items():
                with gr.Tab(label):
                    tab.build(shared)
        api.build(shared)
    return page


def launch(page: gr.Blocks, **options: Any) -> tuple[Any, str, str]:
    """Serve the page; `options` go to `gr.Blocks.launch`."""
    theme = gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=FONT, font_mono=MONO)
    return page.launch(theme=theme, head=PAGE_HEAD, max_file_size=MAX_UPLOAD, run_history=False, footer_links=[],
                       state_session_capacity=KEPT_SESSIONS, **options)  # fmt: skip
