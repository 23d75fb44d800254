"""The logs of a run, read as one: lines of every process in order of time, chosen, explained, followed."""
