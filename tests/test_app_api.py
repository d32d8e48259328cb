"""The endpoints: their functions, and the same through gradio_client with a real server and a small model."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as coco_mask
from helpers.small_models import tiny_model
from PIL import Image

pytest.importorskip("gradio", reason="the endpoints need gradio")
gradio_client = pytest.importorskip("gradio_client", reason="the endpoints are called with gradio_client")

import gradio as gr  # noqa: E402

from app import api, ui  # noqa: E402
from app.catalog import SharedPredictor, WeightsCatalog  # noqa: E402
from app.context import PageContext  # noqa: E402
from app.errors import notifying  # noqa: E402
from app.handlers import ExploreHandlers  # noqa: E402
from app.images import decoded  # noqa: E402
from dynamask.data.shapes.scene import make_scene  # noqa: E402
from dynamask.predict import Predictor, predictor_of  # noqa: E402
from dynamask.structures import MASK_SIZES, DynaMaskError  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return predictor_of(tiny_model())


@pytest.fixture(scope="module")
def address(predictor: Predictor):
    explorer = ExploreHandlers(WeightsCatalog(lambda name: predictor, "things", ["things", "shapes"]), [])
    with gr.Blocks(analytics_enabled=False) as page:
        api.build(PageContext(explorer, gr.State(None)))
    _, url, _ = ui.launch(page, prevent_thread_lock=True, quiet=True)
    yield url
    page.close(verbose=False)


@pytest.fixture(scope="module")
def client(address: str):
    return gradio_client.Client(address, verbose=False)


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("api") / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 80, 3), dtype=np.uint8)).save(path)
    return path


def text_of(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode("ascii")


def answer(predictor: Predictor, picture: Path, all_sizes: bool = True, **options) -> dict:
    prediction = predictor(picture, score=0.0, all_sizes=all_sizes, **options)
    return api.answer_of(prediction, predictor, "things", all_sizes)


def test_answers_are_json_and_say_what_the_predictor_says(predictor, picture):
    got = json.loads(json.dumps(answer(predictor, picture), allow_nan=False))
    prediction = predictor(picture, score=0.0)
    assert got["image_size"] == [64, 80] and len(got["instances"]) == len(prediction) > 0
    for i, one in enumerate(got["instances"]):
        assert one["mask_size"] == prediction.mask_size[i] and one["macs"] == prediction.macs[i]
        assert sum(one["switch_probs"]) == pytest.approx(1, abs=1e-5)
        assert (coco_mask.decode(one["segmentation"]).astype(bool) == prediction.mask(i).numpy()).all()
        assert one["masks"][str(one["mask_size"])] == one["segmentation"]


@pytest.mark.parametrize("options", [{"policy": "fixed:14"}, {"policy": "size"}, {"policy": "learned"}, {"budget": 0}])
def test_select_chooses_as_the_predictor_does(predictor, picture, options):
    macs = predictor.costs.macs_per_instance
    if "budget" in options:
        options = {"budget": (macs[0] + macs[2]) / 2e9}
    first, prediction = answer(predictor, picture), predictor(picture, score=0.0)
    again = api.reselected(json.loads(json.dumps(first)), options.get("policy"), options.get("budget"))
    expected = predictor.select(prediction, **options)
    assert [one["mask_size"] for one in again["instances"]] == expected.mask_size.tolist()
    assert [one["macs"] for one in again["instances"]] == expected.macs.tolist()
    assert again["mean_macs"] == pytest.approx(float(expected.macs.double().mean()))
    for i, one in enumerate(again["instances"]):
        assert (coco_mask.decode(one["segmentation"]).astype(bool) == expected.mask(i).numpy()).all()
    assert [one["mask_size"] for one in first["instances"]] == prediction.mask_size.tolist()  # left as it was


def test_the_quality_travels_with_the_answer_and_a_budget_follows_it(predictor, picture):
    first, prediction = answer(predictor, picture), predictor(picture, score=0.0)
    first = json.loads(json.dumps(first, allow_nan=False))
    assert [one["quality"] for one in first["instances"]] == prediction.quality.tolist() and len(prediction) > 1
    budget = sum(predictor.costs.macs_per_instance[1:3]) / 2e9
    for policy in (None, "quality", "learned"):
        expected = predictor.select(prediction, policy, budget).mask_size.tolist()
        assert [one["mask_size"] for one in api.reselected(first, policy, budget)["instances"]] == expected
    expected = predictor.select(prediction, "quality").mask_size.tolist()
    assert [one["mask_size"] for one in api.reselected(first, "quality", None)["instances"]] == expected
    assert api.reselected({**first, "instances": []}, "quality", budget)["mean_macs"] is None


def test_answers_without_quality_follow_the_switch(predictor, picture):
    first, prediction = answer(predictor, picture), predictor(picture, score=0.0)
    old = {**first, "instances": [{k: v for k, v in one.items() if k != "quality"} for one in first["instances"]]}
    budget = sum(predictor.costs.macs_per_instance[:2]) / 2e9
    expected = predictor.select(prediction, "learned", budget).mask_size.tolist()
    assert [one["mask_size"] for one in api.reselected(old, None, budget)["instances"]] == expected
    with pytest.raises(DynaMaskError, match="this answer has none; use 'learned'"):
        api.reselected(old, "quality", None)


def test_select_without_all_masks_gives_no_wrong_mask(predictor, picture):
    first = answer(predictor, picture, all_sizes=False, policy="fixed:28")
    assert all(one["segmentation"] for one in api.reselected(first, "fixed:28", None)["instances"])
    assert all(one["segmentation"] is None for one in api.reselected(first, "fixed:56", None)["instances"])


def test_select_refuses_what_is_no_answer(predictor, picture):
    first = answer(predictor, picture)
    bad = [None, [], "text", {}, {"instances": []}]
    fields = [{"macs_per_instance": [1, 2]}, {"macs_per_instance": [4, 3, 2, 1]}, {"image_size": [0, 5]}]
    fields += [
        {"family": "\ud800"},
        {"weights": 10**30},
        {"weights": json.loads("[" * 300 + "]" * 300)},
    ]  # cannot be sent back
    fields += [{"image_size": "ab"}, {"instances": [1, 2]}, {"instances": first["instances"] * 1000}]
    bad += [{**first, **change} for change in fields]
    values = [{"switch_probs": value} for value in ([0.5, 0.5], [math.nan] * 4, [-1, 1, 1, 0])]
    qualities = ([[0.5, 0.5]] * 3, [0.5] * 4, [[0.5, 1.01]] * 4, [[0.5, -0.1]] * 4, [[0.5, math.nan]] * 4, None, "high")
    values += [{"quality": value} for value in qualities]
    for change in [*values, {"box": [1, 2]}, {"box": [math.inf] * 4}]:
        bad.append({**first, "instances": [{**one, **change} for one in first["instances"]]})
    *others, last = first["instances"]
    bad.append({**first, "instances": [*others, {key: value for key, value in last.items() if key != "quality"}]})
    for value in bad:
        with pytest.raises(DynaMaskError, match="not an answer of /predict"):
            api.reselected(value, "learned", None)
    bad_budgets = [("learned", value) for value in (math.nan, "much", 1e-9, True)]
    for policy, budget in [("oracle", None), (7, None), ("size", 0.1), *bad_budgets]:
        with pytest.raises(DynaMaskError):
            api.reselected(first, policy, budget)
    assert api.reselected({**first, "instances": []}, "learned", None)["mean_macs"] is None


def test_pictures_come_as_files_or_text_and_from_nowhere_else(picture, tmp_path):
    expected = np.asarray(Image.open(picture))
    for image in ({"path": str(picture)}, text_of(picture), "data:image/png;base64," + text_of(picture)):
        assert (decoded(api.picture_bytes(image, picture.parent)) == expected).all()
    outside = tmp_path / "secret.png"
    outside.write_bytes(picture.read_bytes())
    paths = [
        {"path": str(outside)},
        {"path": str(picture.parent / ".." / tmp_path.name / "secret.png")},
        {"path": 3},
        {"path": "\ud800"},
    ]
    for image in [*paths, {"url": "http://127.0.0.1/x.png"}, None, 5, "%%%", "", "aGVsbG8=", [1]]:
        with pytest.raises(DynaMaskError) as refused:
            decoded(api.picture_bytes(image, picture.parent))
        assert str(tmp_path) not in str(refused.value)


def test_a_scene_is_what_make_scene_makes():
    got = json.loads(json.dumps(api.scene_of(5, 3, 0.5), allow_nan=False))
    scene = make_scene(5, 3, detail=0.5)
    pixels = Image.open(io.BytesIO(base64.b64decode(got["image"].partition(",")[2])))
    assert (np.asarray(pixels) == scene.image).all() and got["image_size"] == list(scene.image.shape[:2])
    assert [one["box"] for one in got["instances"]] == scene.boxes.tolist() and len(scene) > 0
    for one, mask in zip(got["instances"], scene.masks):
        assert (coco_mask.decode(one["segmentation"]).astype(bool) == mask).all()
    assert api.scene_of(5, 9, None)["instances"] == []
    for seed, index, difficulty in (
        (-1, 0, None),
        (0, 2**40, None),
        (0.5, 0, None),
        (0, 0, 2),
        (0, 0, math.nan),
        ("1", 0, None),
        (0, True, None),
        (None, 0, None),
        (math.inf, 0, None),
    ):
        with pytest.raises(DynaMaskError, match="is not usable"):
            api.scene_of(seed, index, difficulty)


def test_predict_select_and_scene_through_the_client(client, picture, predictor):
    scene = client.predict(seed=2, index=1, api_name="/scene")
    seen = client.predict(image=scene["image"], score=0.0, all_sizes=True, api_name="/predict")
    assert seen["weights"] == "things" and seen["image_size"] == scene["image_size"] and seen["instances"]
    cheap = client.predict(prediction=seen, policy="fixed:14", api_name="/select")
    assert {one["mask_size"] for one in cheap["instances"]} == {14}
    sent = client.predict(image=gradio_client.handle_file(str(picture)), score=0.0, api_name="/predict")
    assert [one["mask_size"] for one in sent["instances"]] == predictor(picture, score=0.0).mask_size.tolist()
    given = client.predict(image=text_of(picture), boxes=[[5, 5, 60, 50]], weights="shapes", api_name="/predict")
    assert len(given["instances"]) == 1 and given["instances"][0]["box"] == [5, 5, 60, 50]


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("/predict", {"weights": "dogs"}, "dogs"),
        ("/predict", {"budget": 1e-9}, "below the cheapest size"),
        ("/predict", {"budget": "nan"}, "not a number"),
        ("/predict", {"policy": "best"}, "unknown"),
        ("/predict", {"score": 3}, "a number from 0 to 1"),
        ("/predict", {"boxes": [[9, 9, 3, 3]]}, "no area"),
        ("/predict", {"boxes": [[1, 2]]}, "boxes"),
        ("/predict", {"image": "no picture"}, "base64"),
        ("/predict", {"weights": ["things"]}, "there are no weights"),
        ("/predict", {"boxes": [[0, 0, 9, 10**400]]}, "boxes"),
        ("/predict", {"boxes": [[0, 0, 9, 9]] * 301}, "at most 300"),
        ("/predict", {"budget": 10**400}, "not a number"),
        ("/scene", {"seed": 10**400}, "seed 'a number of many digits' is not usable"),
        ("/select", {"prediction": {"instances": 3}}, "not an answer of /predict"),
        ("/scene", {"seed": 1.5}, "whole number"),
        ("/scene", {"seed": -1}, "seed"),
    ],
)
def test_mistakes_are_one_sentence_for_the_client(client, picture, name, arguments, words):
    arguments = {"image": text_of(picture), **arguments} if name == "/predict" else arguments
    with pytest.raises(gradio_client.exceptions.AppError) as refused:
        client.predict(api_name=name, **arguments)
    message = str(refused.value)
    assert words in message.lower() and "Traceback" not in message and "\n" not in message.strip()


def test_large_boxes_on_a_large_picture_are_refused_before_they_are_decoded(predictor, monkeypatch):
    buffer = io.BytesIO()
    Image.new("L", (5000, 4000)).save(buffer, "PNG")
    options = {"boxes": [[0, 0, 5000, 4000]] * 5, "all_sizes": True}
    shared = SharedPredictor(predictor)
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("the picture was decoded"))
    api.check_size(shared, buffer.getvalue(), {**options, "all_sizes": False})
    with pytest.raises(DynaMaskError, match="million pixels, and at most 500 million"):
        api.check_size(shared, buffer.getvalue(), {**options, "boxes": options["boxes"] * 2})


def test_what_is_not_foreseen_is_a_sentence_too(caplog):
    @notifying
    def broken() -> None:
        raise ZeroDivisionError("inside")

    with pytest.raises(gr.Error) as refused:
        broken()
    assert "could not process" in refused.value.message and "inside" not in refused.value.message
    assert "ZeroDivisionError" in caplog.text  # for the operator


def test_a_model_computes_for_one_request_at_a_time():
    running, most = [], []

    class Slow:
        mask_sizes = (14,)

        def __call__(self, image: object) -> None:
            running.append(image)
            most.append(len(running))
            time.sleep(0.02)
            running.pop()

    shared = SharedPredictor(Slow())
    threads = [threading.Thread(target=shared, args=(i,)) for i in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 5 and shared.mask_sizes == (14,)


def test_a_budget_that_is_not_a_number_is_refused(client, picture):
    try:
        client.predict(image=text_of(picture), budget=math.nan, api_name="/predict")
    except Exception as error:  # the client or the server may refuse the JSON; neither may answer
        assert "Traceback" not in str(error)
    else:
        pytest.fail("a budget of nan was answered")


def test_the_snippet_of_the_api_guide_runs(client, address, monkeypatch, capsys):
    """The example in docs/api.md, with the address of this server."""
    section = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    snippet = re.search(r"^```py\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)[1]
    assert "http://127.0.0.1:7860" in snippet
    torch.manual_seed(0)
    names: dict = {}
    monkeypatch.chdir(ROOT)
    code = snippet.replace("http://127.0.0.1:7860", address).replace("http://127.0.0.1:7860/", address)
    exec(compile(code, "docs/api.md", "exec"), names)
    assert names["prediction"]["mask_sizes"] == list(MASK_SIZES) and isinstance(names["scene"]["instances"], list)
    assert all(one["mask_size"] == 28 for one in names["cheaper"]["instances"])
    assert capsys.readouterr().out
