"""Mask Switch Module (MSM): predicts the mask size that a region needs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation

from dynamask.structures import MASK_SIZES


class RegionEncoder(nn.Module):
    """Squeeze-and-excitation and two 3×3 convolutions of stride 2: 14×14 region features → vectors.

    Args:
        in_channels: channels of the region feature.
        channels: channels of the two convolutions.

    Attributes:
        out_features: length F of the vectors.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.squeeze = SqueezeExcitation(in_channels, max(in_channels // 16, 4))
        self.convs = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        side = MASK_SIZES[0]
        for _ in range(2):
            side = (side + 1) // 2
        self.out_features = channels * side * side

    def encode(self, region: Tensor) -> Tensor:
        """(R, C, 14, 14) → (R, F)."""
        return self.convs(self.squeeze(region)).flatten(1)


class MaskSwitchModule(RegionEncoder):
    """A region encoder and two fully connected layers (Eq. 1).

    Args:
        in_channels: channels of the 14×14 region feature.
        channels: channels of the two convolutions.
        hidden: width of the first fully connected layer.
    """

    def __init__(self, in_channels: int, channels: int, hidden: int) -> None:
        super().__init__(in_channels, channels)
        self.fc = nn.Sequential(nn.Linear(self.out_features, hidden), nn.ReLU(), nn.Linear(hidden, len(MASK_SIZES)))
        nn.init.normal_(self.fc[2].weight, std=0.01)
        nn.init.zeros_(self.fc[2].bias)

    def forward(self, region: Tensor) -> Tensor:
        """(R, C, 14, 14) → switch logits (R, 4)."""
        return self.fc(self.encode(region))


def sample_gumbel(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Gumbel noise −log(−log u), u uniform in (0, 1), of the shape and device of ``like``."""
    uniform = torch.rand(like.shape, generator=generator, device=like.device, dtype=like.dtype)
    tiny = torch.finfo(like.dtype).tiny
    return -torch.log((-torch.log(uniform.clamp_min(tiny))).clamp_min(tiny))


def straight_through_gumbel(logits: Tensor, temperature: float, noise: Tensor | None = None) -> Tensor:
    """One-hot sample with the softmax's gradient (Eq. 2).

    Args:
        logits: (R, K); their softmax is p.
        temperature: τ > 0.
        noise: (R, K) Gumbel noise; drawn when absent.

    Returns:
        (R, K): exactly one-hot in the forward pass; backward, the gradient of softmax((log p + g)/τ).
    """
    if noise is None:
        noise = sample_gumbel(logits)
    soft = F.softmax((F.log_softmax(logits, dim=1) + noise) / temperature, dim=1)
    hard = F.one_hot(soft.argmax(dim=1), logits.shape[1]).to(soft.dtype)
    return hard + (soft - soft.detach())  # the difference is exactly zero
