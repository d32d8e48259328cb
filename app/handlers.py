"""What the app computes, without Gradio: pictures in, one JSON string for the canvas out.

The browser gets everything it needs to answer every control by itself: the picture, the switch's probabilities and the
four masks of each instance (M×M bytes, compressed), and what each size costs.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from dynamask.data.pictures import read_picture
from dynamask.structures import MASK_SIZES, DynaMaskError
from dynamask.viz.overlay import SIZE_COLOURS, SIZE_OUTLINES, contrast_colour

if TYPE_CHECKING:
    from dynamask.predictor import Prediction, Predictor

LOWEST_SCORE = 0.05
"""Detections below this score are not sent to the browser."""

FIRST_SCORE = 0.5
"""Score threshold that the page starts with."""

VIEW_SIDE = 1600
"""Longest side, in pixels, of the picture that is sent to the browser."""

THUMBNAIL_SIDE = 144
"""Longest side of an example's thumbnail in pixels."""

EXAMPLES_DIR = Path(__file__).resolve().parent / "examples"

UInt8Array = npt.NDArray[np.uint8]


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


def jpeg_url(image: UInt8Array, longest_side: int, quality: int = 88) -> tuple[str, tuple[int, int]]:
    """The picture as a `data:` URL, shrunk to a longest side, and its (width, height) in pixels.

    Args:
        image: (H, W, 3) RGB.
        longest_side: in pixels; smaller pictures keep their size.
        quality: of the JPEG, 1-95.
    """
    picture = Image.fromarray(image)
    scale = min(1.0, longest_side / max(picture.size))
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=2.0)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"), picture.size


def encode_masks(prediction: Prediction) -> str:
    """All masks of a prediction made with `all_sizes=True`, as base64 of deflated bytes.

    Per instance the M×M masks from coarse to fine, row by row; a byte is the probability × 255, rounded.
    """
    grids = [
        (prediction.mask_probs_at(index, size) * 255).round().byte().cpu().numpy().tobytes()
        for index in range(len(prediction))
        for size in MASK_SIZES
    ]
    return base64.b64encode(zlib.compress(b"".join(grids), 6)).decode("ascii")


def size_styles() -> list[dict[str, Any]]:
    """Colour, text colour and outline of each mask size, coarse to fine, as `dynamask.viz.overlay` draws them."""
    styles = []
    for size in MASK_SIZES:
        red, green, blue = contrast_colour(SIZE_COLOURS[size])
        text = f"#{red:02x}{green:02x}{blue:02x}"
        styles.append({"size": size, "colour": SIZE_COLOURS[size], "text": text, **asdict(SIZE_OUTLINES[size])})
    return styles


def encode_instances(prediction: Prediction) -> list[dict[str, Any]]:
    """Class, score, box (xyxy in pixels of the picture) and switch probabilities of each instance, best score first."""
    names = prediction.class_names
    columns = (prediction.labels.tolist(), prediction.scores.tolist(), prediction.boxes.tolist(),
               prediction.switch_probs.tolist())
    return [
        {"label": names[label] if label < len(names) else f"class {label}", "score": score, "box": box, "probs": probs}
        for label, score, box, probs in zip(*columns)
    ]


def measured(prediction: Prediction) -> dict[str, float]:
    """Milliseconds of finding the objects and of the mask branch with all four sizes of all of them."""
    rest = {name: value for name, value in prediction.timings.items() if name != "detect"}
    return {"detect": round(prediction.timings.get("detect", 0.0), 3), "mask_branch": round(sum(rest.values()), 3)}


def encode_view(image: UInt8Array, prediction: Prediction, predictor: Predictor, title: str, credit: str) -> str:
    """Everything the canvas shows, as one JSON string; `<` is escaped, so that it is inert inside a page."""
    url, (width, height) = jpeg_url(image, VIEW_SIDE)
    costs = predictor.costs
    view = {
        "title": title,
        "credit": credit,
        "picture": url,
        "view": [width, height],
        "size": [int(image.shape[1]), int(image.shape[0])],
        "styles": size_styles(),
        "macs": list(costs.macs_per_instance),
        "switch_macs": int(costs.switch_macs),
        "image_macs": int(sum(macs for row, macs in prediction.image_macs.items() if row != "switch")),
        "instances": encode_instances(prediction),
        "masks": encode_masks(prediction),
        "timings": measured(prediction),
        "score": FIRST_SCORE,
        "lowest_score": LOWEST_SCORE,
    }
    return json.dumps(view, allow_nan=False).replace("<", "\\u003c")


class Explorer:
    """Analyses pictures with one predictor; keeps nothing of what visitors send."""

    def __init__(self, predictor: Predictor, examples: list[Example]) -> None:
        self.predictor = predictor
        self.examples = examples
        self._views: dict[int, str] = {}

    def analyse(self, source: Any, title: str = "", credit: str = "") -> str:
        """A picture with all four masks of every instance, ready for the canvas.

        Args:
            source: anything `read_picture` takes.
            title: what the page calls the picture.
            credit: author, licence and source, if they are known.

        Raises:
            DynaMaskError: the picture is refused; the message says why.
        """
        image = read_picture(source)
        prediction = self.predictor(image, all_sizes=True, score=LOWEST_SCORE)
        return encode_view(image, prediction, self.predictor, title, credit)

    def example(self, index: Any) -> str:
        """The view of one of the examples; computed once.

        Raises:
            DynaMaskError: there is no such example.
        """
        if not isinstance(index, int) or not 0 <= index < len(self.examples):
            raise DynaMaskError("there is no such example; choose one of the pictures shown")
        if index not in self._views:
            example = self.examples[index]
            self._views[index] = self.analyse(example.path, example.title, example.credit)
        return self._views[index]

    def uploaded(self, path: Any, name: Any, folder: Path) -> str:
        """The view of a picture that a visitor sent.

        Args:
            path: where the server stored it, as the browser repeats it.
            name: the file's name on the visitor's machine, shown as the title.
            folder: where uploads are stored; a path outside it is refused.

        Raises:
            DynaMaskError: the path is not an upload, or the picture is refused.
        """
        file = Path(str(path)).resolve()
        if not file.is_relative_to(folder.resolve()) or not file.is_file():
            raise DynaMaskError("this file was not uploaded here; choose the picture again")
        return self.analyse(file.read_bytes(), str(name)[:120])  # bytes: a refusal must not tell where files are kept

    def first_view(self) -> str:
        """The view that the page opens with: the first example, or an empty canvas where there is none."""
        return self.example(0) if self.examples else ""

    def thumbnails(self) -> str:
        """Title, credit and small picture of each example, as a JSON string for the canvas."""
        entries = [
            {"title": example.title, "credit": example.credit,
             "picture": jpeg_url(read_picture(example.path), THUMBNAIL_SIDE, quality=80)[0]}
            for example in self.examples
        ]
        return json.dumps(entries).replace("<", "\\u003c")
