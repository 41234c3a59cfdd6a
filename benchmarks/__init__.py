"""Throughput measured against the libraries people use: `python -m benchmarks all`."""

BATCH, SIDE = 256, 96  # of the images that everybody gets
QUICK_BATCH, QUICK_NETWORK = 64, "cnn"  # with `--quick`: what compiles in seconds

SUITES = ("ops", "policies", "input", "step", "scaling", "roofline", "trace")  # in the order in which `all` runs them
