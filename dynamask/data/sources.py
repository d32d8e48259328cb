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
from dynamask.data.coco_format import load_coco
from dynamask.data.combined import CombinedDataset
from dynamask.data.instances import OBJECT, Transforms
from dynamask.data.shapes import SIDES, ShapesDataset
from dynamask.structures import DynaMaskError

SingleData = CocoDataset | CityscapesDataset | ShapesDataset
Data = SingleData | CombinedDataset

LAYOUTS = (
    "images/ with annotations.json; annotations/instances_SPLIT2017.json with SPLIT2017/ (COCO); lvis_v1_SPLIT.json "
    "with train2017/ and val2017/ (LVIS); leftImg8bit/ with gtFine/ (Cityscapes); or the COCO export of an annotation "
    "tool: one COCO JSON file with its pictures, or SPLIT/_annotations.coco.json (Roboflow)"
)
PICTURE_FOLDERS = ("images", "data", "JPEGImages")
"""Folders in which annotation tools put pictures: CVAT, Label Studio and others; FiftyOne; labelme."""
SPLIT_NAMES = {"val": ("valid", "validation"), "train": ("default",)}
"""Other names of splits in the exports of annotation tools."""
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
        annotations: COCO JSON file, or a folder that holds a single one.
        class_names: of the weights that will be used (index 0 the background). Class-agnostic weights, whose only class
            is "object", get all classes merged into that one, unless a COCO file has a class of that name.
        transforms: called as transforms(image, target) on every item.
        merge_classes: replace all classes by the one class "object".
        split: split of a folder that has several; None takes `default_split`.

    Raises:
        DynaMaskError: none or both of the two ways given, or data that cannot be opened.
    """
    if annotations is not None and annotations.is_dir():
        annotations = find_annotations(annotations)
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


def with_mask_windows(dataset: Data) -> Data:
    """The data set, its masks as windows instead of tensors: training and evaluation need one object at a time."""
    for part in dataset.parts if isinstance(dataset, CombinedDataset) else [dataset]:
        part.mask_windows = True
    return dataset


def require_objects(dataset: Data) -> None:
    """Raise :class:`DynaMaskError` if a COCO file of a data set has no object to train on, with counts by reason."""
    for part in dataset.parts if isinstance(dataset, CombinedDataset) else [dataset]:
        if isinstance(part, CocoDataset):
            part.content.require_objects(part.annotations)


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
    if not found and (exported := _find_export(root)):
        found = {"the export of an annotation tool": exported}
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
        wanted = next((name for name in SPLIT_NAMES.get(wanted, ()) if name in sources), wanted)
    if wanted not in sources:
        raise DynaMaskError(f"--data {root} has no split {wanted!r}; choose --split {' or '.join(sorted(sources))}")
    return sources[wanted]


def _find_plain(root: Path) -> list[DataLocation]:
    """A folder with ``images/`` and ``annotations.json``."""
    file, folder = root / "annotations.json", root / "images"
    if not file.is_file():
        return []
    return [DataLocation("coco", folder if folder.is_dir() else _pictures_of(root, file), file)]


def _find_coco(root: Path) -> list[DataLocation]:
    """COCO's own layout; "train" is short for "train2017" where there is one year only."""
    files = {
        path.stem.removeprefix("instances_"): path for path in sorted((root / "annotations").glob("instances_*.json"))
    }
    short = [re.sub(r"\d{4}$", "", name) for name in files]
    titles = [cut if short.count(cut) == 1 else name for name, cut in zip(files, short)]
    splits = tuple(sorted(titles))
    return [
        DataLocation("coco", _pictures_of(root, files[name], name), files[name], title, splits)
        for name, title in zip(files, titles)
    ]


def _pictures_of(root: Path, file: Path, split: str | None = None) -> Path:
    """The folder of the pictures of an annotation file: the first in which the first of them is found.

    The candidates are the folder with the name of the split, those of annotation tools, and the root.
    """
    if split is not None and (root / split).is_dir():
        return root / split
    below = [f"{folder}/{split}" for folder in PICTURE_FOLDERS] if split is not None else []
    folders = [root / name for name in (*below, *PICTURE_FOLDERS) if (root / name).is_dir()]
    if not folders:
        return root if split is None else root / split
    images = load_coco(file)["images"]
    names = [i["file_name"] for i in images if isinstance(i, dict) and isinstance(i.get("file_name"), str)]
    return next((folder for folder in folders if names and (folder / names[0]).is_file()), root)


def find_annotations(folder: Path) -> Path:
    """The only COCO JSON file in a folder.

    Raises:
        DynaMaskError: there is none, or more than one.
    """
    found = _coco_files(folder)
    if len(found) != 1:
        names = ", ".join(path.name for path in found[:5]) or "none"
        raise DynaMaskError(f"folder {folder} must hold one COCO JSON file and holds {names}; name the file")
    return found[0]


def _coco_files(folder: Path) -> list[Path]:
    """The files in a folder that hold the three lists of COCO; a single JSON file is taken for one."""

    def is_coco(path: Path) -> bool:
        try:
            load_coco(path)
        except DynaMaskError:
            return False
        return True

    files = sorted(folder.glob("*.json"))
    return files if len(files) == 1 else [path for path in files if is_coco(path)]


def _find_export(root: Path) -> list[DataLocation]:
    """The COCO export of an annotation tool.

    Roboflow writes ``SPLIT/_annotations.coco.json`` beside the pictures of each split; CVAT, Label Studio, FiftyOne,
    labelme, COCO Annotator and VIA write one file, in the folder or in ``annotations/``.
    """
    files = {path.parent.name: path for path in sorted(root.glob("*/_annotations*.coco*.json"))}
    if files:
        return [DataLocation("coco", path.parent, path, name, tuple(files)) for name, path in files.items()]
    for folder in (root, root / "annotations"):
        found = _coco_files(folder)
        if len(found) > 1:
            names = ", ".join(path.name for path in found[:5])
            raise DynaMaskError(f"--data {root} holds several annotation files ({names}); name one with --annotations")
        if found:
            return [DataLocation("coco", _pictures_of(root, found[0]), found[0])]
    return []


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
