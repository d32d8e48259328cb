"""Speed on the CPU against torchvision's Mask R-CNN, with the cases of both in turns in one process.

In every round each case runs once, in rotating order, so that a change of speed affects all cases. The table
has the median and the 10 % and 90 % quantiles of each case, and the median over rounds of its ratio to the reference of
the part within the round. The JSON has the headline ratios of ``HEADLINES`` at its top level; they are null for parts
that were not measured.

    python benchmarks/speed.py --weights shapes --mask-rcnn-weights FILE --json FILE
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torchvision.models.detection import MaskRCNN

from benchmarks import harness
from benchmarks.harness import Result
from benchmarks.inputs import PHOTO, generated_batches, has_data, mixed_boxes, photograph, real_batches
from benchmarks.mask_branch import REFERENCE, Row, measure_branch, measure_deform
from benchmarks.mask_rcnn import PRESET, load_mask_rcnn
from benchmarks.mixed_regions import PAPER, MixedRegions, Refine
from benchmarks.training_step import measure_memory, measure_training, models_to_train, peak_of_step
from dynamask.cli.common import add_refine
from dynamask.config import ModelConfig
from dynamask.engine.memory import keep_freed_memory
from dynamask.evaluation.efficiency import Case, interleave, rows_of
from dynamask.models.build import build_model
from dynamask.models.detectors.torchvision_mask_rcnn import build_mask_rcnn
from dynamask.models.openvino import accelerate, is_installed
from dynamask.predict import BACKENDS, Predictor, TwoStagePredictor, load
from dynamask.presets import default_training, model_config
from dynamask.reports.speed import kept_detections
from dynamask.structures import DynaMaskError

REFINE = (1.0, 0.4, 0.2)
"""Refinement of the cases "refined" where neither the flags nor the weights name one."""
PARTS = ("predict", "regions", "train", "memory", "select", "deform", "branch")
HEADLINES = {
    "picture_ratio_learned": ("predict", "dynamask learned"),
    "picture_ratio_112": ("predict", "dynamask fixed:112"),
    "branch_ratio_paper_widths": (f"regions {PAPER}", "refined"),
    "branch_ratio_small": (f"regions {PRESET}", "refined"),
    "train_step_ratio": ("training step", "refined"),
    "train_memory_ratio": ("training memory", "refined"),
}
"""Part and case of each headline; where nothing is refined, the case "dense" stands in for "refined"."""


def measure_prediction(
    predictors: dict[str, Predictor], baseline: MaskRCNN, pixels: np.ndarray, count: int, rounds: int
) -> list[Row]:
    """From a photograph to pasted masks. All models keep the ``count`` best detections, whatever their scores."""
    counts: dict[str, int] = {}

    def ours(name: str, policy: str) -> Case:
        def predict(_: int) -> None:
            prediction = predictors[name](pixels, policy=policy, score=0.0)
            _ = prediction.masks
            counts[f"{name} {policy}"] = len(prediction)

        return predict

    @torch.inference_mode()
    def theirs(_: int) -> None:
        found = baseline([torch.from_numpy(pixels).permute(2, 0, 1).float() / 255.0])[0]
        masks = found["masks"][:, 0] > 0.5
        counts[REFERENCE] = len(masks)

    pairs = itertools.product(predictors, ("learned", "fixed:28", "fixed:112"))
    cases = {REFERENCE: theirs, **{f"{name} {policy}": ours(name, policy) for name, policy in pairs}}
    heads = [predictor.model.detector.roi_heads for predictor in predictors.values()]
    with kept_detections([*heads, baseline.roi_heads], count):
        times = interleave(cases, rounds)
    return rows_of("predict", times, REFERENCE, {name: {"detections": n} for name, n in counts.items()})


def measure_select(predictor: Predictor, pixels: np.ndarray, count: int, rounds: int) -> list[Row]:
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


def load_ours(weights: str, refine: Refine, backend: str = "torch") -> Predictor:
    """The predictor of a weights file or bundled name, or with "random" weights of the preset for one class.

    Args:
        refine: boundary refinement other than the weights'.
        backend: "torch" or "openvino".
    """
    given = {} if refine is None else {"refine": refine}
    if weights != "random":
        predictor = load(weights, device="cpu", **given, backend=backend)
        predictor.check_switch("the benchmark of speed")
        if predictor.model.config.detector != "faster_rcnn":
            raise DynaMaskError("the benchmark of speed needs Mask R-CNN's detector; give other weights, e.g. shapes")
        return predictor
    torch.manual_seed(0)
    model = build_model(model_config(PRESET, class_names=("__background__", "person"), **given)).eval()
    if backend == "openvino":
        accelerate(model)
    return TwoStagePredictor(model)


def load_theirs(weights: str, config: ModelConfig) -> MaskRCNN:
    """The Mask R-CNN of a weights file, or with "random" weights and the given configuration."""
    if weights != "random":
        return load_mask_rcnn(Path(weights))
    torch.manual_seed(0)
    return build_mask_rcnn(config).eval()


def predictors_of(arguments: argparse.Namespace) -> dict[str, Predictor]:
    """The predictors that are timed: "dynamask", "dense" if it refines, and the same on other back ends."""
    predictors: dict[str, Predictor] = {}
    for backend in arguments.backends:
        name = "dynamask" if backend == "torch" else backend
        predictors[name] = load_ours(arguments.weights, arguments.refine, backend)
        if predictors[name].model.config.refine is not None:
            name = "dense" if backend == "torch" else f"{backend} dense"
            predictors[name] = load_ours(arguments.weights, (1.0, 1.0, 1.0), backend)
    return predictors


def refinement(arguments: argparse.Namespace, predictor: Predictor) -> Refine:
    """The refinement of the cases "refined": of the flags, else of the weights, else ``REFINE``; None for dense."""
    if arguments.refine is not None:
        return predictor.model.config.refine
    return predictor.model.config.refine or REFINE


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


def describe_stage(row: Row) -> list[str]:
    """Cells of a row of the table of stages."""
    case = f"{row['model']}, {row['case']}: stage to {row['stage']}"
    return [case, f"{row['regions']}", f"{row['median_ms']:.1f}"]


def describe_operator(row: Row) -> list[str]:
    """Cells of a row of a profile."""
    return [f"{row['model']}, {row['case']}: {row['operator']}", f"{row['share']:.1%}"]


def describe_memory(row: Row) -> list[str]:
    """Cells of a row of the table of peak memory."""
    return [f"{row['part']}: {row['case']}", f"{row['peak_bytes'] / 2**20:.0f} MiB", f"{row['ratio']:.2f}"]


def measure_parts(arguments: argparse.Namespace) -> dict[str, Any]:
    """``refine``, ``rows``, ``stages``, ``profile`` and ``memory`` of all parts that were asked for."""
    predictors = predictors_of(arguments)
    predictor = next(iter(predictors.values()))
    baseline = load_theirs(arguments.mask_rcnn_weights, predictor.model.config)
    refine = refinement(arguments, predictor)
    found: dict[str, Any] = {"refine": refine, "rows": [], "stages": [], "profile": [], "memory": []}
    pixels, count, rounds = photograph(arguments.image), arguments.detections, arguments.rounds

    def training() -> list[Row]:
        size = default_training(PRESET)[0].batch_size
        real = has_data(arguments)
        batches = real_batches(arguments, 4, size) if real else generated_batches(4, size)
        return measure_training(models_to_train(predictor, baseline, refine), batches, rounds)

    def regions() -> list[Row]:
        rows = []
        for name in (PAPER, PRESET):
            for backend in arguments.backends:
                mixed = MixedRegions(name, refine, arguments.regions, arguments.device, backend)
                totals, stages = mixed.time(rounds)
                rows += totals
                found["stages"] += stages
                if backend == "torch":
                    found["profile"] += mixed.profile(list(mixed.branches)[-1])
        return rows

    parts: dict[str, Callable[[], list[Row]]] = {
        "predict": lambda: measure_prediction(predictors, baseline, pixels, count, rounds),
        "regions": regions,
        "train": training,
        "select": lambda: measure_select(predictor, pixels, count, rounds),
        "deform": lambda: measure_deform(predictor.model.config, count, rounds),
        "branch": lambda: measure_branch(predictor, baseline, pixels, count, rounds),
    }
    for name in arguments.parts:
        if name == "memory":
            found["memory"] = measure_memory(__file__, refine, min(rounds, 3))
        else:
            found["rows"] += parts[name]()
    return found


def headlines(rows: list[Row], backends: Sequence[str] = ("torch",)) -> dict[str, float | None]:
    """The ratios of ``HEADLINES``, with "_openvino" added for that back end; None where they were not measured.

    Training always runs in PyTorch, so its ratios are None on other back ends.
    """
    ratios = {(row["part"], row["case"]): row["ratio"] for row in rows}
    values: dict[str, float | None] = {}
    for backend, (key, (part, case)) in itertools.product(backends, HEADLINES.items()):
        suffix = ""
        if backend != "torch":
            suffix, case = f"_{backend}", case.replace("dynamask", backend)
            part = part if part == "predict" else f"{part}, {backend}"
        values[key + suffix] = ratios.get((part, case), ratios.get((part, case.replace("refined", "dense"))))
    return values


def check_device(arguments: argparse.Namespace) -> None:
    """Refuse a device for parts that are measured on the CPU; on another device the back end is PyTorch."""
    if arguments.device == "cpu":
        return
    if set(arguments.parts) != {"regions"}:
        raise DynaMaskError("--device is for the part regions; add --parts regions, or omit the device")
    arguments.backends = BACKENDS[:1]


def measure(arguments: argparse.Namespace) -> Result:
    """All parts that were asked for, both models in turns."""
    if (arguments.images is None) != (arguments.annotations is None):
        raise DynaMaskError("--images and --annotations belong together; give both or neither")
    harness.check_positive(arguments, "rounds", "detections", "regions")
    check_device(arguments)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    kept = keep_freed_memory() if arguments.keep_memory else False
    found = measure_parts(arguments)
    settings = {
        "weights": arguments.weights,
        "mask_rcnn_weights": arguments.mask_rcnn_weights,
        "refine": found.pop("refine"),
        "backends": {name: metadata.version(name) for name in arguments.backends},
        "picture": "astronaut" if arguments.image is None else arguments.image.name,
        "picture_size": list(PHOTO),
        "detections": arguments.detections,
        "regions": arguments.regions,
        "device": arguments.device,
        "rounds": arguments.rounds,
        "keep_freed_memory": kept,
        "training_batches": "real" if has_data(arguments) else "generated",
    }
    line = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in settings.items())
    ratios = headlines(found["rows"] + found["memory"], arguments.backends)
    tables = {
        ("", "median ms", "p10", "p90", "ratio", "", ""): map(describe, found["rows"]),
        ("part of the mask branch", "regions", "median ms"): map(describe_stage, found["stages"]),
        ("operator", "share"): map(describe_operator, found["profile"]),
        ("peak memory", "", "ratio"): map(describe_memory, found["memory"]),
        ("headline", "ratio"): ([key, "–" if r is None else f"{r:.3f}"] for key, r in ratios.items()),
    }
    texts = [harness.table(header, rows) for header, rows in ((h, list(r)) for h, r in tables.items()) if rows]
    return Result({"settings": settings, **ratios, **found}, "\n\n".join([line, *texts]))


def build_parser() -> argparse.ArgumentParser:
    """The parser of the benchmark."""
    parser = harness.make_parser("speed", __doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure (default: all)")
    parser.add_argument("--weights", default="shapes", help="bundled name, .safetensors file or random")
    parser.add_argument(
        "--mask-rcnn-weights", default="random", metavar="FILE|random", help="written by mask_rcnn.py train"
    )
    available = BACKENDS if is_installed() else BACKENDS[:1]
    text = f"back ends of inference (default: {' '.join(available)})"
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=available, help=text)
    parser.add_argument("--image", type=Path, metavar="P", help="photograph (default: scikit-image's astronaut)")
    harness.add_data_flags(parser)
    add_refine(parser)
    parser.add_argument(
        "--detections", type=int, default=20, help="detections that both models keep, and boxes given (default: 20)"
    )
    parser.add_argument("--regions", type=int, default=100, help="regions of mixed sizes (default: 100)")
    parser.add_argument("--device", default="cpu", help="device of torch for the part regions (default: cpu)")
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
    if sys.argv[1:2] == ["child"]:
        print(peak_of_step(sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4])))
    else:
        sys.exit(harness.run(build_parser()))
