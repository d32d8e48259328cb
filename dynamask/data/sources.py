"""Where data come from: pictures with COCO annotations, the folder of a data set, or scenes made on the fly."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from dynamask.data.cityscapes import CityscapesDataset
from dynamask.data.coco import CocoDataset, dataset_for
from dynamask.data.instances import OBJECT
from dynamask.data.layouts import find_source
from dynamask.data.shapes import SIDES, ShapesDataset
from dynamask.structures import DynaMaskError

Data = CocoDataset | CityscapesDataset | ShapesDataset
Transforms = Callable[[Tensor, dict[str, Any]], tuple[Tensor, dict[str, Any]]]


def names_scenes(data: str) -> bool:
    """Whether ``--data`` asks for scenes made as they are needed; a folder may be called shapes, too."""
    return data.startswith("shapes:") or (data == "shapes" and not Path(data).is_dir())


def open_data(
    data: str | None = None,
    images: Path | None = None,
    annotations: Path | None = None,
    class_names: Sequence[str] | None = None,
    transforms: Transforms | None = None,
    merge_classes: bool = False,
    split: str | None = None,
    default_split: str = "train",
) -> Data:
    """Open a data set that a person named.

    Args:
        data: "shapes:SEED:COUNT" or "shapes:SEED:COUNT:SMALLEST-LARGEST" (sides of the objects, as shares of the
            scene's), or a folder that :func:`dynamask.data.layouts.find_source` recognises; not together with the next
            two.
        images: picture folder.
        annotations: COCO JSON.
        class_names: of the weights that will see it (index 0 the background); class-agnostic ones see classes merged.
        transforms: called as transforms(image, target) on every item.
        merge_classes: serve every class as the one class "object".
        split: of a folder that has several; None takes `default_split`.

    Raises:
        DynaMaskError: none or both of the two ways given, or data that cannot be opened.
    """
    if (data is None) == (images is None and annotations is None):
        raise DynaMaskError("name the data in one way: --data, or --images with --annotations")
    if data is None:
        if split is not None:
            raise DynaMaskError(f"--split {split} chooses a part of --data; leave it away beside --annotations")
        if images is None or annotations is None:
            raise DynaMaskError("pictures and annotations belong together; give both --images and --annotations")
    elif names_scenes(data):
        if merge_classes:
            raise DynaMaskError("shapes keep their classes; merge the classes of an exported folder instead")
        if split is not None:
            raise DynaMaskError(f"scenes have no splits, so leave --split {split} away; another seed is another world")
        return _shapes(data, transforms)
    else:
        source = find_source(data, split, default_split)
        if source.kind == "cityscapes":
            merge = merge_classes or (class_names is not None and tuple(class_names[1:]) == (OBJECT,))
            return CityscapesDataset(source.annotations, source.split, transforms, merge_classes=merge)
        images, annotations = source.images, source.annotations
    if class_names is not None:
        return dataset_for(class_names, images, annotations, transforms)
    return CocoDataset(images, annotations, transforms, merge_classes=merge_classes)


def _shapes(data: str, transforms: Transforms | None) -> ShapesDataset:
    """The scenes that "shapes:SEED:COUNT" names."""
    found = re.fullmatch(r"shapes:(\d+):(\d+)(?::(0\.\d+)-(0\.\d+))?", data)
    if found is None:
        raise DynaMaskError(f"data {data!r} name no scenes; write shapes:SEED:COUNT, for example shapes:1000:300")
    seed, count, smallest, largest = found.groups()
    sides = SIDES if smallest is None else (float(smallest), float(largest))
    return ShapesDataset(int(count), int(seed), transforms=transforms, sides=sides)
