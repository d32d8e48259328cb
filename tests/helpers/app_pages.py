"""The app's page in a browser: a server with invented predictors and small models, and what tests ask of a page."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from dynamask.config import AggregationConfig
from dynamask.data.shapes import ShapesDataset, make_scene
from dynamask.predict import predictor_of
from helpers.app_fakes import MACS, FakePredictor, class_counts, fake_catalog
from helpers.small_models import finding_solo, tiny_model

STATE = "document.querySelector('.dm').parentElement.dynamask"
SIZE = {"width": 1280, "height": 900}
SLOW = 60_000
"""Milliseconds that a busy machine may take for anything."""


@contextmanager
def served(folder: Path, patch: Any) -> Iterator[str]:
    """Serve the page; gives its address.

    The weights are things, shapes, mine and rated (invented; rated predicts quality, the others do not), tiny (a small
    DynaMask, which the Train tab uses), and solo, plain and coarse (small one-stage models). The examples are
    first.jpg (a photograph) and second.jpg (90 × 60).
    """
    from app import ui
    from app.class_table import make_table
    from app.handlers import ExploreHandlers
    from app.source_pictures import find_examples
    from app.tabs import classes_tab, train_tab

    shutil.copy(find_examples()[0].source, folder / "first.jpg")
    Image.new("RGB", (90, 60), "teal").save(folder / "second.jpg")
    predictors = {
        "shapes": FakePredictor(given=make_scene(7, 18).boxes.tolist(), class_names=("__background__", "<b>gear")),
        "tiny": predictor_of(tiny_model(class_names=ShapesDataset(1).class_names)),
        "rated": FakePredictor(has_quality=True),
        "solo": predictor_of(finding_solo(AggregationConfig(deformable=True))),
        "plain": predictor_of(finding_solo()),
        "coarse": predictor_of(finding_solo(AggregationConfig(neighbours="corners"), mask_grids=(4, 3, 2, 2, 1))),
    }
    rows = class_counts(("ant", 0), ("<b>bee", 3), ("<b>bee", 3), ("cow", 1))
    tables = {"things": make_table(rows, None, "things", "a test", 1, "detected", MACS, 0.4)}
    many = class_counts(*[(f"class {i}", i % 4) for i in range(25) for _ in range(5)], ("rare", 3))
    tables["long"] = make_table(many, None, "long", "a test", 1, "gt", MACS)
    patch.setattr(classes_tab, "bundled_tables", lambda: tables)
    patch.setattr(train_tab, "PREFERRED", ("tiny",))
    catalog = fake_catalog("things", ("mine", *predictors), **predictors)
    page = ui.build(ExploreHandlers(catalog, find_examples(folder)))
    _, address, _ = ui.launch(page, prevent_thread_lock=True, quiet=True)
    yield address
    page.close(verbose=False)


def open_page(context: Any, address: str) -> Any:
    """A page with its first picture; `requests` and `problems` fill while it is used."""
    page = context.new_page()
    page.set_default_timeout(SLOW)
    page.requests, page.problems = [], []
    page.on("request", lambda request: page.requests.append(request.url))
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("console", lambda message: page.problems.append(message.text) if message.type == "error" else None)
    page.goto(address)
    page.wait_for_selector(".dm[data-empty=false]")
    return page


def reset(page: Any) -> None:
    """Bring a used page back to its first picture and settings."""
    page.set_viewport_size(SIZE)
    page.emulate_media(color_scheme="light")
    for close in page.locator("[data-testid=toast-close]").all():
        close.click()
    go(page, "Explore")
    if page.get_attribute(".dm-draw", "aria-pressed") == "true":
        page.click(".dm-draw")
    page.evaluate("location.hash = `w=things&e=first.jpg&p=learned&t=0.5&o=0.45&time=${performance.now()}`")
    page.wait_for_function(f"{STATE}.view.weights === 'things' && {STATE}.view.key === 'first.jpg'", timeout=20_000)
    page.press(".dm-budget", "End")
    drawn(page)  # the policy "budget" is checked now
    page.check("[name=dm-policy][value=learned]", force=True)
    idle(page)
    page.requests.clear()


def drawn(page: Any) -> None:
    """Wait until what was asked for before is on the page: two frames."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def idle(page: Any) -> None:
    """Wait until no request runs."""
    page.wait_for_function(f"!{STATE}.busy && {STATE}.view")
    drawn(page)


def picks(page: Any) -> list[int]:
    """Size index of every shown instance."""
    drawn(page)
    return page.evaluate(f"{STATE}.picks")


def caption(page: Any, words: str) -> None:
    """Wait until the caption holds some words."""
    page.wait_for_function("(words) => document.querySelector('.dm-caption').innerText.includes(words)", arg=words)
    idle(page)


def use(page: Any, weights: str) -> None:
    """Choose weights and wait for their answer."""
    page.select_option(".dm-weights", weights)
    page.wait_for_function(f"{STATE}.view.weights === '{weights}'")
    idle(page)


def go(page: Any, tab: str) -> None:
    """Open a tab."""
    page.get_by_role("tab", name=tab).click()


def fits(page: Any, *selectors: str) -> bool:
    """Whether the page needs no sideways scrolling, and each of the elements lies inside its width."""
    width = page.viewport_size["width"]
    boxes = [page.locator(selector).bounding_box() for selector in selectors]
    inside = all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes)
    return inside and page.evaluate("document.documentElement.scrollWidth") <= width
