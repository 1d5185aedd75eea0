"""The training loop and what it stands on: optimiser, schedule, precision, checkpoints."""
