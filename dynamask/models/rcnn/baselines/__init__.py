"""Mask heads and models to compare with: the same trainer, the same detector, the same regions, MACs counted."""
