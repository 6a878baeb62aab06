"""Data sets: annotations and frames, clips for training, checks and repairs, conversion, synthetic videos."""
