"""Does the switch earn its keep? Mask quality in true boxes at each size, and learned sizes against other choices.

Every figure is a mean over instances of the held-out pictures, with the bootstrap 95 % interval of paired differences.
Sizes are permuted among all instances. The mean over every permutation is taken exactly: a permutation gives an
instance size k with the probability that is the share of k, so its expected quality is Σ_k share_k · quality_k.

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
import torch

from benchmarks import report
from dynamask.data.coco import CocoDataset
from dynamask.engine.evaluate import EvaluationOptions, Instances, collect
from dynamask.engine.memory import keep_freed_memory
from dynamask.evaluation.mask_quality import paired_bootstrap, share_of_oracle_gain
from dynamask.models.rcnn import policies
from dynamask.ops.knapsack import best_under_budget
from dynamask.predictor import load
from dynamask.structures import MASK_SIZES, DynaMaskError

MEASURES = ("mask_iou", "boundary_iou")


def at(quality: np.ndarray, choice: np.ndarray) -> np.ndarray:
    """(N,) quality of each instance at its chosen size, from (N, K) and (N,) indices."""
    return quality[np.arange(len(choice)), choice]


def shares(choice: np.ndarray) -> np.ndarray:
    """(K,) share of instances at each size."""
    return np.bincount(choice, minlength=len(MASK_SIZES)) / len(choice)


def permuted(quality: np.ndarray, choice: np.ndarray) -> np.ndarray:
    """(N,) mean quality of each instance over all permutations of the chosen sizes among the instances."""
    return quality @ shares(choice)


def permutation_p(quality: np.ndarray, choice: np.ndarray, draws: int, seed: int = 0) -> float:
    """Share of drawn permutations whose mean quality reaches that of the choice (itself counted once)."""
    rng = np.random.default_rng(seed)
    own = at(quality, choice).mean()
    reached = sum(at(quality, rng.permutation(choice)).mean() >= own for _ in range(draws))
    return (reached + 1) / (draws + 1)


def best_fixed_within(quality: np.ndarray, macs: np.ndarray, limit: float) -> int:
    """Index of the fixed size with the best mean quality among those that cost at most the limit."""
    allowed = np.flatnonzero(macs <= limit)
    return int(allowed[quality.mean(axis=0)[allowed].argmax()])


def interpolated_fixed(quality: np.ndarray, macs: np.ndarray, limit: float) -> tuple[int, int, float]:
    """The best mixture of two fixed sizes, drawn blindly, whose mean cost is the limit.

    Returns:
        (cheap, dear, weight of the dear size). Of all pairs around the limit, the one with the best mean quality; at a
        fixed size's own cost that size alone (weight 0) is among the candidates.
    """
    means, found = quality.mean(axis=0), []
    for low in range(len(macs)):
        if macs[low] > limit:
            continue
        if macs[low] == limit or low == len(macs) - 1:
            found.append((means[low], low, low, 0.0))
        for high in range(low + 1, len(macs)):
            if macs[high] > limit:
                weight = float((limit - macs[low]) / (macs[high] - macs[low]))
                found.append((means[low] * (1 - weight) + means[high] * weight, low, high, weight))
    _, low, high, weight = max(found)
    return low, high, weight


def interval(differences: np.ndarray) -> dict[str, float]:
    """Mean with its bootstrap 95 % interval."""
    mean, low, high = paired_bootstrap(differences)
    return {"mean": mean, "low": low, "high": high}


def size_steps(quality: np.ndarray) -> dict[str, Any]:
    """Mean quality at every size, and what each step to the next size gains."""
    steps = {
        f"{MASK_SIZES[k]}-{MASK_SIZES[k + 1]}": interval(quality[:, k + 1] - quality[:, k])
        for k in range(len(MASK_SIZES) - 1)
    }
    return {"by_size": dict(zip(map(str, MASK_SIZES), quality.mean(axis=0).tolist())), "steps": steps}


def size_based_choice(found: Instances, sizes: dict[int, tuple[int, int]]) -> np.ndarray:
    """(N,) indices of Eq. 8; ``sizes`` gives (height, width) by image id."""
    picks = []
    for result in found.results:
        x, y, width, height = result["bbox"]
        box = torch.tensor([[x, y, x + width, y + height]])
        picks.append(int(policies.size_based(box, sizes[result["image_id"]])))
    return np.array(picks, dtype=np.int64)


def at_budget(logits: torch.Tensor, macs: tuple[int, ...], limit: float) -> np.ndarray:
    """(N,) learned indices whose mean cost is at most ``limit`` MACs: one price for all instances."""
    price = policies.price_for_budget(logits, macs, max(limit, macs[0] * (1 + 1e-9)) / 1e9)
    return policies.at_price(logits, macs, price).numpy()


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
