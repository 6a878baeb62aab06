"""The detector: configuration, layers, checkpoints."""
