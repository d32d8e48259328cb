"""Signals that stop a training between two steps."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any


class StopSignals:
    """Records SIGTERM, SIGINT and SIGHUP instead of ending the process; a second signal ends it.

    A context manager, whose object, when called, returns True after a signal. Signals that are ignored already
    (nohup, background jobs of a shell) remain ignored.

    Args:
        echo: seconds after the first signal in which further ones are ignored. torchrun forwards signals to its
            processes, which have often received them from the terminal as well.

    Attributes:
        received: name of the first signal.
    """

    def __init__(self, echo: float = 0.0) -> None:
        self.received: str | None = None
        self._echo, self._since = echo, 0.0
        self._before: dict[int, Any] = {}

    def __call__(self) -> bool:
        """Return True after a signal."""
        return self.received is not None

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGTERM", "SIGINT", "SIGHUP"):
                number = getattr(signal, name, None)
                if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _receive(self, number: int, _: object) -> None:
        first = self.received is None
        if first:
            self.received, self._since = signal.Signals(number).name, time.monotonic()
        if not self._echo:
            self.__exit__()
        elif not first and time.monotonic() - self._since > self._echo:
            self.__exit__()
            os.kill(os.getpid(), number)
