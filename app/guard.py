"""Checks of HTTP requests before Gradio reads them: size, time of arrival, rate, and whether the client has left.

:class:`Guard` is a pure ASGI middleware. What it refuses is answered with JSON, `{"detail": "one sentence"}`.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs

from starlette.responses import JSONResponse

from app.limits import LIMITS, Limits
from app.work import LOOPBACK, REQUESTS, Requests

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Scope = MutableMapping[str, Any]

BURST_SECONDS = 6
"""A visitor may send so many seconds' worth of requests at once."""
UPLOAD = "/upload"
STREAM = re.compile(r"/(?:queue/data|heartbeat/(?P<heartbeat>[^/]+)|call/(?:v2/)?[^/]+/(?P<event>[^/]+))$")
"""Connections that a client keeps open while it waits for answers or while its page is open."""


class TooMuch(Exception):
    """A request is refused: with a status and a sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class Rates:
    """How many requests visitors have sent lately, as the time at which each may send the next one.

    Args:
        per_second: requests that a visitor can keep up.
    """

    def __init__(self, per_second: float) -> None:
        self.step = 1 / per_second
        self._next: dict[str, float] = {}

    def delay(self, visitor: str, now: float, longest: float) -> float | None:
        """Seconds that a request of a visitor has to wait; None if they are more than ``longest``."""
        if len(self._next) > 10_000:
            self._next = {name: due for name, due in self._next.items() if due > now - BURST_SECONDS}
        due = max(self._next.get(visitor, 0.0), now - BURST_SECONDS)
        if due - now > longest:
            return None
        self._next[visitor] = due + self.step
        return max(0.0, due - now)


class Guard:
    """ASGI middleware with the limits of requests.

    Args:
        app: the application behind it.
        limits: of the server.
        requests: those in work, which are told when their client leaves.
    """

    def __init__(self, app: Any, limits: Limits = LIMITS, requests: Requests = REQUESTS) -> None:
        self.app, self.limits, self.requests = app, limits, requests
        self.rates = Rates(limits.visitor_rate)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["method"] in ("GET", "HEAD"):
            await self._watched(scope, receive, send)
            return
        try:
            await self._in_turn(scope)
            if scope["path"].endswith(UPLOAD):
                await self._upload(scope, receive, send)
                return
            body = await self._body(receive)
        except TooMuch as error:
            await JSONResponse({"detail": str(error)}, error.status)(scope, receive, send)
            return
        await self.app(scope, _replayed(body, receive), send)

    async def _in_turn(self, scope: Scope) -> None:
        """Delay a request of a visitor who sends many."""
        address = (scope.get("client") or (LOOPBACK[0],))[0]
        if address in LOOPBACK:
            return
        delay = self.rates.delay(address, time.monotonic(), self.limits.request_seconds)
        if delay is None:
            raise TooMuch(429, f"you sent more than {self.limits.visitor_rate} requests per second; wait a minute")
        await asyncio.sleep(delay)

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass an upload on until it is too large or too slow, or its client leaves."""
        end, most, size = time.monotonic() + self.limits.upload_seconds, 2 * self.limits.upload_megabytes, 0
        ended: list[TooMuch | None] = []  # why it ended early; None where the client left

        async def limited() -> Message:
            nonlocal size
            try:
                message = await self._arriving(receive, end)
                size += len(message.get("body", b""))
                if size > most * 2**20:
                    raise TooMuch(413, f"the uploaded files have more than {most} MB; send fewer or smaller ones")
            except TooMuch as error:
                ended.append(error)
                return {"type": "http.disconnect"}
            if message["type"] == "http.disconnect":
                ended.append(None)
            return message

        async def passed_on(message: Message) -> None:
            if not ended:
                await send(message)

        try:
            await self.app(scope, limited, passed_on)
        except Exception:
            if not ended:
                raise
        if ended and ended[0] is not None:
            raise ended[0]

    async def _arriving(self, receive: Receive, end: float) -> Message:
        """The next message of a request; raises :class:`TooMuch` after its time."""
        try:
            return await asyncio.wait_for(receive(), max(0.0, end - time.monotonic()))
        except TimeoutError:
            raise TooMuch(408, f"the request took longer than {self.limits.upload_seconds} s to arrive") from None

    async def _body(self, receive: Receive) -> bytes:
        """The body of a request other than an upload, checked."""
        end, most = time.monotonic() + self.limits.upload_seconds, self.limits.json_megabytes
        parts: list[bytes] = []
        size = values = 0
        while True:
            message = await self._arriving(receive, end)
            if message["type"] == "http.disconnect":
                raise TooMuch(400, "the request ended before it was complete")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > most * 2**20:
                raise TooMuch(413, f"the request has more than {most} MB; upload the picture as a file")
            values += sum(parts[-1].count(each) for each in (b",", b"[", b"{"))
            if values > self.limits.json_values:
                raise TooMuch(413, f"the request has more than {self.limits.json_values} JSON values; send fewer")
            if not message.get("more_body"):
                break
        body = b"".join(parts)
        if rb"\u0000" in body:
            raise TooMuch(400, "the request has a text with a NUL character; remove it")
        return body

    async def _watched(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a connection on; if the client ends a stream of answers, the work for it is stopped."""
        match = STREAM.search(scope["path"])
        if match is None:
            await self.app(scope, receive, send)
            return
        named = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("session_hash", [None])[0]
        session, complete = match["heartbeat"] or match["event"] or named, False

        messages: asyncio.Queue[Message] = asyncio.Queue()
        gone: list[Message] = []

        async def watch() -> None:
            while not gone:
                message = await receive()
                if message["type"] == "http.disconnect":
                    gone.append(message)
                    if session and not complete:
                        self.requests.leave(session)
                messages.put_nowait(message)

        async def passed_on() -> Message:
            return gone[0] if gone else await messages.get()

        async def watched(message: Message) -> None:
            nonlocal complete
            complete = complete or (message["type"] == "http.response.body" and not message.get("more_body"))
            await send(message)

        task = asyncio.create_task(watch())
        try:
            await self.app(scope, passed_on, watched)
        finally:
            task.cancel()


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The messages of a request whose body was read."""
    sent = False

    async def replayed() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed
