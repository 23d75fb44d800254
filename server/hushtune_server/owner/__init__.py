"""The model owner."""
