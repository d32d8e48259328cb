"""The baseline: torchvision's Mask R-CNN with its 28×28 FCN head, in everything else equal to a preset of ours.

Backbone, FPN, anchors, proposals, box branch, input transform, data, augmentation, schedule and the number of pictures
seen are those of the preset; only the mask branch, with its mask crop and paste, is torchvision's.

    python benchmarks/mask_rcnn.py train --images DIR --annotations JSON --holdout 8 --backbone-weights FILE --out DIR
    python benchmarks/mask_rcnn.py evaluate --weights DIR/last.safetensors --images DIR --annotations JSON --holdout 8
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.transform import resize_boxes
from tqdm import tqdm

from benchmarks import harness
from benchmarks.harness import Result
from dynamask.cli.common import open_selected_data
from dynamask.config import ModelConfig
from dynamask.data.loaders import TrainingLoader
from dynamask.data.pictures import read_picture
from dynamask.data.sources import Data
from dynamask.data.transforms import TrainingTransforms
from dynamask.engine.checkpoint import checkpoints
from dynamask.engine.evaluate import category_map
from dynamask.engine.memory import keep_freed_memory
from dynamask.engine.run import Run
from dynamask.engine.train import train
from dynamask.evaluation.coco_ap import evaluate_coco
from dynamask.files import replacing
from dynamask.models.detectors.rcnn import LOSSES
from dynamask.models.detectors.torchvision_mask_rcnn import build_mask_rcnn
from dynamask.ops.masks import paste_masks
from dynamask.ops.rle import encode_rle
from dynamask.presets import default_training, model_config
from dynamask.structures import DynaMaskError

PRESET = "dynamask_mobilenetv2_fpn_small"
ITERATIONS = 1960
FORMAT = "mask-rcnn-benchmark-1"
PASTES = ("torchvision_paste", "aligned_paste")


def save_mask_rcnn(
    model: MaskRCNN, path: Path, training: dict[str, Any], state: dict[str, Tensor] | None = None
) -> None:
    """Write weights (the model's, or a moving average) with configuration and provenance, atomically."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in (state or model.state_dict()).items()}
    header = {"format": FORMAT, "config": json.dumps(model.config.to_dict()), "training": json.dumps(training)}
    with replacing(path) as stream:
        stream.write(save(tensors, metadata=header))


def load_mask_rcnn(path: Path) -> MaskRCNN:
    """The model of a file that :func:`save_mask_rcnn` wrote, in evaluation mode."""
    if not path.is_file():
        raise DynaMaskError(f"weights {path} do not exist; train them with benchmarks/mask_rcnn.py train")
    try:
        with safe_open(path, framework="pt") as stored:
            header = stored.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise DynaMaskError(f"weights {path} cannot be read as safetensors ({error})") from error
    if header.get("format") != FORMAT:
        raise DynaMaskError(f"weights {path} are not this Mask R-CNN's; train them with benchmarks/mask_rcnn.py train")
    model = build_mask_rcnn(ModelConfig.from_dict(json.loads(header["config"])))
    model.load_state_dict(load_file(path))
    return model.eval()


@torch.inference_mode()
def detect(model: MaskRCNN, pixels: np.ndarray) -> dict[str, Tensor]:
    """One picture (H, W, 3) uint8 → ``boxes`` (R, 4) in its pixels, ``labels``, ``scores``, ``mask_probs`` (R, 28, 28).

    torchvision's evaluation forward, stopped before masks are pasted.
    """
    image = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255.0
    batch, _ = model.transform([image])
    features = model.backbone(batch.tensors)
    proposals, _ = model.rpn(batch, features)
    (found,), _ = model.roi_heads(features, proposals, batch.image_sizes)
    boxes = resize_boxes(found["boxes"], batch.image_sizes[0], pixels.shape[:2])
    return {"boxes": boxes, "labels": found["labels"], "scores": found["scores"], "mask_probs": found["masks"][:, 0]}


def paste_both(found: dict[str, Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
    """Masks (R, H, W) bool of one picture's detections, pasted by torchvision's helper and by our aligned one."""
    probs, boxes = found["mask_probs"], found["boxes"]
    theirs = paste_masks_in_image(probs[:, None], boxes, size)[:, 0] > 0.5
    return {"torchvision_paste": theirs, "aligned_paste": paste_masks(probs, boxes, size)}


def coco_results(
    found: dict[str, Tensor], masks: Tensor, image_id: int, categories: dict[int, int]
) -> list[dict[str, Any]]:
    """COCO results of one picture, for the classes that the data set has."""
    rows = zip(found["boxes"].tolist(), found["labels"].tolist(), found["scores"].tolist(), masks.numpy(), strict=True)
    return [
        {
            "image_id": image_id,
            "category_id": categories[label],
            "score": score,
            "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
            "segmentation": encode_rle(mask),
        }
        for box, label, score, mask in rows
        if label in categories
    ]


def evaluate_mask_rcnn(
    model: MaskRCNN, dataset: Data, indices: Sequence[int], progress: bool = False
) -> dict[str, Any]:
    """Box, mask and boundary AP by paste: torchvision's own, and ours on the same 28×28 probabilities."""
    names = argparse.Namespace(class_names=model.config.class_names)
    categories = category_map(names, dataset)
    results: dict[str, list[dict[str, Any]]] = {paste: [] for paste in PASTES}
    model.eval()
    for index in tqdm(indices, unit="picture", disable=not progress, dynamic_ncols=True):
        image, target = dataset[index]
        found = detect(model, read_picture(image))
        for paste, masks in paste_both(found, tuple(image.shape[-2:])).items():
            results[paste] += coco_results(found, masks, int(target["image_id"]), categories)
    summary: dict[str, Any] = {"images": len(indices), "detections": len(results[PASTES[0]])}
    ids = [dataset.image_ids[i] for i in indices]
    for paste in PASTES:
        summary[paste] = evaluate_coco(dataset.coco, results[paste], image_ids=ids)
    return summary


def train_baseline(arguments: argparse.Namespace) -> Result:
    """Train with the recipe of the preset."""
    if not arguments.resume and checkpoints(arguments.out):
        raise DynaMaskError(f"{arguments.out} holds a run already; add --resume to go on or choose another --out")
    keep_freed_memory()
    config, losses = default_training(PRESET)
    config = dataclasses.replace(
        config,
        iterations=arguments.iterations,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        jitter=arguments.jitter,
    )
    transforms = TrainingTransforms(photometric=config.jitter)
    dataset, indices = open_selected_data(arguments, None, training=True, transforms=transforms)
    torch.manual_seed(config.seed)
    net_config = model_config(PRESET, class_names=dataset.class_names, category_ids=dataset.category_ids)
    if arguments.side is not None:
        net_config = dataclasses.replace(net_config, min_sizes=(arguments.side,), test_min_size=arguments.side)
    model = build_mask_rcnn(net_config, arguments.backbone_weights)
    weights = {**dict.fromkeys(LOSSES, 1.0), **losses.weights}
    if arguments.mask_weight is not None:
        weights["loss_mask"] = arguments.mask_weight
    settings = json.loads(
        json.dumps({"train": dataclasses.asdict(config), "model": net_config.to_dict(), "losses": weights})
    )
    loader = TrainingLoader(dataset, config.batch_size, config.seed, config.workers, indices)
    run = Run(model, loader, config, arguments.out, weights, settings)
    if arguments.resume:
        run.resume()
    target = arguments.out / "last.safetensors"

    def save(run: Run) -> None:
        seen = run.step * config.batch_size
        save_mask_rcnn(model, target, {"images_seen": seen, **settings}, run.final_state())

    train(run, save, progress=sys.stderr.isatty())
    seen = run.step * config.batch_size
    return Result({"images_seen": seen}, f"{target}: {seen} images seen")


def evaluate_baseline(arguments: argparse.Namespace) -> Result:
    """AP of trained weights."""
    keep_freed_memory()
    model = load_mask_rcnn(arguments.weights)
    dataset, indices = open_selected_data(arguments, None)
    summary = evaluate_mask_rcnn(model, dataset, indices, sys.stderr.isatty())
    summary["test_min_size"] = model.config.test_min_size
    kinds = summary[PASTES[0]]
    keys = list(kinds["bbox"])
    rows = [
        [f"{kind} {paste}", *("-" if (v := summary[paste][kind][key]) is None else f"{v:.4f}" for key in keys)]
        for paste in PASTES
        for kind in kinds
    ]
    line = f"{summary['images']} images, {summary['detections']} detections, short side {summary['test_min_size']} px"
    return Result(summary, f"{line}\n{harness.table(['', *keys], rows)}")


def build_parser() -> argparse.ArgumentParser:
    """The parser with its two subcommands."""
    parser = harness.make_parser("mask_rcnn", __doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    training = commands.add_parser("train", help=f"train with the recipe of {PRESET}")
    default, _ = default_training(PRESET)
    training.add_argument("--backbone-weights", metavar="FILE|timm", help="ImageNet weights (default: random weights)")
    training.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the run")
    training.add_argument("--iterations", type=int, default=ITERATIONS, help=f"steps (default: {ITERATIONS})")
    training.add_argument("--batch-size", type=int, default=default.batch_size, help="images per step")
    training.add_argument("--seed", type=int, default=default.seed)
    training.add_argument(
        "--mask-weight", type=float, help="weight of the mask loss (default: that of the preset; torchvision has 1)"
    )
    training.add_argument("--side", type=int, metavar="PX", help="one shorter side for training and testing")
    training.add_argument(
        "--jitter", action=argparse.BooleanOptionalAction, default=default.jitter, help="photometric jitter"
    )
    training.add_argument("--resume", action="store_true", help="continue the run in --out")
    training.set_defaults(measure=train_baseline)
    evaluation = commands.add_parser("evaluate", help="box, mask and boundary AP with torchvision's and our paste")
    evaluation.add_argument("--weights", type=Path, required=True, metavar="FILE", help="written by `train`")
    evaluation.set_defaults(measure=evaluate_baseline)
    for command in (training, evaluation):
        harness.add_data_flags(command)
        harness.add_json_flag(command)
    return parser


if __name__ == "__main__":
    sys.exit(harness.run(build_parser()))
