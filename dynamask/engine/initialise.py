"""Where a model's first weights come from."""

from __future__ import annotations

from pathlib import Path

from dynamask.models.rcnn.model import DynaMaskRCNN
from dynamask.models.weights_file import load_detector, load_weights, read_header
from dynamask.structures import DynaMaskError

PARTS = ("all", "detector")


def initialise(model: DynaMaskRCNN, path: Path, part: str | None = None) -> str:
    """Load the weights of a trained model into another one, or all of them but the mask branch.

    Args:
        path: of a weights file.
        part: "all" or "detector", which is all but the mask branch; None takes all from a model with the same kind of
            mask branch, and the detector from one with another.

    Returns:
        What was taken, as a sentence.

    Raises:
        DynaMaskError: the part does not exist, or does not fit the model.
    """
    if part is not None and part not in PARTS:
        raise DynaMaskError(f"part {part!r} is unknown; choose one of {', '.join(PARTS)}")
    theirs, own = read_header(path)["config"].get("mask_branch", "region_fpn"), model.config.mask_branch
    if part == "all" or (part is None and theirs == own):
        load_weights(model, path)
        return f"all weights are those of {path}"
    load_detector(model, path)
    return f"the detector is that of {path}, whose mask branch ({theirs}) is left; the mask branch ({own}) starts anew"
