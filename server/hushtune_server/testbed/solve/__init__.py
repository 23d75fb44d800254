"""The resource problem alone: instances from files or at random, allocators side by side, figures."""
