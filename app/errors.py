"""What a visitor can mend becomes a sentence on the page."""

from __future__ import annotations

from typing import NoReturn

import gradio as gr

from dynamask.structures import DynaMaskError


def refuse(error: DynaMaskError) -> NoReturn:
    """Raise Gradio's error with the sentence of ours."""
    message = str(error)
    raise gr.Error(message[:1].upper() + message[1:], duration=None, title="Not done", print_exception=False) from error
