"""``dynamask costs``: what the masks of a model cost, counted from its layers."""

from __future__ import annotations

import argparse
from typing import Any

from dynamask.cli.common import add_json, say, write_json
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
    add_json(parser)
    parser.set_defaults(run=_costs)


def _costs(arguments: argparse.Namespace) -> None:
    costs = create_model(arguments.model).mask_branch.costs
    say(f"{arguments.model}: MACs of one instance (1 MAC = 2 FLOPs)", arguments.json)
    for size, macs, share in zip(MASK_SIZES, costs.macs_per_instance, costs.fractions):
        say(f"  {size:>3} x {size:<3}  {macs / 1e9:.4f} G  {share:6.1%}", arguments.json)
    say(
        f"  switch     {costs.switch_macs / 1e9:.4f} G  {costs.switch_macs / costs.macs_per_instance[-1]:6.1%}",
        arguments.json,
    )
    write_json(
        {
            "model": arguments.model,
            "mask_sizes": list(MASK_SIZES),
            "macs_per_instance": list(costs.macs_per_instance),
            "switch_macs": costs.switch_macs,
        },
        arguments.json,
    )
