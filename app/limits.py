"""Limits of the server, so that no request can block it or fill its memory; see `docs/server.md`.

What exceeds a limit is refused with one sentence. :data:`LIMITS` holds the limits in force. An operator changes them
with environment variables: `DYNAMASK_` and the name of the limit in capitals, for example `DYNAMASK_QUEUE=64`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from dynamask.structures import DynaMaskError

PREFIX = "DYNAMASK_"


@dataclass(frozen=True)
class Limits:
    """Limits of the server; all are whole numbers of at least 1.

    A visitor is a network address, or on the server's own machine, where tunnels and proxies end, a session.

    Attributes:
        request_seconds: time of one request from its start, waiting for the model included. The work ends when it is
            over, or when the client closes its connection.
        mask_megapixels: pixels of all boxes of a request together, in millions, where a box counts once for each size
            whose mask is asked for. One-stage weights and exported overlays count whole pictures.
        boxes: boxes that a request gives.
        queue: requests in work or waiting, of all visitors.
        visitor_queue: requests in work or waiting, of one visitor.
        visitor_rate: requests per second that a visitor can keep up; more of them are delayed, and refused if they
            would be delayed by more than `request_seconds`. The server's own machine has no such limit.
        sessions: visitors whose pictures are kept at a time; the oldest is dropped first.
        session_seconds: time for which the picture of a closed page is kept.
        session_megabytes: memory that one visitor's picture and its instances may take, in MiB.
        upload_megabytes: size of one uploaded file in MiB; a request may upload twice as much.
        upload_seconds: time in which a request must have arrived.
        json_megabytes: size of a JSON request in MiB, with a picture as base64 text in it.
        json_values: values of a JSON request; a picture counts as one.
        analysis_seconds: time of one analysis on the Classes tab.
        annotation_megabytes: size of an annotation file of the Classes tab in MiB.
        idle_seconds: time for which a connection without a request is kept.
    """

    request_seconds: int = 60
    mask_megapixels: int = 500
    boxes: int = 300
    queue: int = 32
    visitor_queue: int = 4
    visitor_rate: int = 10
    sessions: int = 60
    session_seconds: int = 3600
    session_megabytes: int = 16
    upload_megabytes: int = 100
    upload_seconds: int = 120
    json_megabytes: int = 32
    json_values: int = 500_000
    analysis_seconds: int = 600
    annotation_megabytes: int = 16
    idle_seconds: int = 15


def read_limits(environment: Mapping[str, str]) -> Limits:
    """The limits with the changes that environment variables ask for.

    Raises:
        DynaMaskError: a value is not a whole number from 1 to 10⁹.
    """
    changes = {}
    for each in fields(Limits):
        name = PREFIX + each.name.upper()
        text = environment.get(name, "").strip()
        if not text:
            continue
        if not (text.isascii() and text.isdigit()) or len(text) > 10 or not 1 <= int(text) <= 10**9:
            raise DynaMaskError(f"{name} is {text[:40]!r}; give a whole number from 1 to 1000000000, or unset it")
        changes[each.name] = int(text)
    return replace(Limits(), **changes)


LIMITS = read_limits(os.environ)
