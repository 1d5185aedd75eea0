"""N-gram language models: counts, smoothing, and the model that is asked."""
