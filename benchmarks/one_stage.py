"""One-stage models: memory of mask decoding against dense maps, and time per picture against the base.

    python benchmarks/one_stage.py memory --model sodar_resnet50_fpn
    python benchmarks/one_stage.py time --weights shapes-solov2 shapes-sodar --data shapes:1001:20
    python benchmarks/one_stage.py time --models solov2_resnet50_fpn sodar_v2_resnet50_fpn --candidates 100

Peak memory is the most resident memory while a process of its own decodes, above what it had before (Linux alone);
backbone and FPN are replaced by random maps of the size that a picture of 800×1333 pixels has. Times are of the models
in turn, with medians of ratios, in a process that keeps freed memory, as commands and app do. "--candidates" with
random weights holds every model to as many decoded cells.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch import Tensor

from benchmarks import report
from dynamask.data.pictures import read_picture
from dynamask.data.sources import open_data
from dynamask.engine.memory import keep_freed_memory
from dynamask.evaluation.efficiency import machine, machine_line, resident
from dynamask.models.build import create_model
from dynamask.models.solo.aggregation import decode, dynamic_network
from dynamask.models.solo.model import Candidates, EncodedGrids, SoloNet
from dynamask.predict import load

FRAME = (800, 1344)
"""A picture of 800×1333 pixels, padded to 32."""


def random_pyramid(channels: int, frame: tuple[int, int]) -> dict[str, Tensor]:
    """P2 … P6 of a picture, as random maps."""
    generator = torch.Generator().manual_seed(0)
    sides = {"0": 4, "1": 8, "2": 16, "3": 32, "pool": 64}
    sizes = {key: (-(-frame[0] // s), -(-frame[1] // s)) for key, s in sides.items()}
    return {key: torch.randn(1, channels, *size, generator=generator) for key, size in sizes.items()}


def encoded_grids(model: SoloNet) -> EncodedGrids:
    """What the heads say of :func:`random_pyramid`."""
    return EncodedGrids(
        model.head(random_pyramid(model.config.fpn_channels, FRAME)), [(800, 1333)], [(800, 1333)], FRAME
    )


def some_candidates(model: SoloNet, count: int) -> Candidates:
    """Cells spread over all levels."""
    generator = torch.Generator().manual_seed(1)
    grids = torch.tensor(model.config.grids)
    level = torch.arange(count) % len(grids)
    cell = (torch.rand(count, generator=generator) * grids[level] ** 2).long()
    return Candidates(level, cell, torch.ones_like(cell), torch.linspace(0.9, 0.1, count))


def decode_dense(model: SoloNet, encoded: EncodedGrids, found: Candidates) -> Tensor:
    """The way the papers' code does it: maps of every cell of every level, aggregated for every candidate at once."""
    maps = []
    for grid in encoded.grids:
        vectors = grid.vectors.flatten(2).transpose(1, 2)  # (1, G′², V)
        maps.append(decode(vectors, torch.zeros(1, dtype=torch.int64), grid.features)[0])
    areas = []
    for level, grid in enumerate(encoded.grids):
        cell = found.cell[found.level == level]
        image = torch.zeros_like(cell)
        if model.aggregation is None:
            areas.append(maps[level][cell].sigmoid().flatten(1).sum(1))
            continue
        side = model.config.representation_grids[level]
        positions = model.aggregation.positions(cell, model.config.grids[level], side).round().long().clamp(0, side - 1)
        chosen = maps[level][positions[..., 0] * side + positions[..., 1]]
        theta = grid.theta.flatten(2)[image, :, cell]
        config = model.aggregation.config
        logits = dynamic_network(chosen, grid.context, image, theta, config.widths, config.kernel)
        areas.append(logits.sigmoid().flatten(1).sum(1))
    return torch.cat(areas)


@torch.inference_mode()
def child(model_name: str, how: str, count: int) -> int:
    """Most resident bytes while decoding ("lazy" or "dense"), above those before it."""
    torch.manual_seed(0)
    model = create_model(model_name).eval()
    encoded, found = encoded_grids(model), some_candidates(model, count)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = resident("VmRSS")
    model.suppress(encoded, 0, found) if how == "lazy" else decode_dense(model, encoded, found)
    return resident("VmHWM") - before


def measure_memory(model_name: str, count: int) -> list[dict[str, Any]]:
    """One row: bytes that either way of decoding takes."""
    peaks = {}
    for how in ("dense", "lazy"):
        words = [sys.executable, __file__, "child", model_name, how, str(count)]
        out = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        peaks[how] = int(out.strip().splitlines()[-1])
    dense, lazy = peaks["dense"], peaks["lazy"]
    row = {"model": model_name, "candidates": count, "dense MB": dense / 1e6, "lazy MB": lazy / 1e6}
    return [{**row, "lazy / dense": lazy / dense}]


@torch.inference_mode()
def timed(model: SoloNet, pixels: np.ndarray, count: int | None) -> float:
    """Seconds of one picture, start to masks; with a count, as many made-up candidates are decoded."""
    start = time.perf_counter()
    tensor = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255.0
    encoded, _ = model.encode([tensor])
    if count is None:
        model.predict_one(encoded, 0)
    else:
        model.suppress(encoded, 0, some_candidates(model, count))
    return time.perf_counter() - start


def measure_time(models: dict[str, SoloNet], pictures: list[np.ndarray], count: int | None) -> list[dict[str, Any]]:
    """Median seconds of each model, and the median ratio to the first one on the same picture."""
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for number, pixels in enumerate([pictures[0], *pictures]):
        for name, model in models.items():
            taken = timed(model, pixels, count)
            if number:  # the first pass warms up
                seconds[name].append(taken)
    first = next(iter(seconds.values()))
    return [
        {"model": name, "ms, median": median(own) * 1e3, "of the first": median(a / b for a, b in zip(own, first))}
        for name, own in seconds.items()
    ]


def build_parser() -> argparse.ArgumentParser:
    """The parser."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    inner = parts.add_parser("child")
    inner.add_argument("model")
    inner.add_argument("how", choices=("lazy", "dense"))
    inner.add_argument("count", type=int)
    memory = parts.add_parser("memory", help="peak memory of decoding")
    memory.add_argument("--model", default="sodar_resnet50_fpn")
    memory.add_argument("--candidates", type=int, default=100)
    clock = parts.add_parser("time", help="time per picture")
    clock.add_argument("--weights", nargs="+", default=[], help="bundled names or files; the first is the base")
    clock.add_argument("--models", nargs="+", default=[], help="presets with random weights instead")
    clock.add_argument("--data", default="shapes:1001:20")
    clock.add_argument("--candidates", type=int)
    clock.add_argument("--pictures", type=int, default=5, help="of noise, for --models (default: %(default)s)")
    for own in (memory, clock):
        own.add_argument("--json", metavar="FILE")
    return parser


def main() -> None:
    """Parse and run."""
    arguments = build_parser().parse_args()
    if arguments.part == "child":
        print(child(arguments.model, arguments.how, arguments.count))
        return
    if arguments.part == "memory":
        rows = measure_memory(arguments.model, arguments.candidates)
    else:
        models = {name: load(name).model for name in arguments.weights}
        models |= {name: create_model(name).eval() for name in arguments.models}
        if arguments.models:
            generator = np.random.default_rng(0)
            pictures = [generator.integers(0, 255, (800, 1333, 3), dtype=np.uint8) for _ in range(arguments.pictures)]
        else:
            dataset = open_data(arguments.data)
            pictures = [read_picture(dataset[i][0]) for i in range(len(dataset))]
        keep_freed_memory()
        rows = measure_time(models, pictures, arguments.candidates)
    print(machine_line(machine()))
    cells = [[f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    print(report.table(list(rows[0]), cells))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
