"""What every tab of the page gets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import gradio as gr

if TYPE_CHECKING:
    from app.catalog import SharedPredictor
    from app.handlers import ExploreHandlers
    from app.session import Session


@dataclass
class PageContext:
    """What the tabs share.

    Attributes:
        explorer: opens pictures; its `catalog` holds the weights.
        session: the visitor's `app.session.Session`, or None while the opening picture is on the page; read it
            through `current`.
        model_queue: keyword arguments of every Gradio event that calls a model. Events are started at once; they wait
            for the model in `app.work`.
    """

    explorer: ExploreHandlers
    session: gr.State
    model_queue: dict[str, Any] = field(default_factory=lambda: {"concurrency_limit": None, "trigger_mode": "once"})

    def current(self, session: Session | None) -> Session | None:
        """The session of the picture on the page; None if there is no picture."""
        return session if session is not None else self.explorer.first_session()

    def predictor(self, weights: str) -> SharedPredictor:
        """The predictor of weights by name; DynaMaskError for an unknown name."""
        return self.explorer.catalog.get(weights)
