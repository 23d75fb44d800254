"""From adapter weights to few bytes and back."""
