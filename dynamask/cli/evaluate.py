"""``dynamask evaluate``: AP and costs of weights, or AP of a results file, on a data set."""

from __future__ import annotations

import argparse
import sys
import warnings
from typing import TYPE_CHECKING, Any

from dynamask.cli.common import (
    add_backend,
    add_choice,
    add_data,
    add_device,
    add_json,
    add_mask_nms,
    add_refine,
    add_rescore,
    add_score,
    held_out,
    input_file,
    number_in,
    open_selected_data,
    print_summary,
    write_json,
)
from dynamask.structures import DynaMaskError

if TYPE_CHECKING:
    from dynamask.data.sources import Data
    from dynamask.engine.distributed import Ranks
    from dynamask.engine.evaluate import EvaluationOptions
    from dynamask.predict import Predictor


def add(commands: Any) -> None:
    """Add the command to the subparsers."""
    parser = commands.add_parser(
        "evaluate",
        help="AP, boundary AP and cost on a data set",
        description="Box, mask and boundary AP and the MACs of the masks, for weights or a results file.",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--weights", help="bundled name or .safetensors file")
    source.add_argument(
        "--predictions", type=input_file, metavar="RESULTS.json", help="COCO results to evaluate instead"
    )
    add_data(parser)
    add_choice(parser, "learned, quality, size, fixed:S, random, oracle")
    parser.add_argument("--budget-scope", default="image", help="image or dataset (default: image)")
    parser.add_argument("--boxes", default="detected", help="detected or gt (default: detected)")
    add_score(parser, "leave out detections below it (default: the weights' threshold)")
    add_mask_nms(parser)
    add_rescore(parser)
    add_refine(parser)
    parser.add_argument("--seed", type=number_in(0, 2**32 - 1), default=0, help="seed of the random policy")
    add_device(parser)
    add_backend(parser)
    add_json(parser)
    parser.set_defaults(run=_evaluate)


def _evaluate(arguments: argparse.Namespace) -> None:
    from dynamask.engine.distributed import joined
    from dynamask.engine.memory import keep_freed_memory

    if arguments.predictions is not None:
        summary = _evaluate_results(arguments)
    else:
        keep_freed_memory()
        with joined(arguments.device) as ranks:
            summary = _evaluate_weights(arguments, ranks)
            if not ranks.first:
                return
    print_summary(summary, arguments.json)
    write_json(summary, arguments.json)


def _evaluate_results(arguments: argparse.Namespace) -> dict[str, Any]:
    """AP of a results file."""
    from dynamask.data.coco_format import read_coco, read_results
    from dynamask.data.sources import find_annotations
    from dynamask.engine.scoring import average_precision

    if arguments.annotations is None:
        raise DynaMaskError("a results file is evaluated on its annotations; give them with --annotations")
    file = arguments.annotations
    content = read_coco(find_annotations(file) if file.is_dir() else file)
    annotations = content.coco
    results = read_results(arguments.predictions, content.listing)
    ids = [image["id"] for image in annotations["images"]]
    if arguments.holdout is not None:
        ids = [ids[i] for i in held_out(argparse.Namespace(image_ids=ids), arguments.holdout, True)]
    evaluated = set(ids)
    detections = sum(result["image_id"] in evaluated for result in results)
    return {"images": len(ids), "detections": detections, **average_precision(annotations, results, image_ids=ids)}


def _evaluate_weights(arguments: argparse.Namespace, ranks: Ranks) -> dict[str, Any]:
    """The figures of weights; processes started by torchrun share the images."""
    from dynamask.data.sources import with_mask_windows
    from dynamask.engine.evaluate import EvaluationOptions, class_differences, run_evaluation
    from dynamask.predict import load

    def opened() -> tuple[Predictor, EvaluationOptions, Data, list[int]]:
        predictor = load(
            arguments.weights, ranks.device(arguments.device), refine=arguments.refine, backend=arguments.backend
        )
        options = EvaluationOptions(
            policy=arguments.policy,
            budget=arguments.budget,
            budget_scope=arguments.budget_scope,
            boxes=arguments.boxes,
            score=predictor.score_threshold if arguments.score is None else arguments.score,
            seed=arguments.seed,
            mask_nms=arguments.mask_nms,
            rescore=arguments.rescore,
        )
        dataset, indices = open_selected_data(arguments, predictor.class_names)
        if (differences := class_differences(predictor, dataset)) is not None and ranks.first:
            warnings.warn(differences, stacklevel=2)
        return predictor, options, with_mask_windows(dataset), indices

    progress = sys.stderr.isatty() and ranks.first
    predictor, options, dataset, indices = ranks.together(opened)
    return run_evaluation(predictor, dataset, indices, options, progress, ranks)
