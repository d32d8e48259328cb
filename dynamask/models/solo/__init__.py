"""The one-stage family: SOLO, SOLOv2, and SODAR's aggregation of neighbouring mask representations on either."""
