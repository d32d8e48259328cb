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
    "no_objects": "annotate single objects (iscrowd 0) with masks: boxes alone train no masks",
    "picture_outside_folder": "use file names relative to the picture folder",
    "picture_missing": "check the picture folder",
    "picture_unreadable": "save or download the picture again",
    "picture_size": "use the pictures that were annotated",
    "labels_missing": "unpack gtFine",
    "labels_unreadable": "unpack gtFine again",
    "unknown_label": "use the *_gtFine_instanceIds.png files as published",
}
"""Kinds that make the other commands refuse the data, with what to do about them."""
ASSUMPTIONS: dict[str, str] = {
    "number_format": "whole numbers written as decimals or text are read as integers",
    "null_field": "fields that are null are taken as missing",
    "annotation_id": "annotations without an id of their own are numbered anew",
    "polygon_format": "lists of points are read as polygons",
    "normalised_coordinates": "coordinates from 0 to 1 are taken as shares of the picture's sides",
    "class_name_spaces": "spaces around class names are removed",
    "duplicate_class_name": "categories of the same name are joined to one class",
    "similar_class_name": "class names that differ in case only are kept as different classes",
    "placeholder_class": "categories without annotations that stand for no class are left out",
    "box_from_mask": "empty boxes are replaced by those around the masks",
    "corner_box": "boxes that fit their masks as [x0, y0, x1, y1] are replaced by those around the masks",
    "area_from_mask": "areas of zero or less are replaced by those of the masks",
    "adapted_file_name": "pictures are found by a part of the name or another spelling of it",
    "size_exchanged": "width and height are exchanged, because objects fit the picture only that way",
    "exif_ignored": "pictures whose size fits only without their EXIF rotation are read as they are stored",
}
"""Warnings about data with one sensible meaning, with what the commands assume. Reading reports them in one warning."""
WARNINGS: dict[str, str] = {
    "number_format": "write ids, widths and heights as integers",
    "null_field": "leave the field out, or give its value",
    "annotation_id": "number the annotations with different integers",
    "polygon_format": "write polygons as [[x0, y0, x1, y1, …]]",
    "normalised_coordinates": "write coordinates in pixels",
    "class_name_spaces": "remove the spaces from the name",
    "duplicate_class_name": "give every category its own name, or keep one of them",
    "similar_class_name": "write the name of a class in one way, if both mean the same class",
    "placeholder_class": "remove the category",
    "box_from_mask": "correct the bbox, or leave it out",
    "corner_box": "write bbox as [x, y, width, height]",
    "area_from_mask": "correct the area, or leave it out",
    "adapted_file_name": "write file names relative to the picture folder, as the files are called",
    "size_exchanged": "exchange width and height of the images in the file",
    "exif_ignored": "look at masks drawn over these pictures; if they lie beside their objects, exchange width and "
    "height of the images in the file, otherwise remove the EXIF rotation from the pictures",
    "duplicate_file_name": "list each picture once",
    "identical_annotations": "remove the copies: each counts as an object",
    "many_objects": "AP counts at most 100 detections per image and class; cut such pictures into tiles",
    "no_segmentation": "draw the outline of the object, or remove the annotation",
    "short_polygon": "give every polygon at least three points, six numbers",
    "zero_area_box": "correct the bbox, or remove the annotation",
    "zero_area_mask": "correct the segmentation, or remove the annotation",
    "box_outside_picture": "check that the bbox is [x, y, width, height] in pixels of its picture",
    "box_misses_mask": "check that bbox and segmentation belong to the same object",
    "box_far_larger": "check that the bbox is [x, y, width, height] and belongs to the same object as the segmentation",
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

    @property
    def assumed(self) -> str | None:
        """What the commands assume, for data with one sensible meaning; None for other findings."""
        return ASSUMPTIONS.get(self.kind)

    def to_dict(self) -> dict[str, str | None]:
        """The finding for JSON: ``severity``, ``kind``, ``where``, ``problem``, ``cure`` and ``assumed``."""
        return {"severity": self.severity, **asdict(self), "cure": self.cure, "assumed": self.assumed}


def raise_fatal(finding: Finding) -> None:
    """Raise an error as one sentence and ignore a warning, as reading data for use does with each finding.

    Raises:
        DynaMaskError: the finding is an error.
    """
    if finding.severity == "error":
        raise DynaMaskError(f"{finding.where} {finding.problem}; {finding.cure}")
