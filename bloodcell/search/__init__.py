"""Hyper-parameter search: the space and its language, methods, trials in a study that processes share, and its page.

What a trial trains on, and in which order things happen, belongs to `commands.search`. Optuna is needed by `study` and
`sampling` alone, so flags can be checked without it.
"""
