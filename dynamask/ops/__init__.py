"""Operators: mask crop, paste and edges; deformable convolution. They import nothing of ours."""
