"""Measurements: the instruction counter, the compile report and the timing suites."""
