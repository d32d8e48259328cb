"""Tables II–V of SODAR: which rows there are, what is compared, and what the differences say."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import plotly.graph_objects as go

from dynamask.config import AggregationConfig
from dynamask.models.solo.costs import decoded_values
from dynamask.reports.one_stage.comparing import Contrast, Line, Plan, Row, interval, line_of
from dynamask.reports.one_stage.kinds import (
    interpolation,
    name_of,
    plain_preset,
    preset_for,
    same_base,
    same_design,
    train_command,
    trained_like,
)
from dynamask.reports.one_stage.paper import STAR_IOUS, gains
from dynamask.reports.one_stage.world import Group, Member, OneStageWorld
from dynamask.reports.verdicts import told
from dynamask.reports.writer import number, with_interval
from dynamask.structures import DynaMaskError, Interval
from dynamask.viz.charts import ap_against_macs, gains_by_iou

SCHEMES = ("average", "score", "iou")
_CORNERS = AggregationConfig(neighbours="corners")
_BETWEEN = AggregationConfig(interpolation="between")
_SIGNS = {"+cls": "cls", "−mask": "mask"}


def voting_plan(world: OneStageWorld, ious: Sequence[float]) -> Plan:
    """Tab. II: mask voting on plain weights, every scheme at every overlap from which a candidate votes."""
    groups = [group for group in world.groups if group.config.aggregation is None]
    if not groups:
        raise DynaMaskError("mask voting is for plain SOLO and SOLOv2, and none were given; give such weights")
    lines, contrasts = [], []
    for group in groups:
        base = Line(f"{group.label}, no voting", group.members)
        lines.append(base)
        for scheme in SCHEMES:
            for iou in ious:
                voting = tuple(Member(evidence.voting(scheme, iou)) for evidence in group.evidences)
                label = f"{group.label}, {scheme}" + (f" from IoU {iou:g}" if len(ious) > 1 else "")
                lines.append(Line(label, voting, data={"voting": scheme, "voting_iou": iou}))
                contrasts.append(Contrast(f"{label} − no voting", lines[-1], base))
    searched = len(ious) > 1

    def verdict(rows: list[Row]) -> list[str]:
        best = max((r for r in rows if r["segm_ap"] is not None), key=lambda r: r["segm_ap"], default=None)
        if best is None:
            return []
        chosen = " The overlap was searched on the same pictures, which flatters it." if searched else ""
        change = f"{with_interval(interval(best, 'segm_ap'), 4, True)}: {told(best)}"
        return [
            "The paper gains 0.2 points of AP by averaging and at most 0.3 with weights. Here the best scheme, "
            f"{best['row']}, changes mask AP by {change}.{chosen}"
        ]

    return Plan(lines, contrasts, verdict=verdict)


def as_is(groups: Sequence[Group]) -> list[Group]:
    """SODAR as the paper builds it, without mask interpolation and moving neighbours."""
    usual = AggregationConfig()
    return [g for g in groups if same_design(g.config.aggregation, usual) and not interpolation(g.config)]


def reference(world: OneStageWorld) -> Group:
    """The model that lacking rows are described like: SODAR as is, else any SODAR, else any.

    Raises:
        DynaMaskError: there are no one-stage weights.
    """
    groups = world.groups
    if not groups:
        raise DynaMaskError("no one-stage weights were given; give weights of SOLO, SOLOv2 or SODAR")
    return [*as_is(groups), *(g for g in groups if g.config.aggregation), *groups][0]


def lacking_command(world: OneStageWorld, what: str, variant: str, **changed: object) -> str:
    """A sentence on weights that were not given, with the command that trains them like those that were."""
    like = reference(world)
    model = preset_for(like.config, variant)
    command = train_command(model, (like.config, like.evidences[0].training), changed, what)
    return f"No weights of {what} were given; `{command}` trains them, from the same --init as the others."


def aggregation_plan(world: OneStageWorld) -> Plan:
    """Tab. III: plain models and SODAR on them."""
    groups = world.groups
    plain = [g for g in groups if g.config.aggregation is None]
    sodar = as_is(groups)
    if not plain and not sodar:
        raise DynaMaskError("neither plain weights nor SODAR as it is were given; give both, of one backbone")
    lines = {id(g): line_of(g, _paper_row(g)) for g in (*plain, *sodar)}
    contrasts, lacking = [], []
    for base in plain:
        own = [g for g in sodar if same_base(g.config, base.config)]
        contrasts += [Contrast(f"{g.label} − {base.label}", lines[id(g)], lines[id(base)]) for g in own]
        if not own:
            lacking.append(lacking_command(world, f"SODAR on {base.label}", ""))
    lonely = [g for g in sodar if not any(same_base(g.config, base.config) for base in plain)]
    lacking += [_plain_command(g) for g in lonely]

    def figures(_: list[Row], differences: list[Row]) -> list[go.Figure]:
        if not differences:
            return []
        pairs = (("SODAR*-R50", "SOLOv2-R50"), ("SODAR-R50", "SOLO-R50"))
        return [gains_by_iou(differences, [(f"paper, COCO: {a} − {b}, AP*", STAR_IOUS, gains(a, b)) for a, b in pairs])]

    ordered = sorted((*plain, *sodar), key=lambda g: (g.config.kind, g.config.aggregation is not None))
    return Plan([lines[id(g)] for g in ordered], contrasts, lacking, quality_said, figures)


def _plain_command(group: Group) -> str:
    model = plain_preset(group.config).name
    command = train_command(model, (group.config, group.evidences[0].training), {}, "plain")
    return f"No plain weights were given to hold {group.label} against; `{command}` trains them."


def _paper_row(group: Group, backbone: str = "") -> str:
    """The paper's row of a model, named by its words; models that are no row of the paper have no such name."""
    own = backbone or ("R101" if group.config.backbone == "resnet101" else "R50")
    name, comma, rest = name_of(group.config).partition(",")
    return f"{name}-{own}{comma}{rest}"


def quality_said(differences: list[Row]) -> list[str]:
    """Whether gains grow with the IoU threshold, as in the paper's Table III; one sentence a difference."""
    said = []
    for row in differences:
        rises = {iou: Interval(**row["rise"][iou]) for iou in ("80", "90")}
        means = [rise.mean for rise in rises.values()]
        if any(mean is None for mean in means):
            continue
        if all(rise.sign > 0 for rise in rises.values()):
            verdict = "The pattern holds on these data"
        elif any(rise.sign < 0 for rise in rises.values()):
            verdict = "The pattern does not hold on these data"
        elif min(means) <= 0:
            verdict = "The pattern does not hold in these figures, though these pictures do not decide it"
        else:
            verdict = "The figures point that way, but these pictures do not decide it"
        steps = " and ".join(f"{with_interval(rise, 4, True)} at 0.{iou}" for iou, rise in rises.items())
        at = ", ".join(f"{number(row[f'segm_ap{i}'], 4, True)} at 0.{i}" for i in (50, 70, 80, 90))
        gain = with_interval(interval(row, "segm_ap"), 4, True)
        said.append(
            f"{row['row']}: mask AP {gain}, {told(row)}; by threshold {at}. The paper's point is that gains are larger "
            f"at high thresholds. {verdict}: against the gain at 0.50 there are {steps}."
        )
    return said


def _memory(world: OneStageWorld, group: Group) -> tuple[dict[str, str], dict[str, int]]:
    """What decoding holds in memory on the first picture, for the cells of a row and for its data."""
    image, _ = world.dataset[world.indices[0]]
    batch, _ = group.evidences[0].predictor.model.transform([image.float() / 255.0])
    height, width = batch.tensors.shape[-2:]
    values = decoded_values(group.config, int(height), int(width))
    cells = {f"M values, {name}": f"{values[key] / 1e6:.3f}" for key, name in
             (("dense", "all cells"), ("held", "held here"))}  # fmt: skip
    return cells, {f"decoded_values_{key}": value for key, value in values.items()}


def interpolation_plan(world: OneStageWorld) -> Plan:
    """Tab. IV: SODAR as is, with a finer classification grid, with a coarser mask grid."""
    kept = (None, AggregationConfig(), _CORNERS, _BETWEEN)
    groups = [g for g in world.groups if any(same_design(g.config.aggregation, one) for one in kept)]
    if not any(g.config.aggregation for g in groups):
        raise DynaMaskError("no weights of SODAR were given; give some, as is, with +cls or with −mask")
    lines, contrasts, lacking = {}, [], []
    for group in groups:
        cells, values = _memory(world, group)
        itp = interpolation(group.config) or ("as is" if group.config.aggregation else "–")
        more = {"mask-itp": itp, **cells}
        named = (group.label, group.members, _paper_row(group, "R101"))
        lines[id(group)] = Line(*named, more, {"mask_itp": itp, **values})
    sodar = [g for g in groups if g.config.aggregation]
    for group in sodar:
        if interpolation(group.config):
            bases = [g for g in as_is(groups) if same_base(g.config, group.config, grids=False)]
            contrasts += [Contrast(f"{group.label} − {b.label}", lines[id(group)], lines[id(b)]) for b in bases[:1]]
    there = {interpolation(g.config) for g in sodar}
    lacking += [lacking_command(world, f"SODAR {sign}", _SIGNS[sign]) for sign in _SIGNS if sign not in there]
    if "" not in there:
        lacking.append(lacking_command(world, "SODAR as is", ""))
    return Plan(list(lines.values()), contrasts, lacking, _kept_said, _macs_figure("Mask interpolation"))


def _kept_said(differences: list[Row]) -> list[str]:
    """What each variant changes, in a sentence."""
    return [
        f"{row['row']}: mask AP {with_interval(interval(row, 'segm_ap'), 4, True)}, {told(row)}; boundary AP "
        f"{with_interval(interval(row, 'boundary_ap'), 4, True)}, {told(row, 'boundary_ap')}."
        for row in differences
    ]


def _macs_figure(title: str) -> Callable[[list[Row], list[Row]], list[go.Figure]]:
    """Draws rows by AP and MACs."""

    def figures(rows: list[Row], _: list[Row]) -> list[go.Figure]:
        return [ap_against_macs([{**row, "group": row["row"]} for row in rows], f"{title}: mask AP against MACs")]

    return figures


def deformable_plan(world: OneStageWorld) -> Plan:
    """Tab. V: moving neighbours against fixed ones."""
    groups = [g for g in world.groups if g.config.aggregation is not None]
    if not groups:
        raise DynaMaskError("no weights of SODAR were given; give some with deformable neighbours and some without")
    moving = [g for g in groups if g.config.aggregation.deformable]
    pairs = [(m, g) for m in moving for g in groups if _fixed(m) == _fixed(g) and not g.config.aggregation.deformable]
    shown = [g for g in groups if g in moving or any(g is b for _, b in pairs)] or as_is(groups) or groups[:1]
    lines = {id(g): _deformable_line(g) for g in shown}
    contrasts = [Contrast(f"{m.label} − {g.label}", lines[id(m)], lines[id(g)]) for m, g in pairs]
    lacking = []
    if not moving:
        lacking.append(lacking_command(world, "deformable neighbours", "deformable"))
    for group in moving:
        if not any(m is group for m, _ in pairs):
            variant = _SIGNS.get(interpolation(group.config), "")
            lacking.append(lacking_command(world, f"{group.label} without deformable neighbours", variant))
    return Plan(list(lines.values()), contrasts, lacking, _kept_said, _macs_figure("Deformable neighbours"))


def _deformable_line(group: Group) -> Line:
    return line_of(group, _paper_row(group, "R101"), **{"mask-itp": interpolation(group.config) or "–",
                   "moving": "yes" if group.config.aggregation.deformable else "–"})  # fmt: skip


def _fixed(group: Group) -> dict[str, object]:
    """A configuration with its neighbours at rest."""
    values = trained_like(group.config)
    return {**values, "aggregation": {**values["aggregation"], "deformable": False}}
