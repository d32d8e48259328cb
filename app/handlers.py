"""What the Explore tab computes, without Gradio: a visitor's wish in, one JSON string for the canvas out."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import math
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torchvision.ops import box_iou

from app.catalog import WeightsCatalog
from app.cells import CellInstances, Recent, explained, found_again, level_facts
from app.downloads import KINDS, Picks, export
from app.messages import (
    LOWEST_SCORE,
    THUMBNAIL_SIDE,
    UInt8Array,
    as_json,
    encode_cell_view,
    encode_more,
    encode_view,
    jpeg_url,
)
from app.session import Instances, Session
from dynamask.data.pictures import read_picture
from dynamask.data.shapes import make_scene
from dynamask.evaluation.mask_quality import quality_by_size
from dynamask.evaluation.matching import match_greedily
from dynamask.predict import CachedRegions
from dynamask.structures import MASK_SIZES, DynaMaskError

if TYPE_CHECKING:
    from dynamask.predict import Prediction, Predictor

EXAMPLES_DIR = Path(__file__).resolve().parent / "examples"
SCENES = ((7, 18, None), (7, 24, None), (7, 1, 0.15), (7, 17, 0.85))
"""(seed, index, difficulty) of the scenes offered beside the photographs; no difficulty means mixed."""
MAX_DRAWN = 40
"""Boxes that a visitor may draw on one picture."""
KEPT_VIEWS = 24
"""Analysed examples and scenes that are kept for the next visitor."""
LARGEST_KEPT = 8_000_000
"""Bytes of an uploaded file that a session keeps as it is."""
LARGEST_SEED = 2**31 - 1
ASKS = ("open", "draw", "measure", "explain", "export")
"""What the page may ask for."""


@dataclass(frozen=True)
class Example:
    """A photograph offered on the page.

    Attributes:
        path: the file.
        title: a few words for its button.
        credit: author, licence and source, shown with the picture; empty where nothing is known.
    """

    path: Path
    title: str
    credit: str


def find_examples(folder: Path = EXAMPLES_DIR) -> list[Example]:
    """Photographs (*.jpg) of a folder, in the order of its ATTRIBUTION.csv; files it does not name come last.

    Columns: `file_name`; optional `title`, `author`, `license`, `source`.
    """
    table = folder / "ATTRIBUTION.csv"
    rows: dict[str, dict[str, str]] = {}
    if table.is_file():
        with table.open(encoding="utf-8", newline="") as file:
            rows = {row["file_name"]: row for row in csv.DictReader(file) if row.get("file_name")}
    present = {path.name: path for path in sorted(folder.glob("*.jpg"))}
    names = [name for name in rows if name in present] + [name for name in present if name not in rows]
    examples = []
    for name in names:
        row = rows.get(name, {})
        credit = " · ".join(row[key] for key in ("author", "license", "source") if row.get(key))
        title = row.get("title") or Path(name).stem.replace("_", " ").replace("-", " ")
        examples.append(Example(present[name], title, credit))
    return examples


def finite(value: Any, what: str, low: float, high: float) -> float:
    """A number of a request; DynaMaskError where it is none or out of range."""
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not usable or not low <= value <= high:
        raise DynaMaskError(f"the {what} is not usable; give a number from {low:g} to {high:g}")
    return float(value)


def whole(value: Any, what: str, low: int, high: int) -> int:
    """A whole number of a request; DynaMaskError where it is none or out of range."""
    number = finite(value, what, low, high)
    if number != int(number):
        raise DynaMaskError(f"the {what} is not usable; give a whole number from {low} to {high}")
    return int(number)


def quality(masks: Instances, image_size: tuple[int, int], truth: np.ndarray) -> Instances:
    """The same instances with their IoU and boundary IoU against the truth, at every size.

    An instance counts as the free true shape whose box overlaps its own the most, from IoU 0.5; the best scores choose
    first. A box that the visitor drew takes no shape away.

    Args:
        masks: the instances, best score first.
        image_size: (H, W) in pixels.
        truth: (N, H, W) bool.
    """
    mask_iou, boundary_iou = masks.mask_iou.copy(), masks.boundary_iou.copy()
    boxes = torch.tensor([_tight_box(mask) for mask in truth], dtype=torch.float64).reshape(-1, 4)
    ious = box_iou(torch.from_numpy(masks.boxes), boxes).numpy()
    for row, match in enumerate(match_greedily(ious, exclusive=~masks.drawn)):
        if match is None:
            continue
        by_size = [masks.pasted(row, k, image_size)[None] for k in range(len(MASK_SIZES))]
        ious, boundaries = quality_by_size(truth[match][None], by_size)
        mask_iou[row], boundary_iou[row] = ious[0], boundaries[0]
    return dataclasses.replace(masks, mask_iou=mask_iou, boundary_iou=boundary_iou)


def _tight_box(mask: np.ndarray) -> tuple[float, float, float, float]:
    """xyxy around a mask that is not empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def measured(prediction: Prediction) -> dict[str, float]:
    """Milliseconds of finding the objects and of the mask branch with all four sizes of all of them."""
    rest = {name: value for name, value in prediction.timings.items() if name != "detect"}
    return {"detect": round(prediction.timings.get("detect", 0.0), 3), "mask_branch": round(sum(rest.values()), 3)}


def compact(source: Any, image: UInt8Array) -> Any:
    """What a session keeps of a picture: its source, or a fine JPEG of (H, W, 3) RGB where a file is very large."""
    if not isinstance(source, bytes) or len(source) <= LARGEST_KEPT:
        return source
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


@dataclass(frozen=True)
class SourcePicture:
    """A picture before it is analysed; the attributes are those of :class:`Session`."""

    kind: str
    key: str
    title: str
    credit: str
    source: Any
    truth: np.ndarray | None = None


def scene_picture(seed: int, index: int, difficulty: float | None) -> SourcePicture:
    """A scene of the shapes world with its truth."""
    scene = make_scene(seed, index, detail=difficulty)
    word = "mixed" if difficulty is None else f"{difficulty:g}"
    title = f"Shapes scene {index} of seed {seed}, difficulty {word}"
    return SourcePicture(
        "scene", f"{seed}:{index}:{word}", title, "made by dynamask.data.shapes", scene.image, scene.masks
    )


class ExploreHandlers:
    """Answers the Explore tab: opens pictures, masks boxes, measures, exports.

    Keeps the answers for examples and scenes; of what visitors send only what their own session holds.
    """

    def __init__(self, shelf: WeightsCatalog, examples: list[Example]) -> None:
        self.catalog = shelf
        self.examples = examples
        self._kept: OrderedDict[tuple[str, str, str], tuple[str, Session]] = OrderedDict()
        self._opening: tuple[str, Session] | None = None
        self._recent = Recent()
        self._tokens, self._turns = itertools.count(1), itertools.count(1)

    # ---- pictures ----

    def analyse(self, picture: SourcePicture, weights: str) -> tuple[str, Session]:
        """All four masks of every instance, ready for the canvas, and what the server remembers of it.

        Raises:
            DynaMaskError: the picture or the weights are refused; the message says why.
        """
        kept = (weights, picture.kind, picture.key)
        if picture.kind != "own" and kept in self._kept:
            self._kept.move_to_end(kept)
            return self._kept[kept]
        predictor = self.catalog.get(weights)
        if predictor.family == "one-stage":
            answer = self._cells(picture, weights, predictor)
        else:
            answer = self._sizes(picture, weights, predictor)
        if picture.kind != "own":
            self._kept[kept] = answer
            while len(self._kept) > KEPT_VIEWS:
                self._kept.popitem(last=False)
        return answer

    def _sizes(self, picture: SourcePicture, weights: str, predictor: Predictor) -> tuple[str, Session]:
        """The answer of weights with a switch."""
        image = read_picture(picture.source)
        prediction = predictor(image, all_sizes=True, score=LOWEST_SCORE)
        found = Instances.of(prediction)
        size = (int(image.shape[0]), int(image.shape[1]))
        session = Session(
            str(next(self._tokens)), weights, picture.kind, picture.key, picture.title, picture.credit,
            compact(picture.source, image), size, tuple(predictor.class_names), tuple(predictor.category_ids),
            tuple(int(macs) for macs in predictor.costs.macs_per_instance),
            found if picture.truth is None else quality(found, size, picture.truth), picture.truth,
            measured(prediction),
        )  # fmt: skip
        image_macs = int(sum(macs for row, macs in prediction.image_macs.items() if row != "switch"))
        return encode_view(session, image, int(predictor.costs.switch_macs), image_macs), session

    def _cells(self, picture: SourcePicture, weights: str, predictor: Predictor) -> tuple[str, Session]:
        """The answer of one-stage weights; what is behind each mask is asked for later."""
        image = read_picture(picture.source)
        prediction = predictor(image, score=LOWEST_SCORE)
        found = CellInstances.of(prediction)
        size = prediction.image_size
        spent = prediction.timings
        timings = {"detect": round(spent["encode"], 3), "mask_branch": round(spent["masks"], 3)}
        session = Session(
            str(next(self._tokens)), weights, picture.kind, picture.key, picture.title, picture.credit,
            compact(picture.source, image), size, tuple(predictor.class_names), tuple(predictor.category_ids),
            prediction.cells.level_macs,
            found if picture.truth is None else found.judged(size, picture.truth), picture.truth, timings,
            level_facts(prediction),
        )  # fmt: skip
        self._recent.put(session.token, prediction)
        return encode_cell_view(session, image, prediction.image_macs), session

    def explain(self, wish: Mapping[str, Any], session: Session) -> str:
        """The cell, the neighbours and the representations behind one instance of one-stage weights."""
        if not isinstance(session.instances, CellInstances):
            raise DynaMaskError("these weights find objects in boxes, not in cells; choose one-stage weights")
        row = whole(wish.get("row"), "instance", 0, max(0, len(session.instances) - 1))
        prediction = self._recent.get(session.token)
        if prediction is None:
            prediction = self.catalog.get(session.weights)(read_picture(session.source), score=LOWEST_SCORE)
            self._recent.put(session.token, prediction)
        own = found_again(prediction, session.instances, row)
        if own is None:
            raise DynaMaskError("this instance was not found again; open the picture again")
        return as_json({"type": "cell", "token": session.token, "row": row, **explained(prediction, own)})

    def example(self, name: Any) -> SourcePicture:
        """An example by its file name; DynaMaskError where there is none."""
        for example in self.examples:
            if example.path.name == name:
                return SourcePicture("example", example.path.name, example.title, example.credit, example.path)
        raise DynaMaskError("there is no such example; choose one of the pictures shown")

    def uploaded(self, path: Any, name: Any, folder: Path) -> SourcePicture:
        """A picture that a visitor sent.

        Args:
            path: where the server stored it, as the browser repeats it.
            name: the file's name on the visitor's machine, shown as the title.
            folder: where uploads are stored; a path outside it is refused.

        Raises:
            DynaMaskError: the path is not an upload.
        """
        file = Path(str(path).replace("\0", "")).resolve()
        if not file.is_relative_to(folder.resolve()) or not file.is_file():
            raise DynaMaskError("this file was not uploaded here; choose the picture again")
        # bytes: a refusal must not tell where files are kept
        return SourcePicture("own", "", str(name)[:120], "", file.read_bytes())

    def picture(self, wish: Mapping[str, Any], session: Session | None, folder: Path) -> SourcePicture:
        """The picture that a request names: an example, a scene, an upload, or the one at hand."""
        kind = wish.get("kind")
        if kind == "example":
            return self.example(wish.get("key"))
        if kind == "scene":
            raw = wish.get("difficulty")
            return scene_picture(
                whole(wish.get("seed"), "seed", 0, LARGEST_SEED),
                whole(wish.get("index"), "number of the scene", 0, LARGEST_SEED),
                None if raw is None else finite(raw, "difficulty", 0, 1),
            )
        if kind == "upload":
            return self.uploaded(wish.get("path"), wish.get("name", ""), folder)
        if kind == "same" and session is not None:
            return SourcePicture(
                session.kind, session.key, session.title, session.credit, session.source, session.truth
            )
        raise DynaMaskError("there is no such picture; choose one of those shown")

    # ---- what the page asks for ----

    def answer(self, wish: Any, session: Session | None, folder: Path) -> tuple[str, Session | None]:
        """The canvas's answer to a request, and the session after it.

        Args:
            wish: what the browser sent: a mapping with `ask`, one of ``ASKS``.
            session: the visitor's; None while the opening picture is on the page.
            folder: where uploads are stored.

        Raises:
            DynaMaskError: the request cannot be met; the message says why.
        """
        if not isinstance(wish, Mapping) or wish.get("ask") not in ASKS:
            raise DynaMaskError("the page asked for something unknown; reload it")
        text, session = self._answer(wish, session if session is not None else self.first_session(), folder)
        return f'{{"turn": {next(self._turns)}, {text[1:]}', session  # no two alike: the page is told of changes only

    def _answer(self, wish: Mapping[str, Any], session: Session | None, folder: Path) -> tuple[str, Session | None]:
        """The answer to a known kind of request."""
        if wish["ask"] == "open":
            return self.open(wish, session, folder)
        if session is None or wish.get("token") != session.token:
            raise DynaMaskError("the server has forgotten this picture; open it again")
        if wish["ask"] == "draw":
            return self.draw(wish, session)
        if wish["ask"] == "explain":
            return self.explain(wish, session), session
        picks = checked_picks(wish.get("picks"), len(session.instances), len(session.macs))
        if wish["ask"] == "measure":
            return self.measure(session, picks), session
        if wish.get("what") not in KINDS:
            raise DynaMaskError(f"this cannot be exported; choose one of {', '.join(KINDS)}")
        opacity = finite(wish.get("opacity", 0.5), "opacity", 0, 1)
        return as_json(export(session, wish["what"], picks, opacity, wish.get("boxes") is True)), session

    def open(self, wish: Mapping[str, Any], session: Session | None, folder: Path) -> tuple[str, Session]:
        """Analyse another picture, or the same with other weights; boxes drawn on it may come along."""
        picture = self.picture(wish, session, folder)
        weights = wish.get("weights", self.catalog.first)
        if not isinstance(weights, str):
            raise DynaMaskError(f"there are no such weights here; choose one of {', '.join(self.catalog.names)}")
        if wish.get("keep") is not True:
            weights = self.catalog.suited("scene" if picture.kind == "scene" else "photo", weights)
        text, opened = self.analyse(picture, weights)
        if not wish.get("boxes"):
            return text, opened
        added, grown = self._masked(opened, wish["boxes"])
        return f'{{"type": "both", "view": {text}, "more": {encode_more(grown, added)}}}', grown

    def draw(self, wish: Mapping[str, Any], session: Session) -> tuple[str, Session]:
        """Masks for boxes that the visitor drew."""
        added, grown = self._masked(session, wish.get("boxes"))
        return encode_more(grown, added), grown

    def _masked(self, session: Session, boxes: Any) -> tuple[Instances, Session]:
        """Instances for given boxes, and the session with them."""
        if not isinstance(boxes, list) or not boxes:
            raise DynaMaskError("no box was drawn; drag over the picture from corner to corner")
        self._needs_boxes(session, "a mask for a drawn box")
        if int(session.instances.drawn.sum()) + len(boxes) > MAX_DRAWN:
            raise DynaMaskError(f"more than {MAX_DRAWN} boxes on one picture are too many; open it again to start anew")
        prediction = self.catalog.get(session.weights)(read_picture(session.source), boxes=boxes, all_sizes=True)
        added = Instances.of(prediction, drawn=True)
        if session.truth is not None:
            added = quality(added, session.image_size, session.truth)
        return added, session.with_more(added)

    @staticmethod
    def _needs_boxes(session: Session, what: str) -> None:
        """Refuse what one-stage weights cannot do, named as a sentence's subject."""
        if session.levels is not None:
            raise DynaMaskError(f"{what} needs DynaMask's own weights; {session.weights} are one-stage: choose others")

    def measure(self, session: Session, picks: Picks) -> str:
        """Run the mask branch again for these instances at these sizes alone, as outside this page, and time it."""
        self._needs_boxes(session, "measuring a choice of sizes")
        milliseconds = 0.0
        if picks:
            rows = [row for row, _ in picks]
            predictor = self.catalog.get(session.weights)
            milliseconds = mask_branch_time(
                predictor, read_picture(session.source), session.instances.boxes[rows],
                session.instances.labels[rows].tolist(), [k for _, k in picks],
            )  # fmt: skip
        mean = sum(session.macs[k] for _, k in picks) / max(1, len(picks))
        return as_json({"type": "time", "milliseconds": round(milliseconds, 3), "count": len(picks), "mean": mean})

    # ---- the page's beginning ----

    def first_view(self) -> str:
        """The view that the page opens with: the first example, or an empty canvas where there is none."""
        return self._first()[0] if self.examples else ""

    def first_session(self) -> Session | None:
        """The session of the picture that the page opens with; None where there is no example."""
        return self._first()[1] if self.examples else None

    def _first(self) -> tuple[str, Session]:
        if self._opening is None:
            self._opening = self.analyse(self.example(self.examples[0].path.name), self.catalog.first)
        return self._opening

    def shown_examples(self) -> str:
        """Title, credit and small picture of each example and scene, as a JSON string for the canvas."""
        entries = [
            {"kind": "example", "key": example.path.name, "title": example.title, "credit": example.credit,
             "picture": jpeg_url(read_picture(example.path), THUMBNAIL_SIDE, quality=80)[0]}
            for example in self.examples
        ]  # fmt: skip
        for seed, index, difficulty in SCENES:
            picture = scene_picture(seed, index, difficulty)
            entries.append({"kind": "scene", "seed": seed, "index": index, "difficulty": difficulty,
                            "key": picture.key, "title": picture.title, "credit": picture.credit,
                            "picture": jpeg_url(picture.source, THUMBNAIL_SIDE, quality=80)[0]})  # fmt: skip
        return as_json(entries)


def checked_picks(picks: Any, count: int, choices: int = len(MASK_SIZES)) -> list[tuple[int, int]]:
    """[[row, size index], …] of a request; DynaMaskError where they do not fit the session's instances.

    Args:
        picks: as it came.
        count: of instances.
        choices: of sizes; for one-stage weights of levels, which stand in their place.
    """
    if not isinstance(picks, list) or len(picks) > count:
        raise DynaMaskError("the instances of this request do not fit the picture; reload the page")
    checked = []
    for pick in picks:
        pair = pick if isinstance(pick, list) and len(pick) == 2 else [None, None]
        row = whole(pair[0], "instance", 0, max(0, count - 1))
        checked.append((row, whole(pair[1], "size", 0, choices - 1)))
    return checked


def mask_branch_time(
    predictor: Predictor, image: UInt8Array, boxes: np.ndarray, labels: list[int], size_index: list[int]
) -> float:
    """Milliseconds of the mask branch for these boxes with each instance at its one size and nothing more.

    Args:
        predictor: whose branch runs.
        image: (H, W, 3) RGB.
        boxes: (R, 4) xyxy in pixels, R ≥ 1.
        labels: R labels from 1.
        size_index: R indices into ``MASK_SIZES``.
    """
    begun = predictor(image, boxes=boxes, labels=labels, policy=f"fixed:{MASK_SIZES[0]}")
    fresh = CachedRegions(begun.regions.branch, begun.regions.state)  # knows the regions, and no mask as yet
    start = time.perf_counter()
    fresh.ensure(torch.tensor(size_index))
    return begun.timings["regions"] + (time.perf_counter() - start) * 1e3
