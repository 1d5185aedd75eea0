"""Optimisers, schedules and number formats of a training step."""
