"""Instruction tuning: conversations to a model that answers."""
