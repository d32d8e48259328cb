"""Mask branches: feature pyramid and boxes to masks at the chosen sizes."""
