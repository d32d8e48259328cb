"""Opening a data set by name: pictures with COCO annotations, the folder of a data set, or scenes made on the fly."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from dynamask.data import cityscapes
from dynamask.data.cityscapes import CityscapesDataset
from dynamask.data.coco import CocoDataset
from dynamask.data.combined import CombinedDataset
from dynamask.data.instances import OBJECT, Transforms
from dynamask.data.shapes import SIDES, ShapesDataset
from dynamask.structures import DynaMaskError

SingleData = CocoDataset | CityscapesDataset | ShapesDataset
Data = SingleData | CombinedDataset

LAYOUTS = (
    "images/ with annotations.json; annotations/instances_SPLIT2017.json with SPLIT2017/ (COCO); lvis_v1_SPLIT.json "
    "with train2017/ and val2017/ (LVIS); or leftImg8bit/ with gtFine/ (Cityscapes)"
)
"""The folder layouts that are recognised, for messages."""


def open_data(
    data: str | None = None,
    images: Path | None = None,
    annotations: Path | None = None,
    class_names: Sequence[str] | None = None,
    transforms: Transforms | None = None,
    merge_classes: bool = False,
    split: str | None = None,
    default_split: str = "train",
) -> SingleData:
    """Open the data set that a user named.

    Args:
        data: "shapes:SEED:COUNT" or "shapes:SEED:COUNT:SMALLEST-LARGEST" (sides of the objects relative to the
            scene's), or a folder in one of the `LAYOUTS`; instead of the next two.
        images: picture folder.
        annotations: COCO JSON file.
        class_names: of the weights that will be used (index 0 the background). Class-agnostic weights, whose only class
            is "object", get all classes merged into that one, unless a COCO file has a class of that name.
        transforms: called as transforms(image, target) on every item.
        merge_classes: replace all classes by the one class "object".
        split: split of a folder that has several; None takes `default_split`.

    Raises:
        DynaMaskError: none or both of the two ways given, or data that cannot be opened.
    """
    agnostic = class_names is not None and tuple(class_names[1:]) == (OBJECT,)
    if (data is None) == (images is None and annotations is None):
        raise DynaMaskError("name the data in one way: --data, or --images with --annotations")
    if data is None:
        if split is not None:
            raise DynaMaskError(f"--split {split} chooses a split of --data; leave it out with --annotations")
        if images is None or annotations is None:
            raise DynaMaskError("pictures and annotations belong together; give both --images and --annotations")
    elif is_shapes(data):
        if merge_classes:
            raise DynaMaskError(
                "the classes of shapes scenes cannot be merged; export them and merge those of the folder"
            )
        if split is not None:
            raise DynaMaskError(f"shapes scenes have no splits; leave out --split {split} and use another seed")
        return _open_shapes(data, transforms)
    else:
        source = find_source(data, split, default_split)
        if source.kind == "cityscapes":
            merge = merge_classes or agnostic
            return CityscapesDataset(source.annotations, str(source.split), transforms, merge_classes=merge)
        images, annotations = source.images, source.annotations
    return CocoDataset(
        images, annotations, transforms, merge_classes=merge_classes or ("missing" if agnostic else False)
    )


def open_together(
    data: Sequence[str],
    images: Sequence[Path],
    annotations: Sequence[Path],
    class_names: Sequence[str] | None = None,
    transforms: Transforms | None = None,
    merge_classes: bool = False,
    split: str | None = None,
) -> Data:
    """Open the data set that a user named, or several as one :class:`CombinedDataset`.

    Args:
        data: values of ``--data``, each as :func:`open_data` takes them; instead of the next two.
        images: picture folders.
        annotations: COCO JSON files, one for each picture folder.
        class_names, transforms, merge_classes, split: for each data set, see :func:`open_data`.

    Raises:
        DynaMaskError: unequal numbers of folders and files, or anything that :func:`open_data` refuses.
    """
    if images and annotations and len(images) != len(annotations):
        raise DynaMaskError(
            f"--images is given {len(images)} times and --annotations {len(annotations)} times; give both for every "
            "data set"
        )
    sources = list(zip_longest(data, images, annotations)) or [(None, None, None)]
    parts = [open_data(*source, class_names, transforms, merge_classes, split) for source in sources]
    return parts[0] if len(parts) == 1 else CombinedDataset(parts)


def is_shapes(data: str) -> bool:
    """Whether ``--data`` asks for shapes scenes; a folder may have the name "shapes", too."""
    return data.startswith("shapes:") or (data == "shapes" and not Path(data).is_dir())


def _open_shapes(data: str, transforms: Transforms | None) -> ShapesDataset:
    """The scenes of "shapes:SEED:COUNT"."""
    found = re.fullmatch(r"shapes:(\d+):(\d+)(?::(0\.\d+)-(0\.\d+))?", data)
    if found is None:
        raise DynaMaskError(f"data {data!r} name no scenes; write shapes:SEED:COUNT, for example shapes:1000:300")
    seed, count, smallest, largest = found.groups()
    sides = SIDES if smallest is None else (float(smallest), float(largest))
    return ShapesDataset(int(count), int(seed), transforms=transforms, sides=sides)


@dataclass(frozen=True)
class DataLocation:
    """Where the pictures and annotations of a data set are.

    Attributes:
        kind: "coco", "lvis" or "cityscapes".
        images: folder that the file names are relative to.
        annotations: JSON file; the root folder of Cityscapes.
        split: its name; None where the folder has no splits.
        splits: names of all splits.
    """

    kind: str
    images: Path
    annotations: Path
    split: str | None = None
    splits: tuple[str, ...] = ()


def find_source(root: str | Path, split: str | None = None, default: str = "train") -> DataLocation:
    """Recognise the layout of a folder and choose a split.

    Args:
        root: the folder.
        split: name of the split; None takes the default, or the only one.
        default: the split that is taken where there are several and none is named.

    Raises:
        DynaMaskError: no folder, a folder of no known layout or of two, or a split that does not exist; the message
            lists those that do.
    """
    root = Path(root)
    if not root.is_dir():
        raise DynaMaskError(f"--data {root} is no folder; give one with {LAYOUTS}; or shapes:SEED:COUNT")
    found = {kind: sources for kind, finder in _FINDERS.items() if (sources := finder(root))}
    if not found:
        raise DynaMaskError(f"--data {root} is not a known kind of data set; give a folder with {LAYOUTS}")
    if len(found) > 1:
        raise DynaMaskError(f"--data {root} holds {' and '.join(found)}; name one with --images and --annotations")
    sources = {source.split: source for source in next(iter(found.values()))}
    if None in sources:
        if split is not None:
            raise DynaMaskError(f"--data {root} has no splits; leave out --split {split}")
        return sources[None]
    wanted = split if split is not None else default if len(sources) > 1 else next(iter(sources))
    if wanted not in sources:
        raise DynaMaskError(f"--data {root} has no split {wanted!r}; choose --split {' or '.join(sorted(sources))}")
    return sources[wanted]


def _find_plain(root: Path) -> list[DataLocation]:
    """A folder with ``images/`` and ``annotations.json``."""
    file = root / "annotations.json"
    return [DataLocation("coco", root / "images", file)] if file.is_file() else []


def _find_coco(root: Path) -> list[DataLocation]:
    """COCO's own layout; "train" is short for "train2017" where there is one year only."""
    files = {
        path.stem.removeprefix("instances_"): path for path in sorted((root / "annotations").glob("instances_*.json"))
    }
    short = [re.sub(r"\d{4}$", "", name) for name in files]
    titles = [cut if short.count(cut) == 1 else name for name, cut in zip(files, short)]
    splits = tuple(sorted(titles))
    return [DataLocation("coco", root / name, files[name], title, splits) for name, title in zip(files, titles)]


def _find_lvis(root: Path) -> list[DataLocation]:
    """LVIS files, with COCO's picture folders beside them or in a folder ``coco`` beside the root."""
    files = sorted(root.glob("lvis_v1_*.json")) + sorted((root / "annotations").glob("lvis_v1_*.json"))
    names = {path.stem.removeprefix("lvis_v1_"): path for path in files}
    parts = ("train2017", "val2017", "test2017")
    folder = next((f for f in (root, root.parent / "coco") if any((f / part).is_dir() for part in parts)), root)
    return [DataLocation("lvis", folder, path, name, tuple(sorted(names))) for name, path in names.items()]


def _find_cityscapes(root: Path) -> list[DataLocation]:
    """The pictures of Cityscapes with their labels."""
    if not (root / cityscapes.PICTURES).is_dir():
        return []
    if not (root / cityscapes.LABELS).is_dir():
        raise DynaMaskError(f"--data {root} has leftImg8bit/ without gtFine/; unpack gtFine_trainvaltest there as well")
    names = cityscapes.splits(root)
    return [DataLocation("cityscapes", root / cityscapes.PICTURES / name, root, name, tuple(names)) for name in names]


_FINDERS = {"a COCO-style folder": _find_plain, "COCO": _find_coco, "LVIS": _find_lvis, "Cityscapes": _find_cityscapes}
