"""The one-stage family: SOLO and SOLOv2, with or without SODAR's aggregation of neighbouring representations."""
