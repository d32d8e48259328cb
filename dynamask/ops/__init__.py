"""Operators: mask geometry, deformable convolution, run lengths, knapsack, and means over the parts of a batch."""
