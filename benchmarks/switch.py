"""Does the switch earn its keep? Mask quality in true boxes at each size, and learned sizes against other choices.

Every figure is a mean over instances of the held-out pictures, with the bootstrap 95 % interval of paired differences.
The mean over every permutation of the sizes is taken exactly (:mod:`dynamask.evaluation.choices`).

    python benchmarks/switch.py --weights people --images DIR --annotations JSON --holdout 8 --json FILE
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks import report
from dynamask.data.coco import CocoDataset
from dynamask.engine.evaluate import EvaluationOptions, Instances, collect
from dynamask.engine.memory import keep_freed_memory
from dynamask.evaluation.bootstrap import paired_bootstrap
from dynamask.evaluation.choices import (
    at,
    best_fixed_within,
    interpolated_fixed,
    permutation_p,
    permuted,
    share_of_oracle_gain,
    shares,
)
from dynamask.ops.knapsack import best_under_budget
from dynamask.predict import load
from dynamask.reports.size_choices import at_budget, size_based_choice
from dynamask.structures import MASK_SIZES, DynaMaskError

MEASURES = ("mask_iou", "boundary_iou")


def interval(differences: np.ndarray) -> dict[str, float | None]:
    """Mean of paired differences (N,) with its bootstrap 95 % interval over instances, as JSON values."""
    return paired_bootstrap(differences).to_dict()


def size_steps(quality: np.ndarray) -> dict[str, Any]:
    """Mean quality at every size, and what each step to the next size gains."""
    steps = {
        f"{MASK_SIZES[k]}-{MASK_SIZES[k + 1]}": interval(quality[:, k + 1] - quality[:, k])
        for k in range(len(MASK_SIZES) - 1)
    }
    return {"by_size": dict(zip(map(str, MASK_SIZES), quality.mean(axis=0).tolist())), "steps": steps}


def compare(quality: np.ndarray, choice: np.ndarray, costs: np.ndarray, draws: int) -> dict[str, Any]:
    """Learned sizes against the same sizes permuted, the fixed sizes and the oracle, by one measure."""
    own, limit = at(quality, choice), float(costs[choice].mean())
    chance = permuted(quality, choice)
    best = best_fixed_within(quality, costs, limit)
    low, high, weight = interpolated_fixed(quality, costs, limit)
    mixture = quality[:, low] * (1 - weight) + quality[:, high] * weight
    oracle = at(quality, best_under_budget(quality, costs, limit))
    return {
        "learned": float(own.mean()),
        "permuted": float(chance.mean()),
        "oracle": float(oracle.mean()),
        "share_of_oracle_gain": share_of_oracle_gain(own.mean(), chance.mean(), oracle.mean()),
        "learned_minus_permuted": {**interval(own - chance), "p": permutation_p(quality, choice, draws)},
        "learned_minus_fixed": {
            str(size): {**interval(own - quality[:, k]), "macs": float(costs[k])} for k, size in enumerate(MASK_SIZES)
        },
        "best_fixed_within_macs": {
            "size": MASK_SIZES[best],
            "macs": float(costs[best]),
            "quality": float(quality[:, best].mean()),
            "learned_minus": interval(own - quality[:, best]),
        },
        "interpolated_fixed": {
            "sizes": [MASK_SIZES[low], MASK_SIZES[high]],
            "weight_of_the_second": weight,
            "macs": limit,
            "quality": float(mixture.mean()),
            "learned_minus": interval(own - mixture),
        },
    }


def compare_size_based(
    quality: np.ndarray, learned: np.ndarray, equal: np.ndarray, size_based: np.ndarray
) -> dict[str, Any]:
    """Learned sizes against Eq. 8: as each chooses, and with the learned sizes held to the mean MACs of Eq. 8."""
    theirs = at(quality, size_based)
    return {
        "quality": float(theirs.mean()),
        "learned_minus": interval(at(quality, learned) - theirs),
        "learned_at_its_macs": float(at(quality, equal).mean()),
        "learned_at_its_macs_minus": interval(at(quality, equal) - theirs),
    }


def analyse(found: Instances, macs: tuple[int, ...], sizes: dict[int, tuple[int, int]], draws: int) -> dict[str, Any]:
    """All figures of the instances of a data set whose masks are known at every size."""
    if not found.results:
        raise DynaMaskError("the held-out pictures hold no instance of the weights' classes; give other annotations")
    costs = np.array(macs, dtype=np.float64)
    learned, by_size = np.array(found.choice, dtype=np.int64), size_based_choice(found, sizes)
    equal = at_budget(found.logits(), macs, float(costs[by_size].mean()))
    summary: dict[str, Any] = {
        "instances": len(learned),
        "mask_sizes": list(MASK_SIZES),
        "macs_per_instance": list(macs),
        "mean_macs": {
            "learned": float(costs[learned].mean()),
            "size_based": float(costs[by_size].mean()),
            "learned_at_size_based": float(costs[equal].mean()),
        },
        "size_shares": {
            name: dict(zip(map(str, MASK_SIZES), shares(choice).tolist()))
            for name, choice in (("learned", learned), ("size_based", by_size), ("learned_at_size_based", equal))
        },
    }
    for measure in MEASURES:
        quality = found.quality(measure)
        summary[measure] = {
            **size_steps(quality),
            **compare(quality, learned, costs, draws),
            "size_based": compare_size_based(quality, learned, equal, by_size),
        }
    return summary


def _signed(values: dict[str, float]) -> str:
    return f"{values['mean']:+.4f} [{values['low']:+.4f}, {values['high']:+.4f}]"


def show(summary: dict[str, Any]) -> str:
    """The figures as text."""
    macs = summary["mean_macs"]
    full = summary["macs_per_instance"][-1]
    lines = [f"{summary['instances']} instances in their true boxes; differences with bootstrap 95 % intervals", ""]
    for name, values in summary["size_shares"].items():
        text = "  ".join(f"{size}: {share:.1%}" for size, share in values.items())
        lines.append(f"{name:<22} {macs[name] / 1e9:.4f} mean GMACs ({macs[name] / full:.0%} of all at 112)  {text}")
    rows = []
    for measure in MEASURES:
        m = summary[measure]
        best, mix, sized = m["best_fixed_within_macs"], m["interpolated_fixed"], m["size_based"]
        rows += [["", "", ""], [measure, "mean", "learned minus it"]]
        rows += [[f"fixed:{s}", f"{q:.4f}", _signed(m["learned_minus_fixed"][s])] for s, q in m["by_size"].items()]
        rows += [["learned", f"{m['learned']:.4f}", ""]]
        gap = m["learned_minus_permuted"]
        rows += [[f"the same sizes permuted (p {gap['p']:.4f})", f"{m['permuted']:.4f}", _signed(gap)]]
        name = f"best fixed size within its MACs: {best['size']}"
        rows += [[name, f"{best['quality']:.4f}", _signed(best["learned_minus"])]]
        weight = mix["weight_of_the_second"]
        pair = f"{1 - weight:.0%} {mix['sizes'][0]}, {weight:.0%} {mix['sizes'][1]}"
        rows += [[f"interpolated fixed, equal MACs: {pair}", f"{mix['quality']:.4f}", _signed(mix["learned_minus"])]]
        rows += [["size-based", f"{sized['quality']:.4f}", _signed(sized["learned_minus"])]]
        name = "  learned at the MACs of size-based, minus size-based"
        rows += [[name, f"{sized['learned_at_its_macs']:.4f}", _signed(sized["learned_at_its_macs_minus"])]]
        rows += [["oracle at the learned MACs", f"{m['oracle']:.4f}", ""]]
        share = m["share_of_oracle_gain"]
        rows += [["share of the oracle's gain over permuted", "-" if share is None else f"{share:.3f}", ""]]
        rows += [[f"step {name}", "", _signed(step)] for name, step in m["steps"].items()]
    return "\n".join([*lines, report.table(["", "", ""], rows)])


def _measure(arguments: argparse.Namespace) -> None:
    report.check_json_target(arguments.json)
    keep_freed_memory()
    predictor = load(arguments.weights)
    predictor.check_switch("judging a switch")
    dataset = CocoDataset(arguments.images, arguments.annotations)
    indices = report.split(dataset, arguments.holdout, True)
    options = EvaluationOptions(policy="learned", boxes="gt")
    found = collect(predictor, dataset, indices, options, every_size=True, progress=sys.stderr.isatty())
    sizes = {image["id"]: (image["height"], image["width"]) for image in dataset.coco["images"]}
    summary = analyse(found, tuple(predictor.costs.macs_per_instance), sizes, arguments.permutations)
    summary = {"weights": str(arguments.weights), "holdout": arguments.holdout, "images": len(indices), **summary}
    print(show(summary))
    report.write_json(summary, arguments.json)


def build_parser() -> argparse.ArgumentParser:
    """The parser."""
    parser = argparse.ArgumentParser(prog="switch", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--weights", default="people", help="bundled name or .safetensors file (default: people)")
    report.add_data_flags(parser)
    parser.add_argument("--permutations", type=int, default=2000, help="drawn for p (default: 2000)")
    report.add_json_flag(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    return report.run("switch", lambda: _measure(arguments))


if __name__ == "__main__":
    sys.exit(main())
