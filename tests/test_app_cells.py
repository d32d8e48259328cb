"""One-stage weights in the app: messages, downloads, refusals, and the page in a real browser."""

from __future__ import annotations

import base64
import csv
import io
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as coco_mask
from helpers.app_fakes import ask, exported, fake_catalog, open_upload
from helpers.app_pages import STATE, fits, go, open_page, picks, use
from helpers.small_models import finding_solo, tiny_condinst
from PIL import Image

from app import catalog
from app.cell_explanations import RecentPredictions
from app.handlers import ExploreHandlers
from app.messages import MASK_SIDE, view_message
from app.session import Session, SessionInstances
from app.source_pictures import SourcePicture
from app.tabs.budget_tab import curve_text
from app.uploads import analyse, unpacked
from dynamask.config import STRIDES, AggregationConfig
from dynamask.evaluation.mask_quality import boundary_iou, mask_iou
from dynamask.predict import Predictor, predictor_of
from dynamask.structures import DynaMaskError


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return predictor_of(finding_solo(AggregationConfig(deformable=True)))


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("uploads") / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def prediction(predictor, picture):
    return predictor(picture, score=0.05)


@pytest.fixture
def shown(predictor, picture):
    """Handlers, the view of an upload, and its session."""
    handlers = ExploreHandlers(fake_catalog("solo", ("things",), solo=predictor), [])
    return handlers, *open_upload(handlers, picture, weights="solo")


def with_masks(predictor: Predictor, masks: np.ndarray, boxes: list):
    """A prediction of given masks (R, H, W) in given boxes."""
    prediction = predictor(np.zeros((90, 120, 3), dtype=np.uint8), score=1.0)
    ones = torch.ones(len(masks), dtype=torch.int64)
    prediction.boxes, prediction.labels, prediction.scores = torch.tensor(boxes).float(), ones, ones.float()
    cells = prediction.cells
    prediction.cells = type(cells)(ones, ones, torch.from_numpy(masks), cells.encoded, cells.model)
    prediction.image_size = masks.shape[1:]
    return prediction


def sent_masks(view: dict) -> list[np.ndarray]:
    """The masks of a view (bytes) by instance."""
    data, masks = np.frombuffer(zlib.decompress(base64.b64decode(view["masks"])), np.uint8), []
    for one in view["instances"]:
        rows, columns = one["shape"]
        masks.append(data[: rows * columns].reshape(rows, columns))
        data = data[rows * columns :]
    assert not len(data)
    return masks


def test_a_view_holds_the_masks_the_levels_and_the_cells(shown, prediction):
    _, view, session = shown
    levels = view["levels"]
    assert view["family"] == "one-stage" and len(view["instances"]) == len(prediction) > 2
    assert levels["strides"] == list(STRIDES) and levels["grids"] == [8, 6, 4, 3, 2]
    assert len(view["styles"]) == len(view["macs"]) == 5 and view["image_macs"] == sum(prediction.image_macs.values())
    for i, (one, mask) in enumerate(zip(view["instances"], sent_masks(view), strict=True)):
        level, (down, across) = int(prediction.cells.level[i]), one["cell"]
        side = levels["grids"][level]
        assert one["level"] == level and down * side + across == int(prediction.cells.cell[i])
        assert view["macs"][level] == int(prediction.macs[i])
        height, width = levels["frame"]
        assert one["spot"] == pytest.approx([(across + 0.5) * width / side, (down + 0.5) * height / side])
        x0, y0, x1, y1 = (int(v) for v in one["box"])
        assert ((mask > 127) == prediction.masks[i, y0:y1, x0:x1].numpy()).all()
    curve = curve_text(session)
    assert "one-stage" in json.loads(curve)["sentence"] and "macs" not in json.loads(curve) and "<" not in curve


def test_large_masks_are_shrunk_for_the_browser(predictor):
    mask = np.zeros((1, 900, 1200), dtype=bool)
    mask[0, 100:800, 100:1100] = True
    prediction = with_masks(predictor, mask, [[100, 100, 1100, 800]])
    picture = SourcePicture("own", "", "x", "", b"")
    session = Session.of("1", "solo", picture, predictor, prediction)
    (sent,) = sent_masks(json.loads(view_message(session, np.zeros((900, 1200, 3), np.uint8))))
    assert sent.shape == (224, MASK_SIDE) and (sent == 255).all()


def test_an_instance_is_explained_as_the_predictor_explains_it(shown, prediction):
    handlers, view, session = shown
    row = len(view["instances"]) - 1
    (got, _), seen = ask(handlers, session, ask="explain", row=row), prediction.cells.explain(row)
    scale = np.array(seen.frame) / seen.mask_grid
    np.testing.assert_allclose(got["positions"], ((seen.positions.numpy() + 0.5) * scale)[:, ::-1])
    np.testing.assert_allclose(got["base"], ((seen.base.numpy() + 0.5) * scale)[:, ::-1])
    assert [tile["name"] for tile in got["tiles"]] == ["top", "left", "centre", "right", "bottom"]
    assert any(got["moved"]) and " → " in next(t["place"] for t, m in zip(got["tiles"], got["moved"]) if m)
    assert got["macs"] == int(prediction.macs[row]) and "moved by the model" in got["sentence"]
    urls = [*(tile["picture"] for tile in got["tiles"]), got["mask"]]
    assert len({Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).size for url in urls}) == 1
    handlers._recent = RecentPredictions()  # dropped: the model runs again
    again, _ = ask(handlers, session, ask="explain", row=row)
    assert {**again, "turn": 0} == {**got, "turn": 0}
    for wrong in (-1, len(view["instances"]), 0.5, None, "0"):
        with pytest.raises(DynaMaskError, match="instance .* is not usable"):
            ask(handlers, session, ask="explain", row=wrong)


def test_only_the_last_predictions_are_kept_and_no_masks(prediction):
    recent = RecentPredictions()
    for name in ("a", "b"):
        recent.put(name, prediction)
    assert recent.get("a").cells.encoded is prediction.cells.encoded and len(recent.get("a").masks) == 0
    recent.put("c", prediction)
    assert recent.get("b") is None and recent.get("a") is not None and recent.get("c") is not None
    assert len(prediction.masks) == len(prediction) > 0


def test_what_needs_a_switch_or_boxes_is_refused(shown, predictor, picture):
    handlers, _, session = shown
    for request in ({"ask": "draw", "boxes": [[1, 1, 20, 20]]}, {"ask": "measure", "picks": []}):
        with pytest.raises(DynaMaskError, match="needs two-stage weights, and solo are one-stage"):
            ask(handlers, session, **request)
    with pytest.raises(DynaMaskError, match="size .* is not usable"):
        exported(handlers, session, "coco", [[0, 5]])
    other, opened = ask(handlers, session, ask="open", kind="same", keep=True, weights="things")
    assert "family" not in other and opened.levels is None
    with pytest.raises(DynaMaskError, match="choose one-stage weights"):
        ask(handlers, opened, ask="explain", row=0)
    with unpacked([picture]) as data, pytest.raises(DynaMaskError, match="needs a switch"):
        list(analyse(data, predictor, "solo"))


def test_downloads_hold_level_and_cell(shown, prediction):
    handlers, view, session = shown
    picks = [[i, one["level"]] for i, one in enumerate(view["instances"])]
    files = {what: exported(handlers, session, what, picks)[1] for what in ("coco", "csv", "ids", "overlay")}
    for one, mask, result in zip(view["instances"], prediction.masks, json.loads(files["coco"]), strict=True):
        assert (coco_mask.decode(result["segmentation"]).astype(bool) == mask.numpy()).all()
        assert result["level"] == one["level"] + 1 and result["cell"] == one["cell"] and "mask_size" not in result
    rows = list(csv.DictReader(io.StringIO(files["csv"].decode())))
    assert [int(row["level"]) for row in rows] == [pick[1] + 1 for pick in picks]
    assert [int(row["stride"]) for row in rows] == [STRIDES[pick[1]] for pick in picks]
    assert [int(row["macs"]) for row in rows] == prediction.macs.tolist()
    ids = np.array(Image.open(io.BytesIO(files["ids"])))
    assert (ids[prediction.masks[0].numpy()] == 1).all() and ids.shape == (90, 120)
    for overlay in (files["overlay"], exported(handlers, session, "overlay", [])[1]):
        assert Image.open(io.BytesIO(overlay)).size == (120, 90)


def test_quality_takes_every_true_shape_once(predictor):
    truth = np.zeros((2, 90, 120), dtype=bool)
    truth[0, 10:50, 10:60], truth[1, 60:80, 70:110] = True, True
    masks = np.stack([truth[0], truth[0], np.roll(truth[1], 3, axis=1)])
    masks[1, 12:14, 10:60] = False
    compared = SessionInstances.of(with_masks(predictor, masks, [[0, 0, 0, 0]] * 3)).compared(truth)
    assert compared.mask_iou[0, 0] == 1 and np.isnan(compared.mask_iou[1, 0])  # the better score has it already
    assert compared.mask_iou[2, 0] == pytest.approx(mask_iou(truth[1], masks[2]))
    assert compared.boundary_iou[2, 0] == pytest.approx(boundary_iou(truth[1], masks[2]))
    assert np.isnan(compared.compared(truth[:0]).mask_iou[1, 0])


def test_the_page_opens_with_one_stage_weights_and_not_without_a_switch(predictor, monkeypatch):
    import dynamask.predict

    monkeypatch.setattr(dynamask.predict, "load", lambda source, device, backend: predictor)
    assert catalog.open_catalog("any.safetensors", "cpu").first == "any"

    class Baseline:
        mask_sizes = (28,)

        def check_switch(self, feature):
            raise DynaMaskError(f"{feature} needs a switch")

    monkeypatch.setattr(dynamask.predict, "load", lambda source, device, backend: Baseline())
    with pytest.raises(DynaMaskError, match="the page needs a switch"):
        catalog.open_catalog("any.safetensors", "cpu")
    monkeypatch.setattr(dynamask.predict, "load", lambda source, device, backend: predictor_of(tiny_condinst()))
    with pytest.raises(DynaMaskError, match="CondInst has none"):
        catalog.open_catalog("any.safetensors", "cpu")


def test_the_endpoints_serve_levels_and_cells(predictor, prediction):
    api = pytest.importorskip("app.api", reason="the endpoints need gradio")
    got = api.answer_of(prediction, predictor, "solo", False)
    assert len(got["instances"]) == len(prediction) and json.loads(json.dumps(got, allow_nan=False)) == got
    for i, one in enumerate(got["instances"]):
        assert one["level"] == int(prediction.cells.level[i]) + 1 and one["stride"] == STRIDES[one["level"] - 1]
        assert (coco_mask.decode(one["segmentation"]).astype(bool) == prediction.masks[i].numpy()).all()
        assert "mask_size" not in one and "switch_probs" not in one
    with pytest.raises(DynaMaskError, match="nothing to choose anew"):
        api.reselected(got, "size", None)
    for choice in (("size", None), ("learned", 0.1)):
        with pytest.raises(DynaMaskError, match="omit the policy and the budget"):
            api.checked_options(predictor, *choice, 0.3, None, False)


# ---- in the browser ----


def test_weights_are_switched_there_and_back(page):
    page.fill(".dm-score", "0.6")
    page.press(".dm-budget", "Home")
    page.click(".dm-compare")
    before = page.evaluate(f"[{STATE}.picks, {STATE}.leftPicks]")
    use(page, "solo")
    assert page.input_value(".dm-score") == "0.3" and page.locator(".dm-two:visible").count() == 0
    assert "one-stage" in page.inner_text(".dm-one-note") and page.locator(".dm-divider-row").is_hidden()
    page.fill(".dm-score", "0.06")
    levels = picks(page)
    assert len(levels) > 2 and page.evaluate(f"{STATE}.shown.map((one) => one.level)") == levels
    assert page.locator(".dm-legend li").count() == 5
    assert f"{levels.count(1)} object" in page.locator(".dm-legend li").nth(1).inner_text()
    go(page, "Budget curve")
    page.wait_for_function("document.querySelector('.dt-read').textContent.includes('one-stage')")
    assert page.locator(".dt-plot").is_hidden()
    go(page, "Explore")
    use(page, "things")
    assert page.evaluate(f"[{STATE}.picks, {STATE}.leftPicks]") == before and page.input_value(".dm-score") == "0.6"
    assert page.locator(".dm-one:visible").count() == 0 and page.locator(".dm-legend li").count() == 4
    go(page, "Budget curve")
    page.wait_for_function("document.querySelectorAll('.dt-dot').length > 5")
    assert page.locator(".dt-plot").is_visible() and page.inner_text(".dt-read") == ""


@pytest.mark.parametrize(
    ("name", "tiles", "words"),
    [("solo", 7, "moved by the model"), ("plain", 3, "nothing is aggregated"), ("coarse", 6, "of the coarser grid")],
)
def test_an_object_shows_its_cell_and_its_representations(page, name, tiles, words):
    use(page, name)
    page.fill(".dm-score", "0.06")
    page.focus(".dm-canvas")
    before = page.evaluate("document.querySelector('.dm-canvas').toDataURL()")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector(".dm-cell-tiles")
    assert page.locator(".dm-cell-tiles .dm-tile").count() == tiles and words in page.inner_text(".dm-why")
    page.wait_for_function("(before) => document.querySelector('.dm-canvas').toDataURL() !== before", arg=before)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")  # faster than the answers
    page.wait_for_function(
        f"{STATE}.shown.find((one) => one.index === {STATE}.selected)?.explanation && "
        "document.querySelector('.dm-cell-tiles')"
    )
    assert f"Instance {page.evaluate(f'{STATE}.selected + 1')}:" in page.inner_text(".dm-why h2")
    page.keyboard.press("Escape")
    page.wait_for_selector(".dm-invite")
    assert "its cell of the grid" in page.inner_text(".dm-invite")


def test_a_link_opens_one_stage_weights_on_a_phone_with_an_object_selected(app_context, app_address, page):
    use(page, "solo")
    page.fill(".dm-score", "0.06")
    page.check(".dm-each")
    page.click(".dm-pick >> nth=1")
    page.wait_for_function("location.hash.includes('i=2')")
    assert "w=solo" in page.url and "c=each" in page.url and "&p=" not in page.url
    other = open_page(app_context, page.url)
    other.set_viewport_size({"width": 390, "height": 844})
    other.wait_for_selector(".dm-cell-tiles")
    assert "Instance 2:" in other.inner_text(".dm-why h2") and other.is_checked(".dm-each")
    assert fits(other, ".dm-canvas", ".dm-legend", ".dm-why", ".dm-keys", ".dm-one-note")
    with other.expect_download() as download:
        other.click(".dm-menu summary")
        other.click("[data-export=coco]")
    assert all("level" in one for one in json.loads(Path(download.value.path()).read_text()))
    other.close()
