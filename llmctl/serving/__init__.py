"""Models behind HTTP, in the shapes that OpenAI's clients and vLLM's expect."""
