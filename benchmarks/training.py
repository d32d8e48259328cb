"""What training costs: memory with checkpointed stages, and pictures a second of two processes against one.

    python benchmarks/training.py memory --json FILE
    python benchmarks/training.py processes --json FILE

``memory``: a training step of the mask branch alone (forward, losses, backward) on features that are given, once as it
is and once with ``checkpoint_stages``. Each case is a process of its own; its peak is the highest resident set that the
system saw of it less the one before the step, so it counts everything the step allocates, temporary
columns and gradients included. The time is the least of the steps after it, and the cases take turns.

``processes``: ``torchrun --nproc-per-node 2`` with one thread each against one process with two threads, at the same
batch on the same scenes, in turns. Pictures a second come from the moments at which the first process's steps end (the
wall times of its TensorBoard points), the first steps left out; the ratio is that of the medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from dynamask.config import ModelConfig
from dynamask.engine.train import loss_weights, total_loss
from dynamask.evaluation.efficiency import resident
from dynamask.models.build import build_mask_branch, preset
from dynamask.models.masks.branch import MaskBranch
from dynamask.structures import MASK_SIZES

ROOT = Path(__file__).resolve().parent.parent
PICTURES, SIDE = 2, (800, 1344)
"""Pictures of a step and their size in network-input pixels."""


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


def measure_memory(arguments: argparse.Namespace) -> None:
    """The child of ``memory``: one case, its figures as JSON on stdout."""
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    config = preset(arguments.model)
    branch = build_mask_branch(config)
    branch.region_fpn.checkpoint_stages = arguments.checkpoint_stages
    given = problem(config, arguments.regions)
    noise = torch.zeros(arguments.regions, len(MASK_SIZES))
    before = resident("VmHWM")
    loss = branch_step(branch, *given, noise)
    peak, seconds = resident("VmHWM") - before, []
    for _ in range(arguments.repeats):
        start = time.perf_counter()
        branch_step(branch, *given, noise)
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"loss": loss, "peak_bytes": peak, "seconds": min(seconds, default=None)}))


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


def command_of(processes: int, out: Path, arguments: argparse.Namespace) -> list[str]:
    """A short training of the preset in so many processes."""
    start = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"] if processes > 1 else []
    flags = {
        **{"model": arguments.model, "data": arguments.data, "out": out, "batch-size": arguments.batch_size},
        **{"iterations": arguments.steps, "save-every": arguments.steps},
        **{"workers": 0, "warm-start": 0.0, "log-every": 1},
    }
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", *start, "dynamask", "train", *words]


def images_a_second(out: Path, batch: int, left_out: int) -> float:
    """Pictures a second of a run, from the median time between the ends of its steps."""
    points = EventAccumulator(str(out / "tensorboard"), size_guidance={"scalars": 0})
    points.Reload()
    moments = np.array([point.wall_time for point in points.Scalars("loss")])
    return batch / float(np.median(np.diff(moments)[left_out:]))


def processes(arguments: argparse.Namespace) -> dict[str, Any]:
    """Two processes of one thread against one of two."""
    rates: dict[str, list[float]] = {"one process, two threads": [], "two processes, one thread each": []}
    for _ in range(arguments.rounds):
        for number, found in enumerate(rates.values(), start=1):
            with tempfile.TemporaryDirectory() as folder:
                environment = {**os.environ, "OMP_NUM_THREADS": str(3 - number), "PYTHONPATH": str(ROOT)}
                command = command_of(number, Path(folder) / "run", arguments)
                subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
                found.append(images_a_second(Path(folder) / "run", arguments.batch_size, arguments.left_out))
    medians = {name: float(np.median(values)) for name, values in rates.items()}
    one, two = medians.values()
    given = {"model": arguments.model, "batch_size": arguments.batch_size, "steps": arguments.steps}
    return {"part": "processes", **given, "images_a_second": rates, "medians": medians, "ratio": two / one}


def machine() -> str:
    """Processor and cores, for beside the figures."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores, PyTorch {torch.__version__}"


def printed(found: dict[str, Any]) -> list[str]:
    """The figures as lines; ratios are what carries over to other machines."""
    if found["part"] == "memory":
        lines = [f"{name}: peak {case['peak_bytes'] / 2**30:.2f} GiB" for name, case in found["cases"].items()]
        ratios = ", ".join(f"{key.split('_')[0]} {ratio:.2f}" for key, ratio in found["ratios"].items())
        return [*lines, f"checkpointed / as it is: {ratios}"]
    lines = [f"{name}: {rate:.2f} images/s" for name, rate in found["medians"].items()]
    return [*lines, f"two processes / one process: {found['ratio']:.2f}"]


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
        if name == "memory":
            part.add_argument("--rounds", type=int, default=3, help="processes of each case, which take turns")
        else:
            part.add_argument("--checkpoint-stages", action="store_true")
    part = parts.add_parser("processes")
    part.add_argument("--model", default="dynamask_mobilenetv2_fpn_small")
    part.add_argument("--data", default="shapes:1:4000")
    part.add_argument("--batch-size", type=int, default=4)
    part.add_argument("--steps", type=int, default=60)
    part.add_argument("--left-out", type=int, default=10, help="steps at the start that are not timed")
    part.add_argument("--rounds", type=int, default=3, help="runs of each case, which take turns")
    for name in ("memory", "processes"):
        parts.choices[name].add_argument("--json", metavar="FILE")
    return parser


def main() -> None:
    """Run a part, print its figures and write them."""
    arguments = build_parser().parse_args()
    if arguments.part == "measure-memory":
        measure_memory(arguments)
        return
    found = {"machine": machine(), **(memory if arguments.part == "memory" else processes)(arguments)}
    print("\n".join([found["machine"], *printed(found)]))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
