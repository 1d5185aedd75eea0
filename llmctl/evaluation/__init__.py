"""How good a model is: metrics with intervals, and the baselines they stand beside."""
