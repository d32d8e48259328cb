"""Training, evaluation and checkpoints; models and loaders are handed in."""
