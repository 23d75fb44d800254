"""What can be counted and measured of a running process? A table fed by events, and readings of its state."""
