"""Where a model's first weights come from."""

from __future__ import annotations

from pathlib import Path

from dynamask.config import ModelConfig
from dynamask.models.factory import config_from_dict
from dynamask.models.rcnn.model import DynaMaskRCNN
from dynamask.models.solo.config import SoloConfig
from dynamask.models.solo.model import SoloNet
from dynamask.models.weights_file import load_backbone, load_detector, load_weights, read_header
from dynamask.structures import DynaMaskError

PARTS = ("all", "detector", "backbone")


def initialise(model: DynaMaskRCNN | SoloNet, path: Path, part: str | None = None) -> str:
    """Load the weights of a trained model into another one, or a part of them.

    Args:
        path: of a weights file.
        part: "all", "detector", which is all but the mask branch, or "backbone", with its FPN. None takes all from a
            model of the same kind, the detector from a two-stage model with another mask branch, and the backbone
            from a model of the other family, or a one-stage model of another kind.

    Returns:
        What was taken, as a sentence.

    Raises:
        DynaMaskError: the part does not exist, or does not fit the model.
    """
    if part is not None and part not in PARTS:
        raise DynaMaskError(f"part {part!r} is unknown; choose one of {', '.join(PARTS)}")
    theirs, own = (kind_of(config) for config in (config_from_dict(read_header(path)["config"]), model.config))
    if part == "all" or (part is None and theirs == own):
        load_weights(model, path)
        return f"all weights are those of {path}"
    if part == "backbone" or not isinstance(own, str) or not isinstance(theirs, str):
        load_backbone(model, path)
        return f"backbone and FPN are those of {path}; all else starts anew"
    load_detector(model, path)
    return f"the detector is that of {path}, whose mask branch ({theirs}) is left; the mask branch ({own}) starts anew"


def kind_of(config: ModelConfig | SoloConfig) -> object:
    """What two models must share to take all weights from each other: the mask branch, or kind and aggregation."""
    return config.mask_branch if isinstance(config, ModelConfig) else (config.kind, config.aggregation)
