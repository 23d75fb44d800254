"""The other end of the transport's measurements: a process of its own."""
