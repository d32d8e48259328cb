"""Closes connections that send no request, and deletes what aborted uploads left behind."""

from __future__ import annotations

import threading
import time
import weakref
from pathlib import Path
from typing import Any

from app.limits import LIMITS, Limits


class Housekeeping:
    """A thread that cleans up every few seconds, see the module's docstring.

    Args:
        server: the running `uvicorn.Server`.
        uploads: the folder in which Gradio stores uploads; finished ones are in its subfolders.
        limits: of the server.
    """

    def __init__(self, server: Any, uploads: Path, limits: Limits = LIMITS) -> None:
        self.server, self.uploads, self.limits = server, uploads, limits
        self._seen: weakref.WeakKeyDictionary[Any, float] = weakref.WeakKeyDictionary()

    def start(self, every: float = 3.0) -> None:
        """Clean up until the server stops."""

        def loop() -> None:
            while not self.server.should_exit:
                self.close_idle(time.monotonic())
                self.delete_leftovers(time.time())
                time.sleep(every)

        threading.Thread(target=loop, daemon=True, name="housekeeping").start()

    def close_idle(self, now: float) -> None:
        """Close connections without a complete request header for `idle_seconds`."""
        for connection in list(self.server.server_state.connections):
            cycle, transport = getattr(connection, "cycle", None), getattr(connection, "transport", None)
            if transport is None or (cycle is not None and not cycle.response_complete):
                self._seen.pop(connection, None)
            elif now - self._seen.setdefault(connection, now) > self.limits.idle_seconds:
                connection.loop.call_soon_threadsafe(transport.abort)

    def delete_leftovers(self, now: float) -> None:
        """Delete files that are still where uploads are received, although their time is over."""
        if not self.uploads.is_dir():
            return
        for path in self.uploads.iterdir():
            try:
                if path.is_file() and now - path.stat().st_mtime > self.limits.upload_seconds + 60:
                    path.unlink()
            except OSError:  # Gradio moved it at the same time
                continue
