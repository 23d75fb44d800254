"""The air: one transmission, two receivers."""
