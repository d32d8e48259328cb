"""Recipes: a small override of the defaults, its command, the hardware, the time and the result to expect.

The paper's recipes have its figures (tables 2–5 and S2) as the result to expect; nobody has run them with this code,
and their times are estimates that say from what. The others made the bundled weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dynamask.structures import DynaMaskError

COCO_IMAGES, LVIS_IMAGES, CITYSCAPES_IMAGES = 118_287, 100_170, 2_975
"""Training pictures: COCO train2017, LVIS v1 train, Cityscapes fine train."""
PAPER_MACS = 1.4
"""GMACs of the paper's full mask branch; its budgets C_t are given in GMACs, ours as a share of the full branch."""
_SLOWER = 12.4 / 8.3
"""Pictures a second of Mask R-CNN over DynaMask's (Tab. 6), taken for training, too."""


@dataclass(frozen=True)
class Recipe:
    """Everything about a training but the data's place.

    Attributes:
        name: as in ``dynamask train --recipe NAME``.
        title: what it trains, in a few words.
        model: name of the preset.
        data: the data, in words.
        data_flags: of the command, places to be filled in.
        images: training pictures.
        epochs: passes over them, from which the iterations follow; None where ``flags`` name the iterations.
        batch_size: pictures per step.
        flags: values of further flags of ``dynamask train`` under their names in Python.
        expect: the result, and where it comes from.
        hardware: that the time is for.
        seconds_per_step: seconds of one step there.
        basis: where that figure comes from; every time is an estimate.
        processes: of the command, one per GPU.
        after: commands that make the rest of the weights.
    """

    name: str
    title: str
    model: str
    data: str
    data_flags: str
    images: int
    epochs: int | None
    batch_size: int
    flags: Mapping[str, Any]
    expect: str
    hardware: str
    seconds_per_step: float
    basis: str
    processes: int = 1
    after: tuple[str, ...] = field(default=())

    @property
    def iterations(self) -> int:
        """Steps of the schedule."""
        if self.epochs is None:
            return int(self.flags["iterations"])
        return math.ceil(self.epochs * self.images / self.batch_size)

    @property
    def steps(self) -> int:
        """Steps that are run of it: the small recipes stop before the end of their schedule."""
        return int(self.flags.get("stop_at", 0)) or self.iterations

    @property
    def hours(self) -> float:
        """Estimated duration on ``hardware``."""
        return self.steps * self.seconds_per_step / 3600

    @property
    def command(self) -> str:
        """The command, as a shell takes it."""
        start = "dynamask" if self.processes == 1 else f"torchrun --nproc-per-node {self.processes} -m dynamask"
        return f"{start} train --recipe {self.name} {self.data_flags} --out runs/{self.name}"

    def values(self) -> dict[str, Any]:
        """Values of all flags of ``dynamask train`` that the recipe sets, by their names in Python."""
        steps = {"batch_size": self.batch_size, "iterations": self.iterations}
        return {"model": self.model, **steps, **self.flags}


def recipe_named(name: str) -> Recipe:
    """The recipe of a name; an unknown one raises :class:`DynaMaskError`."""
    if name not in RECIPES:
        raise DynaMaskError(f"recipe {name!r} is unknown; `dynamask recipes` lists them all")
    return RECIPES[name]


def _schedule(times: int) -> dict[str, Any]:
    """The paper's schedule n×: an epoch without the switch, then 12·n epochs, the rate down after 8·n and 11·n."""
    epochs = 12 * times + 1
    return {
        "warm_start": 1 / epochs,
        "milestones": ((8 * times + 1) / epochs, (11 * times + 1) / epochs),
        "lr": 0.02,
        "warmup": 500,
    }


def _budget(gmacs: float, weight: float) -> dict[str, Any]:
    """The paper's budget C_t in GMACs and λ2 as our flags."""
    return {"budget_target": round(gmacs / PAPER_MACS, 2), "switch_weight": weight}


_COCO_FLAGS = "--data path/to/coco --val-data path/to/coco --device cuda"
_GPUS = "8 GPUs of the V100 class, two pictures each"
_BACKBONES = {
    "r50": ("dynamask_resnet50_fpn", "resnet50.tv_in1k", "ResNet-50", 0.261, "R50-FPN"),
    "r101": ("dynamask_resnet101_fpn", "resnet101.tv_in1k", "ResNet-101", 0.340, "R101-FPN"),
    "x101": (
        "dynamask_resnext101_fpn",
        "resnext101_32x4d.gluon_in1k",
        "ResNeXt-101",
        0.690,
        "the heavier X101-32x8d-FPN",
    ),
}
"""Preset, timm's ImageNet weights of torchvision's kind, title, Detectron2's seconds per step and its model."""


def _basis(seconds: float, model: str) -> str:
    return (
        f"estimate: {seconds} s a step of Mask R-CNN {model} on 8 V100 (Detectron2's model zoo), times "
        f"{_SLOWER:.2f}, the paper's Tab. 6"
    )


def _coco(backbone: str, times: int, expect: str, multi_scale: bool = False, suffix: str = "", **flags: Any) -> Recipe:
    """A COCO training of the paper."""
    model, weights, title, seconds, basis = _BACKBONES[backbone]
    scale = {} if multi_scale else {"min_sizes": (800,)}
    budget = _budget(1.0, 0.4)
    return Recipe(
        name=f"coco-{backbone}-{times}x{'-ms' if multi_scale else ''}{suffix}",
        title=f"COCO, {title}, {times}×{', multi-scale' if multi_scale else ''}",
        model=model,
        data="COCO 2017 train, 80 classes",
        data_flags=_COCO_FLAGS,
        images=COCO_IMAGES,
        epochs=12 * times + 1,
        batch_size=16,
        flags={"backbone": weights, "backbone_weights": "timm", **_schedule(times), **scale, **budget, **flags},
        expect=expect,
        hardware=_GPUS,
        seconds_per_step=seconds * _SLOWER,
        basis=_basis(seconds, basis),
        processes=8,
    )


_NO_FIGURE = "the paper has no figure for it"
_PAPER_RECIPES = (
    _coco("r50", 1, "mask AP 37.6 on val (Tab. 2, all at 112); with the switch 37.6 at 1.13 GMACs (Tab. 5)"),
    _coco("r50", 1, "mask AP 36.8 on val at 0.64 GMACs (Tab. 5, C_t = 0.4)", suffix="-low", **_budget(0.4, 0.4)),
    _coco("r50", 2, "mask AP 38.2 on val (Tab. 2)"),
    _coco("r50", 3, _NO_FIGURE),
    _coco("r50", 3, _NO_FIGURE, multi_scale=True),
    _coco("r101", 1, "mask AP 38.7 on val (Tab. 2)"),
    _coco("r101", 2, "mask AP 39.0 on val (Tab. 2)"),
    _coco("r101", 3, "mask AP 39.6 on test-dev (Tab. 3)"),
    _coco("r101", 3, "mask AP 41.3 on test-dev (Tab. 3)", multi_scale=True),
    _coco("x101", 1, _NO_FIGURE),
    _coco("x101", 2, _NO_FIGURE),
    _coco("x101", 3, _NO_FIGURE),
    _coco("x101", 3, "mask AP 42.0 on test-dev (Tab. 3)", multi_scale=True),
    Recipe(
        name="coco-r50-short",
        title="COCO, torchvision's detector, the mask branch alone",
        model="dynamask_resnet50_fpn",
        data="COCO 2017 train, 80 classes",
        data_flags=_COCO_FLAGS,
        images=COCO_IMAGES,
        epochs=4,
        batch_size=16,
        flags={
            "init": "torchvision", "freeze": "detector", "lr": 0.02, "warmup": 500, "warm_start": 0.25,
            "milestones": (0.625, 0.875), **_budget(1.0, 0.4),
        },
        expect="box AP 37.9 on val, torchvision's; no figure for the masks (its own head has mask AP 34.6)",
        hardware=_GPUS,
        seconds_per_step=0.261 * _SLOWER,
        basis=_basis(0.261, "R50-FPN") + "; an upper bound, since nothing goes back through the detector",
        processes=8,
    ),
    Recipe(
        name="cityscapes-r50",
        title="Cityscapes, ResNet-50",
        model="dynamask_resnet50_fpn",
        data="Cityscapes fine train, 8 classes",
        data_flags="--data path/to/cityscapes --val-data path/to/cityscapes --device cuda",
        images=CITYSCAPES_IMAGES,
        epochs=64,
        batch_size=8,
        flags={
            "backbone": "resnet50.tv_in1k", "backbone_weights": "timm", "lr": 0.01, "warmup": 500,
            "warm_start": 1 / 64, "milestones": (7 / 8,), "min_sizes": tuple(range(800, 1025, 32)),
            "test_min_size": 1024, "max_size": 2048, **_budget(1.0, 0.4),
        },
        expect="mask AP 38.0 on val (Tab. 4); the paper does not print this schedule, which is MMDetection's",
        hardware="8 GPUs of the V100 class, one picture each",
        seconds_per_step=0.240 * _SLOWER,
        basis=_basis(0.240, "R50-FPN on Cityscapes"),
        processes=8,
    ),
    Recipe(
        name="lvis-r50",
        title="LVIS v1, ResNet-50, the last stage class-agnostic",
        model="dynamask_resnet50_fpn",
        data="LVIS v1 train, 1,203 classes",
        data_flags="--data path/to/lvis --val-data path/to/lvis --device cuda",
        images=LVIS_IMAGES,
        epochs=13,
        batch_size=16,
        flags={
            "backbone": "resnet50.tv_in1k", "backbone_weights": "timm", **_schedule(1), **_budget(1.0, 0.4),
            "class_agnostic_last": True, "score_threshold": 1e-4, "detections_per_img": 300,
        },
        expect="mask AP 25.7 on val (Tab. S2); the paper names neither version nor schedule nor sampling, and rare "
        "classes are not drawn more often here",
        hardware=_GPUS,
        seconds_per_step=0.292 * _SLOWER,
        basis=_basis(0.292, "R50-FPN on LVIS"),
        processes=8,
    ),
)  # fmt: skip

_CPU = "2 CPU cores"
_CPU_BASIS = "estimate: 5.5 pictures a second, measured for this detector with a 28×28 mask head at up to 352 pixels"
_OWN = {"model": "dynamask_mobilenetv2_fpn_small", "epochs": None, "batch_size": 4, "hardware": _CPU,
        "seconds_per_step": 4 / 5.5, "basis": _CPU_BASIS}  # fmt: skip
_SHAPES = {"jitter": False, "min_sizes": (288,), "test_min_size": 288, "warm_start": 1.0}
_BACKBONE_FLAG = "--backbone-weights mobilenetv2_100_imagenet.safetensors"
_FIT = "python tools/fit_switch.py --weights runs/{} --set switch_signal=boundary switch_selection=expected {}"

_OWN_RECIPES = (
    Recipe(
        name="people",
        title="people on photographs, small model (first of two steps)",
        data="1,050 COCO photographs with people, longer side at most 416",
        data_flags=f"--images people-416/images --annotations people-416/annotations/instances_train.json "
        f"--holdout 8 {_BACKBONE_FLAG}",
        images=1050,
        flags={"iterations": 3000, "stop_at": 1470, "switch_signal": "edge",
               "switch_selection": "drawn", "entropy_on": "probs", "overlap_share": 0.0, "boundary_weight": 0.0,
               "budget_target": 0.3},
        expect="with people-switch: box AP 0.318, mask AP 0.298 on the kept-back photographs (checkpoints/people.md)",
        after=("dynamask train --recipe people-switch --images people-416/images --annotations "
               "people-416/annotations/instances_train.json --holdout 8 --init runs/people/last.safetensors "
               "--out runs/people-switch",),
        **_OWN,
    ),
    Recipe(
        name="people-switch",
        title="people, the switch alone on the boundary error (second step)",
        data="as people",
        data_flags="--images people-416/images --annotations people-416/annotations/instances_train.json --holdout 8 "
        "--init runs/people/last.safetensors",
        images=1050,
        flags={"freeze": "all-but-switch", "switch_signal": "boundary", "boundary_weight": 10.0, "budget_target": 0.55,
               "overlap_share": 0.0, "switch_selection": "drawn", "entropy_on": "probs",
               "warm_start": 0.0, "warmup": 20, "iterations": 400, "lr": 1e-3, "ema_decay": 0.99, "mask_rois": 16},
        expect="mask AP 0.298 at 0.0472 GMACs (checkpoints/people.md)",
        **_OWN,
    ),
    Recipe(
        name="objects",
        title="things without names, small model",
        data="294 COCO photographs, 80 classes merged into one",
        data_flags="--images coco-mini/images --annotations coco-mini/annotations/instances.json --holdout 8 "
        "--init checkpoints/people.safetensors",
        images=294,
        flags={"merge_classes": True, "iterations": 620, "lr": 4e-4, "warmup": 50, "mask_rois": 8, "warm_start": 1.0},
        expect="box AP 0.057, mask AP 0.046 on 43 kept-back photographs (checkpoints/objects.md)",
        after=(_FIT.format("objects/last.safetensors", "entropy_on=instances overlap_share=0.5 boundary_weight=24 "
                           "switch_weight=1 budget_target=0.3 --images coco-mini/images --annotations "
                           "coco-mini/annotations/instances.json --holdout 8 --views 0 --out objects.safetensors"),),
        **_OWN,
    ),
    Recipe(
        name="shapes-1",
        title="shapes world, objects of all sizes (first of three steps)",
        data="scenes of seed 0, made as they are needed",
        data_flags=f"--data shapes:0:100000:0.12-0.66 {_BACKBONE_FLAG}",
        images=100_000,
        flags={**_SHAPES, "iterations": 2400, "stop_at": 1450},
        expect="the start of shapes-2",
        after=("dynamask train --recipe shapes-2 --data shapes:1:100000 --init runs/shapes-1/last.safetensors "
               "--out runs/shapes-2",),
        **_OWN,
    ),
    Recipe(
        name="shapes-2",
        title="shapes world, default sizes (second step)",
        data="scenes of seed 1, made as they are needed",
        data_flags="--data shapes:1:100000 --init runs/shapes-1/last.safetensors",
        images=100_000,
        flags={**_SHAPES, "iterations": 800, "stop_at": 575, "lr": 5e-4, "warmup": 20},
        expect="box AP 0.836, mask AP 0.775 all at 112; with its fitted switch 0.734 at 0.0732 GMACs "
        "(checkpoints/shapes.md)",
        after=(_FIT.format("shapes-2/last.safetensors", "overlap_share=0.9 boundary_weight=0.5 budget_target=1 "
                           "--data shapes:3:1600 --steps 1200 --spend 0.6 --out shapes.safetensors"),),
        **_OWN,
    ),
)  # fmt: skip

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (*_PAPER_RECIPES, *_OWN_RECIPES)}
"""All recipes by name: the paper's, then those of the bundled weights."""
