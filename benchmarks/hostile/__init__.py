"""Hostile clients in their thousands, and what becomes of the others: `python -m benchmarks.hostile`."""
