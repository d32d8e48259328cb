"""Mask heads other than the r-FPN: the baselines it is compared with."""
