"""The training loop: any model that returns named losses, one process."""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from dynamask.config import LossConfig, TrainConfig
from dynamask.data.loaders import TrainingLoader
from dynamask.engine.checkpoint import load_run, random_state, restore_random_state, save_run
from dynamask.structures import DynaMaskError

DETECTOR_LOSSES = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg")
RUN_FILE = "run.pt"


def loss_weights(config: LossConfig) -> dict[str, float]:
    """Weight of every named loss (Eq. 7); the only place where λ1 and λ2 are applied."""
    return {
        **dict.fromkeys(DETECTOR_LOSSES, 1.0),
        "loss_mask": config.mask_weight,
        "loss_edge": config.edge_weight,
        "loss_boundary": config.boundary_weight,
        "loss_budget": config.switch_weight,
        "loss_entropy": config.switch_weight,
    }


def total_loss(losses: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """Weighted sum; a loss without a weight raises KeyError."""
    return torch.stack([losses[name] * weights[name] for name in losses]).sum()


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Trainable parameters: the timm body with its own learning rate; no weight decay on vectors with AdamW."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decayed = config.optimizer == "sgd" or parameter.ndim > 1
            groups.setdefault((name.startswith("backbone.body."), decayed), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": config.lr * (config.backbone_lr_factor if in_body else 1.0),
            "weight_decay": config.weight_decay if decayed else 0.0,
        }
        for (in_body, decayed), parameters in groups.items()
    ]


def freeze(model: nn.Module, part: str) -> None:
    """Stop gradients: part "detector" leaves the mask branch to train, "all-but-switch" the switch alone.

    The features of what is frozen are computed anew at every step.
    """
    kept = {"detector": ".mask_branch.", "all-but-switch": ".mask_branch.switch."}[part]
    for name, parameter in model.named_parameters():
        if kept not in name:
            parameter.requires_grad_(False)


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD or AdamW as configured."""
    groups = parameter_groups(model, config)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=config.momentum)
    return torch.optim.AdamW(groups, fused=True)


def lr_factor(step: int, config: TrainConfig) -> float:
    """Learning-rate factor of a step: linear warm-up, then the step or cosine schedule over all iterations."""
    warm = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    if config.schedule == "step":
        return warm * 0.1 ** sum(step >= milestone * config.iterations for milestone in config.milestones)
    return warm * 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / config.iterations)))


class WeightAverage:
    """Exponential moving average of a model's trainable parameters; all else is constant (BatchNorm is frozen).

    The decay grows with the number of updates, min(decay, (1 + n) / (10 + n)), so that early averages are no mixture
    with the random start.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.state = {key: value.detach().clone() for key, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model's present weights."""
        self.updates += 1
        weight = 1.0 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        moving = [(key, value) for key, value in model.named_parameters() if value.requires_grad]
        torch._foreach_lerp_([self.state[key] for key, _ in moving], [value for _, value in moving], weight)


class RunLog:
    """Scalars of a run: one CSV row and TensorBoard points every ``log_every`` steps."""

    def __init__(self, out: Path) -> None:
        self.path = out / "log.csv"
        self.writer = SummaryWriter(str(out / "tensorboard"))

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append the values of a step."""
        new = not self.path.exists()
        with self.path.open("a", newline="") as stream:
            rows = csv.writer(stream)
            if new:
                rows.writerow(["step", *values])
            rows.writerow([step, *(f"{value:.6g}" for value in values.values())])
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)


@dataclasses.dataclass
class Run:
    """A training run: everything that a resumed one needs again."""

    model: nn.Module
    loader: TrainingLoader
    config: TrainConfig
    weights: dict[str, float]
    out: Path
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    step: int = 0
    average: WeightAverage | None = None
    optimizer: torch.optim.Optimizer | None = None

    def __post_init__(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        self.model.to(self.config.device).train()
        self.optimizer = build_optimizer(self.model, self.config)
        self.average = WeightAverage(self.model, self.config.ema_decay) if self.config.ema_decay else None

    def final_state(self) -> dict[str, Tensor]:
        """The weights to keep: the moving average where there is one."""
        return self.average.state if self.average else self.model.state_dict()

    def save(self) -> None:
        """Write the run's state atomically to ``out/run.pt``."""
        average = {"state": self.average.state, "updates": self.average.updates} if self.average else None
        save_run(
            self.out / RUN_FILE,
            {
                "step": self.step,
                "settings": self.settings,
                "model": self.model.state_dict(),
                "average": average,
                "optimizer": self.optimizer.state_dict(),
                "loader": self.loader.state_dict(),
                "random": random_state(),
            },
        )

    def resume(self) -> None:
        """Go on where ``out/run.pt`` stopped; other settings than the run's raise :class:`DynaMaskError`."""
        state = load_run(self.out / RUN_FILE)
        changed = sorted(
            key for key in {*state["settings"], *self.settings} if state["settings"].get(key) != self.settings.get(key)
        )
        if changed:
            raise DynaMaskError(
                f"the run in {self.out} was started with other settings ({', '.join(changed)}); "
                "resume it with the same ones or choose another --out"
            )
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.loader.load_state_dict(state["loader"])
        if self.average:
            self.average.state, self.average.updates = state["average"]["state"], state["average"]["updates"]
        restore_random_state(state["random"])


def train_step(run: Run, images: list[Tensor], targets: list[dict[str, Any]]) -> dict[str, float]:
    """One optimiser step; a loss that is not finite raises :class:`DynaMaskError` with its name and the picture ids."""
    device, config = run.config.device, run.config
    factor = lr_factor(run.step, config)
    for group in run.optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
    pictures = [image.to(device).float() / 255.0 for image in images]
    moved = [
        {key: value.to(device) if isinstance(value, Tensor) else value for key, value in target.items()}
        for target in targets
    ]
    losses = run.model(pictures, moved)
    total = total_loss(losses, run.weights)
    if not torch.isfinite(total):
        name = next((key for key, value in losses.items() if not torch.isfinite(value)), "the total")
        ids = ", ".join(str(target["image_id"]) for target in targets)
        raise DynaMaskError(f"{name} is not finite at step {run.step} (pictures {ids}); lower the learning rate")
    run.optimizer.zero_grad(set_to_none=True)
    total.backward()
    values = {name: float(value.detach()) for name, value in losses.items()}
    if config.clip_norm:
        parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
        values["gradient_norm"] = float(nn.utils.clip_grad_norm_(parameters, config.clip_norm))
    run.optimizer.step()
    if run.average:
        run.average.update(run.model)
    return {"loss": float(total.detach()), **values, "lr": run.optimizer.param_groups[0]["lr"]}


def train(run: Run, on_save: Callable[[Run], None] | None = None, progress: bool = True) -> None:
    """Train to ``config.iterations`` steps (or ``config.stop_at``), from wherever the run stands.

    Args:
        run: its model's ``switch_enabled`` (if it has a mask branch) is off during the warm start, phase one.
        on_save: called after every checkpoint and at the end, to write weights or evaluate.
        progress: show a bar with the time left.
    """
    log = RunLog(run.out)
    branch = getattr(run.model, "mask_branch", None)
    last = min(run.config.stop_at or run.config.iterations, run.config.iterations)
    steps: Iterable[int] = tqdm(
        range(run.step, last),
        initial=run.step,
        total=last,
        disable=not progress,
        unit="step",
        dynamic_ncols=True,
    )
    for step in steps:
        if branch is not None:
            branch.switch_enabled = step >= run.config.warm_start * run.config.iterations
        values = train_step(run, *next(run.loader))
        run.step = step + 1
        if run.step % run.config.log_every == 0:
            log.write(run.step, values)
            if progress:
                steps.set_postfix(loss=f"{values['loss']:.3f}", mask=f"{values.get('loss_mask', math.nan):.3f}")
        if run.step % run.config.save_every == 0 or run.step == last:
            run.save()
            if on_save is not None:
                on_save(run)
    log.writer.close()
