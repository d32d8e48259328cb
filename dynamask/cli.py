"""Command line: ``dynamask {costs,predict,train,evaluate}``. Bad input exits with code 2 and one line on stderr."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import types
import typing
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from dynamask.config import LossConfig, ModelConfig, TrainConfig, recipe
from dynamask.data.coco import CocoDataset, drop_degenerate, read_coco_json, split_by_image_id
from dynamask.data.loaders import training_loader
from dynamask.data.pictures import read_picture
from dynamask.data.transforms import TrainingTransforms
from dynamask.engine.checkpoint import load_weights, save_model
from dynamask.engine.evaluate import EvaluationOptions, run_evaluation
from dynamask.engine.memory import keep_freed_memory
from dynamask.engine.train import RUN_FILE, Run, freeze, loss_weights, train
from dynamask.evaluation.average_precision import evaluate_coco, load_results
from dynamask.models.factory import build_model, create_model, list_models, preset
from dynamask.predictor import Prediction, check_choice, load
from dynamask.structures import MASK_SIZES, DynaMaskError
from dynamask.viz.overlay import draw_overlay


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> typing.NoReturn:
        """Exit with code 2 and one line."""
        self.exit(2, f"dynamask: error: {message}; see {self.prog} -h\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code, 0 or 2."""
    warnings.showwarning = lambda message, *_, **__: print(f"dynamask: warning: {message}", file=sys.stderr)
    arguments = build_parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except (DynaMaskError, OSError) as error:
        text = " ".join(str(error).split())
        print(f"dynamask: error: {text}", file=sys.stderr)
        return 2
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The parser with its subcommands."""
    parser = _Parser(prog="dynamask", description="Per-instance dynamic mask resolution for instance segmentation.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command", parser_class=_Parser)
    _add_costs(commands)
    _add_predict(commands)
    _add_train(commands)
    _add_evaluate(commands)
    return parser


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", metavar="FILE", help="write the result as JSON; - prints it alone on stdout")


def _add_choice(parser: argparse.ArgumentParser, policies: str) -> None:
    parser.add_argument("--policy", help=f"who chooses the sizes: {policies} (default: learned)")
    parser.add_argument("--budget", type=float, metavar="G", help="mean GMACs per instance, instead of a policy")


def _add_costs(commands: Any) -> None:
    parser = commands.add_parser(
        "costs",
        help="what a model's masks cost",
        description="MACs of a model's mask branch, counted from its layers; 1 MAC = 2 FLOPs.",
    )
    parser.add_argument("--model", required=True, help=f"one of {', '.join(list_models())}")
    _add_json(parser)
    parser.set_defaults(run=_costs)


def _add_predict(commands: Any) -> None:
    parser = commands.add_parser(
        "predict", help="masks for pictures", description="Overlays and COCO results of pictures."
    )
    parser.add_argument("--weights", default="people", help="bundled name or .safetensors file (default: people)")
    parser.add_argument("--image", nargs="+", required=True, type=Path, metavar="P", help="pictures")
    _add_choice(parser, "learned, size, fixed:S")
    parser.add_argument("--score", type=float, default=0.5, help="score threshold, 0-1 (default: 0.5)")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for STEM.png and STEM.json")
    parser.add_argument("--device", default="cpu")
    parser.set_defaults(run=_predict)


def _add_evaluate(commands: Any) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="AP, boundary AP and cost on a data set",
        description="Box, mask and boundary AP with what the masks cost, of weights or of a results file.",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--weights", help="bundled name or .safetensors file")
    source.add_argument("--predictions", type=Path, metavar="RESULTS.json", help="COCO results to judge instead")
    parser.add_argument("--images", type=Path, metavar="DIR", help="picture folder (needed with --weights)")
    parser.add_argument("--annotations", type=Path, required=True, metavar="JSON", help="COCO annotations")
    _add_choice(parser, "learned, size, fixed:S, random, oracle")
    parser.add_argument("--budget-scope", default="image", help="image or dataset (default: image)")
    parser.add_argument("--boxes", default="detected", help="detected or gt (default: detected)")
    parser.add_argument("--seed", type=int, default=0, help="of the random policy")
    parser.add_argument(
        "--holdout", type=int, metavar="M", help="only the pictures that `train --holdout M` keeps back"
    )
    parser.add_argument("--device", default="cpu")
    _add_json(parser)
    parser.set_defaults(run=_evaluate)


def _add_train(commands: Any) -> None:
    parser = commands.add_parser(
        "train",
        help="train a model on COCO-format data",
        description="Train on a picture folder "
        "with COCO annotations. Values that are not given are the model's recipe.",
    )
    parser.add_argument("--images", type=Path, required=True, metavar="DIR")
    parser.add_argument("--annotations", type=Path, required=True, metavar="JSON")
    parser.add_argument("--model", required=True, help=f"one of {', '.join(list_models())}")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the run")
    parser.add_argument("--val-images", type=Path, metavar="DIR", help="pictures to evaluate on at the end")
    parser.add_argument("--val-annotations", type=Path, metavar="JSON")
    parser.add_argument(
        "--holdout",
        type=int,
        metavar="M",
        help="keep back, and evaluate on, pictures whose SHA-256 of the image id is divisible by M",
    )
    parser.add_argument(
        "--backbone-weights", metavar="FILE|timm", help="ImageNet weights under timm's names; timm downloads"
    )
    parser.add_argument("--init", type=Path, metavar="FILE", help="start from the weights of a trained model")
    parser.add_argument(
        "--freeze", choices=["detector", "all-but-switch"], help="train the mask branch, or the switch, alone"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    _add_fields(parser.add_argument_group("schedule"), TrainConfig)
    _add_fields(parser.add_argument_group("losses"), LossConfig)
    _add_fields(parser.add_argument_group("model"), ModelConfig, skip=("name", "class_names", "category_ids"))
    parser.set_defaults(run=_train)


def _add_fields(group: Any, config: type, skip: Sequence[str] = ()) -> None:
    """One flag per field of a configuration; absent flags are None."""
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        if field.name in skip:
            continue
        kind, flag = hints[field.name], "--" + field.name.replace("_", "-")
        if kind is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None)
        elif isinstance(kind, types.GenericAlias) or typing.get_origin(kind) is tuple:
            group.add_argument(flag, nargs="+", type=typing.get_args(kind)[0], default=None)
        else:
            group.add_argument(flag, type=kind, default=None)


def _given(arguments: argparse.Namespace, config: type) -> dict[str, Any]:
    """Fields of a configuration that were given as flags."""
    values = {f.name: getattr(arguments, f.name, None) for f in dataclasses.fields(config)}
    return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items() if v is not None}


def _write_json(value: object, target: str | None) -> None:
    """Write JSON atomically to a file, or alone to stdout; nothing when no target is given."""
    if target is None:
        return
    text = json.dumps(value, indent=1, allow_nan=False)
    if target == "-":
        print(text)
        return
    path = Path(target)
    if path.parent and not path.parent.is_dir():
        raise DynaMaskError(f"folder {path.parent} of --json does not exist; create it or choose another")
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text + "\n", encoding="utf-8")
    os.replace(partial, path)


def _say(text: str, target: str | None = None) -> None:
    """A line for people; on stderr when stdout carries JSON alone."""
    print(text, file=sys.stderr if target == "-" else sys.stdout)


def _costs(arguments: argparse.Namespace) -> None:
    costs = create_model(arguments.model).mask_branch.costs
    _say(f"{arguments.model}: MACs of one instance (1 MAC = 2 FLOPs)", arguments.json)
    for size, macs, share in zip(MASK_SIZES, costs.macs_per_instance, costs.fractions):
        _say(f"  {size:>3} x {size:<3}  {macs / 1e9:.4f} G  {share:6.1%}", arguments.json)
    _say(
        f"  switch     {costs.switch_macs / 1e9:.4f} G  {costs.switch_macs / costs.macs_per_instance[-1]:6.1%}",
        arguments.json,
    )
    _write_json(
        {
            "model": arguments.model,
            "mask_sizes": list(MASK_SIZES),
            "macs_per_instance": list(costs.macs_per_instance),
            "switch_macs": costs.switch_macs,
        },
        arguments.json,
    )


def _predict(arguments: argparse.Namespace) -> None:
    keep_freed_memory()
    predictor = load(arguments.weights, arguments.device)
    policy = arguments.policy or "learned"
    check_choice(policy, arguments.budget, predictor.costs.macs_per_instance)
    stems = [path.stem for path in arguments.image]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        raise DynaMaskError(
            f"two pictures are called {twice[0]}, and their results would overwrite each other; rename one"
        )
    _check_folder(arguments.out)
    results = []
    for path in arguments.image:
        results.append((path, predictor(path, policy=policy, budget=arguments.budget, score=arguments.score)))
        results[-1][1].paste()  # now, so that nothing is written if anything fails
    arguments.out.mkdir(parents=True, exist_ok=True)
    for number, (path, prediction) in enumerate(results, start=1):
        _print_table(path, prediction)
        overlay = draw_overlay(
            read_picture(path), prediction.masks.numpy(), prediction.mask_size.numpy(), boxes=prediction.boxes.numpy()
        )
        partial = arguments.out / f"{path.stem}.png.partial"
        Image.fromarray(overlay).save(partial, format="PNG")
        os.replace(partial, arguments.out / f"{path.stem}.png")
        _write_json(prediction.to_coco(number), str(arguments.out / f"{path.stem}.json"))


def _check_folder(out: Path) -> None:
    """Refuse an --out that is a file."""
    if out.exists() and not out.is_dir():
        raise DynaMaskError(f"--out {out} is a file; give a folder")


def _print_table(path: Path, prediction: Prediction) -> None:
    macs = prediction.macs.double()
    mean = f", mean {macs.mean() / 1e9:.4f} GMACs an instance" if len(prediction) else ""
    _say(f"{path}: {len(prediction)} instances{mean}")
    rows = zip(
        prediction.labels.tolist(),
        prediction.scores.tolist(),
        prediction.mask_size.tolist(),
        prediction.macs.tolist(),
        prediction.boxes.tolist(),
    )
    for label, score, size, cost, box in rows:
        _say(
            f"  {prediction.class_names[label]:<16} {score:.2f}  mask {size:>3}  {cost / 1e9:.4f} GMACs  "
            f"box {' '.join(f'{v:.0f}' for v in box)}"
        )


def _evaluate(arguments: argparse.Namespace) -> None:
    if arguments.predictions is not None:
        annotations, _, _ = drop_degenerate(read_coco_json(arguments.annotations))
        results = load_results(arguments.predictions, annotations)
        summary: dict[str, Any] = {"images": len(annotations["images"]), "detections": len(results)}
        summary.update(evaluate_coco(annotations, results))
    else:
        if arguments.images is None:
            raise DynaMaskError("evaluating weights needs pictures; give their folder with --images")
        options = EvaluationOptions(
            arguments.policy or "learned",
            arguments.budget,
            arguments.budget_scope,
            arguments.boxes,
            seed=arguments.seed,
        )
        keep_freed_memory()
        dataset = CocoDataset(arguments.images, arguments.annotations)
        indices = _held_out(dataset, arguments.holdout, True) if arguments.holdout else None
        predictor = load(arguments.weights, arguments.device)
        summary = run_evaluation(predictor, dataset, indices, options, progress=sys.stderr.isatty())
    _print_summary(summary, arguments.json)
    _write_json(summary, arguments.json)


def _held_out(dataset: CocoDataset, modulus: int, validation: bool) -> list[int]:
    """One side of the published split; refuses a modulus that leaves a side empty."""
    if modulus < 2:
        raise DynaMaskError(f"--holdout is {modulus}; give a whole number of at least 2")
    indices = split_by_image_id(dataset, validation, modulus)
    if not indices:
        raise DynaMaskError(
            f"--holdout {modulus} leaves one side of the {len(dataset)} pictures empty; give another number"
        )
    return indices


def _print_summary(summary: dict[str, Any], target: str | None) -> None:
    _say(f"{summary['images']} images, {summary['detections']} detections", target)
    for kind in ("bbox", "segm", "boundary"):
        values = "  ".join(f"{key} {'  -  ' if v is None else f'{v:.4f}'}" for key, v in summary[kind].items())
        _say(f"  {kind:<9}{values}", target)
    if summary.get("mean_macs_per_instance") is not None:
        shares = "  ".join(f"{size}: {share:.1%}" for size, share in summary["size_shares"].items())
        _say(f"  {summary['mean_macs_per_instance'] / 1e9:.4f} mean GMACs an instance; sizes {shares}", target)
    for key in ("mean_mask_iou", "mean_boundary_iou"):
        if summary.get(key) is not None:
            _say(f"  {key} {summary[key]:.4f}", target)


def _train(arguments: argparse.Namespace) -> None:
    if (arguments.val_images is None) != (arguments.val_annotations is None):
        raise DynaMaskError("--val-images and --val-annotations belong together; give both or neither")
    _check_folder(arguments.out)
    if not arguments.resume and (arguments.out / RUN_FILE).exists():
        raise DynaMaskError(
            f"{arguments.out} holds a run already; add --resume to go on with it or choose another --out"
        )
    keep_freed_memory()
    model_config, base = preset(arguments.model), recipe(arguments.model)
    config = dataclasses.replace(base[0], **_given(arguments, TrainConfig))
    loss_config = dataclasses.replace(base[1], **_given(arguments, LossConfig))
    dataset = CocoDataset(arguments.images, arguments.annotations, TrainingTransforms(photometric=config.jitter))
    indices = _held_out(dataset, arguments.holdout, False) if arguments.holdout else None
    torch.manual_seed(config.seed)
    model_config = dataclasses.replace(
        model_config,
        class_names=dataset.class_names,
        category_ids=dataset.category_ids,
        **_given(arguments, ModelConfig),
    )
    model = build_model(model_config, arguments.backbone_weights, loss_config)
    if arguments.init is not None:
        load_weights(model, arguments.init)
    if arguments.freeze is not None:
        freeze(model, arguments.freeze)
    settings = json.loads(
        json.dumps(
            {
                "train": dataclasses.asdict(config),
                "losses": dataclasses.asdict(loss_config),
                "model": model_config.to_dict(),
                "freeze": arguments.freeze,
            }
        )
    )
    run = Run(
        model,
        training_loader(dataset, config.batch_size, config.seed, config.workers, indices),
        config,
        loss_weights(loss_config),
        arguments.out,
        settings,
    )
    if arguments.resume:
        run.resume()
    weights = arguments.out / "last.safetensors"

    def save(state: Run) -> None:
        training = {"images_seen": state.step * config.batch_size, **settings}
        save_model(model, weights, state.final_state(), training)

    train(run, on_save=save)
    _evaluate_run(arguments, weights)


def _evaluate_run(arguments: argparse.Namespace, weights: Path) -> None:
    """Evaluate a finished run on its validation pictures, if it has any."""
    if arguments.val_images is not None:
        validation, indices = CocoDataset(arguments.val_images, arguments.val_annotations), None
    elif arguments.holdout:
        validation = CocoDataset(arguments.images, arguments.annotations)
        indices = _held_out(validation, arguments.holdout, True)
    else:
        return
    summary = run_evaluation(load(weights, "cpu"), validation, indices, progress=sys.stderr.isatty())
    _print_summary(summary, None)
    _write_json(summary, str(arguments.out / "evaluation.json"))
