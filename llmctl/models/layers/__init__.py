"""The parts that Transformers share."""
