"""Requests in work: how many of each visitor, until when, and which of them calls a model next.

Handlers run in threads of their own. :data:`REQUESTS` admits them, and each asks its :class:`Request` between its steps
whether to go on. A :class:`Slot` is held only while a model computes, or while large pictures are decoded and large
masks encoded; the visitor who has used it least gets it next.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from app.limits import LIMITS, Limits
from dynamask.structures import DynaMaskError

LOOPBACK = ("127.0.0.1", "::1", "localhost")
HALF_LIFE = 30.0
"""Seconds after which the use of a slot counts half."""
WAKE_SECONDS = 0.25
"""Time between two checks of a request that waits for a slot."""


def visitor_of(address: str | None, session: str | None) -> str:
    """The visitor behind a connection, see :class:`app.limits.Limits`."""
    return f"session {session}" if address is None or address in LOOPBACK else f"address {address}"


class Request:
    """A request in work.

    Args:
        visitor: from :func:`visitor_of`.
        session: the session of its connection; None if it has none.
        seconds: until its deadline.
    """

    def __init__(self, visitor: str, session: str | None, seconds: float) -> None:
        self.visitor, self.session, self.seconds = visitor, session, seconds
        self.deadline = time.monotonic() + seconds
        self.left = False

    def check(self) -> None:
        """Raise :class:`DynaMaskError` if the client has left or the deadline has passed."""
        if self.left:
            raise DynaMaskError("the client closed its connection, and the work for it was stopped; send it again")
        if time.monotonic() > self.deadline:
            raise DynaMaskError(
                f"the request took longer than {self.seconds:g} s and was stopped; "
                "send a smaller picture or fewer boxes, or try again later"
            )


class Requests:
    """All requests in work or waiting.

    Args:
        limits: of the server.
    """

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.limits = limits
        self._lock = threading.Lock()
        self._running: set[Request] = set()

    def __len__(self) -> int:
        return len(self._running)

    @contextmanager
    def admitted(self, visitor: str, session: str | None) -> Iterator[Request]:
        """Count a request while the block runs, and make it the current one.

        Raises:
            DynaMaskError: too many requests of this visitor, or of all visitors.
        """
        request = Request(visitor, session, self.limits.request_seconds)
        with self._lock:
            own = Counter(each.visitor for each in self._running)[visitor]
            if own >= self.limits.visitor_queue:
                raise DynaMaskError(f"{own} requests of yours are in work; wait for their answers, then send it again")
            if len(self._running) >= self.limits.queue:
                raise DynaMaskError("the server is busy with other visitors; try again in a minute")
            self._running.add(request)
        token = _current.set(request)
        try:
            yield request
        finally:
            _current.reset(token)
            with self._lock:
                self._running.discard(request)

    def leave(self, session: str) -> None:
        """Stop the work for a session whose connection was closed."""
        with self._lock:
            for request in self._running:
                if request.session == session:
                    request.left = True


class Slot:
    """A resource for one request at a time. Waiting requests get it by how long their visitors used it lately.

    A thread that holds it may take it again.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._owner: int | None = None  # identifier of the thread that holds it
        self._waiting: dict[int, str] = {}  # visitor by number, in order of arrival
        self._numbers = itertools.count()
        self._used: dict[str, tuple[float, float]] = {}  # seconds of use, and when they were noted, by visitor

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Hold the slot while the block runs.

        Raises:
            DynaMaskError: the current request ended while it waited.
        """
        if self._owner == threading.get_ident():
            yield
            return
        request = _current.get()
        visitor = "" if request is None else request.visitor
        number = next(self._numbers)
        with self._condition:
            self._waiting[number] = visitor
            try:
                while self._owner is not None or self._next() != number:
                    self._condition.wait(WAKE_SECONDS)
                    if request is not None:
                        request.check()
                self._owner = threading.get_ident()
            finally:
                del self._waiting[number]
                self._condition.notify_all()
        start = time.monotonic()
        try:
            yield
        finally:
            with self._condition:
                now = time.monotonic()
                self._used[visitor] = (self._use(visitor, now) + now - start, now)
                self._used = {name: use for name, use in self._used.items() if now - use[1] < 10 * HALF_LIFE}
                self._owner = None
                self._condition.notify_all()

    def _use(self, visitor: str, now: float) -> float:
        """Seconds for which a visitor used the slot, those of long ago counted less."""
        seconds, noted = self._used.get(visitor, (0.0, now))
        return seconds * 0.5 ** ((now - noted) / HALF_LIFE)

    def _next(self) -> int:
        """Number of the waiting request that gets the slot."""
        now = time.monotonic()
        return min(self._waiting, key=lambda number: (self._use(self._waiting[number], now), number))


_current: ContextVar[Request | None] = ContextVar("request", default=None)


def check_request() -> None:
    """Raise :class:`DynaMaskError` if the current request, if any, is to end; called between two steps of its work."""
    request = _current.get()
    if request is not None:
        request.check()


REQUESTS = Requests()
MODEL = Slot()
"""Held while a model computes."""
PICTURES = Slot()
"""Held while pictures of more than ``LARGE_PIXELS`` are decoded, and while masks of more in all are encoded."""
LARGE_PIXELS = 13_000_000
