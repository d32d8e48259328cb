"""Pictures a second and core, from the file to what the detector's backbone and mask branch read, beside torchvision's.

python benchmarks/loading.py --rounds 20

Both sides read the same COCO pictures, flip half of them, and resize pictures and masks to a short side of 800 and a
long side of at most 1333. "torchvision" is its reference loader: CocoDetection, every polygon decoded by pycocotools
over the whole picture, its transforms, then GeneralizedRCNNTransform. "dynamask" is this project's data set and input
transform. Masks are the same on both sides, boxes and colours to within rounding of floats (a test compares them).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision import tv_tensors
from torchvision.datasets import CocoDetection
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms import v2

from benchmarks import report
from benchmarks.speed import interleave
from dynamask.config import IMAGENET_MEAN, IMAGENET_STD
from dynamask.data.coco import CocoDataset
from dynamask.data.copy_paste import CopyPaste
from dynamask.data.transforms import TrainingTransforms
from dynamask.engine.memory import keep_freed_memory
from dynamask.engine.train import as_float
from dynamask.evaluation.efficiency import machine, machine_line
from dynamask.models.transform import TwoSizeTransform
from dynamask.structures import DynaMaskError

SHORT, LONG = 800, 1333
"""Sides of what is measured, pixels."""
Item = Callable[[int], tuple[Tensor, dict[str, Any]]]


class Reference:
    """torchvision's reference loader in a few lines of its public parts."""

    def __init__(self, images: Path, annotations: Path, flip: float = 0.5) -> None:
        self.data = CocoDetection(str(images), str(annotations))
        self.transforms = v2.Compose(
            [v2.RandomHorizontalFlip(flip), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.ToPureTensor()]
        )

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        """Picture (3, H, W) in [0, 1] and target at an index."""
        picture, entries = self.data[index]
        width, height = picture.size
        entries = [entry for entry in entries if entry["iscrowd"] == 0]
        boxes = torch.tensor([entry["bbox"] for entry in entries], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes[:, 0::2].clamp_(min=0, max=width)
        boxes[:, 1::2].clamp_(min=0, max=height)
        masks = self._masks([entry["segmentation"] for entry in entries], height, width)
        keep = (boxes[:, 3] > boxes[:, 1]) & (boxes[:, 2] > boxes[:, 0])
        target = {
            "boxes": tv_tensors.BoundingBoxes(boxes[keep], format="XYXY", canvas_size=(height, width)),
            "labels": torch.tensor([entry["category_id"] for entry in entries], dtype=torch.int64)[keep],
            "masks": tv_tensors.Mask(masks[keep]),
        }
        return self.transforms(picture, target)

    def _masks(self, segmentations: list[Any], height: int, width: int) -> Tensor:
        """(N, H, W) uint8."""
        masks = []
        for polygons in segmentations:
            rles = coco_mask.frPyObjects(polygons, height, width)
            mask = coco_mask.decode(rles)
            mask = mask[..., None] if mask.ndim < 3 else mask
            masks.append(torch.as_tensor(mask, dtype=torch.uint8).any(dim=2))
        return torch.stack(masks).to(torch.uint8) if masks else torch.zeros((0, height, width), dtype=torch.uint8)


def resized(transform: GeneralizedRCNNTransform, image: Tensor, target: dict[str, Any]) -> tuple[Tensor, dict]:
    """Normalised picture (3, h, w) and target at the size that the detector works at."""
    return transform.resize(transform.normalize(as_float(image)), target)


def transforms() -> tuple[GeneralizedRCNNTransform, GeneralizedRCNNTransform]:
    """torchvision's input transform and ours, at one size."""
    theirs = GeneralizedRCNNTransform(SHORT, LONG, list(IMAGENET_MEAN), list(IMAGENET_STD))
    ours = TwoSizeTransform((SHORT, SHORT), LONG, list(IMAGENET_MEAN), list(IMAGENET_STD))
    return theirs.train(), ours.train()


def cases(images: Path, annotations: Path, copy_paste: float) -> tuple[dict[str, Item], list[int]]:
    """What is timed, by name, and the indices that have objects in both data sets, in one order."""
    reference = Reference(images, annotations)
    flipped = TrainingTransforms(photometric=False)
    ours = CocoDataset(images, annotations, flipped)
    order = {image_id: index for index, image_id in enumerate(ours.image_ids)}
    places = [order[image_id] for image_id in reference.data.ids]
    pasted = CopyPaste(ours, copy_paste)
    theirs, own = transforms()
    found: dict[str, Item] = {
        "torchvision": lambda i: resized(theirs, *reference[i]),
        "dynamask": lambda i: resized(own, *ours[places[i]]),
        f"dynamask, copy-paste {copy_paste:g}": lambda i: resized(own, *pasted[places[i]]),
        "torchvision, before the resize": lambda i: reference[i],
        "dynamask, before the resize": lambda i: ours[places[i]],
    }
    return found, list(range(len(places)))


def measure(found: dict[str, Item], indices: Sequence[int], pictures: int, rounds: int) -> list[dict[str, Any]]:
    """Pictures a second of every case and the ratio to torchvision's in the same round, medians of the rounds.

    Each round reads `pictures` pictures, the same ones in every case, the next ones in the next round.
    """

    def timed(item: Item) -> Callable[[int], None]:
        def read(number: int) -> None:
            torch.manual_seed(number + 1000)
            for place in range(number * pictures, (number + 1) * pictures):
                item(indices[place % len(indices)])

        return read

    times = interleave({name: timed(item) for name, item in found.items()}, rounds, warmup=1)
    rows = []
    for name, values in times.items():
        reference = times["torchvision" if "before" not in name else "torchvision, before the resize"]
        speed, ratio = 1e3 * pictures / values, reference / values
        rows.append({"case": name, **_quantiles("images_per_s", speed), **_quantiles("ratio", ratio)})
    return rows


def _quantiles(name: str, values: np.ndarray) -> dict[str, float]:
    """Median, tenth and ninetieth percentile."""
    return {f"{name}{end}": float(np.quantile(values, q)) for end, q in (("", 0.5), ("_p10", 0.1), ("_p90", 0.9))}


def generate(folder: Path, pictures: int = 24) -> tuple[Path, Path]:
    """Smooth made-up photographs of 640 × 480 with eight many-cornered polygons each, as JPEG with COCO annotations."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    coco: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "thing"}]}
    for number in range(1, pictures + 1):
        small = Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
        small.resize((640, 480), Image.Resampling.BICUBIC).save(folder / "images" / f"{number}.jpg", quality=92)
        coco["images"].append({"id": number, "file_name": f"{number}.jpg", "width": 640, "height": 480})
        for _ in range(8):
            angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
            radius = rng.uniform(15, 90) * rng.uniform(0.8, 1.2, 40)
            x, y = rng.uniform(90, 550) + radius * np.cos(angle), rng.uniform(90, 390) + radius * np.sin(angle)
            box = [float(v) for v in (x.min(), y.min(), np.ptp(x), np.ptp(y))]
            coco["annotations"].append(
                {"id": len(coco["annotations"]) + 1, "image_id": number, "category_id": 1, "iscrowd": 0,
                 "bbox": box, "area": box[2] * box[3], "segmentation": [np.stack([x, y], 1).round(2).ravel().tolist()]}
            )  # fmt: skip
    (folder / "annotations.json").write_text(json.dumps(coco))
    return folder / "images", folder / "annotations.json"


def _measure(arguments: argparse.Namespace) -> None:
    report.check_json_target(arguments.json)
    if (arguments.images is None) != (arguments.annotations is None):
        raise DynaMaskError("--images and --annotations belong together; give both or neither")
    if min(arguments.rounds, arguments.pictures) < 1:
        raise DynaMaskError("--rounds and --pictures must be at least 1; give whole numbers")
    torch.set_num_threads(1)
    kept = keep_freed_memory()
    mini = Path(os.environ.get("DYNAMASK_DATA", "../shared/data")) / "coco-mini"
    with tempfile.TemporaryDirectory() as folder:
        if arguments.images is not None:
            source, name = (arguments.images, arguments.annotations), str(arguments.annotations)
        elif mini.is_dir():
            source, name = (mini / "images", mini / "annotations" / "instances.json"), "coco-mini"
        else:
            source, name = generate(Path(folder)), "generated"
        found, indices = cases(*source, arguments.copy_paste)
        facts = machine()
        rows = measure(found, indices, arguments.pictures, arguments.rounds)
    settings = {
        "data": name,
        "pictures_a_round": arguments.pictures,
        "rounds": arguments.rounds,
        "keep_freed_memory": kept,
    }
    print(machine_line(facts))
    print(", ".join(f"{key.replace('_', ' ')} {value}" for key, value in settings.items()))
    cells = [[row["case"], *(f"{row[key]:.2f}" for key in list(row)[1:])] for row in rows]
    print(report.table(["one core", "images/s", "p10", "p90", "ratio", "p10", "p90"], cells))
    report.write_json({"machine": facts, "settings": settings, "rows": rows}, arguments.json)


def build_parser() -> argparse.ArgumentParser:
    """The parser."""
    parser = argparse.ArgumentParser(prog="loading", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--images", type=Path, metavar="DIR", help="pictures (default: coco-mini, or generated ones)")
    parser.add_argument("--annotations", type=Path, metavar="JSON", help="their COCO annotations, with --images")
    parser.add_argument("--pictures", type=int, default=16, help="a round (default: 16)")
    parser.add_argument("--rounds", type=int, default=20, help="timed rounds (default: 20)")
    parser.add_argument("--copy-paste", type=float, default=0.5, metavar="P", help="its probability (default: 0.5)")
    report.add_json_flag(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    return report.run("loading", lambda: _measure(arguments))


if __name__ == "__main__":
    sys.exit(main())
