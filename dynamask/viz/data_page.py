"""The page of ``dynamask data check --out``: findings by kind, with thumbnails of the pictures that have them."""

from __future__ import annotations

import base64
import html
import io
import re
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from dynamask.data.coco_checks import image_size
from dynamask.data.instances import read_in_size
from dynamask.data.segmentation import is_int, is_number
from dynamask.files import write_text
from dynamask.structures import DynaMaskError

PAGE = "data-check.html"
EXAMPLES = 6
"""Findings of one kind with a thumbnail."""
LISTED = 100
"""Findings of one kind that are listed; `--json` has all of them."""
SIDE = 240
"""Longest side of a thumbnail, pixels."""
OUTLINE, BOX = "#E11D48", "#FACC15"
"""Colours of outlines and of boxes."""
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1F2937; background: #FFF }
h2 { margin-top: 2.5rem; border-top: 1px solid #D1D5DB; padding-top: 1rem; font-size: 1.2rem }
figure { display: inline-block; vertical-align: top; width: 240px; margin: 0 1rem 1rem 0 }
figure img { max-width: 100% } figcaption { font-size: .85rem; overflow-wrap: anywhere }
.error { color: #B91C1C } .warning { color: #92400E } dt { font-weight: 600 } dd { margin: 0 0 .5rem }
"""  # noqa: E501


def write_page(out: Path, report: dict[str, Any], coco: dict[str, Any], files: dict[int, Path], name: str) -> Path:
    """Write the findings of a data set as one HTML page that needs no other file.

    Args:
        out: folder of the page; it is made if it does not exist.
        report: of :func:`dynamask.data.check.examine`.
        coco: the content in which the findings were made, as it is read.
        files: path of the picture by image id; findings about others have no thumbnail.
        name: of the data set.

    Returns:
        The path of the page.

    Raises:
        DynaMaskError: the page cannot be written.
    """
    places = _Places(coco, files)
    kinds = dict.fromkeys(f["kind"] for f in sorted(report["findings"], key=lambda f: f["severity"]))
    sections = [_section([f for f in report["findings"] if f["kind"] == kind], places) for kind in kinds]
    counts = (
        f"{report['images']} images, {report['instances']} objects of {report['categories']} classes, "
        f"{report['crowds']} crowd regions; {report['errors']} errors, which the other commands refuse, and "
        f"{report['warnings']} warnings"
    )
    title = f"Data check of {html.escape(name)}"
    found = "".join(sections) or "<p>Nothing was found.</p>"
    text = (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"</head><body><h1>{title}</h1><p>{counts}.</p>{found}</body></html>\n"
    )
    write_text(out / PAGE, text.encode("utf-8", "replace").decode("utf-8"))
    return out / PAGE


def _section(findings: list[dict[str, Any]], places: _Places) -> str:
    """The findings of one kind: what to do, what is assumed, examples with thumbnails, and a list of the others."""
    first = findings[0]
    lines = [f"<dt>What to do</dt><dd>{html.escape(first['cure'])}</dd>"]
    if first["assumed"]:
        lines.append(f"<dt>What is assumed</dt><dd>{html.escape(first['assumed'])}</dd>")
    drawn, rest = [], []
    for finding in findings[:LISTED]:
        text = html.escape(f"{finding['where']} {finding['problem']}")
        picture = places.thumbnail(finding["where"]) if len(drawn) < EXAMPLES else None
        if picture is None:
            rest.append(f"<li>{text}</li>")
        else:
            source = f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}"
            drawn.append(f'<figure><img src="{source}" alt=""><figcaption>{text}</figcaption></figure>')
    more = f"<p>… and {len(findings) - LISTED} more; --json lists them all.</p>" if len(findings) > LISTED else ""
    listed = f"<ul>{''.join(rest)}</ul>" if rest else ""
    return (
        f'<h2><span class="{first["severity"]}">{first["severity"]}</span>: {first["kind"].replace("_", " ")} '
        f"({len(findings)})</h2><dl>{''.join(lines)}</dl>{''.join(drawn)}{listed}{more}"
    )


class _Places:
    """The pictures and annotations that findings are about."""

    def __init__(self, coco: dict[str, Any], files: dict[int, Path]) -> None:
        """Take the content of the file, which need not be sound, and the path of each picture by image id."""
        self.files = files
        self.annotations = [a for a in coco["annotations"] if isinstance(a, dict)]
        self.by_id = {a["id"]: a for a in self.annotations if is_int(a.get("id"))}
        self.at = dict(enumerate(coco["annotations"]))
        self.images = {image["id"]: image for image in coco["images"]}
        self.by_name = {image.get("file_name"): image["id"] for image in coco["images"]}

    def thumbnail(self, where: str) -> bytes | None:
        """JPEG of the picture that a finding names, with the annotation it names, or all; None without a picture."""
        image_id, annotations = self._subject(where)
        image = self.images.get(image_id)
        if image is None or image_id not in self.files:
            return None
        if annotations is None:
            annotations = [a for a in self.annotations if a.get("image_id") == image_id]
        try:
            picture = Image.fromarray(read_in_size(self.files[image_id], image_size(image)))
        except DynaMaskError:
            return None
        scale = min(1.0, SIDE / max(picture.size))
        picture = picture.resize([max(1, round(side * scale)) for side in picture.size])
        draw = ImageDraw.Draw(picture)
        for annotation in annotations:
            _draw(draw, annotation, scale)
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=85)
        return stream.getvalue()

    def _subject(self, where: str) -> tuple[Any, list[dict[str, Any]] | None]:
        """Image id and annotations of a finding; None stands for all annotations of the image."""
        if found := re.fullmatch(r"annotation (at position )?(-?\d+)", where):
            annotation = (self.at if found[1] else self.by_id).get(int(found[2]))
            if not isinstance(annotation, dict) or not is_int(annotation.get("image_id")):
                return None, []
            return annotation["image_id"], [annotation]
        if found := re.fullmatch(r"image (-?\d+)", where):
            return int(found[1]), None
        if where.startswith("picture "):
            return self.by_name.get(where.removeprefix("picture ")), None
        return None, []


def _draw(draw: ImageDraw.ImageDraw, annotation: dict[str, Any], scale: float) -> None:
    """Draw the polygons and the box of an annotation as far as they are sound."""
    segmentation = annotation.get("segmentation")
    for polygon in segmentation if isinstance(segmentation, list) else ():
        if isinstance(polygon, list) and len(polygon) >= 6 and all(is_number(value) for value in polygon):
            points = [(x * scale, y * scale) for x, y in zip(polygon[0::2], polygon[1::2])]
            draw.line([*points, points[0]], fill=OUTLINE, width=2)
    box = annotation.get("bbox")
    if isinstance(box, list) and len(box) == 4 and all(is_number(value) for value in box) and min(box[2:]) >= 0:
        x, y, width, height = (value * scale for value in box)
        draw.rectangle([x, y, x + width, y + height], outline=BOX)
