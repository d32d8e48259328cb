"""One-stage models: memory of mask decoding against dense maps, and time per picture against the base model.

    python benchmarks/decoding.py memory --model sodar_resnet50_fpn
    python benchmarks/decoding.py time --weights shapes-solov2 shapes-sodar --data shapes:1001:20
    python benchmarks/decoding.py time --models solov2_resnet50_fpn sodar_v2_resnet50_fpn --candidates 100

Peak memory is the most resident memory while a process of its own decodes, above what it had before (Linux only);
backbone and FPN are replaced by random maps of the size that a picture of 800×1333 pixels gives. Times are taken of the
models in turn, with medians of ratios, in a process that keeps freed memory, as the commands and the app do.
``--candidates`` makes every model decode the same number of cells, which random weights need.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch import Tensor

from benchmarks import harness
from benchmarks.harness import Result
from dynamask.data.pictures import read_picture
from dynamask.data.sources import open_data
from dynamask.engine.memory import keep_freed_memory
from dynamask.evaluation.efficiency import Case, interleave
from dynamask.models.build import create_model
from dynamask.models.solo.aggregation import decode, dynamic_network
from dynamask.models.solo.inference import Candidates, EncodedGrids, detect, suppress
from dynamask.models.solo.model import SoloNet
from dynamask.predict import load
from dynamask.structures import DynaMaskError

FRAME = (800, 1344)
"""A picture of 800×1333 pixels, padded to 32."""


def random_pyramid(channels: int, frame: tuple[int, int]) -> dict[str, Tensor]:
    """P2 … P6 of a picture, as random maps."""
    generator = torch.Generator().manual_seed(0)
    sides = {"0": 4, "1": 8, "2": 16, "3": 32, "pool": 64}
    sizes = {key: (-(-frame[0] // s), -(-frame[1] // s)) for key, s in sides.items()}
    return {key: torch.randn(1, channels, *size, generator=generator) for key, size in sizes.items()}


def encoded_grids(model: SoloNet) -> EncodedGrids:
    """Output of the heads on :func:`random_pyramid`."""
    return EncodedGrids(
        model.head(random_pyramid(model.config.fpn_channels, FRAME)), [(800, 1333)], [(800, 1333)], FRAME
    )


def some_candidates(model: SoloNet, count: int) -> Candidates:
    """Candidates of random cells, spread evenly over the levels, with falling scores."""
    generator = torch.Generator().manual_seed(1)
    grids = torch.tensor(model.config.grids)
    level = torch.arange(count) % len(grids)
    cell = (torch.rand(count, generator=generator) * grids[level] ** 2).long()
    return Candidates(level, cell, torch.ones_like(cell), torch.linspace(0.9, 0.1, count))


def decode_dense(model: SoloNet, encoded: EncodedGrids, found: Candidates) -> Tensor:
    """Areas of the masks, decoded as the papers' code does: the maps of all cells at once, then all candidates."""
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
def decoding_memory(model_name: str, how: str, count: int) -> int:
    """Most resident bytes while decoding ("lazy" or "dense"), above those before it."""
    torch.manual_seed(0)
    model = create_model(model_name).eval()
    encoded, found = encoded_grids(model), some_candidates(model, count)
    decode_masks = decode_dense if how == "dense" else decode_lazily
    return harness.peak_memory(lambda: decode_masks(model, encoded, found))


def measure_memory(arguments: argparse.Namespace) -> Result:
    """Peak memory of either way of decoding, each in a process of its own."""
    dense, lazy = (
        harness.in_child(__file__, "child", arguments.model, how, arguments.candidates) for how in ("dense", "lazy")
    )
    row = {"model": arguments.model, "candidates": arguments.candidates, "dense MB": dense / 1e6, "lazy MB": lazy / 1e6}
    return rows_result([{**row, "lazy / dense": lazy / dense}])


def decode_lazily(model: SoloNet, encoded: EncodedGrids, found: Candidates) -> object:
    """Masks as the model itself decodes them."""
    return suppress(model, encoded, 0, found)


def picture_case(model: SoloNet, pictures: Sequence[np.ndarray], count: int | None) -> Case:
    """From a picture to its masks; with a count, that many made-up candidates are decoded."""

    @torch.inference_mode()
    def once(number: int) -> None:
        pixels = torch.from_numpy(pictures[number % len(pictures)])
        encoded, _ = model.encode([pixels.permute(2, 0, 1).float() / 255.0])
        if count is None:
            detect(model, encoded, 0)
        else:
            suppress(model, encoded, 0, some_candidates(model, count))

    return once


def measure_time(arguments: argparse.Namespace) -> Result:
    """Time per picture of weights on a data set, or of presets with random weights on noise."""
    models = {name: load(name, device="cpu").model for name in arguments.weights}
    models |= {name: create_model(name).eval() for name in arguments.models}
    if not models:
        raise DynaMaskError("there is nothing to time; give --weights or --models")
    if arguments.models:
        generator = np.random.default_rng(0)
        pictures = [generator.integers(0, 255, (800, 1333, 3), dtype=np.uint8) for _ in range(arguments.pictures)]
    else:
        dataset = open_data(arguments.data)
        pictures = [read_picture(dataset[i][0]) for i in range(len(dataset))]
    keep_freed_memory()
    cases = {name: picture_case(model, pictures, arguments.candidates) for name, model in models.items()}
    times = interleave(cases, len(pictures), warmup=1)
    first = next(iter(times.values()))
    return rows_result(
        [
            {"model": name, "ms, median": float(np.median(own)), "of the first": float(np.median(own / first))}
            for name, own in times.items()
        ]
    )


def rows_result(rows: list[dict[str, Any]]) -> Result:
    """Rows with equal keys as a result."""
    cells = [[f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    return Result({"rows": rows}, harness.table(list(rows[0]), cells))


def build_parser() -> argparse.ArgumentParser:
    """The parser of the benchmark."""
    parser = harness.make_parser("decoding", __doc__)
    parts = parser.add_subparsers(required=True, metavar="part")
    memory = parts.add_parser("memory", help="peak memory of decoding")
    memory.add_argument("--model", default="sodar_resnet50_fpn")
    memory.add_argument("--candidates", type=int, default=100)
    memory.set_defaults(measure=measure_memory)
    clock = parts.add_parser("time", help="time per picture")
    clock.add_argument("--weights", nargs="+", default=[], help="bundled names or files; the first is the base")
    clock.add_argument("--models", nargs="+", default=[], help="presets with random weights instead")
    clock.add_argument("--data", default="shapes:1001:20")
    clock.add_argument("--candidates", type=int)
    clock.add_argument("--pictures", type=int, default=5, help="number of noise pictures for --models (default: 5)")
    clock.set_defaults(measure=measure_time)
    for part in (memory, clock):
        harness.add_json_flag(part)
    return parser


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        print(json.dumps(decoding_memory(*sys.argv[2:4], int(sys.argv[4]))))
    else:
        sys.exit(harness.run(build_parser()))
