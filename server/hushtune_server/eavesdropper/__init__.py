"""The eavesdropper on the wiretap link."""
