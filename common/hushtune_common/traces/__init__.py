"""What became of one adapter, over all processes? A trace of it, made of the events that each of them logs."""
