"""Formats: what other tools read and write, and how a model is opened from it."""
