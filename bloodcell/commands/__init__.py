"""One file per `--mode`; each has `run(config)` and reads as the recipe. What several of them share is in `common`."""
