"""The page: one canvas and the two events that need the server. What they compute is in `handlers`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr
from gradio.utils import get_upload_folder

from app.handlers import Explorer
from dynamask.structures import DynaMaskError

APP_DIR = Path(__file__).resolve().parent
SCRIPTS = ("masks.js", "panels.js", "canvas.js", "events.js")
FONT = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]
MAX_UPLOAD = "100mb"

# Gradio's own margins, which leave a phone too little width.
PAGE_HEAD = """<style>
.gradio-container .html-container { padding: 0 !important; }
@media (max-width: 600px) { .gradio-container .main.app { padding: 12px 14px !important; } }
</style>"""

# Runs when the server has answered, whether with a new view or with a refusal.
SETTLED = "() => { document.dispatchEvent(new CustomEvent('dynamask-settled')); }"


def page_text(name: str) -> str:
    """Text of one of the canvas's files."""
    return (APP_DIR / name).read_text(encoding="utf-8")


def spoken_errors(compute: Callable[[gr.EventData], str]) -> Callable[[gr.EventData], str]:
    """The same handler; what a visitor can mend becomes a sentence on the page."""

    def handler(event: gr.EventData) -> str:
        try:
            return compute(event)
        except DynaMaskError as error:
            message = str(error)
            sentence = message[:1].upper() + message[1:]
            raise gr.Error(sentence, duration=None, title="Not done", print_exception=False) from error

    return handler


def build(explorer: Explorer) -> gr.Blocks:
    """The page around an explorer, its first picture analysed."""

    @spoken_errors
    def show_example(event: gr.EventData) -> str:
        return explorer.example(event._data.get("index"))

    @spoken_errors
    def show_upload(event: gr.EventData) -> str:
        return explorer.uploaded(event._data.get("path"), event._data.get("name", ""), Path(get_upload_folder()))

    with gr.Blocks(title="DynaMask", fill_width=True, analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        canvas = gr.HTML(
            value=explorer.first_view(),
            html_template=page_text("canvas.html"),
            css_template=page_text("canvas.css"),
            js_on_load="\n".join(page_text(name) for name in SCRIPTS),
            apply_default_css=False,
            elem_id="dynamask-canvas",
            thumbnails=explorer.thumbnails(),
        )
        for event, handler in ((canvas.select, show_example), (canvas.upload, show_upload)):
            answered = event(
                handler, None, canvas, show_progress="hidden", concurrency_id="model", concurrency_limit=1,
                trigger_mode="once", api_visibility="private",
            )
            for outcome in (answered.success, answered.failure):  # `then` alone is not told of a refusal
                outcome(None, js=SETTLED, api_visibility="private")
    return page


def launch(page: gr.Blocks, **options: Any) -> tuple[Any, str, str]:
    """Serve the page; `options` go to `gr.Blocks.launch`."""
    theme = gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=FONT, font_mono=MONO)
    return page.launch(theme=theme, head=PAGE_HEAD, max_file_size=MAX_UPLOAD, run_history=False, footer_links=[],
                       **options)
