"""Ghost-PAN, the neck of NanoDet-Plus: Ghost modules (Han et al., CVPR 2020) and separable convolutions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynamask.models.detectors.shufflenet import SLOPE

KERNEL = 5
"""Kernel of the depthwise convolutions of neck and head."""


class ConvUnit(nn.Module):
    """A convolution with zero padding k // 2, then a batch norm (or, if folded, a bias), then LeakyReLU.

    Args:
        inputs, outputs: channels.
        kernel: k.
        stride: of the convolution.
        groups: of the convolution.
        norm: keep the batch norm.
        act: apply the activation.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        norm: bool = False,
        act: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=not norm)
        self.norm = nn.BatchNorm2d(outputs) if norm else nn.Identity()
        self.act = nn.LeakyReLU(SLOPE, inplace=True) if act else nn.Identity()
        nn.init.kaiming_normal_(self.conv.weight, a=SLOPE, mode="fan_out")
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C', ⌈H / stride⌉, ⌈W / stride⌉)."""
        return self.act(self.norm(self.conv(x)))


class SeparableConv(nn.Sequential):
    """A depthwise 5×5 convolution and a 1×1 convolution, each with norm; the activations can be left out."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, norm: bool = False, act: bool = True) -> None:
        super().__init__()
        self.depthwise = ConvUnit(inputs, inputs, KERNEL, stride, inputs, norm, act)
        self.pointwise = ConvUnit(inputs, outputs, norm=norm, act=act)


class GhostModule(nn.Module):
    """Half of the output channels from a 1×1 convolution, the other half from a depthwise 3×3 convolution of them."""

    def __init__(self, inputs: int, outputs: int, norm: bool = False, act: bool = True) -> None:
        super().__init__()
        half = outputs // 2
        self.primary_conv = ConvUnit(inputs, half, norm=norm, act=act)
        self.cheap_operation = ConvUnit(half, half, 3, groups=half, norm=norm, act=act)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) → (B, outputs, H, W)."""
        primary = self.primary_conv(x)
        return torch.cat([primary, self.cheap_operation(primary)], dim=1)


class GhostBlock(nn.Module):
    """Two Ghost modules, the second without activation, plus a separable shortcut without activation."""

    def __init__(self, inputs: int, outputs: int, norm: bool = False) -> None:
        super().__init__()
        self.ghost1 = GhostModule(inputs, outputs, norm)
        self.ghost2 = GhostModule(outputs, outputs, norm, act=False)
        self.shortcut = SeparableConv(inputs, outputs, norm=norm, act=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) → (B, outputs, H, W)."""
        return self.ghost2(self.ghost1(x)) + self.shortcut(x)


class GhostPAN(nn.Module):
    """Top-down, then bottom-up aggregation of three maps, and one additional level.

    Args:
        in_channels: of the maps at strides 8, 16 and 32.
        channels: of every output.
        norm: keep the batch norms.
    """

    def __init__(self, in_channels: Sequence[int], channels: int, norm: bool = False) -> None:
        super().__init__()
        self.reduce_layers = nn.ModuleList(ConvUnit(width, channels, norm=norm) for width in in_channels)
        self.top_down_blocks = nn.ModuleList(GhostBlock(2 * channels, channels, norm) for _ in range(2))
        self.downsamples = nn.ModuleList(SeparableConv(channels, channels, 2, norm) for _ in range(2))
        self.bottom_up_blocks = nn.ModuleList(GhostBlock(2 * channels, channels, norm) for _ in range(2))
        self.extra_lvl_in_conv = nn.ModuleList([SeparableConv(channels, channels, 2, norm)])
        self.extra_lvl_out_conv = nn.ModuleList([SeparableConv(channels, channels, 2, norm)])

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps at strides 8, 16 and 32 → maps of ``channels`` at strides 8, 16, 32 and 64."""
        r8, r16, r32 = (reduce(x) for reduce, x in zip(self.reduce_layers, maps, strict=True))
        t16 = self.top_down_blocks[0](torch.cat([_upsample(r32, r16), r16], dim=1))
        p8 = self.top_down_blocks[1](torch.cat([_upsample(t16, r8), r8], dim=1))
        p16 = self.bottom_up_blocks[0](torch.cat([self.downsamples[0](p8), t16], dim=1))
        p32 = self.bottom_up_blocks[1](torch.cat([self.downsamples[1](p16), r32], dim=1))
        p64 = self.extra_lvl_in_conv[0](r32) + self.extra_lvl_out_conv[0](p32)
        return [p8, p16, p32, p64]


def _upsample(x: Tensor, like: Tensor) -> Tensor:
    """Bilinear upsampling to the height and width of another map."""
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)
