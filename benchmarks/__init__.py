"""Throughput measured against the libraries people use: `python -m benchmarks policies`."""
