"""Errors that a visitor can correct, as notifications on the page."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, NoReturn

import gradio as gr
from gradio.context import LocalContext

from app.work import REQUESTS, visitor_of
from dynamask.structures import DynaMaskError

LOGGER = logging.getLogger(__name__)
UNEXPECTED = "the server could not process this request; check its values, or open the picture again"


def refuse(error: DynaMaskError) -> NoReturn:
    """Raise the error as Gradio's, which the page shows as a notification; nothing after it runs."""
    message = str(error)
    raise gr.Error(message[:1].upper() + message[1:], duration=None, title="Not done", print_exception=False) from error


def refusal_of(error: Exception) -> DynaMaskError:
    """The error itself if a visitor can correct it; otherwise a sentence in its place, and the error is logged."""
    if isinstance(error, DynaMaskError):
        return error
    if isinstance(error, MemoryError):
        return DynaMaskError("this request needs more memory than the server has; send a smaller picture")
    LOGGER.error("a request failed", exc_info=error)
    return DynaMaskError(UNEXPECTED)


def notifying(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate an event handler: it is admitted as one of :data:`app.work.REQUESTS`, and its errors become
    notifications on the page."""

    @functools.wraps(function)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        try:
            with REQUESTS.admitted(*_sender()):
                return function(*arguments, **options)
        except gr.Error:
            raise
        except Exception as error:
            refuse(refusal_of(error))

    return wrapped


def _sender() -> tuple[str, str | None]:
    """The visitor and the session of Gradio's current request."""
    request = LocalContext.request.get(None)
    client, session = getattr(request, "client", None), getattr(request, "session_hash", None)
    return visitor_of(getattr(client, "host", None), session), session
