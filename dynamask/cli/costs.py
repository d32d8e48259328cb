"""``dynamask costs``: MACs of the masks of a model, counted from its layers."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from dynamask.cli.common import add_json, add_refine, print_line, write_json
from dynamask.config import MASK_BRANCHES
from dynamask.presets import list_models
from dynamask.structures import MASK_SIZES, DynaMaskError


def add(commands: Any) -> None:
    """Add the command to the subparsers."""
    parser = commands.add_parser(
        "costs",
        help="MACs of the masks of a model",
        description="Count the MACs of the mask branch of a model from its layers (1 MAC = 2 FLOPs).",
    )
    parser.add_argument("--model", required=True, help=f"model preset: {', '.join(list_models())}")
    parser.add_argument(
        "--mask-branch", default="region_fpn", help=f"{', '.join(MASK_BRANCHES)} (default: %(default)s)"
    )
    add_refine(parser)
    add_json(parser)
    parser.set_defaults(run=_costs)


def _costs(arguments: argparse.Namespace) -> None:
    from dynamask.models.build import build_mask_branch, create_model

    if arguments.model in list_models("one-stage"):
        if arguments.refine is not None:
            raise DynaMaskError(f"{arguments.model} has no stages to refine; leave out --refine")
        _one_stage_costs(arguments)
        return
    given = {} if arguments.refine is None else {"refine": arguments.refine}
    model = create_model(arguments.model, mask_branch=arguments.mask_branch, **given)
    branch, refine = model.mask_branch, model.config.refine
    costs = branch.costs
    dense = costs if refine is None else build_mask_branch(dataclasses.replace(model.config, refine=None)).costs
    kind = arguments.mask_branch + ("" if refine is None else f" refined {','.join(f'{share:g}' for share in refine)}")
    print_line(f"{arguments.model}, {kind}: MACs per instance (1 MAC = 2 FLOPs)", arguments.json)
    for k, (size, macs, share) in enumerate(zip(MASK_SIZES, costs.macs_per_instance, costs.fractions)):
        more = "" if refine is None else f"  {macs / dense.macs_per_instance[k]:6.1%} of dense, {costs.cells[k]} cells"
        if size in branch.mask_sizes:
            print_line(f"  {size:>3} x {size:<3}  {macs / 1e9:.4f} G  {share:6.1%}{more}", arguments.json)
    if branch.switch is not None:
        share = costs.switch_macs / costs.macs_per_instance[-1]
        print_line(f"  switch     {costs.switch_macs / 1e9:.4f} G  {share:6.1%}", arguments.json)
    if branch.quality is not None:
        share = costs.quality_macs / costs.macs_per_instance[-1]
        print_line(f"  quality    {costs.quality_macs / 1e9:.4f} G  {share:6.1%}", arguments.json)
    write_json(
        {
            "model": arguments.model,
            "mask_branch": arguments.mask_branch,
            "refine": refine,
            "sizes_given": list(branch.mask_sizes),
            "mask_sizes": list(MASK_SIZES),
            "cells": list(costs.cells),
            "macs_per_instance": list(costs.macs_per_instance),
            "dense_macs_per_instance": list(dense.macs_per_instance),
            "switch_macs": costs.switch_macs,
            "quality_macs": costs.quality_macs,
        },
        arguments.json,
    )


def _one_stage_costs(arguments: argparse.Namespace) -> None:
    """Parameters and MACs of a one-stage model on a picture of 1280×800 pixels, by both rules of counting."""
    from dynamask.models.build import create_model
    from dynamask.models.solo.costs import (
        decoding_macs,
        mask_strides,
        network_macs,
        representation_macs,
        trainable_parameters,
    )

    model = create_model(arguments.model)
    parts = network_macs(model)
    total = sum(network_macs(model, rule="table7").values())
    config = model.config
    stride = mask_strides(config)[0]
    decoding = decoding_macs(800 // stride, 1280 // stride, representation_macs(config), config.aggregation)
    parameters = trainable_parameters(model)
    print_line(f"{arguments.model}: 1280 x 800 pixels, {len(model.config.class_names) - 1} classes", arguments.json)
    print_line(f"  {parameters / 1e6:.3f} M trainable parameters", arguments.json)
    for part, macs in parts.items():
        print_line(f"  {part:<12} {macs / 1e9:9.3f} GMACs", arguments.json)
    print_line(f"  {'total':<12} {sum(parts.values()) / 1e9:9.3f} GMACs", arguments.json)
    print_line(f"  {'table VII':<12} {total / 1e9:9.3f} G by the rule of SODAR's Table VII", arguments.json)
    print_line(f"  one mask     {decoding / 1e9:9.4f} GMACs at stride {stride}", arguments.json)
    values = {"parameters": parameters, "image_macs": parts, "table7": total, "macs_per_instance": decoding}
    write_json({"model": arguments.model, **values}, arguments.json)
