"""Cost of training: memory with checkpointed stages, two processes against one, and scenes made as they are needed.

    python benchmarks/training_cost.py memory --json FILE
    python benchmarks/training_cost.py processes --json FILE
    python benchmarks/training_cost.py scenes --json FILE

``memory``: a training step of the mask branch alone (forward, losses, backward) on given features, without and with
``checkpoint_stages``. Each case runs in a process of its own; its peak is the most resident memory during the step
above that before it, so it counts everything the step allocates, temporary columns and gradients included. The time is
the least of the steps after it, and the cases take turns.

``processes``: ``torchrun --nproc-per-node 2`` with one thread each against one process with two threads, at the same
batch on the same scenes, in turns. Pictures per second come from the times at which the steps of the first process end
(the wall times of its TensorBoard points), the first steps left out; the ratio is that of the medians over the rounds.

``scenes``: the time in which a batch of scenes is made, against a training step on it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
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

from benchmarks import harness
from benchmarks.harness import ROOT, Result
from dynamask.config import ModelConfig
from dynamask.data.loaders import TrainingLoader
from dynamask.data.shapes import SCENE_SIZE, ShapesDataset
from dynamask.engine.memory import keep_freed_memory
from dynamask.engine.run import Run
from dynamask.engine.step import total_loss, train_step
from dynamask.models.build import build_mask_branch, build_model
from dynamask.models.masks.branch import MaskBranch
from dynamask.presets import default_training, model_config
from dynamask.structures import MASK_SIZES

SMALL = "dynamask_mobilenetv2_fpn_small"
PICTURES, SIDE = 2, (800, 1344)
"""Pictures per step and their size in network-input pixels."""


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


def branch_step(
    branch: MaskBranch,
    features: dict[str, Tensor],
    rois: Tensor,
    labels: Tensor,
    targets: list[Tensor],
    noise: Tensor,
) -> float:
    """Forward, losses and backward of the mask branch; returns the loss."""
    branch.zero_grad(set_to_none=True)
    for feature in features.values():
        feature.grad = None
    state = branch.begin(features, rois, labels)
    width = torch.full((len(rois),), 30.0)
    total = total_loss(branch.losses(state, targets, noise, width), branch.loss_config.weights)
    total.backward()
    return float(total.detach())


def memory_case(model_name: str, checkpoint_stages: bool, regions: int, repeats: int, threads: int) -> dict[str, Any]:
    """Loss and peak memory of one step, and the least time of the repeated steps, in this process."""
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    config = model_config(model_name)
    branch = build_mask_branch(config)
    branch.region_fpn.checkpoint_stages = checkpoint_stages
    inputs = (*problem(config, regions), torch.zeros(regions, len(MASK_SIZES)))
    losses, seconds = [], []
    peak = harness.peak_memory(lambda: losses.append(branch_step(branch, *inputs)))
    for _ in range(repeats):
        start = time.perf_counter()
        branch_step(branch, *inputs)
        seconds.append(time.perf_counter() - start)
    return {"loss": losses[0], "peak_bytes": peak, "seconds": min(seconds, default=None)}


def measure_memory(arguments: argparse.Namespace) -> Result:
    """Both cases of the mask branch's step, each ``rounds`` times in a process of its own."""
    runs: dict[str, list[dict[str, Any]]] = {"plain": [], "checkpointed": []}
    for _ in range(arguments.rounds):
        for name, found in runs.items():
            case = [arguments.model, name == "checkpointed", arguments.regions, arguments.repeats, arguments.threads]
            found.append(harness.in_child(__file__, "child", json.dumps(case)))
    cases = {
        name: {
            "loss": found[0]["loss"],
            "peak_bytes": max(run["peak_bytes"] for run in found),
            "seconds": min((run["seconds"] for run in found if run["seconds"] is not None), default=None),
        }
        for name, found in runs.items()
    }
    ratios = {
        key: cases["checkpointed"][key] / cases["plain"][key]
        for key in ("peak_bytes", "seconds")
        if cases["plain"][key] is not None
    }
    lines = [f"{name}: peak {case['peak_bytes'] / 2**30:.2f} GiB" for name, case in cases.items()]
    lines.append("checkpointed / plain: " + ", ".join(f"{key.split('_')[0]} {r:.2f}" for key, r in ratios.items()))
    figures = {"part": "memory", "model": arguments.model, "regions": arguments.regions}
    return Result({**figures, "cases": cases, "ratios": ratios}, "\n".join(lines))


def command_of(processes: int, out: Path, arguments: argparse.Namespace) -> list[str]:
    """A short training of the preset in that many processes."""
    start = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"] if processes > 1 else []
    flags = {
        "model": arguments.model,
        "data": arguments.data,
        "out": out,
        "batch-size": arguments.batch_size,
        "iterations": arguments.steps,
        "save-every": arguments.steps,
        "workers": 0,
        "warm-start": 0.0,
        "log-every": 1,
    }
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", *start, "dynamask", "train", *words]


def images_per_second(out: Path, batch: int, left_out: int) -> float:
    """Pictures per second of a run, from the median time between the ends of its steps."""
    points = EventAccumulator(str(out / "tensorboard"), size_guidance={"scalars": 0})
    points.Reload()
    moments = np.array([point.wall_time for point in points.Scalars("loss")])
    return batch / float(np.median(np.diff(moments)[left_out:]))


def measure_processes(arguments: argparse.Namespace) -> Result:
    """Two processes of one thread against one of two."""
    rates: dict[str, list[float]] = {"one process, two threads": [], "two processes, one thread each": []}
    for _ in range(arguments.rounds):
        for number, found in enumerate(rates.values(), start=1):
            with tempfile.TemporaryDirectory() as folder:
                environment = {**os.environ, "OMP_NUM_THREADS": str(3 - number), "PYTHONPATH": str(ROOT)}
                command = command_of(number, Path(folder) / "run", arguments)
                subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
                found.append(images_per_second(Path(folder) / "run", arguments.batch_size, arguments.left_out))
    medians = {name: float(np.median(values)) for name, values in rates.items()}
    one, two = medians.values()
    lines = [f"{name}: {rate:.2f} images/s" for name, rate in medians.items()]
    lines.append(f"two processes / one process: {two / one:.2f}")
    figures = {name: getattr(arguments, name) for name in ("model", "batch_size", "steps")}
    figures |= {"part": "processes", "images_a_second": rates, "medians": medians, "ratio": two / one}
    return Result(figures, "\n".join(lines))


def measure_scenes(arguments: argparse.Namespace) -> Result:
    """A batch of scenes against a training step on it, timed in turns; the first two of each warm up."""
    keep_freed_memory()
    torch.manual_seed(0)
    dataset = ShapesDataset(100_000)
    config, losses = default_training(SMALL)
    config = dataclasses.replace(config, warmup=0)
    side = min(SCENE_SIZE)
    model = build_model(
        model_config(SMALL, class_names=dataset.class_names, min_sizes=(side,), test_min_size=side), None, losses
    )
    loader = TrainingLoader(dataset, config.batch_size, 0, 0)
    scenes, steps = [], []
    with tempfile.TemporaryDirectory() as folder:
        run = Run(model, loader, config, Path(folder))
        for number in range(arguments.rounds + 2):
            start = time.perf_counter()
            images, targets = next(loader)
            made = time.perf_counter()
            train_step(run, images, targets)
            if number >= 2:
                scenes.append(made - start)
                steps.append(time.perf_counter() - made)
    share = statistics.median(made / (made + step) for made, step in zip(scenes, steps))
    text = (
        f"{config.batch_size} scenes {statistics.median(scenes) * 1e3:.0f} ms, training on them "
        f"{statistics.median(steps) * 1e3:.0f} ms: scenes are {share:.1%} of a step (medians of {arguments.rounds})"
    )
    return Result({"part": "scenes", "scenes_s": scenes, "steps_s": steps}, text)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the benchmark."""
    parser = harness.make_parser("training_cost", __doc__)
    parts = parser.add_subparsers(required=True, metavar="part")
    memory = parts.add_parser("memory", help="peak memory with and without checkpointed stages")
    memory.add_argument("--model", default="dynamask_resnet50_fpn")
    memory.add_argument("--regions", type=int, default=64, help="positive RoIs of the step")
    memory.add_argument("--repeats", type=int, default=3, help="timed steps of a process")
    memory.add_argument("--threads", type=int, default=2)
    memory.add_argument("--rounds", type=int, default=3, help="processes of each case, which take turns")
    memory.set_defaults(measure=measure_memory)
    processes = parts.add_parser("processes", help="two processes with one thread each against one with two")
    processes.add_argument("--model", default=SMALL)
    processes.add_argument("--data", default="shapes:1:4000")
    processes.add_argument("--batch-size", type=int, default=4)
    processes.add_argument("--steps", type=int, default=60)
    processes.add_argument("--left-out", type=int, default=10, help="steps at the start that are not timed")
    processes.add_argument("--rounds", type=int, default=3, help="runs of each case, which take turns")
    processes.set_defaults(measure=measure_processes)
    scenes = parts.add_parser("scenes", help="making a batch of scenes against a training step on it")
    scenes.add_argument("--rounds", type=int, default=10, help="timed steps (default: 10)")
    scenes.set_defaults(measure=measure_scenes)
    for part in (memory, processes, scenes):
        harness.add_json_flag(part)
    return parser


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        print(json.dumps(memory_case(*json.loads(sys.argv[2]))))
    else:
        sys.exit(harness.run(build_parser()))
