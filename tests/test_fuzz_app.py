"""Property-based tests of the app: payloads of its endpoints, requests of its page, and uploaded files."""

from __future__ import annotations

import base64
import functools
import io
import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("hypothesis", reason="the inputs are made by hypothesis")
gr = pytest.importorskip("gradio", reason="the endpoints need gradio")

import orjson  # noqa: E402
from helpers.app_fakes import fake_handlers  # noqa: E402
from helpers.fuzzing import Target, result_or_sentence, run_examples, run_for  # noqa: E402
from helpers.mutations import damaged, hostile_values, json_files, mutated  # noqa: E402
from helpers.small_models import tiny_model  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from PIL import Image  # noqa: E402

from app import api  # noqa: E402
from app.catalog import WeightsCatalog  # noqa: E402
from app.context import PageContext  # noqa: E402
from app.handlers import ExploreHandlers  # noqa: E402
from app.uploads import analyse, unpacked  # noqa: E402
from dynamask.predict import predictor_of  # noqa: E402


@functools.cache
def folder() -> Path:
    """A folder of uploads with a picture, removed at the end of the process."""
    folder.kept = tempfile.TemporaryDirectory(prefix="dynamask-fuzz-")
    path = Path(folder.kept.name)
    (path / "photo.png").write_bytes(picture())
    return path


@functools.cache
def picture() -> bytes:
    """A small PNG."""
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (40, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


@functools.cache
def endpoints() -> dict[str, Any]:
    """The functions behind /predict, /select and /scene, with a small model."""
    predictor = predictor_of(tiny_model())
    explorer = ExploreHandlers(WeightsCatalog(lambda name: predictor, "things", ["things", "shapes"]), [])
    with gr.Blocks(analytics_enabled=False) as page:
        api.build(PageContext(explorer, gr.State(None)))
    return {block.api_name: block.fn for block in page.fns.values()}


def call(name: str, payload: dict[str, Any]) -> Any:
    """The answer of an endpoint, which must be JSON; None if it refused its arguments in one sentence.

    Other errors are raised: on a page they are logged, and a sentence that says nothing takes their place.
    """
    answer = result_or_sentence(endpoints()[name].__wrapped__, **payload)
    assert orjson.dumps(answer)
    return answer


# ---- endpoints ----


@functools.cache
def predict_payload() -> dict[str, Any]:
    """A valid call of /predict."""
    text = base64.b64encode(picture()).decode("ascii")
    return {"image": text, "weights": "things", "policy": "learned", "budget": 0.05, "score": 0.0, "all_sizes": True}


@functools.cache
def answered() -> dict[str, Any]:
    """The answer of /predict."""
    return json.loads(orjson.dumps(call("predict", {**predict_payload(), "budget": None})))


def _changed(payload: dict[str, Any]) -> st.SearchStrategy:
    """Payloads whose arguments have other values; their names stay, as the server checks them."""

    @st.composite
    def changed(draw: st.DrawFn) -> dict[str, Any]:
        values = dict(payload)
        for name in draw(st.lists(st.sampled_from(list(payload)), min_size=1, max_size=2, unique=True)):
            values[name] = draw(st.one_of(hostile_values(), mutated([payload[name]])))
        return values

    return changed()


BOXES = [[5.0, 5.0, 30.0, 30.0], [1, 2, 20, 20]]
CHOICES = ("learned", "size", "quality", "fixed:14", "fixed:x")
PREDICT = st.deferred(
    lambda: st.one_of(
        _changed(predict_payload()),
        _changed({**predict_payload(), "boxes": BOXES, "budget": None}),
        damaged(st.just(picture())).map(lambda data: {"image": base64.b64encode(data).decode("ascii")}),
    )
)
SELECT = st.deferred(
    lambda: st.one_of(
        st.builds(
            dict, prediction=mutated([answered()]), policy=st.sampled_from(CHOICES), budget=st.none() | st.floats()
        ),
        _changed({"prediction": answered(), "policy": "learned", "budget": 0.05}),
    )
)
SCENE = st.deferred(lambda: _changed({"seed": 1, "index": 2, "difficulty": 0.5}))


# ---- the page ----


@functools.cache
def page() -> tuple[ExploreHandlers, Any, list[dict[str, Any]]]:
    """Handlers with invented predictors, a visitor's session, and valid requests."""
    handlers = fake_handlers()
    opening = {
        "ask": "open",
        "kind": "upload",
        "path": str(folder() / "photo.png"),
        "name": "a.png",
        "weights": "things",
    }
    _, session = handlers.answer(opening, None, folder())
    token = session.token
    requests = [
        opening,
        {"ask": "open", "kind": "scene", "seed": 7, "index": 1, "difficulty": 0.5, "weights": "shapes", "keep": True},
        {"ask": "draw", "token": token, "boxes": BOXES},
        {"ask": "explain", "token": token, "row": 0},
        {"ask": "export", "token": token, "what": "coco", "picks": [[0, 1], [1, 3]], "opacity": 0.5, "boxes": True},
        {"ask": "export", "token": token, "what": "overlay", "picks": [[0, 1]]},
    ]
    return handlers, session, requests


def check_request(request: Any) -> None:
    """A request of the page's canvas."""
    handlers, session, _ = page()
    answer = result_or_sentence(handlers.answer, request, session, folder())
    if answer is not None:
        json.loads(answer[0].encode("utf-8"))


# ---- uploads ----

COCO = {
    "images": [{"id": 1, "file_name": "photo.png", "width": 48, "height": 40}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 20, 20], "area": 400, "iscrowd": 0}
    | {"segmentation": [[5, 5, 25, 5, 25, 25, 5, 25]]}],
    "categories": [{"id": 1, "name": "class_1"}],
}  # fmt: skip


def _zipped(content: bytes, name: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
        archive.writestr("photo.png", picture())
    return stream.getvalue()


def check_upload(case: tuple[bytes, str]) -> None:
    """An uploaded JSON file or zip, up to the table of classes."""
    content, ending = case
    path = folder() / f"upload{ending}"
    path.write_bytes(content)

    def work() -> None:
        with unpacked([path]) as data:
            for text, _ in analyse(data, predictor_of_page(), "things"):
                assert text

    result_or_sentence(work)


@functools.cache
def predictor_of_page() -> Any:
    """A small model with the class of the uploads."""
    return predictor_of(tiny_model())


NAMES = st.sampled_from(
    ("a.json", "../a.json", "/etc/a.json", "a/b/../c.json", "a.json/", "con.json", "\u202e.json", "é.json")
)
UPLOADS = st.one_of(
    st.tuples(json_files((COCO,)), st.just(".json")),
    st.tuples(st.builds(_zipped, json_files((COCO,)), NAMES), st.just(".zip")),
    st.tuples(damaged(st.builds(_zipped, st.just(json.dumps(COCO).encode()), NAMES)), st.just(".zip")),
)

TARGETS = {
    "predict": Target(PREDICT, functools.partial(call, "predict"), 20),
    "select": Target(SELECT, functools.partial(call, "select"), 40),
    "scene": Target(SCENE, functools.partial(call, "scene"), 20),
    "page": Target(st.deferred(lambda: mutated(page()[2]) | hostile_values()), check_request, 40),
    "uploads": Target(UPLOADS, check_upload, 30),
}


@pytest.mark.parametrize("name", TARGETS)
def test_requests_give_an_answer_or_a_sentence(name):
    run_examples(TARGETS[name])


@pytest.mark.fuzz
@pytest.mark.parametrize("name", TARGETS)
def test_new_requests_give_an_answer_or_a_sentence(name):
    print(f"{name}: {run_for(TARGETS[name])} inputs")
