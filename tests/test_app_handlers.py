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
from types import SimpleNamespace

import numpy as np
import pytest
from faster_coco_eval.core import mask as coco_mask
from helpers.app_fakes import CELLS, MACS, FakePredictor, ask, exported, fake_catalog, fake_handlers, open_upload
from helpers.small_models import tiny_model
from PIL import Image

from app.__main__ import main, parse_arguments, warn_if_open
from app.arguments import number
from app.catalog import SharedPredictor, WeightsCatalog
from app.downloads import file_name
from app.images import shrunk
from app.limits import Limits
from app.session import LOWEST_SCORE
from app.source_pictures import EXAMPLES_DIR, SCENES, SourcePicture, find_examples, scene_picture
from dynamask.data.shapes import make_scene
from dynamask.evaluation.mask_quality import boundary_iou, mask_iou
from dynamask.models.masks import policies
from dynamask.predict import predictor_of
from dynamask.structures import MASK_SIZES, DynaMaskError
from dynamask.viz.style import SIZE_COLOURS

ROOT = Path(__file__).resolve().parent.parent
SCENE = {"ask": "open", "kind": "scene", "seed": 1, "index": 1}


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "uploads" / "photo.png"
    path.parent.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (120, 200, 3), dtype=np.uint8)).save(path)
    return path


# ---- views ----


def test_a_view_holds_every_size_of_every_instance(picture):
    predictor = FakePredictor(count=3)
    view, session = open_upload(fake_handlers(things=predictor), picture)
    assert predictor.calls == [{"shape": (120, 200, 3), "all_sizes": True, "score": LOWEST_SCORE}]
    assert view["size"] == view["view"] == [200, 120] and session.image_size == (120, 200)
    assert view["macs"] == list(MACS) and view["switch_macs"] == 500 and view["image_macs"] == 3000
    assert view["cells"] == list(CELLS)
    assert [style["colour"] for style in view["styles"]] == [SIZE_COLOURS[size] for size in MASK_SIZES]
    assert len({style["colour"] for style in view["paper_styles"]} | set(SIZE_COLOURS.values())) == 8
    assert view["timings"] == {"detect": 210.5, "mask_branch": 43.21}
    data, offset = np.frombuffer(zlib.decompress(base64.b64decode(view["masks"])), np.uint8), 0
    prediction = predictor(np.zeros((120, 200, 3), np.uint8))
    for i, one in enumerate(view["instances"]):
        assert one["label"] == "person" and one["box"] == prediction.boxes[i].tolist() and "iou" not in one
        assert one["probs"] == prediction.switch_probs[i].double().tolist()
        for size in MASK_SIZES:
            grid = data[offset : offset + size * size].reshape(size, size) / 255
            offset += size * size
            assert np.abs(grid - prediction.mask_probs_at(i, size).numpy()).max() <= 0.5 / 255 + 1e-6
    assert offset == len(data) and len(view["instances"]) == 3


def test_a_view_holds_the_predicted_quality_and_what_follows_from_it(picture):
    predictor = FakePredictor(count=4, has_quality=True)
    prediction = predictor(np.zeros((120, 200, 3), np.uint8))
    combined = policies.combined_quality(prediction.quality)
    logits, quality = prediction.switch_logits, prediction.quality
    by_policy = {
        "learned": policies.LEARNED.choose(prediction.boxes, (120, 200), logits),
        "quality": policies.QUALITY.choose(prediction.boxes, (120, 200), logits, quality=quality),
    }
    view, session = open_upload(fake_handlers(things=predictor), picture)
    for i, one in enumerate(view["instances"]):
        assert one["quality"] == prediction.quality[i].double().tolist() and one["values"] == combined[i].tolist()
        assert one["chosen"] == {name: int(choice[i]) for name, choice in by_policy.items()}
    more, grown = ask(fake_handlers(things=predictor), session, ask="draw", boxes=[[10, 20, 90, 100]])
    assert len(more["instances"][0]["quality"]) == 4 and grown.instances.quality.shape == (5, 4, 2)
    view, _ = open_upload(fake_handlers(things=FakePredictor(count=4)), picture)
    for one in view["instances"]:
        assert "quality" not in one and set(one["chosen"]) == {"learned"}
        assert one["values"] == pytest.approx(np.log(one["probs"]).tolist())


def test_scores_start_at_those_of_the_weights(picture):
    predictor = FakePredictor(count=4)
    predictor.default_score, predictor.model = 0.4, SimpleNamespace(config=SimpleNamespace(detector="nanodet_plus"))
    view, session = open_upload(fake_handlers(things=predictor), picture)
    assert (view["score"], view["lowest_score"]) == (0.4, 0.2) == (session.display_score, session.lowest_score)
    assert predictor.calls[0]["score"] == 0.2


def test_a_picture_without_objects_gives_an_empty_view(picture):
    handlers = fake_handlers(things=FakePredictor(count=0))
    view, session = open_upload(handlers, picture)
    assert view["instances"] == [] and zlib.decompress(base64.b64decode(view["masks"])) == b""
    assert all(exported(handlers, session, what, [])[1] for what in ("overlay", "ids", "coco", "csv"))


def test_text_from_outside_is_inert(picture):
    handlers = fake_handlers(things=FakePredictor(class_names=("__background__", "</script><script>alert(1)")))
    request = {"ask": "open", "kind": "upload", "path": str(picture), "name": "<img src=x onerror=1>" + "x" * 500}
    text, _ = handlers.answer(request, None, picture.parent)
    view = json.loads(text)
    assert "<" not in text and view["instances"][0]["label"] == "</script><script>alert(1)"
    assert view["title"].startswith("<img") and len(view["title"]) == 120


def test_large_pictures_are_shrunk_for_the_browser_only(tmp_path):
    for before, after in (((1000, 3200), (500, 1600)), ((1, 1), (1, 1)), ((1, 4000), (1, 1600))):
        assert shrunk(np.zeros((*before, 3), np.uint8), 1600).shape[:2] == after
    path = tmp_path / "large.bmp"
    Image.fromarray(np.random.default_rng(0).integers(0, 9, (1700, 1700, 3), dtype=np.uint8)).save(path)
    view, session = open_upload(fake_handlers(things=FakePredictor(count=1)), path)
    assert view["size"] == [1700, 1700] and view["view"] == [1600, 1600]
    assert path.stat().st_size > 8_000_000 > len(session.picture.source)
    assert Image.open(io.BytesIO(session.picture.source)).size == (1700, 1700)


def test_scenes_come_with_ground_truth():
    scene = make_scene(7, 18)
    handlers = fake_handlers(shapes=FakePredictor(given=scene.boxes.tolist()))
    view, session = ask(handlers, ask="open", kind="scene", seed=7, index=18, difficulty=None, weights="things")
    assert view["weights"] == "shapes"  # the weights for scenes
    assert view["key"] == "7:18:mixed" and view["truths"] == len(scene.masks) > 2
    for row, (one, truth) in enumerate(zip(view["instances"], scene.masks, strict=True)):
        for k in (0, 3):
            mask = session.instances.pasted(row, k, session.image_size)
            assert one["iou"][k] == pytest.approx(mask_iou(mask, truth))
            assert one["boundary"][k] == pytest.approx(boundary_iou(mask, truth))
    handlers = fake_handlers(shapes=FakePredictor(given=[[0, 0, 4, 4]]))
    for index, count in ((18, len(scene.masks)), (9, 0)):  # far from every shape; an empty scene
        _, session = handlers.analyse(scene_picture(7, index, None), "shapes")
        assert len(session.picture.truth) == count and np.isnan(session.instances.mask_iou).all()


# ---- examples, uploads, weights ----


def test_examples_are_analysed_once_and_only_if_they_exist(picture):
    predictor = FakePredictor()
    handlers = fake_handlers(find_examples(picture.parent), things=predictor)
    assert handlers.examples == [] and handlers.first_view() == "" and handlers.first_session() is None
    Image.open(picture).save(picture.with_suffix(".jpg"))
    handlers = fake_handlers(find_examples(picture.parent), things=predictor)
    (first, session), (second, again) = [ask(handlers, ask="open", kind="example", key="photo.jpg") for _ in range(2)]
    assert len(predictor.calls) == 1 and session is again is handlers.first_session()
    assert first.pop("turn") != second.pop("turn") and first == second
    for key in ("../photo.jpg", "photo.png", None, 0, ["photo.jpg"]):
        with pytest.raises(DynaMaskError, match="no such picture"):
            ask(handlers, ask="open", kind="example", key=key)


def test_examples_follow_the_attribution_table(tmp_path):
    for name in ("a.jpg", "b.jpg", "c_d.jpg"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    rows = ["file_name,title,author,license,source", "b.jpg,Bee,Ann,CC BY 2.0,https://example.org", "missing.jpg,,,,"]
    (tmp_path / "ATTRIBUTION.csv").write_text("\n".join([*rows, "a.jpg,,,,\n"]))
    examples = find_examples(tmp_path)
    assert [example.key for example in examples] == ["b.jpg", "a.jpg", "c_d.jpg"]
    assert examples[0].title == "Bee" and examples[0].credit == "Ann · CC BY 2.0 · https://example.org"
    assert examples[2].title == "c d" and examples[2].credit == ""


def test_every_bundled_example_names_its_source():
    examples = find_examples()
    assert examples and {example.source for example in examples} == set(EXAMPLES_DIR.glob("*.jpg"))
    assert all(example.credit for example in examples)
    shown = json.loads(fake_handlers(examples).shown_examples())
    assert len(shown) == len(examples) + len(SCENES)
    assert [one["key"] for one in shown if one["kind"] == "scene"][0] == "7:18:mixed"


def test_an_upload_is_read_from_the_upload_folder_only(picture, tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(picture.read_bytes())
    outside = picture.parent / ".." / "secret.png"
    for path in (secret, outside, picture.parent, picture.parent / "absent.png", "../../x", None, "\0"):
        with pytest.raises(DynaMaskError, match="not uploaded here"):
            ask(fake_handlers(), None, picture.parent, ask="open", kind="upload", path=path)


def test_an_upload_that_is_no_picture_is_refused(picture):
    predictor, bomb = FakePredictor(), io.BytesIO()
    Image.new("1", (16000, 12500)).save(bomb, "PNG")
    assert len(bomb.getvalue()) < 200_000
    for data in (picture.read_bytes()[:200], b"not a picture", b"", bomb.getvalue()):
        picture.write_bytes(data)
        with pytest.raises(DynaMaskError) as refusal:
            open_upload(fake_handlers(things=predictor), picture)
        assert str(picture.parent) not in str(refusal.value)
    assert predictor.calls == []


def test_weights_follow_the_kind_of_picture():
    catalog = fake_catalog("things", ("shapes", "mine"))
    assert catalog.suitable("scene", "things") == "shapes" and catalog.suitable("photo", "shapes") == "things"
    assert catalog.suitable("scene", "mine") == catalog.suitable("photo", "mine") == "mine"
    assert fake_catalog("things").suitable("scene", "things") == "things"
    with pytest.raises(DynaMaskError, match="choose one of things"):
        catalog.get("absent")


def test_weights_are_loaded_once_and_a_file_is_named_by_its_stem():
    loaded: list[str] = []
    catalog = WeightsCatalog(lambda source: loaded.append(source) or 1, "runs/mine.safetensors", ["things"])
    assert catalog.names == ["mine", "things"] and catalog.get("mine") is catalog.get("mine")
    assert loaded == ["runs/mine.safetensors"]


# ---- requests ----


@pytest.mark.parametrize(
    "request_data",
    [None, "open", [], {}, {"ask": "delete"}, {"ask": "open"}, {"ask": "open", "kind": "same"}]
    + [{**SCENE, "seed": seed} for seed in (math.nan, -1, 1.5, "7", 10**12)]
    + [{**SCENE, "difficulty": difficulty} for difficulty in (2, math.inf)]
    + [{**SCENE, "weights": weights} for weights in ("../../x", ["things"])]
    + [{"ask": "draw", "token": "1", "boxes": [[0, 0, 9, 9]]}],
)
def test_a_request_that_makes_no_sense_is_refused_in_a_sentence(request_data, tmp_path):
    with pytest.raises(DynaMaskError) as refusal:
        fake_handlers().answer(request_data, None, tmp_path)
    assert len(str(refusal.value)) > 20 and "\n" not in str(refusal.value)


@pytest.mark.parametrize("value", [True, "1", None, math.nan])
def test_what_is_not_a_number_is_refused(value):
    with pytest.raises(DynaMaskError, match="score .* is not usable; give a number from 0 to 1"):
        number(value, "score", 0, 1)


def test_a_drawn_box_adds_an_instance(picture):
    handlers = fake_handlers()
    view, session = open_upload(handlers, picture)
    more, grown = ask(handlers, session, ask="draw", boxes=[[10, 20, 90, 100.5]])
    (one,) = more["instances"]
    assert more["type"] == "more" and one["box"] == [10, 20, 90, 100.5] and one["drawn"]
    assert len(grown.instances) == len(view["instances"]) + 1 and len(session.instances) == len(view["instances"])
    for boxes in ([], None, [[0, 0, 0, 9]], [[math.nan, 0, 5, 5]], [["a", 0, 5, 5]], [[1, 2, 3]], [[0, 0, 9, 9]] * 41):
        with pytest.raises(DynaMaskError):
            ask(handlers, session, ask="draw", boxes=boxes)
    with pytest.raises(DynaMaskError, match="no longer kept"):
        ask(handlers, session, ask="draw", boxes=[[0, 0, 9, 9]], token="another")
    answer, _ = ask(handlers, None, **SCENE, boxes=[[5, 5, 60, 60]])  # as a link brings them
    assert answer["type"] == "both" and answer["view"]["type"] == "view"
    assert answer["more"]["instances"][0]["box"] == [5, 5, 60, 60]


def test_exports_hold_what_is_shown(picture):
    handlers = fake_handlers(things=FakePredictor(class_names=("__background__", "=cmd|' /C calc'!A0")))
    _, session = open_upload(handlers, picture, "../../<b>x.png")
    picks = [[0, 3], [2, 0]]
    name, data = exported(handlers, session, "coco", picks)
    results = json.loads(data)
    assert name == "dynamask-b-x-results.json"
    assert [(one["mask_size"], one["macs"]) for one in results] == [(112, MACS[3]), (14, MACS[0])]
    decoded = [coco_mask.decode(one["segmentation"]).astype(bool) for one in results]
    for mask, (row, k) in zip(decoded, picks):
        assert np.array_equal(mask, session.instances.pasted(row, k, session.image_size))
    ids = np.asarray(Image.open(io.BytesIO(exported(handlers, session, "ids", picks)[1])))
    assert ids.shape == (120, 200) and set(np.unique(ids)) == {0, 1, 3}
    assert np.array_equal(ids == 1, decoded[0]) and np.array_equal(ids == 3, decoded[1] & ~decoded[0])
    table = exported(handlers, session, "csv", picks)[1].decode()
    rows = [(row["instance"], row["mask_size"], row["mask_iou_14"]) for row in csv.DictReader(io.StringIO(table))]
    assert rows == [("1", "112", ""), ("3", "14", "")] and "\n1,'=cmd" in table  # not a formula
    assert "quality" not in results[0] and next(csv.DictReader(io.StringIO(table)))["predicted_mask_iou_14"] == ""
    overlay = Image.open(io.BytesIO(exported(handlers, session, "overlay", picks, opacity=0.4, boxes=True)[1]))
    assert overlay.size == (200, 120) and overlay.mode == "RGB"
    for what, more, words in (
        (["coco"], {}, "cannot be exported"),
        ("../../x", {}, "cannot be exported"),
        ("overlay", {"opacity": math.nan}, "opacity"),
    ):
        with pytest.raises(DynaMaskError, match=words):
            exported(handlers, session, what, [], **more)
    for wrong in (None, "x", [[0]], [[9, 0]], [[0, 4]], [[0.5, 0]], [[-1, 0]], [[0, 0]] * 7, [None]):
        with pytest.raises(DynaMaskError):
            exported(handlers, session, "csv", wrong)


def test_exports_hold_the_predicted_quality(picture):
    handlers = fake_handlers(things=FakePredictor(has_quality=True))
    view, session = open_upload(handlers, picture)
    quality = view["instances"][2]["quality"]
    (result,) = json.loads(exported(handlers, session, "coco", [[2, 1]])[1])
    assert result["quality"] == pytest.approx(quality[1], abs=1e-4)
    (row,) = csv.DictReader(io.StringIO(exported(handlers, session, "csv", [[2, 1]])[1].decode()))
    for k, size in enumerate(MASK_SIZES):
        assert float(row[f"predicted_mask_iou_{size}"]) == pytest.approx(quality[k][0], abs=1e-4)
        assert float(row[f"predicted_boundary_iou_{size}"]) == pytest.approx(quality[k][1], abs=1e-4)


@pytest.mark.parametrize("title", ["../../etc/passwd", "con\0\n.png", "", "…", "<img src=x>.jpg", "x" * 400])
def test_file_names_are_plain(title):
    name = file_name(title, "overlay.png")
    assert name.startswith("dynamask-") and name.endswith("-overlay.png") and len(name) < 90
    assert all(letter.isascii() and (letter.isalnum() or letter in "-.") for letter in name) and ".." not in name


def test_the_measured_time_is_that_of_the_chosen_sizes(monkeypatch):
    """Only the chosen size of each instance is computed, with the model's own dispatch."""
    predictor = predictor_of(tiny_model())
    image = np.random.default_rng(1).integers(0, 255, (96, 128, 3), dtype=np.uint8)
    handlers = fake_handlers(things=predictor)
    _, session = handlers.analyse(SourcePicture("own", "", "x", "", image), "things")
    _, session = ask(handlers, session, ask="draw", boxes=[[5, 5, 60, 60], [30, 20, 100, 90]])
    first, stages = len(session.instances) - 2, []
    region_fpn = predictor.model.mask_branch.region_fpn
    stage = region_fpn.stage
    monkeypatch.setattr(region_fpn, "stage", lambda k, *rest: stages.append((k, len(rest[0]))) or stage(k, *rest))
    answer, _ = ask(handlers, session, ask="measure", picks=[[first, 0], [first + 1, 2]])
    assert stages == [(1, 1), (2, 1)]  # one instance goes on to 28 and 56, none to 112
    assert answer["milliseconds"] > 0 and answer["count"] == 2
    assert answer["mean"] == (session.macs[0] + session.macs[2]) / 2


# ---- command line ----


@pytest.mark.parametrize(
    "arguments",
    [["--port", "0"], ["--port", "x"], ["--auth", "user"], ["--unknown"], ["--weights", "absent.safetensors"]],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    captured = capsys.readouterr()
    assert stop.value.code == 2 and captured.out == ""
    assert captured.err.startswith("dynamask: error: ") and captured.err.count("\n") == 1
    assert arguments[0] in captured.err or arguments[1] in captured.err


@pytest.mark.parametrize(
    ("arguments", "warned"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0"),
        (["--share"], "--share"),
        (["--host", "192.168.1.5"], "--host 192.168.1.5"),
        (["--host", "0.0.0.0", "--auth", "a:b"], ""),
        (["--host", "127.0.0.1"], ""),
        ([], ""),
    ],
)
def test_an_open_address_without_a_login_is_warned_of(arguments, warned, capsys):
    warn_if_open(parse_arguments(arguments))
    printed = capsys.readouterr().err
    assert printed.count("\n") == bool(warned) and warned in printed
    assert not warned or (printed.startswith("dynamask: warning: ") and "--auth USER:PASSWORD" in printed)


def test_a_session_that_takes_too_much_memory_is_refused(picture, monkeypatch):
    handlers = fake_handlers()
    _, session = open_upload(handlers, picture)
    masks = sum(size * size for size in MASK_SIZES) * len(session.instances)
    assert session.nbytes == masks + len(session.picture.source)
    monkeypatch.setattr("app.handlers.LIMITS", Limits(session_megabytes=0))
    with pytest.raises(DynaMaskError, match="at most 0 MB are kept"):
        open_upload(handlers, picture)


def test_one_stage_masks_of_large_pictures_are_refused():
    shared = SharedPredictor(SimpleNamespace(mask_sizes=()))
    shared.check_size(2000, 2500)
    with pytest.raises(DynaMaskError, match="at most 5.0 million pixels here, and this one has 12.0"):
        shared.check_size(3000, 4000)
    SharedPredictor(FakePredictor()).check_size(3000, 4000)


def test_exports_above_the_limit_are_refused(picture, monkeypatch):
    handlers = fake_handlers()
    _, session = open_upload(handlers, picture)
    monkeypatch.setattr("app.mask_encoding.LIMITS", Limits(mask_megapixels=0))
    for what in ("overlay", "ids", "coco"):
        with pytest.raises(DynaMaskError, match="million are computed"):
            exported(handlers, session, what, [[0, 0]])
    assert exported(handlers, session, "csv", [[0, 0]])


def test_help_does_not_wait_for_the_libraries():
    code = (
        "import sys, app.__main__ as m\ntry: m.main(['-h'])\nexcept SystemExit: pass\n"
        "print({'torch', 'gradio'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "--weights" in done.stdout and done.stdout.rstrip().endswith("set()")
