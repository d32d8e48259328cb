"""``report budget-curve``: quality against mean MACs, of the switch and of its rivals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dynamask.data.sources import Data
from dynamask.evaluation.bootstrap import PictureBootstrap, PrecisionBootstrap
from dynamask.evaluation.rivals import TABLES
from dynamask.reports.collect import Collected, annotations_of
from dynamask.reports.comparison import Comparison
from dynamask.reports.curve_points import FIXED, CurvePoint, DetectionCurve, TrueBoxCurve
from dynamask.reports.options import CurveOptions
from dynamask.reports.refinement_curve import compute_refinement, refinement_blocks
from dynamask.reports.render import (
    Block,
    Figure,
    Heading,
    Paragraph,
    Report,
    Table,
    jsonable,
    number,
    with_interval,
)
from dynamask.structures import MASK_SIZES
from dynamask.viz.charts import Series, curve_chart
from dynamask.viz.style import POLICY_STYLES

TITLES = {
    "mask_iou": "mean mask IoU",
    "boundary_iou": "mean boundary IoU",
    "segm_ap": "mask AP",
    "boundary_ap": "boundary AP",
}
NAMES = {
    "learned": "learned",
    "budget": "best within a budget",
    "size": "size-based (Eq. 8)",
    "random": "random: the same sizes permuted",
    "mix": "best blind mix of two fixed sizes",
    "class table": "table of mean quality by class",
    "size table": "table by box size",
    "class-size table": "table by class and box size",
    "oracle": "oracle",
    "noise-aware oracle": "noise-aware oracle",
    **{f"fixed:{size}": f"all at {size}" for size in MASK_SIZES},
}
_LINES = ("random", "mix", *TABLES, "oracle", "noise-aware oracle", "budget")
_BANDS = ("mix", "noise-aware oracle", "budget")
_COST = "mean GMACs per instance"
_POINTS = (*FIXED, "size", "learned")


@dataclass(frozen=True)
class CurveResult:
    """A budget curve.

    Attributes:
        points: the points of all policies, budgets and measures.
        known_complexity: see :meth:`TrueBoxCurve.known_complexity`.
        operating_points: see :meth:`DetectionCurve.operating_points`; None without detections.
    """

    points: list[CurvePoint]
    known_complexity: dict[str, Any] | None
    operating_points: dict[str, Any] | None


def compute_curve(
    collected: Collected,
    macs: Sequence[int],
    dataset: Data,
    bootstrap: PictureBootstrap,
    precision: PrecisionBootstrap | None,
    options: CurveOptions,
    seed: int = 0,
) -> CurveResult:
    """The budget curve of one weights file.

    Args:
        collected: its predictions, with ``options.views`` other views.
        macs: MACs of an instance at each size.
        dataset: the data set of the predictions.
        bootstrap: resampled sets of its pictures.
        precision: AP of the detections in such sets; None leaves the detections out.
        seed: seed of the permutations.

    Raises:
        DynaMaskError: there is no instance, or nothing was detected.
    """
    given, found = collected.true_boxes, collected.detections
    true_boxes = TrueBoxCurve(given, macs, dataset, options.budgets, collected.views, bootstrap)
    points, complexity = true_boxes.points(), true_boxes.known_complexity(annotations_of(given, dataset))
    if found is None or precision is None:
        return CurveResult(points, complexity, None)
    detections = DetectionCurve(found, macs, dataset, options.budgets, precision, options.permutations, seed)
    return CurveResult(points + detections.points(), complexity, detections.operating_points())


def make_budget_curve(comparison: Comparison, options: CurveOptions) -> Report:
    """The budget curve of the first weights with a switch, as a report.

    Args:
        comparison: collected with ``options.views`` other views.
    """
    evidence, seed = comparison.main, comparison.options.seed
    refined = compute_refinement(comparison, options.refine, comparison.collect_options.detections)
    collected, macs, dataset = evidence.collected, evidence.macs, comparison.dataset
    precision = None if collected.detections is None else evidence.precision
    result = compute_curve(collected, macs, dataset, comparison.bootstrap, precision, options, seed)
    counts = {"pictures": len(comparison.indices), "true_instances": len(collected.true_boxes.results)}
    if collected.detections is not None:
        counts["detections"] = len(collected.detections.results)
    facts = comparison.facts(evidence, **counts)
    rows = [point.to_dict() for point in result.points]
    data = {
        "facts": dict(facts),
        "checkpoint": evidence.checkpoint.to_dict(),
        "options": {
            **asdict(options),
            "samples": comparison.options.samples,
            "ap_samples": comparison.options.ap_samples,
            "seed": seed,
            "detections": collected.detections is not None,
        },
        "mask_sizes": list(MASK_SIZES),
        "macs_per_instance": list(macs),
        **counts,
        "rows": rows,
        "refinement": [point.to_dict() for point in refined],
        "known_complexity": jsonable(result.known_complexity),
        "operating_points": jsonable(result.operating_points),
    }
    blocks = _blocks(result, macs[-1], options, comparison.options.ap_samples) + refinement_blocks(refined, TITLES)
    return Report("budget-curve", f"Budget curve of {evidence.label}", facts, blocks, rows, data)


def _blocks(result: CurveResult, full: int, options: CurveOptions, ap_samples: int) -> list[Block]:
    """The document; ``full`` is the cost of the finest size in MACs."""
    blocks: list[Block] = [
        Paragraph(
            "MACs are multiply-accumulates of the mask branch for an instance (1 MAC = 2 FLOPs), without the switch "
            f"itself and the picture's projections; the full branch costs {full / 1e9:.4f} GMACs. Brackets and bands "
            "are bootstrap 95 % intervals over pictures; differences are paired. A budget is met by one price over the "
            "data set, on the predicted quality of weights with a quality head, otherwise on the log p of the switch; "
            "above the cost of the switch's own choice the latter changes nothing, so that the curve ends there."
        ),
        Heading("In true boxes"),
        Paragraph(
            "Random is the exact mean over all permutations of the same sizes among the instances. The oracle knows "
            "the quality of every size. Part of its gain is noise that cannot be predicted: the noise-aware oracle "
            f"chooses by the mean quality in {options.views} other views of the picture (flipped, boxes shifted and "
            "stretched) and is evaluated on the view that it did not see. The tables choose by the mean quality of an "
            "instance's class, of its box size, or of both, in the other pictures of the data (five parts, each "
            "predicted from the other four)."
        ),
        *_section(result.points, "gt", ("mask_iou", "boundary_iou"), full),
    ]
    if result.operating_points is not None:
        text = (
            f"AP over all classes and areas, scores above 0.05. Random is the mean over {options.permutations} drawn "
            f"permutations; intervals are from {ap_samples} resampled sets of pictures."
        )
        blocks += [Heading("On detections"), Paragraph(text)]
        blocks += _section(result.points, "detected", ("segm_ap", "boundary_ap"), full)
        blocks += _operating_points(result.operating_points)
    return blocks + _complexity(result.known_complexity, full)


def chosen(points: Sequence[CurvePoint], boxes: str, measure: str, policy: str, against: str = "") -> list[CurvePoint]:
    """The points of one policy, by rising MACs."""
    wanted = (boxes, measure, policy, against)
    found = [point for point in points if (point.boxes, point.measure, point.policy, point.against) == wanted]
    return sorted(found, key=lambda point: (point.mean_macs, point.budget_macs or 0))


def _section(points: Sequence[CurvePoint], boxes: str, measures: tuple[str, str], full: int) -> list[Block]:
    """Figures and tables of one kind of boxes."""
    lines = [p for p in _LINES if chosen(points, boxes, measures[0], p)]
    curves = {TITLES[m]: curve_series(points, boxes, m, (*lines, *_POINTS), bands=("budget",)) for m in measures}
    others = [p for p in lines if p != "random"]
    gains = {TITLES[m]: curve_series(points, boxes, m, others, "random", _BANDS) for m in measures}
    blocks: list[Block] = [
        Figure(curve_chart(curves, "Quality against cost", _COST, height=500)),
        Figure(curve_chart(gains, "Gain over random at equal MACs", _COST, height=500, zero_line=True)),
        _own_table(points, boxes, measures, full),
        Paragraph("Learned sizes, and the best ones within a budget, minus others with the same mean MACs:"),
        _difference_table(points, boxes, measures),
    ]
    blocks += _share_table(points, boxes, measures, full)
    for measure in measures:
        blocks += [Paragraph(f"By budget, {TITLES[measure]}:"), _budget_table(points, boxes, measure, lines)]
    return blocks


def curve_series(
    points: Sequence[CurvePoint],
    boxes: str,
    measure: str,
    policies: Sequence[str],
    against: str = "",
    bands: Sequence[str] = (),
) -> list[Series]:
    """The series of a chart, one for each policy that has points.

    Args:
        boxes, measure, against: see :class:`CurvePoint`.
        bands: the policies whose intervals are drawn as bands.
    """
    series = []
    for policy in policies:
        own = chosen(points, boxes, measure, policy, against)
        if own:
            gmacs = [point.mean_macs / 1e9 for point in own]
            means, lows, highs = zip(*((p.value.mean, p.value.low, p.value.high) for p in own))
            interval = "band" if policy in bands else "hover"
            look = POLICY_STYLES[policy]
            series.append(Series(NAMES[policy], gmacs, means, lows, highs, look, interval=interval))
    return series


def _own_table(points: Sequence[CurvePoint], boxes: str, measures: Sequence[str], full: int) -> Table:
    """Policies at their own MACs."""
    body = []
    for policy in ("learned", "size", *FIXED):
        own = [chosen(points, boxes, measure, policy)[0] for measure in measures]
        cost = own[0].mean_macs
        sizes = " / ".join(f"{share:.0%}" for share in own[0].shares)
        body.append(
            [NAMES[policy], f"{cost / 1e9:.4f}", f"{cost / full:.0%}", *(with_interval(p.value) for p in own), sizes]
        )
    header = ["policy", "mean GMACs", "of full", *(TITLES[m] for m in measures), "sizes 14 / 28 / 56 / 112"]
    return Table(header, body)


def _difference_table(points: Sequence[CurvePoint], boxes: str, measures: Sequence[str]) -> Table:
    """Learned at equal MACs, minus each rival."""
    body = []
    rivals = [("learned", name) for name in ("random", "mix", *TABLES)]
    rivals += [("budget", name) for name in ("size", *FIXED)]
    for policy, against in rivals:
        own = [chosen(points, boxes, measure, policy, against) for measure in measures]
        if all(own):
            first = own[0][0]
            theirs = first.budget_macs or first.mean_macs
            cells = [with_interval(found[0].value, signed=True) for found in own]
            name = f"{policy} minus {NAMES[against]}"
            body.append([name, f"{theirs / 1e9:.4f}", f"{first.mean_macs / 1e9:.4f}", *cells])
    return Table(["difference", "GMACs of the other", "own GMACs", *(TITLES[m] for m in measures)], body)


def _share_table(points: Sequence[CurvePoint], boxes: str, measures: Sequence[str], full: int) -> list[Block]:
    """Shares of the oracles' gains: the switch's own choice, then by budget."""
    columns = [
        (measure, name)
        for measure in measures
        for name in ("share of oracle", "share of noise-aware oracle", "share over mix of noise-aware oracle")
        if chosen(points, boxes, measure, "learned", name)
    ]
    if not columns:
        return []
    body = []
    for policy in ("learned", "budget"):
        found = [chosen(points, boxes, measure, policy, name) for measure, name in columns]
        for own in zip(*found):
            cost = own[0].mean_macs
            label = "learned" if policy == "learned" else f"budget {own[0].budget_macs / 1e9:.4f}"
            body.append([label, f"{cost / 1e9:.4f}", f"{cost / full:.0%}", *(with_interval(p.value, 2) for p in own)])
    titles = {name: name.removeprefix("share of ").replace("share over mix of", "over mix,") for _, name in columns}
    header = ["sizes", "mean GMACs", "of full"]
    header += [f"{TITLES[m].removeprefix('mean ')}, {titles[name]}" for m, name in columns]
    return [
        Paragraph(
            "Share of the oracles' gain over random, (own − random) / (oracle − random), and, in the columns named "
            '"over mix", over the best blind mixture of two fixed sizes:'
        ),
        Table(header, body),
    ]


def _budget_table(points: Sequence[CurvePoint], boxes: str, measure: str, lines: Sequence[str]) -> Table:
    """Every budget with all policies that exist there."""
    order = [p for p in ("budget", "random", "mix", *TABLES, "noise-aware oracle", "oracle") if p in lines]
    by_budget = {p: {point.budget_macs: point for point in chosen(points, boxes, measure, p)} for p in order}
    body = []
    for budget, own in sorted(by_budget["budget"].items()):
        others = [number(by_budget[p][budget].value.mean) for p in order[1:]]
        body.append([f"{budget / 1e9:.4f}", f"{own.mean_macs / 1e9:.4f}", with_interval(own.value), *others])
    names = ["best" if p == "budget" else p for p in order]
    return Table(["budget, GMACs", "mean GMACs", *names], body)


def _operating_points(points: dict[str, Any]) -> list[Block]:
    """The two operating points of Tab. 5."""
    body = []
    within = f"cheapest budget within {points['drop']:.3f} mask AP of all at {MASK_SIZES[-1]}"
    for name, point in ((within, points["within_drop"]), ("half of the full MACs", points["half"])):
        if point is None:
            body.append([name, "none", "–", "–", "–"])
            continue
        gaps = [with_interval(point[f"{kind}_ap_minus_full"], signed=True) for kind in ("segm", "boundary")]
        body.append([name, f"{point['mean_macs'] / 1e9:.4f}", f"{point['saved']:.1%}", *gaps])
    header = ["operating point", "mean GMACs", "MACs saved", "mask AP minus full", "boundary AP minus full"]
    text = (
        "As in Tab. 5 of the paper, which saves 19 % at no loss and 54 % at 0.008 AP on COCO; these figures are of the "
        "data named above."
    )
    return [Heading("Two operating points"), Paragraph(text), Table(header, body)]


def _complexity(known: dict[str, Any] | None, full: int) -> list[Block]:
    """Chosen size against the known complexity of the outlines."""
    if known is None:
        return []
    titles = {"complexity": "known complexity", "object_size": "object size, √(box area)"}
    body = [
        [title, with_interval(known[name], 3), with_interval(known[f"{name}_within"], 3)]
        for name, title in titles.items()
    ]
    share = known["mean_macs"] / full
    sizes = [[size, number(mean, 3)] for size, mean in known["complexity_by_size"].items()]
    return [
        Heading("Known complexity"),
        Paragraph(f"The size chosen in true boxes at half the full MACs (here {share:.0%} of them are spent)."),
        Table(["chosen size against", "Spearman", "within classes"], body),
        Table(["chosen size", "mean complexity"], sizes),
    ]
