"""Budget curve: quality against MACs for the picture on Explore; a chosen point moves Explore's budget slider."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gradio as gr

from app.errors import notifying
from app.messages import as_json
from app.quality_curve import budget_curve
from app.session import Session
from app.templates import module_loader, template

if TYPE_CHECKING:
    from app.context import PageContext


def curve_text(session: Session | None, shown: object = None) -> str:
    """The curve of a session as JSON text; "{}" if there is no picture.

    Raises:
        DynaMaskError: instances that the session does not have.
    """
    if session is None:
        return "{}"
    if session.levels is not None:
        sentence = f"The weights {session.weights} are one-stage: they have one mask size, so there is no budget curve."
        return as_json({"title": session.picture.title, "sentence": sentence})
    return as_json(budget_curve(session, shown))


def build(context: PageContext) -> None:
    """Put the curve on the page; the browser asks for it when the tab is open and the picture changes."""

    @notifying
    def answer(session: Session | None, event: gr.EventData) -> str:
        return curve_text(context.current(session), event._data.get("shown"))

    curve = gr.HTML(
        value="",
        html_template=template("budget.html"),
        css_template=template("tabs.css", "budget.css"),
        js_on_load=module_loader("budget_curve"),
        apply_default_css=False,
        elem_id="dynamask-curve",
    )
    curve.select(
        answer,
        context.session,
        curve,
        show_progress="hidden",
        concurrency_limit=None,
        trigger_mode="always_last",
        api_visibility="private",
    )
