"""Response times of five ordinary visitors of the app, alone and beside a hostile client, and the server's memory.

Each ordinary visitor sends a photograph of 640×480 to /predict every few seconds. The hostile client keeps 20 requests
open at a time, one kind after the other of `KINDS`. Visitors and client have addresses of their own in 127.0.0.0/8, so
this benchmark needs Linux.

    python benchmarks/hostile.py --minutes 3 --json FILE
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import itertools
import json
import sys
import tempfile
import threading
import time
import uuid
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from PIL import Image

from benchmarks import harness
from benchmarks.harness import Result, spread
from benchmarks.page import new_picture, served

VISITORS = 5
EVERY = 6.0
"""Seconds between two pictures of one visitor."""
ROOT_PATH = "/gradio_api"
HOSTILE = "127.0.0.66"
AT_A_TIME = 20
LONGEST = 300.0
"""Seconds after which a client gives up."""
FULL_SIZE = (6144, 4032)
"""Width and height of a large picture: 24.8 million pixels."""


class Client:
    """A client of the server at a port, with a network address of its own."""

    def __init__(self, port: int, address: str) -> None:
        self.port, self.address = port, address

    def connect(self, timeout: float = LONGEST) -> http.client.HTTPConnection:
        """A new connection."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout, source_address=(self.address, 0))

    def send(
        self, method: str, path: str, body: bytes | None = None, kind: str = "application/json", root: str = ROOT_PATH
    ) -> bytes:
        """The body of an answer; what is not answered with 200 raises OSError."""
        connection = self.connect()
        try:
            connection.request(method, root + path, body, {"Content-Type": kind})
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        if answer.status != 200:
            raise OSError(f"status {answer.status}: {content[:200].decode(errors='replace')}")
        return content

    def call(self, name: str, values: list[Any], seconds: float = LONGEST) -> str:
        """Call an endpoint; the last event's name, "complete" or "error", or "left" after so many seconds."""
        event = json.loads(self.send("POST", f"/call/{name}", json.dumps({"data": values}).encode()))["event_id"]
        return self.events(f"/call/{name}/{event}", seconds)

    def events(self, path: str, seconds: float) -> str:
        """The last event of a stream of answers."""
        connection, last, end = self.connect(min(seconds, LONGEST)), "", time.monotonic() + seconds
        try:
            connection.request("GET", ROOT_PATH + path)
            answer = connection.getresponse()
            while line := answer.readline():
                if line.startswith(b"event:"):
                    last = line.split()[1].decode()
                elif b"process_completed" in line:
                    last = "complete"
                if time.monotonic() > end:
                    return "left"
        except TimeoutError:
            return "left"
        finally:
            connection.close()
        return last

    def upload(self, name: str, content: bytes) -> dict[str, Any]:
        """Upload a file; the value that an endpoint takes."""
        mark = uuid.uuid4().hex
        head = f'--{mark}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
        body = head.encode() + content + f"\r\n--{mark}--\r\n".encode()
        path = json.loads(self.send("POST", "/upload", body, f"multipart/form-data; boundary={mark}"))[0]
        return {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}


def picture_text(size: tuple[int, int], seed: int = 0) -> str:
    """A JPEG of (width, height) with smooth noise as base64 text."""
    small = np.random.default_rng(seed).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize(size).save(buffer, "JPEG", quality=85)
    return base64.b64encode(buffer.getvalue()).decode()


class Attack:
    """The hostile requests; each method sends one.

    Args:
        client: of the hostile address.
        classes: number of the event that analyses files on the Classes tab.
        weights: of the server.
    """

    def __init__(self, client: Client, classes: int, weights: str) -> None:
        self.client, self.classes, self.weights = client, classes, weights
        self.large, self.medium = picture_text(FULL_SIZE), picture_text((4000, 3000))
        buffer = io.BytesIO()
        Image.new("1", (16000, 12500)).save(buffer, "PNG")
        self.bomb = base64.b64encode(buffer.getvalue()).decode()
        macs = np.array([10_071_040, 17_297_792, 24_743_712, 32_189_633])
        logits = macs / macs[-1] + np.random.default_rng(0).normal(0, 1e-4, (1000, 4))
        probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        instances = [{"switch_probs": row, "box": [0, 0, 9, 9], "mask_size": 14} for row in probs.tolist()]
        self.answer = {"instances": instances, "macs_per_instance": macs.tolist(), "image_size": [480, 640]}
        side = 30_000
        image = {"id": 1, "file_name": "a.jpg", "width": side, "height": side}
        polygon = [[0, 0, side, 0, side, side, 0, side]]
        annotation = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": polygon, "bbox": [0, 0, side, side]}
        coco = {"images": [image], "annotations": [annotation], "categories": [{"id": 1, "name": "a"}]}
        self.declared = json.dumps(coco).encode()
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.json", '{"images": [' + "{}," * 40_000_000 + "{}]}")
        self.packed = packed.getvalue()

    def predict(self, image: Any, boxes: Any = None, seconds: float = LONGEST, weights: Any = None) -> str:
        """Call /predict with masks at all sizes."""
        values = [image, weights or self.weights, "learned", None, None, boxes, True]
        return self.client.call("predict", values, seconds)

    def whole_boxes(self) -> str:
        """300 boxes that cover a picture of 24.8 million pixels."""
        return self.predict(self.large, [[0, 0, *FULL_SIZE]] * 300)

    def leaves(self) -> str:
        """A large request within the limits, whose client leaves after a second."""
        return self.predict(self.medium, [[x, 0, x + 300, 3000] for x in range(0, 3600, 40)], seconds=1.0)

    def large_request(self) -> str:
        """A large request within the limits."""
        return self.predict(self.medium, [[x, 0, x + 300, 3000] for x in range(0, 3600, 40)])

    def picture_bomb(self) -> str:
        """A small file with 200 million pixels."""
        return self.predict(self.bomb)

    def hard_knapsack(self) -> str:
        """Probabilities of 1,000 instances for which the best sizes within a budget are hard to find."""
        return self.client.call("select", [self.answer, "learned", 0.0200001])

    def odd_values(self) -> str:
        """A list as weights, then an integer of 400 digits, then a NUL in a path."""
        self.predict(self.bomb, weights=["things"])
        self.client.call("scene", [10**400, 0, None])
        return self.predict({"path": "/tmp/a\0b", "meta": {"_type": "gradio.FileData"}})

    def many_values(self) -> str:
        """JSON of ten million empty lists."""
        body = b'{"data": [' + b"[]," * 10_000_000 + b"[]]}"
        return str(len(self.client.send("POST", "/call/select", body)))

    def slow_upload(self) -> str:
        """An upload that sends a kilobyte per second and ends after five."""
        connection = self.client.connect()
        connection.putrequest("POST", f"{ROOT_PATH}/upload")
        connection.putheader("Content-Type", "multipart/form-data; boundary=x")
        connection.putheader("Content-Length", str(10**7))
        connection.endheaders(b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n')
        for _ in range(5):
            connection.send(b"a" * 1000)
            time.sleep(1)
        connection.close()
        return "left"

    def slow_header(self) -> str:
        """A connection whose header never ends."""
        connection = self.client.connect(40)
        connection.connect()
        connection.sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n")
        ended = connection.sock.recv(1) == b""
        connection.close()
        return "closed by the server" if ended else "answered"

    def analyse(self, name: str, content: bytes) -> str:
        """Analyse a file on the Classes tab."""
        session = uuid.uuid4().hex[:12]
        values = [None, [self.client.upload(name, content)], self.weights]
        body = {"data": values, "fn_index": self.classes, "session_hash": session}
        self.client.send("POST", "/queue/join", json.dumps(body).encode())
        return self.client.events(f"/queue/data?session_hash={session}", LONGEST)

    def declared_size(self) -> str:
        """An annotation that declares a picture of 30,000²."""
        return self.analyse("a.json", self.declared)

    def packed_json(self) -> str:
        """A small zip with 120 MB of JSON."""
        return self.analyse("a.zip", self.packed)


KINDS: tuple[Callable[[Attack], str], ...] = (
    Attack.whole_boxes,
    Attack.leaves,
    Attack.large_request,
    Attack.picture_bomb,
    Attack.hard_knapsack,
    Attack.odd_values,
    Attack.many_values,
    Attack.slow_upload,
    Attack.slow_header,
    Attack.declared_size,
    Attack.packed_json,
)


def classes_event(client: Client) -> int:
    """Number of the event behind the button Analyse of the Classes tab."""
    config = json.loads(client.send("GET", "/config", root=""))
    button = next(
        each["id"] for each in config["components"] if each["props"].get("elem_id") == "dynamask-classes-start"
    )
    return next(each["id"] for each in config["dependencies"] if [button, "click"] in map(list, each["targets"]))


def run_visitors(port: int, weights: str, seconds: float, folder: Path) -> tuple[list[float], Counter[str]]:
    """Milliseconds of all answers to the ordinary visitors, and how they ended."""
    times: list[float] = []
    ends: Counter[str] = Counter()

    def visit(number: int) -> None:
        client = Client(port, f"127.0.0.{11 + number}")
        text = base64.b64encode(new_picture(640, 480, number, folder).read_bytes()).decode()
        start = time.monotonic()
        for turn in itertools.count():
            due = start + number * EVERY / VISITORS + turn * EVERY
            if due > start + seconds:
                return
            time.sleep(max(0.0, due - time.monotonic()))
            sent = time.perf_counter()
            try:
                end = client.call("predict", [text, weights, "learned", None, None, None, False])
            except OSError as error:
                end = str(error)[:80]
            times.append((time.perf_counter() - sent) * 1e3)
            ends[end] += 1

    threads = [threading.Thread(target=visit, args=(number,)) for number in range(VISITORS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times, ends


def run_attack(attack: Attack, stop: threading.Event, ends: Counter[str]) -> list[threading.Thread]:
    """Start the hostile threads; how their requests ended is counted by kind."""
    kinds = itertools.cycle(KINDS)

    def loop() -> None:
        while not stop.is_set():
            kind = next(kinds)
            try:
                end = kind(attack)
            except (OSError, ValueError, http.client.HTTPException) as error:
                end = str(error)[:40]
            ends[f"{kind.__name__}: {end}"] += 1

    threads = [threading.Thread(target=loop, daemon=True) for _ in range(AT_A_TIME)]
    for thread in threads:
        thread.start()
    return threads


def peak_mb(pid: int) -> int:
    """Most memory of a process so far in MB."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024


def wait_until_ready(client: Client, seconds: float = 600.0) -> None:
    """Wait until the server answers."""
    end = time.monotonic() + seconds
    while True:
        try:
            client.call("scene", [0, 0, None])
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


def measure(arguments: argparse.Namespace) -> Result:
    """Serve the app, and measure its visitors alone and under attack."""
    with tempfile.TemporaryDirectory() as name, served(arguments.weights, Path(name)) as (address, process):
        folder, port = Path(name), int(address.rstrip("/").rpartition(":")[2])
        wait_until_ready(Client(port, "127.0.0.10"))
        run_visitors(port, arguments.weights, EVERY, folder)  # the first answers load and compile
        alone, quiet_ends = run_visitors(port, arguments.weights, 60 * arguments.minutes, folder)
        before = peak_mb(process.pid)
        client, stop, ends = Client(port, HOSTILE), threading.Event(), Counter()
        attack = Attack(client, classes_event(client), arguments.weights)
        run_attack(attack, stop, ends)
        beside, busy_ends = run_visitors(port, arguments.weights, 60 * arguments.minutes, folder)
        stop.set()
        peak = peak_mb(process.pid)
    figures = {
        "alone": spread(alone),
        "beside": spread(beside),
        "ratio_p95": round(spread(beside)["p95_ms"] / spread(alone)["p95_ms"], 2),
        "memory_alone_mb": before,
        "memory_mb": peak,
        "answers_alone": dict(quiet_ends),
        "answers_beside": dict(busy_ends),
        "hostile": dict(sorted(ends.items())),
    }
    return Result(figures, "\n".join(f"{key}: {value}" for key, value in figures.items()))


def build_parser() -> argparse.ArgumentParser:
    """The parser of the benchmark."""
    parser = harness.make_parser("hostile", __doc__)
    parser.add_argument("--weights", default="things", help="bundled name or .safetensors file (default: things)")
    parser.add_argument("--minutes", type=float, default=3.0, help="duration of each of the two parts (default: 3)")
    harness.add_json_flag(parser)
    parser.set_defaults(measure=measure)
    return parser


if __name__ == "__main__":
    sys.exit(harness.run(build_parser()))
