"""Faults put into a run on purpose, and what must come of each."""
