"""Throughput measured against the libraries people use: `python -m benchmarks all`."""

BATCH, SIDE = 256, 96  # of the images that everybody gets

