"""Cityscapes: street scenes whose instances are the pixel values of one PNG per picture.

``leftImg8bit/SPLIT/CITY/*_leftImg8bit.png`` are the pictures, ``gtFine/SPLIT/CITY/*_gtFine_instanceIds.png`` (16 bits)
their labels. A pixel of instance n of class c holds 1000 c + n. A pixel that holds c alone belongs to no single
instance; in the eight thing classes it is part of a group, which becomes a crowd region.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from dynamask.data.findings import Finding, raise_fatal
from dynamask.data.instances import OBJECT, InstanceDataset, Transforms
from dynamask.ops.rle import Rle, encode_rle, rle_box
from dynamask.structures import DynaMaskError

THINGS: dict[int, str] = {
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}
"""The classes that the benchmark evaluates, by label id."""
LAST_LABEL = 33
"""Label ids are 0 to 33."""
NUMBERED = (*range(24, 34),)
"""Labels whose instances are numbered: the things, caravans (29) and trailers (30)."""
PICTURES, LABELS = "leftImg8bit", "gtFine"
PICTURE_ENDING, LABEL_ENDING = "_leftImg8bit.png", "_gtFine_instanceIds.png"


class CityscapesDataset(InstanceDataset):
    """One split of Cityscapes, its pictures in the order of their cities and names, image ids from 1.

    The labels of a picture are read when they are first needed, and its instances are kept as run lengths; `coco` reads
    all labels. The category ids are the label ids.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        transforms: Transforms | None = None,
        include_crowd: bool = False,
        merge_classes: bool = False,
    ) -> None:
        """Find the files of a split.

        Args:
            root: folder with ``leftImg8bit`` and ``gtFine``.
            split: "train", "val" or another folder in both.
            transforms: called as transforms(image, target) on every item.
            include_crowd: keep group regions in the targets; training leaves them out.
            merge_classes: replace all classes by the one class "object".

        Raises:
            DynaMaskError: no such split, no picture in it, or a picture without labels.
        """
        self.merge_classes, self.include_crowd = merge_classes, include_crowd
        names = {1: OBJECT} if merge_classes else THINGS
        super().__init__([{"id": label, "name": name} for label, name in names.items()], transforms)
        self.root, self.split = Path(root), split
        self.files = picture_files(self.root, split)
        self.labels = [label_file(self.root, split, file) for file in self.files]
        missing = [path for path in self.labels if not path.is_file()]
        if missing:
            raise DynaMaskError(
                f"labels {missing[0]} do not exist ({len(missing)} of {len(self.labels)} are missing): unpack gtFine"
            )
        self.image_ids = list(range(1, len(self.files) + 1))
        self.class_of = dict.fromkeys(THINGS, 1) if merge_classes else {label: label for label in THINGS}
        self._regions: dict[int, tuple[tuple[int, int], list[tuple[dict[str, Any], Rle]]]] = {}

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) in pixels of the labels at ``index``."""
        return self._read(index)[0]

    def instances(self, index: int) -> list[tuple[dict[str, Any], Rle]]:
        """The annotations of the targets at ``index``, each with its compressed run-length mask."""
        return [pair for pair in self._read(index)[1] if self.include_crowd or not pair[0]["iscrowd"]]

    def instance_ids(self, index: int) -> np.ndarray:
        """The labels at ``index``, (H, W) int32 as the file holds them."""
        return read_labels(self.labels[index])

    @cached_property
    def coco(self) -> dict[str, Any]:
        """The COCO dict of all pictures, file names relative to ``leftImg8bit/SPLIT``; reads all labels once."""
        images, annotations = [], []
        for index, file in enumerate(self.files):
            size, regions = self._read(index)
            annotations += [annotation for annotation, _ in regions]
            images.append(_image_entry(file, self.image_ids[index], size))
        categories = [{"id": c, "name": name} for c, name in zip(self.category_ids, self.class_names[1:])]
        return {"images": images, "annotations": annotations, "categories": categories}

    def _read(self, index: int) -> tuple[tuple[int, int], list[tuple[dict[str, Any], Rle]]]:
        """Size of a picture and its regions, groups included; kept after the first time."""
        if index not in self._regions:
            labels = self.instance_ids(index)
            self._regions[index] = labels.shape, find_regions(labels, self.image_ids[index], self.class_of)
        return self._regions[index]


def check_labels(root: Path, split: str, progress: bool = False) -> tuple[dict[str, Any], list[Finding]]:
    """Read every label file of a split and find all that are missing, unreadable or hold an unknown id.

    Args:
        root: folder with ``leftImg8bit`` and ``gtFine``.
        split: name of the split.
        progress: show a progress bar.

    Returns:
        The COCO dict of the pictures whose labels can be used, file names relative to ``leftImg8bit/SPLIT``, and the
        findings about the others.

    Raises:
        DynaMaskError: the split has no picture.
    """
    files = picture_files(root, split)
    categories = [{"id": label, "name": name} for label, name in THINGS.items()]
    coco: dict[str, Any] = {"images": [], "annotations": [], "categories": categories}
    findings: list[Finding] = []
    for image_id, file in enumerate(tqdm(files, unit="file", disable=not progress, dynamic_ncols=True), start=1):
        path = label_file(root, split, file)
        labels = read_labels(path, f"labels {path.relative_to(root).as_posix()}", findings.append)
        if labels is not None:
            coco["images"].append(_image_entry(file, image_id, labels.shape))
            regions = find_regions(labels, image_id, {label: label for label in THINGS})
            coco["annotations"] += [annotation for annotation, _ in regions]
    return coco, findings


def splits(root: Path) -> list[str]:
    """Names of the splits in a Cityscapes folder, sorted."""
    return sorted(path.name for path in (root / PICTURES).iterdir() if path.is_dir())


def picture_files(root: Path, split: str) -> list[Path]:
    """The pictures of a split, by city and name; DynaMaskError where there are none."""
    folder = root / PICTURES / split
    files = sorted(folder.glob(f"*/*{PICTURE_ENDING}")) if folder.is_dir() else []
    if not files:
        raise DynaMaskError(f"{folder} holds no CITY/*{PICTURE_ENDING}: give the root of Cityscapes, and its split")
    return files


def label_file(root: Path, split: str, picture: Path) -> Path:
    """Path of the labels of a picture."""
    name = picture.name.removesuffix(PICTURE_ENDING) + LABEL_ENDING
    return root / LABELS / split / picture.parent.name / name


def read_labels(
    path: Path, where: str | None = None, report: Callable[[Finding], None] = raise_fatal
) -> np.ndarray | None:
    """A label file as (H, W) int32; None after reporting that it is missing, unreadable or has an unknown id.

    Args:
        path: the file, a 16-bit grey PNG.
        where: its name in findings (default: its path).
        report: gets the finding; by default it is raised as :class:`DynaMaskError`.
    """
    where = where or f"labels {path}"
    if not path.is_file():
        return report(Finding("labels_missing", where, "do not exist"))
    try:
        with Image.open(path, formats=("PNG",)) as picture:
            labels = np.asarray(picture)
    except Exception:  # decoders raise many kinds on damaged data
        return report(Finding("labels_unreadable", where, "cannot be read"))
    if labels.ndim != 2 or labels.dtype.kind not in "iu":
        return report(Finding("labels_unreadable", where, f"are no grey picture of integers (*{LABEL_ENDING})"))
    unknown = [value for value in _values(labels) if not (0 <= value <= LAST_LABEL or value // 1000 in NUMBERED)]
    if unknown:
        ids = ", ".join(str(value) for value in unknown[:3])
        return report(Finding("unknown_label", where, f"hold ids that Cityscapes does not have: {ids}"))
    return labels.astype(np.int32)


def find_regions(labels: np.ndarray, image_id: int, class_of: dict[int, int]) -> list[tuple[dict[str, Any], Rle]]:
    """The things in labels (H, W), each as a COCO annotation and its compressed run-length mask.

    Args:
        labels: (H, W) integers.
        image_id: of the annotations.
        class_of: category id by label id.
    """
    found = []
    for value in _values(labels):
        label = value // 1000 if value >= 1000 else value
        if label not in class_of:
            continue
        mask = labels == value  # (H, W)
        rle = encode_rle(mask)
        annotation = {
            "id": image_id * 100_000 + len(found) + 1,
            "image_id": image_id,
            "category_id": class_of[label],
            "iscrowd": int(value < 1000),
            "bbox": rle_box(rle),
            "area": float(np.count_nonzero(mask)),
            "segmentation": rle,
        }
        found.append((annotation, rle))
    return found


def _image_entry(picture: Path, image_id: int, size: tuple[int, int]) -> dict[str, Any]:
    """The entry in ``images`` of a picture, its file name relative to ``leftImg8bit/SPLIT``."""
    name = f"{picture.parent.name}/{picture.name}"
    return {"id": image_id, "file_name": name, "width": size[1], "height": size[0]}


def _values(labels: np.ndarray) -> list[int]:
    """The different values of labels, ascending."""
    if labels.size and labels.min() < 0:
        return np.unique(labels).tolist()
    return np.flatnonzero(np.bincount(labels.reshape(-1))).tolist()
