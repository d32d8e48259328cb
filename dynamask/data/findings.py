"""Kinds of faults that a data set can have, each with its severity and its cure."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from dynamask.structures import DynaMaskError

ERRORS: dict[str, str] = {
    "image_entry": "give every image an integer id, a file_name, and its width and height in pixels",
    "category_entry": "give every category an integer id and a name",
    "annotation_entry": "correct the field, or leave it out",
    "duplicate_id": "number the entries of each list with different integers",
    "unknown_image": "correct the image_id, or add the image to the file",
    "unknown_category": "correct the category_id, or add the category to the file",
    "bad_segmentation": "give polygons [[x0, y0, x1, y1, …]] in pixels, or run lengths of the image's size",
    "bad_result": "give objects with image_id, category_id, score and segmentation",
    "picture_outside_folder": "use file names relative to the picture folder",
    "picture_missing": "check the picture folder",
    "picture_unreadable": "save or download the picture again",
    "picture_size": "use the pictures that were annotated",
    "labels_missing": "unpack gtFine",
    "labels_unreadable": "unpack gtFine again",
    "unknown_label": "use the *_gtFine_instanceIds.png files as published",
}
"""Kinds that make the other commands refuse the data, with what to do about them."""
WARNINGS: dict[str, str] = {
    "duplicate_file_name": "list each picture once",
    "duplicate_class_name": "give every category its own name",
    "short_polygon": "give every polygon at least three points, six numbers",
    "zero_area_box": "correct the bbox, or remove the annotation",
    "zero_area_mask": "correct the segmentation, or remove the annotation",
    "box_outside_picture": "check that the bbox is [x, y, width, height] in pixels of its picture",
    "box_misses_mask": "check that bbox and segmentation belong to the same object",
    "area_mismatch": "check that area is the number of pixels in the mask",
}
"""Kinds that the other commands accept, with what to do about them."""


@dataclass(frozen=True)
class Finding:
    """One fault of a data set.

    Attributes:
        kind: a key of `ERRORS` or `WARNINGS`.
        where: the entry or picture that has it, such as "annotation 12".
        problem: what is wrong, as a predicate to ``where``.
    """

    kind: str
    where: str
    problem: str

    @property
    def severity(self) -> str:
        """Either "error" (fatal: the data are refused) or "warning"."""
        return "error" if self.kind in ERRORS else "warning"

    @property
    def cure(self) -> str:
        """What to do about it."""
        return ERRORS[self.kind] if self.kind in ERRORS else WARNINGS[self.kind]

    def to_dict(self) -> dict[str, str]:
        """The finding for JSON: ``severity``, ``kind``, ``where``, ``problem`` and ``cure``."""
        return {"severity": self.severity, **asdict(self), "cure": self.cure}


def raise_fatal(finding: Finding) -> None:
    """Raise an error as one sentence and ignore a warning, as reading data for use does with each finding.

    Raises:
        DynaMaskError: the finding is an error.
    """
    if finding.severity == "error":
        raise DynaMaskError(f"{finding.where} {finding.problem}; {finding.cure}")
