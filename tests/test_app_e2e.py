"""The page in a real browser: Playwright drives Chromium, the model is a fake."""

from __future__ import annotations

import json
import shutil
import socket

import pytest
from helpers.app_fakes import MACS, FakePredictor, fake_catalog
from PIL import Image

from app.handlers import ExploreHandlers, find_examples
from dynamask.data.shapes import make_scene

playwright_api = pytest.importorskip("playwright.sync_api", reason="the browser test needs playwright")
pytest.importorskip("gradio", reason="the browser test needs gradio")

STATE = "document.querySelector('.dm').parentElement.dynamask"
FIRST_VIEW = ".dm[data-empty=false]"
SLOW = 60_000


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    from app import ui

    folder = tmp_path_factory.mktemp("examples")
    shutil.copy(find_examples()[0].path, folder / "first.jpg")
    Image.new("RGB", (90, 60), "teal").save(folder / "second.jpg")
    shapes = FakePredictor(given=make_scene(7, 18).boxes.tolist(), class_names=("__background__", "<b>gear"))
    shelf = fake_catalog("people", ("shapes", "objects"), shapes=shapes)
    page = ui.build(ExploreHandlers(shelf, find_examples(folder)))
    _, url, _ = ui.launch(page, prevent_thread_lock=True, quiet=True)
    yield url
    page.close(verbose=False)


def fresh_page(browser, address, width=1280, height=900, **context):
    page = browser.new_page(viewport={"width": width, "height": height}, **context)
    page.set_default_timeout(SLOW)
    page.requests, page.problems = [], []
    page.on("request", lambda request: page.requests.append(request.url))
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("console", lambda message: page.problems.append(message.text) if message.type == "error" else None)
    page.goto(address)
    page.wait_for_selector(FIRST_VIEW)
    return page


@pytest.fixture
def page(browser, address):
    page = fresh_page(browser, address)
    yield page
    assert page.problems == []
    page.close()


def idle(page) -> None:
    page.wait_for_function(f"!{STATE}.busy && {STATE}.view")
    page.wait_for_timeout(80)  # the next frame has been drawn


def picks(page) -> list[int]:
    page.wait_for_timeout(80)  # the next frame has been drawn
    return page.evaluate(f"{STATE}.picks")


def spot_of(page, row: int) -> tuple[float, float]:
    """Where the middle of the box of a shown instance is on the screen."""
    return tuple(
        page.evaluate(f"""() => {{
        const one = {STATE}.shown[{row}], [w, h] = {STATE}.view.view;
        const area = document.querySelector('.dm-canvas').getBoundingClientRect(), b = one.viewBox;
        return [area.left + (b[0] + b[2]) / 2 / w * area.width, area.top + (b[1] + b[3]) / 2 / h * area.height];
    }}""")
    )


def caption(page, words: str) -> None:
    page.wait_for_function("(words) => document.querySelector('.dm-caption').innerText.includes(words)", arg=words)
    idle(page)


def test_a_port_in_use_is_one_line_and_exit_code_2(monkeypatch, capsys):
    from app import catalog
    from app.__main__ import main

    monkeypatch.setattr(catalog, "open_catalog", lambda first, device: fake_catalog())
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
    assert page.locator("[role=tab]").all_inner_texts()[:4] == ["Explore", "Budget curve", "Classes", "Train"]
    for name in ("Budget curve", "Classes", "Train", "Explore"):
        page.get_by_role("tab", name=name).click()
        page.wait_for_timeout(300)
    foreign = [url for url in page.requests if not url.startswith((address, "data:", "blob:"))]
    assert foreign == []
    assert page.locator(".dm-canvas").bounding_box()["width"] > 300  # still drawn after the other tabs


def test_the_budget_is_answered_in_the_browser(page):
    before = picks(page)
    page.wait_for_timeout(500)
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
    assert "10.0 M MACs" in page.get_attribute(".dm-budget", "aria-valuetext")
    page.fill(".dm-opacity", "0.8")
    page.check(".dm-paper")
    page.check(".dm-boxes")
    page.wait_for_timeout(400)
    assert page.requests == []
    assert min(answers) > 0


def test_policies_score_classes_and_numbers(page):
    assert page.locator("[name=dm-policy][value=oracle]").is_disabled()  # no truth is known for a photograph
    for position, name in enumerate(("learned", "budget", "size", "fixed:14", "fixed:28", "fixed:56", "fixed:112")):
        page.check(f"[name=dm-policy][value='{name}']", force=True)
        chosen = picks(page)
        if position >= 3:
            assert set(chosen) == {position - 3}
            assert f"{len(chosen)} · 100 %" in page.inner_text(".dm-numbers .dm-bars")
    figures = page.inner_text(".dm-figures")
    assert "100 %" in figures and f"{32 * len(chosen)}" in figures
    page.fill(".dm-score", "0.06")
    assert len(picks(page)) == 6
    page.fill(".dm-score", "0.99")
    assert picks(page) == [] and "lower the score" in page.inner_text(".dm-table-empty")
    page.fill(".dm-score", "0.3")
    page.uncheck(".dm-class input")
    assert picks(page) == [] and "switch a class on" in page.inner_text(".dm-table-empty")
    page.check(".dm-class input")
    assert len(picks(page)) > 1


def test_an_instance_explains_itself_to_keyboard_and_pointer(page):
    page.focus(".dm-canvas")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector(".dm-tile")
    assert page.locator(".dm-tile canvas").count() == 9  # the crop, four masks, four edges
    first = page.inner_text(".dm-why")
    assert "Instance 1: person" in first and "score 0.97" in first
    assert page.locator(".dm-probabilities .dm-bar").count() == 4
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.querySelector('.dm-why').innerText.includes('Instance 2')")
    page.keyboard.press("Escape")
    page.wait_for_selector(".dm-invite")
    spot = spot_of(page, 3)
    page.mouse.move(*spot)
    tip = page.inner_text(".dm-tip")
    assert "person 0.51" in tip and "M MACs" in tip and "112:" in tip
    page.mouse.click(*spot)
    page.wait_for_function("document.querySelector('.dm-why').innerText.includes('Instance 4')")


def test_a_size_set_by_hand_moves_outline_and_budget(page):
    page.fill(".dm-budget", "60")
    learned = picks(page)
    page.click(".dm-pick >> nth=0")
    page.wait_for_selector(".dm-override")
    page.check("[name=dm-override][value='112']", force=True)
    chosen = picks(page)
    budget = MACS[0] + (MACS[3] - MACS[0]) * 60 / 200
    assert chosen[0] == 3 and sum(MACS[k] for k in chosen) <= budget * len(chosen)
    assert "set by hand" in page.inner_text(".dm-why") and chosen != learned
    assert page.evaluate("document.activeElement.value") == "112"  # the focus stays where it was
    page.check("[name=dm-policy][value='fixed:14']", force=True)
    assert picks(page) == [3] + [0] * (len(chosen) - 1)
    page.check("[name=dm-override][value='policy']", force=True)
    assert set(picks(page)) == {0}


def test_two_policies_stand_side_by_side(page):
    page.check("[name=dm-policy][value='fixed:14']", force=True)
    page.click(".dm-compare")
    page.wait_for_selector(".dm-divider-row:not([hidden])")
    text = page.inner_text(".dm-compare-text")
    assert "sizes differ" in text and text.startswith("32.0 M MACs → 10.0 M MACs")
    colours = """() => { const c = document.querySelector('.dm-canvas'), x = c.getContext('2d');
        return [0.02, 0.98].map((s) => [...x.getImageData(c.width * s, c.height / 2, 1, 1).data]); }"""
    page.focus(".dm-divider")
    for key, share in (("Home", 0), ("End", 1)):
        page.keyboard.press(key)
        page.wait_for_timeout(80)
        assert page.evaluate(f"{STATE}.divider") == share
    assert len(page.evaluate(colours)) == 2
    page.keyboard.press("Home")
    for _ in range(50):
        page.keyboard.press("ArrowRight")
    page.wait_for_timeout(80)
    area = page.locator(".dm-canvas").bounding_box()
    middle = area["y"] + area["height"] / 2
    page.mouse.move(area["x"] + area["width"] / 2, middle)
    page.mouse.down()
    page.mouse.move(area["x"] + area["width"] * 0.25, middle, steps=4)
    page.mouse.up()
    page.wait_for_timeout(80)
    assert page.evaluate(f"{STATE}.divider") == pytest.approx(0.25, abs=0.01)
    assert page.evaluate(f"{STATE}.selected") is None  # pulling selects nothing
    page.select_option(".dm-left", "size")
    page.select_option(".dm-right", "fixed:56")
    assert set(picks(page)) == {2} and page.evaluate(f"{STATE}.compare") == "size"


def test_a_box_is_drawn_by_pointer_and_by_keyboard(page):
    count = len(picks(page))
    page.click(".dm-draw")
    area = page.locator(".dm-canvas").bounding_box()
    page.mouse.move(area["x"] + 20, area["y"] + 30)
    page.mouse.down()
    page.mouse.move(area["x"] + 160, area["y"] + 190, steps=3)
    page.mouse.up()
    page.wait_for_function(f"{STATE}.view.instances.filter((one) => one.drawn).length === 1")
    idle(page)
    assert len(picks(page)) == count + 1 and "drawn by you" in page.inner_text(".dm-why")
    box = page.evaluate(f"{STATE}.view.instances.at(-1).box")
    size = page.evaluate(f"{STATE}.view.size")
    assert box[0] == pytest.approx(20 / area["width"] * size[0], abs=2)
    assert box[3] == pytest.approx(190 / area["height"] * size[1], abs=2)
    page.focus(".dm-canvas")
    page.keyboard.press("Enter")
    for key in ("Shift+ArrowRight", "Shift+ArrowRight", "Shift+ArrowDown", "Shift+ArrowDown", "Enter"):
        page.keyboard.press(key)
    page.wait_for_function(f"{STATE}.view.instances.filter((one) => one.drawn).length === 2")
    idle(page)
    page.keyboard.press("Escape")
    assert page.get_attribute(".dm-draw", "aria-pressed") == "false"
    page.click(".dm-clear-boxes")
    page.wait_for_function(f"{STATE}.view.instances.every((one) => !one.drawn)")


def test_scenes_have_truth_and_an_oracle(page):
    page.click(".dm-example[aria-label^='Scene'] >> nth=0")
    caption(page, "Shapes scene 18 of seed 7")
    assert page.input_value(".dm-weights") == "shapes"
    assert page.inner_text(".dm-class") == "<b>gear"
    page.fill(".dm-budget", "90")
    by_switch = picks(page)
    page.check("[name=dm-policy][value=oracle]", force=True)
    oracle = picks(page)
    quality = f"(picks) => picks.reduce((sum, k, i) => sum + {STATE}.shown[i].iou[k], 0)"
    assert page.evaluate(quality, oracle) >= page.evaluate(quality, by_switch)
    assert sum(MACS[k] for k in oracle) <= (MACS[0] + (MACS[3] - MACS[0]) * 0.45) * len(oracle)
    assert "boundary IoU" in page.inner_text(".dm-figures")
    page.click(".dm-pick >> nth=0")
    page.wait_for_selector(".dm-truth")
    assert page.inner_text(".dm-tiles").count("boundary") == 4
    page.fill(".dm-seed", "11")
    page.fill(".dm-difficulty", "0.5")
    page.click(".dm-scene button")
    caption(page, "Shapes scene 1 of seed 11, difficulty 0.5")
    page.click(".dm-scene button")
    caption(page, "Shapes scene 2 of seed 11, difficulty 0.5")


def test_a_link_restores_what_it_names(browser, address, page):
    page.select_option(".dm-weights", "objects")
    page.wait_for_function(f"{STATE}.view.weights === 'objects'")
    idle(page)
    page.fill(".dm-budget", "70")
    page.fill(".dm-score", "0.25")
    page.check(".dm-boxes")
    page.click(".dm-pick >> nth=1")
    page.check("[name=dm-override][value='28']", force=True)
    page.wait_for_timeout(600)
    link = page.url
    chosen = picks(page)
    assert "w=objects" in link and "e=first.jpg" in link and "p=budget" in link
    other = fresh_page(browser, link)
    other.wait_for_function(f"{STATE}.view.weights === 'objects' && !{STATE}.busy && {STATE}.overrides.size === 1")
    assert picks(other) == chosen
    assert other.evaluate(f"[{STATE}.policy, {STATE}.score, {STATE}.boxes, {STATE}.selected]") == [
        "budget",
        0.25,
        True,
        1,
    ]
    other.close()
    scene = fresh_page(browser, address + "#s=7:21:0.85&w=shapes&p=oracle&d=10,10,80,90&v=fixed:14,0.3&t=nan&i=<b>")
    scene.wait_for_function(f"{STATE}.view.key === '7:21:0.85' && !{STATE}.busy && {STATE}.compare")
    assert scene.evaluate(f"{STATE}.view.instances.at(-1).drawn")
    assert scene.evaluate(f"[{STATE}.compare, {STATE}.divider, {STATE}.score]") == ["fixed:14", 0.3, 0.5]
    assert scene.problems == []
    scene.close()


def test_measuring_and_exporting(page, tmp_path):
    page.evaluate("document.addEventListener('dynamask-changed', (event) => (window.told = event.detail))")
    page.fill(".dm-budget", "50")
    page.wait_for_timeout(500)
    told = page.evaluate("window.told")
    assert told["policy"] == "budget" and len(told["picks"]) == len(picks(page)) and told["weights"] == "people"
    page.evaluate("window.dynamask.setBudget(0.0101)")
    assert set(picks(page)) == {0}
    kinds = {"overlay": "overlay.png", "ids": "ids.png", "coco": "results.json", "csv": "instances.csv"}
    for what, ending in kinds.items():
        page.click(".dm-menu summary")
        with page.expect_download() as download:
            page.click(f"[data-export={what}]")
        assert download.value.suggested_filename == f"dynamask-first-{ending}"
        download.value.save_as(tmp_path / ending)
        idle(page)
    results = json.loads((tmp_path / "results.json").read_text())
    assert [one["mask_size"] for one in results] == [14] * len(picks(page))
    assert len((tmp_path / "instances.csv").read_text().splitlines()) == len(results) + 1
    assert Image.open(tmp_path / "overlay.png").size == tuple(page.evaluate(f"{STATE}.view.size"))


def test_a_visitors_picture_and_its_name(page, tmp_path):
    path = tmp_path / "<img src=x onerror=window.hacked=1>.png"
    Image.new("RGBA", (300, 100), (10, 20, 30, 128)).save(path)
    page.set_input_files(".dm-file", path)
    caption(page, "300 × 100 px")
    assert "onerror" in page.inner_text(".dm-caption")
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("document.querySelector('.dm-caption').children.length") == 0
    assert "e=" not in page.url.partition("#")[2]
    page.click(".dm-example >> nth=1")
    caption(page, "90 × 60 px")
    page.click(".dm-example >> nth=1")  # the same answer again
    page.wait_for_timeout(200)
    idle(page)


def test_a_picture_is_pasted_dropped_and_taken(page):
    for event, field, width in (("ClipboardEvent", "clipboardData", 70), ("DragEvent", "dataTransfer", 80)):
        page.evaluate(
            """async ([event, field, width]) => {
            const canvas = Object.assign(document.createElement("canvas"), { width, height: 40 });
            canvas.getContext("2d").fillRect(0, 0, 9, 9);
            const data = new DataTransfer();
            const blob = await new Promise((resolve) => canvas.toBlob(resolve));
            data.items.add(new File([blob], "p.png", { type: "image/png" }));
            const type = event === "DragEvent" ? "drop" : "paste";
            document.dispatchEvent(new window[event](type, { [field]: data, cancelable: true }));
        }""",
            [event, field, width],
        )
        caption(page, f"{width} × 40 px")
    page.click(".dm-webcam")
    page.wait_for_function("document.querySelector('.dm-video').videoWidth > 0")
    page.click(".dm-camera-take")
    caption(page, "webcam.png")


def test_refusals_are_sentences_and_lose_nothing(page, tmp_path):
    note, bomb, big = tmp_path / "note.png", tmp_path / "bomb.png", tmp_path / "big.png"
    note.write_text("no picture at all")
    Image.new("1", (16000, 12500)).save(bomb)
    before, words = picks(page), page.inner_text(".dm-caption")
    for path, expected in ((note, "cannot be read as a picture"), (bomb, "million pixels")):
        page.set_input_files(".dm-file", path)
        toast = page.locator("[data-testid=toast-body]").last
        toast.wait_for()
        playwright_api.expect(toast).to_contain_text(expected, timeout=SLOW)
        assert "Traceback" not in toast.inner_text()
        idle(page)
        page.locator("[data-testid=toast-close]").last.click()
        page.wait_for_function("!document.querySelector('[data-testid=toast-body]')")
    with big.open("wb") as file:
        file.truncate(300_000_000)
    page.set_input_files(".dm-file", big)
    page.wait_for_selector(".dm-alert:not([hidden])")
    assert "300 MB" in page.inner_text(".dm-alert")
    assert picks(page) == before and page.inner_text(".dm-caption") == words
    page.problems[:] = [text for text in page.problems if "status of" not in text]


def test_a_second_click_while_running_is_nothing(page):
    page.evaluate("""() => { const [a, b] = document.querySelectorAll('.dm-example');
        b.click(); a.disabled = false; a.click(); b.disabled = false; b.click(); }""")
    caption(page, "90 × 60 px")
    page.wait_for_timeout(500)
    assert "90 × 60 px" in page.inner_text(".dm-caption")


def test_a_closed_tab_in_mid_run_disturbs_nobody(browser, address, page):
    other = fresh_page(browser, address)
    other.click(".dm-example >> nth=1")
    other.close()
    page.click(".dm-example >> nth=1")
    caption(page, "90 × 60 px")


def test_a_phone_needs_no_sideways_scrolling(page):
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_timeout(200)
    page.click(".dm-compare")
    page.click(".dm-pick >> nth=0")
    page.wait_for_selector(".dm-tile")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for selector in (".dm-tools", ".dm-canvas", ".dm-divider-row", ".dm-budget", ".dm-policies", ".dm-why", ".dm-scene",
                     ".dm-table-card"):  # fmt: skip
        box = page.locator(selector).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390


def test_every_control_has_a_name(page):
    unnamed = page.evaluate("""() => [...document.querySelectorAll('.dm button, .dm input, .dm select, .dm canvas')]
        .filter((node) => !node.closest('dialog') && !node.hidden)
        .filter((node) => !(node.getAttribute('aria-label') || node.textContent.trim() || node.closest('label')
            || document.querySelector(`label[for="${node.id}"]`))).map((node) => node.outerHTML.slice(0, 80))""")
    assert unnamed == []
