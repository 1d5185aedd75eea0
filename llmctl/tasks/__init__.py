"""What a model is trained for: one folder each."""
