"""Pages made from the code: `python -m docs` writes them, `tests/augment/test_docs.py` fails when they are stale."""
