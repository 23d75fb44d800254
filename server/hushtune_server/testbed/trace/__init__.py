"""The way of one adapter, from training to verdict, across all processes."""
