"""The typed endpoints /predict, /select and /scene: plain JSON in, plain JSON out, nothing remembered in between.

`/predict` answers with everything that `/select` needs to choose sizes anew, so that no picture has to stay on the
server and no answer can reach another caller.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np
import torch
from gradio.utils import get_upload_folder
from PIL import Image

from app import cells
from app.errors import refuse
from dynamask.data.pictures import read_picture
from dynamask.data.shapes.outlines import CLASSES
from dynamask.data.shapes.scene import make_scene
from dynamask.models.masks.policies import Policy, budget_in_macs
from dynamask.ops.rle import encode_rle
from dynamask.structures import MASK_SIZES, DynaMaskError

if TYPE_CHECKING:
    from app.context import PageContext
    from dynamask.predict import Prediction, Predictor

MAX_BOXES = 300
"""Boxes of one call."""
MAX_TEXT = 140_000_000
"""Letters of a picture sent as text: 100 MB and base64's third."""
MAX_INSTANCES = 2000
"""Instances of an answer that /select takes back."""


def opened_picture(image: Any, folder: Path) -> np.ndarray:
    """The picture of a call as (H, W, 3) uint8 RGB.

    Args:
        image: a file as `gradio_client.handle_file` sends it (a dict with its path on the server), or base64 text,
            with or without a `data:` prefix.
        folder: where uploads are stored; a path outside it is refused.

    Raises:
        DynaMaskError: neither of the two, or a picture that is refused.
    """
    if isinstance(image, dict) and isinstance(image.get("path"), str):
        path = Path(image["path"]).resolve()
        if not path.is_relative_to(folder.resolve()) or not path.is_file():
            raise DynaMaskError("this file was not uploaded here; send it with gradio_client.handle_file")
        return read_picture(path.read_bytes())  # bytes: a refusal must not tell where files are kept
    if isinstance(image, str) and len(image) <= MAX_TEXT:
        text = image.partition(",")[2] if image.startswith("data:") else image
        try:
            return read_picture(base64.b64decode(text, validate=True))
        except (binascii.Error, ValueError):
            raise DynaMaskError("the picture's text is no base64; send base64 of a picture file") from None
    raise DynaMaskError("image is no picture; send a file with gradio_client.handle_file or base64 text")


def number(value: Any, name: str, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number in a range, or DynaMaskError with its name."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        span = "" if math.isinf(low) or math.isinf(high) else f" from {low:g} to {high:g}"
        raise DynaMaskError(f"{name} {str(value)[:40]!r} is no number{span}; give a finite one")
    return value


def whole(value: Any, name: str, low: int, high: int) -> int:
    """A whole number in a range, or DynaMaskError with its name."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high or value % 1:
        raise DynaMaskError(f"{name} {str(value)[:40]!r} is no whole number from {low} to {high}; give one")
    return int(value)


def checked_policy(policy: Any, budget: Any, macs: tuple[int, ...]) -> tuple[Policy, float | None]:
    """The policy, and the budget in mean MACs per instance; DynaMaskError for what cannot be followed."""
    if not isinstance(policy, str):
        raise DynaMaskError("policy is no text; choose learned, size or fixed:S")
    if budget is not None and (isinstance(budget, bool) or not isinstance(budget, (int, float))):
        raise DynaMaskError(f"budget {str(budget)[:40]!r} is no number; give mean GMACs per instance")
    parsed = Policy.parse(policy)
    parsed.check_budget(budget)
    return parsed, None if budget is None else budget_in_macs(budget, macs)


def answer_of(prediction: Prediction, weights: str, macs: tuple[int, ...], all_sizes: bool) -> dict[str, Any]:
    """A prediction as the JSON object of /predict."""
    instances = []
    columns = (
        prediction.labels.tolist(),
        prediction.scores.tolist(),
        prediction.boxes.tolist(),
        prediction.switch_probs.double().tolist(),
        prediction.mask_size.tolist(),
        prediction.macs.tolist(),
    )
    for i, (label, score, box, probs, size, spent) in enumerate(zip(*columns)):  # fmt: skip
        instance = {"label": prediction.class_names[label], "category_id": prediction.category_ids[label - 1],
                    "score": score, "box": box, "mask_size": size, "macs": spent, "switch_probs": probs,
                    "segmentation": encode_rle(prediction.mask(i))}  # fmt: skip
        if all_sizes:
            instance["masks"] = {str(each): encode_rle(prediction.mask_at(i, each)) for each in MASK_SIZES}
        instances.append(instance)
    return {
        "weights": weights,
        "image_size": list(prediction.image_size),
        "mask_sizes": list(MASK_SIZES),
        "macs_per_instance": list(macs),
        "image_macs": prediction.image_macs,
        "mean_macs": mean_macs(instances),
        "instances": instances,
    }


def mean_macs(instances: list[dict[str, Any]]) -> float | None:
    """Mean MACs of the instances; None without one."""
    return sum(one["macs"] for one in instances) / len(instances) if instances else None


def rechosen(prediction: Any, policy: Any, budget: Any) -> dict[str, Any]:
    """The answer of /predict under another policy or budget; nothing is computed but the choice.

    Args:
        prediction: an answer of /predict.
        policy: "learned", "size" or "fixed:S".
        budget: mean GMACs per instance, or None.

    Returns:
        The same object with new sizes and MACs; `segmentation` follows where the answer holds `masks` (asked for with
        `all_sizes`), and is None for an instance whose mask at the new size is not in it.

    Raises:
        DynaMaskError: no answer of /predict, or a policy or budget that cannot be used.
    """
    probs, boxes, size, macs = _parts(prediction)
    parsed, limit = checked_policy(policy, budget, macs)
    logits = torch.from_numpy(np.log(np.maximum(probs, 1e-30)))
    choice = parsed.choose(torch.from_numpy(boxes), size, logits, macs, limit)
    instances = []
    for old, k in zip(prediction["instances"], choice.tolist()):
        masks, side = old.get("masks") if isinstance(old.get("masks"), dict) else {}, MASK_SIZES[k]
        same = old.get("segmentation") if old.get("mask_size") == side else None
        changed = {"mask_size": side, "macs": macs[k], "segmentation": masks.get(str(side), same)}
        instances.append({**old, **changed})
    return {**prediction, "instances": instances, "mean_macs": mean_macs(instances)}


def _parts(prediction: Any) -> tuple[np.ndarray, np.ndarray, tuple[int, int], tuple[int, ...]]:
    """Probabilities (R, 4), boxes (R, 4), picture size and MACs (4,) of an answer that came back."""
    if isinstance(prediction, dict) and prediction.get("family") == "one-stage":
        raise DynaMaskError("one-stage weights have one mask size; there is nothing to choose anew")
    try:
        instances = prediction["instances"]
        if len(instances) > MAX_INSTANCES or not all(isinstance(one, dict) for one in instances):
            raise ValueError
        count = len(MASK_SIZES)
        probs = np.array([one["switch_probs"] for one in instances], dtype=np.float64).reshape(-1, count)
        boxes = np.array([one["box"] for one in instances], dtype=np.float64).reshape(-1, 4)
        macs = tuple(int(value) for value in prediction["macs_per_instance"])
        height, width = (int(side) for side in prediction["image_size"])
        fits = len(probs) == len(boxes) == len(instances) and np.isfinite(probs).all() and np.isfinite(boxes).all()
        if not fits or (probs < 0).any() or len(macs) != count or list(macs) != sorted(set(macs)) or macs[0] < 1:
            raise ValueError
        if min(height, width) < 1:
            raise ValueError
    except (TypeError, ValueError, KeyError, OverflowError):
        raise DynaMaskError("prediction is no answer of /predict; give the object that it returned") from None
    return probs, boxes, (height, width), macs


def scene_of(seed: Any, index: Any, difficulty: Any) -> dict[str, Any]:
    """A scene of the shapes world as JSON: `image`, a PNG as `data:` text, and its `instances`.

    Args:
        seed: of the world, from 0.
        index: of the scene, from 0; every tenth is empty.
        difficulty: 0–1, how intricate all outlines are; None draws it for each object.

    Raises:
        DynaMaskError: a number out of range.
    """
    seed, index = (whole(v, n, 0, 2**31 - 1) for v, n in ((seed, "seed"), (index, "index")))
    detail = None if difficulty is None else float(number(difficulty, "difficulty", 0, 1))
    scene = make_scene(seed, index, detail=detail)
    buffer = io.BytesIO()
    Image.fromarray(scene.image).save(buffer, "PNG")
    names = list(CLASSES)
    instances = [
        {"label": names[label - 1], "box": box, "complexity": complexity,
         "segmentation": encode_rle(torch.from_numpy(mask))}
        for label, box, complexity, mask in zip(
            scene.labels.tolist(), scene.boxes.tolist(), scene.complexity.tolist(), scene.masks)
    ]  # fmt: skip
    text = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    return {"seed": seed, "index": index, "image_size": list(scene.image.shape[:2]), "image": text,
            "instances": instances}  # fmt: skip


def checked_boxes(boxes: Any) -> list[list[float]] | None:
    """The boxes of a call, few enough; their values are the predictor's to check."""
    if boxes is None:
        return None
    if not isinstance(boxes, list) or len(boxes) > MAX_BOXES:
        raise DynaMaskError(f"boxes are no list of at most {MAX_BOXES}; give [[x0, y0, x1, y1], …]")
    return boxes


def cell_answer(
    predictor: Predictor,
    weights: str,
    image: Any,
    policy: Any,
    budget: Any,
    score: Any,
    boxes: Any,
    all_sizes: Any,
) -> dict[str, Any]:
    """The answer of one-stage weights: masks, scores, levels and cells, and no mask size.

    Raises:
        DynaMaskError: a policy, a budget, boxes or all sizes are asked for, or the picture is refused.
    """
    least = number(score, "score", 0, 1)
    predictor.check_choice(policy, budget)
    picture = opened_picture(image, Path(get_upload_folder()))
    return cells.answer_of(predictor(picture, score=least, boxes=boxes, all_sizes=all_sizes), weights)


def build(context: PageContext) -> None:
    """Add the endpoints to the page that is being built."""

    def predict(
        image: dict | str,
        weights: str = context.explorer.catalog.first,
        policy: str = "learned",
        budget: float | None = None,
        score: float = 0.5,
        boxes: list[list[float]] | None = None,
        all_sizes: bool = False,
    ) -> dict:
        """Find the objects of a picture, or take given boxes, and make a mask of the chosen size for each."""
        try:
            predictor = context.predictor(weights)
            if predictor.family == "one-stage":
                return cell_answer(predictor, weights, image, policy, budget, score, boxes, all_sizes)
            macs = tuple(int(value) for value in predictor.costs.macs_per_instance)
            checked_policy(policy, budget, macs)
            options = {"policy": policy, "budget": budget, "score": number(score, "score", 0, 1)}
            options |= {"boxes": checked_boxes(boxes), "all_sizes": bool(all_sizes)}
            picture = opened_picture(image, Path(get_upload_folder()))
            return answer_of(predictor(picture, **options), weights, macs, bool(all_sizes))
        except DynaMaskError as error:
            refuse(error)

    def select(prediction: dict, policy: str = "learned", budget: float | None = None) -> dict:
        """Choose the sizes of an answer of /predict anew: another policy or budget, no picture needed."""
        try:
            return rechosen(prediction, policy, budget)
        except DynaMaskError as error:
            refuse(error)

    def scene(seed: int = 0, index: int = 0, difficulty: float | None = None) -> dict:
        """Make a scene of the shapes world: its picture and the truth about its objects."""
        try:
            return scene_of(seed, index, difficulty)
        except DynaMaskError as error:
            refuse(error)

    queue = {key: value for key, value in context.model_queue.items() if key != "trigger_mode"}
    gr.api(predict, api_name="predict", **queue)
    gr.api(select, api_name="select", concurrency_limit=2)
    gr.api(scene, api_name="scene", concurrency_limit=2)
