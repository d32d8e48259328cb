"""Limits of the server: admission, slots, HTTP requests, idle connections and leftovers, and masks in bands."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import re
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from faster_coco_eval.core import mask as coco_mask

pytest.importorskip("starlette", reason="the server needs gradio, which brings starlette")

from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from app import mask_encoding, work
from app.guard import Guard, Rates
from app.housekeeping import Housekeeping
from app.limits import Limits, read_limits
from app.mask_encoding import box_pixels, encode_pasted, mask_work
from app.work import Requests, Slot, check_request, visitor_of
from dynamask.ops.masks import paste_mask
from dynamask.ops.rle import encode_rle
from dynamask.structures import DynaMaskError

ROOT = Path(__file__).resolve().parent.parent


# ---- the numbers ----


def test_limits_come_from_the_environment():
    assert read_limits({}) == Limits() == read_limits({"DYNAMASK_QUEUE": "", "DYNAMASK_OTHER": "x"})
    changed = read_limits({"DYNAMASK_QUEUE": "7", "DYNAMASK_REQUEST_SECONDS": " 5 "})
    assert changed == dataclasses.replace(Limits(), queue=7, request_seconds=5)
    for value in ("0", "-1", "1.5", "many", "1e3", "9" * 500, "²"):
        with pytest.raises(DynaMaskError, match="DYNAMASK_QUEUE is .*; give a whole number"):
            read_limits({"DYNAMASK_QUEUE": value})


def test_the_guide_lists_every_limit_with_its_default():
    text = (ROOT / "docs" / "server.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \|", text, flags=re.MULTILINE)
    assert {name: int(value) for name, value in rows} == dataclasses.asdict(Limits())


# ---- requests in work ----


def test_a_visitor_has_a_share_of_the_queue():
    requests = Requests(Limits(queue=3, visitor_queue=2))
    with requests.admitted("a", None), requests.admitted("a", None):
        with pytest.raises(DynaMaskError, match="2 requests of yours"), requests.admitted("a", None):
            pass
        with requests.admitted("b", None):
            with pytest.raises(DynaMaskError, match="busy"), requests.admitted("c", None):
                pass
            assert len(requests) == 3
    assert len(requests) == 0


def test_a_request_ends_at_its_deadline_and_when_its_client_leaves(monkeypatch):
    requests, now = Requests(Limits(request_seconds=5)), [100.0]
    monkeypatch.setattr(work.time, "monotonic", lambda: now[0])
    check_request()  # none is in work
    with requests.admitted("a", "session"):
        requests.leave("another")
        check_request()
        now[0] += 6
        with pytest.raises(DynaMaskError, match="longer than 5 s"):
            check_request()
    with requests.admitted("a", "session"):
        requests.leave("session")
        with pytest.raises(DynaMaskError, match="closed its connection"):
            check_request()
    check_request()


def test_visitors_are_addresses_and_on_this_machine_sessions():
    assert visitor_of("10.0.0.1", "s") == visitor_of("10.0.0.1", "t") != visitor_of("10.0.0.2", "s")
    assert visitor_of("127.0.0.1", "s") == visitor_of("::1", "s") == visitor_of(None, "s")
    assert visitor_of("127.0.0.1", "s") != visitor_of("127.0.0.1", "t")


def in_slot(requests, slot, visitor, order, session=None):
    """Take the slot in a thread of its own; it is waiting for the slot, or has ended, when this returns."""

    def run() -> None:
        try:
            with requests.admitted(visitor, session), slot():
                order.append(visitor)
        except DynaMaskError as error:
            order.append(str(error))

    before = len(slot._waiting)
    thread = threading.Thread(target=run)
    thread.start()
    while thread.is_alive() and len(slot._waiting) == before:
        time.sleep(0.005)
    return thread


def test_who_used_a_slot_least_gets_it_next():
    requests, slot, order = Requests(Limits(queue=50, visitor_queue=50)), Slot(), []
    slot._used["greedy"] = (9.0, time.monotonic())
    with requests.admitted("first", None), slot():
        threads = [in_slot(requests, slot, name, order) for name in ("greedy", "greedy", "modest", "other")]
        assert order == []
    for thread in threads:
        thread.join(30)
    assert order == ["modest", "other", "greedy", "greedy"]


def test_who_left_does_not_get_the_slot():
    requests, slot, order = Requests(), Slot(), []
    with requests.admitted("first", None), slot():
        thread = in_slot(requests, slot, "gone", order, session="s")
        requests.leave("s")
        thread.join(30)
        assert len(order) == 1 and "closed its connection" in order[0] and not slot._waiting
    with slot(), slot():  # free again, and a thread may take it twice
        assert slot._owner is not None
    assert slot._owner is None


# ---- HTTP requests ----


async def _echo(request) -> JSONResponse:
    return JSONResponse({"bytes": len(await request.body())})


def guarded(requests=None, **limits) -> TestClient:
    app = Starlette(routes=[Route("/{rest:path}", _echo, methods=["GET", "POST"])])
    return TestClient(Guard(app, Limits(**limits), requests or Requests()))


def test_requests_within_the_limits_arrive_unchanged():
    client = guarded(json_megabytes=1)
    assert client.post("/gradio_api/queue/join", content=b"[1, 2]").json() == {"bytes": 6}
    assert client.get("/config").json() == {"bytes": 0}
    assert client.post("/gradio_api/upload", content=b"x" * (2 << 20)).json() == {"bytes": 2 << 20}


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/queue/join", b"x" * ((1 << 20) + 1), 413, "more than 1 MB"),
        ("/queue/join", b"[" + b"[]," * 60 + b"[]]", 413, "more than 100 JSON values"),
        ("/queue/join", rb'{"path": "a\u0000b"}', 400, "NUL"),
        ("/upload", b"x" * ((2 << 20) + 1), 413, "more than 2 MB"),
    ],
)
def test_requests_above_the_limits_are_refused_in_a_sentence(path, body, status, words):
    client = guarded(json_megabytes=1, json_values=100, upload_megabytes=1)
    answer = client.post(f"/gradio_api{path}", content=body)
    assert answer.status_code == status and words in answer.json()["detail"]


@pytest.mark.parametrize("path", ["/queue/join", "/upload"])
def test_a_request_that_never_arrives_is_refused(path):
    sent = []

    async def never() -> dict:
        await asyncio.sleep(3600)
        return {}

    async def send(message) -> None:
        sent.append(message)

    guard = guarded().app
    guard.limits = dataclasses.replace(guard.limits, upload_seconds=0)
    scope = {"type": "http", "method": "POST", "path": path, "headers": [], "query_string": b""}
    asyncio.run(guard({**scope, "client": ("127.0.0.1", 1)}, never, send))
    assert sent[0]["status"] == 408 and b"longer than 0 s" in sent[1]["body"]


def test_fast_visitors_are_delayed_and_others_are_not():
    rates = Rates(per_second=10)
    assert max(rates.delay("a", 1000.0, 5) for _ in range(61)) < 1e-6  # six seconds' worth
    delays = [rates.delay("a", 1000.0, 5) for _ in range(60)]
    assert delays[0] == pytest.approx(0.1) and delays[9] == pytest.approx(1.0) and delays[-1] is None
    assert rates.delay("b", 1000.0, 5) == 0.0 and rates.delay("a", 1020.0, 5) == 0.0


@pytest.mark.parametrize(
    "path", ["/queue/data?session_hash=s", "/call/predict/s", "/call/v2/predict/s", "/heartbeat/s"]
)
@pytest.mark.parametrize("leaves", [True, False])
def test_a_client_that_leaves_ends_its_work(path, leaves):
    """The stream of answers is open; the client closes it, or the server ends it."""
    requests = Requests()

    async def endless():
        yield b"data: 1\n\n"
        while leaves:
            await asyncio.sleep(0.01)

    async def app(scope, receive, send) -> None:
        await StreamingResponse(endless())(scope, receive, send)

    async def talk() -> None:
        begun = asyncio.Event()

        async def receive() -> dict:
            await begun.wait()
            await asyncio.sleep(0.05)
            return {"type": "http.disconnect"}

        async def send(message) -> None:
            if message["type"] == "http.response.body":
                begun.set()

        name, _, query = path.partition("?")
        scope = {"type": "http", "method": "GET", "path": f"/gradio_api{name}", "query_string": query.encode()}
        await Guard(app, Limits(), requests)({**scope, "headers": [], "asgi": {"spec_version": "2.3"}}, receive, send)

    with requests.admitted("a", "s") as own, requests.admitted("b", "t") as other:
        asyncio.run(talk())
        assert own.left == leaves and not other.left


# ---- what stays behind ----


def test_idle_connections_are_closed_and_used_ones_are_not():
    closed = []

    class Connection:
        def __init__(self, name, cycle) -> None:
            self.cycle, self.loop = cycle, SimpleNamespace(call_soon_threadsafe=lambda call: call())
            self.transport = SimpleNamespace(abort=lambda: closed.append(name))

    cycles = {"silent": None, "working": SimpleNamespace(response_complete=False)}
    cycles |= {"answered": SimpleNamespace(response_complete=True)}
    connections = [Connection(name, cycle) for name, cycle in cycles.items()]
    server = SimpleNamespace(server_state=SimpleNamespace(connections=connections), should_exit=False)
    keeper = Housekeeping(server, Path("absent"), Limits(idle_seconds=10))
    for now in (0.0, 9.0):
        keeper.close_idle(now)
    assert closed == []
    keeper.close_idle(11.0)
    assert closed == ["silent", "answered"]


def test_leftovers_of_uploads_are_deleted_and_uploads_are_not(tmp_path):
    (tmp_path / "hash").mkdir()
    kept, old, new = tmp_path / "hash" / "photo.jpg", tmp_path / "tmpold", tmp_path / "tmpnew"
    for path in (kept, old, new):
        path.write_bytes(b"x")
    for path in (kept, old):
        os.utime(path, (0, 0))
    Housekeeping(None, tmp_path).delete_leftovers(time.time())
    assert kept.exists() and new.exists() and not old.exists()


# ---- masks ----


def test_masks_in_bands_are_the_pasted_ones(monkeypatch):
    monkeypatch.setattr(mask_encoding, "BAND", 200)
    probs = torch.rand((28, 28), generator=torch.Generator().manual_seed(0))
    size = (60, 90)
    for box in ([10.3, 5.7, 70.2, 50.9], [-8.0, -3.0, 95.0, 70.0], [40.0, 20.0, 40.2, 20.2], [60.0, 0.0, 90.0, 60.0]):
        pasted = paste_mask(probs, box, size)
        encoded = encode_pasted(probs, box, size)
        assert (coco_mask.decode(encoded).astype(bool) == pasted.numpy()).all()
        assert encoded == encode_rle(pasted)
    assert encode_pasted(torch.ones((14, 14)), [0, 0, 90, 60], size) == encode_rle(
        paste_mask(torch.ones((14, 14)), [0, 0, 90, 60], size)
    )


def test_masks_above_the_limit_are_refused():
    assert box_pixels([[0, 0, 10, 10], [5, 5, 1000, 1000]], (20, 30)) == 100 + 15 * 25
    with pytest.raises(DynaMaskError, match="501 million pixels, and at most 500"), mask_work(501_000_000):
        pass
    with mask_work(500_000_000), mask_work(1000):  # small ones do not wait
        pass


# ---- a real server ----


def test_a_silent_connection_to_a_real_server_is_closed(tmp_path):
    """A client opens a connection and sends half a header; another one asks and is answered."""
    uvicorn = pytest.importorskip("uvicorn", reason="the server needs gradio, which brings uvicorn")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(Starlette(routes=[Route("/", _echo)]), log_level="warning")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        Housekeeping(server, tmp_path, Limits(idle_seconds=1)).start(every=0.1)
        with socket.create_connection(listener.getsockname(), 60) as silent:
            silent.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n")
            with socket.create_connection(listener.getsockname(), 60) as asking:
                asking.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                assert asking.recv(100).startswith(b"HTTP/1.1 200")
            with contextlib.suppress(ConnectionResetError):
                assert silent.recv(1) == b""
        server.should_exit = True
        thread.join(30)
