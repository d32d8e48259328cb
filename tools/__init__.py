"""Scripts that prepare what the project ships: bundled weights, their tables and the switch's settings."""
