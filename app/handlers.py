"""Requests of the Explore tab, without Gradio: a request from the browser in, JSON text for the canvas out."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from app.arguments import number, whole_number
from app.catalog import WeightsCatalog
from app.cell_explanations import RecentPredictions, explanation, matching_row
from app.downloads import FILES, Picks, download
from app.images import decoded, jpeg_url, shrunk, stored_size
from app.limits import LIMITS
from app.messages import as_json, more_message, view_message
from app.session import Session, SessionInstances, lowest_score
from app.source_pictures import SCENES, SourcePicture, read_upload, scene_picture
from app.work import MODEL, check_request
from dynamask.predict import CachedRegions
from dynamask.structures import MASK_SIZES, DynaMaskError
from dynamask.viz.overlay import encode_jpeg

MAX_DRAWN = 40
"""Boxes that a visitor may draw on one picture."""
KEPT_VIEWS = 24
"""Analysed examples and scenes that are kept for the next visitor."""
LARGEST_KEPT = 8_000_000
"""Bytes of an uploaded file that a session keeps as it is; larger files are kept as a JPEG."""
THUMBNAIL_SIDE = 144
"""Longest side of an example's thumbnail in pixels."""
LARGEST_SEED = 2**31 - 1
REQUESTS = ("open", "draw", "measure", "explain", "export")
"""What the page may ask for."""


class ExploreHandlers:
    """Answers the Explore tab: opens pictures, masks boxes, measures times, explains, exports.

    Answers for examples and scenes are kept for other visitors; uploads are kept in the visitor's own session only.

    Args:
        catalog: the weights.
        examples: the photographs that the page offers; the first one is shown when it opens.
    """

    def __init__(self, catalog: WeightsCatalog, examples: list[SourcePicture]) -> None:
        self.catalog = catalog
        self.examples = examples
        self._kept: OrderedDict[tuple[str, str, str], tuple[str, Session]] = OrderedDict()
        self._opening: tuple[str, Session] | None = None
        self._recent = RecentPredictions()
        self._tokens, self._turns = itertools.count(1), itertools.count(1)

    def answer(self, request: Any, session: Session | None, folder: Path) -> tuple[str, Session | None]:
        """Answer a request of the page.

        Args:
            request: what the browser sent: a mapping with `ask`, one of ``REQUESTS``.
            session: the visitor's; None while the opening picture is on the page.
            folder: where uploads are stored.

        Returns:
            A message to the canvas, and the visitor's session from now on. No two messages are equal, because Gradio
            tells the page of changes only.

        Raises:
            DynaMaskError: the request cannot be met.
        """
        if not isinstance(request, Mapping) or request.get("ask") not in REQUESTS:
            raise DynaMaskError("the page sent an unknown request; reload the page")
        text, session = self._answer(request, session if session is not None else self.first_session(), folder)
        return f'{{"turn": {next(self._turns)}, {text[1:]}', session

    def _answer(self, request: Mapping[str, Any], session: Session | None, folder: Path) -> tuple[str, Session]:
        if request["ask"] == "open":
            return self.open(request, session, folder)
        if session is None or request.get("token") != session.token:
            raise DynaMaskError("this picture is no longer kept on the server; open it again")
        if request["ask"] == "draw":
            added, session = self._add_boxes(session, request.get("boxes"))
            return more_message(session, added), session
        if request["ask"] == "explain":
            return self.explain(request, session), session
        picks = checked_picks(request.get("picks"), session)
        if request["ask"] == "measure":
            return self.measure(session, picks), session
        if request.get("what") not in tuple(FILES):  # lists have no hash
            raise DynaMaskError(f"this cannot be exported; choose one of {', '.join(FILES)}")
        opacity = number(request.get("opacity", 0.5), "opacity", 0, 1)
        return as_json(download(session, request["what"], picks, opacity, request.get("boxes") is True)), session

    # ---- pictures ----

    def open(self, request: Mapping[str, Any], session: Session | None, folder: Path) -> tuple[str, Session]:
        """Analyse another picture, or the same one with other weights; the request may bring drawn boxes."""
        picture = self.picture(request, session, folder)
        weights = request.get("weights", self.catalog.first)
        if not isinstance(weights, str):
            raise DynaMaskError(f"there are no such weights here; choose one of {', '.join(self.catalog.names)}")
        if request.get("keep") is not True:
            weights = self.catalog.suitable("scene" if picture.kind == "scene" else "photo", weights)
        text, opened = self.analyse(picture, weights)
        if not request.get("boxes"):
            return text, opened
        added, grown = self._add_boxes(opened, request["boxes"])
        return f'{{"type": "both", "view": {text}, "more": {more_message(grown, added)}}}', grown

    def picture(self, request: Mapping[str, Any], session: Session | None, folder: Path) -> SourcePicture:
        """The picture that a request names: an example, a scene, an upload, or the present one."""
        kind = request.get("kind")
        if kind == "example":
            for example in self.examples:
                if example.key == request.get("key"):
                    return example
        if kind == "scene":
            difficulty = request.get("difficulty")
            return scene_picture(
                whole_number(request.get("seed"), "seed", 0, LARGEST_SEED),
                whole_number(request.get("index"), "number of the scene", 0, LARGEST_SEED),
                None if difficulty is None else number(difficulty, "difficulty", 0, 1),
            )
        if kind == "upload":
            title = str(request.get("name", ""))[:120]
            return SourcePicture("own", "", title, "", read_upload(request.get("path"), folder))
        if kind == "same" and session is not None:
            return session.picture
        raise DynaMaskError("there is no such picture; choose one of those shown")

    def analyse(self, picture: SourcePicture, weights: str) -> tuple[str, Session]:
        """Find the instances of a picture with their masks at all sizes.

        Returns:
            The message to the canvas and the session.

        Raises:
            DynaMaskError: the picture or the weights cannot be used.
        """
        key = (weights, picture.kind, picture.key)
        if picture.kind != "own" and key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        predictor = self.catalog.get(weights)
        predictor.check_size(*stored_size(picture.source))
        image = decoded(picture.source)
        prediction = predictor(image, score=lowest_score(predictor), all_sizes=bool(predictor.mask_sizes))
        check_request()
        if isinstance(picture.source, bytes) and len(picture.source) > LARGEST_KEPT:
            picture = dataclasses.replace(picture, source=encode_jpeg(image, 95))
        session = Session.of(str(next(self._tokens)), weights, picture, predictor, prediction)
        check_bytes(session)
        if prediction.cells is not None:
            self._recent.put(session.token, prediction)
        answer = view_message(session, image), session
        if picture.kind != "own":
            self._kept[key] = answer
            while len(self._kept) > KEPT_VIEWS:
                self._kept.popitem(last=False)
        return answer

    # ---- smaller requests ----

    def _add_boxes(self, session: Session, boxes: Any) -> tuple[SessionInstances, Session]:
        """Instances for given boxes, and the session with them."""
        if not isinstance(boxes, list) or not boxes:
            raise DynaMaskError("no box was drawn; drag over the picture from corner to corner")
        _refuse_one_stage(session, "a mask for a drawn box")
        if int(session.instances.drawn.sum()) + len(boxes) > MAX_DRAWN:
            raise DynaMaskError(f"a picture takes at most {MAX_DRAWN} drawn boxes; open it again to start anew")
        image = decoded(session.picture.source)
        prediction = self.catalog.get(session.weights)(image, boxes=boxes, all_sizes=True)
        added = SessionInstances.of(prediction, drawn=True)
        if session.picture.truth is not None:
            added = added.compared(session.picture.truth)
        grown = dataclasses.replace(session, instances=session.instances.joined(added))
        check_bytes(grown)
        return added, grown

    def explain(self, request: Mapping[str, Any], session: Session) -> str:
        """The cell, the neighbours and the representations behind one instance of one-stage weights."""
        if session.levels is None:
            raise DynaMaskError("these weights find objects in boxes, not in cells; choose one-stage weights")
        row = whole_number(request.get("row"), "instance", 0, max(0, len(session.instances) - 1))
        prediction = self._recent.get(session.token)
        if prediction is None:
            image = decoded(session.picture.source)
            prediction = self.catalog.get(session.weights)(image, score=session.lowest_score)
            self._recent.put(session.token, prediction)
        match = matching_row(prediction, session.instances, row)
        if match is None:
            raise DynaMaskError("this instance was not found again; open the picture again")
        return as_json({"type": "cell", "token": session.token, "row": row, **explanation(prediction, match)})

    def measure(self, session: Session, picks: Picks) -> str:
        """The time of the mask branch when it computes these instances at these sizes only."""
        _refuse_one_stage(session, "measuring a choice of sizes")
        milliseconds = 0.0
        if picks:
            rows, sizes = map(list, zip(*picks))
            boxes, labels = session.instances.boxes[rows], session.instances.labels[rows].tolist()
            image = decoded(session.picture.source)
            predictor = self.catalog.get(session.weights)
            prediction = predictor(image, boxes=boxes, labels=labels, policy=f"fixed:{MASK_SIZES[0]}")
            fresh = CachedRegions(prediction.regions.branch, prediction.regions.state)  # the same without masks
            with MODEL():
                start = time.perf_counter()
                fresh.ensure(torch.tensor(sizes))
                milliseconds = prediction.timings["regions"] + (time.perf_counter() - start) * 1e3
        mean = sum(session.macs[k] for _, k in picks) / max(1, len(picks))
        return as_json({"type": "time", "milliseconds": round(milliseconds, 3), "count": len(picks), "mean": mean})

    # ---- when the page opens ----

    def first_view(self) -> str:
        """The message that the page opens with: the first example; empty where there is none."""
        return self._first()[0] if self.examples else ""

    def first_session(self) -> Session | None:
        """The session of the picture that the page opens with; None where there is no example."""
        return self._first()[1] if self.examples else None

    def _first(self) -> tuple[str, Session]:
        if self._opening is None:
            self._opening = self.analyse(self.examples[0], self.catalog.first)
        return self._opening

    def shown_examples(self) -> str:
        """Title, credit and thumbnail of each example and scene, as JSON text for the canvas."""
        entries = [_thumbnail(example) for example in self.examples]
        for seed, index, difficulty in SCENES:
            scene = _thumbnail(scene_picture(seed, index, difficulty))
            entries.append({**scene, "seed": seed, "index": index, "difficulty": difficulty})
        return as_json(entries)


def check_bytes(session: Session) -> None:
    """Raise :class:`DynaMaskError` for a session that takes more memory than a visitor may use."""
    if session.nbytes > LIMITS.session_megabytes * 2**20:
        raise DynaMaskError(
            f"this picture and its objects take {session.nbytes // 2**20} MB on the server, and at most "
            f"{LIMITS.session_megabytes} MB are kept; make the picture smaller"
        )


def _thumbnail(picture: SourcePicture) -> dict[str, Any]:
    """A picture as an entry of the page's choice."""
    shown = {name: getattr(picture, name) for name in ("kind", "key", "title", "credit")}
    return {**shown, "picture": jpeg_url(shrunk(decoded(picture.source), THUMBNAIL_SIDE), quality=80)}


def _refuse_one_stage(session: Session, feature: str) -> None:
    """Raise DynaMaskError for one-stage weights, which lack the feature."""
    if session.levels is not None:
        raise DynaMaskError(f"{feature} needs two-stage weights, and {session.weights} are one-stage; choose others")


def checked_picks(picks: Any, session: Session) -> list[tuple[int, int]]:
    """[[row, index of the size or level], …] of a request; DynaMaskError if they do not fit the session."""
    count = len(session.instances)
    if not isinstance(picks, list) or len(picks) > count:
        raise DynaMaskError("the instances of this request do not fit the picture; reload the page")
    checked = []
    for pick in picks:
        row, k = pick if isinstance(pick, list) and len(pick) == 2 else (None, None)
        row = whole_number(row, "instance", 0, max(0, count - 1))
        checked.append((row, whole_number(k, "size", 0, len(session.macs) - 1)))
    return checked
