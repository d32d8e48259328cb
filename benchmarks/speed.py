"""Speed on the CPU against torchvision's Mask R-CNN, with the cases of both in turns in one process.

In every round each case runs once, in rotating order, so that a change of speed affects all cases. The table
has the median and the 10 % and 90 % quantiles of each case, and the median over rounds of its ratio to the reference of
the part within the round.

    python benchmarks/speed.py --weights shapes --mask-rcnn-weights FILE --json FILE
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.transform import resize_boxes
from torchvision.ops import deform_conv2d as torchvision_deform_conv2d

from benchmarks import harness
from benchmarks.harness import Result
from benchmarks.mask_rcnn import PRESET, load_mask_rcnn
from dynamask.cli.common import open_selected_data
from dynamask.config import ModelConfig
from dynamask.data.loaders import TrainingLoader
from dynamask.data.pictures import read_picture
from dynamask.data.transforms import TrainingTransforms
from dynamask.engine.memory import keep_freed_memory
from dynamask.engine.run import Run
from dynamask.engine.step import train_step
from dynamask.evaluation.efficiency import Case, interleave, rows_of
from dynamask.models.build import build_model
from dynamask.models.detectors.torchvision_mask_rcnn import build_mask_rcnn
from dynamask.models.masks import policies
from dynamask.ops.deform import sampled_deform_conv2d
from dynamask.predict import Predictor, TwoStagePredictor, load
from dynamask.presets import default_training, model_config
from dynamask.structures import MASK_SIZES, DynaMaskError

Batch = tuple[list[Tensor], list[dict[str, Any]]]
PHOTO = (480, 640)
"""Height and width of the photograph, pixels."""
REFERENCE = "mask_rcnn"


def photograph(path: Path | None) -> np.ndarray:
    """The picture to predict on, (480, 640, 3) uint8 RGB: scikit-image's astronaut unless a file is given."""
    if path is not None:
        pixels = read_picture(path)
    else:
        try:
            from skimage import data
        except ImportError as error:
            raise DynaMaskError("scikit-image is missing; install it or give a photograph with --image") from error
        pixels = data.astronaut()
    return np.array(Image.fromarray(pixels).resize(PHOTO[::-1], Image.Resampling.BILINEAR))


def mixed_boxes(count: int, image_size: tuple[int, int], seed: int = 0) -> Tensor:
    """(count, 4) xyxy boxes inside an image of (height, width), sides log-uniform from 24 to 400 pixels."""
    rng = np.random.default_rng(seed)
    limit = np.array(image_size[::-1], dtype=np.float64)  # width, height
    sides = np.minimum(np.exp(rng.uniform(np.log(24), np.log(400), (count, 2))), limit)
    corner = rng.uniform(0, 1, (count, 2)) * (limit - sides)
    return torch.from_numpy(np.concatenate([corner, corner + sides], axis=1)).float()


def generated_batches(count: int, batch_size: int, seed: int = 0) -> list[Batch]:
    """Batches of noise pictures of 416 × 312 pixels with one to four ellipses each, for machines without data."""
    rng, (height, width) = np.random.default_rng(seed), (312, 416)
    rows, columns = np.mgrid[:height, :width]
    batches: list[Batch] = []
    for number in range(count):
        images, targets = [], []
        for place in range(batch_size):
            boxes = mixed_boxes(int(rng.integers(1, 5)), (height, width), seed=seed + number * batch_size + place)
            masks = []
            for x0, y0, x1, y1 in boxes.numpy():
                across = (columns + 0.5 - (x0 + x1) / 2) / (x1 - x0)
                down = (rows + 0.5 - (y0 + y1) / 2) / (y1 - y0)
                masks.append(across**2 + down**2 <= 0.25)
            pixels = rng.integers(0, 256, (3, height, width), dtype=np.uint8)
            images.append(torch.from_numpy(pixels))
            targets.append(
                {
                    "boxes": boxes,
                    "labels": torch.ones(len(boxes), dtype=torch.int64),
                    "masks": torch.from_numpy(np.stack(masks).astype(np.uint8)),
                    "image_id": number * batch_size + place,
                }
            )
        batches.append((images, targets))
    return batches


def has_data(arguments: argparse.Namespace) -> bool:
    """Whether a data set was named."""
    return any(value is not None for value in (arguments.data, arguments.images, arguments.annotations))


def real_batches(arguments: argparse.Namespace, count: int, batch_size: int) -> list[Batch]:
    """The first batches of a training run on the data that was given."""
    dataset, indices = open_selected_data(arguments, None, training=True, transforms=TrainingTransforms())
    loader = TrainingLoader(dataset, batch_size, 0, 0, indices)
    return [next(loader) for _ in range(count)]


class RegionCount:
    """Counts the regions in the input of a module, with a forward hook."""

    def __init__(self, module: nn.Module) -> None:
        self.counts: list[int] = []
        module.register_forward_hook(lambda _module, inputs, _output: self.counts.append(len(inputs[0])))

    @property
    def mean(self) -> float:
        """Mean number of regions per forward pass."""
        return float(np.mean(self.counts)) if self.counts else 0.0


def measure_prediction(
    predictor: Predictor, baseline: MaskRCNN, pixels: np.ndarray, count: int, rounds: int
) -> list[dict[str, Any]]:
    """From a photograph to pasted masks. Both models keep the ``count`` best detections, whatever their scores."""
    counts: dict[str, int] = {}

    def ours(policy: str) -> Case:
        def predict(_: int) -> None:
            prediction = predictor(pixels, policy=policy, score=0.0)
            _ = prediction.masks
            counts[f"dynamask {policy}"] = len(prediction)

        return predict

    @torch.inference_mode()
    def theirs(_: int) -> None:
        found = baseline([torch.from_numpy(pixels).permute(2, 0, 1).float() / 255.0])[0]
        masks = found["masks"][:, 0] > 0.5
        counts[REFERENCE] = len(masks)

    cases = {REFERENCE: theirs, **{f"dynamask {p}": ours(p) for p in ("learned", "fixed:28", "fixed:112")}}
    heads = (predictor.model.detector.roi_heads, baseline.roi_heads)
    before = [(h.score_thresh, h.detections_per_img) for h in heads]
    try:
        for head in heads:
            head.score_thresh, head.detections_per_img = 0.0, count
        times = interleave(cases, rounds)
    finally:
        for head, (score, limit) in zip(heads, before):
            head.score_thresh, head.detections_per_img = score, limit
    return rows_of("predict", times, REFERENCE, {name: {"detections": n} for name, n in counts.items()})


def measure_training(ours: nn.Module, theirs: nn.Module, batches: list[Batch], rounds: int) -> list[dict[str, Any]]:
    """One optimiser step with the recipe of the preset on the same batches at the same sizes, with all losses."""
    config, losses = default_training(PRESET)
    ours.mask_branch.switch_enabled = True
    ours.mask_branch.loss_config = losses
    counters = {
        "dynamask": RegionCount(ours.mask_branch.region_fpn.base),
        REFERENCE: RegionCount(theirs.roi_heads.mask_head),
    }
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            name: Run(model, None, config, Path(folder) / name, ours.loss_weights)  # type: ignore[arg-type]
            for name, model in ((REFERENCE, theirs), ("dynamask", ours))
        }

        def step(name: str) -> Case:
            def once(number: int) -> None:
                torch.manual_seed(number + 1000)  # the same shorter side for both
                train_step(runs[name], *batches[number % len(batches)])

            return once

        times = interleave({name: step(name) for name in runs}, rounds)
    extra = {name: {"mask_regions_per_step": counter.mean} for name, counter in counters.items()}
    return rows_of("training step", times, REFERENCE, extra)


def measure_select(predictor: Predictor, pixels: np.ndarray, count: int, rounds: int) -> list[dict[str, Any]]:
    """Another policy or budget for a prediction with all sizes, up to pasted masks."""
    prediction = predictor(pixels, boxes=mixed_boxes(count, PHOTO), all_sizes=True)
    macs = predictor.costs.macs_per_instance
    budgets = np.linspace(macs[0], macs[-1], 9) * (1 + 1e-9) / 1e9

    def select(**choice: Any) -> Case:
        return lambda _: predictor.select(prediction, **choice).masks

    cases: dict[str, Case] = {
        "budget": lambda n: predictor.select(prediction, budget=float(budgets[n % len(budgets)])).masks,
        "learned": select(policy="learned"),
        "fixed:112": select(policy="fixed:112"),
    }
    times = interleave(cases, rounds)
    return rows_of("select", times, "learned", {name: {"detections": count} for name in cases})


def measure_deform(config: ModelConfig, regions: int, rounds: int) -> list[dict[str, Any]]:
    """Our sampled deformable convolution against torchvision's operator on the stages of a preset."""
    rows = []
    for stage, (size, groups) in enumerate(zip(MASK_SIZES[1:], config.offset_groups), start=1):
        channels = config.region_channels // 2**stage
        generator = torch.Generator().manual_seed(0)
        shapes = [(regions, channels, size, size), (regions, 18 * groups, size, size), (channels, channels, 3, 3)]
        tensors = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
        operators = {
            "torchvision": lambda *t: torchvision_deform_conv2d(*t, padding=1),
            "sampled": sampled_deform_conv2d,
        }
        with torch.inference_mode():
            ours, theirs = (operator(*tensors) for operator in operators.values())
            if not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3):
                raise RuntimeError(f"the operators disagree at {size} by {float((ours - theirs).abs().max()):.1e}")
        for training in (False, True):
            cases = {name: _deform_case(operator, tensors, training) for name, operator in operators.items()}
            part = f"deform {channels}x{size}x{size} {'forward+backward' if training else 'forward'}"
            rows += rows_of(
                part, interleave(cases, rounds, 1), "torchvision", dict.fromkeys(cases, {"regions": regions})
            )
    return rows


def _deform_case(operator: Callable[..., Tensor], tensors: list[Tensor], training: bool) -> Case:
    """One pass of an operator, with all gradients in training."""

    def once(_: int) -> None:
        if training:
            torch.autograd.grad(operator(*tensors).sum(), tensors)
        else:
            with torch.inference_mode():
                operator(*tensors)

    return once


@torch.inference_mode()
def measure_branch(
    predictor: Predictor, baseline: MaskRCNN, pixels: np.ndarray, count: int, rounds: int
) -> list[dict[str, Any]]:
    """The mask branch alone on the same boxes: learned sizes, one size for all, and torchvision's FCN head."""
    model = predictor.model
    image = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255.0
    encoded, _ = model.detector.encode([image])
    boxes = resize_boxes(mixed_boxes(count, PHOTO), PHOTO, encoded.images.image_sizes[0])
    labels = torch.ones(count, dtype=torch.int64)
    macs = np.array(predictor.costs.macs_per_instance, dtype=np.float64)
    learned = policies.learned(model.regions(encoded, [boxes], [labels]).switch_logits)

    def branch(size: int | None) -> Case:
        def once(_: int) -> None:
            state = model.regions(encoded, [boxes], [labels])
            model.mask_branch.masks(
                state, policies.learned(state.switch_logits) if size is None else policies.fixed(count, size)
            )

        return once

    heads = baseline.roi_heads
    batch, _ = baseline.transform([image])
    features = baseline.backbone(batch.tensors)

    def fcn(_: int) -> None:
        pooled = heads.mask_roi_pool(features, [boxes], batch.image_sizes)
        heads.mask_predictor(heads.mask_head(pooled)).sigmoid()

    cases = {"fixed:112": branch(112), "learned": branch(None)}
    cases |= {f"fixed:{size}": branch(size) for size in MASK_SIZES[:-1]} | {REFERENCE: fcn}
    extra = {f"fixed:{size}": {"mean_macs": float(macs[k])} for k, size in enumerate(MASK_SIZES)}
    extra["learned"] = {"mean_macs": float(macs[learned.numpy()].mean())}
    return rows_of("mask branch", interleave(cases, rounds), "fixed:112", extra)


def load_ours(weights: str) -> Predictor:
    """The predictor of a weights file or bundled name, or with "random" weights of the preset for one class."""
    if weights != "random":
        predictor = load(weights)
        predictor.check_switch("the benchmark of speed")
        if predictor.model.config.detector != "faster_rcnn":
            raise DynaMaskError("the benchmark of speed needs Mask R-CNN's detector; give other weights, e.g. shapes")
        return predictor
    torch.manual_seed(0)
    return TwoStagePredictor(build_model(model_config(PRESET, class_names=("__background__", "person"))))


def load_theirs(weights: str, config: ModelConfig) -> MaskRCNN:
    """The Mask R-CNN of a weights file, or with "random" weights and the given configuration."""
    if weights != "random":
        return load_mask_rcnn(Path(weights))
    torch.manual_seed(0)
    return build_mask_rcnn(config).eval()


def fresh_copies(predictor: Predictor, baseline: MaskRCNN) -> tuple[nn.Module, nn.Module]:
    """Copies of both models for training; the losses are those of the recipe of the preset."""
    config = predictor.model.config
    ours = build_model(config, loss_config=default_training(PRESET)[1])
    ours.load_state_dict(predictor.model.state_dict())
    theirs = build_mask_rcnn(baseline.config)
    theirs.load_state_dict(baseline.state_dict())
    return ours, theirs


def describe(row: dict[str, Any]) -> list[str]:
    """Cells of a row of the printed table."""
    known = {"part", "case", "median_ms", "p10_ms", "p90_ms", "ratio", "reference"}
    notes = [f"{key.replace('_', ' ')} {value:.4g}" for key, value in row.items() if key not in known]
    return [
        row["part"] + ": " + row["case"],
        f"{row['median_ms']:.1f}",
        f"{row['p10_ms']:.1f}",
        f"{row['p90_ms']:.1f}",
        f"{row['ratio']:.2f}",
        f"of {row['reference']}",
        ", ".join(notes),
    ]


def measure_parts(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of all parts that were asked for."""
    predictor = load_ours(arguments.weights)
    baseline = load_theirs(arguments.mask_rcnn_weights, predictor.model.config)
    pixels, count, rounds = photograph(arguments.image), arguments.detections, arguments.rounds

    def training() -> list[dict[str, Any]]:
        size = default_training(PRESET)[0].batch_size
        real = has_data(arguments)
        batches = real_batches(arguments, 4, size) if real else generated_batches(4, size)
        return measure_training(*fresh_copies(predictor, baseline), batches, rounds)

    parts: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "predict": lambda: measure_prediction(predictor, baseline, pixels, count, rounds),
        "train": training,
        "select": lambda: measure_select(predictor, pixels, count, rounds),
        "deform": lambda: measure_deform(predictor.model.config, count, rounds),
        "branch": lambda: measure_branch(predictor, baseline, pixels, count, rounds),
    }
    return list(itertools.chain.from_iterable(parts[name]() for name in arguments.parts))


def measure(arguments: argparse.Namespace) -> Result:
    """All parts that were asked for, both models in turns."""
    if (arguments.images is None) != (arguments.annotations is None):
        raise DynaMaskError("--images and --annotations belong together; give both or neither")
    harness.check_positive(arguments, "rounds", "detections")
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    kept = keep_freed_memory() if arguments.keep_memory else False
    rows = measure_parts(arguments)
    settings = {
        "weights": arguments.weights,
        "mask_rcnn_weights": arguments.mask_rcnn_weights,
        "picture": "astronaut" if arguments.image is None else arguments.image.name,
        "picture_size": list(PHOTO),
        "detections": arguments.detections,
        "rounds": arguments.rounds,
        "keep_freed_memory": kept,
        "training_batches": "real" if has_data(arguments) else "generated",
    }
    line = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in settings.items())
    text = harness.table(["", "median ms", "p10", "p90", "ratio", "", ""], [describe(row) for row in rows])
    return Result({"settings": settings, "rows": rows}, f"{line}\n{text}")


def build_parser() -> argparse.ArgumentParser:
    """The parser of the benchmark."""
    parser = harness.make_parser("speed", __doc__)
    names = ["predict", "train", "select", "deform", "branch"]
    parser.add_argument("--parts", nargs="+", choices=names, default=names, help="what to measure (default: all)")
    parser.add_argument("--weights", default="shapes", help="bundled name, .safetensors file or random")
    parser.add_argument(
        "--mask-rcnn-weights", default="random", metavar="FILE|random", help="written by mask_rcnn.py train"
    )
    parser.add_argument("--image", type=Path, metavar="P", help="photograph (default: scikit-image's astronaut)")
    harness.add_data_flags(parser)
    parser.add_argument(
        "--detections", type=int, default=20, help="detections that both models keep, and boxes given (default: 20)"
    )
    parser.add_argument("--rounds", type=int, default=15, help="timed runs of each case (default: 15)")
    parser.add_argument("--threads", type=int, help="threads of torch (default: its own choice)")
    parser.add_argument(
        "--keep-memory",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep freed memory in the process, for both models, as training does (default: yes)",
    )
    harness.add_json_flag(parser)
    parser.set_defaults(measure=measure)
    return parser


if __name__ == "__main__":
    sys.exit(harness.run(build_parser()))
