"""Keys, agreement and envelopes."""
