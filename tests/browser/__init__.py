"""What only a real browser can tell: a run of its own, `python -m pytest tests/browser`, see `conftest.py`."""
