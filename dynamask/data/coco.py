"""The data set of a COCO or LVIS file and its picture folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from dynamask.data.coco_format import FEDERATED_KEYS, read_coco
from dynamask.data.instances import OBJECT, InstanceDataset, Transforms
from dynamask.ops.rle import Rle
from dynamask.structures import DynaMaskError


class CocoDataset(InstanceDataset):
    """Pictures and instance masks of a COCO or LVIS annotation file, in the order of its ``images``.

    For items and attributes see :class:`InstanceDataset`. In addition, ``content`` is what was read of the file.
    """

    def __init__(
        self,
        images: str | Path,
        annotations: str | Path,
        transforms: Transforms | None = None,
        include_crowd: bool = False,
        merge_classes: bool | Literal["missing"] = False,
    ) -> None:
        """Read and check the annotations and the headers of all pictures.

        Args:
            images: folder that the file names are relative to.
            annotations: COCO JSON file.
            transforms: called as transforms(image, target) on every item.
            include_crowd: keep crowd regions in the targets; training leaves them out.
            merge_classes: replace all classes by the one class "object" (see :func:`merge_categories`); "missing" does
                so only where the file has no class of that name.

        Raises:
            DynaMaskError: no such folder, not COCO JSON, or pictures that are missing, outside the folder, unreadable
                or of another size, as far as their headers tell.
        """
        self.folder, self.annotations = Path(images), annotations
        if not self.folder.is_dir():
            raise DynaMaskError(f"picture folder {images} does not exist or is not a folder: check the path")
        self.content = read_coco(annotations, images=self.folder)
        self.coco, self.skipped = self.content.coco, self.content.skipped
        if merge_classes == "missing":
            merge_classes = all(category["name"] != OBJECT for category in self.coco["categories"])
        if merge_classes:
            self.coco = merge_categories(self.coco)
        super().__init__(self.coco["categories"], transforms)
        self._images = self.coco["images"]
        self.image_ids: list[int] = [image["id"] for image in self._images]
        self.files = [self.content.files[image_id] for image_id in self.image_ids]
        self._objects: dict[int, list[tuple[dict[str, Any], Rle]]] = {image_id: [] for image_id in self.image_ids}
        for annotation, rle in zip(self.coco["annotations"], self.content.rles, strict=True):
            if include_crowd or not annotation["iscrowd"]:
                self._objects[annotation["image_id"]].append((annotation, rle))

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) in pixels of the picture at ``index``, as the file says."""
        return self._images[index]["height"], self._images[index]["width"]

    def instances(self, index: int) -> list[tuple[dict[str, Any], Rle]]:
        """The annotations of the targets at ``index``, each with its compressed run-length mask."""
        return self._objects[self.image_ids[index]]


def merge_categories(coco: dict[str, Any]) -> dict[str, Any]:
    """A copy of a COCO dict with the one category "object" (id 1) in place of all.

    Every annotation keeps the name of its own class under "class_name". LVIS' federated lists are dropped.
    """
    names = {category["id"]: category["name"] for category in coco["categories"]}
    annotations = [
        {**annotation, "category_id": 1, "class_name": names[annotation["category_id"]]}
        for annotation in coco["annotations"]
    ]
    images = [{key: value for key, value in image.items() if key not in FEDERATED_KEYS} for image in coco["images"]]
    return {**coco, "images": images, "annotations": annotations, "categories": [{"id": 1, "name": OBJECT}]}
