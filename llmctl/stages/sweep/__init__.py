"""Sweep: one training for each point of a grid, or for the best of them by successive halving."""
