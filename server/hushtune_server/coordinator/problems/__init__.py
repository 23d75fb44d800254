"""Allocation problems."""
