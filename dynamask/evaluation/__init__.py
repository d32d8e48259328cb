"""How good the predictions are: COCO average precision, and the quality of single masks."""
