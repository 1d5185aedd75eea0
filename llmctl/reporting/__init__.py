"""How results look: durations and counts in words, sparklines, tables."""
