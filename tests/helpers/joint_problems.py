"""Training steps whose regions, noise and targets are fixed, so that one process, several, and micro-batches can be
compared; run as a program, it is one of several processes (``python -m helpers.joint_problems OUT`` in ``tests``)."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from dynamask.config import AggregationConfig, LossConfig, TrainConfig
from dynamask.data.shapes import ShapesDataset
from dynamask.engine.distributed import SINGLE_PROCESS, Ranks, joined
from dynamask.engine.evaluate import EvaluationOptions, run_evaluation
from dynamask.engine.run import Run
from dynamask.engine.step import train_step
from dynamask.predict import load
from dynamask.structures import MASK_SIZES, DynaMaskError
from helpers.small_models import picture, target, tiny_branch, tiny_solo

PICTURES = 4
CONFIG = TrainConfig(batch_size=PICTURES, optimizer="sgd", lr=0.0, warmup=0, clip_norm=0.0, workers=0)
OPTIONS = {
    "paper": {"budget_target": 0.05},
    "expected": {"budget_target": 0.2, "switch_selection": "expected", "switch_signal": "boundary",
                 "boundary_weight": 2.0, "entropy_on": "instances"},
    "selected": {"budget_target": 0.1, "mask_supervision": "selected", "entropy_on": "selection",
                 "detach_switch": False},
    "slack": {"budget_target": 1.0},
}  # fmt: skip
"""Losses that together use every mean there is; under "slack" the budget holds."""
REGIONS = {"uneven": (5, 1, 3, 0), "one process has none": (4, 2, 0, 0), "none": (0, 0, 0, 0)}
"""Positive regions of every picture; the first half of the pictures is the first process's."""
ONE_STAGE = {"solov2": None, "sodar": {"direct_weight": 1.0, "deformable": True}}
"""Aggregations of one-stage models."""
OBJECTS = {"uneven": (2, 1, 1, 0), "one process has none": (2, 1, 0, 0), "none": (0, 0, 0, 0)}
"""Objects of every picture, of which each makes several cells positive."""


class BranchModel(nn.Module):
    """A mask branch that takes its regions from the targets."""

    def __init__(self, losses: LossConfig, switch_enabled: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mask_branch = tiny_branch(loss_config=losses)
        self.mask_branch.switch_enabled = switch_enabled

    def forward(self, images: list[Tensor], targets: list[dict]) -> dict[str, Tensor]:
        """Losses of the regions of all pictures, with the noise of each."""
        features = {key: torch.cat([t[f"map_{key}"] for t in targets]) for key in "0123"}
        rois = torch.cat(
            [torch.cat([t["rois"].new_full((len(t["rois"]), 1), i), t["rois"]], 1) for i, t in enumerate(targets)]
        )
        state = self.mask_branch.begin(features, rois, torch.cat([t["labels"] for t in targets]))
        masks = [torch.cat([t[f"mask_{size}"] for t in targets]) for size in MASK_SIZES]
        noise = torch.cat([t["noise"] for t in targets])
        return self.mask_branch.losses(state, masks, noise, torch.full((len(rois),), 3.0))


def pictures(counts: tuple[int, ...]) -> tuple[list[Tensor], list[dict]]:
    """Images (unused) and targets of a batch with so many positive regions a picture."""
    targets = []
    for number, count in enumerate(counts):
        draws = torch.Generator().manual_seed(number)
        low = torch.rand(count, 2, generator=draws) * 50
        target = {
            "image_id": number,
            "rois": torch.cat([low, low + 12 + torch.rand(count, 2, generator=draws) * 50], dim=1),
            "labels": torch.randint(1, 4, (count,), generator=draws),
            "noise": torch.randn(count, 4, generator=draws),
        }
        target |= {
            f"map_{i}": torch.randn(1, 8, 128 // s, 128 // s, generator=draws) for i, s in enumerate((4, 8, 16, 32))
        }
        target |= {f"mask_{s}": (torch.rand(count, s, s, generator=draws) > 0.5).float() for s in MASK_SIZES}
        targets.append(target)
    return [torch.zeros(3, 8, 8) for _ in counts], targets


def step(
    out: Path,
    options: dict,
    counts: tuple[int, ...],
    ranks: Ranks = SINGLE_PROCESS,
    accumulate: int = 1,
    switch: bool = True,
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """What a training step says and the gradients it leaves."""
    losses = LossConfig(**options)
    config = dataclasses.replace(CONFIG, accumulate=accumulate)
    model = BranchModel(losses, switch)
    run = Run(model, None, config, out, losses.weights, ranks=ranks)
    images, targets = pictures(counts)
    values = train_step(run, ranks.share(images), ranks.share(targets))
    return values, {name: p.grad.clone() for name, p in model.named_parameters()}


def one_stage_step(
    out: Path,
    aggregation: dict | None,
    counts: tuple[int, ...],
    ranks: Ranks = SINGLE_PROCESS,
    accumulate: int = 1,
    precision: str = "fp32",
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """:func:`step` of a whole one-stage model, on pictures with so many objects."""
    chosen = None if aggregation is None else AggregationConfig(**aggregation)
    model = tiny_solo(chosen)
    config = dataclasses.replace(CONFIG, accumulate=accumulate, precision=precision)
    run = Run(model, None, config, out, ranks=ranks)
    images = [picture(64, 80, seed) for seed in range(len(counts))]
    targets = [target(64, 80, count, number) for number, count in enumerate(counts)]
    values = train_step(run, ranks.share(images), ranks.share(targets))
    return values, {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def evaluation(ranks: Ranks = SINGLE_PROCESS) -> list[dict]:
    """Figures of bundled weights on a few scenes, chosen picture by picture and over all of them."""
    predictor, scenes = load("shapes"), ShapesDataset(5, 77)
    options = [EvaluationOptions(), EvaluationOptions(policy="random", seed=3)]
    return [run_evaluation(predictor, scenes, options=option, ranks=ranks) for option in options]


def failing(ranks: Ranks) -> list[str]:
    """How every process hears of what goes wrong in one of them."""

    def refuse(rank: int):
        def act() -> int:
            if ranks.rank == rank:
                raise DynaMaskError(f"process {rank} refuses")
            return ranks.rank

        return act

    heard = []
    for call in (lambda: ranks.together(refuse(1)), lambda: ranks.from_first(refuse(0))):
        try:
            call()
        except DynaMaskError as error:
            heard.append(f"{type(error).__name__}: {error}")
    return [*heard, str(ranks.agree(stop=ranks.rank == 1)), str(ranks.agree())]


def main(out: Path) -> None:
    """Everything that two processes are asked, saved as ``out/RANK.pt``."""
    with joined("cpu") as ranks:
        found = {
            (name, regions, accumulate): step(out, options, counts, ranks, accumulate)
            for name, options in OPTIONS.items()
            for regions, counts in REGIONS.items()
            for accumulate in (1, 2)
        }
        one_stage = {
            (name, objects, accumulate): one_stage_step(out, options, counts, ranks, accumulate)
            for name, options in ONE_STAGE.items()
            for objects, counts in OBJECTS.items()
            for accumulate in (1, 2)
        }
        found["phase one"] = step(out, OPTIONS["expected"], REGIONS["uneven"], ranks, switch=False)
        told = {
            "steps": found,
            "one stage": one_stage,
            "evaluation": evaluation(ranks),
            "failing": failing(ranks),
            "sum": None,
        }
        told["sum"] = ranks.sum(torch.tensor([1.0, ranks.rank])).tolist()
        told["shares"] = ranks.share(list(range(5)))
        torch.save(told, out / f"{ranks.rank}.pt")


if __name__ == "__main__":
    assert os.environ["WORLD_SIZE"]
    main(Path(sys.argv[1]))
