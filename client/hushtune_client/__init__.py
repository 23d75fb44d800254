"""The data owner's client."""
