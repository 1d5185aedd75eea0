"""Several processes that train one model: how they meet, what they share out."""
