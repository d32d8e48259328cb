"""The two-stage family: Mask R-CNN's detector with DynaMask's region branch."""
