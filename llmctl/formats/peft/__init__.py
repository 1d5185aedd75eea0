"""Adapter folders in PEFT's layout."""
