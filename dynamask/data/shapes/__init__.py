"""The shapes world: procedural scenes with objects of known complexity."""

from dynamask.data.shapes.dataset import CLASS_NAMES, ShapesDataset, export
from dynamask.data.shapes.scene import SCENE_SIZE, SIDES, Scene, make_scene

__all__ = ["CLASS_NAMES", "SCENE_SIZE", "SIDES", "Scene", "ShapesDataset", "export", "make_scene"]
