"""Errors that a visitor can correct, as messages on the page."""

from __future__ import annotations

from typing import NoReturn

import gradio as gr

from dynamask.structures import DynaMaskError


def refuse(error: DynaMaskError) -> NoReturn:
    """Raise the error as Gradio's, which the page shows as a notification."""
    message = str(error)
    raise gr.Error(message[:1].upper() + message[1:], duration=None, title="Not done", print_exception=False) from error
