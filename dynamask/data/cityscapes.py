"""Cityscapes: street scenes whose instances are pixels of one PNG per picture, served like COCO's.

`leftImg8bit/SPLIT/CITY/*_leftImg8bit.png` are the pictures and `gtFine/SPLIT/CITY/*_gtFine_instanceIds.png` (16 bits)
their labels: a pixel of instance n of class c holds 1000 c + n; a pixel of c alone belongs to no single instance, and
in the eight thing classes to a group, which is served as a crowd.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as coco_mask
from PIL import Image

from dynamask.data.instances import OBJECT, InstanceDataset, Transforms
from dynamask.structures import DynaMaskError

THINGS: dict[int, str] = {
    24: "person", 25: "rider", 26: "car", 27: "truck", 28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle",
}  # fmt: skip
"""The classes whose instances are judged, by label id."""
LAST_LABEL = 33
"""Label ids are 0 to 33."""
COUNTED = (*range(24, 34),)
"""Labels whose instances are numbered: the things, caravans (29) and trailers (30)."""
PICTURES, LABELS = "leftImg8bit", "gtFine"
PICTURE_ENDING, LABEL_ENDING = "_leftImg8bit.png", "_gtFine_instanceIds.png"


class CityscapesDataset(InstanceDataset):
    """One split of Cityscapes, its pictures in the order of their cities and names, image ids from 1.

    A picture's labels are read when they are needed and its instances kept as run lengths; `coco` reads them all. The
    category ids are the label ids.
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
            root: folder with `leftImg8bit` and `gtFine`.
            split: "train", "val" or another folder in both.
            transforms: called as transforms(image, target) on every item.
            include_crowd: keep group regions in the targets; training leaves them out.
            merge_classes: serve every thing as the one class "object".

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
        self._objects: dict[int, list[tuple[dict[str, Any], dict[str, Any]]]] = {}
        self._sizes: dict[int, tuple[int, int]] = {}

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) in pixels of the labels at `index`."""
        if index not in self._sizes:
            self._find(index)
        return self._sizes[index]

    def instances(self, index: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """The annotations of the targets at `index`, each with its compressed run-length mask."""
        return [pair for pair in self._find(index) if self.include_crowd or not pair[0]["iscrowd"]]

    def instance_ids(self, index: int) -> np.ndarray:
        """The labels at `index`, (H, W) integers as the file holds them."""
        return read_labels(self.labels[index])

    @cached_property
    def coco(self) -> dict[str, Any]:
        """The COCO dict of all pictures, file names relative to `leftImg8bit/SPLIT`; reads all labels on first use."""
        images, annotations = [], []
        for index, file in enumerate(self.files):
            annotations += [annotation for annotation, _ in self._find(index)]
            height, width = self.size(index)
            name = file.relative_to(self.root / PICTURES / self.split).as_posix()
            images.append({"id": self.image_ids[index], "file_name": name, "width": width, "height": height})
        categories = [{"id": c, "name": name} for c, name in zip(self.category_ids, self.class_names[1:])]
        return {"images": images, "annotations": annotations, "categories": categories}

    def _find(self, index: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """All regions of a picture, groups included, kept after the first time."""
        if index not in self._objects:
            labels = self.instance_ids(index)
            unknown = unknown_ids(labels)
            if unknown:
                raise DynaMaskError(
                    f"labels {self.labels[index]} hold the id {unknown[0]}, which Cityscapes does not have: "
                    "give *_gtFine_instanceIds.png as they were published"
                )
            self._sizes[index] = labels.shape
            self._objects[index] = regions(labels, self.image_ids[index], self.class_of)
        return self._objects[index]


def splits(root: Path) -> list[str]:
    """The splits that a Cityscapes folder has, by name."""
    return sorted(path.name for path in (root / PICTURES).iterdir() if path.is_dir())


def picture_files(root: Path, split: str) -> list[Path]:
    """The pictures of a split, by city and name; DynaMaskError where there are none."""
    folder = root / PICTURES / split
    files = sorted(folder.glob(f"*/*{PICTURE_ENDING}")) if folder.is_dir() else []
    if not files:
        raise DynaMaskError(f"{folder} holds no CITY/*{PICTURE_ENDING}: give the root of Cityscapes, and its split")
    return files


def label_file(root: Path, split: str, picture: Path) -> Path:
    """Where the labels of a picture are."""
    name = picture.name.removesuffix(PICTURE_ENDING) + LABEL_ENDING
    return root / LABELS / split / picture.parent.name / name


def read_labels(path: Path) -> np.ndarray:
    """A file of labels as (H, W) int32; DynaMaskError where it is no readable 16-bit grey PNG."""
    try:
        with Image.open(path, formats=("PNG",)) as picture:
            labels = np.asarray(picture)
    except Exception:  # decoders raise many kinds on damaged data
        raise DynaMaskError(f"labels {path} cannot be read: unpack gtFine again") from None
    if labels.ndim != 2 or labels.dtype.kind not in "iu":
        raise DynaMaskError(f"labels {path} are no grey picture of whole numbers: give *{LABEL_ENDING}")
    return labels.astype(np.int32)


def unknown_ids(labels: np.ndarray) -> list[int]:
    """The ids in labels (H, W) that Cityscapes does not have, ascending."""
    return [value for value in _values(labels) if not (0 <= value <= LAST_LABEL or value // 1000 in COUNTED)]


def regions(labels: np.ndarray, image_id: int, class_of: dict[int, int]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The things in labels (H, W), each as a COCO annotation and its compressed run-length mask.

    Args:
        class_of: category id by label id.
    """
    found = []
    for value in _values(labels):
        label = value // 1000 if value >= 1000 else value
        if label not in class_of:
            continue
        mask = labels == value  # (H, W)
        rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
        annotation = {
            "id": image_id * 100_000 + len(found) + 1,
            "image_id": image_id,
            "category_id": class_of[label],
            "iscrowd": int(value < 1000),
            "bbox": [float(v) for v in np.asarray(coco_mask.toBbox([rle])).reshape(-1)],
            "area": float(np.count_nonzero(mask)),
            "segmentation": {"size": list(mask.shape), "counts": _text(rle["counts"])},
        }
        found.append((annotation, rle))
    return found


def _values(labels: np.ndarray) -> list[int]:
    """The different values of non-negative labels, ascending."""
    if labels.size and labels.min() < 0:
        return np.unique(labels).tolist()
    return np.flatnonzero(np.bincount(labels.reshape(-1))).tolist()


def _text(counts: str | bytes) -> str:
    """Compressed run lengths as JSON holds them."""
    return counts.decode("ascii") if isinstance(counts, bytes) else counts
