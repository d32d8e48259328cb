"""What the tabs of the page share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import gradio as gr

if TYPE_CHECKING:
    from app.handlers import ExploreHandlers
    from app.session import Session
    from dynamask.predict import Predictor


@dataclass
class PageContext:
    """What every tab gets.

    Attributes:
        explorer: opens pictures; knows the weights (`explorer.catalog.names`, `explorer.catalog.get(name)`).
        session: the visitor's `app.session.Session`, or None while the opening picture is on the page; read it
            through `current`.
        model_queue: keyword arguments of every Gradio event that calls a model.
    """

    explorer: ExploreHandlers
    session: gr.State
    model_queue: dict[str, Any] = field(
        default_factory=lambda: {"concurrency_id": "model", "concurrency_limit": 1, "trigger_mode": "once"}
    )

    def current(self, session: Session | None) -> Session | None:
        """The session that the page shows; None where there is no picture at all."""
        return session if session is not None else self.explorer.first_session()

    def predictor(self, weights: str) -> Predictor:
        """The predictor of weights by name, loaded once; DynaMaskError for a name that is not on the shelf."""
        return self.explorer.catalog.get(weights)
