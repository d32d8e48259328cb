"""Response times of the app in headless Chromium: its start, its slider, a new photograph, ten visitors.

The slider is measured on made-up instances, with no model behind them, at 640×480: from the slider's event to the
redrawn canvas, read back so that the drawing is complete. The other parts run `python -m app`.

    python benchmarks/page.py --parts slider start photograph visitors --minutes 5 --json FILE
"""

from __future__ import annotations

import argparse
import io
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from PIL import Image

from benchmarks import harness
from benchmarks.harness import ROOT, Result, spread

PARTS = ("slider", "start", "photograph", "visitors")
SHOWN = ".dm[data-empty=false]"
STATE = "document.querySelector('.dm').parentElement.dynamask"
MOVES = 200
VISITORS = 10
EVERY = 30.0
"""Seconds between two pictures of one visitor."""

SLIDE = """async (moves) => {
  const slider = document.querySelector('.dm-budget'), canvas = document.querySelector('.dm-canvas');
  const context = canvas.getContext('2d'), times = [];
  for (let i = -10; i < moves; i++) {
    const start = performance.now();
    slider.value = (Math.abs(i) * 37) % 201;
    slider.dispatchEvent(new Event('input', { bubbles: true }));
    context.getImageData(0, 0, 1, 1);
    if (i >= 0) times.push(performance.now() - start);
    await new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve, 0)));
  }
  return times;
}"""


def made_up_session(count: int, size: tuple[int, int]) -> Any:
    """A session of ``count`` made-up instances on a noise picture of (H, W)."""
    from app.session import Session, SessionInstances
    from app.source_pictures import SourcePicture
    from dynamask.structures import MASK_SIZES

    draw, (height, width) = np.random.default_rng(count), size
    sides = np.stack([draw.uniform(0.06, 0.3, count) * width, draw.uniform(0.1, 0.45, count) * height], 1)
    corners = draw.random((count, 2)) * (np.array([width, height]) - sides)
    masks = []
    for number in range(count):
        grids = []
        for side in MASK_SIZES:
            ys, xs = np.mgrid[0:side, 0:side] / (side - 1) * 2 - 1
            radius = 0.7 + 0.22 * np.cos((3 + number % 9) * np.arctan2(ys, xs) + number)
            grids.append((255 / (1 + np.exp(-(radius - np.hypot(xs, ys)) * 14))).round().astype(np.uint8))
        masks.append(grids)
    unknown = np.full((count, len(MASK_SIZES)), np.nan)
    found = SessionInstances(
        boxes=np.concatenate([corners, corners + sides], 1),
        mask_boxes=np.concatenate([corners, corners + sides], 1),
        labels=np.ones(count, np.int64),
        names=["flower"] * count,
        scores=np.linspace(0.99, 0.51, count),
        drawn=np.zeros(count, bool),
        mask_iou=unknown,
        boundary_iou=unknown,
        grids=masks,
        switch_probs=draw.dirichlet(np.ones(4), count),
    )
    image = draw.integers(0, 255, (height, width, 3), dtype=np.uint8)
    macs = (14_500_000, 38_400_000, 71_300_000, 122_000_000)
    picture = SourcePicture("own", "", f"{count} instances", "", image)
    timings = {"detect": 0.0, "mask_branch": 0.0}
    return Session("1", "none", picture, size, (1,), macs, 0, 0, 0.5, 0.05, timings, found)


class MadeUpExplorer:
    """The part of an explorer that the page uses, with one made-up picture."""

    def __init__(self, count: int) -> None:
        from app.catalog import WeightsCatalog

        self.session, self.catalog = made_up_session(count, (480, 640)), WeightsCatalog(lambda name: None, "none", [])

    def first_view(self) -> str:
        """The made-up view."""
        from app.messages import view_message

        return view_message(self.session, self.session.picture.source)

    def first_session(self) -> Any:
        """The made-up session."""
        return self.session

    def shown_examples(self) -> str:
        """No example."""
        return "[]"


def slider(browser: Any) -> dict[str, Any]:
    """Milliseconds from an event of the slider to the redrawn canvas, with 30 and 100 instances."""
    from app import ui

    results = {}
    for count in (30, 100):
        page = ui.build(MadeUpExplorer(count))
        _, address, _ = ui.launch(page, prevent_thread_lock=True, quiet=True)
        tab = browser.new_page(viewport={"width": 1280, "height": 900})
        tab.goto(address)
        tab.wait_for_selector(SHOWN, timeout=120_000)
        tab.wait_for_function(f"{STATE}.ready", timeout=120_000)  # all sizes are drawn while nothing else happens
        requests: list[str] = []
        tab.on("request", lambda request, seen=requests: seen.append(request.url))
        times = tab.evaluate(SLIDE, MOVES)
        results[f"slider_{count}"] = {**spread(times), "requests_while_sliding": len(requests)}
        tab.close()
        page.close(verbose=False)
    return results


@contextmanager
def served(weights: str, folder: Path) -> Iterator[tuple[str, subprocess.Popen]]:
    """Start ``python -m app`` on a free port, with its cache in a folder; yields its address and process."""
    port = harness.free_port()
    command = [sys.executable, "-m", "app", "--weights", weights, "--port", str(port)]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "XDG_CACHE_HOME": str(folder)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield f"http://127.0.0.1:{port}/", process
    finally:
        process.terminate()
        process.wait(30)


def wait_for_page(tab: Any, address: str, seconds: float = 180) -> float:
    """Wait until the server answers and the page shows its first picture; returns the seconds of the server."""
    start = time.perf_counter()
    port = int(address.rstrip("/").rpartition(":")[2])
    while time.perf_counter() - start < seconds:
        try:
            socket.create_connection(("127.0.0.1", port), 0.2).close()
            break
        except OSError:
            time.sleep(0.05)
    answered = time.perf_counter() - start
    tab.goto(address)
    tab.wait_for_selector(SHOWN, timeout=seconds * 1e3)
    return answered


def start(browser: Any, weights: str, folder: Path) -> dict[str, Any]:
    """Seconds from the start of the process to the page with its first picture, in an open browser.

    ``first_start_s`` is of a start with an empty cache, which compiles models for OpenVINO if it is installed;
    ``start_s`` of one after it, and ``server_s`` of the latter until the server answers.
    """
    results = {}
    for name in ("first_start_s", "start_s"):
        tab = browser.new_page()
        begun = time.perf_counter()
        with served(weights, folder) as (address, _):
            answered = wait_for_page(tab, address)
            results[name] = round(time.perf_counter() - begun, 2)
        tab.close()
    return {**results, "server_s": round(answered, 2)}


def new_picture(width: int, height: int, seed: int, folder: Path) -> Path:
    """Path of an example photograph, resized to its own size."""
    files = sorted((ROOT / "app" / "examples").glob("*.jpg"))
    path = folder / f"visitor-{seed}.jpg"
    buffer = io.BytesIO()
    Image.open(files[seed % len(files)]).convert("RGB").resize((width, height)).save(buffer, "JPEG", quality=90)
    path.write_bytes(buffer.getvalue())
    return path


def send(tab: Any, path: Path, size: tuple[int, int]) -> None:
    """Choose a file on the page and wait for its caption."""
    tab.set_input_files(".dm-file", path)
    await_size(tab, size)


def await_size(tab: Any, size: tuple[int, int]) -> None:
    """Wait until the page shows the picture of (width, height)."""
    words = f"{size[0]} × {size[1]} px"
    script = f"(words) => document.querySelector('.dm-caption').innerText.includes(words) && !{STATE}.busy"
    tab.wait_for_function(script, arg=words, timeout=120_000)


def photograph(browser: Any, weights: str, folder: Path) -> dict[str, Any]:
    """Milliseconds from choosing a photograph of 640×480 to its masks on the page; five different ones."""
    tab, times = browser.new_page(), []
    with served(weights, folder) as (address, _):
        wait_for_page(tab, address)
        for number in range(6):
            size = (640 + number, 480)
            path = new_picture(*size, number, folder)
            begun = time.perf_counter()
            send(tab, path, size)
            times.append((time.perf_counter() - begun) * 1e3)
    tab.close()
    return {"photograph": spread(times[1:])}


def resident_mb(process: subprocess.Popen) -> float:
    """Memory of a process in MB (Linux)."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def visitors(browser: Any, weights: str, folder: Path, minutes: float) -> dict[str, Any]:
    """Ten pages, each sending a picture of its own every 30 s: answer times, mixed-up answers, memory."""
    with served(weights, folder) as (address, process):
        tabs = [browser.new_page() for _ in range(VISITORS)]
        for tab in tabs:
            wait_for_page(tab, address)
        times: list[float] = []
        mixed, memory, begun, turn = 0, [], time.perf_counter(), 0
        while time.perf_counter() - begun < minutes * 60:
            for number, tab in enumerate(tabs):
                due = begun + turn * EVERY + number * EVERY / VISITORS
                time.sleep(max(0.0, due - time.perf_counter()))
                size = (500 + 10 * number + turn % 10, 400)
                path = new_picture(*size, number, folder)
                sent = time.perf_counter()
                send(tab, path, size)
                times.append((time.perf_counter() - sent) * 1e3)
                others = [tabs[i].inner_text(".dm-caption") for i in range(VISITORS) if i != number]
                mixed += sum(f"{size[0]} ×" in words for words in others)
            memory.append(resident_mb(process))
            turn += 1
        for tab in tabs:
            tab.close()
    flat = {"memory_mb": [round(value) for value in memory]}
    return {"visitors": {**spread(times), "mixed_up": mixed, **flat}}


def measure(arguments: argparse.Namespace) -> Result:
    """The parts that were asked for."""
    results: dict[str, Any] = {}
    with harness.chromium() as browser, tempfile.TemporaryDirectory() as folder:
        if "slider" in arguments.parts:
            results |= slider(browser)
        if "start" in arguments.parts:
            results |= start(browser, arguments.weights, Path(folder))
        if "photograph" in arguments.parts:
            results |= photograph(browser, arguments.weights, Path(folder))
        if "visitors" in arguments.parts:
            results |= visitors(browser, arguments.weights, Path(folder), arguments.minutes)
    return Result(results, "\n".join(f"{name}: {value}" for name, value in results.items()))


def build_parser() -> argparse.ArgumentParser:
    """The parser of the benchmark."""
    parser = harness.make_parser("page", __doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure (default: all)")
    parser.add_argument("--weights", default="things", help="bundled name or .safetensors file (default: things)")
    parser.add_argument("--minutes", type=float, default=5.0, help="duration of the visitors (default: 5)")
    harness.add_json_flag(parser)
    parser.set_defaults(measure=measure)
    return parser


if __name__ == "__main__":
    sys.exit(harness.run(build_parser()))
