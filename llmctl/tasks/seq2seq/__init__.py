"""Sequence to sequence: sources to targets."""
