"""Models: backbones and the two-stage DynaMask family."""
