"""Whether a window of text was trained on, asked of a returned adapter."""
