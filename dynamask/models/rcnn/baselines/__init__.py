"""Mask branches and models that the r-FPN is held against."""
