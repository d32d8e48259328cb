"""Put a trained model into checkpoints/: weights, manifest entry and model card, all figures measured here.

    python tools/bundle.py --weights runs/people/last.safetensors --name people --images DIR --annotations JSON \
        --holdout 8 --trained-on "a sentence" --licence "of the weights and of the data" --command "dynamask train …"
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import report
from dynamask.bundled import checkpoint_dir, list_bundled
from dynamask.data.sources import Data
from dynamask.engine.evaluate import EvaluationOptions, collect, run_evaluation, summarise
from dynamask.engine.memory import keep_freed_memory
from dynamask.models.masks.policies import POLICIES, Policy
from dynamask.models.solo.config import FAMILY
from dynamask.models.solo.costs import network_macs
from dynamask.models.weights import read_header
from dynamask.predict import load
from dynamask.reports.size_choices import choice_of


def measure(weights: Path, dataset: Data, indices: list[int]) -> dict[str, dict[str, Any]]:
    """Every policy that the weights can follow on the kept-back pictures: AP with detections, quality in true boxes.

    A one-stage model has no policies, and no boxes to be given: its one row is AP alone.
    """
    predictor = load(weights)
    if not predictor.mask_sizes:
        return {"one size": run_evaluation(predictor, dataset, indices, progress=True)}
    macs = tuple(predictor.costs.macs_per_instance)
    found = collect(predictor, dataset, indices, EvaluationOptions(), every_size=True, progress=True)
    given = collect(predictor, dataset, indices, EvaluationOptions(boxes="gt"), every_size=True, progress=True)
    rows = {}
    followed = POLICIES if predictor.has_switch else map(Policy.fixed, predictor.mask_sizes)
    for policy in map(str, followed):
        row = summarise(found, choice_of(policy, found, dataset), macs, dataset, indices)
        on_true = summarise(given, choice_of(policy, given, dataset), macs, dataset, indices, true_boxes=True)
        row["gt_boxes"] = {
            key: on_true[key] for key in ("mean_mask_iou", "mean_boundary_iou", "mean_macs_per_instance", "size_shares")
        }
        rows[policy] = row
    return rows


def cell(value: float | None) -> str:
    """A figure of the card, to three digits."""
    return "–" if value is None else f"{value:.3f}"


def table(scores: dict[str, Any]) -> list[str]:
    """The measured policies, or the one row of a one-stage model, as lines of a Markdown table."""
    if list(scores) == ["one size"]:
        return one_stage_table(scores["one size"])
    columns = (
        "policy",
        "box AP",
        "mask AP",
        "AP50",
        "boundary AP",
        "mean GMACs",
        "mask IoU, true boxes",
        "boundary IoU, true boxes",
        "sizes 14 / 28 / 56 / 112",
    )
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for policy, row in scores.items():
        shares = " / ".join(f"{share:.0%}" for share in row["size_shares"].values())
        figures = [row["bbox"]["AP"], row["segm"]["AP"], row["segm"]["AP50"], row["boundary"]["AP"]]
        true_boxes = [row["gt_boxes"]["mean_mask_iou"], row["gt_boxes"]["mean_boundary_iou"]]
        cells = [policy, *map(cell, figures), f"{row['mean_macs_per_instance'] / 1e9:.4f}", *map(cell, true_boxes)]
        lines.append(f"| {' | '.join([*cells, shares])} |")
    return lines


def one_stage_table(row: dict[str, Any]) -> list[str]:
    """AP and the MACs that decode a mask, as lines of a Markdown table."""
    columns = ("box AP", "mask AP", "AP50", "AP75", "boundary AP", "mean GMACs a decoded mask")
    figures = [row["bbox"]["AP"], *(row["segm"][key] for key in ("AP", "AP50", "AP75")), row["boundary"]["AP"]]
    cells = [*map(cell, figures), f"{row['mean_macs_per_instance'] / 1e9:.4f}"]
    return [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns), f"| {' | '.join(cells)} |"]


def costs(weights: Path) -> dict[str, Any]:
    """What the manifest says of the family and the MACs: an instance's at every size, or a one-stage network's."""
    predictor = load(weights)
    model = predictor.model
    if predictor.costs is not None:
        return {"macs_per_instance": list(predictor.costs.macs_per_instance)}
    side = -(-model.config.test_min_size // 32) * 32
    parts = network_macs(model, side, side)
    return {"family": FAMILY, "network_macs": {"picture": [side, side], **parts}}


def card(name: str, entry: dict[str, Any]) -> str:
    """The model card in Markdown."""
    return "\n".join(
        [
            f"# {name}",
            "",
            f"Model `{entry['model']}`. {entry['data']}",
            "",
            f"Licence: {entry['licence']}",
            "",
            f"Images seen in training: {entry['images_seen']}; seed {entry['seed']}; trained with the code of commit "
            f"`{entry['commit']}`.",
            "",
            "Trained by:",
            "",
            "```bash",
            *entry["commands"],
            "```",
            "",
            f"Measured on {entry['validation_images']} pictures that training never saw: {entry['validation_rule']}.",
            "",
            *table(entry["scores"]),
            "",
            "Detections with score > 0.05, at most 100 a picture; 1 MAC = 2 FLOPs. `python tools/bundle.py` "
            "measures the table and writes this card.",
            "",
            entry["notes"],
            "",
        ]
    )


def write_page(name: str, entry: dict[str, Any]) -> None:
    """Write the measured table between the markers of these weights in docs/bundled-weights.md."""
    page = Path(__file__).resolve().parent.parent / "docs" / "bundled-weights.md"
    before, rest = page.read_text(encoding="utf-8").split(f"<!-- scores {name}: begin", 1)
    comment, after = rest.split("-->", 1)
    after = after.split(f"<!-- scores {name}: end", 1)[1]
    block = "\n".join(["", "", *table(entry["scores"]), "", ""])
    marked = f"<!-- scores {name}: begin{comment}-->{block}<!-- scores {name}: end"
    page.write_text(f"{before}{marked}{after}", encoding="utf-8")


def rule(options: argparse.Namespace) -> str:
    """Which pictures were kept back, as a clause."""
    if options.holdout is not None:
        return f"those whose decimal image id has a SHA-256 divisible by {options.holdout}"
    return f"`--data {options.data}`" if options.data else "a file of its own"


def main() -> None:
    """Measure, copy, write manifest and card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--name", required=True)
    report.add_data_flags(parser)
    parser.add_argument("--trained-on", required=True, help="a sentence on the training data")
    parser.add_argument("--licence", required=True)
    parser.add_argument("--command", nargs="+", required=True, help="the commands that trained it, one after the other")
    parser.add_argument("--images-seen", type=int, help="of training, if the weights record only its last part")
    parser.add_argument("--page", action="store_true", help="also write the table into docs/bundled-weights.md")
    parser.add_argument("--commit", help="whose code trained it (default: the checkout's)")
    parser.add_argument("--notes", default="")
    options = parser.parse_args()
    keep_freed_memory()
    header = read_header(options.weights)
    dataset = report.opened(options, header["config"]["class_names"])
    indices = report.split(dataset, options.holdout, True)
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    commit = options.commit or head.stdout.strip()
    scores = measure(options.weights, dataset, indices)
    target = checkpoint_dir() / f"{options.name}.safetensors"
    target.parent.mkdir(exist_ok=True)
    shutil.copyfile(options.weights, target)
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    entry = {
        "file": target.name,
        "sha256": digest,
        "model": header["config"]["name"],
        "data": options.trained_on,
        "licence": options.licence,
        "commands": options.command,
        "commit": commit,
        "seed": header["training"]["train"]["seed"],
        "images_seen": options.images_seen or header["training"]["images_seen"],
        "validation_images": len(indices),
        "validation_rule": rule(options),
        **costs(target),
        "scores": scores,
        "notes": options.notes,
    }
    manifest = {**list_bundled(), options.name: entry}
    (checkpoint_dir() / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    (checkpoint_dir() / f"{options.name}.md").write_text(card(options.name, entry), encoding="utf-8")
    if options.page:
        write_page(options.name, entry)


if __name__ == "__main__":
    main()
