"""What making scenes costs beside training on them: a batch of scenes against a training step, timed in turns.

python benchmarks/scenes.py --rounds 10
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks import report
from dynamask.config import recipe
from dynamask.data.loaders import TrainingLoader
from dynamask.data.shapes import SCENE_SIZE, ShapesDataset
from dynamask.engine.memory import keep_freed_memory
from dynamask.engine.run import Run
from dynamask.engine.train import loss_weights, train_step
from dynamask.evaluation.efficiency import machine, machine_line
from dynamask.models.build import build_model, preset

PRESET = "dynamask_mobilenetv2_fpn_small"


def _measure(arguments: argparse.Namespace) -> None:
    report.check_json_target(arguments.json)
    keep_freed_memory()
    torch.manual_seed(0)
    dataset = ShapesDataset(100_000)
    config, losses = recipe(PRESET)
    config = dataclasses.replace(config, warmup=0)
    side = min(SCENE_SIZE)
    model = build_model(
        preset(PRESET, class_names=dataset.class_names, min_sizes=(side,), test_min_size=side), None, losses
    )
    loader = TrainingLoader(dataset, config.batch_size, 0, 0)
    scenes, steps = [], []
    with tempfile.TemporaryDirectory() as folder:
        run = Run(model, loader, config, loss_weights(losses), Path(folder))
        for number in range(arguments.rounds + 2):
            start = time.perf_counter()
            images, targets = next(loader)
            made = time.perf_counter()
            train_step(run, images, targets)
            if number >= 2:  # the first two warm up
                scenes.append(made - start)
                steps.append(time.perf_counter() - made)
    facts = machine()
    shares = [made / (made + step) for made, step in zip(scenes, steps)]
    print(machine_line(facts))
    print(
        f"{config.batch_size} scenes {statistics.median(scenes) * 1e3:.0f} ms, training on them "
        f"{statistics.median(steps) * 1e3:.0f} ms: scenes are {statistics.median(shares):.1%} of a step (medians of "
        f"{arguments.rounds})"
    )
    report.write_json({"machine": facts, "scenes_s": scenes, "steps_s": steps}, arguments.json)


def build_parser() -> argparse.ArgumentParser:
    """The parser."""
    parser = argparse.ArgumentParser(prog="scenes", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=10, help="timed steps (default: 10)")
    report.add_json_flag(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    return report.run("scenes", lambda: _measure(arguments))


if __name__ == "__main__":
    sys.exit(main())
