"""Put trained weights into checkpoints/: the file, its manifest entry and its model card, with figures measured here.

    python tools/bundle.py --weights runs/things/last.safetensors --name things --half --images DIR --annotations JSON \
        --holdout 8 --trained-on "a sentence" --licence "of the weights and of the data" --command "dynamask train …"
    python tools/bundle.py --weights runs/fcn-28/last.safetensors --name shapes-fcn-28 --detector shapes \
        --data shapes:1001:100 --trained-on "a sentence" --licence "of weights and data" --command "dynamask train …"

With ``--detector`` the weights are a baseline on a bundled detector: the mask branch alone goes into
checkpoints/baselines/, whose one card covers all baselines and is written anew from the manifest.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dynamask.cli.common import add_data, open_selected_data, run_command
from dynamask.config import MASK_BRANCHES, ModelConfig, SoloConfig
from dynamask.data.sources import Data
from dynamask.engine.evaluate import EvaluationOptions, collect, run_evaluation, summarise
from dynamask.engine.memory import keep_freed_memory
from dynamask.files import write_text
from dynamask.models.build import build_model
from dynamask.models.masks.policies import POLICIES, QUALITY, Policy
from dynamask.models.self_test import self_test
from dynamask.models.solo.costs import network_macs
from dynamask.models.weights import (
    BASELINES,
    bundled_path,
    checkpoint_dir,
    copy_weights,
    detector_digest,
    file_digest,
    list_baselines,
    list_bundled,
    load_model,
    read_header,
    save_branch,
)
from dynamask.predict import load
from dynamask.reports.size_choices import choice_of
from dynamask.structures import DynaMaskError

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


def measure(weights: Path, dataset: Data, indices: list[int]) -> dict[str, dict[str, Any]]:
    """Figures of every policy on the held-out pictures: AP of detections, and mask quality in true boxes.

    One-stage models have no policies and take no boxes; their one row has AP only.
    """
    predictor = load(weights, device="cpu")
    if not predictor.mask_sizes:
        return {"one size": run_evaluation(predictor, dataset, indices, progress=True)}
    macs = tuple(predictor.costs.macs_per_instance)
    found = collect(predictor, dataset, indices, EvaluationOptions(), every_size=True, progress=True)
    given = collect(predictor, dataset, indices, EvaluationOptions(boxes="gt"), every_size=True, progress=True)
    rows = {}
    followed = POLICIES if predictor.has_switch else map(Policy.fixed, predictor.mask_sizes)
    followed = [policy for policy in followed if policy != QUALITY or predictor.has_quality]
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


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns), *(f"| {' | '.join(row)} |" for row in rows)]


def gmacs(row: dict[str, Any]) -> str:
    """Mean cost of an instance, to four digits."""
    return f"{row['mean_macs_per_instance'] / 1e9:.4f}"


def scores_table(scores: dict[str, Any]) -> list[str]:
    """The measured policies, or the one row of a one-stage model, as lines of a Markdown table."""
    if list(scores) == ["one size"]:
        row = scores["one size"]
        figures = [row["bbox"]["AP"], *(row["segm"][key] for key in ("AP", "AP50", "AP75")), row["boundary"]["AP"]]
        columns = ("box AP", "mask AP", "AP50", "AP75", "boundary AP", "mean GMACs a decoded mask")
        return markdown_table(columns, [[*map(cell, figures), gmacs(row)]])
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
    rows = []
    for policy, row in scores.items():
        figures = [row["bbox"]["AP"], row["segm"]["AP"], row["segm"]["AP50"], row["boundary"]["AP"]]
        true_boxes = [row["gt_boxes"]["mean_mask_iou"], row["gt_boxes"]["mean_boundary_iou"]]
        shares = " / ".join(f"{share:.0%}" for share in row["size_shares"].values())
        rows.append([policy, *map(cell, figures), gmacs(row), *map(cell, true_boxes), shares])
    return markdown_table(columns, rows)


def costs(weights: Path) -> dict[str, Any]:
    """Family and MACs for the manifest: those of an instance at every size, or of a one-stage network."""
    predictor = load(weights, device="cpu")
    model = predictor.model
    if predictor.costs is not None:
        return {"macs_per_instance": list(predictor.costs.macs_per_instance)}
    side = -(-model.config.test_min_size // 32) * 32
    parts = network_macs(model, side, side)
    return {"family": SoloConfig.FAMILY, "network_macs": {"picture": [side, side], **parts}}


def model_card(name: str, entry: dict[str, Any]) -> str:
    """The model card of one entry in Markdown."""
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
            *scores_table(entry["scores"]),
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
    block = "\n".join(["", "", *scores_table(entry["scores"]), "", ""])
    marked = f"<!-- scores {name}: begin{comment}-->{block}<!-- scores {name}: end"
    page.write_text(f"{before}{marked}{after}", encoding="utf-8")


def rule(arguments: argparse.Namespace) -> str:
    """Description of the held-out pictures."""
    if arguments.holdout is not None:
        return f"those whose decimal image id has a SHA-256 divisible by {arguments.holdout}"
    return f"`--data {arguments.data}`" if arguments.data else "a file of its own"


def share_of(entry: dict[str, Any]) -> float:
    """The finest size's MACs as a fraction of those of the r-FPN of the same preset."""
    width = read_header(checkpoint_dir() / BASELINES / entry["file"])["config"]
    ours = build_model(ModelConfig.from_dict({**width, "mask_branch": "region_fpn"})).mask_branch.costs
    return entry["macs_per_instance"][-1] / ours.macs_per_instance[-1]


def baselines_table(entries: dict[str, dict[str, Any]]) -> list[str]:
    """The figures of each baseline at each of its sizes, as lines of a Markdown table."""
    columns = (
        "weights",
        "policy",
        "mean GMACs",
        "mask AP",
        "AP50",
        "AP75",
        "boundary AP",
        "mask IoU, true boxes",
        "boundary IoU, true boxes",
    )
    rows = []
    for name, entry in entries.items():
        for policy, row in entry["scores"].items():
            figures = [*(row["segm"][key] for key in ("AP", "AP50", "AP75")), row["boundary"]["AP"]]
            figures += [row["gt_boxes"]["mean_mask_iou"], row["gt_boxes"]["mean_boundary_iou"]]
            rows.append([f"`{name}`", policy, gmacs(row), *map(cell, figures)])
    return markdown_table(columns, rows)


BASELINES_ABOUT = (
    "# Baselines",
    "",
    "Mask branches to compare DynaMask with. All are trained alike: on the same frozen detector, on the same pictures "
    "in the same order, on the same sampled regions, with the recipe of the preset. The loss is a mask loss at every "
    "size that a branch predicts, and an edge loss where it predicts edges; FCN heads and PointRend do not. Each file "
    "holds a mask branch alone and names the bundled weights that its detector is part of; "
    '`dynamask.load("shapes-fcn-28")` joins both. They are for comparison, not for use.',
    "",
    "Each figure is from one short run with one seed, without tuning for any branch, so a branch that learns slowly "
    "looks worse than it would after a longer training. The feature pyramid of the detector was trained together with "
    "an r-FPN, which may favour that branch.",
    "",
)


def baselines_card(entries: dict[str, dict[str, Any]]) -> str:
    """The card of all baselines in Markdown."""
    lines = list(BASELINES_ABOUT)
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
    lines += [
        "```",
        "",
        f"Code of commit {commits}; {seen} images seen by each.",
        "",
        f"Measured on pictures that training never saw: {rules}. All have the detector's boxes, with score > 0.05 and "
        "at most 100 per picture; 1 MAC = 2 FLOPs.",
        "",
        *baselines_table(entries),
        "",
        "`python tools/bundle.py` measures the table and writes this card.",
        "",
    ]
    return "\n".join(lines)


def common_entry(arguments: argparse.Namespace, header: dict[str, Any], images: int) -> dict[str, Any]:
    """The facts that the manifest holds of every weights file, apart from the figures."""
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    return {
        "model": header["config"]["name"],
        "data": arguments.trained_on,
        "licence": arguments.licence,
        "commands": arguments.command,
        "commit": arguments.commit or head.stdout.strip(),
        "seed": header["training"]["train"]["seed"],
        "images_seen": arguments.images_seen or header["training"]["images_seen"],
        "validation_images": images,
        "validation_rule": rule(arguments),
        "notes": arguments.notes,
    }


def bundle_weights(arguments: argparse.Namespace, header: dict[str, Any], dataset: Data, indices: list[int]) -> None:
    """Copy the weights of a whole model, measure them, and write manifest and card."""
    target = checkpoint_dir() / f"{arguments.name}.safetensors"
    settings = {} if arguments.display_score is None else {"display_score": arguments.display_score}
    copy_weights(arguments.weights, target, arguments.half, **settings)
    entry = {
        "file": target.name,
        "sha256": file_digest(target),
        **common_entry(arguments, header, len(indices)),
        **costs(target),
        "self_test": self_test(load_model(target)),
        "scores": measure(target, dataset, indices),
    }
    write_manifest(checkpoint_dir(), {**list_bundled(), arguments.name: entry})
    write_text(checkpoint_dir() / f"{arguments.name}.md", model_card(arguments.name, entry))
    if arguments.page:
        write_page(arguments.name, entry)


def bundle_baseline(arguments: argparse.Namespace, header: dict[str, Any], dataset: Data, indices: list[int]) -> None:
    """Write and measure the mask branch of a run on a bundled detector, and write the card of all baselines."""
    if arguments.name in list_bundled():
        raise DynaMaskError(f"--name {arguments.name} is the name of bundled weights; give another")
    if arguments.half or arguments.display_score is not None:
        raise DynaMaskError("--half and --display-score are for whole models; omit them with --detector")
    folder = checkpoint_dir() / BASELINES
    target = folder / f"{arguments.name}.safetensors"
    save_branch(arguments.weights, target, arguments.detector)
    config = ModelConfig.from_dict(header["config"])
    branch = build_model(config).mask_branch
    entry = {
        "file": target.name,
        "sha256": file_digest(target),
        "detector": {"name": arguments.detector, "sha256": detector_digest(bundled_path(arguments.detector))},
        **common_entry(arguments, header, len(indices)),
        "mask_branch": config.mask_branch,
        "mask_sizes": list(branch.mask_sizes),
        "macs_per_instance": list(branch.costs.macs_per_instance),
        "self_test": self_test(load_model(target)),
        "scores": measure(target, dataset, indices),
    }
    entries = {**list_baselines(), arguments.name: entry}
    entries = dict(sorted(entries.items(), key=lambda item: MASK_BRANCHES.index(item[1]["mask_branch"])))
    write_manifest(folder, entries)
    write_text(folder / "README.md", baselines_card(entries))


def write_manifest(folder: Path, entries: dict[str, dict[str, Any]]) -> None:
    """Write the manifest of a folder of weights."""
    write_text(folder / "manifest.json", json.dumps(entries, indent=1) + "\n")


def bundle(arguments: argparse.Namespace) -> None:
    """Bundle a whole model or a baseline."""
    keep_freed_memory()
    header = read_header(arguments.weights)
    dataset, indices = open_selected_data(arguments, header["config"]["class_names"])
    (bundle_weights if arguments.detector is None else bundle_baseline)(arguments, header, dataset, indices)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the tool."""
    parser = argparse.ArgumentParser(prog="bundle", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--weights", type=Path, required=True, metavar="FILE", help="written by `dynamask train`")
    parser.add_argument("--name", required=True, help="name to load the weights by")
    parser.add_argument("--detector", metavar="NAME", help="bundled weights whose detector a baseline was trained on")
    add_data(parser, "measure on the pictures that `train --holdout M` holds out")
    parser.add_argument("--trained-on", required=True, help="a sentence on the training data")
    parser.add_argument("--licence", required=True, help="licence of the weights and of the data")
    parser.add_argument("--command", nargs="+", required=True, help="commands of the training, in their order")
    parser.add_argument("--images-seen", type=int, help="training images, where the weights record only a part of them")
    parser.add_argument("--page", action="store_true", help="also write the table into docs/bundled-weights.md")
    parser.add_argument("--half", action="store_true", help="store the weights as float16, and measure these")
    text = "score from which detections are shown by default, stored in the weights (default: the one in the file)"
    parser.add_argument("--display-score", type=float, metavar="S", help=text)
    parser.add_argument("--commit", help="commit of the training code (default: that of the checkout)")
    parser.add_argument("--notes", default="", help="a sentence for the card")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Bundle; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    return run_command("bundle", lambda: bundle(arguments))


if __name__ == "__main__":
    sys.exit(main())
