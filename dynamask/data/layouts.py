"""What a data folder is, by its content: a COCO-style folder, or the root of COCO, LVIS or Cityscapes with splits."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from dynamask.data import cityscapes
from dynamask.structures import DynaMaskError

FORMS = (
    "images/ with annotations.json; annotations/instances_SPLIT2017.json with SPLIT2017/ (COCO); lvis_v1_SPLIT.json "
    "with train2017/ and val2017/ (LVIS); or leftImg8bit/ with gtFine/ (Cityscapes)"
)
"""The layouts, for messages."""


@dataclass(frozen=True)
class Source:
    """Where the pictures and annotations of a data set lie.

    Attributes:
        kind: "coco", "lvis" or "cityscapes".
        images: folder that the file names are relative to.
        annotations: JSON file; for Cityscapes the root.
        split: its name; None where the folder has no splits.
        splits: all names.
    """

    kind: str
    images: Path
    annotations: Path
    split: str | None = None
    splits: tuple[str, ...] = ()


def find_source(root: str | Path, split: str | None = None, default: str = "train") -> Source:
    """Recognise a folder and choose a split.

    Args:
        root: the folder.
        split: name of the wanted split; None takes the default, or the only one.
        default: the split that is taken where several are there and none is named.

    Raises:
        DynaMaskError: no folder, a folder of no known layout or of two, or a split that does not exist; the message
            lists those that do.
    """
    root = Path(root)
    if not root.is_dir():
        raise DynaMaskError(f"--data {root} is no folder; give one with {FORMS}; or shapes:SEED:COUNT")
    found = {kind: sources for kind, finder in _FINDERS.items() if (sources := finder(root))}
    if not found:
        raise DynaMaskError(f"--data {root} is no data set that is known; give a folder with {FORMS}")
    if len(found) > 1:
        raise DynaMaskError(f"--data {root} holds {' and '.join(found)}; name one with --images and --annotations")
    sources = next(iter(found.values()))
    return _chosen(root, {source.split: source for source in sources}, split, default)


def _chosen(root: Path, sources: dict[str | None, Source], split: str | None, default: str) -> Source:
    """The source of the wanted split."""
    if None in sources:
        if split is not None:
            raise DynaMaskError(f"--data {root} has no splits, so leave --split {split} away")
        return sources[None]
    wanted = split if split is not None else default if len(sources) > 1 else next(iter(sources))
    if wanted not in sources:
        raise DynaMaskError(f"--data {root} has no split {wanted!r}; choose --split {' or '.join(sorted(sources))}")
    return sources[wanted]


def _plain(root: Path) -> list[Source]:
    """A folder with `images/` and `annotations.json`."""
    if not (root / "annotations.json").is_file():
        return []
    return [Source("coco", root / "images", root / "annotations.json")]


def _coco(root: Path) -> list[Source]:
    """COCO's own layout; "train" is short for "train2017"."""
    names: dict[str, Path] = {}
    for path in sorted((root / "annotations").glob("instances_*.json")):
        names[path.stem.removeprefix("instances_")] = path
    short = {name: re.sub(r"\d{4}$", "", name) for name in names}
    once = [name for name in short.values() if list(short.values()).count(name) == 1]
    titles = {name: short[name] if short[name] in once else name for name in names}
    return [
        Source("coco", root / name, path, titles[name], tuple(sorted(titles.values()))) for name, path in names.items()
    ]


def _lvis(root: Path) -> list[Source]:
    """LVIS' files, beside COCO's picture folders or in a folder beside COCO's root."""
    files = sorted(root.glob("lvis_v1_*.json")) + sorted((root / "annotations").glob("lvis_v1_*.json"))
    names = {path.stem.removeprefix("lvis_v1_"): path for path in files}
    folder = next((f for f in (root, root.parent / "coco") if any((f / part).is_dir() for part in _PARTS)), root)
    return [Source("lvis", folder, path, name, tuple(sorted(names))) for name, path in names.items()]


def _cityscapes(root: Path) -> list[Source]:
    """Cityscapes' pictures with its labels."""
    if not (root / cityscapes.PICTURES).is_dir():
        return []
    if not (root / cityscapes.LABELS).is_dir():
        raise DynaMaskError(f"--data {root} has leftImg8bit/ without gtFine/; unpack gtFine_trainvaltest there as well")
    names = cityscapes.splits(root)
    return [Source("cityscapes", root / cityscapes.PICTURES / name, root, name, tuple(names)) for name in names]


_PARTS = ("train2017", "val2017", "test2017")
_FINDERS = {"a COCO-style folder": _plain, "COCO": _coco, "LVIS": _lvis, "Cityscapes": _cityscapes}
