"""Detectors: pictures to boxes, labels, scores and a feature pyramid."""
