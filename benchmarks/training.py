"""What training costs: memory with checkpointed stages, and pictures a second of two processes against one.

    python benchmarks/training.py memory --json FILE
    python benchmarks/training.py processes --json FILE

``memory``: a training step of the mask branch alone (forward, losses, backward) on features that are given, once as it
is and once with ``checkpoint_stages``. Each case is a process of its own; its peak is the highest resident set that the
system saw of it (``getrusage``) less the one before the step, so it counts everything the step allocates, temporary
columns and gradients included. The time is the least of the steps after it, and the cases take turns.

``processes``: ``torchrun --nproc-per-node 2`` with one thread each against one process with two threads, at the same
batch on the same scenes; pictures a second from the times between the rows of each run's log, the first ones left out.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from dynamask.config import ModelConfig
from dynamask.engine.train import loss_weights, total_loss
from dynamask.models.factory import build_mask_branch, preset
from dynamask.models.rcnn.roi_heads import MaskBranch
from dynamask.structures import MASK_SIZES

ROOT = Path(__file__).resolve().parent.parent
PICTURES, SIDE = 2, (800, 1344)
"""Pictures of a step and their size in network-input pixels."""
KIBI = 1024


def problem(config: ModelConfig, regions: int, seed: int = 0) -> tuple[dict[str, Tensor], Tensor, Tensor, list[Tensor]]:
    """Features that ask for gradients, rois (R, 5), labels (R,) and target masks of a mask branch's training step."""
    draws = torch.Generator().manual_seed(seed)
    features = {
        str(i): torch.randn(PICTURES, config.fpn_channels, SIDE[0] // s, SIDE[1] // s, generator=draws).requires_grad_()
        for i, s in enumerate((4, 8, 16, 32))
    }
    low = torch.rand(regions, 2, generator=draws) * 400
    high = low + 32 + torch.rand(regions, 2, generator=draws) * 368
    rois = torch.cat([(torch.arange(regions) % PICTURES)[:, None].float(), low, high], dim=1)
    labels = torch.randint(1, len(config.class_names), (regions,), generator=draws)
    targets = [(torch.rand(regions, size, size, generator=draws) > 0.5).float() for size in MASK_SIZES]
    return features, rois, labels, targets


def branch_step(branch: MaskBranch, features: dict[str, Tensor], rois: Tensor, labels: Tensor, targets: list[Tensor],
                noise: Tensor) -> float:  # fmt: skip
    """Forward, losses and backward of the mask branch; returns the loss."""
    branch.zero_grad(set_to_none=True)
    for feature in features.values():
        feature.grad = None
    state = branch.begin(features, rois, labels)
    width = torch.full((len(rois),), 30.0)
    total = total_loss(branch.losses(state, targets, noise, width), loss_weights(branch.loss_config))
    total.backward()
    return float(total.detach())


def peak_kib() -> int:
    """The largest resident set of this process so far, in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure_memory(arguments: argparse.Namespace) -> None:
    """The child of ``memory``: one case, its figures as JSON on stdout."""
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    config = preset(arguments.model)
    branch = build_mask_branch(config)
    branch.region_fpn.checkpoint_stages = arguments.checkpoint_stages
    given = problem(config, arguments.regions)
    noise = torch.zeros(arguments.regions, len(MASK_SIZES))
    before = peak_kib()
    loss = branch_step(branch, *given, noise)
    peak, seconds = peak_kib() - before, []
    for _ in range(arguments.repeats):
        start = time.perf_counter()
        branch_step(branch, *given, noise)
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"loss": loss, "peak_bytes": peak * KIBI, "seconds": min(seconds, default=None)}))


def memory(arguments: argparse.Namespace) -> dict[str, Any]:
    """Both cases of the mask branch's step, each ``rounds`` times in a process of its own."""
    cases: dict[str, list[dict[str, Any]]] = {"as it is": [], "checkpointed": []}
    for _ in range(arguments.rounds):
        for name, flags in (("as it is", []), ("checkpointed", ["--checkpoint-stages"])):
            command = [sys.executable, __file__, "measure-memory", "--model", arguments.model, *flags]
            for flag in ("regions", "repeats", "threads"):
                command += [f"--{flag}", str(getattr(arguments, flag))]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            cases[name].append(json.loads(done.stdout))
    best = {
        name: {
            "loss": runs[0]["loss"],
            "peak_bytes": max(run["peak_bytes"] for run in runs),
            "seconds": min((run["seconds"] for run in runs if run["seconds"] is not None), default=None),
        }
        for name, runs in cases.items()
    }
    ratios = {
        key: best["checkpointed"][key] / best["as it is"][key]
        for key in ("peak_bytes", "seconds")
        if best["as it is"][key] is not None
    }
    return {"part": "memory", "model": arguments.model, "regions": arguments.regions, "cases": best, "ratios": ratios}


def build_parser() -> argparse.ArgumentParser:
    """The benchmark's flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    for name in ("memory", "measure-memory"):
        part = parts.add_parser(name)
        part.add_argument("--model", default="dynamask_resnet50_fpn")
        part.add_argument("--regions", type=int, default=64, help="positive RoIs of the step")
        part.add_argument("--repeats", type=int, default=3, help="timed steps of a process")
        part.add_argument("--threads", type=int, default=2)
        part.set_defaults(run=memory if name == "memory" else measure_memory)
        if name == "memory":
            part.add_argument("--rounds", type=int, default=3, help="processes of each case, which take turns")
            part.add_argument("--json", metavar="FILE")
        else:
            part.add_argument("--checkpoint-stages", action="store_true")
    return parser


if __name__ == "__main__":
    arguments = build_parser().parse_args()
    print(arguments.run(arguments))
