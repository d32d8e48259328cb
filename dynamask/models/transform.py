"""torchvision's input transform with separate sizes for training and evaluation, and a faster resize."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes

from dynamask.ops.masks import resize_masks


class TwoSizeTransform(GeneralizedRCNNTransform):
    """The last ``min_size`` is used in evaluation; training draws from the others."""

    def torch_choice(self, k: list[int]) -> int:
        """One of the training sizes, from torch's global generator."""
        return super().torch_choice(list(k)[:-1])

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Resize to the same values as torchvision's, but to at least one pixel, and without converting masks to float.

        On the CPU the picture is resized in channels-last layout, which takes half the time.

        Args:
            image: (3, H, W) float.
            target: with boxes (N, 4) and, optionally, masks (N, H, W) uint8.
        """
        if image.device.type == "cpu":
            image = image[None].contiguous(memory_format=torch.channels_last)[0]
        if target is None or "masks" not in target:
            return self._resize(image, target)
        rest = {key: value for key, value in target.items() if key != "masks"}
        image, rest = self._resize(image, rest)
        return image, {**rest, "masks": resize_masks(target["masks"], image.shape[-2:])}

    def _resize(self, image: Tensor, target: dict[str, Tensor] | None) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Resize a picture and boxes; of a strip so narrow that nothing would be left, the shorter side becomes 1."""
        old = tuple(image.shape[-2:])
        if min(old) * self.max_size > max(old):
            return super().resize(image, target)
        new = tuple(self.max_size if side == max(old) else 1 for side in old)
        image = F.interpolate(image[None], new, mode="bilinear", align_corners=False)[0]
        if target is None:
            return image, None
        return image, {**target, "boxes": resize_boxes(target["boxes"], old, new)}
