"""Optimizers, learning rate schedules and the moving average of the weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from dynamask.training_config import TrainConfig


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Trainable parameters in groups: pretrained parts have their own rate; AdamW does not decay biases and norms."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    pretrained = pretrained_modules(model)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decayed = config.optimizer == "sgd" or parameter.ndim > 1
            groups.setdefault((name.startswith(pretrained), decayed), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": config.lr * (config.backbone_lr_factor if slow else 1.0),
            "weight_decay": config.weight_decay if decayed else 0.0,
        }
        for (slow, decayed), parameters in groups.items()
    ]


def pretrained_modules(model: nn.Module) -> tuple[str, ...]:
    """Prefixes of the names of the parameters that start from pretrained weights."""
    detector = getattr(model, "detector", None)
    return ("backbone.body.",) if detector is None else tuple(f"detector.{p}" for p in detector.PRETRAINED_MODULES)


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD or AdamW."""
    groups = parameter_groups(model, config)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=config.momentum)
    return torch.optim.AdamW(groups, fused=True)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load the state of every parameter. The options of the groups stay: they follow from the settings of the run.

    Raises:
        ValueError: the state does not fit the parameters; torch raises further errors, also KeyError and TypeError.
    """
    options = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    groups = [{**theirs, **ours} for theirs, ours in zip(state["param_groups"], options, strict=True)]
    optimizer.load_state_dict({"state": state["state"], "param_groups": groups})
    wanted = {"momentum_buffer"} if isinstance(optimizer, torch.optim.SGD) else {"step", "exp_avg", "exp_avg_sq"}
    for parameter, values in optimizer.state.items():
        given = {key: value for key, value in values.items() if value is not None}  # SGD without momentum has None
        if given.keys() != wanted and not (given.keys() < wanted and wanted == {"momentum_buffer"}):
            raise ValueError("the optimizer's state is incomplete")
        for key, value in given.items():
            shape = torch.Size() if key == "step" else parameter.shape
            if not torch.is_tensor(value) or value.shape != shape or not value.is_floating_point():
                raise ValueError("the optimizer's tensors have other shapes or types")


def lr_factor(step: int, config: TrainConfig) -> float:
    """Factor of the learning rate at a step: linear warm-up, then the step or cosine schedule over all iterations."""
    warm = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    if config.schedule == "step":
        return warm * 0.1 ** sum(step >= milestone * config.iterations for milestone in config.milestones)
    return warm * 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / config.iterations)))


class WeightAverage:
    """Exponential moving average of a model's trainable parameters and of the statistics of its batch norms.

    All other tensors are constant, among them frozen batch norms, which are modules of another class.
    The decay after n updates is min(decay, (1 + n) / (10 + n)), so that the first weights are forgotten quickly.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        norms = {name: m for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
        self.statistics = {f"{name}.{kind}" for name in norms for kind in ("running_mean", "running_var")}
        self.state = {key: value.detach().clone() for key, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the current weights of the model."""
        self.updates += 1
        weight = 1.0 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        moving = [(key, value) for key, value in model.named_parameters() if value.requires_grad]
        moving += [(key, value) for key, value in model.named_buffers() if key in self.statistics]
        torch._foreach_lerp_([self.state[key] for key, _ in moving], [value for _, value in moving], weight)
