"""``report figure7``: pictures with the masks in the colours of their sizes (Fig. 7)."""

from __future__ import annotations

import cv2
import numpy as np

from dynamask.data.sources import Data
from dynamask.reports.comparing import provenance, provenance_table
from dynamask.reports.paper import FIGURES
from dynamask.reports.world import World, world_facts
from dynamask.reports.writer import Block, Heading, Paragraph, Picture, Report, Table
from dynamask.structures import MASK_SIZES, DynaMaskError
from dynamask.viz.overlay import draw_overlay

LEGEND = {
    14: ("tiny", "yellow", "yellow, dotted"),
    28: ("small", "green", "teal, dashed"),
    56: ("medium", "blue", "blue, full"),
    112: ("large", "red", "crimson, double"),
}
"""Name and colour of each mask size in the paper, and how it is drawn here."""


def chosen_pictures(dataset: Data, indices: list[int], count: int) -> list[int]:
    """Indices of ``count`` pictures spread evenly over those that hold at least one true instance.

    Raises:
        DynaMaskError: a count below 1, or no picture holds an instance.
    """
    if count < 1:
        raise DynaMaskError(f"--pictures is {count}; give a whole number of at least 1")
    there = {annotation["image_id"] for annotation in dataset.coco["annotations"] if not annotation.get("iscrowd")}
    held = [i for i in indices if dataset.image_ids[i] in there]
    if not held:
        raise DynaMaskError("no picture holds an instance; give other data")
    places = np.linspace(0, len(held) - 1, min(count, len(held))).round().astype(int)
    return [held[i] for i in places]


def make_figure7(world: World, count: int = 6, budget: float | None = None, score: float = 0.5) -> Report:
    """The report.

    Args:
        count: pictures.
        budget: mean GMACs per instance, kept in every picture; by default the switch chooses freely.
        score: detections below it are not drawn.

    Raises:
        DynaMaskError: no weights with a switch, or no picture with an instance.
    """
    evidence = world.main
    blocks, rows = [], []
    for index in chosen_pictures(world.dataset, world.indices, count):
        prediction = evidence.predictor(world.dataset[index][0], budget=budget, score=score)
        names = [prediction.class_names[label] for label in prediction.labels.tolist()]
        drawn = draw_overlay(prediction.picture, prediction.masks.numpy(), prediction.mask_size.numpy(), labels=names)
        image_id = world.dataset.image_ids[index]
        sizes = ", ".join(f"{n} {size}" for n, size in zip(names, prediction.mask_size.tolist())) or "nothing found"
        blocks.append(Picture(_jpeg(drawn), f"picture {image_id}: {sizes}"))
        rows += [
            {**provenance(evidence), "image_id": image_id, "class": name, "score": score_, "mask_size": size}
            for name, score_, size in zip(names, prediction.scores.tolist(), prediction.mask_size.tolist())
        ]
    chosen_by = "the switch" if budget is None else f"the switch under {budget} mean GMACs a picture"
    facts = world_facts(world, [evidence], sizes_chosen_by=chosen_by, drawn=f"detections with score ≥ {score}")
    legend = [[f"{size}×{size}", LEGEND[size][2], f"{LEGEND[size][1]} ({LEGEND[size][0]})"] for size in MASK_SIZES]
    document: list[Block] = [
        Paragraph(FIGURES["figure7"]),
        Table(["mask size", "here", "in the paper"], legend),
        Heading("Pictures"),
        *blocks,
        Heading("Checkpoint"),
        provenance_table(world, [evidence]),
    ]
    data = {"facts": dict(facts), "instances": rows}
    return Report("figure7", f"Fig. 7: mask sizes chosen by {evidence.label}", facts, document, rows, data)


def _jpeg(picture: np.ndarray) -> bytes:
    """An (H, W, 3) uint8 RGB picture as JPEG."""
    return cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])[1].tobytes()
