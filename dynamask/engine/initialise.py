"""Where a model's first weights come from."""

from __future__ import annotations

from pathlib import Path

from dynamask.config import ModelConfig
from dynamask.models.build import config_from_dict
from dynamask.models.dynamask import DynaMask
from dynamask.models.solo.config import SoloConfig
from dynamask.models.solo.model import SoloNet
from dynamask.models.weights import load_backbone, load_detector, load_weights, read_header
from dynamask.structures import DynaMaskError

PARTS = ("all", "detector", "backbone")


def initialise(model: DynaMask | SoloNet, path: Path, part: str | None = None) -> str:
    """Load the weights of a trained model into another one, or a part of them.

    Args:
        path: of a weights file.
        part: "all", "detector", which is all but the mask branch or SODAR's aggregation, or "backbone", with its FPN.
            None takes all from a model of the same kind, the detector from one with another mask branch or aggregation,
            and the backbone from a model of the other family, or a one-stage model of another kind.

    Returns:
        What was taken, as a sentence.

    Raises:
        DynaMaskError: the part does not exist, or does not fit the model.
    """
    if part is not None and part not in PARTS:
        raise DynaMaskError(f"part {part!r} is unknown; choose one of {', '.join(PARTS)}")
    (base, theirs), (own_base, own) = map(parts_of, (config_from_dict(read_header(path)["config"]), model.config))
    if part == "all" or (part is None and (base, theirs) == (own_base, own)):
        load_weights(model, path)
        return f"all weights are those of {path}"
    if part == "backbone" or (part is None and base != own_base):
        load_backbone(model, path)
        return f"backbone and FPN are those of {path}; all else starts anew"
    load_detector(model, path)
    if isinstance(model.config, SoloConfig):
        rest = "there is none here" if own is None else "which starts anew"
        return f"all weights are those of {path} but the aggregation's, {rest}"
    return f"the detector is that of {path}, whose mask branch ({theirs}) is left; the mask branch ({own}) starts anew"


def parts_of(config: ModelConfig | SoloConfig) -> tuple[str, object]:
    """What two models must share to take the detector from each other, and what besides to take all weights."""
    if isinstance(config, ModelConfig):
        return "two-stage", config.mask_branch
    return config.kind, config.aggregation
