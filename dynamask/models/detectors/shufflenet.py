"""ShuffleNetV2 as NanoDet-Plus uses it: torchvision's with LeakyReLU, without last convolution and classifier."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models.shufflenetv2 import ShuffleNetV2

SLOPE = 0.1
"""Negative slope of every LeakyReLU of the detector."""
STAGE_WIDTHS = {
    "shufflenet_v2_x1_0": (24, 116, 232, 464, 1024),
    "shufflenet_v2_x1_5": (24, 176, 352, 704, 1024),
}
"""Channels of the first convolution, the three stages and torchvision's last convolution, by torchvision's names."""


class ShuffleNetBody(nn.Module):
    """ShuffleNetV2's first convolution and three stages.

    Its modules have torchvision's names: ``conv1``, ``maxpool``, ``stage2``, ``stage3``, ``stage4``.

    Args:
        name: a key of ``STAGE_WIDTHS``.
        norm: keep the batch norms; without them every convolution has a bias, and a norm's place is taken by an
            identity.

    Attributes:
        channels: of the five maps of :meth:`forward`.
    """

    def __init__(self, name: str, norm: bool = False) -> None:
        super().__init__()
        network = ShuffleNetV2([4, 8, 4], list(STAGE_WIDTHS[name]))
        for part in ("conv1", "maxpool", "stage2", "stage3", "stage4"):
            module = getattr(network, part)
            _exchange(module, norm)
            self.add_module(part, module)
        first, *stages, _ = STAGE_WIDTHS[name]
        self.channels = (first, first, *stages)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) → maps at strides 2, 4, 8, 16 and 32, with :attr:`channels` channels."""
        maps = [self.conv1(images)]
        maps.append(self.maxpool(maps[-1]))
        for stage in (self.stage2, self.stage3, self.stage4):
            maps.append(stage(maps[-1]))
        return maps


def _exchange(module: nn.Module, norm: bool) -> None:
    """Replace ReLUs by LeakyReLUs and, without ``norm``, batch norms by identities; convolutions get a bias."""
    for name, child in module.named_children():
        if isinstance(child, nn.ReLU):
            setattr(module, name, nn.LeakyReLU(SLOPE, inplace=True))
        elif isinstance(child, nn.BatchNorm2d) and not norm:
            setattr(module, name, nn.Identity())
        elif isinstance(child, nn.Conv2d) and not norm:
            setattr(module, name, _with_bias(child))
        else:
            _exchange(child, norm)


def _with_bias(conv: nn.Conv2d) -> nn.Conv2d:
    """A convolution of the same shape that has a bias."""
    return nn.Conv2d(
        conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, groups=conv.groups
    )
