"""Put a trained mask branch into checkpoints/baselines/: weights without the detector, manifest entry and one card.

The figures are measured here. The card, README.md, covers all baselines and is written anew from the manifest.

    python tools/bundle_baselines.py --weights runs/fcn-28/last.safetensors --name shapes-fcn-28 \
        --detector shapes --data shapes:1001:100 --trained-on "a sentence" --licence "of weights and data" \
        --command "dynamask train …"
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import report
from dynamask.bundled import BASELINES, bundled_path, checkpoint_dir, list_baselines, list_bundled
from dynamask.config import MASK_BRANCHES, ModelConfig
from dynamask.engine.memory import keep_freed_memory
from dynamask.files import write_text
from dynamask.models.build import build_model
from dynamask.models.weights import file_digest, read_header, save_branch
from dynamask.structures import MASK_SIZES, DynaMaskError
from tools.bundle import cell, measure, rule

ABOUT = {
    "region_fpn": "DynaMask's r-FPN, trained anew like its rivals.",
    "fcn": "Mask R-CNN's FCN head: four 3×3 convs at half the mask's side, a deconvolution, a 1×1 predictor.",
    "pointrend": "PointRend: coarse 7×7 mask, then the 28² least certain points of each step. Its subdivision ends at "
    "112, our finest side, instead of 224. MACs are those of all steps at test.",
    "panet": "PANet on regions: top-down path, then bottom-up path augmentation, two stacks, plain 3×3 convs.",
    "bifpn": "BiFPN on regions: three layers, fast normalised fusion, depthwise-separable 3×3 convs.",
    "nasfpn": "NAS-FPN on regions: its published cell of seven merges, two stacks, plain 3×3 convs.",
}
"""A sentence on each mask branch."""


def share_of(entry: dict[str, Any]) -> float:
    """The finest size's MACs as a fraction of those of the r-FPN of the same preset."""
    width = read_header(checkpoint_dir() / BASELINES / entry["file"])["config"]
    ours = build_model(ModelConfig.from_dict({**width, "mask_branch": "region_fpn"})).mask_branch.costs
    return entry["macs_per_instance"][-1] / ours.macs_per_instance[-1]


def scores_table(entries: dict[str, dict[str, Any]]) -> list[str]:
    """What each branch's sizes and policies reached, as lines of a Markdown table."""
    columns = ("weights", "policy", "mean GMACs", "mask AP", "AP50", "AP75", "boundary AP", "mask IoU, true boxes",
               "boundary IoU, true boxes")  # fmt: skip
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for name, entry in entries.items():
        for policy, row in entry["scores"].items():
            figures = [*(row["segm"][key] for key in ("AP", "AP50", "AP75")), row["boundary"]["AP"]]
            figures += [row["gt_boxes"]["mean_mask_iou"], row["gt_boxes"]["mean_boundary_iou"]]
            cells = [f"`{name}`", policy, f"{row['mean_macs_per_instance'] / 1e9:.4f}", *map(cell, figures)]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def card(entries: dict[str, dict[str, Any]]) -> str:
    """The card of all baselines in Markdown."""
    lines = [
        "# Baselines", "",
        "Mask branches to compare DynaMask with, trained alike: the same frozen detector, the same pictures in the "
        "same order, the same regions drawn, the preset's recipe; a mask loss at every size that a branch gives, and "
        "an edge loss where it predicts edges, which FCN heads and PointRend do not. Each file holds a mask branch "
        "alone and names the bundled weights that its detector is part of; "
        '`dynamask.load("shapes-fcn-28")` joins both. They are for tables, not for use.', "",
        "What the figures do not say: each is one short run of one seed, without a setting tuned for any branch, so a "
        "branch that learns slowly looks worse than it would in the end. The detector's feature pyramid was once "
        "trained together with an r-FPN, which may suit that branch best.", "",
    ]  # fmt: skip
    for name, entry in entries.items():
        about = ABOUT[entry["mask_branch"].split(":")[0]]
        sizes = ", ".join(map(str, entry["mask_sizes"]))
        lines.append(
            f"- `{name}` (`--mask-branch {entry['mask_branch']}`): {about} Masks of {sizes}; "
            f"{entry['macs_per_instance'][-1] / 1e9:.4f} GMACs an instance, {share_of(entry):.2f} of the r-FPN's."
            + (f" {entry['notes']}" if entry["notes"] else "")
        )
    for words, key in (("", "data"), ("Licence: ", "licence")):
        lines += ["", *(f"{words}{text}" for text in dict.fromkeys(entry[key] for entry in entries.values()))]
    lines += ["", "Trained by:", "", "```bash"]
    lines += dict.fromkeys(command for entry in entries.values() for command in entry["commands"])
    commits = ", ".join(dict.fromkeys(f"`{entry['commit']}`" for entry in entries.values()))
    seen = ", ".join(dict.fromkeys(f"{entry['images_seen']:,}" for entry in entries.values()))
    rules = ", ".join(dict.fromkeys(entry["validation_rule"] for entry in entries.values()))
    lines += ["```", "", f"Code of commit {commits}; {seen} images seen by each.", "",
              f"Measured on pictures that training never saw: {rules}. All have the detector's boxes, with score > "
              "0.05 and at most 100 a picture; 1 MAC = 2 FLOPs.", "", *scores_table(entries), "",
              "`python tools/bundle_baselines.py` measures the table and writes this card.", ""]  # fmt: skip
    return "\n".join(lines)


def bundle(options: argparse.Namespace) -> None:
    """Measure, write the branch, its manifest entry and the card."""
    keep_freed_memory()
    header = read_header(options.weights)
    config = ModelConfig.from_dict(header["config"])
    if options.name in list_bundled():
        raise DynaMaskError(f"--name {options.name} is bundled already, and no baseline; give another")
    dataset = report.opened(options, config.class_names)
    indices = report.split(dataset, options.holdout, True)
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    folder = checkpoint_dir() / BASELINES
    target = folder / f"{options.name}.safetensors"
    save_branch(options.weights, target, options.detector)
    branch = build_model(config).mask_branch
    entry = {
        "file": target.name, "sha256": file_digest(target),
        "detector": {"name": options.detector, "sha256": file_digest(bundled_path(options.detector))},
        "model": config.name, "mask_branch": config.mask_branch, "mask_sizes": list(branch.mask_sizes),
        "data": options.trained_on, "licence": options.licence, "commands": options.command,
        "commit": options.commit or head.stdout.strip(), "seed": header["training"]["train"]["seed"],
        "images_seen": header["training"]["images_seen"], "validation_images": len(indices),
        "validation_rule": rule(options), "macs_per_instance": list(branch.costs.macs_per_instance),
        "scores": measure(target, dataset, indices), "notes": options.notes}  # fmt: skip
    entries = {**list_baselines(), options.name: entry}
    entries = dict(sorted(entries.items(), key=lambda item: MASK_BRANCHES.index(item[1]["mask_branch"])))
    write_text(folder / "manifest.json", json.dumps(entries, indent=1) + "\n")
    write_text(folder / "README.md", card(entries))
    print(f"{target}: {target.stat().st_size / 1e6:.2f} MB, masks of {entry['mask_sizes']} of {len(MASK_SIZES)} sizes")


def build_parser() -> argparse.ArgumentParser:
    """The parser."""
    parser = argparse.ArgumentParser(prog="bundle_baselines", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--weights", type=Path, required=True, metavar="FILE", help="of a run with a frozen detector")
    parser.add_argument("--name", required=True, help="to load them by")
    parser.add_argument("--detector", required=True, metavar="NAME", help="bundled weights that the run started from")
    report.add_data_flags(parser)
    parser.add_argument("--trained-on", required=True, help="a sentence on the training data")
    parser.add_argument("--licence", required=True)
    parser.add_argument("--command", nargs="+", required=True, help="the commands that trained it, one after the other")
    parser.add_argument("--commit", help="whose code trained it (default: the checkout's)")
    parser.add_argument("--notes", default="", help="a sentence on this one alone")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Bundle; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    return report.run("bundle_baselines", lambda: bundle(arguments))


if __name__ == "__main__":
    sys.exit(main())
