"""Multiply–accumulates of single layers (1 MAC = 2 FLOPs); biases and activations are not counted."""

from __future__ import annotations

from torch import nn


def conv_macs(conv: nn.Conv2d, height: int, width: int) -> int:
    """MACs of a convolution with an output of height × width."""
    kernel = conv.kernel_size[0] * conv.kernel_size[1]
    return height * width * conv.out_channels * conv.in_channels // conv.groups * kernel
