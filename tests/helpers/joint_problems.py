"""Training steps with fixed regions, noise and targets, to compare one process, several processes and micro-batches.

``python -m helpers.joint_problems OUT``, started by torchrun or with its variables, takes all of them in one process of
several.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from dynamask.config import AggregationConfig
from dynamask.data.shapes import ShapesDataset
from dynamask.engine.distributed import SINGLE_PROCESS, Ranks, joined
from dynamask.engine.evaluate import EvaluationOptions, run_evaluation
from dynamask.engine.run import Run
from dynamask.engine.step import train_step
from dynamask.predict import load
from dynamask.structures import MASK_SIZES, DynaMaskError
from dynamask.training_config import LossConfig, TrainConfig
from helpers.small_models import picture, target, tiny_branch, tiny_solo

Problem = tuple[nn.Module, list[Tensor], list[dict]]
"""A model with a batch of images and targets."""
Step = tuple[dict[str, float], dict[str, Tensor]]
"""The values of a training step and the gradients that it leaves."""
CONFIG = TrainConfig(batch_size=4, optimizer="sgd", lr=0.0, warmup=0, clip_norm=0.0, workers=0)
LOSSES = {
    "paper": LossConfig(budget_target=0.05),
    "expected": LossConfig(
        budget_target=0.2,
        switch_selection="expected",
        switch_signal="boundary",
        boundary_weight=2.0,
        entropy_on="instances",
    ),
    "selected": LossConfig(budget_target=0.1, mask_supervision="selected", entropy_on="selection", detach_switch=False),
    "sum": LossConfig(budget_target=0.05, loss_reduction="sum"),
    "slack": LossConfig(budget_target=1.0),
}
"""Losses that together use every mean there is; the budget of "slack" holds."""
AGGREGATIONS = {"solov2": None, "sodar": AggregationConfig(direct_weight=1.0, deformable=True)}
REGIONS = {"uneven": (5, 1, 3, 0), "one process has none": (4, 2, 0, 0), "none": (0, 0, 0, 0)}
"""Positive regions of the four images; process 0 of two has the first two images."""
OBJECTS = {"uneven": (2, 1, 1, 0), "one process has none": (2, 1, 0, 0), "none": (0, 0, 0, 0)}
"""Objects of the four images, each of which makes several cells positive."""


class BranchModel(nn.Module):
    """A mask branch whose regions, features and noise are given by the targets."""

    def __init__(self, losses: LossConfig, switch_enabled: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mask_branch = tiny_branch(loss_config=losses)
        self.mask_branch.switch_enabled = switch_enabled
        self.loss_weights = losses.weights

    def forward(self, images: list[Tensor], targets: list[dict]) -> dict[str, Tensor]:
        """Losses of the regions of all images."""
        features = {key: torch.cat([t[f"map_{key}"] for t in targets]) for key in "0123"}
        rois = torch.cat(
            [torch.cat([t["rois"].new_full((len(t["rois"]), 1), i), t["rois"]], 1) for i, t in enumerate(targets)]
        )
        state = self.mask_branch.begin(features, rois, torch.cat([t["labels"] for t in targets]))
        masks = [torch.cat([t[f"mask_{size}"] for t in targets]) for size in MASK_SIZES]
        noise = torch.cat([t["noise"] for t in targets])
        return self.mask_branch.losses(state, masks, noise, torch.full((len(rois),), 3.0))


def branch_problem(losses: LossConfig, counts: tuple[int, ...], switch_enabled: bool = True) -> Problem:
    """A mask branch on images with so many positive regions."""
    targets = []
    for number, count in enumerate(counts):
        draws = torch.Generator().manual_seed(number)
        low = torch.rand(count, 2, generator=draws) * 50
        values = {
            "image_id": number,
            "rois": torch.cat([low, low + 12 + torch.rand(count, 2, generator=draws) * 50], dim=1),
            "labels": torch.randint(1, 4, (count,), generator=draws),
            "noise": torch.randn(count, 4, generator=draws),
        }
        values |= {
            f"map_{i}": torch.randn(1, 8, 128 // s, 128 // s, generator=draws) for i, s in enumerate((4, 8, 16, 32))
        }
        values |= {f"mask_{s}": (torch.rand(count, s, s, generator=draws) > 0.5).float() for s in MASK_SIZES}
        targets.append(values)
    return BranchModel(losses, switch_enabled), [torch.zeros(3, 8, 8) for _ in counts], targets


def one_stage_problem(aggregation: AggregationConfig | None, counts: tuple[int, ...]) -> Problem:
    """A one-stage model on images with so many objects."""
    images = [picture(64, 80, seed) for seed in range(len(counts))]
    return tiny_solo(aggregation), images, [target(64, 80, count, number) for number, count in enumerate(counts)]


PROBLEMS: dict[str, Callable[[], Problem]] = {
    **{
        f"{name}, {regions}": partial(branch_problem, losses, counts)
        for name, losses in LOSSES.items()
        for regions, counts in REGIONS.items()
    },
    **{
        f"{name}, {objects}": partial(one_stage_problem, aggregation, counts)
        for name, aggregation in AGGREGATIONS.items()
        for objects, counts in OBJECTS.items()
    },
    "phase one": partial(branch_problem, LOSSES["expected"], REGIONS["uneven"], switch_enabled=False),
}


def step(out: Path, name: str, ranks: Ranks = SINGLE_PROCESS, **changes) -> Step:
    """Take the step of a problem; ``changes`` are fields of the schedule, such as ``accumulate``."""
    model, images, targets = PROBLEMS[name]()
    run = Run(model, None, dataclasses.replace(CONFIG, **changes), out, ranks=ranks)
    values = train_step(run, ranks.share(images), ranks.share(targets))
    return values, {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def splits(name: str) -> tuple[int, ...]:
    """Numbers of micro-batches with which a problem is solved by several processes."""
    return (1, 2) if name.endswith("uneven") else (1,)


def evaluation(ranks: Ranks = SINGLE_PROCESS) -> list[dict]:
    """Figures of bundled weights on a few scenes, with sizes chosen image by image and over all of them."""
    predictor, scenes = load("shapes"), ShapesDataset(3, 77)
    options = [EvaluationOptions(), EvaluationOptions(policy="random", seed=3)]
    return [run_evaluation(predictor, scenes, options=option, ranks=ranks) for option in options]


def failing(ranks: Ranks) -> list[str]:
    """Errors raised in this process when one of the processes fails, and whether it stops when another does."""

    def refuse(rank: int):
        def act() -> int:
            if ranks.rank == rank:
                raise DynaMaskError(f"process {rank} refuses")
            return ranks.rank

        return act

    errors = []
    for call in (lambda: ranks.together(refuse(1)), lambda: ranks.from_first(refuse(0))):
        try:
            call()
        except DynaMaskError as error:
            errors.append(f"{type(error).__name__}: {error}")
    return [*errors, str(ranks.agree(stop=ranks.rank == 1)), str(ranks.agree())]


def main(out: Path) -> None:
    """Save what one of several processes finds as ``out/RANK.pt``."""
    with joined("cpu") as ranks:
        found = {
            "steps": {(name, n): step(out, name, ranks, accumulate=n) for name in PROBLEMS for n in splits(name)},
            "evaluation": evaluation(ranks),
            "failing": failing(ranks),
            "sum": ranks.sum(torch.tensor([1.0, ranks.rank])).tolist(),
            "from first": ranks.from_first(lambda: f"made by {ranks.rank}"),
            "shares": ranks.share(list(range(5))),
        }
        torch.save(found, out / f"{ranks.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
