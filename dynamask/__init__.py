"""DynaMask: per-instance dynamic mask resolution for instance segmentation."""

from dynamask.models.build import create_model, list_models
from dynamask.predict import Prediction, Predictor, load
from dynamask.structures import MASK_SIZES, DynaMaskError

__version__ = "0.1.0"
__all__ = ["MASK_SIZES", "DynaMaskError", "Prediction", "Predictor", "create_model", "list_models", "load"]
