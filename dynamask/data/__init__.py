"""Pictures, annotations and batches."""

from dynamask.data.cityscapes import CityscapesDataset
from dynamask.data.coco import CocoDataset
from dynamask.data.coco_format import read_coco
from dynamask.data.combined import CombinedDataset
from dynamask.data.copy_paste import CopyPaste
from dynamask.data.cut_outs import CutOuts
from dynamask.data.instances import split_by_image_id
from dynamask.data.loaders import TrainingLoader
from dynamask.data.pictures import read_picture
from dynamask.data.transforms import TrainingTransforms

__all__ = [
    "CityscapesDataset",
    "CocoDataset",
    "CombinedDataset",
    "CopyPaste",
    "CutOuts",
    "TrainingLoader",
    "TrainingTransforms",
    "read_coco",
    "read_picture",
    "split_by_image_id",
]
