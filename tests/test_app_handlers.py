"""The app's handlers and its command line, without Gradio."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from faster_coco_eval.core import mask as coco_mask
from helpers.app_fakes import MACS, FakePredictor, fake_catalog
from helpers.small_models import tiny_model
from PIL import Image

from app.__main__ import main
from app.arguments import number
from app.catalog import WeightsCatalog
from app.downloads import file_name
from app.handlers import ExploreHandlers, checked_picks
from app.images import jpeg_url, shrunk
from app.messages import LOWEST_SCORE
from app.source_pictures import EXAMPLES_DIR, SCENES, SourcePicture, find_examples, scene_picture
from dynamask.data.shapes import make_scene
from dynamask.evaluation.mask_quality import boundary_iou, mask_iou
from dynamask.predict import predictor_of
from dynamask.structures import MASK_SIZES, DynaMaskError
from dynamask.viz.style import SIZE_COLOURS

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "uploads" / "photo.png"
    path.parent.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (120, 200, 3), dtype=np.uint8)).save(path)
    return path


def upload(path: Path, name: str = "photo.png", **more) -> dict:
    return {"ask": "open", "kind": "upload", "path": str(path), "name": name, "weights": "people", **more}


def opened(path: Path, predictor: FakePredictor | None = None, name: str = "photo.png"):
    """An explorer, the view of an upload, and its session."""
    explorer = ExploreHandlers(fake_catalog(people=predictor or FakePredictor()), [])
    text, session = explorer.answer(upload(path, name), None, path.parent)
    return explorer, json.loads(text), session


def test_view_holds_every_size_of_every_instance(picture):
    predictor = FakePredictor(count=3)
    _, view, session = opened(picture, predictor)
    assert predictor.calls == [{"shape": (120, 200, 3), "all_sizes": True, "score": LOWEST_SCORE}]
    assert view["size"] == view["view"] == [200, 120] and session.image_size == (120, 200)
    assert view["macs"] == list(MACS) and view["switch_macs"] == 500 and view["image_macs"] == 3000
    assert [style["size"] for style in view["styles"]] == list(MASK_SIZES)
    assert [style["colour"] for style in view["styles"]] == [SIZE_COLOURS[size] for size in MASK_SIZES]
    assert len({style["colour"] for style in view["paper_styles"]} | set(SIZE_COLOURS.values())) == 8
    assert view["timings"] == {"detect": 210.5, "mask_branch": 43.21}
    prediction = FakePredictor(count=3)(np.zeros((120, 200, 3), np.uint8))
    expected = zip(prediction.boxes.tolist(), prediction.switch_probs.double().tolist())
    for one, (box, probs) in zip(view["instances"], expected, strict=True):
        assert one["label"] == "person" and one["box"] == box and one["probs"] == probs and "iou" not in one


def test_the_browser_gets_every_mask(picture):
    _, view, _ = opened(picture, FakePredictor(count=2))
    data = np.frombuffer(zlib.decompress(base64.b64decode(view["masks"])), np.uint8)
    prediction, offset = FakePredictor(count=2)(np.zeros((120, 200, 3), np.uint8)), 0
    for index in range(2):
        for size in MASK_SIZES:
            grid = data[offset : offset + size * size].reshape(size, size) / 255
            offset += size * size
            assert np.abs(grid - prediction.mask_probs_at(index, size).numpy()).max() <= 0.5 / 255 + 1e-6
    assert offset == len(data)


def test_a_picture_without_objects_gives_an_empty_view(picture):
    explorer, view, session = opened(picture, FakePredictor(count=0))
    assert view["instances"] == [] and zlib.decompress(base64.b64decode(view["masks"])) == b""
    for what in ("overlay", "ids", "coco", "csv"):
        request = {"ask": "export", "what": what, "token": session.token, "picks": []}
        assert json.loads(explorer.answer(request, session, picture.parent)[0])["data"]


def test_text_from_outside_is_inert(picture):
    predictor = FakePredictor(class_names=("__background__", "</script><script>alert(1)"))
    explorer = ExploreHandlers(fake_catalog(people=predictor), [])
    text, _ = explorer.answer(upload(picture, "<img src=x onerror=alert(1)>" + "x" * 500), None, picture.parent)
    assert "<" not in text
    view = json.loads(text)
    assert view["instances"][0]["label"] == "</script><script>alert(1)"
    assert view["title"].startswith("<img") and len(view["title"]) == 120


def test_large_pictures_are_shrunk_for_the_browser_only():
    for before, after in (((1000, 3200), (500, 1600)), ((1, 1), (1, 1)), ((1, 4000), (1, 1600))):
        small = shrunk(np.zeros((*before, 3), np.uint8), 1600)
        assert small.shape[:2] == after and jpeg_url(small).startswith("data:image/jpeg;base64,")


def test_examples_are_analysed_once_and_only_if_they_exist(picture):
    predictor = FakePredictor()
    explorer = ExploreHandlers(fake_catalog(people=predictor), find_examples(picture.parent))
    assert explorer.examples == [] and explorer.first_view() == "" and explorer.first_session() is None
    Image.open(picture).save(picture.with_suffix(".jpg"))
    explorer = ExploreHandlers(fake_catalog(people=predictor), find_examples(picture.parent))
    request = {"ask": "open", "kind": "example", "key": "photo.jpg", "weights": "people"}
    answers = [explorer.answer(request, None, picture.parent) for _ in range(2)]
    assert len(predictor.calls) == 1 and answers[0][1] is answers[1][1] is explorer.first_session()
    texts = [json.loads(text) for text, _ in answers]
    assert texts[0].pop("turn") != texts[1].pop("turn") and texts[0] == texts[1]
    for key in ("../photo.jpg", "photo.png", None, 0, ["photo.jpg"]):
        with pytest.raises(DynaMaskError, match="no such example"):
            explorer.answer({**request, "key": key}, None, picture.parent)


def test_an_upload_is_read_from_the_upload_folder_only(picture, tmp_path):
    explorer = ExploreHandlers(fake_catalog(), [])
    secret = tmp_path / "secret.png"
    secret.write_bytes(picture.read_bytes())
    outside = picture.parent / ".." / "secret.png"
    for path in (secret, outside, picture.parent, picture.parent / "absent.png", "../../x", None, "\0"):
        with pytest.raises(DynaMaskError, match="not uploaded here"):
            explorer.answer(upload(path), None, picture.parent)


def test_an_upload_that_is_no_picture_is_refused(picture):
    predictor = FakePredictor()
    files = {"half.png": picture.read_bytes()[:200], "note.png": b"not a picture", "empty.png": b""}
    bomb = io.BytesIO()
    Image.new("1", (16000, 12500)).save(bomb, "PNG")
    assert len(bomb.getvalue()) < 200_000
    for name, data in {**files, "bomb.png": bomb.getvalue()}.items():
        path = picture.with_name(name)
        path.write_bytes(data)
        with pytest.raises(DynaMaskError) as refusal:
            ExploreHandlers(fake_catalog(people=predictor), []).answer(upload(path), None, picture.parent)
        assert str(picture.parent) not in str(refusal.value)
    assert predictor.calls == []


@pytest.mark.parametrize("request_data", [
    None, "open", [], {}, {"ask": "delete"}, {"ask": "open"}, {"ask": "open", "kind": "same"},
    {"ask": "open", "kind": "scene", "seed": math.nan, "index": 1},
    {"ask": "open", "kind": "scene", "seed": -1, "index": 1},
    {"ask": "open", "kind": "scene", "seed": 1.5, "index": 1},
    {"ask": "open", "kind": "scene", "seed": "7", "index": 1},
    {"ask": "open", "kind": "scene", "seed": 10**12, "index": 1},
    {"ask": "open", "kind": "scene", "seed": 1, "index": 1, "difficulty": 2},
    {"ask": "open", "kind": "scene", "seed": 1, "index": 1, "difficulty": math.inf},
    {"ask": "open", "kind": "scene", "seed": 1, "index": 1, "weights": "../../x"},
    {"ask": "open", "kind": "scene", "seed": 1, "index": 1, "weights": ["people"]},
    {"ask": "draw", "token": "1", "boxes": [[0, 0, 9, 9]]},
])  # fmt: skip
def test_a_request_that_makes_no_sense_is_a_sentence(request_data, tmp_path):
    with pytest.raises(DynaMaskError) as refusal:
        ExploreHandlers(fake_catalog(), []).answer(request_data, None, tmp_path)
    assert len(str(refusal.value)) > 20 and "\n" not in str(refusal.value)


def test_scenes_come_with_their_truth():
    scene = make_scene(7, 18)
    predictor = FakePredictor(given=scene.boxes.tolist())
    explorer = ExploreHandlers(fake_catalog(shapes=predictor, others=("shapes",)), [])
    request = {"ask": "open", "kind": "scene", "seed": 7, "index": 18, "difficulty": None, "weights": "people"}
    text, session = explorer.answer(request, None, Path())
    view = json.loads(text)
    assert view["weights"] == "shapes"  # scenes are their home, photographs not
    assert view["key"] == "7:18:mixed" and view["truths"] == len(scene.masks) > 2
    for row, (one, truth) in enumerate(zip(view["instances"], scene.masks, strict=True)):
        for k in (0, 3):
            mask = session.instances.pasted(row, k, session.image_size)
            assert one["iou"][k] == pytest.approx(mask_iou(mask, truth))
            assert one["boundary"][k] == pytest.approx(boundary_iou(mask, truth))


def test_an_instance_far_from_every_true_shape_has_no_quality():
    predictor = FakePredictor(given=[[0, 0, 4, 4]])
    _, session = ExploreHandlers(fake_catalog(people=predictor), []).analyse(scene_picture(7, 18, None), "people")
    assert np.isnan(session.instances.mask_iou).all()
    _, empty = ExploreHandlers(fake_catalog(), []).analyse(scene_picture(7, 9, None), "people")
    assert len(empty.picture.truth) == 0 and np.isnan(empty.instances.mask_iou).all()


def test_weights_follow_the_kind_of_picture():
    catalog = fake_catalog("people", ("shapes", "objects"))
    assert catalog.suitable("scene", "people") == "shapes" and catalog.suitable("photo", "shapes") == "people"
    assert catalog.suitable("scene", "objects") == catalog.suitable("photo", "objects") == "objects"
    assert fake_catalog("people").suitable("scene", "people") == "people"
    with pytest.raises(DynaMaskError, match="choose one of people"):
        catalog.get("absent")


def test_weights_are_loaded_once_and_a_file_goes_by_its_stem():
    asked = []
    load = lambda source: asked.append(source) or FakePredictor()  # noqa: E731
    catalog = WeightsCatalog(load, "runs/mine.safetensors", ["people"])
    assert catalog.names == ["mine", "people"] and catalog.get("mine") is catalog.get("mine")
    assert asked == ["runs/mine.safetensors"]


def test_a_drawn_box_brings_an_instance(picture):
    explorer, view, session = opened(picture)
    request = {"ask": "draw", "token": session.token, "boxes": [[10, 20, 90, 100.5]]}
    text, grown = explorer.answer(request, session, picture.parent)
    more = json.loads(text)
    assert (
        more["type"] == "more" and more["instances"][0]["box"] == [10, 20, 90, 100.5] and more["instances"][0]["drawn"]
    )
    assert len(grown.instances) == len(view["instances"]) + 1 and len(session.instances) == len(view["instances"])
    for boxes in ([], None, [[0, 0, 0, 9]], [[math.nan, 0, 5, 5]], [["a", 0, 5, 5]], [[1, 2, 3]], [[0, 0, 9, 9]] * 41):
        with pytest.raises(DynaMaskError):
            explorer.answer({**request, "boxes": boxes}, session, picture.parent)
    with pytest.raises(DynaMaskError, match="no longer kept"):
        explorer.answer({**request, "token": "another"}, session, picture.parent)


def test_a_link_may_bring_boxes(picture):
    explorer = ExploreHandlers(fake_catalog(), [])
    request = {"ask": "open", "kind": "scene", "seed": 1, "index": 2, "difficulty": 0.5, "boxes": [[5, 5, 60, 60]]}
    answer = json.loads(explorer.answer(request, None, picture.parent)[0])
    assert answer["type"] == "both" and answer["view"]["type"] == "view"
    assert answer["more"]["instances"][0]["box"] == [5, 5, 60, 60]


def exported(explorer, session, what: str, picks, **more) -> tuple[dict, bytes]:
    request = {"ask": "export", "what": what, "token": session.token, "picks": picks, **more}
    answer = json.loads(explorer.answer(request, session, Path())[0])
    return answer, base64.b64decode(answer["data"])


def test_exports_hold_what_is_shown(picture):
    explorer, _, session = opened(picture, name="../../<b>x.png")
    picks = [[0, 3], [2, 0]]
    answer, data = exported(explorer, session, "coco", picks)
    assert answer["name"] == "dynamask-b-x-results.json"
    results = json.loads(data)
    assert [(one["mask_size"], one["macs"]) for one in results] == [(112, MACS[3]), (14, MACS[0])]
    decoded = [coco_mask.decode(one["segmentation"]).astype(bool) for one in results]
    for mask, (row, k) in zip(decoded, picks):
        assert np.array_equal(mask, session.instances.pasted(row, k, session.image_size))
    ids = np.asarray(Image.open(io.BytesIO(exported(explorer, session, "ids", picks)[1])))
    assert ids.shape == (120, 200) and set(np.unique(ids)) == {0, 1, 3}
    assert np.array_equal(ids == 1, decoded[0]) and np.array_equal(ids == 3, decoded[1] & ~decoded[0])
    rows = list(csv.DictReader(io.StringIO(exported(explorer, session, "csv", picks)[1].decode())))
    assert [(row["instance"], row["mask_size"], row["mask_iou_14"]) for row in rows] == [
        ("1", "112", ""),
        ("3", "14", ""),
    ]
    overlay = Image.open(io.BytesIO(exported(explorer, session, "overlay", picks, opacity=0.4, boxes=True)[1]))
    assert overlay.size == (200, 120) and overlay.mode == "RGB"


def test_a_spreadsheet_runs_nothing(picture):
    predictor = FakePredictor(class_names=("__background__", "=cmd|' /C calc'!A0"))
    explorer, _, session = opened(picture, predictor)
    assert b"\n1,'=cmd" in exported(explorer, session, "csv", [[0, 0]])[1]


@pytest.mark.parametrize("title", ["../../etc/passwd", "con\0\n.png", "", "…", "<img src=x>.jpg", "x" * 400])
def test_file_names_are_plain(title):
    name = file_name(title, "overlay.png")
    assert name.startswith("dynamask-") and name.endswith("-overlay.png") and len(name) < 90
    assert all(letter.isascii() and (letter.isalnum() or letter in "-.") for letter in name) and ".." not in name


@pytest.mark.parametrize("picks", [None, "x", [[0]], [[9, 0]], [[0, 4]], [[0.5, 0]], [[-1, 0]], [[0, 0]] * 4, [None]])
def test_picks_that_do_not_fit_are_refused(picks, picture):
    _, _, session = opened(picture, FakePredictor(count=3))
    with pytest.raises(DynaMaskError):
        checked_picks(picks, session)


def test_an_unknown_export_is_refused(picture):
    explorer, _, session = opened(picture)
    with pytest.raises(DynaMaskError, match="cannot be exported"):
        exported(explorer, session, "../../x", [])
    with pytest.raises(DynaMaskError, match="opacity"):
        exported(explorer, session, "overlay", [[0, 0]], opacity=math.nan)
    for value in (True, "1", None, math.nan):
        with pytest.raises(DynaMaskError, match="give a number"):
            number(value, "score", 0, 1)


def test_the_mask_branch_is_measured_as_it_runs():
    """Only the chosen size of each instance is computed, with the model's own dispatch."""
    small_predictor = predictor_of(tiny_model())
    image = np.random.default_rng(1).integers(0, 255, (96, 128, 3), dtype=np.uint8)
    explorer = ExploreHandlers(fake_catalog(people=small_predictor), [])
    _, session = explorer.analyse(SourcePicture("own", "", "x", "", image), "people")
    draw = {"ask": "draw", "token": session.token, "boxes": [[5, 5, 60, 60], [30, 20, 100, 90]]}
    _, session = explorer.answer(draw, session, Path())
    first = len(session.instances) - 2
    request = {"ask": "measure", "token": session.token, "picks": [[first, 0], [first + 1, 2]]}
    stages = []
    stage = small_predictor.model.mask_branch.region_fpn.stage
    small_predictor.model.mask_branch.region_fpn.stage = lambda k, *rest: (
        stages.append((k, len(rest[0]))) or stage(k, *rest)
    )
    answer = json.loads(explorer.answer(request, session, Path())[0])
    assert stages == [(1, 1), (2, 1)]  # one instance goes on to 28 and 56, none to 112
    assert answer["milliseconds"] > 0 and answer["count"] == 2
    assert answer["mean"] == (session.macs[0] + session.macs[2]) / 2


def test_a_session_keeps_little_of_a_large_file(tmp_path):
    path = tmp_path / "large.bmp"
    Image.fromarray(np.random.default_rng(0).integers(0, 9, (1700, 1700, 3), dtype=np.uint8)).save(path)
    _, view, session = opened(path, FakePredictor(count=1))
    assert path.stat().st_size > 8_000_000 > len(session.picture.source) and view["size"] == [1700, 1700]
    assert Image.open(io.BytesIO(session.picture.source)).size == (1700, 1700)


def test_examples_follow_the_attribution_table(tmp_path):
    for name in ("a.jpg", "b.jpg", "c_d.jpg"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "ATTRIBUTION.csv").write_text(
        "file_name,title,author,license,source\n"
        "b.jpg,Bee,Ann,CC BY 2.0,https://example.org\nmissing.jpg,,,,\na.jpg,,,,\n"
    )
    examples = find_examples(tmp_path)
    assert [example.key for example in examples] == ["b.jpg", "a.jpg", "c_d.jpg"]
    assert examples[0].title == "Bee" and examples[0].credit == "Ann · CC BY 2.0 · https://example.org"
    assert examples[2].title == "c d" and examples[2].credit == ""


def test_every_bundled_example_says_where_it_comes_from():
    examples = find_examples()
    assert examples and {example.source for example in examples} == set(EXAMPLES_DIR.glob("*.jpg"))
    assert all(example.credit for example in examples)
    shown = json.loads(ExploreHandlers(fake_catalog(), examples).shown_examples())
    assert len(shown) == len(examples) + len(SCENES)
    assert [one["key"] for one in shown if one["kind"] == "scene"][0] == "7:18:mixed"


@pytest.mark.parametrize("arguments", [["--port", "0"], ["--port", "x"], ["--auth", "user"], ["--unknown"]])
def test_a_wrong_flag_is_one_line_and_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    captured = capsys.readouterr()
    assert stop.value.code == 2 and captured.out == ""
    assert captured.err.startswith("dynamask: error: ") and captured.err.count("\n") == 1


def test_missing_weights_are_one_line_and_exit_code_2(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--weights", str(tmp_path / "absent.safetensors")])
    captured = capsys.readouterr()
    assert stop.value.code == 2 and captured.out == ""
    assert captured.err.startswith("dynamask: error: ") and captured.err.count("\n") == 1
    assert "absent.safetensors" in captured.err


def test_help_does_not_wait_for_the_libraries():
    code = (
        "import sys, app.__main__ as m\ntry: m.main(['-h'])\nexcept SystemExit: pass\n"
        "print({'torch', 'gradio'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "--weights" in done.stdout and done.stdout.rstrip().endswith("set()")
