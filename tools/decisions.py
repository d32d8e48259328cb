r"""Compare training signals, sampling and loss weights of the switch on cached features of a frozen model.

    python tools/decisions.py cache --weights W.safetensors --data shapes:1:500 --views 2 --out train.safetensors
    python tools/decisions.py cache --weights W.safetensors --data shapes:2:250 --views 4 --out val.safetensors
    python tools/decisions.py rank --cache val.safetensors --json rank.json
    python tools/decisions.py switch --train train.safetensors --validation val.safetensors --table signal \
        --json signal.json
    python tools/decisions.py branches --table supervision --caches all=a.safetensors selected=b.safetensors \
        --json supervision.json
    python tools/decisions.py rivals --train train.safetensors --validation val.safetensors --json rivals.json
    python tools/decisions.py write --results rank.json signal.json supervision.json --doc docs/decisions.md
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from tqdm import tqdm

from dynamask.cli.common import add_data, add_json, open_selected_data, run_command, write_json
from dynamask.engine.frozen_features import FeatureCache, build_cache, load_cache, save_cache
from dynamask.engine.frozen_switch import SCHEDULE, predict_quality
from dynamask.engine.memory import keep_freed_memory
from dynamask.evaluation.bootstrap import PictureBootstrap
from dynamask.models.masks.policies import combined_quality
from dynamask.predict import load
from dynamask.structures import MASK_SIZES, DynaMaskError
from dynamask.training_config import LossConfig
from tools import decision_tables
from tools.page_blocks import fill_blocks
from tools.switch_training import MEASURES, Judge, box_side, compare_with_tables, run_setting

PAPER = LossConfig()
"""Eq. 7 as printed: the edge loss is the signal, y is sampled."""
SLIDER = {
    "switch_signal": "boundary",
    "overlap_share": 0.9,
    "boundary_weight": 0.5,
    "switch_selection": "expected",
    "entropy_on": "instances",
    "budget_target": 1.0,
}
"""Best settings without a budget in training; a price per MAC sets the budget later."""
HELD = {"switch_signal": "boundary", "overlap_share": 0.9, "boundary_weight": 4.0, "budget_target": 0.35}
"""The same error with a budget in training, as in the paper."""
BUDGETED = {**SLIDER, "boundary_weight": 6.0}
"""Best settings with a budget in training: p is so sharp that its mean cost is the cost of its most probable size."""
OTHER_LOSS = {**SLIDER, "switch_signal": "edge", "boundary_weight": 0.0}
TABLES: dict[str, dict[str, dict[str, Any]]] = {
    "signal": {
        "edge loss (Eq. 4)": {**OTHER_LOSS, "edge_weight": 1.0},
        "mask loss (Eq. 3)": {**OTHER_LOSS, "edge_weight": 0.0, "mask_supervision": "selected"},
        "1 − boundary IoU": {**SLIDER, "overlap_share": 0.0},
        "1 − mask IoU": {**SLIDER, "overlap_share": 1.0},
    },
    "error": {
        f"mask IoU {100 * share:.0f} %": {**SLIDER, "overlap_share": share} for share in (0.0, 0.5, 0.75, 0.9, 1.0)
    },
    "more": {f"mask IoU {100 * share:.0f} %": {**SLIDER, "overlap_share": share} for share in (0.8, 0.9)},
    "gradient": {f"× {g:g}": {"switch_gradient": g, "budget_target": 0.35} for g in (0.05, 1.0, 10.0, 50.0)},
    "selection": {
        "C_t .35, drawn y, entropy of mean p (paper)": HELD,
        "C_t .35, drawn y, entropy of mean y": {**HELD, "entropy_on": "selection"},
        "C_t .35, drawn y, entropy of each p": {**HELD, "entropy_on": "instances"},
        "C_t .35, expected, entropy of mean p": {**HELD, "switch_selection": "expected"},
        "C_t .35, expected, entropy of each p": {**HELD, "switch_selection": "expected", "entropy_on": "instances"},
        "no budget, expected, entropy of each p": SLIDER,
    },
    "temperature": {f"τ = {t:g}": {**HELD, "temperature": t} for t in (0.5, 1.0, 2.0)},
    "balance": {
        f"weight {w:g}, λ2 = {b:g}": {**SLIDER, "boundary_weight": w, "switch_weight": b}
        for w in (0.25, 0.5, 2.0)
        for b in (0.1, 0.4)
    },
    "budget": {f"C_t = {c:g}": {**BUDGETED, "budget_target": c} for c in (0.2, 0.35, 0.55, 0.75)},
    "reduction": {
        f"{signal}, {reduction}, C_t {c:g}, λ2 {w:g}": {
            **fields,
            "loss_reduction": reduction,
            "budget_target": c,
            "switch_weight": w,
        }
        for signal, fields in (
            ("edge loss (Eq. 4)", {}),
            ("mask loss (Eq. 3)", {"mask_supervision": "selected", "edge_weight": 0.0}),
        )
        for reduction in ("mean", "sum")
        for c in (0.29, 0.43, 0.57, 0.71, 1.0)
        for w in (0.3, 0.4, 0.5)
    },
}
"""Tables of settings by name: the varied fields of ``LossConfig`` of each row."""


def parse_values(text: str) -> tuple[str, list[Any]]:
    """``temperature=0.5,1`` → its name and values, typed as the field of :class:`LossConfig`."""
    name, _, values = text.partition("=")
    hints = typing.get_type_hints(LossConfig)
    if name not in hints or not values:
        raise DynaMaskError(f"{text!r} is no setting; write FIELD=VALUE[,VALUE…] with one of {', '.join(hints)}")
    kinds = {bool: lambda word: {"true": True, "false": False}[word.lower()]}
    try:
        return name, [kinds.get(hints[name], hints[name])(word) for word in values.split(",")]
    except (ValueError, KeyError) as error:
        raise DynaMaskError(f"{text!r} has a value that is no {hints[name].__name__}; give others") from error


def settings(table: str | None, base: Sequence[str], grid: Sequence[str]) -> dict[str, LossConfig]:
    """Configurations by name: a named table, or the product of ``grid`` on top of ``base``."""
    common = {name: values[0] for name, values in map(parse_values, base)}
    if table is not None:
        rows = TABLES[table]
    else:
        axes = [[(name, value) for value in values] for name, values in map(parse_values, grid)]
        rows = {", ".join(f"{n} {v}" for n, v in point) or "base": dict(point) for point in itertools.product(*axes)}
    return {name: dataclasses.replace(PAPER, **{**common, **options}) for name, options in rows.items()}


def describe_cache(path: Path, cache: FeatureCache) -> dict[str, Any]:
    """Description of the data of a result, as JSON values."""
    about = {key: value for key, value in cache.about.items() if key != "config"}
    return {"file": path.name, "rows": len(cache), "instances": int((cache.view == 0).sum()), **about}


def make_cache(arguments: argparse.Namespace) -> None:
    """``cache``."""
    keep_freed_memory()
    predictor = load(arguments.weights, device="cpu")
    predictor.check_switch("judging a switch")
    dataset, indices = open_selected_data(arguments, predictor.class_names, training=arguments.training)
    about = {"weights": Path(arguments.weights).name, "data": arguments.data or str(arguments.annotations.name)}
    pictures = tqdm(indices, unit="picture", disable=not sys.stderr.isatty(), dynamic_ncols=True)
    cache = build_cache(predictor, dataset, pictures, arguments.views, arguments.seed, about)
    save_cache(cache, arguments.out)
    print(f"{int((cache.view == 0).sum())} instances, {len(cache)} rows in {arguments.out}")


def train_switches(arguments: argparse.Namespace) -> None:
    """``switch``."""
    rows = settings(arguments.table, arguments.base, arguments.grid)
    schedule = dataclasses.replace(SCHEDULE, iterations=arguments.steps, batch_size=arguments.batch, lr=arguments.lr)
    train, validation = load_cache(arguments.train), load_cache(arguments.validation)
    if train.about["config"] != validation.about["config"] or train.about.get("weights") != validation.about["weights"]:
        raise DynaMaskError("the two caches are of different weights; make both with the same --weights")
    judge, found = Judge(validation), {}
    for name, config in rows.items():
        found[name] = run_setting(train, judge, config, schedule, arguments.seeds)
        print(decision_tables.line(name, found[name]), flush=True)
    result = {
        "kind": "switch",
        "table": arguments.table or "grid",
        "train": describe_cache(arguments.train, train),
        "validation": describe_cache(arguments.validation, validation),
        "rows": found,
    }
    write_json(result, arguments.json)


def joined(paths: Sequence[Path]) -> FeatureCache:
    """The instances of one or several caches of the same model."""
    parts = [load_cache(path) for path in paths]
    return parts[0] if len(parts) == 1 else FeatureCache.joined(parts, parts[0].about)


def compare_rivals(arguments: argparse.Namespace) -> None:
    """``rivals``."""
    train, validation = joined(arguments.train), joined(arguments.validation)
    judged = validation.true_boxes()
    predicted = {"switch": torch.log_softmax(judged.switch_logits.double(), dim=1)}
    if arguments.weights is not None:
        predictor = load(arguments.weights, device="cpu")
        predictor.check_choice("quality")
        quality = predict_quality(predictor.model.mask_branch.quality, judged)
        predicted = {"quality head": combined_quality(quality)} | predicted
    rows = compare_with_tables(train, validation, predicted)
    about = {
        "train": [describe_cache(path, load_cache(path)) for path in arguments.train],
        "validation": [describe_cache(path, load_cache(path)) for path in arguments.validation],
    }
    result = {"kind": "rivals", "table": arguments.table, **about, "rows": rows}
    print(decision_tables.rivals_table(result))
    write_json(result, arguments.json)


SIGNALS = ("boundary error", "edge loss", "mask loss", "mask IoU", "box size", "complexity")


def premise(cache: FeatureCache, samples: int = 1000) -> dict[str, dict[str, float | None]]:
    """Rank correlation of the gain in boundary IoU, 112 over 14, with quantities that could predict it (cf. Fig. 5).

    The losses are of the same masks, so they stand for what can teach the switch, not for what it can learn.
    """
    cache = cache.true_boxes()
    gain = (cache.boundary_iou[:, -1] - cache.boundary_iou[:, 0]).double().numpy()
    columns = {
        "boundary error": cache.boundary_error[:, 0] - cache.boundary_error[:, -1],
        "edge loss": cache.edge_loss[:, 0] - cache.edge_loss[:, -1],
        "mask loss": cache.mask_loss[:, 0] - cache.mask_loss[:, -1],
        "mask IoU": cache.mask_iou[:, -1] - cache.mask_iou[:, 0],
        "box size": box_side(cache),
        "complexity": cache.complexity,
    }
    known = {name: columns[name].double().numpy() for name in SIGNALS if not bool(columns[name].isnan().any())}
    bootstrap = PictureBootstrap(cache.image_id.tolist(), samples)
    rows = bootstrap.rows(cache.image_id.numpy())
    return {name: bootstrap.spearman(values, gain, rows).to_dict() for name, values in known.items()}


def rank(arguments: argparse.Namespace) -> None:
    """``rank``."""
    cache = load_cache(arguments.cache)
    result = {"kind": "rank", "validation": describe_cache(arguments.cache, cache), "rows": premise(cache)}
    print(decision_tables.rank_table(result))
    write_json(result, arguments.json)


def compare_branches(branches: dict[str, FeatureCache]) -> dict[str, Any]:
    """Compare mask branches on the same instances with the first of them.

    Args:
        branches: caches by name, two or more.

    Returns:
        ``sizes``: by measure and size the mean quality of each branch, and the paired differences of the others from
        the first. ``slider``: by measure and branch what its own switch gains over the same sizes permuted, the mean of
        the budgets of :data:`tools.switch_training.BUDGETS`.
    """
    first, *others = (cache.true_boxes() for cache in branches.values())
    for other in others:
        if not torch.equal(first.image_id, other.image_id) or not torch.equal(first.box, other.box):
            raise DynaMaskError("the caches hold other instances; make all of them from the same data")
    names = list(branches)
    judged = {name: Judge(cache).judge(cache.true_boxes().switch_logits) for name, cache in branches.items()}
    bootstrap = PictureBootstrap(first.image_id.tolist(), 2000)
    rows, sizes = bootstrap.rows(first.image_id.numpy()), {}
    for measure in MEASURES:
        tables = [getattr(cache, measure).double().numpy() for cache in (first, *others)]
        sizes[measure] = {
            str(size): {
                "mean": {name: float(table[:, k].mean()) for name, table in zip(names, tables)},
                "minus_first": {
                    n: bootstrap.interval(t[:, k] - tables[0][:, k], rows).to_dict()
                    for n, t in zip(names[1:], tables[1:])
                },
            }
            for k, size in enumerate(MASK_SIZES)
        }
    slider = {m: {name: found["sweep"][m]["gain"] for name, found in judged.items()} for m in MEASURES}
    return {"sizes": sizes, "slider": slider}


def branches(arguments: argparse.Namespace) -> None:
    """``branches``."""
    given = [text.partition("=") for text in arguments.caches]
    if len(given) < 2 or any(not name or not path for name, _, path in given):
        raise DynaMaskError("--caches needs two or more of NAME=FILE; give the one to compare with first")
    caches = {name: load_cache(Path(path)) for name, _, path in given}
    about = describe_cache(Path(given[0][2]), next(iter(caches.values())))
    result = {"kind": "branches", "table": arguments.table, "validation": about, "rows": compare_branches(caches)}
    print(decision_tables.branches_table(result))
    write_json(result, arguments.json)


def write(arguments: argparse.Namespace) -> None:
    """``write``: fills the blocks between ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->`` of a Markdown file."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in arguments.results]
    blocks = {str(result.get("table", result.get("kind"))): decision_tables.markdown(result) for result in results}
    fill_blocks(arguments.doc, blocks)


def build_parser() -> argparse.ArgumentParser:
    """The parser."""
    parser = argparse.ArgumentParser(prog="decisions", description=__doc__.split("\n", 1)[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    one = commands.add_parser("cache", help="compute the features of a data set")
    one.add_argument("--weights", required=True, help="bundled name or .safetensors file")
    add_data(one)
    text = "with --holdout M, the pictures that `train --holdout M` trains on instead of those that it holds out"
    one.add_argument("--training", action="store_true", help=text)
    one.add_argument("--views", type=int, default=2, metavar="V", help="jittered views of each instance (default: 2)")
    one.add_argument("--seed", type=int, default=0, help="seed of the views")
    one.add_argument("--out", type=Path, required=True, metavar="FILE", help=".safetensors file")
    one.set_defaults(run=make_cache)
    two = commands.add_parser("switch", help="train switches on one cache and evaluate them on another")
    two.add_argument("--train", type=Path, required=True, metavar="CACHE")
    two.add_argument("--validation", type=Path, required=True, metavar="CACHE")
    two.add_argument("--table", choices=list(TABLES), help="named table of settings, instead of --grid")
    two.add_argument("--base", nargs="+", default=[], metavar="FIELD=V", help="fields of LossConfig of all rows")
    two.add_argument("--grid", nargs="+", default=[], metavar="FIELD=V,V", help="fields to vary, in all combinations")
    two.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    two.add_argument("--steps", type=int, default=SCHEDULE.iterations)
    two.add_argument("--batch", type=int, default=SCHEDULE.batch_size, help="regions per step")
    two.add_argument("--lr", type=float, default=SCHEDULE.lr)
    two.set_defaults(run=train_switches)
    three = commands.add_parser("rank", help="correlate quantities with the gain of a finer mask")
    three.add_argument("--cache", type=Path, required=True)
    three.set_defaults(run=rank)
    four = commands.add_parser("branches", help="compare mask branches that were trained differently")
    four.add_argument("--table", required=True, help="name of the table in the document")
    four.add_argument("--caches", nargs="+", required=True, metavar="NAME=FILE", help="the first is the reference")
    four.set_defaults(run=branches)
    six = commands.add_parser("rivals", help="compare switch and quality head with tables by class and by size")
    text = "the tables are fitted on them"
    six.add_argument("--train", type=Path, required=True, nargs="+", metavar="CACHE", help=text)
    six.add_argument("--validation", type=Path, required=True, nargs="+", metavar="CACHE")
    six.add_argument("--weights", help="weights whose quality head is compared with the switch, too")
    six.add_argument("--table", default="rivals", help="name of the table in the document")
    six.set_defaults(run=compare_rivals)
    for command in (two, three, four, six):
        add_json(command)
    five = commands.add_parser("write", help="put results into the tables of a Markdown file")
    five.add_argument("--results", nargs="+", type=Path, required=True, metavar="JSON")
    five.add_argument("--doc", type=Path, default=Path("docs/decisions.md"))
    five.set_defaults(run=write)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    return run_command("decisions", lambda: arguments.run(arguments), vars(arguments).get("json"))


if __name__ == "__main__":
    sys.exit(main())
