"""Time of a slider step in JupyterLab, from the move of the mouse to the changed picture, in headless Chromium.

    python benchmarks/notebook.py --json notebook.json                   notebooks 00 and 04, forty steps each
    python benchmarks/notebook.py 00 --steps 10 --screenshots DIR        one of them, and screenshots in both themes

JupyterLab is started on a free port of this machine, without token and browser, on a copy of the notebooks. A step is
one move of the mouse that holds a slider's handle. Its clock starts in the page at the move's event and stops when the
last thing that the step changes has been painted: the picture's element shows the decoded JPEG, the figures have been
redrawn.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "notebooks"))

from lessons.kernels import ROOT, kernel_variables

from benchmarks import harness
from benchmarks.harness import Result, spread
from dynamask.structures import DynaMaskError

SLIDERS: dict[str, list[tuple[str, str]]] = {
    "00": [
        ("budget, a few instances", "budget, mean GMACs per instance"),
        ("budget, many things", "budget, mean GMACs per instance"),
    ],
    "04": [("temperature", "temperature τ"), ("training step", "training step")],
}
"""By notebook: name of the measurement and the slider's description. A description that occurs more than once counts
through the sliders in their order."""
QUIET_MS = 400
"""A step is over when nothing has changed for this time; it ends with the last change."""

WATCH = """
index => {
  const slider = document.querySelectorAll('.jp-Notebook .widget-slider')[index];
  const output = slider.closest('.jp-OutputArea-child');
  const step = window.sliderStep = { start: null, last: null };
  const channel = new MessageChannel();  // a task that is queued in a frame runs after that frame is painted
  channel.port1.onmessage = () => { step.last = performance.now(); };
  const changed = () => requestAnimationFrame(() => channel.port2.postMessage(null));
  for (const picture of output.querySelectorAll('img.dynamask-picture')) picture.addEventListener('load', changed);
  for (const figure of output.querySelectorAll('.js-plotly-plot')) figure.on('plotly_afterplot', changed);
  document.addEventListener('pointermove', () => { step.start = performance.now(); step.last = null; }, true);
}
"""
CELLS = "window.jupyterapp.shell.currentWidget.content.widgets.map(cell => cell.model).filter(m => m.type === 'code')"
FAILED = f"""() => {{
  for (const model of {CELLS}) for (const output of model.outputs.toJSON())
    if (output.output_type === 'error') return `${{output.ename}}: ${{output.evalue}}`;
  return null;
}}"""
RAN = f"() => ({FAILED})() !== null || {CELLS}.every(m => m.executionCount !== null && m.executionState !== 'running')"
CHANGE_THEME = "name => window.jupyterapp?.commands.execute('apputils:change-theme', { theme: name })"
OVER = "quiet => { const s = window.sliderStep; return s.last !== null && performance.now() - s.last > quiet; }"


@contextlib.contextmanager
def jupyter(folder: Path, home: Path, short: bool) -> Iterator[str]:
    """A JupyterLab that serves a folder, without token and browser; its address. It is stopped at the end."""
    port = harness.free_port()
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}", "--ip=127.0.0.1"]
    command += ["--IdentityProvider.token=", "--ServerApp.password=", f"--ServerApp.root_dir={folder}"]
    command += ["--expose-app-in-browser"]
    news = home / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    news.parent.mkdir(parents=True)
    news.write_text('{"fetchNews": "false", "checkForUpdates": false}', encoding="utf-8")
    with (home / "lab.log").open("w") as log:
        server = subprocess.Popen(command, env=os.environ | kernel_variables(home, short), stdout=log, stderr=log)
        try:
            address = f"http://127.0.0.1:{port}"
            wait_for(address, server, home / "lab.log")
            yield address
        finally:
            server.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(20)
            if server.poll() is None:
                server.kill()


def wait_for(address: str, server: subprocess.Popen, log: Path, seconds: float = 90) -> None:
    """Return when a server answers; :class:`DynaMaskError` when it ends or is silent."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        with contextlib.suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(f"{address}/api/status", timeout=5).close()
            return
        time.sleep(0.3)
    last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["no word"]
    raise DynaMaskError(f"JupyterLab did not start; its last line: {last[0]}")


def open_notebook(page: Any, address: str, path: Path, timeout: float) -> float:
    """Open a notebook by itself, run all its cells and wait for the last; seconds that they took."""
    page.goto(f"{address}/lab/tree/{path.name}?reset")
    page.wait_for_selector(".jp-NotebookPanel .jp-CodeCell", timeout=timeout * 1e3)
    page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.ready")
    start = time.perf_counter()
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }")
    page.wait_for_function(RAN, timeout=timeout * 1e3, polling=200)
    failed = page.evaluate(FAILED)
    if failed:
        raise DynaMaskError(f"{path.name} failed in JupyterLab: {failed}")
    return time.perf_counter() - start


def show_everything(page: Any) -> None:
    """Scroll through the notebook, so that JupyterLab renders what it renders only when seen."""
    page.evaluate("""async () => {
      const box = document.querySelector('.jp-WindowedPanel-outer') || document.querySelector('.jp-Notebook');
      for (let y = 0; y < box.scrollHeight; y += 600) { box.scrollTop = y; await new Promise(r => setTimeout(r, 120)); }
      box.scrollTop = 0;
    }""")


def sliders_called(page: Any, description: str) -> list[int]:
    """Positions of the sliders with a description among all sliders of the notebook."""
    labels = page.locator(".jp-Notebook .widget-slider").evaluate_all(
        "all => all.map(one => one.querySelector('.widget-label')?.textContent ?? '')"
    )
    return [i for i, label in enumerate(labels) if label == description]


def slider_times(page: Any, index: int, steps: int, patience: float = 20) -> list[float]:
    """Milliseconds of the steps of a slider, all over it; one without any change in so many seconds is left out."""
    from playwright.sync_api import TimeoutError as NothingChanged

    slider = page.locator(".jp-Notebook .widget-slider").nth(index)
    place = None
    while place != (place := slider.bounding_box()):  # what lies above may still be growing
        slider.scroll_into_view_if_needed()
        page.wait_for_timeout(1500)
    page.evaluate(WATCH, index)
    track, handle = slider.locator(".noUi-base").bounding_box(), slider.locator(".noUi-handle").bounding_box()
    left, width = track["x"] + 0.15 * track["width"], 0.7 * track["width"]
    height, found = handle["y"] + handle["height"] / 2, []
    page.mouse.move(handle["x"] + handle["width"] / 2, height)
    page.mouse.down()
    for step in range(steps):
        phase = (step * 0.618) % 1.0  # all over the slider, every move a long one
        page.mouse.move(left + phase * width, height)
        with contextlib.suppress(NothingChanged):
            page.wait_for_function(OVER, arg=QUIET_MS, timeout=patience * 1e3, polling=50)
            found.append(page.evaluate("() => window.sliderStep.last - window.sliderStep.start"))
    page.mouse.up()
    return found


def take_screenshots(page: Any, folder: Path, number: str) -> None:
    """Pictures of the notebook's widgets in JupyterLab's light and dark themes."""
    folder.mkdir(parents=True, exist_ok=True)
    for theme in ("Light", "Dark"):
        page.evaluate(CHANGE_THEME, f"JupyterLab {theme}")
        page.wait_for_timeout(4000)
        outputs = page.locator(".jp-OutputArea-child:has(.widget-slider)")
        for k in range(outputs.count()):
            outputs.nth(k).scroll_into_view_if_needed()
            page.wait_for_timeout(2500)
            outputs.nth(k).screenshot(path=str(folder / f"{number}-{theme.lower()}-{k}.png"))
        page.screenshot(path=str(folder / f"{number}-{theme.lower()}-page.png"))


def measure(arguments: argparse.Namespace) -> Result:
    """Every slider of the notebooks that were asked for."""
    unknown = sorted(set(arguments.numbers) - set(SLIDERS))
    if unknown:
        raise DynaMaskError(f"no slider is measured in notebook {unknown[0]}; choose from {', '.join(SLIDERS)}")
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch, harness.chromium() as browser:
        folder, home = Path(scratch) / "notebooks", Path(scratch) / "home"
        home.mkdir()
        shutil.copytree(ROOT / "notebooks", folder, ignore=shutil.ignore_patterns("*.py", "__pycache__", "html"))
        with jupyter(folder, home, not arguments.full) as address:
            for number in arguments.numbers or SLIDERS:
                path = next(iter(folder.glob(f"{number}_*.ipynb")))
                page = browser.new_page(viewport={"width": 1440, "height": 1200})
                seconds = open_notebook(page, address, path, arguments.timeout)
                show_everything(page)
                found[path.stem] = {"run_all_s": round(seconds, 1), **measure_sliders(page, number, arguments.steps)}
                if arguments.screenshots:
                    take_screenshots(page, arguments.screenshots, number)
                page.close()
    return Result(found, json.dumps(found, indent=1))


def measure_sliders(page: Any, number: str, steps: int) -> dict[str, Any]:
    """The sliders of one opened notebook, by name."""
    used: dict[str, int] = {}
    found = {}
    for name, description in SLIDERS[number]:
        places, which = sliders_called(page, description), used.get(description, 0)
        if which >= len(places):
            raise DynaMaskError(f"notebook {number} shows no slider called {description!r}; did all its cells run?")
        used[description] = which + 1
        times = slider_times(page, places[which], steps)
        if not times:
            raise DynaMaskError("no step of the slider changed anything; look at the notebook with --screenshots")
        found[name] = spread(times)
    return found


def build_parser() -> argparse.ArgumentParser:
    """The parser of the benchmark."""
    parser = harness.make_parser("notebook", __doc__)
    parser.add_argument("numbers", nargs="*", metavar="NN", help=f"of {', '.join(SLIDERS)} (default: all)")
    parser.add_argument("--steps", type=int, default=40, help="steps of every slider (default: 40)")
    parser.add_argument("--full", action="store_true", help="run the notebooks in full instead of with FAST=1")
    parser.add_argument("--timeout", type=float, default=600, help="seconds that a notebook may take (default: 600)")
    parser.add_argument("--screenshots", type=Path, help="folder for screenshots of the widgets in both themes")
    harness.add_json_flag(parser)
    parser.set_defaults(measure=measure)
    return parser


if __name__ == "__main__":
    sys.exit(harness.run(build_parser()))
