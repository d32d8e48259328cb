"""The page in a real browser: Playwright drives Chromium, the model is a fake."""

from __future__ import annotations

import itertools
import math
import os
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from app_fakes import MACS, FakePredictor, blob
from PIL import Image

from app.handlers import Explorer, find_examples
from dynamask.ops.masks import paste_mask
from dynamask.structures import MASK_SIZES

playwright_api = pytest.importorskip("playwright.sync_api", reason="the browser test needs playwright")
pytest.importorskip("gradio", reason="the browser test needs gradio")

APP_DIR = Path(__file__).resolve().parent.parent / "app"
STATE = "document.querySelector('.dm').parentElement.dynamask"


@pytest.fixture(scope="module")
def browser():
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    with playwright_api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except playwright_api.Error as error:
            pytest.skip(f"no Chromium that Playwright can start: {error.message.splitlines()[0]}")
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    from app import ui

    folder = tmp_path_factory.mktemp("examples")
    shutil.copy(find_examples()[0].path, folder / "first.jpg")
    Image.new("RGB", (90, 60), "teal").save(folder / "second.jpg")
    page = ui.build(Explorer(FakePredictor(), find_examples(folder)))
    _, url, _ = ui.launch(page, prevent_thread_lock=True, quiet=True)
    yield url
    page.close(verbose=False)


@pytest.fixture
def page(browser, address):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(20_000)
    page.requests, page.problems = [], []
    page.on("request", lambda request: page.requests.append(request.url))
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("console", lambda message: page.problems.append(message.text) if message.type == "error" else None)
    page.goto(address)
    page.wait_for_selector(".dm[data-empty=false]")
    yield page
    assert page.problems == []
    page.close()


@pytest.fixture(scope="module")
def library(browser):
    """An empty page that has only the functions of masks.js."""
    page = browser.new_page()
    page.add_script_tag(path=APP_DIR / "masks.js")
    yield page
    page.close()


def picks(page) -> list[int]:
    page.wait_for_timeout(60)  # the next frame has been drawn
    return page.evaluate(f"{STATE}.picks")


def test_a_port_in_use_is_one_line_and_exit_code_2(monkeypatch, capsys):
    predictor = pytest.importorskip("dynamask.predictor")
    from app.__main__ import main

    monkeypatch.setattr(predictor, "load", lambda name, device: FakePredictor())
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit) as stop:
        main(["--port", str(taken.getsockname()[1])])
    error = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and error.startswith("dynamask: error: the page cannot be served")


def test_opens_with_a_picture_analysed_and_asks_nobody_else(page, address):
    assert page.locator(".dm-table tbody tr").count() == len(picks(page)) > 1
    assert page.locator(".dm-legend li").count() == 4
    with Image.open(find_examples()[0].path) as picture:
        width, height = picture.size
    assert f"{width} × {height} px" in page.inner_text(".dm-caption")
    foreign = [url for url in page.requests if not url.startswith((address, "data:", "blob:"))]
    assert foreign == []


def test_the_budget_is_answered_in_the_browser(page):
    before = picks(page)
    page.wait_for_timeout(300)
    page.requests.clear()
    means, answers = [], []
    for step in (0, 60, 120, 200):
        page.fill(".dm-budget", str(step))
        chosen = picks(page)
        budget = MACS[0] + (MACS[3] - MACS[0]) * step / 200
        means.append(sum(MACS[k] for k in chosen) / len(chosen))
        assert means[-1] <= budget
        answers.append(page.evaluate(f"{STATE}.answerMs"))
    assert means == sorted(means) and means[0] == MACS[0] and means[0] < means[-1]
    assert picks(page) == before  # with budget to spare the best sizes are the learned ones
    page.focus(".dm-budget")
    page.keyboard.press("Home")
    assert set(picks(page)) == {0}
    assert "0.0100 GMACs" in page.get_attribute(".dm-budget", "aria-valuetext")
    assert page.requests == []
    assert min(answers) < 100


def test_policies_score_and_boxes(page):
    for position, name in enumerate(("learned", "budget", "size", "fixed:14", "fixed:28", "fixed:56", "fixed:112")):
        page.check(f"[name=dm-policy][value='{name}']", force=True)
        chosen = picks(page)
        if position >= 3:
            assert set(chosen) == {position - 3}
            assert f"{len(chosen)} · 100 %" in page.inner_text(".dm-numbers .dm-bars")
    page.fill(".dm-score", "0.06")
    assert len(picks(page)) == 6
    page.fill(".dm-score", "0.99")
    assert picks(page) == [] and "lower the score" in page.inner_text(".dm-table-empty")
    page.check(".dm-boxes")


def test_an_instance_explains_itself_to_keyboard_and_pointer(page):
    page.focus(".dm-canvas")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector(".dm-tile")
    assert page.locator(".dm-tile canvas").count() == 4
    first = page.inner_text(".dm-why")
    assert "Instance 1: person" in first and "score 0.97" in first
    assert page.locator(".dm-probabilities .dm-bar").count() == 4
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.querySelector('.dm-why').innerText.includes('Instance 2')")
    page.keyboard.press("Escape")
    page.wait_for_selector(".dm-invite")
    spot = page.evaluate(f"""() => {{
        const one = {STATE}.shown[3], [w, h] = {STATE}.view.view;
        const area = document.querySelector('.dm-canvas').getBoundingClientRect(), b = one.viewBox;
        return [area.left + (b[0] + b[2]) / 2 / w * area.width, area.top + (b[1] + b[3]) / 2 / h * area.height];
    }}""")
    page.mouse.move(*spot)
    assert "person 0.51" in page.inner_text(".dm-tip")
    page.mouse.click(*spot)
    page.wait_for_function("document.querySelector('.dm-why').innerText.includes('Instance 4')")


def test_a_visitors_picture_and_its_name(page, tmp_path):
    path = tmp_path / "<img src=x onerror=window.hacked=1>.png"
    Image.new("RGBA", (300, 100), (10, 20, 30, 128)).save(path)
    page.set_input_files(".dm-file", path)
    page.wait_for_function("document.querySelector('.dm-caption').innerText.includes('300 × 100 px')")
    assert "onerror" in page.inner_text(".dm-caption")
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("document.querySelector('.dm-caption').children.length") == 0
    page.click(".dm-example >> nth=1")
    page.wait_for_function("document.querySelector('.dm-caption').innerText.includes('90 × 60 px')")
    page.wait_for_selector(".dm-busy", state="hidden")
    page.click(".dm-example >> nth=1")  # the same answer again
    page.wait_for_selector(".dm-busy", state="hidden")


def test_a_picture_is_pasted_and_dropped(page):
    for event, field, width in (("ClipboardEvent", "clipboardData", 70), ("DragEvent", "dataTransfer", 80)):
        page.evaluate("""async ([event, field, width]) => {
            const canvas = Object.assign(document.createElement("canvas"), { width, height: 40 });
            canvas.getContext("2d").fillRect(0, 0, 9, 9);
            const data = new DataTransfer();
            const blob = await new Promise((resolve) => canvas.toBlob(resolve));
            data.items.add(new File([blob], "p.png", { type: "image/png" }));
            const type = event === "DragEvent" ? "drop" : "paste";
            document.dispatchEvent(new window[event](type, { [field]: data, cancelable: true }));
        }""", [event, field, width])
        page.wait_for_function(f"document.querySelector('.dm-caption').innerText.includes('{width} × 40 px')")
        page.wait_for_selector(".dm-busy", state="hidden")


def test_a_refused_picture_is_a_sentence_and_loses_nothing(page, tmp_path):
    path = tmp_path / "note.png"
    path.write_text("no picture at all")
    before, caption = picks(page), page.inner_text(".dm-caption")
    page.set_input_files(".dm-file", path)
    page.wait_for_selector(".toast-body, [data-testid=toast-body]")
    sentence = page.inner_text(".toast-body, [data-testid=toast-body]")
    assert "not" in sentence and "Traceback" not in sentence and len(sentence) > 30
    page.wait_for_selector(".dm-busy", state="hidden")
    assert picks(page) == before and page.inner_text(".dm-caption") == caption


def test_a_phone_needs_no_sideways_scrolling(page):
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_timeout(200)
    page.click(".dm-pick >> nth=0")
    page.wait_for_selector(".dm-tile")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for selector in (".dm-canvas", ".dm-budget", ".dm-policies", ".dm-why", ".dm-table-card"):
        box = page.locator(selector).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390


def test_the_browsers_paste_is_ours(library):
    height, width = 90, 130
    for size, box in ((14, (10.3, 5.7, 96.2, 71.9)), (112, (-4.0, 20.2, 61.5, 95.0)), (28, (100.1, 3.0, 100.9, 80.0))):
        grid = blob(size, 5, 0.4)
        grid_bytes = (grid * 255).round().byte()
        answer = library.evaluate(
            "([mask, size, box, w, h]) => { const f = pasteField(mask, size, box, w, h);"
            " return [f.x, f.y, f.w, f.h, [...f.values].map((v) => v >= LEVEL)]; }",
            [grid_bytes.flatten().tolist(), size, list(box), width, height])
        x, y, w, h, inside = answer
        pasted = np.zeros((height + 2, width + 2), bool)
        pasted[y + 1:y + 1 + h, x + 1:x + 1 + w] = np.array(inside).reshape(h, w)
        ours = paste_mask(grid, box, (height, width)).numpy()
        same_bytes = paste_mask(grid_bytes.float() / 255, box, (height, width)).numpy()
        assert (pasted[1:-1, 1:-1] == same_bytes).mean() > 0.9999
        assert (pasted[1:-1, 1:-1] != ours).sum() <= 0.002 * max(ours.sum(), 1)


def test_outlines_enclose_exactly_the_pasted_pixels(library):
    grid = blob(56, 4, 0.0)
    grid[20:30, 20:30] = 0  # a hole
    wrong = library.evaluate(
        """(mask) => {
            const f = pasteField(mask, 56, [7.4, 6.1, 80.3, 70.8], 100, 90);
            const { path, area } = outlinePath(f);
            const context = document.createElement("canvas").getContext("2d");
            let wrong = 0, inside = 0;
            for (let j = 0; j < f.h; j++) for (let i = 0; i < f.w; i++) {
              const value = f.values[j * f.w + i];
              if (Math.abs(value - LEVEL) < 1) continue;
              const drawn = context.isPointInPath(path, f.x + i + 0.5, f.y + j + 0.5, "evenodd");
              wrong += drawn !== value >= LEVEL;
              inside += drawn;
            }
            return { wrong, inside, area, loops: traceOutlines(f).length };
        }""", (grid * 255).round().byte().flatten().tolist())
    assert wrong["wrong"] == 0 and wrong["loops"] == 2
    assert abs(wrong["inside"] - wrong["area"]) < 20 and wrong["area"] > 1000


def test_the_browsers_budget_is_the_exact_optimum(library):
    generator = torch.Generator().manual_seed(1)
    macs = [231_000_000, 622_000_000, 1_011_000_000, 1_402_000_000]
    for count in (1, 2, 5):
        probs = torch.softmax(3 * torch.randn((count, 4), generator=generator), dim=1).double().tolist()
        for budget in (macs[0], 500e6, 700.5e6, 1000e6, 2000e6):
            chosen = library.evaluate("([p, m, b]) => pickWithin(budgetFront(p, m), b)", [probs, macs, budget])

            def value(assignment, probs=probs):
                return sum(math.log(row[k]) for row, k in zip(probs, assignment))

            def affordable(assignment, budget=budget, count=count):
                return sum(macs[k] for k in assignment) <= budget * count

            best = max(value(a) for a in itertools.product(range(4), repeat=count) if affordable(a))
            assert affordable(chosen) and value(chosen) == pytest.approx(best, abs=1e-9)


def test_the_browser_and_the_predictor_choose_alike(library):
    policies = pytest.importorskip("dynamask.models.rcnn.policies")
    logits = 3 * torch.randn((12, 4), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    boxes = torch.rand((12, 4), generator=torch.Generator().manual_seed(6)) * 300
    boxes[:, 2:] += boxes[:, :2]
    instances = [{"probs": p, "box": b} for p, b in zip(logits.softmax(dim=1).tolist(), boxes.tolist())]
    call = """([instances, policy, macs, budget]) => chooseSizes(instances, policy, {
        sizes: [14, 28, 56, 112], macs, budget, size: [640, 480],
        front: () => budgetFront(instances.map((one) => one.probs), macs) })"""
    expected = {"learned": policies.learned(logits), "size": policies.size_based(boxes, (480, 640)),
                "fixed:56": policies.fixed(12, 56)}
    for policy, indices in expected.items():
        assert library.evaluate(call, [instances, policy, list(MACS), 0]) == indices.tolist()
    for gmacs in (0.010, 0.0137, 0.02, 0.031):
        indices = policies.budget(logits, MACS, gmacs)
        assert library.evaluate(call, [instances, "budget", list(MACS), gmacs * 1e9]) == indices.tolist()


def test_a_hundred_instances_are_solved_at_once(library):
    probs = torch.softmax(2 * torch.randn((100, 4), generator=torch.Generator().manual_seed(2)), dim=1).tolist()
    took = library.evaluate(
        "([p, m]) => { const start = performance.now(); pickWithin(budgetFront(p, m), m[1]);"
        " return performance.now() - start; }",
        [probs, [10_071_040, 17_297_792, 24_743_712, 32_189_633]])
    assert took < 2000


def test_size_by_box_is_equation_8(library):
    for side, expected in ((0, 0), (1, 0), (99, 0), (101, 1), (199, 1), (201, 2), (399, 2), (400, 3)):
        call = "([s, n]) => sizeByBox([10, 10, 10 + s, 10 + s], 400, 400, n)"
        index = library.evaluate(call, [side, len(MASK_SIZES)])
        assert index == expected
