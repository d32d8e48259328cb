"""Pictures per second and core, from the files to resized pictures with masks, beside torchvision's reference loader.

python benchmarks/loading.py --rounds 20

Both sides read the same COCO pictures, flip half of them, and resize pictures and masks to a short side of 800 and a
long side of at most 1333. "torchvision" is its reference loader: CocoDetection, every polygon decoded by pycocotools
over the whole picture, its transforms, then GeneralizedRCNNTransform. "dynamask" is this project's data set and input
transform. Masks are the same on both sides, boxes and colours to within rounding of floats (a test compares them).

With copy-paste both sides lay objects of another picture of the batch over half of the pictures. torchvision's
references do so when they collate a batch; here that step is a few lines of plain torch with whole masks, and makes the
same draws as ours, so that the results can be compared as well.
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
from torchvision.ops import masks_to_boxes
from torchvision.transforms import v2

from benchmarks import harness
from benchmarks.harness import Result
from dynamask.config import IMAGENET_MEAN, IMAGENET_STD
from dynamask.data.batch_augmentation import partners
from dynamask.data.coco import CocoDataset
from dynamask.data.copy_paste import KEPT_OBJECTS, MIN_VISIBLE, CopyPaste
from dynamask.data.transforms import TrainingTransforms
from dynamask.engine.memory import keep_freed_memory
from dynamask.engine.step import as_float
from dynamask.evaluation.efficiency import interleave
from dynamask.models.transform import TwoSizeTransform
from dynamask.structures import DynaMaskError

SHORT, LONG = 800, 1333
"""Sides of what is measured, pixels."""
BATCH = 4
"""Pictures that can give each other objects."""
Sample = tuple[Tensor, dict[str, Any]]
Reader = Callable[[Sequence[int]], list[Sample]]


class Reference:
    """torchvision's reference loader in a few lines of its public parts."""

    def __init__(self, images: Path, annotations: Path, flip: float = 0.5) -> None:
        self.data = CocoDetection(str(images), str(annotations))
        self.transforms = v2.Compose(
            [v2.RandomHorizontalFlip(flip), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.ToPureTensor()]
        )

    def __getitem__(self, index: int) -> Sample:
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


def pasted(sample: Sample, source: Sample, probability: float) -> Sample:
    """A picture, perhaps with about half of the objects of another one over it, on whole pictures and masks."""
    image, target = sample
    if torch.rand(()) >= probability:
        return sample
    other, objects = source
    chosen = torch.rand(len(objects["masks"])) < KEPT_OBJECTS
    spans = [_span(*sides, share) for *sides, share in zip(image.shape[1:], other.shape[1:], torch.rand(2).tolist())]
    here, there = (tuple(slice(span[i], span[i] + span[2]) for span in spans) for i in (0, 1))
    over, masks = torch.zeros_like(image), image.new_zeros((int(chosen.sum()), *image.shape[1:]), dtype=torch.uint8)
    over[:, *here], masks[:, *here] = other[:, *there], objects["masks"][chosen][:, *there]
    cover = masks.sum(0) > 0
    old = target["masks"] * ~cover
    before, after = target["masks"].sum((1, 2)), old.sum((1, 2))
    keep, seen = (after > 0) & (after >= MIN_VISIBLE * before), masks.sum((1, 2)) > 0
    found = [torch.cat([old[keep], masks[seen]]), torch.cat([target["labels"][keep], objects["labels"][chosen][seen]])]
    boxes = masks_to_boxes(found[0]) + torch.tensor([0.0, 0.0, 1.0, 1.0])
    return torch.where(cover, over, image), {**target, "boxes": boxes, "labels": found[1], "masks": found[0]}


def _span(side: int, other: int, share: float) -> tuple[int, int, int]:
    """Along one side: where the other frame begins in the picture, where the picture in it, and the pixels shared."""
    return int(share * (max(side - other, 0) + 1)), int(share * max(other - side, 0)), min(side, other)


def resized(transform: GeneralizedRCNNTransform, image: Tensor, target: dict[str, Any]) -> Sample:
    """Normalised picture (3, h, w) and target at the size that the detector works at."""
    return transform.resize(transform.normalize(as_float(image)), target)


def transforms() -> tuple[GeneralizedRCNNTransform, GeneralizedRCNNTransform]:
    """torchvision's input transform and ours, at one size."""
    theirs = GeneralizedRCNNTransform(SHORT, LONG, list(IMAGENET_MEAN), list(IMAGENET_STD))
    ours = TwoSizeTransform((SHORT, SHORT), LONG, list(IMAGENET_MEAN), list(IMAGENET_STD))
    return theirs.train(), ours.train()


def cases(images: Path, annotations: Path, copy_paste: float) -> tuple[dict[str, Reader], list[int]]:
    """What is timed, by name, and the indices that have objects in both data sets, in one order."""
    reference = Reference(images, annotations)
    ours = CocoDataset(images, annotations, TrainingTransforms(photometric=False))
    order = {image_id: index for index, image_id in enumerate(ours.image_ids)}
    places = [order[image_id] for image_id in reference.data.ids]
    mixing = CopyPaste(ours, copy_paste)
    theirs, own = transforms()

    def read_theirs(batch: Sequence[int]) -> list[Sample]:
        return [reference[index] for index in batch]

    def read_ours(batch: Sequence[int]) -> list[Sample]:
        return [ours[places[index]] for index in batch]

    def mix_theirs(samples: list[Sample]) -> list[Sample]:
        others = partners(len(samples))
        return [pasted(sample, samples[other], copy_paste) for sample, other in zip(samples, others)]

    def all_resized(transform: GeneralizedRCNNTransform, samples: list[Sample]) -> list[Sample]:
        return [resized(transform, *sample) for sample in samples]

    mixed = f", copy-paste {copy_paste:g}"
    found: dict[str, Reader] = {
        "torchvision": lambda batch: all_resized(theirs, read_theirs(batch)),
        "dynamask": lambda batch: all_resized(own, read_ours(batch)),
        "torchvision" + mixed: lambda batch: all_resized(theirs, mix_theirs(read_theirs(batch))),
        "dynamask" + mixed: lambda batch: all_resized(own, mixing.among(read_ours(batch))),
        "torchvision, before the resize": read_theirs,
        "dynamask, before the resize": read_ours,
    }
    return found, list(range(len(places)))


def compare_rates(found: dict[str, Reader], indices: Sequence[int], pictures: int, rounds: int) -> list[dict[str, Any]]:
    """Pictures a second of every case and the ratio to torchvision's in the same round, medians of the rounds.

    Each round reads `pictures` pictures in batches, the same ones in every case, the next ones in the next round.
    """

    def timed(reader: Reader) -> Callable[[int], None]:
        def read(number: int) -> None:
            torch.manual_seed(number + 1000)
            chosen = [indices[place % len(indices)] for place in range(number * pictures, (number + 1) * pictures)]
            for start in range(0, pictures, BATCH):
                reader(chosen[start : start + BATCH])

        return read

    times = interleave({name: timed(reader) for name, reader in found.items()}, rounds, warmup=1)
    rows = []
    for name, values in times.items():
        reference = times[name.replace("dynamask", "torchvision")]
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
            entry = {"image_id": number, "category_id": 1, "iscrowd": 0, "bbox": box, "area": box[2] * box[3]}
            polygon = np.stack([x, y], 1).round(2).ravel().tolist()
            coco["annotations"].append({"id": len(coco["annotations"]) + 1, **entry, "segmentation": [polygon]})
    (folder / "annotations.json").write_text(json.dumps(coco))
    return folder / "images", folder / "annotations.json"


def measure(arguments: argparse.Namespace) -> Result:
    """Both loaders on the pictures that the flags name, on one core."""
    if (arguments.images is None) != (arguments.annotations is None):
        raise DynaMaskError("--images and --annotations belong together; give both or neither")
    harness.check_positive(arguments, "rounds", "pictures")
    torch.set_num_threads(1)
    kept = keep_freed_memory()
    mini = Path(os.environ.get("DYNAMASK_DATA") or "../shared/data") / "coco-mini"
    with tempfile.TemporaryDirectory() as folder:
        if arguments.images is not None:
            source, name = (arguments.images, arguments.annotations), str(arguments.annotations)
        elif mini.is_dir():
            source, name = (mini / "images", mini / "annotations" / "instances.json"), "coco-mini"
        else:
            source, name = generate(Path(folder)), "generated"
        found, indices = cases(*source, arguments.copy_paste)
        rows = compare_rates(found, indices, arguments.pictures, arguments.rounds)
    settings = {
        "data": name,
        "pictures_a_round": arguments.pictures,
        "batch": BATCH,
        "rounds": arguments.rounds,
        "keep_freed_memory": kept,
    }
    line = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in settings.items())
    cells = [[row["case"], *(f"{row[key]:.2f}" for key in list(row)[1:])] for row in rows]
    text = harness.table(["one core", "images/s", "p10", "p90", "ratio", "p10", "p90"], cells)
    return Result({"settings": settings, "rows": rows}, f"{line}\n{text}")


def build_parser() -> argparse.ArgumentParser:
    """The parser of the benchmark."""
    parser = harness.make_parser("loading", __doc__)
    parser.add_argument("--images", type=Path, metavar="DIR", help="pictures (default: coco-mini, or generated ones)")
    parser.add_argument("--annotations", type=Path, metavar="JSON", help="their COCO annotations, with --images")
    parser.add_argument("--pictures", type=int, default=16, help="pictures per round (default: 16)")
    parser.add_argument("--rounds", type=int, default=20, help="timed rounds (default: 20)")
    parser.add_argument("--copy-paste", type=float, default=0.5, metavar="P", help="its probability (default: 0.5)")
    harness.add_json_flag(parser)
    parser.set_defaults(measure=measure)
    return parser


if __name__ == "__main__":
    sys.exit(harness.run(build_parser()))
