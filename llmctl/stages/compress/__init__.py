"""``llmctl compress``: a run to a smaller one, and the table of what that costs."""
