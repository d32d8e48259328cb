"""AP by how frequent a class is, where the categories say so, as LVIS's do (Tab. S2)."""

from __future__ import annotations

from dynamask.evaluation.lvis import evaluate_lvis, is_federated
from dynamask.reports.comparing import Contrast, Line, Plan
from dynamask.reports.world import Evidence, World, finest
from dynamask.reports.writer import number

FREQUENCIES = {"r": "APr", "c": "APc", "f": "APf"}
"""What LVIS calls rare (1–10 pictures in training), common (11–100) and frequent, with the names of their AP."""


def categories_by_frequency(world: World) -> dict[str, list[int]]:
    """Category ids by "r", "c" and "f"; empty lists where the categories carry no frequency."""
    categories = world.dataset.coco["categories"]
    return {key: [c["id"] for c in categories if c.get("frequency") == key] for key in FREQUENCIES}


def frequency_ap(evidence: Evidence, policy: str) -> dict[str, float | None]:
    """Mask AP under "APr", "APc" and "APf"; None where no such class has a true instance.

    On LVIS they are its own, by the federated rule, with "LVIS AP" before them; elsewhere COCO's AP of these classes.
    """
    world = evidence.world
    if is_federated(world.dataset.coco):
        found = evidence.found
        chosen = zip(found.results, found.rles, evidence.choice(policy).tolist(), strict=True)
        results = [{**result, "segmentation": rles[k]} for result, rles, k in chosen]
        figures = evaluate_lvis(world.dataset.coco, results, ("segm",), world.image_ids)["segm"]
        return {"LVIS AP": figures["AP"], **{name: figures[name] for name in FREQUENCIES.values()}}
    judge = evidence.drawn.ap
    matches = judge.match(evidence.choice(policy), "segm")
    found = {}
    for key, categories in categories_by_frequency(world).items():
        value = float(judge.average_precision(matches, categories=categories)[0])
        found[FREQUENCIES[key]] = value if value == value else None
    return found


def rare_plan(world: World) -> Plan:
    """Mask R-CNN's FCN head and the r-FPN at their finest sizes."""
    ours, fcn = world.plain, world.branch("fcn:28")
    lines = [_line("DynaMask, all at 112", ours, "DynaMask")]
    if fcn is not None:
        lines.insert(0, _line("Mask R-CNN (FCN head, 28)", fcn, "Mask R-CNN"))
    contrasts = [Contrast("DynaMask − Mask R-CNN", lines[1], lines[0])] if fcn is not None else []
    known = any(categories_by_frequency(world).values())
    missing = "The categories of these data carry no `frequency`, so that APr, APc and APf are empty; LVIS's do."
    return Plan(
        lines,
        contrasts,
        [] if fcn is not None else ["fcn:28"],
        measures=("segm_ap", "boundary_ap"),
        verdict=lambda _rows, _differences: [] if known else [missing],
    )


def _line(label: str, evidence: Evidence, paper: str) -> Line:
    policy = finest(evidence)
    cells = {name: number(value, 3) for name, value in frequency_ap(evidence, policy).items()}
    return Line(label, evidence, policy, paper=paper, more=cells)
