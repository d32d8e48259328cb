"""Table VIII of SODAR, and what the paper has not: SODAR against DynaMask at equal MACs of a whole picture."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from dynamask.models.masks.policies import Policy
from dynamask.reports.one_stage.comparing import Contrast, Line, Plan, Row, interval, line_of
from dynamask.reports.one_stage.kinds import name_of
from dynamask.reports.one_stage.world import Evidence, Group, Member, OneStageWorld
from dynamask.reports.size_choices import mean_macs
from dynamask.reports.verdicts import told
from dynamask.reports.writer import Paragraph, Table, with_interval
from dynamask.structures import DynaMaskError
from dynamask.viz.charts import ap_against_macs

NOT_BUILT = (
    ("TensorMask, TensorMask+agg", "not built: there is no TensorMask here"),
    ("CondInst, CondInst+agg", "built as `dynamask.models.solo.condinst.CondInst`, without a preset and without "
     "weights files, so none can be given"),
    ("MR-CNN, MaskLab+, YOLACT, PolarMask, MEInst, BlendMask, CenterMask", "not built here (Mask R-CNN's FCN head is "
     "one of the baselines of `dynamask report table2`)"),
)  # fmt: skip
"""The paper's rows that no weights can be given for."""
BUDGETS = (0.8, 0.6, 0.4)
"""Mean MACs of a mask that a switch is held to, as shares of the full branch."""


def everything_plan(world: OneStageWorld) -> Plan:
    """All given weights by the MACs of a whole picture, and SODAR against DynaMask at equal ones."""
    if not world.evidences:
        raise DynaMaskError("no weights were given; give one-stage weights, and DynaMask's to hold them against")
    one_stage = [line_of(group, _paper_row(group)) for group in world.groups]
    lines = [_costed(line) for line in one_stage]
    for evidence in world.two_stage:
        lines += [_costed(line) for line in _two_stage_lines(evidence)]
    contrasts, lacking = [], []
    rivals = [e for e in world.two_stage if e.predictor.has_switch]
    for line, group in zip(lines, world.groups):
        for rival in rivals[:1]:
            equal = equal_line(line, rival)
            contrasts.append(Contrast(f"{group.label} − {equal.label}", line, equal))
            lines += [_costed(equal)] if equal.data["cost"] == "equal" else []
    if not rivals:
        lacking.append("No weights of DynaMask were given, so nothing stands at equal MACs; add `shapes` to --weights.")
    blocks = [Paragraph(COSTS), Paragraph("Rows of the paper's table that are not here:"),
              Table(["", "why"], [list(row) for row in NOT_BUILT])]  # fmt: skip
    return Plan(lines, contrasts, lacking, lambda rows: _said(rows, contrasts), _figures, blocks)


COSTS = (
    "MACs are means over the pictures and count convolutions and matrix products of the network as it runs. Of "
    "DynaMask: backbone and FPN, RPN and box head on the proposals of each picture, the mask branch on each detection "
    "with its projections, and the switch where it chooses. Of one-stage models: backbone and FPN, head, and the "
    "decoding of every cell above the score threshold, and of those that stay again where the candidates' masks are "
    "too many to hold. Not in the total: the mask IoUs of matrix NMS, at most as many as their column says. At equal "
    "MACs the switch's one price on MACs is set so that "
    "a mean picture costs as much; beyond what the switch spends by itself it is a reward. Either model sees pictures "
    "at the size of its own configuration."
)


def _paper_row(group: Group) -> str:
    name = name_of(group.config)
    return {"SODAR, +cls, deformable": "SODAR", "SODAR*, +cls, deformable": "SODAR*"}.get(name, name)


def _two_stage_lines(evidence: Evidence) -> list[Line]:
    """Every fixed size, the switch's own sizes, and the switch held to budgets."""
    label, sizes = f"DynaMask {evidence.label}", evidence.predictor.mask_sizes
    lines = [Line(f"{label}, all at {size}", (Member(evidence, f"fixed:{size}"),)) for size in sizes]
    if not evidence.predictor.has_switch:
        return lines
    lines.append(Line(f"{label}, sizes of the switch", (Member(evidence),)))
    macs = evidence.predictor.costs.macs_per_instance
    own = _spent(evidence)
    for share in BUDGETS:
        limit = share * macs[-1]
        if macs[0] < limit < own:
            lines.append(Line(f"{label}, switch held to {share:.0%}", (Member(evidence, limit=limit),)))
    return lines


def _spent(evidence: Evidence) -> float:
    """Mean MACs of a mask that the switch spends by itself; 0 without a detection."""
    choice = np.array(evidence.found.choice, dtype=np.int64)
    return mean_macs(choice, evidence.predictor.costs.macs_per_instance) if len(choice) else 0.0


def equal_line(line: Line, rival: Evidence) -> Line:
    """DynaMask at the MACs of a picture that a one-stage row spends, or as close from its side as it gets."""
    total = float(np.mean([member.macs()["total"] for member in line.members]))
    parts, macs = Member(rival).macs(), rival.predictor.costs.macs_per_instance
    count = len(rival.found.results) / max(len(rival.found.pictures), 1)
    shared = parts["total"] - _spent(rival) * count
    limit = (total - shared) / max(count, 1e-9)
    label = f"DynaMask {rival.label}"
    if limit <= macs[0]:
        smallest = rival.predictor.mask_sizes[0]
        return _relative(f"{label}, all at {smallest}", Member(rival, f"fixed:{smallest}"), line, "dearer")
    if limit >= macs[-1]:
        largest = rival.predictor.mask_sizes[-1]
        return _relative(f"{label}, all at {largest}", Member(rival, f"fixed:{largest}"), line, "cheaper")
    return _relative(f"{label}, at the MACs of {line.label}", Member(rival, limit=limit), line, "equal")


def _relative(label: str, member: Member, line: Line, how: str) -> Line:
    return Line(label, (member,), data={"held_to": line.label, "cost": how})


def _costed(line: Line) -> Line:
    """A row with its group for the figure, and what matrix NMS adds."""
    group = line.label
    if not line.evidences[0].one_stage:
        fixed = line.members[0].limit is None and Policy.parse(line.members[0].policy).size is not None
        group = f"{line.label.partition(',')[0]}, {'one size for all' if fixed else 'the switch at several budgets'}"
    parts = [member.macs()["suppress"] for member in line.members]
    suppress = float(np.mean(parts)) if parts else 0.0
    more = {**line.more, "matrix NMS, at most": f"{suppress / 1e9:.3f}" if suppress else "–"}
    return Line(line.label, line.members, line.paper, more, {**line.data, "group": group})


def _said(rows: list[Row], contrasts: list[Contrast]) -> list[str]:
    said = []
    for row, contrast in zip(rows, contrasts):
        first, second = (np.mean([m.macs()["total"] for m in side.members]) / 1e9
                         for side in (contrast.first, contrast.second))  # fmt: skip
        how = {
            "equal": "at equal MACs of a picture",
            "dearer": "though DynaMask cannot spend so little: its cheapest is dearer",
            "cheaper": "though DynaMask cannot spend so much: its dearest is cheaper",
        }[contrast.second.data["cost"]]
        gains = " and ".join(
            f"{name} {with_interval(interval(row, m), 4, True)} ({told(row, m)})"
            for m, name in (("segm_ap", "mask AP"), ("boundary_ap", "boundary AP"))
        )
        said.append(f"{row['row']}, {how} ({first:.3f} G against {second:.3f} G): {gains}.")
    return said


def _figures(rows: list[Row], _: list[Row]) -> list[go.Figure]:
    shown = [row for row in rows if row.get("cost") in (None, "equal")]
    return [ap_against_macs(shown, "Mask AP against the MACs of a whole picture")]
