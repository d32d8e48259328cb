"""Budget curve, Classes and Train: what they compute, and how they behave in a real browser."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers.app_fakes import MACS, FakePredictor, class_counts
from helpers.app_pages import fits, go, open_page
from helpers.small_models import tiny_model

from app import class_table, uploads
from app.class_table import bundled_tables, csv_text, ideal, make_table, rows_in_true_boxes
from app.limits import Limits
from app.quality_curve import budget_curve
from app.session import Session, SessionInstances
from app.source_pictures import SourcePicture
from app.uploads import analyse, unpacked
from dynamask.data.shapes import ShapesDataset, make_scene
from dynamask.data.shapes.dataset import export
from dynamask.predict import Predictor, predictor_of
from dynamask.structures import MASK_SIZES, DynaMaskError


def session_of(probs: np.ndarray, quality: np.ndarray | None = None, predicted: np.ndarray | None = None) -> Session:
    """A session of instances with given probabilities (R, 4), as with ground truth qualities (R, 4), and predicted
    qualities (R, 4, 2).
    """
    count = len(probs)
    table = np.full((count, 4), math.nan) if quality is None else quality
    instances = SessionInstances(
        boxes=np.tile([0.0, 0.0, 8.0, 8.0], (count, 1)),
        mask_boxes=np.tile([0.0, 0.0, 8.0, 8.0], (count, 1)),
        labels=np.ones(count, np.int64),
        names=["person"] * count,
        scores=np.ones(count),
        drawn=np.zeros(count, bool),
        mask_iou=table,
        boundary_iou=table**2,
        grids=[],
        switch_probs=probs,
        quality=predicted,
    )
    picture = SourcePicture("scene", "", "<i>x", "", b"", None if quality is None else np.zeros((1, 8, 8), bool))
    return Session("1", "things", picture, (8, 8), (1,), MACS, 0, 0, 0.5, 0.05, {}, instances)


def some(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (R, 4) and qualities (R, 4)."""
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.ones(4), count), np.sort(rng.random((count, 4)), axis=1)


# ---- the curve ----


def test_every_point_is_the_exact_optimum_of_its_budget():
    probs, quality = some(4)
    data = budget_curve(session_of(probs, quality), points=9)
    assert [measure["key"] for measure in data["measures"]] == ["boundary_iou", "mask_iou", "probability"]
    boundary, mask, _ = data["measures"]
    every = list(itertools.product(range(4), repeat=4))
    for line, table in (("curve", np.log(probs)), ("oracle", quality)):
        for point in mask[line]:
            fitting = [c for c in every if sum(MACS[k] for k in c) <= point["budget"] * 4 + 1e-9]
            best = max(fitting, key=lambda c, table=table: sum(table[i, k] for i, k in enumerate(c)))
            assert point["macs"] <= point["budget"] + 1e-9 and sum(point["shares"]) == pytest.approx(1)
            assert point["value"] == pytest.approx(np.mean([quality[i, k] for i, k in enumerate(best)]))
    assert mask["curve"][0]["macs"] == MACS[0] and mask["fixed"][3]["value"] == pytest.approx(quality[:, 3].mean())
    assert mask["learned"]["value"] == pytest.approx(quality[np.arange(4), probs.argmax(1)].mean())
    assert boundary["values"]["2"] == pytest.approx((quality[2] ** 2).tolist())


def test_without_ground_truth_the_measure_is_a_probability():
    probs, _ = some(3)
    data = json.loads(json.dumps(budget_curve(session_of(probs)), allow_nan=False))
    (measure,) = data["measures"]
    assert measure["key"] == "probability" and "probability" in measure["axis"]
    assert "oracle" not in measure and "random" not in measure and data["truth"] is False
    assert measure["fixed"][1]["value"] == pytest.approx(probs[:, 1].mean())
    certain = np.eye(4)[[0, 3]]  # probabilities of zero have a logarithm, too
    assert budget_curve(session_of(certain))["measures"][0]["learned"]["value"] == 1.0


def test_the_curve_follows_the_predicted_quality_where_it_is_known():
    probs, quality = some(5)
    predicted = np.sort(np.random.default_rng(4).random((5, 4, 2)), axis=1)
    data = json.loads(json.dumps(budget_curve(session_of(probs, quality, predicted)), allow_nan=False))
    keys = [measure["key"] for measure in data["measures"]]
    assert keys == ["boundary_iou", "mask_iou", "predicted_quality", "probability"]
    measure = data["measures"][2]
    values, costs = ([point[key] for point in measure["curve"]] for key in ("value", "macs"))
    assert values == sorted(values) and costs == sorted(costs) and (costs[0], costs[-1]) == (MACS[0], MACS[3])
    assert values[-1] == pytest.approx(predicted[:, 3].mean()) and data["follows"] == "predicted quality"
    assert "predicted" in measure["axis"] and "oracle" not in measure and "random" not in measure
    assert measure["quality"]["value"] == pytest.approx(predicted[:, 3].mean(), abs=0.01)
    assert "oracle" in data["measures"][0] and "quality" in data["measures"][0]
    keys = [measure["key"] for measure in budget_curve(session_of(probs, None, predicted))["measures"]]
    assert keys == ["predicted_quality", "probability"]
    assert budget_curve(session_of(probs))["follows"] == "switch"


def test_the_curve_counts_shown_instances_with_ground_truth():
    probs, quality = some(5, 1)
    quality[3] = math.nan
    session = session_of(probs, quality)
    data = budget_curve(session, [4, 3, 0])
    assert data["instances"] == 3 and data["measures"][0]["known"] == 2
    assert set(data["measures"][0]["values"]) == {"0", "4"} and set(data["measures"][2]["values"]) == {"0", "3", "4"}
    assert budget_curve(session, [3])["measures"][0]["key"] == "probability"
    assert (
        budget_curve(session_of(probs), [])["measures"] == budget_curve(session_of(np.zeros((0, 4))))["measures"] == []
    )
    for shown in ([5], [-1], [0.0], ["0"], [True], "01", {"0": 1}, [None], 3):
        with pytest.raises(DynaMaskError, match="choose the picture again"):
            budget_curve(session, shown)


# ---- classes ----


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return predictor_of(tiny_model(class_names=ShapesDataset(1).class_names))


def test_a_table_holds_what_classes_get_and_need(predictor):
    dataset = ShapesDataset(4, seed=3)
    (*_, (_, needs)), (*early, (done, rows)) = ideal(dataset.coco), rows_in_true_boxes(predictor, dataset, range(4))
    table = make_table(rows, needs, "tiny", "four scenes", 4, "gt", predictor.costs.macs_per_instance)
    labels = np.concatenate([dataset.target(i)["labels"] for i in range(4)]).tolist()
    counts = Counter(dataset.class_names[label] for label in labels)
    assert done == 4 and early == [(1, []), (2, []), (3, [])]
    assert {one["name"]: one["instances"] for one in table["classes"]} == counts and table["instances"] == len(labels)
    shares = sum(one["instances"] * np.array(one["shares"]) for one in table["classes"]) / len(labels)
    assert table["macs"] == pytest.approx(shares @ predictor.costs.macs_per_instance)
    for one in table["classes"]:
        assert sum(one["shares"]) == pytest.approx(1) and one["needs"]["instances"] == one["instances"]
        fitting = [size for size, value in zip(MASK_SIZES, one["needs"]["boundary_iou"]) if value >= 0.95]
        assert one["needs"]["needed_size_boundary"] == (fitting[0] if fitting else None)
    json.dumps(table, allow_nan=False)


def test_csv_has_a_row_for_each_class_and_no_formulas():
    rows = class_counts(("=HYPERLINK(1)", 0), ("cat", 3), ("cat", 1))
    table = make_table(rows, None, "w", "d", 1, "detected", MACS)
    read = {row["class"]: row for row in csv.DictReader(io.StringIO(csv_text(table)))}
    assert set(read) == {"'=HYPERLINK(1)", "cat"} and read["cat"]["instances"] == "2"
    assert read["cat"]["share_28"] == "0.5" and read["cat"]["ideal_mask_iou_14"] == ""
    assert table["macs"] == pytest.approx((MACS[0] + MACS[3] + MACS[1]) / 3)
    with pytest.raises(DynaMaskError, match="no object"):
        make_table([], None, "w", "d", 1, "detected")


def test_bundled_tables_are_read_and_broken_ones_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(class_table, "checkpoint_dir", lambda: tmp_path)
    monkeypatch.setattr(class_table, "list_bundled", lambda: {"a": {}, "b": {}, "c": {}})
    good = make_table(class_counts(("cat", 3)), None, "a", "d", 1, "detected", MACS)
    (tmp_path / "a.classes.json").write_text(json.dumps(good))
    (tmp_path / "b.classes.json").write_text("{")
    assert bundled_tables() == {"a": good}


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("data") / "shapes"
    export(out, 3, 5, (96, 128))
    return out


def zipped(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.*")):
            archive.write(file, f"some/where/{file.relative_to(folder)}")
    return path


def work(files, predictor) -> tuple[list[str], dict]:
    """Progress texts and the table of uploaded files."""
    with unpacked(files) as data:
        steps = list(analyse(data, predictor, "tiny"))
        assert data.folder.is_dir()
    assert not data.folder.exists()
    return [words for words, _ in steps], steps[-1][1]


def test_pictures_and_annotations_may_come_together_or_alone(exported, predictor, tmp_path):
    annotations, first = exported / "annotations.json", exported / "images" / "000000.png"
    words, table = work([zipped(exported, tmp_path / "a.zip")], predictor)
    assert table["boxes"] == "gt" and table["pictures"] == 3 and table["classes"][0]["needs"]
    assert words[0] == "Ideal masks: picture 1 of 3" and "Masks in true boxes: picture 3 of 3" in words
    _, needs = work([annotations], predictor)
    assert needs["boxes"] is None and needs["macs"] is None and all(one["shares"] is None for one in needs["classes"])
    assert needs["instances"] == len(json.loads(annotations.read_text())["annotations"])
    _, both = work([annotations, first], predictor)
    assert both["pictures"] == 1 and both["boxes"] == "gt"
    words, alone = work(sorted((exported / "images").iterdir()), FakePredictor(count=3))
    assert words[0] == "Detections: picture 1 of 3" and words[-1] == "Done: 9 instances in 3 pictures."
    assert alone["boxes"] == "detected" and alone["classes"][0]["shares"] == [1, 0, 0, 0]


def test_files_that_cannot_be_used_are_refused(exported, predictor, tmp_path, monkeypatch):
    (tmp_path / "bad.zip").write_bytes(b"PK no zip")
    with zipfile.ZipFile(tmp_path / "damaged.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.json", "{}" * 500)
    damaged = bytearray((tmp_path / "damaged.zip").read_bytes())
    damaged[36:44] = b"\xff" * 8  # the first bytes of the compressed text
    (tmp_path / "damaged.zip").write_bytes(damaged)
    (tmp_path / "note.txt").write_text("hello")
    (tmp_path / "no.json").write_text('{"images": []}')
    (tmp_path / "photo.png").write_text("no picture")
    image = {"id": 1, "file_name": "other.png", "width": 5, "height": 5}
    other = {"images": [image], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "other.json").write_text(json.dumps(other))
    cases = [
        ([], "no file was uploaded"),
        ([tmp_path / "bad.zip"], "pack it again"),
        ([tmp_path / "damaged.zip"], "pack it again"),
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
        with pytest.raises(DynaMaskError, match="hold more than"):
            work(files, predictor)


def declared(width, height, **changes) -> dict:
    """Annotations of one rectangle in a picture of a declared size; `changes` go to the annotation."""
    rectangle = [[0, 0, width, 0, width, height, 0, height]]
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, width, height], "segmentation": rectangle}
    image = {"id": 1, "file_name": "a.png", "width": width, "height": height}
    return {"images": [image], "annotations": [annotation | changes], "categories": [{"id": 1, "name": "cat"}]}


@pytest.mark.parametrize("side", [30_000, 2**40, 10**400])
def test_declared_sizes_above_those_of_pictures_are_refused(side, predictor, tmp_path):
    path = tmp_path / "a.json"
    for coco in (declared(side, side), declared(8, 8, segmentation={"size": [side, side], "counts": [side * side]})):
        path.write_text(json.dumps(coco))
        with pytest.raises(DynaMaskError) as refused:
            work([path], predictor)
        assert "\n" not in str(refused.value) and len(str(refused.value)) < 300


def test_json_is_limited_unpacked(predictor, tmp_path, monkeypatch):
    text = json.dumps(declared(8, 8)) + " " * 3_000_000
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.json", text)
    assert (tmp_path / "a.zip").stat().st_size < 10_000 and work([tmp_path / "a.zip"], predictor)
    monkeypatch.setattr(uploads, "LIMITS", Limits(annotation_megabytes=2))
    with pytest.raises(DynaMaskError, match="a JSON file has more than 2 MB"):
        work([tmp_path / "a.zip"], predictor)


def test_nothing_leaves_the_folder_and_too_many_pictures_are_left_out(tmp_path, monkeypatch):
    names = ["../../evil.png", "/abs.png", "..\\..\\win.png", ".hid.png", "__MACOSX/._a.png", "run.sh", "b.png"]
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    monkeypatch.setattr(uploads, "MAX_PICTURES", 3)
    with unpacked([tmp_path / "evil.zip"]) as data:
        kept = sorted(path.name for path in (data.folder / "images").iterdir())
        assert kept == ["abs.png", "b.png", "evil.png", "win.png"] and data.left_out == 1
        assert all(path.parent == data.folder / "images" for path in data.pictures)
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


def test_a_long_table_starts_without_rare_classes(page):
    go(page, "Classes")
    source = page.locator("#dynamask-classes-source")
    source.get_by_text("long").click()
    page.wait_for_function("document.querySelectorAll('.dt-classes td.dt-name').length === 25")
    assert page.inner_text(".dt-count") == "25 of 26 classes with at least 5 instances"
    page.fill(".dt-least", "1")
    assert page.locator(".dt-classes td.dt-name").count() == 26 and page.inner_text(".dt-count") == "26 of 26 classes"
    source.get_by_text("things").click()
    page.wait_for_function("document.querySelectorAll('.dt-classes td.dt-name').length === 3")
    assert "(detected with a score of at least 0.4)" in page.inner_text(".dt-facts")


def upload(page, path: Path) -> None:
    """Analyse a file on the Classes tab of a fresh page."""
    from playwright.sync_api import TimeoutError as NotYet

    go(page, "Classes")
    page.get_by_role("button", name="Your own pictures or annotations").click()
    for attempt in range(6):  # a file given before the component listens is lost
        page.set_input_files("#dynamask-classes-files input[type=file]", path)
        try:
            page.wait_for_selector(f"text={path.name}", timeout=10_000)
            break
        except NotYet:
            if attempt == 5:
                raise
    page.click("#dynamask-classes-start")


def test_own_data_are_analysed_and_refused_with_a_sentence(page, exported, tmp_path):
    upload(page, exported / "annotations.json")
    page.wait_for_function("document.querySelector('#dynamask-classes-status').innerText.includes('Done:')")
    page.wait_for_function("document.querySelector('.dt-classes thead').textContent.includes('an ideal mask')")
    page.reload()
    (tmp_path / "broken.zip").write_bytes(b"no zip")
    upload(page, tmp_path / "broken.zip")
    page.wait_for_selector("[data-testid=toast-body]")
    sentence = page.inner_text("[data-testid=toast-body]")
    assert "pack it again" in sentence and "Traceback" not in sentence


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


def test_a_run_that_fails_is_cleaned_up_and_refused_in_a_sentence(monkeypatch):
    gr = pytest.importorskip("gradio")
    from app.live_training import Registry
    from app.tabs import train_tab

    registry, visit, errors = Registry(), train_tab.VisitorRun(), []

    class Failing:
        active, finished, history = False, False, []

        def set(self, target, weight) -> None:
            """Nothing is out of range."""

        def work(self, steps) -> None:
            registry.enter(id(self))
            raise errors[0]

        def stop(self) -> None:
            registry.leave(id(self))

    handlers = train_tab.TrainHandlers(None)
    monkeypatch.setattr(train_tab.TrainHandlers, "scenes", None)
    monkeypatch.setattr(train_tab, "LiveTraining", lambda *_: Failing())
    monkeypatch.setattr(train_tab.VisitorRun, "view", lambda visit: "")
    for error, words in ((DynaMaskError("full"), "Full"), (ZeroDivisionError(), "could not process")):
        errors[:] = [error]
        steps = handlers.start(visit, 0.5, 0.4)
        with pytest.raises(gr.Error) as refused:
            list(steps)
        assert words in refused.value.message and visit.training is None and registry.beats == {}


def test_an_analysis_has_a_limited_time(monkeypatch):
    pytest.importorskip("gradio")
    from app.tabs import classes_tab

    monkeypatch.setattr(classes_tab, "LIMITS", Limits(analysis_seconds=-1))
    own = classes_tab.OwnAnalysis()
    with pytest.raises(DynaMaskError, match="send fewer pictures"):
        list(own.steps(iter([("picture 1", None), ("Done", {})])))
    assert list(own.steps(iter([("Done", {"rows": []})])))[-1] == ("Done", True)


def test_every_tab_fits_a_phone(page):
    page.set_viewport_size({"width": 390, "height": 844})
    page.emulate_media(color_scheme="dark")
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
