"""Folders of n-gram models."""
