"""Runs and reports a whole experiment on one machine."""
