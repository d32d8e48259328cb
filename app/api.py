"""The endpoints /predict, /select and /scene: JSON in, JSON out; nothing is kept between calls.

`/predict` returns everything that `/select` needs to choose other sizes, so that no picture stays on the server and no
answer can reach another caller.
"""

from __future__ import annotations

import base64
import binascii
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np
import orjson
import torch
from gradio.utils import get_upload_folder

from app.arguments import is_number, number, shortened, whole_number
from app.errors import notifying
from app.images import decoded, png_url, stored_size
from app.limits import LIMITS
from app.mask_encoding import box_pixels, check_mask_pixels, encode_pasted, mask_work
from app.source_pictures import read_upload
from app.work import PICTURES, check_request
from dynamask.config import STRIDES
from dynamask.data.shapes.outlines import CLASSES
from dynamask.data.shapes.scene import make_scene
from dynamask.models.masks.policies import QUALITY, Policy, budget_in_macs, default_policy, logits_of
from dynamask.ops.rle import encode_rle
from dynamask.structures import MASK_SIZES, DynaMaskError

if TYPE_CHECKING:
    from app.catalog import SharedPredictor
    from app.context import PageContext
    from dynamask.predict import Prediction, Predictor

MAX_INSTANCES = 2000
"""Instances of an answer that /select takes."""
FEW_INSTANCES = 128
"""Sizes of more instances are chosen for one call at a time."""
MAX_SEED = 2**31 - 1


def build(context: PageContext) -> None:
    """Add the endpoints to the page that is being built."""

    @notifying
    def predict(
        image: dict | str,
        weights: str = context.explorer.catalog.first,
        policy: str | None = None,
        budget: float | None = None,
        score: float | None = None,
        boxes: list[list[float]] | None = None,
        all_sizes: bool = False,
    ) -> dict:
        """Find the objects of a picture, or take given boxes, and make a mask of the chosen size for each."""
        predictor = context.predictor(weights)
        options = checked_options(predictor, policy, budget, score, boxes, all_sizes)
        data = picture_bytes(image, Path(get_upload_folder()))
        check_size(predictor, data, options)
        prediction = predictor(decoded(data), **options)
        return answer_of(prediction, predictor, weights, options["all_sizes"])

    @notifying
    def select(prediction: dict, policy: str | None = None, budget: float | None = None) -> dict:
        """Choose the sizes of an answer of /predict anew: another policy or budget, no picture needed."""
        return reselected(prediction, policy, budget)

    @notifying
    def scene(seed: int = 0, index: int = 0, difficulty: float | None = None) -> dict:
        """Make a scene of the shapes data set: its picture and the truth about its objects."""
        return scene_of(seed, index, difficulty)

    gr.api(predict, api_name="predict", concurrency_limit=None)
    gr.api(select, api_name="select", concurrency_limit=None)
    gr.api(scene, api_name="scene", concurrency_limit=None)


# ---- /predict ----


def checked_options(
    predictor: Predictor, policy: Any, budget: Any, score: Any, boxes: Any, all_sizes: Any
) -> dict[str, Any]:
    """The predictor's arguments, checked before the picture is decoded; the values of boxes are left to the predictor.

    Raises:
        DynaMaskError: an argument that cannot be used, or a choice that these weights cannot follow.
    """
    _check_choice_types(policy, budget)
    predictor.check_choice(policy, budget)
    if boxes is not None and (not isinstance(boxes, list) or len(boxes) > LIMITS.boxes):
        raise DynaMaskError(f"boxes are not a list of at most {LIMITS.boxes}; give [[x0, y0, x1, y1], …]")
    if boxes is not None and not all(
        isinstance(box, list) and len(box) == 4 and all(map(is_number, box)) for box in boxes
    ):
        raise DynaMaskError("boxes are not a list of [x0, y0, x1, y1]; give four numbers for each")
    score = None if score is None else number(score, "score", 0, 1)
    return {"policy": policy, "budget": budget, "score": score, "boxes": boxes, "all_sizes": bool(all_sizes)}


def _check_choice_types(policy: Any, budget: Any) -> None:
    if policy is not None and not isinstance(policy, str):
        raise DynaMaskError("policy is not a text; choose learned, quality, size or fixed:S")
    if budget is not None and not is_number(budget):
        raise DynaMaskError(f"budget {shortened(budget)} is not a number; give mean GMACs per instance")


def check_size(predictor: SharedPredictor, data: bytes, options: dict[str, Any]) -> None:
    """Raise :class:`DynaMaskError` for a picture and boxes above the limits, before anything is decoded.

    Args:
        predictor: that the call chooses.
        data: the picture's file.
        options: from :func:`checked_options`.
    """
    size = stored_size(data)
    predictor.check_size(*size)
    sizes = 1 + len(predictor.mask_sizes) * options["all_sizes"]
    turned = [box_pixels(options["boxes"] or [], each) for each in (size, size[::-1])]  # EXIF may turn the picture
    check_mask_pixels(min(turned) * sizes)


def picture_bytes(image: Any, folder: Path) -> bytes:
    """The picture file of a call.

    Args:
        image: a file as `gradio_client.handle_file` sends it (a dict with its path on the server), or base64 text,
            with or without a `data:` prefix.
        folder: where uploads are stored; a path outside it is refused.

    Raises:
        DynaMaskError: neither of the two.
    """
    if isinstance(image, dict) and isinstance(image.get("path"), str):
        return read_upload(image["path"], folder)
    if isinstance(image, str):
        text = image.partition(",")[2] if image.startswith("data:") else image
        try:
            return base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise DynaMaskError("the picture's text is not base64; send base64 of a picture file") from None
    raise DynaMaskError("image is not a picture; send a file with gradio_client.handle_file or base64 text")


def answer_of(prediction: Prediction, predictor: Predictor, weights: str, all_sizes: bool) -> dict[str, Any]:
    """A prediction as the JSON object of /predict.

    Two-stage instances have a `mask_size`, their `switch_probs`, with a quality head `quality` (predicted mask IoU and
    boundary IoU of each size) and, with all sizes, `masks` by size; one-stage instances have the `level` (from 1),
    `stride` and `cell` (row, column) that they come from.

    Raises:
        DynaMaskError: masks above the limit, or the current request has ended.
    """
    sizes = 1 + len(prediction.mask_sizes) * all_sizes
    with mask_work(box_pixels(prediction.mask_boxes.tolist(), prediction.image_size) * sizes):
        instances = [_instance(prediction, i, all_sizes) for i in range(len(prediction))]
    if prediction.cells is None:
        macs = [int(value) for value in predictor.costs.macs_per_instance]
        own = {"mask_sizes": list(MASK_SIZES), "macs_per_instance": macs}
    else:
        own = {"family": "one-stage", "grids": list(prediction.cells.model.config.grids)}
    return {
        "weights": weights,
        "image_size": list(prediction.image_size),
        **own,
        "image_macs": prediction.image_macs,
        "mean_macs": mean_macs(instances),
        "instances": instances,
    }


def _instance(prediction: Prediction, i: int, all_sizes: bool) -> dict[str, Any]:
    """An instance of an answer."""
    check_request()
    label, cells = int(prediction.labels[i]), prediction.cells
    size = None if cells is not None else int(prediction.mask_size[i])
    instance = {
        "label": prediction.class_names[label],
        "category_id": prediction.category_ids[label - 1],
        "score": float(prediction.scores[i]),
        "box": prediction.boxes[i].tolist(),
        "macs": int(prediction.macs[i]),
        "segmentation": encode_rle(prediction.mask(i)) if size is None else _encoded(prediction, i, size),
    }
    if cells is not None:
        level = int(cells.level[i])
        cell = divmod(int(cells.cell[i]), cells.model.config.grids[level])
        return {**instance, "level": level + 1, "stride": STRIDES[level], "cell": list(cell)}
    instance |= {"mask_size": size, "switch_probs": prediction.switch_probs[i].double().tolist()}
    if prediction.quality is not None:
        instance["quality"] = prediction.quality[i].double().tolist()
    if all_sizes:
        instance["masks"] = {str(each): _encoded(prediction, i, each) for each in prediction.mask_sizes}
    return instance


def _encoded(prediction: Prediction, i: int, size: int) -> dict[str, Any]:
    """Run lengths of the mask of an instance at a size."""
    return encode_pasted(prediction.mask_probs_at(i, size), prediction.mask_boxes[i].tolist(), prediction.image_size)


def mean_macs(instances: list[dict[str, Any]]) -> float | None:
    """Mean MACs of the instances; None without one."""
    return sum(one["macs"] for one in instances) / len(instances) if instances else None


# ---- /select ----


def reselected(prediction: Any, policy: Any, budget: Any) -> dict[str, Any]:
    """The answer of /predict under another policy or budget; nothing is computed but the choice.

    Args:
        prediction: an answer of /predict.
        policy: "learned", "quality", "size", "fixed:S", or None: "quality" for a budget where the answer has it,
            otherwise "learned".
        budget: mean GMACs per instance, or None.

    Returns:
        The same object with new sizes and MACs. `segmentation` follows where the answer holds `masks` (asked for with
        `all_sizes`); it is None for an instance whose mask at the new size is missing.

    Raises:
        DynaMaskError: `prediction` is not an answer of /predict, or the policy or budget cannot be used.
    """
    probs, quality, boxes, size, macs = _parts(prediction)
    _check_choice_types(policy, budget)
    chosen = default_policy(budget is not None, quality is not None) if policy is None else Policy.parse(policy)
    chosen.check_budget(budget)
    if chosen == QUALITY and quality is None:
        raise DynaMaskError("the policy 'quality' needs predicted quality, and this answer has none; use 'learned'")
    limit = None if budget is None else budget_in_macs(budget, macs)
    with PICTURES() if len(boxes) > FEW_INSTANCES else nullcontext():
        choice = chosen.choose(torch.from_numpy(boxes), size, logits_of(probs), macs, limit, quality)
    instances = []
    for old, k in zip(prediction["instances"], choice.tolist()):
        masks = old["masks"] if isinstance(old.get("masks"), dict) else {}
        same = old.get("segmentation") if old.get("mask_size") == MASK_SIZES[k] else None
        segmentation = masks.get(str(MASK_SIZES[k]), same)
        instances.append({**old, "mask_size": MASK_SIZES[k], "macs": macs[k], "segmentation": segmentation})
    return {**prediction, "instances": instances, "mean_macs": mean_macs(instances)}


def _parts(
    prediction: Any,
) -> tuple[np.ndarray, torch.Tensor | None, np.ndarray, tuple[int, int], tuple[int, ...]]:
    """Probabilities (R, 4), quality (R, 4, 2) or None, boxes (R, 4), picture size and MACs (4,) of an answer."""
    if isinstance(prediction, dict) and prediction.get("family") == "one-stage":
        raise DynaMaskError("one-stage weights have one mask size; there is nothing to choose anew")
    try:
        orjson.dumps(prediction)  # parts of it are sent back: no deep nesting, huge integers or lone surrogates
        instances = prediction["instances"]
        if len(instances) > MAX_INSTANCES or not all(isinstance(one, dict) for one in instances):
            raise ValueError
        count = len(MASK_SIZES)
        probs = np.array([one["switch_probs"] for one in instances], dtype=np.float64).reshape(-1, count)
        quality = _quality(instances)
        boxes = np.array([one["box"] for one in instances], dtype=np.float64).reshape(-1, 4)
        macs = tuple(int(value) for value in prediction["macs_per_instance"])
        height, width = (int(side) for side in prediction["image_size"])
        fits = len(probs) == len(boxes) == len(instances) and np.isfinite(probs).all() and np.isfinite(boxes).all()
        if not fits or (probs < 0).any() or len(macs) != count or list(macs) != sorted(set(macs)) or macs[0] < 1:
            raise ValueError
        if not 1 <= min(height, width) <= max(height, width) <= MAX_SEED or macs[-1] > 2**53:
            raise ValueError
    except (TypeError, ValueError, KeyError, OverflowError, AttributeError):
        raise DynaMaskError("prediction is not an answer of /predict; give the object that it returned") from None
    return probs, quality, boxes, (height, width), macs


def _quality(instances: list[dict[str, Any]]) -> torch.Tensor | None:
    """(R, 4, 2) predicted quality of an answer's instances, None if they have none; ValueError if it is not usable."""
    if instances and not any("quality" in one for one in instances):
        return None
    quality = np.array([one["quality"] for one in instances], dtype=np.float64)
    shape = (len(instances), len(MASK_SIZES), 2)
    if instances and quality.shape != shape or not ((quality >= 0) & (quality <= 1)).all():  # NaN is neither
        raise ValueError
    return torch.from_numpy(quality.reshape(shape))


# ---- /scene ----


def scene_of(seed: Any, index: Any, difficulty: Any) -> dict[str, Any]:
    """A scene of the shapes data set as JSON: `image`, a PNG as `data:` text, and its `instances`.

    Args:
        seed: from 0.
        index: of the scene, from 0; every tenth scene is empty.
        difficulty: 0–1, how intricate all outlines are; None draws it for each object.

    Raises:
        DynaMaskError: a number out of range.
    """
    seed, index = whole_number(seed, "seed", 0, MAX_SEED), whole_number(index, "index", 0, MAX_SEED)
    scene = make_scene(seed, index, detail=None if difficulty is None else number(difficulty, "difficulty", 0, 1))
    names = list(CLASSES)
    instances = [
        {
            "label": names[int(scene.labels[i]) - 1],
            "box": scene.boxes[i].tolist(),
            "complexity": float(scene.complexity[i]),
            "segmentation": encode_rle(scene.masks[i]),
        }
        for i in range(len(scene))
    ]
    size = list(scene.image.shape[:2])
    return {"seed": seed, "index": index, "image_size": size, "image": png_url(scene.image), "instances": instances}
