"""Random checkpoints of NanoDet-Plus under the names that its public training code gives to the tensors."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

WIDTHS = {"m": (24, 116, 232, 464), "m-1.5x": (24, 176, 352, 704)}
NECK = {"m": 96, "m-1.5x": 128}


class _State(dict):
    """Collects random tensors by name."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def conv(self, name: str, outputs: int, inputs: int, kernel: int = 1) -> None:
        scale = (1.2 / (inputs * kernel**2)) ** 0.5  # keeps the activations of the whole network near 1
        self[f"{name}.weight"] = torch.randn(outputs, inputs, kernel, kernel, generator=self.generator) * scale

    def norm(self, name: str, channels: int) -> None:
        for kind in ("weight", "running_var"):
            self[f"{name}.{kind}"] = torch.rand(channels, generator=self.generator) + 0.5
        for kind in ("bias", "running_mean"):
            self[f"{name}.{kind}"] = torch.randn(channels, generator=self.generator) * 0.1
        self[f"{name}.num_batches_tracked"] = torch.tensor(7)

    def both(self, conv: str, norm: str, outputs: int, inputs: int, kernel: int = 1) -> None:
        self.conv(conv, outputs, inputs, kernel)
        self.norm(norm, outputs)

    def separable(self, name: str, channels: int) -> None:
        self.both(f"{name}.depthwise", f"{name}.dwnorm", channels, 1, 5)
        self.both(f"{name}.pointwise", f"{name}.pwnorm", channels, channels)


def public_state(size: str = "m", classes: int = 80, seed: int = 0) -> dict[str, Tensor]:
    """The state dict of the deployed network with batch norms, without prefix.

    Args:
        size: "m" or "m-1.5x".
        classes: of the head.
        seed: of the values.
    """
    state, neck = _State(seed), NECK[size]
    _backbone(state, WIDTHS[size])
    for i, width in enumerate(WIDTHS[size][1:]):
        state.both(f"fpn.reduce_layers.{i}.conv", f"fpn.reduce_layers.{i}.bn", neck, width)
    for side in ("top_down_blocks", "bottom_up_blocks"):
        for i in range(2):
            _ghost_block(state, f"fpn.{side}.{i}.blocks.0", neck)
    for name in ("downsamples.0", "downsamples.1", "extra_lvl_in_conv.0", "extra_lvl_out_conv.0"):
        state.separable(f"fpn.{name}", neck)
    for level in range(4):
        for i in range(2):
            state.separable(f"head.cls_convs.{level}.{i}", neck)
        state.conv(f"head.gfl_cls.{level}", classes + 32, neck)
        state[f"head.gfl_cls.{level}.bias"] = torch.randn(classes + 32, generator=state.generator)
    state["head.distribution_project.project"] = torch.arange(8.0)
    return dict(state)


def _backbone(state: _State, widths: tuple[int, ...]) -> None:
    state.both("backbone.conv1.0", "backbone.conv1.1", widths[0], 3, 3)
    for stage, (inputs, outputs, units) in enumerate(zip(widths, widths[1:], (4, 8, 4)), 2):
        half = outputs // 2
        for unit in range(units):
            name = f"backbone.stage{stage}.{unit}"
            if unit == 0:
                state.both(f"{name}.branch1.0", f"{name}.branch1.1", inputs, 1, 3)
                state.both(f"{name}.branch1.2", f"{name}.branch1.3", half, inputs)
            state.both(f"{name}.branch2.0", f"{name}.branch2.1", half, half if unit else inputs)
            state.both(f"{name}.branch2.3", f"{name}.branch2.4", half, 1, 3)
            state.both(f"{name}.branch2.5", f"{name}.branch2.6", half, half)


def _ghost_block(state: _State, name: str, neck: int) -> None:
    for ghost, inputs in (("ghost1", 2 * neck), ("ghost2", neck)):
        state.both(f"{name}.{ghost}.primary_conv.0", f"{name}.{ghost}.primary_conv.1", neck // 2, inputs)
        state.both(f"{name}.{ghost}.cheap_operation.0", f"{name}.{ghost}.cheap_operation.1", neck // 2, 1, 3)
    state.both(f"{name}.shortcut.0", f"{name}.shortcut.1", 2 * neck, 1, 5)
    state.both(f"{name}.shortcut.2", f"{name}.shortcut.3", neck, 2 * neck)


def write_checkpoint(path: Path, state: dict[str, Tensor], average: dict[str, Tensor] | None = None) -> Path:
    """Write a checkpoint as the public training code does, with its auxiliary modules, and return its path.

    Args:
        path: a .ckpt file gets Lightning's form, any other the state dict below "state_dict".
        state: of :func:`public_state`.
        average: the moving average of the weights, which Lightning's form holds as well.
    """
    aux = {"aux_fpn.reduce_layers.0.conv.weight": torch.zeros(1), "aux_head.gfl_cls.weight": torch.zeros(1)}
    stored = {"state_dict": {**state, **aux}, "epoch": 3}
    if path.suffix == ".ckpt":
        models = {"model.": {**state, **aux}, **({} if average is None else {"avg_model.": {**average, **aux}})}
        named = {prefix + name: value for prefix, values in models.items() for name, value in values.items()}
        stored = {"state_dict": named, "epoch": 3, "pytorch-lightning_version": "1.9.0", "optimizer_states": [{}]}
    torch.save(stored, path)
    return path
