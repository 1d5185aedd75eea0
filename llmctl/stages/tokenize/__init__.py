"""Tokenize: text files to a tokenizer and Arrow shards, by one process or by many."""
