"""Put a trained model into checkpoints/: weights, manifest entry and model card, all figures measured here.

    python benchmarks/bundle.py --weights runs/people/last.safetensors --name people --images DIR --annotations JSON \
        --holdout 8 --data "what it was trained on" --licence "of the weights and of the data"
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dynamask.bundled import checkpoint_dir, list_bundled
from dynamask.data.coco import CocoDataset, split_by_image_id
from dynamask.engine.checkpoint import read_header
from dynamask.engine.evaluate import EvaluationOptions, Instances, collect, summarise
from dynamask.engine.memory import keep_freed_memory
from dynamask.models.rcnn import policies
from dynamask.predictor import load
from dynamask.structures import MASK_SIZES

POLICIES = ("learned", "size", *(f"fixed:{size}" for size in MASK_SIZES))


def choice_of(policy: str, found: Instances, dataset: CocoDataset) -> np.ndarray:
    """(N,) size indices of instances that were collected with the learned policy at every size."""
    if policy == "learned":
        return np.array(found.choice, dtype=np.int64)
    if policy.startswith("fixed:"):
        return policies.fixed(len(found.results), int(policy.removeprefix("fixed:"))).numpy()
    sizes = {image["id"]: (image["height"], image["width"]) for image in dataset.coco["images"]}
    rows = [policies.size_based(torch.tensor([[0.0, 0.0, *result["bbox"][2:]]]), sizes[result["image_id"]])
            for result in found.results]
    return torch.cat(rows).numpy() if rows else np.zeros(0, dtype=np.int64)


def measure(weights: Path, dataset: CocoDataset, indices: list[int]) -> dict[str, dict[str, Any]]:
    """Every policy on the kept-back pictures: AP with detections, mask quality in the true boxes."""
    predictor = load(weights)
    macs = tuple(predictor.costs.macs_per_instance)
    found = collect(predictor, dataset, indices, EvaluationOptions(), every_size=True, progress=True)
    given = collect(predictor, dataset, indices, EvaluationOptions(boxes="gt"), every_size=True, progress=True)
    rows = {}
    for policy in POLICIES:
        row = summarise(found, choice_of(policy, found, dataset), macs, dataset, indices)
        on_true = summarise(given, choice_of(policy, given, dataset), macs, dataset, indices, true_boxes=True)
        row["gt_boxes"] = {key: on_true[key] for key in (
            "mean_mask_iou", "mean_boundary_iou", "mean_macs_per_instance", "size_shares")}
        rows[policy] = row
    return rows


def cell(value: float | None) -> str:
    """A figure of the card, to three digits."""
    return "–" if value is None else f"{value:.3f}"


def table(scores: dict[str, Any]) -> list[str]:
    """The measured policies as lines of a Markdown table."""
    columns = ("policy", "box AP", "mask AP", "AP50", "boundary AP", "mean GMACs", "mask IoU, true boxes",
               "boundary IoU, true boxes", "sizes 14 / 28 / 56 / 112")
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for policy, row in scores.items():
        shares = " / ".join(f"{share:.0%}" for share in row["size_shares"].values())
        figures = [row["bbox"]["AP"], row["segm"]["AP"], row["segm"]["AP50"], row["boundary"]["AP"]]
        true_boxes = [row["gt_boxes"]["mean_mask_iou"], row["gt_boxes"]["mean_boundary_iou"]]
        cells = [policy, *map(cell, figures), f"{row['mean_macs_per_instance'] / 1e9:.4f}", *map(cell, true_boxes)]
        lines.append(f"| {' | '.join([*cells, shares])} |")
    return lines


def card(name: str, entry: dict[str, Any]) -> str:
    """The model card in Markdown."""
    return "\n".join([
        f"# {name}", "", f"Model `{entry['model']}`. {entry['data']}", "", f"Licence: {entry['licence']}", "",
        f"Images seen in training: {entry['images_seen']}; seed {entry['seed']}; trained with the code of commit "
        f"`{entry['commit']}`.", "", "Trained by:", "", "```bash", *entry["commands"], "```", "",
        f"Measured on {entry['validation_images']} pictures that training never saw ({entry['validation_rule']}):",
        "", *table(entry["scores"]), "",
        "Detections with score > 0.05, at most 100 a picture; 1 MAC = 2 FLOPs. `python benchmarks/bundle.py` measures "
        "the table and writes this card.", "", entry["notes"], ""])


def write_readme(entry: dict[str, Any]) -> None:
    """Put the measured table between the README's markers."""
    readme = Path(__file__).resolve().parent.parent / "README.md"
    before, rest = readme.read_text(encoding="utf-8").split("<!-- scores:begin", 1)
    comment, after = rest.split("-->", 1)
    after = after.split("<!-- scores:end", 1)[1]
    block = "\n".join(["", "", *table(entry["scores"]), "", ""])
    readme.write_text(f"{before}<!-- scores:begin{comment}-->{block}<!-- scores:end{after}", encoding="utf-8")


def main() -> None:
    """Measure, copy, write manifest and card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--holdout", type=int, default=8)
    parser.add_argument("--data", required=True, help="a sentence on the training data")
    parser.add_argument("--licence", required=True)
    parser.add_argument("--command", nargs="+", required=True, help="the commands that trained it, one after the other")
    parser.add_argument("--images-seen", type=int, help="of training, if the weights record only its last part")
    parser.add_argument("--readme", action="store_true", help="put the table into the README as well")
    parser.add_argument("--commit", help="whose code trained it (default: the checkout's)")
    parser.add_argument("--notes", default="")
    options = parser.parse_args()
    keep_freed_memory()
    dataset = CocoDataset(options.images, options.annotations)
    indices = split_by_image_id(dataset, True, options.holdout)
    header = read_header(options.weights)
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    commit = options.commit or head.stdout.strip()
    scores = measure(options.weights, dataset, indices)
    target = checkpoint_dir() / f"{options.name}.safetensors"
    target.parent.mkdir(exist_ok=True)
    shutil.copyfile(options.weights, target)
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    entry = {
        "file": target.name, "sha256": digest, "model": header["config"]["name"],
        "data": options.data, "licence": options.licence, "commands": options.command, "commit": commit,
        "seed": header["training"]["train"]["seed"],
        "images_seen": options.images_seen or header["training"]["images_seen"],
        "validation_images": len(indices),
        "validation_rule": f"the SHA-256 of the decimal image id is divisible by {options.holdout}",
        "macs_per_instance": list(load(target).costs.macs_per_instance), "scores": scores, "notes": options.notes}
    manifest = {**list_bundled(), options.name: entry}
    (checkpoint_dir() / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    (checkpoint_dir() / f"{options.name}.md").write_text(card(options.name, entry), encoding="utf-8")
    if options.readme:
        write_readme(entry)


if __name__ == "__main__":
    main()
