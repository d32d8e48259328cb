"""``report table6``: pictures a second and the mask branch's time, beside torchvision's Mask R-CNN (Tab. 6).

All models are held to the same number of detections, and those on one detector to the same boxes: torchvision's model
is given the detector of the first DynaMask weights, so only its mask branch, with its own paste, is another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
from dynamask.models.masks import policies
from dynamask.predict import Predictor
from dynamask.reports.comparing import Line, Row, interval, measured, paper_table, provenance_table
from dynamask.reports.figure7 import chosen_pictures
from dynamask.reports.options import SpeedOptions
from dynamask.reports.paper import PAPER
from dynamask.reports.world import World, finest, size_label, world_facts
from dynamask.reports.writer import Block, Heading, Paragraph, Report, Table, number, with_interval
from dynamask.structures import MASK_SIZES, DynaMaskError

TORCHVISION = "Mask R-CNN (torchvision)"
SHARE = 0.64 / 1.40
"""What the paper's bounded model spends, as a share of its full branch."""


def same_detector(predictor: Predictor) -> MaskRCNN:
    """torchvision's Mask R-CNN with a predictor's backbone, proposals and box branch; its mask head is untrained."""
    model = predictor.model
    twin = build_mask_rcnn(model.config).to(predictor.device).eval()
    own = twin.state_dict()
    shared = {k: v for k, v in model.detector.state_dict().items() if k in own and v.shape == own[k].shape}
    left = [key for key in own if key not in shared and ".mask_" not in key]
    if left:
        raise DynaMaskError(f"the detector has no tensor {left[0]} that torchvision's Mask R-CNN needs")
    twin.load_state_dict({**own, **shared})
    return twin


@contextmanager
def kept_detections(heads: list[Any], count: int) -> Iterator[None]:
    """Let RoI heads keep the ``count`` best detections, whatever their scores."""
    before = [(head.score_thresh, head.detections_per_img) for head in heads]
    try:
        for head in heads:
            head.score_thresh, head.detections_per_img = 0.0, count
        yield
    finally:
        for head, (score, limit) in zip(heads, before):
            head.score_thresh, head.detections_per_img = score, limit


def whole_case(line: Line, pictures: list[np.ndarray]) -> Case:
    """Picture to pasted masks."""
    budget = None if line.limit is None else line.limit / 1e9
    policy = "learned" if line.limit is not None else line.policy

    def once(turn: int) -> None:
        picture = pictures[turn % len(pictures)]
        _ = line.evidence.predictor(picture, policy=policy, budget=budget, score=0.0).masks

    return once


def torchvision_case(model: MaskRCNN, pictures: list[np.ndarray], device: torch.device) -> Case:
    """Picture to pasted masks as torchvision does it."""

    @torch.inference_mode()
    def once(turn: int) -> None:
        tensor = torch.from_numpy(pictures[turn % len(pictures)]).to(device).permute(2, 0, 1).float() / 255.0
        (model([tensor])[0]["masks"][:, 0] > 0.5).cpu()

    return once


@torch.inference_mode()
def branch_case(line: Line, pictures: list[np.ndarray]) -> Case:
    """From the feature pyramid and the detections to mask probabilities; no picture is encoded in it."""
    predictor = line.evidence.predictor
    model, macs = predictor.model, predictor.costs.macs_per_instance
    size, ready = policies.Policy.parse(line.policy).size, []
    for picture in pictures:
        encoded, _ = model.detector.encode([_tensor(picture, predictor.device)])
        found = model.detector.detect(encoded)[0]
        ready.append((encoded, found["boxes"], found["labels"]))

    @torch.inference_mode()
    def once(turn: int) -> None:
        encoded, boxes, labels = ready[turn % len(ready)]
        state = model.regions(encoded, [boxes], [labels])
        if line.limit is not None:
            choice = policies.exact_budget(state.switch_logits, macs, line.limit)
        elif size is None:
            choice = policies.learned(state.switch_logits)
        else:
            choice = policies.fixed(len(boxes), size).to(boxes.device)
        model.mask_branch.masks(state, choice)

    return once


@torch.inference_mode()
def torchvision_branch_case(model: MaskRCNN, pictures: list[np.ndarray], device: torch.device) -> Case:
    """The same of torchvision's mask branch."""
    heads, ready = model.roi_heads, []
    for picture in pictures:
        batch, _ = model.transform([_tensor(picture, device)])
        features = model.backbone(batch.tensors)
        proposals, _ = model.rpn(batch, features)
        (boxes,), _, _ = heads.postprocess_detections(
            *heads.box_predictor(heads.box_head(heads.box_roi_pool(features, proposals, batch.image_sizes))),
            proposals,
            batch.image_sizes,
        )
        ready.append((features, boxes, batch.image_sizes))

    @torch.inference_mode()
    def once(turn: int) -> None:
        features, boxes, sizes = ready[turn % len(ready)]
        heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(features, [boxes], sizes))).sigmoid()

    return once


def _tensor(picture: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(picture).to(device).permute(2, 0, 1).float() / 255.0


def speed_lines(world: World) -> tuple[list[Line], list[str]]:
    """The models that are timed beside torchvision's, and the mask branches that were not given."""
    main, lines, lacking = world.main, [], []
    for name, label, paper in (("fcn:28", "FCN head, 28", ""), ("pointrend", "PointRend", "PointRend")):
        evidence = world.branch(name)
        if evidence is None:
            lacking.append(name)
        else:
            lines.append(Line(label, evidence, finest(evidence), paper=paper))
    lines += [
        Line("DynaMask, all at 112", main, f"fixed:{MASK_SIZES[-1]}", paper="DynaMask"),
        Line(f"DynaMask, {size_label('learned')}", main),
        Line(f"DynaMask, held to {SHARE:.0%}", main, limit=SHARE * main.macs[-1], paper="DynaMask (C_t = 0.4)"),
    ]
    return lines, lacking


def time_all(world: World, lines: list[Line], options: SpeedOptions) -> list[Row]:
    """Rows "end to end" and "mask branch" of torchvision's model and every line, against torchvision's."""
    predictor = world.main.predictor
    device = predictor.device
    indices = chosen_pictures(world.dataset, world.indices, options.pictures)
    pictures = [read_picture(world.dataset[i][0]) for i in indices]
    twin = same_detector(predictor)
    heads = [twin.roi_heads, *dict.fromkeys(line.evidence.predictor.model.detector.roi_heads for line in lines)]
    rows = []
    makers: dict[str, tuple[Callable[..., Case], Callable[..., Case]]] = {
        "end to end": (torchvision_case, whole_case),
        "mask branch": (torchvision_branch_case, branch_case),
    }
    with kept_detections(heads, options.detections):
        for part, (theirs, ours) in makers.items():
            cases = {TORCHVISION: theirs(twin, pictures, device)}
            cases |= {line.label: ours(line, pictures) for line in lines}
            times = interleave(cases, options.rounds, warmup=max(2, len(pictures)), device=device)
            rows += rows_of(part, times, TORCHVISION)
    return rows


def make_table6(world: World, options: SpeedOptions) -> Report:
    """The report.

    Raises:
        DynaMaskError: no weights with a switch, or no picture with an instance.
    """
    paper, (lines, lacking) = PAPER["table6"], speed_lines(world)
    judged = [measured(line, ("segm_ap", "boundary_ap"), paper) for line in lines]
    facts_of_machine, device = machine(), world.main.predictor.device
    timed = time_all(world, lines, options)
    used = list(dict.fromkeys(line.evidence for line in lines))
    timing = f"{options.rounds} rounds over {options.pictures} pictures, {options.detections} detections each"
    where = f"{device.type}, {device_name(device)}"
    facts = world_facts(world, used, machine=machine_line(facts_of_machine), device=where, timed=timing)
    times = {(row["part"], row["case"]): row for row in timed}
    rows_by_name: dict[str, Row | None] = {TORCHVISION: None, **{row["row"]: row for row in judged}}
    beside = {TORCHVISION: "Mask R-CNN", **{line.label: line.paper for line in lines}}
    body = [_cells(name, row, beside[name], times) for name, row in rows_by_name.items()]
    header = ["", "GMACs", "mask AP", "pictures/s", "ms a picture", "× torchvision's", "mask branch, ms",
              "× torchvision's", f"paper's FPS ({paper.beside})", "paper's × Mask R-CNN"]  # fmt: skip
    blocks: list[Block] = [
        Paragraph(
            "Medians, end to end from the picture to pasted masks, and of the mask branch alone; the ratios are "
            "medians over rounds of the ratio within the round. torchvision's model has this detector and an untrained "
            "mask head: its speed counts, not its AP. A budget is kept in every picture where it is timed, and over "
            "the data set where it is judged."
        ),
        Table(header, body),
        Paragraph(f"Timed on {machine_line(facts_of_machine)}; device {where}; {timing}."),
        *(
            Paragraph(f"No weights with the mask branch {name} were given, so that it is not timed.")
            for name in lacking
        ),
        Heading("Checkpoints"),
        provenance_table(world, used),
        Heading(f"The paper's {paper.number}"),
        Paragraph(
            "AP in per cent, G in giga multiply–accumulates, as printed; another machine, other data and models."
        ),
        paper_table(paper),
    ]
    data = {"facts": dict(facts), "machine": facts_of_machine, "options": asdict(options), "times": timed,
            "rows": judged, "lacking": lacking, "paper": asdict(paper)}  # fmt: skip
    rows = [{**row, "device": device.type, "machine": machine_line(facts_of_machine)} for row in timed]
    return Report("table6", "Tab. 6: speed", facts, blocks, rows, data)


def _cells(name: str, row: Row | None, beside: str, times: dict[tuple[str, str], Row]) -> list[str]:
    """A row of the table, ``beside`` being the paper's; torchvision's model is timed and not judged."""
    paper, whole, branch = PAPER["table6"], times["end to end", name], times["mask branch", name]
    frames, first = paper.figure(beside, "FPS"), paper.figure("Mask R-CNN", "FPS")
    known = isinstance(frames, float) and isinstance(first, float)
    return [
        name,
        "–" if row is None else f"{row['mean_macs'] / 1e9:.4f}",
        "–" if row is None else with_interval(interval(row, "segm_ap"), 3),
        f"{1e3 / whole['median_ms']:.1f}",
        f"{whole['median_ms']:.1f}",
        f"{whole['ratio']:.2f}",
        f"{branch['median_ms']:.1f}",
        f"{branch['ratio']:.2f}",
        number(frames, 1) if known else "–",
        number(first / frames, 2) if known else "–",
    ]
