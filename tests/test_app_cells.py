"""One-stage weights in the app: what the handlers say, what is refused, and the page in a real browser."""

from __future__ import annotations

import base64
import csv
import dataclasses
import io
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as coco_mask
from helpers.app_fakes import fake_catalog
from helpers.small_models import finding_solo
from PIL import Image

from app import catalog, cells
from app.handlers import ExploreHandlers, find_examples
from app.uploads import opened as opened_files
from app.uploads import table_of
from dynamask.config import STRIDES, AggregationConfig
from dynamask.data.shapes import make_scene
from dynamask.evaluation.mask_quality import boundary_iou, mask_iou
from dynamask.predict import OneStagePredictor
from dynamask.structures import DynaMaskError

STATE = "document.querySelector('.dm').parentElement.dynamask"
SLOW = 60_000


@pytest.fixture(scope="module")
def predictor() -> OneStagePredictor:
    return OneStagePredictor(finding_solo(AggregationConfig(deformable=True)))


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("uploads") / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def shown(predictor, picture):
    """An explorer, the view of an upload, and its session."""
    explorer = ExploreHandlers(fake_catalog("solo", ("people",), solo=predictor), [])
    wish = {"ask": "open", "kind": "upload", "path": str(picture), "name": "photo.png", "weights": "solo"}
    text, session = explorer.answer(wish, None, picture.parent)
    return explorer, json.loads(text), session


def ask(shown, picture, **wish) -> dict:
    explorer, _, session = shown
    return json.loads(explorer.answer({"token": session.token, **wish}, session, picture.parent)[0])


def test_a_view_holds_the_masks_the_levels_and_the_cells(shown, predictor, picture):
    _, view, session = shown
    prediction = predictor(picture, score=0.05)
    assert view["family"] == "one-stage" and len(view["instances"]) == len(prediction) > 2
    assert view["levels"]["strides"] == list(STRIDES) and view["levels"]["grids"] == [8, 6, 4, 3, 2]
    assert len(view["styles"]) == len(view["macs"]) == 5 and view["image_macs"] == sum(prediction.image_macs.values())
    data, offset = np.frombuffer(zlib.decompress(base64.b64decode(view["masks"])), np.uint8), 0
    for i, one in enumerate(view["instances"]):
        level, (down, across) = int(prediction.cells.level[i]), one["cell"]
        side = view["levels"]["grids"][level]
        assert one["level"] == level and down * side + across == int(prediction.cells.cell[i])
        assert view["macs"][level] == int(prediction.macs[i])
        frame = view["levels"]["frame"]
        assert one["spot"] == pytest.approx([(across + 0.5) * frame[1] / side, (down + 0.5) * frame[0] / side])
        rows, columns = one["shape"]
        x0, y0, x1, y1 = (int(v) for v in one["box"])
        sent = data[offset : offset + rows * columns].reshape(rows, columns) > 127
        offset += rows * columns
        assert (sent == prediction.masks[i, y0:y1, x0:x1].numpy()).all()
    assert offset == len(data)
    assert "<" not in cells_text(session)


def cells_text(session) -> str:
    from app.tabs.budget_tab import curve_text

    text = curve_text(session)
    assert "one-stage" in json.loads(text)["sentence"] and "macs" not in json.loads(text)
    return text


def test_large_masks_are_thinned_out_for_the_browser(predictor):
    mask = torch.zeros(1, 900, 1200, dtype=torch.bool)
    mask[0, 100:800, 100:1100] = True
    prediction = predictor(np.zeros((90, 120, 3), dtype=np.uint8), score=1.0)
    one = torch.ones(1, dtype=torch.int64)
    found = dataclasses.replace(prediction.cells, masks=mask, level=one, cell=one)
    box = torch.tensor([[100.0, 100, 1100, 800]])
    prediction = dataclasses.replace(prediction, boxes=box, labels=one, scores=one.float(), cells=found)
    shapes, data = cells.encode_masks(cells.CellInstances.of(prediction), (900, 1200))
    assert shapes == [[224, 320]] and data == b"\xff" * (224 * 320)


def test_an_instance_is_explained_as_the_predictor_explains_it(shown, predictor, picture):
    explorer, view, session = shown
    prediction = predictor(picture, score=0.05)
    row = len(view["instances"]) - 1
    got, seen = ask(shown, picture, ask="explain", row=row), prediction.cells.explain(row)
    scale = np.array(seen.frame) / seen.mask_grid
    np.testing.assert_allclose(got["positions"], ((seen.positions.numpy() + 0.5) * scale)[:, ::-1])
    np.testing.assert_allclose(got["base"], ((seen.base.numpy() + 0.5) * scale)[:, ::-1])
    assert [tile["name"] for tile in got["tiles"]] == ["top", "left", "centre", "right", "bottom"]
    assert any(got["moved"]) and " → " in next(t["place"] for t, m in zip(got["tiles"], got["moved"]) if m)
    assert got["macs"] == int(prediction.macs[row]) and "moved by the model" in got["sentence"]
    sizes = {Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).size
             for url in [*(tile["picture"] for tile in got["tiles"]), got["mask"]]}  # fmt: skip
    assert len(sizes) == 1
    explorer._recent = cells.Recent()  # forgotten: the model runs again
    again = ask(shown, picture, ask="explain", row=row)
    assert {**again, "turn": 0} == {**got, "turn": 0}
    for wrong in (-1, len(view["instances"]), 0.5, None, "0"):
        with pytest.raises(DynaMaskError, match="instance is not usable"):
            ask(shown, picture, ask="explain", row=wrong)


def test_only_the_last_predictions_are_kept_and_no_masks(predictor, picture):
    recent, prediction = cells.Recent(), predictor(picture, score=0.05)
    for name in ("a", "b"):
        recent.put(name, prediction)
    assert recent.get("a").cells.encoded is prediction.cells.encoded and len(recent.get("a").masks) == 0
    recent.put("c", prediction)
    assert recent.get("b") is None and recent.get("a") is not None and recent.get("c") is not None
    assert len(prediction.masks) == len(prediction) > 0


def test_what_needs_a_switch_or_boxes_is_one_sentence(shown, predictor, picture, tmp_path):
    explorer, _, session = shown
    for wish in ({"ask": "draw", "boxes": [[1, 1, 20, 20]]}, {"ask": "measure", "picks": []}):
        with pytest.raises(DynaMaskError, match="needs DynaMask's own weights; solo are one-stage"):
            ask(shown, picture, **wish)
    other, opened = explorer.answer(
        {"ask": "open", "kind": "same", "keep": True, "weights": "people"}, session, picture.parent
    )
    assert "family" not in json.loads(other) and opened.levels is None
    with pytest.raises(DynaMaskError, match="choose one-stage weights"):
        explorer.answer({"ask": "explain", "token": opened.token, "row": 0}, opened, picture.parent)
    with opened_files([picture]) as found, pytest.raises(DynaMaskError, match="needs a switch"):
        list(table_of(found, predictor, "solo"))
    with pytest.raises(DynaMaskError, match="size is not usable"):
        ask(shown, picture, ask="export", what="coco", picks=[[0, 5]])


def test_exports_say_level_and_cell(shown, predictor, picture):
    _, view, _ = shown
    prediction = predictor(picture, score=0.05)
    picks = [[i, one["level"]] for i, one in enumerate(view["instances"])]
    files = {what: base64.b64decode(ask(shown, picture, ask="export", what=what, picks=picks, opacity=1.0)["data"])
             for what in ("coco", "csv", "ids", "overlay")}  # fmt: skip
    for i, result in enumerate(json.loads(files["coco"])):
        assert (coco_mask.decode(result["segmentation"]).astype(bool) == prediction.masks[i].numpy()).all()
        assert result["level"] == int(prediction.cells.level[i]) + 1 and result["cell"] == view["instances"][i]["cell"]
        assert "mask_size" not in result and result["macs"] == int(prediction.macs[i])
    rows = list(csv.DictReader(io.StringIO(files["csv"].decode())))
    assert [int(row["level"]) for row in rows] == [pick[1] + 1 for pick in picks]
    assert [int(row["stride"]) for row in rows] == [STRIDES[pick[1]] for pick in picks]
    ids = np.array(Image.open(io.BytesIO(files["ids"])))
    assert (ids[prediction.masks[0].numpy()] == 1).all() and ids.shape == (90, 120)
    overlay = Image.open(io.BytesIO(files["overlay"]))
    assert overlay.size == (120, 90)
    nothing = ask(shown, picture, ask="export", what="overlay", picks=[])
    assert Image.open(io.BytesIO(base64.b64decode(nothing["data"]))).size == (120, 90)


def test_quality_takes_every_true_shape_once(predictor):
    truth = np.zeros((2, 90, 120), dtype=bool)
    truth[0, 10:50, 10:60], truth[1, 60:80, 70:110] = True, True
    masks = np.stack([truth[0], truth[0], np.roll(truth[1], 3, axis=1)])
    masks[1, 12:14, 10:60] = False
    prediction = predictor(np.zeros((90, 120, 3), dtype=np.uint8), score=1.0)
    three = torch.ones(3, dtype=torch.int64)
    found = dataclasses.replace(prediction.cells, masks=torch.from_numpy(masks), level=three, cell=three)
    boxes = torch.zeros(3, 4)
    prediction = dataclasses.replace(prediction, boxes=boxes, labels=three, scores=three.float(), cells=found)
    judged = cells.CellInstances.of(prediction).judged((90, 120), truth)
    assert judged.mask_iou[0, 0] == 1 and np.isnan(judged.mask_iou[1, 0])  # the better score has it already
    assert judged.mask_iou[2, 0] == pytest.approx(mask_iou(truth[1], masks[2]))
    assert judged.boundary_iou[2, 0] == pytest.approx(boundary_iou(truth[1], masks[2]))


def test_the_shelf_opens_with_one_stage_weights_and_not_without_a_switch(predictor, monkeypatch):
    import dynamask.predict

    monkeypatch.setattr(dynamask.predict, "load", lambda source, device: predictor)
    assert catalog.open_catalog("any.safetensors", "cpu").first == "any"

    class Baseline:
        family = "two-stage"

        def check_switch(self, what):
            raise DynaMaskError(f"{what} needs a switch")

    monkeypatch.setattr(dynamask.predict, "load", lambda source, device: Baseline())
    with pytest.raises(DynaMaskError, match="the page needs a switch"):
        catalog.open_catalog("any.safetensors", "cpu")


def test_the_endpoints_serve_levels_and_cells(predictor, picture):
    pytest.importorskip("gradio")
    from app import api

    text = base64.b64encode(picture.read_bytes()).decode()
    got = api.cell_answer(predictor, "solo", text, "learned", None, 0.05, None, False)
    prediction = predictor(picture, score=0.05)
    assert len(got["instances"]) == len(prediction) and json.loads(json.dumps(got, allow_nan=False)) == got
    for i, one in enumerate(got["instances"]):
        assert one["level"] == int(prediction.cells.level[i]) + 1 and one["stride"] == STRIDES[one["level"] - 1]
        assert (coco_mask.decode(one["segmentation"]).astype(bool) == prediction.masks[i].numpy()).all()
        assert "mask_size" not in one and "switch_probs" not in one
    with pytest.raises(DynaMaskError, match="nothing to choose anew"):
        api.rechosen(got, "size", None)
    for options in (("size", None, 0.3, None, False), ("learned", 0.1, 0.3, None, False)):
        with pytest.raises(DynaMaskError, match="omit the policy and the budget"):
            api.cell_answer(predictor, "solo", text, *options)
    for boxes, every in (([[0, 0, 9, 9]], False), (None, True)):
        with pytest.raises(DynaMaskError, match="takes no boxes|omit all_sizes"):
            api.cell_answer(predictor, "solo", text, "learned", None, 0.3, boxes, every)


# ---- in the browser ----


@pytest.fixture(scope="module")
def address(tmp_path_factory, predictor):
    pytest.importorskip("gradio", reason="the browser test needs gradio")
    from app import ui

    folder = tmp_path_factory.mktemp("examples")
    Image.fromarray(make_scene(7, 18).image).save(folder / "first.jpg")
    coarse = AggregationConfig(neighbours="corners")
    others = {
        "solo": predictor,
        "plain": OneStagePredictor(finding_solo()),
        "coarse": OneStagePredictor(finding_solo(coarse, mask_grids=(4, 3, 2, 2, 1))),
    }
    page = ui.build(ExploreHandlers(fake_catalog("people", tuple(others), **others), find_examples(folder)))
    _, url, _ = ui.launch(page, prevent_thread_lock=True, quiet=True)
    yield url
    page.close(verbose=False)


@pytest.fixture
def page(browser, address):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(SLOW)
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("console", lambda message: page.problems.append(message.text) if message.type == "error" else None)
    page.goto(address)
    page.wait_for_selector(".dm[data-empty=false]")
    yield page
    assert page.problems == []
    page.close()


def drawn(page) -> None:
    """Wait until what was asked for before is on the page: two frames, however long a busy machine takes for them."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def use(page, name: str) -> None:
    page.select_option(".dm-weights", name)
    page.wait_for_function(f"{STATE}.view.weights === '{name}' && !{STATE}.busy")
    drawn(page)


def test_weights_are_switched_there_and_back(page):
    page.fill(".dm-score", "0.6")
    page.fill(".dm-budget", "60")
    page.click(".dm-compare")
    before = page.evaluate(f"[{STATE}.picks, {STATE}.leftPicks]")
    use(page, "solo")
    assert page.input_value(".dm-score") == "0.3" and page.locator(".dm-two:visible").count() == 0
    assert "one-stage" in page.inner_text(".dm-one-note") and page.locator(".dm-divider-row").is_hidden()
    page.fill(".dm-score", "0.06")
    drawn(page)
    shown = page.evaluate(f"{STATE}.shown.map((one) => one.level)")
    assert len(shown) > 2 and page.evaluate(f"{STATE}.picks") == shown
    assert page.locator(".dm-legend li").count() == 5
    assert f"{shown.count(1)} object" in page.locator(".dm-legend li").nth(1).inner_text()
    page.get_by_role("tab", name="Budget curve").click()
    page.wait_for_function("document.querySelector('.dt-read').textContent.includes('one-stage')")
    assert page.locator(".dt-plot").is_hidden()
    page.get_by_role("tab", name="Explore").click()
    use(page, "people")
    assert page.evaluate(f"[{STATE}.picks, {STATE}.leftPicks]") == before and page.input_value(".dm-score") == "0.6"
    assert page.locator(".dm-one:visible").count() == 0 and page.locator(".dm-legend li").count() == 4
    page.get_by_role("tab", name="Budget curve").click()
    page.wait_for_function("document.querySelectorAll('.dt-dot').length > 5")
    assert page.locator(".dt-plot").is_visible()


def test_an_object_shows_its_cell_and_its_representations(page):
    for name, tiles, words in (("solo", 7, "moved by the model"), ("plain", 3, "nothing is aggregated"),
                               ("coarse", 6, "of the coarser grid")):  # fmt: skip
        use(page, name)
        page.fill(".dm-score", "0.06")
        page.focus(".dm-canvas")
        before = page.evaluate("document.querySelector('.dm-canvas').toDataURL()")
        page.keyboard.press("ArrowRight")
        page.wait_for_selector(".dm-cell-tiles")
        assert page.locator(".dm-cell-tiles .dm-tile").count() == tiles and words in page.inner_text(".dm-why")
        page.wait_for_timeout(150)
        assert page.evaluate("document.querySelector('.dm-canvas').toDataURL()") != before
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")  # faster than the answers
        page.wait_for_function(
            f"{STATE}.shown.find((one) => one.index === {STATE}.selected)?.explanation && "
            "document.querySelector('.dm-cell-tiles')"
        )
        number = page.evaluate(f"{STATE}.selected + 1")
        assert f"Instance {number}:" in page.inner_text(".dm-why h2")
        page.keyboard.press("Escape")
        page.wait_for_selector(".dm-invite")
        assert "its cell of the grid" in page.inner_text(".dm-invite")


def test_a_link_opens_one_stage_weights_with_an_object_selected(page, browser, address):
    use(page, "solo")
    page.fill(".dm-score", "0.06")
    page.check(".dm-each")
    page.click(".dm-pick >> nth=1")
    page.wait_for_selector(".dm-cell-tiles")
    page.wait_for_function("location.hash.includes('i=2')")
    link = page.url
    assert "w=solo" in link and "c=each" in link and "p=" not in link.partition("#")[2].replace("map=", "")
    other = browser.new_page()
    other.set_default_timeout(SLOW)
    other.goto(link)
    other.wait_for_selector(".dm-cell-tiles")
    assert "Instance 2:" in other.inner_text(".dm-why h2") and other.is_checked(".dm-each")
    with other.expect_download() as download:
        other.click(".dm-menu summary")
        other.click("[data-export=coco]")
    assert all("level" in one for one in json.loads(Path(download.value.path()).read_text()))
    other.close()


def test_one_stage_weights_fit_a_phone(browser, address):
    page = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme="dark")
    page.set_default_timeout(SLOW)
    page.goto(f"{address}#w=solo&t=0.06")
    page.wait_for_selector(".dm[data-family=one-stage]")
    page.click(".dm-pick >> nth=0")
    page.wait_for_selector(".dm-cell-tiles")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for selector in (".dm-canvas", ".dm-legend", ".dm-why", ".dm-keys", ".dm-one-note"):
        box = page.locator(selector).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390
    page.close()
