"""torchvision's input transform with separate sizes for training and evaluation, and a faster resize."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from dynamask.ops.masks import resize_masks


class TwoSizeTransform(GeneralizedRCNNTransform):
    """The last ``min_size`` is used in evaluation; training draws from the others."""

    def torch_choice(self, k: list[int]) -> int:
        """One of the training sizes, from torch's global generator."""
        return super().torch_choice(list(k)[:-1])

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Resize to the same values as torchvision's, but without converting masks to float.

        On the CPU the picture is resized in channels-last layout, which takes half the time.

        Args:
            image: (3, H, W) float.
            target: with boxes (N, 4) and, optionally, masks (N, H, W) uint8.
        """
        if image.device.type == "cpu":
            image = image[None].contiguous(memory_format=torch.channels_last)[0]
        if target is None or "masks" not in target:
            return super().resize(image, target)
        rest = {key: value for key, value in target.items() if key != "masks"}
        image, rest = super().resize(image, rest)
        return image, {**rest, "masks": resize_masks(target["masks"], image.shape[-2:])}
