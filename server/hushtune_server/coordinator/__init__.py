"""The coordinator: rounds and resource allocation."""
