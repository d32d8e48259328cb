"""Measurements against a torchvision Mask R-CNN and of the switch; each file is a command."""
