"""What the tabs of the page share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import gradio as gr

if TYPE_CHECKING:
    from app.handlers import Explorer
    from app.session import Session
    from dynamask.predict import Predictor

NOW_JS = "window.dynamask ? JSON.stringify(window.dynamask.now()) : '{}'"
"""JS expression: the present setting of Explore as JSON text with the keys `policy`, `budget` (GMACs), `mean` (GMACs of
the shown instances), `score`, `weights`, and `picks` ([[instance index, size index], …] of the shown instances). With
one-stage weights `family` is "one-stage", `picks` is empty, and `policy`, `budget` and `mean` are missing."""

SET_BUDGET_JS = "(gmacs) => window.dynamask && window.dynamask.setBudget(gmacs)"
"""JS function: sets Explore's budget slider to mean GMACs per instance; the policy becomes "budget"."""

CHANGED_EVENT = "dynamask-changed"
"""DOM event on `document` after every move on Explore; `event.detail` is what `NOW_JS` says, as an object."""

PICTURE_EVENT = "dynamask-picture"
"""DOM event on `document` when another picture (or other weights) is on Explore; the server's session has it then."""


@dataclass
class Shared:
    """What every tab gets.

    Attributes:
        explorer: opens pictures; knows the weights (`explorer.shelf.names`, `explorer.shelf.get(name)`).
        session: the visitor's `app.session.Session`, or None while the opening picture is on the page; read it
            through `current`.
        model_queue: keyword arguments of every Gradio event that calls a model.
    """

    explorer: Explorer
    session: gr.State
    model_queue: dict[str, Any] = field(
        default_factory=lambda: {"concurrency_id": "model", "concurrency_limit": 1, "trigger_mode": "once"}
    )

    def current(self, session: Session | None) -> Session | None:
        """The session that the page shows; None where there is no picture at all."""
        return session if session is not None else self.explorer.first_session()

    def predictor(self, weights: str) -> Predictor:
        """The predictor of weights by name, loaded once; DynaMaskError for a name that is not on the shelf."""
        return self.explorer.shelf.get(weights)
