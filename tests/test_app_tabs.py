"""Budget curve, Classes and Train: what they compute, and how they behave in a real browser."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers.app_fakes import MACS, FakePredictor
from helpers.app_pages import fits, go, open_page
from helpers.small_models import tiny_model
from PIL import Image

from app import class_table, uploads
from app.class_table import bundled_tables, csv_text, detected_rows, ideal, make_table, own_rows, predicted
from app.quality_curve import budget_curve, checked_rows
from app.session import Session, SessionInstances
from app.source_pictures import SourcePicture
from app.uploads import analyse, unpacked
from dynamask.data.shapes import ShapesDataset, make_scene
from dynamask.data.shapes.dataset import export
from dynamask.predict import Predictor, predictor_of
from dynamask.structures import MASK_SIZES, DynaMaskError


def session_of(probs: np.ndarray, quality: np.ndarray | None = None) -> Session:
    """A session of instances with given probabilities (R, 4) and, as with ground truth, qualities (R, 4)."""
    count = len(probs)
    table = np.full((count, 4), math.nan) if quality is None else quality
    instances = SessionInstances(
        boxes=np.tile([0.0, 0.0, 8.0, 8.0], (count, 1)),
        labels=np.ones(count, np.int64),
        names=["person"] * count,
        scores=np.ones(count),
        drawn=np.zeros(count, bool),
        mask_iou=table,
        boundary_iou=table**2,
        grids=[],
        switch_probs=probs,
    )
    picture = SourcePicture("scene", "", "<i>x", "", b"", None if quality is None else np.zeros((1, 8, 8), bool))
    return Session("1", "people", picture, (8, 8), (1,), MACS, 0, 0, {}, instances)


def some(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (R, 4) and qualities (R, 4)."""
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.ones(4), count), np.sort(rng.random((count, 4)), axis=1)


# ---- the curve ----


def test_every_point_is_the_exact_optimum_of_its_budget():
    probs, quality = some(4)
    data = budget_curve(session_of(probs, quality), points=9)
    assert [measure["key"] for measure in data["measures"]] == ["boundary_iou", "mask_iou", "probability"]
    every = list(itertools.product(range(4), repeat=4))
    mask = data["measures"][1]
    for line, table in (("curve", np.log(probs)), ("oracle", quality)):
        for point in mask[line]:
            fitting = [c for c in every if sum(MACS[k] for k in c) <= point["budget"] * 4 + 1e-9]
            best = max(fitting, key=lambda c, table=table: sum(table[i, k] for i, k in enumerate(c)))
            assert point["macs"] <= point["budget"] + 1e-9
            assert point["value"] == pytest.approx(np.mean([quality[i, k] for i, k in enumerate(best)]))
            assert sum(point["shares"]) == pytest.approx(1)
    assert all(o["value"] >= c["value"] - 1e-9 for o, c in zip(mask["oracle"][-1:], mask["curve"][-1:]))
    assert mask["curve"][0]["macs"] == MACS[0] and mask["fixed"][3]["value"] == pytest.approx(quality[:, 3].mean())
    assert mask["learned"]["value"] == pytest.approx(quality[np.arange(4), probs.argmax(1)].mean())
    boundary = data["measures"][0]
    assert boundary["values"]["2"] == pytest.approx((quality[2] ** 2).tolist())


def test_without_truth_the_measure_is_named_a_probability():
    probs, _ = some(3)
    data = json.loads(json.dumps(budget_curve(session_of(probs)), allow_nan=False))
    (measure,) = data["measures"]
    assert measure["key"] == "probability" and "probability" in measure["axis"]
    assert "oracle" not in measure and "random" not in measure and data["truth"] is False
    assert measure["fixed"][1]["value"] == pytest.approx(probs[:, 1].mean())
    certain = np.eye(4)[[0, 3]]  # probabilities of zero have a logarithm too
    assert budget_curve(session_of(certain))["measures"][0]["learned"]["value"] == 1.0


def test_instances_without_truth_and_hidden_ones_do_not_count():
    probs, quality = some(5, 1)
    quality[3] = math.nan
    data = budget_curve(session_of(probs, quality), [4, 3, 0])
    assert data["instances"] == 3 and data["measures"][0]["known"] == 2
    assert set(data["measures"][0]["values"]) == {"0", "4"} and set(data["measures"][2]["values"]) == {"0", "3", "4"}
    assert budget_curve(session_of(probs, quality), [3])["measures"][0]["key"] == "probability"
    assert budget_curve(session_of(probs), [])["measures"] == []
    assert budget_curve(session_of(np.zeros((0, 4))))["measures"] == []


@pytest.mark.parametrize("shown", [[5], [-1], [0.0], ["0"], [True], "01", {"0": 1}, [None], 3])
def test_instances_of_another_picture_are_refused(shown):
    with pytest.raises(DynaMaskError, match="choose the picture again"):
        checked_rows(shown, 5)


# ---- classes ----


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return predictor_of(tiny_model(class_names=ShapesDataset(1).class_names))


def last(steps):
    return [*steps][-1]


def test_a_table_holds_what_classes_get_and_need(predictor):
    dataset = ShapesDataset(4, seed=3)
    _, needs = last(ideal(dataset.coco))
    done, found = last(predicted(predictor, dataset, range(4)))
    macs = predictor.costs.macs_per_instance
    table = make_table(own_rows(found, dataset), needs, "tiny", "four scenes", 4, "gt", macs)
    truth = [dataset.target(i) for i in range(4)]
    counts: dict[str, int] = {}
    for label in np.concatenate([t["labels"] for t in truth]).tolist():
        counts[dataset.class_names[label]] = counts.get(dataset.class_names[label], 0) + 1
    assert done == 4 and {one["name"]: one["instances"] for one in table["classes"]} == counts
    assert table["instances"] == sum(counts.values()) == len(found.results)
    assert table["macs"] == pytest.approx(np.mean([macs[k] for k in found.choice]))
    for one in table["classes"]:
        assert sum(one["shares"]) == pytest.approx(1) and one["needs"]["instances"] == one["instances"]
        kept = one["needs"]["boundary_iou"]
        fitting = [size for size, value in zip(MASK_SIZES, kept) if value >= 0.95]
        assert one["needs"]["needed_size_boundary"] == (fitting[0] if fitting else None)
    json.dumps(table, allow_nan=False)


def test_csv_has_a_row_for_each_class_and_no_formulas():
    rows = detected_rows([("=HYPERLINK(1)", 0), ("cat", 3), ("cat", 1)])
    table = make_table(rows, None, "w", "d", 1, "detected", MACS)
    read = {row["class"]: row for row in csv.DictReader(io.StringIO(csv_text(table)))}
    assert set(read) == {"'=HYPERLINK(1)", "cat"} and read["cat"]["instances"] == "2"
    assert read["cat"]["share_28"] == "0.5" and read["cat"]["ideal_mask_iou_14"] == ""
    assert table["macs"] == pytest.approx((10e6 + 32e6 + 17e6) / 3)
    with pytest.raises(DynaMaskError, match="no object"):
        make_table([], None, "w", "d", 1, "detected")


def test_bundled_tables_are_read_and_broken_ones_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(class_table, "checkpoint_dir", lambda: tmp_path)
    monkeypatch.setattr(class_table, "list_bundled", lambda: {"a": {}, "b": {}, "c": {}})
    good = make_table(detected_rows([("cat", 3)]), None, "a", "d", 1, "detected", MACS)
    (tmp_path / "a.classes.json").write_text(json.dumps(good))
    (tmp_path / "b.classes.json").write_text("{")
    assert bundled_tables() == {"a": good}


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("data") / "shapes"
    export(out, 3, 5, (96, 128))
    return out


def zipped(folder: Path, path: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.*")):
            archive.write(file, prefix + str(file.relative_to(folder)))
    return path


def work(files, predictor) -> tuple[list[str], dict]:
    with unpacked(files) as found:
        steps = list(analyse(found, predictor, "tiny"))
        assert found.folder.is_dir()
    assert not found.folder.exists()
    return [words for words, _ in steps], steps[-1][1]


def test_a_zip_of_pictures_and_annotations(exported, predictor, tmp_path):
    words, table = work([zipped(exported, tmp_path / "a.zip", "some/where/")], predictor)
    assert table["boxes"] == "gt" and table["pictures"] == 3 and table["classes"][0]["needs"]
    assert words[0] == "Ideal masks: picture 1 of 3" and "Masks in true boxes: picture 3 of 3" in words


def test_annotations_alone_and_pictures_alone(exported, predictor):
    _, needs = work([exported / "annotations.json"], predictor)
    assert needs["boxes"] is None and needs["macs"] is None and all(one["shares"] is None for one in needs["classes"])
    assert needs["instances"] == len(json.loads((exported / "annotations.json").read_text())["annotations"])
    _, both = work([exported / "annotations.json", exported / "images" / "000000.png"], predictor)
    assert both["pictures"] == 1 and both["boxes"] == "gt"
    low = FakePredictor(count=3, class_names=("__background__", "cat"))
    with unpacked(sorted((exported / "images").iterdir())) as found:
        assert found.coco is None and [path.name for path in found.pictures][0] == "000000.png"
        assert low.class_names[1] == "cat" and len(found.pictures) == 3


def test_what_cannot_be_used_is_one_sentence(exported, predictor, tmp_path, monkeypatch):
    (tmp_path / "bad.zip").write_bytes(b"PK no zip")
    (tmp_path / "note.txt").write_text("hello")
    (tmp_path / "no.json").write_text('{"images": []}')
    (tmp_path / "photo.png").write_text("no picture")
    other = {"images": [{"id": 1, "file_name": "other.png", "width": 5, "height": 5}], "annotations": [],
             "categories": [{"id": 1, "name": "cat"}]}  # fmt: skip
    (tmp_path / "other.json").write_text(json.dumps(other))
    cases = [
        ([], "no file was uploaded"),
        ([tmp_path / "bad.zip"], "zip cannot be read"),
        ([tmp_path / "note.txt"], "no picture and no COCO JSON"),
        ([tmp_path / "no.json"], "not usable COCO JSON"),
        ([tmp_path / "photo.png"], "cannot be read as a picture"),
        ([tmp_path / "no.json", tmp_path / "other.json"], "more than one JSON"),
        ([tmp_path / "other.json", exported / "images" / "000000.png"], "name none of the uploaded pictures"),
    ]
    for files, words in cases:
        with pytest.raises(DynaMaskError, match=words) as refused:
            work(files, predictor)
        assert "dynamask-" not in str(refused.value) and "\n" not in str(refused.value)
    monkeypatch.setattr(uploads, "MAX_BYTES", 2000)
    for files in ([zipped(exported, tmp_path / "big.zip")], [exported / "images" / "000000.png"]):
        with pytest.raises(DynaMaskError, match="hold"):
            work(files, predictor)


def test_nothing_leaves_the_folder_and_too_many_pictures_are_left_out(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        for name in (
            "../../evil.png",
            "/abs.png",
            "..\\..\\win.png",
            ".hid.png",
            "__MACOSX/._a.png",
            "run.sh",
            "b.png",
        ):
            archive.writestr(name, b"x")
    monkeypatch.setattr(uploads, "MAX_PICTURES", 3)
    with unpacked([tmp_path / "evil.zip"]) as found:
        names = sorted(path.name for path in (found.folder / "images").iterdir())
        assert names == ["abs.png", "b.png", "evil.png", "win.png"] and found.left_out == 1
        assert all(path.parent == found.folder / "images" for path in found.pictures)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evil.zip"]


# ---- in the browser ----


def test_touching_the_curve_moves_the_slider_on_explore(page):
    go(page, "Budget curve")
    page.wait_for_function("document.querySelectorAll('.dt-dot').length > 5")
    assert page.locator(".dt-now").count() == 1
    before = page.evaluate("window.dynamask.now().mean")
    page.focus(".dt-dot[tabindex='0']")
    page.keyboard.press("Home")
    page.wait_for_function("window.dynamask.now().policy === 'budget'")
    first = page.evaluate("window.dynamask.now()")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.wait_for_function(f"window.dynamask.now().mean > {first['mean']}")
    assert first["mean"] < before and "MACs per instance" in page.inner_text(".dt-read")
    box = page.locator(".dt-plot").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + box["height"] * 0.5)
    page.mouse.move(box["x"] + box["width"] * 0.06, box["y"] + box["height"] * 0.5)
    page.wait_for_function(f"Math.abs(window.dynamask.now().mean - {first['mean']}) < 1e-9")
    go(page, "Explore")
    assert page.is_checked("[name=dm-policy][value=budget]")
    page.fill(".dm-score", "0.99")
    go(page, "Budget curve")
    page.wait_for_function("document.querySelector('.dt-plot').textContent.includes('No instance is shown')")


def test_classes_are_sorted_filtered_and_downloaded(page):
    go(page, "Classes")
    names = page.locator(".dt-classes td.dt-name")
    page.wait_for_function("document.querySelectorAll('.dt-classes td.dt-name').length === 3")
    assert names.all_inner_texts() == ["<b>bee", "cow", "ant"]  # the finest masks first
    page.click("th button[data-key=name]")
    assert names.all_inner_texts() == ["<b>bee", "ant", "cow"]
    assert page.get_attribute("th:has(button[data-key=name])", "aria-sort") == "ascending"
    page.click("th button[data-key=name]")
    assert names.all_inner_texts() == ["cow", "ant", "<b>bee"]
    page.fill(".dt-filter", "E")
    assert names.all_inner_texts() == ["<b>bee"] and page.inner_text(".dt-count") == "1 of 3 classes"
    page.fill(".dt-filter", "zebra")
    assert "No class matches" in page.inner_text(".dt-classes tbody")
    page.fill(".dt-filter", "")
    page.fill(".dt-least", "2")
    assert names.all_inner_texts() == ["<b>bee"]
    with page.expect_download() as download:
        page.click(".dt-download")
    assert Path(download.value.path()).read_text(encoding="utf-8").splitlines()[0].startswith("class,instances")


def test_own_data_are_analysed_and_refused_with_a_sentence(page, exported, tmp_path):
    go(page, "Classes")
    page.get_by_role("button", name="Your own pictures or annotations").click()
    page.set_input_files("#dynamask-classes-files input[type=file]", exported / "annotations.json")
    page.wait_for_selector("text=annotations.json")
    page.click("#dynamask-classes-start")
    page.wait_for_function("document.querySelector('#dynamask-classes-status').innerText.includes('Done:')")
    page.wait_for_function("document.querySelector('.dt-classes thead').textContent.includes('an ideal mask')")
    (tmp_path / "broken.zip").write_bytes(b"no zip")
    page.locator("#dynamask-classes-files button[aria-label*='lear']").first.click()
    page.wait_for_selector("text=annotations.json", state="detached")
    page.wait_for_timeout(500)  # Gradio makes another input, and the first analysis ends
    page.set_input_files("#dynamask-classes-files input[type=file]", tmp_path / "broken.zip")
    page.wait_for_selector("text=broken.zip")
    page.click("#dynamask-classes-start")
    page.wait_for_selector("[data-testid=toast-body]")
    sentence = page.inner_text("[data-testid=toast-body]")
    assert "zip cannot be read" in sentence and "Traceback" not in sentence


def steps_of(page) -> int:
    return int(page.inner_text("#dynamask-train dd >> nth=0").split(" of ")[0])


def wait_for_steps(page, least: int) -> None:
    page.wait_for_selector("#dynamask-train dd")
    page.wait_for_function(f"parseInt(document.querySelector('#dynamask-train dd').textContent) >= {least}")


def test_a_run_is_started_steered_paused_and_stopped(page):
    go(page, "Train")
    page.wait_for_selector("#dynamask-train .dt-invite")
    page.click("#dynamask-train-start")
    wait_for_steps(page, 1)
    assert page.locator("#dynamask-train img").get_attribute("alt").startswith("A scene of shapes; chosen mask sizes:")
    page.fill("#dynamask-train-target input[type=number]", "0.2")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('#dynamask-train dl').innerText.includes('target 20%')")
    page.click("#dynamask-train-pause")
    page.wait_for_function("document.querySelector('.dt-words').innerText.includes('Paused')")
    paused = steps_of(page)
    page.wait_for_timeout(1500)
    assert steps_of(page) == paused
    page.click("#dynamask-train-start")
    wait_for_steps(page, paused + 1)
    page.click("#dynamask-train-stop")
    page.wait_for_selector("#dynamask-train .dt-invite")
    page.wait_for_timeout(1500)
    assert page.locator("#dynamask-train .dt-invite").count() == 1
    assert [page.is_enabled(f"#dynamask-train-{name}") for name in ("start", "pause", "stop")] == [True, False, False]
    page.click("#dynamask-train-start")  # a run of its own, from the first step
    wait_for_steps(page, 1)
    page.click("#dynamask-train-stop")
    page.wait_for_selector("#dynamask-train .dt-invite")


def test_a_closed_tab_trains_no_longer(app_context, app_address):
    from app.live_training import RUNS

    page = open_page(app_context, app_address)
    go(page, "Train")
    page.click("#dynamask-train-start")
    wait_for_steps(page, 1)
    page.close()
    other = app_context.new_page()  # time passes in the browser, the server's threads run on
    for _ in range(40):
        beats = dict(RUNS.beats)
        other.wait_for_timeout(3000)
        if dict(RUNS.beats) == beats:
            break
    assert dict(RUNS.beats) == beats
    other.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_tab_fits_a_phone(page, scheme):
    page.set_viewport_size({"width": 390, "height": 844})
    page.emulate_media(color_scheme=scheme)
    for tab, selector in (("Budget curve", ".dt-dot"), ("Classes", ".dt-classes td"), ("Train", ".dt-invite")):
        go(page, tab)
        page.wait_for_selector(selector, state="attached")
        assert fits(page)


def test_scenes_of_the_lesson_are_nobody_elses():
    """The fixed scene holds several objects of differing difficulty."""
    from app.lesson_scenes import LESSON_SEED, STUDY_SCENE

    scene = make_scene(LESSON_SEED, STUDY_SCENE, count=7)
    assert len(scene) >= 5 and np.ptp(scene.complexity) > 0.4


def test_an_analysis_is_cancelled_between_two_pictures():
    pytest.importorskip("gradio")
    from app.tabs.classes_tab import OwnAnalysis

    done, own = [], OwnAnalysis()

    def analysis():
        for number in range(5):
            done.append(number)
            yield f"picture {number}", None
        yield "Done", {"rows": []}

    assert [words for words, _ in own.steps(analysis())][-1] == "Done" and own.table == {"rows": []}
    done.clear()
    steps = own.steps(analysis())
    assert next(steps) == ("picture 0", False)
    own.cancel()
    assert list(steps) == [("Cancelled.", False)] and done == [0, 1] and own.table == {"rows": []}


def test_pictures_alone_are_detected(predictor, tmp_path):
    Image.fromarray(make_scene(1, 1).image).save(tmp_path / "a.png")
    with unpacked([tmp_path / "a.png"]) as found:
        try:
            (words, _), *_, (done, table) = analyse(found, predictor, "tiny")
        except DynaMaskError as error:
            assert "no object was found" in str(error)  # a model with random weights may be sure of nothing
        else:
            assert words.startswith("Detections") and done.startswith("Done") and table["boxes"] == "detected"
