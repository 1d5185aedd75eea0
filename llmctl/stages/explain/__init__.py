"""Explain: which words decided, and what happens inside."""
