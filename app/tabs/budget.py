"""Budget curve: quality against MACs for the picture on Explore; a point that is touched sets Explore's slider."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import gradio as gr

from app.curves import budget_curve
from app.session import Session
from app.shared import CHANGED_EVENT, NOW_JS, PICTURE_EVENT, SET_BUDGET_JS
from app.tabs import page_text
from app.tabs.spoken import refuse
from dynamask.structures import DynaMaskError

if TYPE_CHECKING:
    from app.shared import Shared


def script() -> str:
    """The tab's JavaScript with the hooks into Explore put in."""
    hooks = (
        f"const now = () => JSON.parse({NOW_JS});\nconst setBudget = {SET_BUDGET_JS};\n"
        f"const CHANGED = {json.dumps(CHANGED_EVENT)};\nconst PICTURE = {json.dumps(PICTURE_EVENT)};\n"
    )
    return hooks + page_text("budget.js")


def curve_text(session: Session | None, shown: object = None) -> str:
    """The curve of a session as JSON text, `<` escaped; "{}" where there is no picture.

    Raises:
        DynaMaskError: instances that the session does not have.
    """
    if session is None:
        return "{}"
    if session.levels is not None:
        sentence = f"The weights {session.weights} are one-stage: they have one mask size, so no budget is to be spent."
        return json.dumps({"title": session.title, "sentence": sentence}).replace("<", "\\u003c")
    return json.dumps(budget_curve(session, shown), allow_nan=False).replace("<", "\\u003c")


def build(shared: Shared) -> None:
    """Put the curve on the page; it is asked for when the tab is looked at and when the picture changes."""

    def answer(session: Session | None, event: gr.EventData) -> str:
        try:
            return curve_text(shared.current(session), event._data.get("shown"))
        except DynaMaskError as error:
            refuse(error)

    curve = gr.HTML(
        value="",
        html_template=page_text("budget.html"),
        css_template=page_text("tabs.css") + page_text("budget.css"),
        js_on_load=script(),
        apply_default_css=False,
        elem_id="dynamask-curve",
    )
    curve.select(
        answer, shared.session, curve, show_progress="hidden", concurrency_id="curve", concurrency_limit=2,
        trigger_mode="always_last", api_visibility="private",
    )  # fmt: skip
