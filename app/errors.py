"""Errors that a visitor can correct, as notifications on the page."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NoReturn

import gradio as gr

from dynamask.structures import DynaMaskError


def refuse(error: DynaMaskError) -> NoReturn:
    """Raise the error as Gradio's, which the page shows as a notification."""
    message = str(error)
    raise gr.Error(message[:1].upper() + message[1:], duration=None, title="Not done", print_exception=False) from error


def notifying(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate an event handler so that its :class:`DynaMaskError` becomes a notification on the page."""

    @functools.wraps(function)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        except DynaMaskError as error:
            refuse(error)

    return wrapped
