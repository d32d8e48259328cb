"""The Explore tab in a real browser, with two-stage weights; the predictors are invented."""

from __future__ import annotations

import itertools
import json
import socket
from pathlib import Path

import pytest
from helpers.app_fakes import MACS, fake_catalog
from helpers.app_pages import SLOW, STATE, caption, drawn, fits, go, idle, open_page, picks, use
from PIL import Image

from app.source_pictures import find_examples

playwright_api = pytest.importorskip("playwright.sync_api", reason="the browser test needs playwright")
pytest.importorskip("gradio", reason="the browser test needs gradio")

from gradio.utils import get_upload_folder  # noqa: E402


def budget_at(step: int) -> float:
    """Mean MACs per instance at `step` of 200 between the cheapest and the finest size."""
    return MACS[0] + (MACS[3] - MACS[0]) * step / 200


def set_budget(page, step: int) -> None:
    page.evaluate(f"window.dynamask.setBudget({budget_at(step) / 1e9})")


def choose(page, policy: str) -> None:
    page.check(f"[name=dm-policy][value='{policy}']", force=True)


def set_size(page, size: str) -> None:
    page.check(f"[name=dm-override][value='{size}']", force=True)


def spot_of(page, row: int) -> tuple[float, float]:
    """Where the middle of the box of a shown instance is on the screen."""
    x, y = page.evaluate(f"""() => {{
        const [x0, y0, x1, y1] = {STATE}.shown[{row}].viewBox, [w, h] = {STATE}.view.view;
        return [(x0 + x1) / 2 / w, (y0 + y1) / 2 / h];
    }}""")
    area = page.locator(".dm-canvas").bounding_box()
    return area["x"] + x * area["width"], area["y"] + y * area["height"]


def test_a_port_in_use_is_one_line_and_exit_code_2(monkeypatch, capsys):
    from app import catalog
    from app.__main__ import main

    monkeypatch.setattr(catalog, "open_catalog", lambda first, device, backend: fake_catalog())
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit) as stop:
        main(["--port", str(taken.getsockname()[1])])
    error = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and error.startswith("dynamask: error: the page cannot be served")


def test_the_page_opens_with_an_analysed_picture(page):
    assert page.locator(".dm-table tbody tr").count() == len(picks(page)) > 1
    assert page.locator(".dm-legend li").count() == 4
    with Image.open(find_examples()[0].source) as picture:
        assert "{} × {} px".format(*picture.size) in page.inner_text(".dm-caption")
    tabs = ["Explore", "Budget curve", "Classes", "Train"]
    assert page.locator("[role=tab]").all_inner_texts()[:4] == tabs
    for name in (*tabs[1:], tabs[0]):
        go(page, name)
        page.wait_for_timeout(200)
    assert page.locator(".dm-canvas").bounding_box()["width"] > 300  # still drawn after the other tabs
    unnamed = page.evaluate("""() => [...document.querySelectorAll('.dm button, .dm input, .dm select, .dm canvas')]
        .filter((node) => !node.closest('dialog') && !node.hidden)
        .filter((node) => !(node.getAttribute('aria-label') || node.textContent.trim() || node.closest('label')
            || document.querySelector(`label[for="${node.id}"]`))).map((node) => node.outerHTML.slice(0, 80))""")
    assert unnamed == []


def test_the_budget_is_answered_in_the_browser(page):
    before = picks(page)
    page.wait_for_timeout(500)
    page.requests.clear()
    means = []
    for step in (0, 60, 120, 200):
        set_budget(page, step)
        chosen = picks(page)
        means.append(sum(MACS[k] for k in chosen) / len(chosen))
        assert means[-1] <= budget_at(step) and page.evaluate(f"{STATE}.answerMs") > 0
    assert means == sorted(means) and means[0] == MACS[0] and means[0] < means[-1]
    assert picks(page) == before  # with budget to spare the best sizes are the most probable ones
    page.focus(".dm-budget")
    page.keyboard.press("Home")
    assert set(picks(page)) == {0}
    assert "10.0 M MACs" in page.get_attribute(".dm-budget", "aria-valuetext")
    page.fill(".dm-opacity", "0.8")
    page.check(".dm-paper")
    page.check(".dm-boxes")
    page.wait_for_timeout(400)
    assert page.requests == []


def test_every_step_of_the_slider_changes_sizes_from_all_14_to_all_112(page):
    use(page, "rated")
    steps = page.evaluate(
        """() => {
        const slider = document.querySelector(".dm-budget"), state = STATE, steps = [];
        for (let step = 0; step <= Number(slider.max); step++) {
            slider.value = step;
            slider.dispatchEvent(new Event("input"));
            const sum = (value) => state.shown.reduce((total, one, i) => total + value(one, state.picks[i]), 0);
            const [cost, quality] = [sum((one, k) => state.view.macs[k]), sum((one, k) => one.values[k])];
            steps.push({ picks: [...state.picks], cost, quality });
        }
        return steps;
    }""".replace("STATE", STATE)
    )
    assert len(steps) > 10 and set(steps[0]["picks"]) == {0} and set(steps[-1]["picks"]) == {3}
    for before, after in itertools.pairwise(steps):
        assert after["picks"] != before["picks"] and after["cost"] > before["cost"]
        assert after["quality"] >= before["quality"]
    assert page.input_value(".dm-budget") == page.get_attribute(".dm-budget", "max")
    assert "100 %" in page.inner_text(".dm-budget-value")
    assert page.locator(".dm-ticks span").all_inner_texts() == ["14", "28", "56", "112"]


def test_the_predicted_quality_is_shown_and_chosen_by(page):
    use(page, "rated")
    quality = page.evaluate(f"{STATE}.shown[0].quality")
    choose(page, "quality")
    assert picks(page) == page.evaluate(f"{STATE}.shown.map((one) => one.chosen.quality)")
    assert "predicted quality" in page.inner_text(".dm-policy-note")
    assert "predicted quality, mean" in page.inner_text(".dm-figures")
    page.click(".dm-pick >> nth=0")
    page.wait_for_selector(".dm-estimate")
    low, high = (f"{quality[k][1] * 100:.0f} %" for k in (0, 3))
    assert page.inner_text(".dm-estimate").startswith(
        f"At 14 this keeps an estimated {low} of its outline, at 112 {high}"
    )
    rows = page.locator(".dm-quality tbody tr").all_inner_texts()
    assert [row.split() for row in rows] == [
        [str(size), *(f"{value:.3f}" for value in values)] for size, values in zip((14, 28, 56, 112), quality)
    ]
    go(page, "Budget curve")
    page.wait_for_function("document.querySelector('.dt-measures').innerText.includes('predicted quality')")
    assert "not measured" in page.inner_text(".dt-note")
    go(page, "Explore")
    use(page, "things")  # which predict none
    assert page.evaluate(f"{STATE}.policy") == "learned" and page.locator(".dm-estimate").count() == 0


def test_policies_score_classes_and_numbers(page):
    assert page.locator("[name=dm-policy][value=oracle]").is_disabled()  # a photograph has no ground truth
    assert page.locator("[name=dm-policy][value=quality]").is_disabled()  # these weights predict none
    assert "No budget" in page.inner_text(".dm-gauge-text")
    for position, name in enumerate(("learned", "budget", "size", "fixed:14", "fixed:28", "fixed:56", "fixed:112")):
        choose(page, name)
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


def test_an_instance_shows_its_details_to_keyboard_and_pointer(page):
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
    page.mouse.move(*spot_of(page, 3))
    tip = page.inner_text(".dm-tip")
    assert "person 0.51" in tip and "M MACs" in tip and "112:" in tip
    page.mouse.click(*spot_of(page, 3))
    page.wait_for_function("document.querySelector('.dm-why').innerText.includes('Instance 4')")


def test_a_size_set_by_hand_moves_outline_and_budget(page):
    set_budget(page, 60)
    before = picks(page)
    page.click(".dm-pick >> nth=0")
    page.wait_for_selector(".dm-override")
    set_size(page, "112")
    chosen = picks(page)
    assert chosen[0] == 3 and sum(MACS[k] for k in chosen) <= budget_at(60) * len(chosen)
    assert "set by hand" in page.inner_text(".dm-why") and chosen != before
    assert "At 112 the model computes 2509 of 12544 cells (20 %)" in page.inner_text(".dm-why")
    assert "40 % at 56 and 20 % at 112 are computed" in page.text_content(".dm-measured")
    assert page.evaluate("document.activeElement.value") == "112"  # the focus stays where it was
    choose(page, "fixed:14")
    assert picks(page) == [3] + [0] * (len(chosen) - 1)
    set_size(page, "policy")
    assert set(picks(page)) == {0}


def test_two_policies_stand_side_by_side(page):
    choose(page, "fixed:14")
    page.click(".dm-compare")
    page.wait_for_selector(".dm-divider-row:not([hidden])")
    text = page.inner_text(".dm-compare-text")
    assert "sizes differ" in text and text.startswith("32.0 M MACs → 10.0 M MACs")
    page.focus(".dm-divider")
    for key, share in (("Home", 0), ("End", 1)):
        page.keyboard.press(key)
        assert page.evaluate(f"{STATE}.divider") == share
    page.fill(".dm-divider", "50")
    drawn(page)
    area = page.locator(".dm-canvas").bounding_box()
    middle = area["y"] + area["height"] / 2
    page.mouse.move(area["x"] + area["width"] / 2, middle)
    page.mouse.down()
    page.mouse.move(area["x"] + area["width"] * 0.25, middle, steps=4)
    page.mouse.up()
    drawn(page)
    assert page.evaluate(f"{STATE}.divider") == pytest.approx(0.25, abs=0.01)
    assert page.evaluate(f"{STATE}.selected") is None  # moving the divider selects nothing
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
    box, size = page.evaluate(f"[{STATE}.view.instances.at(-1).box, {STATE}.view.size]")
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


def test_scenes_have_ground_truth_and_an_oracle(page):
    page.click(".dm-example[aria-label^='Scene'] >> nth=0")
    caption(page, "Shapes scene 18 of seed 7")
    assert page.input_value(".dm-weights") == "shapes" and page.inner_text(".dm-class") == "<b>gear"
    set_budget(page, 90)
    by_switch = picks(page)
    choose(page, "oracle")
    oracle = picks(page)
    quality = f"(picks) => picks.reduce((sum, k, i) => sum + {STATE}.shown[i].iou[k], 0)"
    assert page.evaluate(quality, oracle) >= page.evaluate(quality, by_switch)
    assert sum(MACS[k] for k in oracle) <= budget_at(90) * len(oracle)
    assert "boundary IoU" in page.inner_text(".dm-figures")
    page.click(".dm-pick >> nth=0")
    page.wait_for_selector(".dm-truth")
    assert page.inner_text(".dm-tiles").count("boundary") == 4
    page.fill(".dm-seed", "11")
    page.fill(".dm-difficulty", "0.5")
    for number in (1, 2):
        page.click(".dm-scene button")
        caption(page, f"Shapes scene {number} of seed 11, difficulty 0.5")


def test_a_link_restores_what_it_names(app_context, app_address, page):
    use(page, "mine")
    set_budget(page, 70)
    page.fill(".dm-score", "0.25")
    page.check(".dm-boxes")
    page.click(".dm-pick >> nth=1")
    set_size(page, "28")
    page.wait_for_function("location.hash.includes('f=')")
    link, chosen = page.url, picks(page)
    assert "w=mine" in link and "e=first.jpg" in link and "p=budget" in link
    other = open_page(app_context, link)
    other.wait_for_function(f"{STATE}.view.weights === 'mine' && !{STATE}.busy && {STATE}.overrides.size === 1")
    assert picks(other) == chosen
    restored = other.evaluate(f"[{STATE}.policy, {STATE}.score, {STATE}.boxes, {STATE}.selected]")
    assert restored == ["budget", 0.25, True, 1]
    other.evaluate("location.hash = '#s=7:21:0.85&w=shapes&p=oracle&d=10,10,80,90&v=fixed:14,0.3&t=nan&i=<b>'")
    other.wait_for_function(f"{STATE}.view.key === '7:21:0.85' && !{STATE}.busy && {STATE}.compare")
    assert other.evaluate(f"{STATE}.view.instances.at(-1).drawn")
    assert other.evaluate(f"[{STATE}.compare, {STATE}.divider, {STATE}.score]") == ["fixed:14", 0.3, 0.5]
    assert other.problems == []
    other.close()


def test_measuring_exporting_and_what_other_tabs_learn(page, tmp_path):
    page.evaluate("document.addEventListener('dynamask-changed', (event) => (window.setting = event.detail))")
    set_budget(page, 50)
    page.wait_for_function("window.setting?.policy === 'budget'")
    setting = page.evaluate("window.setting")
    assert len(setting["picks"]) == len(picks(page)) and setting["weights"] == "things"
    page.evaluate("window.dynamask.setBudget(0.0101)")
    assert set(picks(page)) == {0}
    endings = {"overlay": "overlay.png", "ids": "ids.png", "coco": "results.json", "csv": "instances.csv"}
    for what, ending in endings.items():
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


def test_an_uploaded_picture_and_its_name(page, tmp_path):
    path = tmp_path / "<img src=x onerror=window.hacked=1>.png"
    Image.new("RGBA", (300, 100), (10, 20, 30, 128)).save(path)
    page.set_input_files(".dm-file", path)
    caption(page, "300 × 100 px")
    assert "onerror" in page.inner_text(".dm-caption") and page.evaluate("window.hacked") is None
    assert page.evaluate("document.querySelector('.dm-caption').children.length") == 0
    page.wait_for_function("!location.hash.includes('e=')")
    for _ in range(2):  # the same answer twice is an answer, too
        page.click(".dm-example >> nth=1")
        caption(page, "90 × 60 px")


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


def test_visitors_do_not_reach_each_others_pictures(app_context, app_address, page, tmp_path):
    Image.new("RGB", (310, 100)).save(tmp_path / "secret.png")
    page.set_input_files(".dm-file", tmp_path / "secret.png")
    caption(page, "310 × 100 px")
    token = page.evaluate(f"{STATE}.view.token")
    other = open_page(app_context, app_address)
    assert "secret" not in other.content()
    other.evaluate(f"{STATE}.view.token = '{token}'")
    other.click(".dm-menu summary")
    other.click("[data-export=coco]")
    toast = other.locator("[data-testid=toast-body]").last
    playwright_api.expect(toast).to_contain_text("no longer kept", timeout=SLOW)
    folder = Path(get_upload_folder())
    for path in (folder, folder / "secret.png", folder / ".." / ".." / "etc" / "passwd", Path("/etc/passwd")):
        assert other.request.get(f"{app_address}gradio_api/file={path}").status in (403, 404)
    other.close()


def test_one_request_at_a_time_and_a_closed_page_disturbs_nobody(app_context, app_address, page):
    other = open_page(app_context, app_address)
    other.click(".dm-example >> nth=1")
    other.close()
    page.evaluate("""() => { const [a, b] = document.querySelectorAll('.dm-example');
        b.click(); a.disabled = false; a.click(); b.disabled = false; b.click(); }""")
    caption(page, "90 × 60 px")
    page.wait_for_timeout(500)
    assert "90 × 60 px" in page.inner_text(".dm-caption")


def test_a_phone_needs_no_sideways_scrolling(page):
    page.set_viewport_size({"width": 390, "height": 844})
    page.click(".dm-compare")
    page.click(".dm-pick >> nth=0")
    page.wait_for_selector(".dm-tile")
    drawn(page)
    assert fits(page, ".dm-tools", ".dm-canvas", ".dm-divider-row", ".dm-budget", ".dm-policies", ".dm-scene")
    assert fits(page, ".dm-why", ".dm-table-card")
