"""Training of detectors."""

import os

# OpenMP reads it when PyTorch is loaded. Threads that sleep while they wait leave the core to whatever they wait for;
# spinning ones keep it from the loaders: a step on two cores with two loaders took ten times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
