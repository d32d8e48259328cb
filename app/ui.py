"""The page: the Explore canvas with the one event that needs the server, and the other tabs around it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr
from gradio.utils import get_upload_folder
from starlette.middleware import Middleware

from app import api
from app.context import PageContext
from app.errors import notifying
from app.guard import Guard
from app.handlers import ExploreHandlers
from app.housekeeping import Housekeeping
from app.limits import LIMITS
from app.messages import as_json
from app.session import Session
from app.tabs import budget_tab, classes_tab, train_tab
from app.templates import module_loader, static_route, template

STYLES = ("explore.css", "details.css", "one_stage.css")
FONT = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]
OTHER_TABS = {"Budget curve": budget_tab, "Classes": classes_tab, "Train": train_tab}
SPARE_THREADS = 24
"""Threads beside those of the requests in work: for refusals, training runs and files."""

# Gradio's own margins, which leave a phone too little width.
PAGE_HEAD = """<style>
.gradio-container .html-container { padding: 0 !important; }
.gradio-container .main.app { padding-top: 10px !important; }
@media (max-width: 600px) { .gradio-container .main.app { padding: 8px 14px !important; } }
</style>"""

# Runs when the server refuses a request; answers reach the canvas as its value.
REFUSED = "() => { document.dispatchEvent(new CustomEvent('dynamask-refused')); }"


def explore(context: PageContext) -> None:
    """The Explore tab."""
    explorer = context.explorer
    canvas = gr.HTML(
        value=explorer.first_view(),
        html_template=template("explore.html"),
        css_template=template(*STYLES),
        js_on_load=module_loader("explore"),
        apply_default_css=False,
        elem_id="dynamask-canvas",
        examples=explorer.shown_examples(),
        weights=as_json(explorer.catalog.choices()),
    )

    @notifying
    def answer(session: Session | None, event: gr.EventData) -> tuple[str, Session | None]:
        return explorer.answer(event._data, session, Path(get_upload_folder()))

    answered = canvas.select(
        answer,
        context.session,
        [canvas, context.session],
        show_progress="hidden",
        api_visibility="private",
        **context.model_queue,
    )
    answered.failure(None, js=REFUSED, api_visibility="private")


def build(explorer: ExploreHandlers) -> gr.Blocks:
    """The page around an explorer, its first picture analysed."""
    with gr.Blocks(title="DynaMask", fill_width=True, analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        context = PageContext(explorer, gr.State(None, time_to_live=LIMITS.session_seconds))
        with gr.Tabs(elem_id="dynamask-tabs"):
            with gr.Tab("Explore", id="explore"):
                explore(context)
            for label, tab in OTHER_TABS.items():
                with gr.Tab(label):
                    tab.build(context)
        api.build(context)
    return page


def launch(page: gr.Blocks, **options: Any) -> tuple[Any, str, str]:
    """Serve the page within the limits; `options` go to `gr.Blocks.launch`."""
    block = not options.pop("prevent_thread_lock", False)
    page.queue(max_size=2 * LIMITS.queue)
    theme = gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=FONT, font_mono=MONO)
    launched = page.launch(
        theme=theme,
        head=PAGE_HEAD,
        max_file_size=f"{LIMITS.upload_megabytes}mb",
        run_history=False,
        footer_links=[],
        state_session_capacity=LIMITS.sessions,
        max_threads=LIMITS.queue + SPARE_THREADS,
        app_kwargs={"routes": [static_route()], "middleware": [Middleware(Guard)]},
        prevent_thread_lock=True,
        **options,
    )
    Housekeeping(page.server, Path(get_upload_folder())).start()
    if block:
        page.block_thread()
    return launched
