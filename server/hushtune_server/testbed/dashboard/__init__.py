"""A live page of a run: its logs folded into a state, the state streamed to browsers, nothing ever written."""
