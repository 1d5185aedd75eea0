"""Using a trained model: classes of texts, candidates for a mask."""
