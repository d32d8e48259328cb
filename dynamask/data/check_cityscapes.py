"""What is broken in Cityscapes' labels: every finding, where loading stops at the first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tqdm import tqdm

from dynamask.data import cityscapes
from dynamask.data.check import Finding
from dynamask.structures import DynaMaskError


def check_cityscapes(root: Path, split: str, progress: bool = False) -> tuple[dict[str, Any], list[Finding]]:
    """Read every file of labels of a split.

    Args:
        progress: show a bar.

    Returns:
        The COCO dict of the pictures whose labels can be used, file names relative to `leftImg8bit/SPLIT`, and what is
        wrong with the others: labels that are missing, unreadable, of another size than the picture, or hold an id that
        Cityscapes does not have.

    Raises:
        DynaMaskError: the split has no picture.
    """
    files = cityscapes.picture_files(root, split)
    coco: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": label, "name": name} for label, name in cityscapes.THINGS.items()],
    }
    findings: list[Finding] = []
    for image_id, file in enumerate(tqdm(files, unit="file", disable=not progress, dynamic_ncols=True), start=1):
        path = cityscapes.label_file(root, split, file)
        where = f"labels {path.relative_to(root).as_posix()}"
        if not path.is_file():
            findings.append(Finding("labels_missing", where, "do not exist"))
            continue
        try:
            labels = cityscapes.read_labels(path)
        except DynaMaskError as error:
            problem = str(error).removeprefix(f"labels {path}").split(":")[0].strip()
            findings.append(Finding("labels_unreadable", where, problem))
            continue
        unknown = cityscapes.unknown_ids(labels)
        if unknown:
            ids = ", ".join(str(value) for value in unknown[:3])
            findings.append(Finding("unknown_label", where, f"hold ids that Cityscapes does not have: {ids}"))
            continue
        height, width = labels.shape
        name = file.relative_to(root / cityscapes.PICTURES / split).as_posix()
        coco["images"].append({"id": image_id, "file_name": name, "width": width, "height": height})
        found = cityscapes.regions(labels, image_id, {label: label for label in cityscapes.THINGS})
        coco["annotations"] += [annotation for annotation, _ in found]
    return coco, findings
