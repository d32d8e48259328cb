"""Masks as COCO's run lengths."""

from __future__ import annotations

import numpy as np
from faster_coco_eval.core import mask as coco_mask
from torch import Tensor


def encode_rle(mask: Tensor) -> dict[str, object]:
    """Compressed COCO RLE (``counts`` as text) of an (H, W) bool mask."""
    rle = coco_mask.encode(np.asfortranarray(mask.cpu().numpy(), dtype=np.uint8))
    counts = rle["counts"]
    return {
        "size": [int(side) for side in rle["size"]],
        "counts": counts.decode() if isinstance(counts, bytes) else counts,
    }
