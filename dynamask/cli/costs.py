"""``dynamask costs``: what the masks of a model cost, counted from its layers."""

from __future__ import annotations

import argparse
from typing import Any

from dynamask.cli.common import add_json, say, write_json
from dynamask.config import MASK_BRANCHES
from dynamask.models.factory import create_model, list_models
from dynamask.structures import MASK_SIZES


def add(commands: Any) -> None:
    """Add the command to the subparsers."""
    parser = commands.add_parser(
        "costs",
        help="what a model's masks cost",
        description="MACs of a model's mask branch, counted from its layers; 1 MAC = 2 FLOPs.",
    )
    parser.add_argument("--model", required=True, help=f"one of {', '.join(list_models())}")
    parser.add_argument(
        "--mask-branch", default="region_fpn", help=f"one of {', '.join(MASK_BRANCHES)} (default: region_fpn)"
    )
    add_json(parser)
    parser.set_defaults(run=_costs)


def _costs(arguments: argparse.Namespace) -> None:
    branch = create_model(arguments.model, mask_branch=arguments.mask_branch).mask_branch
    costs = branch.costs
    say(f"{arguments.model}, {arguments.mask_branch}: MACs of one instance (1 MAC = 2 FLOPs)", arguments.json)
    for size, macs, share in zip(MASK_SIZES, costs.macs_per_instance, costs.fractions):
        if size in branch.mask_sizes:
            say(f"  {size:>3} x {size:<3}  {macs / 1e9:.4f} G  {share:6.1%}", arguments.json)
    if branch.switch is not None:
        share = costs.switch_macs / costs.macs_per_instance[-1]
        say(f"  switch     {costs.switch_macs / 1e9:.4f} G  {share:6.1%}", arguments.json)
    write_json(
        {
            "model": arguments.model,
            "mask_branch": arguments.mask_branch,
            "sizes_given": list(branch.mask_sizes),
            "mask_sizes": list(MASK_SIZES),
            "macs_per_instance": list(costs.macs_per_instance),
            "switch_macs": costs.switch_macs,
        },
        arguments.json,
    )
