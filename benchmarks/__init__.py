"""Throughput measured against the libraries people use: `python -m benchmarks all`."""

BATCH, SIDE = 256, 96  # of the images that everybody gets
QUICK_BATCH = 64  # with `--quick`

SUITES = ("ops", "policies", "input", "step", "scaling", "roofline", "trace")  # in the order in which `all` runs them
