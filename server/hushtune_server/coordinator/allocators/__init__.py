"""Allocation methods."""
