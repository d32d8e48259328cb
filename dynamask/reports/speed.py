"""``report table6``: pictures per second and the time of the mask branch, beside torchvision's Mask R-CNN (Tab. 6).

All models keep the same number of detections, and those on one detector have the same boxes: torchvision's model gets
the detector of the first DynaMask weights, so only its mask branch and the pasting of its masks differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.models.detection import MaskRCNN

from dynamask.data.pictures import read_picture
from dynamask.evaluation.efficiency import Case, device_name, interleave, machine, machine_line, rows_of
from dynamask.models.detectors.torchvision_mask_rcnn import build_mask_rcnn
from dynamask.predict import Predictor
from dynamask.reports.comparison import Comparison
from dynamask.reports.dynamask_tables import FULL, SHORT_BUDGET, STYLE, SWITCH, finest
from dynamask.reports.figures import spread_pictures
from dynamask.reports.options import SpeedOptions
from dynamask.reports.paper import PAPER
from dynamask.reports.render import Heading, Paragraph, Report, Table, number, scaled, with_interval
from dynamask.reports.rows import Row, RowPlan, measure_row, row_plan
from dynamask.reports.tables import checkpoint_table, paper_table
from dynamask.structures import DynaMaskError

TORCHVISION = "Mask R-CNN (torchvision)"
_WHOLE, _BRANCH = "end to end", "mask branch"


def same_detector(predictor: Predictor) -> MaskRCNN:
    """torchvision's Mask R-CNN with a predictor's backbone, RPN and box head; its mask head is untrained."""
    model = predictor.model
    if model.config.detector != "faster_rcnn":
        raise DynaMaskError("torchvision's Mask R-CNN needs a Faster R-CNN detector, which the first weights lack")
    twin = build_mask_rcnn(model.config).to(predictor.device).eval()
    own = twin.state_dict()
    shared = {k: v for k, v in model.detector.state_dict().items() if k in own and v.shape == own[k].shape}
    left = [key for key in own if key not in shared and ".mask_" not in key]
    if left:
        raise DynaMaskError(f"the detector has no tensor {left[0]} that torchvision's Mask R-CNN needs")
    twin.load_state_dict({**own, **shared})
    return twin


@contextmanager
def kept_detections(heads: Sequence[Any], count: int) -> Iterator[None]:
    """Let RoI heads keep the ``count`` best detections, whatever their scores."""
    before = [(head.score_thresh, head.detections_per_img) for head in heads]
    try:
        for head in heads:
            head.score_thresh, head.detections_per_img = 0.0, count
        yield
    finally:
        for head, (score, limit) in zip(heads, before):
            head.score_thresh, head.detections_per_img = score, limit


def whole_case(plan: RowPlan, pictures: list[np.ndarray]) -> Case:
    """Time from the picture to pasted masks."""
    (member,) = plan.members
    budget = None if member.limit is None else member.limit / 1e9

    def run(number: int) -> None:
        picture = pictures[number % len(pictures)]
        _ = member.evidence.predictor(picture, policy=member.policy, budget=budget, score=0.0).masks

    return run


@torch.inference_mode()
def branch_case(plan: RowPlan, pictures: list[np.ndarray]) -> Case:
    """Time from the feature pyramid and the boxes to mask probabilities."""
    (member,) = plan.members
    predictor = member.evidence.predictor
    model, macs, inputs = predictor.model, predictor.costs.macs_per_instance, []
    for picture in pictures:
        encoded, _ = model.detector.encode([_to_input(predictor, picture)])
        found = model.detector.detect(encoded)[0]
        inputs.append((encoded, found["boxes"], found["labels"]))

    @torch.inference_mode()
    def run(number: int) -> None:
        encoded, boxes, labels = inputs[number % len(inputs)]
        state = model.regions(encoded, [boxes], [labels])
        choice = member.policy.choose(boxes, encoded.image_sizes[0], state.switch_logits, macs, member.limit)
        model.mask_branch.masks(state, choice.to(boxes.device))

    return run


def torchvision_case(model: MaskRCNN, predictor: Predictor, pictures: list[np.ndarray]) -> Case:
    """:func:`whole_case` of torchvision's model."""

    @torch.inference_mode()
    def run(number: int) -> None:
        picture = _to_input(predictor, pictures[number % len(pictures)])
        (model([picture])[0]["masks"][:, 0] > 0.5).cpu()

    return run


@torch.inference_mode()
def torchvision_branch_case(model: MaskRCNN, predictor: Predictor, pictures: list[np.ndarray]) -> Case:
    """:func:`branch_case` of torchvision's model."""
    heads, inputs = model.roi_heads, []
    for picture in pictures:
        batch, _ = model.transform([_to_input(predictor, picture)])
        features = model.backbone(batch.tensors)
        proposals, _ = model.rpn(batch, features)
        regions = heads.box_head(heads.box_roi_pool(features, proposals, batch.image_sizes))
        predicted = heads.box_predictor(regions)
        (boxes,), _, _ = heads.postprocess_detections(*predicted, proposals, batch.image_sizes)
        inputs.append((features, boxes, batch.image_sizes))

    @torch.inference_mode()
    def run(number: int) -> None:
        features, boxes, sizes = inputs[number % len(inputs)]
        heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(features, [boxes], sizes))).sigmoid()

    return run


def _to_input(predictor: Predictor, picture: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 → (3, H, W) float32 in [0, 1] on the predictor's device."""
    return torch.from_numpy(picture).to(predictor.device).permute(2, 0, 1).float() / 255.0


def timed_rows(comparison: Comparison) -> tuple[list[RowPlan], list[str]]:
    """The models that are timed beside torchvision's, and the mask branches without weights."""
    main, rows, missing = comparison.main, [], []
    for name, label, paper in (("fcn:28", "FCN head, 28", ""), ("pointrend", "PointRend", "PointRend")):
        evidence = comparison.branch(name)
        if evidence is None:
            missing.append(name)
        else:
            rows.append(row_plan(label, evidence, finest(evidence), paper=paper))
    limit = SHORT_BUDGET * main.macs[-1]
    rows += [
        row_plan("DynaMask, all at 112", main, FULL, paper="DynaMask"),
        row_plan(f"DynaMask, {SWITCH}", main),
        row_plan(f"DynaMask, held to {SHORT_BUDGET:.0%}", main, limit=limit, paper="DynaMask (C_t = 0.4)"),
    ]
    return rows, missing


def time_all(comparison: Comparison, plans: list[RowPlan], options: SpeedOptions) -> list[dict[str, Any]]:
    """Times of torchvision's model and every row, "end to end" and of the "mask branch", relative to torchvision's."""
    predictor = comparison.main.predictor
    indices = spread_pictures(comparison.dataset, comparison.indices, options.pictures)
    pictures = [read_picture(comparison.dataset[i][0]) for i in indices]
    twin = same_detector(predictor)
    heads = dict.fromkeys(plan.evidences[0].predictor.model.detector.roi_heads for plan in plans)
    rows = []
    with kept_detections([twin.roi_heads, *heads], options.detections):
        for part, theirs, ours in (
            (_WHOLE, torchvision_case, whole_case),
            (_BRANCH, torchvision_branch_case, branch_case),
        ):
            cases = {TORCHVISION: theirs(twin, predictor, pictures)}
            cases |= {plan.label: ours(plan, pictures) for plan in plans}
            times = interleave(cases, options.rounds, warmup=max(2, len(pictures)), device=predictor.device)
            rows += rows_of(part, times, TORCHVISION)
    return rows


def make_table6(comparison: Comparison, options: SpeedOptions) -> Report:
    """Table 6.

    Raises:
        DynaMaskError: no weights with a switch, or no picture with an instance.
    """
    paper = PAPER["table6"]
    plans, missing = timed_rows(comparison)
    measures = ("segm_ap", "boundary_ap")
    measured = [measure_row(plan, measures, STYLE.row_values(plan, comparison, paper)) for plan in plans]
    hardware, device = machine(), comparison.main.predictor.device
    times = time_all(comparison, plans, options)
    used = list(dict.fromkeys(plan.evidences[0] for plan in plans))
    timing = f"{options.rounds} rounds over {options.pictures} pictures, {options.detections} detections each"
    where = f"{device.type}, {device_name(device)}"
    facts = comparison.facts(used, machine=machine_line(hardware), device=where, timed=timing)
    blocks = [
        Paragraph(
            "Medians, end to end from the picture to pasted masks, and of the mask branch alone; the ratios are "
            "medians over rounds of the ratio within the round. torchvision's model has this detector and an untrained "
            "mask head, so only its speed is meaningful, not its AP. A budget is met in every picture where it is "
            "timed, and over the data set where AP is measured."
        ),
        _table(plans, measured, times),
        Paragraph(f"Timed on {machine_line(hardware)}; device {where}; {timing}."),
        *(Paragraph(f"No weights with the mask branch {name} were given, so it is not timed.") for name in missing),
        Heading("Checkpoints"),
        checkpoint_table(used),
        Heading(f"The paper's {paper.number}"),
        Paragraph(
            "AP in per cent, G in giga multiply–accumulates, as printed; another machine, other data and models."
        ),
        paper_table(paper),
    ]
    data = {
        "facts": dict(facts),
        "machine": hardware,
        "options": asdict(options),
        "times": times,
        "rows": [row.to_dict() for row in measured],
        "lacking": missing,
        "paper": asdict(paper),
    }
    rows = [{**row, "device": device.type, "machine": machine_line(hardware)} for row in times]
    return Report("table6", "Tab. 6: speed", facts, blocks, rows, data)


def _table(plans: list[RowPlan], measured: list[Row], times: list[dict[str, Any]]) -> Table:
    """torchvision's model, which is only timed, and the measured rows, each beside the paper's."""
    paper, by_case = PAPER["table6"], {(row["part"], row["case"]): row for row in times}
    reference = paper.figure("Mask R-CNN", "FPS")
    body = []
    for label, beside, row in (
        (TORCHVISION, "Mask R-CNN", None),
        *((plan.label, plan.paper, row) for plan, row in zip(plans, measured)),
    ):
        whole, branch, fps = by_case[_WHOLE, label], by_case[_BRANCH, label], paper.figure(beside, "FPS")
        body.append(
            [
                label,
                "–" if row is None else scaled(row.values["mean_macs"], 1e9, 4),
                "–" if row is None else with_interval(row.figures["segm_ap"], 3),
                f"{1e3 / whole['median_ms']:.1f}",
                f"{whole['median_ms']:.1f}",
                f"{whole['ratio']:.2f}",
                f"{branch['median_ms']:.1f}",
                f"{branch['ratio']:.2f}",
                number(fps, 1),
                number(None if fps is None else reference / fps, 2),
            ]
        )
    times_header = ["pictures/s", "ms a picture", "× torchvision's", "mask branch, ms", "× torchvision's"]
    printed = [f"paper's FPS ({paper.beside})", "paper's × Mask R-CNN"]
    return Table(["", "GMACs", "mask AP", *times_header, *printed], body)
