"""Adapter blocks and checkpoints of the PEFT library, in both directions; the library itself is not needed."""
